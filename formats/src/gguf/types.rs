//! The types of tensors in GGUF files.

use std::fmt;

use arrow_quant_kernels::{BlockType, Dtype};

use crate::StoredType;

/// One row a type: variant, number, name, weights of a block, bytes of a block.
macro_rules! tensor_types {
    ($($variant:ident = $number:literal, $name:literal, $weights:literal, $bytes:literal;)+) => {
        /// The type of a tensor. The names are ggml's.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the variants are named as in ggml, and the table has what there is to know")]
        pub enum TensorType { $($variant = $number),+ }

        impl TensorType {
            /// Every type, by its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in ggml.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// Weights and bytes of a block; single elements are blocks of one.
            pub const fn block(self) -> (u64, u64) {
                match self { $(Self::$variant => ($weights, $bytes)),+ }
            }
        }
    };
}

tensor_types! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q8_1 = 9, "Q8_1", 32, 36;
    Q2K = 10, "Q2_K", 256, 84;
    Q3K = 11, "Q3_K", 256, 110;
    Q4K = 12, "Q4_K", 256, 144;
    Q5K = 13, "Q5_K", 256, 176;
    Q6K = 14, "Q6_K", 256, 210;
    Q8K = 15, "Q8_K", 256, 292;
    Iq2Xxs = 16, "IQ2_XXS", 256, 66;
    Iq2Xs = 17, "IQ2_XS", 256, 74;
    Iq3Xxs = 18, "IQ3_XXS", 256, 98;
    Iq1S = 19, "IQ1_S", 256, 50;
    Iq4Nl = 20, "IQ4_NL", 32, 18;
    Iq3S = 21, "IQ3_S", 256, 110;
    Iq2S = 22, "IQ2_S", 256, 82;
    Iq4Xs = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    Iq1M = 29, "IQ1_M", 256, 56;
    BF16 = 30, "BF16", 1, 2;
    Tq1_0 = 34, "TQ1_0", 256, 54;
    Tq2_0 = 35, "TQ2_0", 256, 66;
    Mxfp4 = 39, "MXFP4", 32, 17;
    Nvfp4 = 40, "NVFP4", 64, 36;
    Q1_0 = 41, "Q1_0", 128, 18;
    Q2_0 = 42, "Q2_0", 64, 18;
}

impl TensorType {
    /// The number in files.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The type of a number, if there is one.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.number() == number)
    }

    /// The value of `general.file_type` of files of this type; that of F32 files for types without one.
    pub const fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 14,
            Self::Q5K => 16,
            Self::Q6K => 18,
            Self::Iq4Nl => 25,
            Self::Iq4Xs => 30,
            Self::BF16 => 32,
            Self::Tq1_0 => 36,
            Self::Tq2_0 => 37,
            Self::Mxfp4 => 38,
            Self::Nvfp4 => 39,
            Self::Q1_0 => 40,
            Self::Q2_0 => 41,
            _ => 0,
        }
    }

    /// Bytes of so many weights, whose rows are whole blocks. `None` if the bytes cannot be counted.
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let (weights, bytes) = self.block();
        (elements / weights).checked_mul(bytes)
    }

    /// The blocks of the kernels that it is; `None` for other types.
    pub fn block_type(self) -> Option<BlockType> {
        BlockType::ALL.iter().copied().find(|block| Self::from(*block) == self)
    }

    /// The floats of a type, if GGUF has it.
    pub fn of_stored(stored: StoredType) -> Option<Self> {
        stored.float().map(Self::from)
    }
}

impl From<BlockType> for TensorType {
    fn from(block: BlockType) -> Self {
        match block {
            BlockType::Q4_0 => Self::Q4_0,
            BlockType::Q4_1 => Self::Q4_1,
            BlockType::Q5_0 => Self::Q5_0,
            BlockType::Q5_1 => Self::Q5_1,
            BlockType::Q8_0 => Self::Q8_0,
            BlockType::Q2_0 => Self::Q2_0,
            BlockType::Q2K => Self::Q2K,
            BlockType::Q3K => Self::Q3K,
            BlockType::Q4K => Self::Q4K,
            BlockType::Q5K => Self::Q5K,
            BlockType::Q6K => Self::Q6K,
            BlockType::Iq4Nl => Self::Iq4Nl,
            BlockType::Iq4Xs => Self::Iq4Xs,
            BlockType::Tq1_0 => Self::Tq1_0,
            BlockType::Tq2_0 => Self::Tq2_0,
            BlockType::Mxfp4 => Self::Mxfp4,
            BlockType::Nvfp4 => Self::Nvfp4,
        }
    }
}

impl From<Dtype> for TensorType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_types_have_the_sizes_that_the_kernels_fill() {
        for &block in BlockType::ALL {
            let kind = TensorType::from(block);
            assert_eq!(kind.block(), (block.length() as u64, block.size() as u64), "{kind}");
            assert_eq!(kind.name().to_lowercase(), block.name());
            assert_eq!(kind.block_type(), Some(block));
        }
        assert_eq!(TensorType::F32.block_type(), None);
        assert!(TensorType::ALL.iter().all(|kind| TensorType::of_number(kind.number()) == Some(*kind)));
        assert_eq!(TensorType::of_number(4), None);
    }
}
