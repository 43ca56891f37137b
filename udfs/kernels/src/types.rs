//! What can be asked of the kernels, parsed once at the edge: inside, an invalid width, group size or scheme cannot be
//! written down.

use std::fmt;
use std::str::FromStr;

use crate::{KernelError, Result};

/// An enum whose variants have one spelling each, used in SQL, on the command line and in stored models.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident, $what:literal, $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every variant, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name as users type it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = KernelError;

            fn from_str(text: &str) -> Result<Self> {
                Self::ALL.iter().copied().find(|v| v.name() == text).ok_or_else(|| KernelError::Argument {
                    name: $what,
                    value: text.to_string(),
                    allowed: concat!("one of" $(, " '", $text, "'")+),
                })
            }
        }
    };
}

named! {
    /// How a code stands for a weight.
    Scheme, "scheme",
    /// `w = scale * q + min`, the minimum a float: MLX's bias, GGUF's m. The best error at 2 bits.
    Affine = "affine",
    /// `w = scale * (q - zero_point)`, the zero point a code: GPTQ, compressed-tensors.
    Asymmetric = "asymmetric",
    /// `w = scale * (q - 2^(bits-1))`, a scale of either sign: GGUF's Q4_0 and Q8_0.
    Symmetric = "symmetric",
}

named! {
    /// How scale and minimum (or zero point) of a group are found.
    Method, "method",
    /// From the group's range alone.
    MinMax = "minmax",
    /// By a search for the least squared error; on no group worse than `minmax`.
    Mse = "mse",
    /// As `mse`, and then the levels of each group stretched, so that what weights are restored to is no smaller than they
    /// are: Σ i·w·ŵ = Σ i·w², i being the importance. Codes of the least squared error lack the energy of that error, by
    /// which each layer of a model dampens what passes through it.
    Unbiased = "unbiased",
}

named! {
    /// How an element is stored, little-endian. The names are those of safetensors.
    Dtype, "dtype",
    /// IEEE 754 binary64; compared as such, quantized after rounding to binary32.
    F64 = "F64",
    /// IEEE 754 binary32.
    F32 = "F32",
    /// IEEE 754 binary16.
    F16 = "F16",
    /// The upper half of a binary32.
    BF16 = "BF16",
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// Bits of one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bits {
    /// Four levels.
    Two,
    /// Sixteen levels.
    Four,
    /// 256 levels.
    Eight,
}

impl Bits {
    /// Every width, narrowest first.
    pub const ALL: &'static [Self] = &[Self::Two, Self::Four, Self::Eight];

    /// The number of bits.
    pub const fn get(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The largest code, 2^bits - 1.
    pub const fn max_code(self) -> u8 {
        ((1u16 << self.get()) - 1) as u8
    }

    /// Bytes that `codes` packed codes take.
    pub const fn packed_len(self, codes: usize) -> usize {
        (codes * self.get()).div_ceil(8)
    }
}

impl TryFrom<i64> for Bits {
    type Error = KernelError;

    fn try_from(bits: i64) -> Result<Self> {
        Self::ALL.iter().copied().find(|b| b.get() as i64 == bits).ok_or_else(|| KernelError::Argument {
            name: "bits",
            value: bits.to_string(),
            allowed: "2, 4 or 8",
        })
    }
}

/// Weights of one row that share one scale: 32, 64, 128 or 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupSize(u16);

impl GroupSize {
    /// Every group size, smallest first.
    pub const ALL: &'static [Self] = &[Self(32), Self(64), Self(128), Self(256)];

    /// The number of weights.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl TryFrom<i64> for GroupSize {
    type Error = KernelError;

    fn try_from(size: i64) -> Result<Self> {
        Self::ALL.iter().copied().find(|g| i64::from(g.0) == size).ok_or_else(|| KernelError::Argument {
            name: "group_size",
            value: size.to_string(),
            allowed: "32, 64, 128 or 256",
        })
    }
}

/// Everything that decides which bytes a slice of weights becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Width of a code.
    pub bits: Bits,
    /// Weights that share a scale.
    pub group_size: GroupSize,
    /// What a code means.
    pub scheme: Scheme,
    /// How scales are found.
    pub method: Method,
}

/// Weights as they are stored: little-endian elements of one dtype, at any alignment, in rows of equal length.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    row_length: usize,
}

impl<'a> Weights<'a> {
    /// `bytes` as rows of `row_length` elements. Groups never cross from one row into the next.
    ///
    /// # Errors
    /// If the bytes are no whole number of elements, or the elements no whole number of rows.
    pub fn new(dtype: Dtype, bytes: &'a [u8], row_length: usize) -> Result<Self> {
        let length = bytes.len() / dtype.size();
        if !bytes.len().is_multiple_of(dtype.size()) {
            return Err(KernelError::Length {
                what: "bytes of weights",
                found: bytes.len(),
                multiple_of: dtype.size(),
            });
        }
        if length > 0 && (row_length == 0 || !length.is_multiple_of(row_length)) {
            return Err(KernelError::Length { what: "weights", found: length, multiple_of: row_length });
        }
        Ok(Self { dtype, bytes, row_length })
    }

    /// `bytes` as a single row.
    ///
    /// # Errors
    /// If the bytes are no whole number of elements.
    pub fn one_row(dtype: Dtype, bytes: &'a [u8]) -> Result<Self> {
        Self::new(dtype, bytes, bytes.len() / dtype.size())
    }

    /// The stored dtype.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Elements in all.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// True without any element.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Elements of a row.
    pub fn row_length(&self) -> usize {
        self.row_length
    }

    /// The elements from `start` on, `length` of them: whole rows, or a piece of one, which is then a row.
    pub(crate) fn rows(&self, start: usize, length: usize) -> Self {
        let size = self.dtype.size();
        let bytes = &self.bytes[start * size..(start + length) * size];
        Self { bytes, row_length: self.row_length.min(length), ..*self }
    }
}

/// How scales and minima are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterDtype {
    /// Half precision, unless it would move a level of some group's grid by more than a quarter of a step.
    F16,
    /// Single precision.
    F32,
}

impl ParameterDtype {
    /// Bytes of one parameter.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The name as stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }
}

impl FromStr for ParameterDtype {
    type Err = KernelError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "F16" => Ok(Self::F16),
            "F32" => Ok(Self::F32),
            _ => Err(KernelError::Argument {
                name: "parameter_dtype",
                value: text.to_string(),
                allowed: "one of 'F16' 'F32'",
            }),
        }
    }
}

/// Groups in rows of `row_length` weights, the last of each row perhaps short.
pub fn group_count(length: usize, row_length: usize, group_size: GroupSize) -> usize {
    if length == 0 { 0 } else { length / row_length * row_length.div_ceil(group_size.get()) }
}
