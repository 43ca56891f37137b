//! What can be asked of the kernels, parsed once at the edge: inside, an invalid width, group size or scheme cannot be
//! written down.
//!
//! What a kernel needs to know of a variant is a method here with an exhaustive `match`, or an exhaustive `match` of its own,
//! never a comparison: a new width or scheme then fails to compile until each of them has an answer for it.

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

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::KernelError;

            fn from_str(text: &str) -> $crate::Result<Self> {
                Self::ALL.iter().copied().find(|v| v.name() == text).ok_or_else(|| $crate::KernelError::Argument {
                    name: $what,
                    value: text.to_string(),
                    allowed: concat!("one of" $(, " '", $text, "'")+),
                })
            }
        }
    };
}
pub(crate) use named;

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

impl Scheme {
    /// True if each group stores a minimum, in the dtype of its scale.
    pub const fn has_minima(self) -> bool {
        match self {
            Self::Affine => true,
            Self::Asymmetric | Self::Symmetric => false,
        }
    }

    /// True if each group stores a zero point, one byte.
    pub const fn has_zero_points(self) -> bool {
        match self {
            Self::Asymmetric => true,
            Self::Affine | Self::Symmetric => false,
        }
    }
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

impl Method {
    /// True if grids are searched for, so that a batch's weights are kept transposed.
    pub(crate) const fn searches(self) -> bool {
        match self {
            Self::MinMax => false,
            Self::Mse | Self::Unbiased => true,
        }
    }

    /// True if the levels of the grid found are stretched.
    pub(crate) const fn stretches(self) -> bool {
        match self {
            Self::Unbiased => true,
            Self::MinMax | Self::Mse => false,
        }
    }
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

    /// True if f32 does not hold every value.
    pub(crate) const fn exceeds_f32(self) -> bool {
        match self {
            Self::F64 => true,
            Self::F32 | Self::F16 | Self::BF16 => false,
        }
    }
}

named! {
    /// Bits of one code, narrowest first. The names are those of grouped integers of that width.
    #[derive(PartialOrd, Ord)]
    Bits, "type",
    /// Four levels.
    Two = "int2",
    /// Eight levels.
    Three = "int3",
    /// Sixteen levels.
    Four = "int4",
    /// 32 levels.
    Five = "int5",
    /// 64 levels.
    Six = "int6",
    /// 256 levels.
    Eight = "int8",
}

impl Bits {
    /// The number of bits.
    pub const fn get(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Three => 3,
            Self::Four => 4,
            Self::Five => 5,
            Self::Six => 6,
            Self::Eight => 8,
        }
    }

    /// The largest code, 2^bits - 1.
    pub const fn max_code(self) -> u8 {
        ((1u16 << self.get()) - 1) as u8
    }

    /// Bytes that `codes` packed codes take: one stream of bits, the lowest bit of the first code first. Eight codes take
    /// as many bytes as a code has bits.
    pub const fn packed_len(self, codes: usize) -> usize {
        codes / 8 * self.get() + (codes % 8 * self.get()).div_ceil(8)
    }

    /// True if `codes` packed codes end on a byte, so that the next ones begin at `packed_len(codes)`.
    pub(crate) const fn ends_on_byte(self, codes: usize) -> bool {
        (codes % 8 * self.get()).is_multiple_of(8)
    }

    /// Code `i` of packed codes.
    #[inline(always)]
    pub(crate) fn code(self, bytes: &[u8], i: usize) -> u8 {
        let (byte, shift) = (i / 8 * self.get() + i % 8 * self.get() / 8, i % 8 * self.get() % 8);
        let low = bytes[byte] >> shift;
        // The bits that are in the next byte, if there are any.
        let high = if shift + self.get() > 8 { bytes[byte + 1] << (8 - shift) } else { 0 };
        (low | high) & self.max_code()
    }

    /// Makes packed code `i`, whose bits are 0, `code`.
    #[inline(always)]
    pub(crate) fn put(self, bytes: &mut [u8], i: usize, code: u8) {
        let (byte, shift) = (i / 8 * self.get() + i % 8 * self.get() / 8, i % 8 * self.get() % 8);
        bytes[byte] |= code << shift;
        if shift + self.get() > 8 {
            bytes[byte + 1] |= code >> (8 - shift);
        }
    }
}

impl TryFrom<i64> for Bits {
    type Error = KernelError;

    fn try_from(bits: i64) -> Result<Self> {
        Self::ALL.iter().copied().find(|b| b.get() as i64 == bits).ok_or_else(|| KernelError::Argument {
            name: "bits",
            value: bits.to_string(),
            allowed: "2, 3, 4, 5, 6 or 8",
        })
    }
}

/// Weights of one row that share one scale: 16, 32, 64, 128 or 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupSize(u16);

impl GroupSize {
    /// Every group size, smallest first.
    pub const ALL: &'static [Self] = &[Self(16), Self(32), Self(64), Self(128), Self(256)];

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
            allowed: "16, 32, 64, 128 or 256",
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

named! {
    /// How scales and minima are stored.
    ParameterDtype, "parameter_dtype",
    /// Half precision, unless it would move a level of some group's grid by more than a quarter of a step.
    F16 = "F16",
    /// Single precision.
    F32 = "F32",
}

impl ParameterDtype {
    /// Bytes of one parameter.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Groups in rows of `row_length` weights, the last of each row perhaps short.
pub fn group_count(length: usize, row_length: usize, group_size: GroupSize) -> usize {
    if length == 0 { 0 } else { length / row_length * row_length.div_ceil(group_size.get()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_list_every_width_and_group_size() {
        let allowed = |error: KernelError| {
            let KernelError::Argument { allowed, .. } = error else { panic!("{error}") };
            allowed.replace(" or ", ", ")
        };
        let list = |values: Vec<usize>| values.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let widths = Bits::ALL.iter().map(|bits| bits.get()).collect();
        assert_eq!(allowed(Bits::try_from(-1).unwrap_err()), list(widths));
        let group_sizes = GroupSize::ALL.iter().map(|size| size.get()).collect();
        assert_eq!(allowed(GroupSize::try_from(-1).unwrap_err()), list(group_sizes));
    }
}
