//! How the elements of a tensor are stored in a file.

use std::fmt;
use std::str::FromStr;

use arrow_quant_kernels::Dtype;

/// One row a stored type: variant, name in safetensors headers, bits of an element, and the type the kernels read it as.
macro_rules! stored_types {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $bits:literal, $dtype:expr;)+) => {
        /// The type of a tensor's elements. The names are those of safetensors.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum StoredType { $($(#[$doc])* $variant),+ }

        impl StoredType {
            /// Every type, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in headers.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// Bits of one element.
            pub const fn bits(self) -> u64 {
                match self { $(Self::$variant => $bits),+ }
            }

            /// The floating-point type that the kernels read it as; `None` if they do not.
            pub const fn float(self) -> Option<Dtype> {
                match self { $(Self::$variant => $dtype),+ }
            }
        }
    };
}

stored_types! {
    /// A truth value in a byte.
    Bool = "BOOL", 8, None;
    /// An unsigned byte.
    U8 = "U8", 8, None;
    /// A signed byte.
    I8 = "I8", 8, None;
    /// A signed integer of 16 bits.
    I16 = "I16", 16, None;
    /// An unsigned integer of 16 bits.
    U16 = "U16", 16, None;
    /// A signed integer of 32 bits.
    I32 = "I32", 32, None;
    /// An unsigned integer of 32 bits.
    U32 = "U32", 32, None;
    /// A signed integer of 64 bits.
    I64 = "I64", 64, None;
    /// An unsigned integer of 64 bits.
    U64 = "U64", 64, None;
    /// IEEE 754 binary16.
    F16 = "F16", 16, Some(Dtype::F16);
    /// The upper half of a binary32.
    BF16 = "BF16", 16, Some(Dtype::BF16);
    /// IEEE 754 binary32.
    F32 = "F32", 32, Some(Dtype::F32);
    /// IEEE 754 binary64.
    F64 = "F64", 64, Some(Dtype::F64);
    /// OCP FP8 with four bits of exponent, without infinities.
    F8E4M3 = "F8_E4M3", 8, None;
    /// OCP FP8 with five bits of exponent.
    F8E5M2 = "F8_E5M2", 8, None;
    /// A power of two in a byte, the scale of MX formats.
    F8E8M0 = "F8_E8M0", 8, None;
    /// FP8 E4M3 without negative zero.
    F8E4M3Fnuz = "F8_E4M3FNUZ", 8, None;
    /// FP8 E5M2 without negative zero.
    F8E5M2Fnuz = "F8_E5M2FNUZ", 8, None;
    /// OCP FP4, two to a byte.
    F4 = "F4", 4, None;
    /// OCP FP6 with two bits of exponent.
    F6E2M3 = "F6_E2M3", 6, None;
    /// OCP FP6 with three bits of exponent.
    F6E3M2 = "F6_E3M2", 6, None;
    /// A complex number of two binary32.
    C64 = "C64", 64, None;
}

impl StoredType {
    /// Bytes of `elements` elements; `None` if they end within a byte, or are more bytes than 64 bits count.
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let bits = u128::from(elements) * u128::from(self.bits());
        if bits.is_multiple_of(8) { u64::try_from(bits / 8).ok() } else { None }
    }
}

impl From<Dtype> for StoredType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no stored type's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no stored type '{0}'")]
pub struct UnknownStoredType(pub String);

impl FromStr for StoredType {
    type Err = UnknownStoredType;

    fn from_str(name: &str) -> Result<Self, UnknownStoredType> {
        Self::ALL.iter().copied().find(|known| known.name() == name).ok_or_else(|| UnknownStoredType(name.to_string()))
    }
}
