//! Stored numbers as F32.

use arrow_quant_kernels::{Dtype, Fp8, Isa, Weights, to_f32};

use crate::StoredType;

/// The values of floats of four bits (E2M1), by code.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// A type of stored numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    Float(Dtype),
    Fp8(Fp8),
    /// The exponent of a power of two, with 127 added.
    Exponent,
    U8,
    I8,
    I32,
    I64,
}

impl Number {
    /// The type of the elements of a stored tensor.
    pub(super) fn of(stored: StoredType) -> Option<Self> {
        Some(match stored {
            StoredType::F8E4M3 => Self::Fp8(Fp8::E4M3),
            StoredType::F8E5M2 => Self::Fp8(Fp8::E5M2),
            StoredType::F8E8M0 => Self::Exponent,
            StoredType::U8 => Self::U8,
            StoredType::I8 => Self::I8,
            StoredType::I32 => Self::I32,
            StoredType::I64 => Self::I64,
            other => Self::Float(other.float()?),
        })
    }

    /// The type of scales: unsigned bytes are exponents.
    pub(super) fn of_scale(stored: StoredType) -> Option<Self> {
        match Self::of(stored)? {
            Self::U8 => Some(Self::Exponent),
            Self::I8 | Self::I32 | Self::I64 => None,
            number => Some(number),
        }
    }

    /// Bytes of one.
    pub(super) fn size(self) -> u64 {
        match self {
            Self::Float(dtype) => dtype.size() as u64,
            Self::Fp8(_) | Self::Exponent | Self::U8 | Self::I8 => 1,
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// Appends the values of little-endian bytes.
    pub(super) fn append(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::Float(dtype) => out.extend(floats(dtype, bytes)),
            Self::Fp8(_) | Self::Exponent | Self::U8 | Self::I8 => {
                let values = self.of_bytes();
                out.extend(bytes.iter().map(|&byte| values[usize::from(byte)]));
            }
            Self::I32 => out.extend(bytes.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes) as f32)),
            Self::I64 => out.extend(bytes.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as f32)),
        }
    }

    /// What each byte stands for, for types of one byte; else 0.
    pub(super) fn of_bytes(self) -> [f32; 256] {
        match self {
            Self::Fp8(fp8) => fp8.values(),
            Self::Exponent => std::array::from_fn(|byte| power_of_two(byte as u8)),
            Self::U8 => std::array::from_fn(|byte| byte as f32),
            Self::I8 => std::array::from_fn(|byte| f32::from(byte as u8 as i8)),
            Self::Float(_) | Self::I32 | Self::I64 => [0.0; 256],
        }
    }
}

/// Floats of any type.
fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let whole = bytes.len() / dtype.size() * dtype.size();
    Weights::one_row(dtype, &bytes[..whole]).map_or_else(|_| Vec::new(), |weights| to_f32(isa(), weights))
}

/// The instruction set to compute with.
pub(super) fn isa() -> Isa {
    // A variable that names a set which this CPU does not have is refused wherever results depend on it; these do not.
    Isa::active().unwrap_or_else(|_| Isa::available()[0])
}

/// 2^(code - 127); 255 is no number.
fn power_of_two(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        code => f32::from_bits(u32::from(code) << 23),
    }
}
