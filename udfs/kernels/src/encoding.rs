//! How weights are stored, as data: names, and the sizes of blocks.

use crate::types::{Bits, Dtype, GroupSize, ParameterDtype, Scheme, group_count, named};
use crate::{KernelError, Result};

named! {
    /// A float of eight bits, whose scales are a tensor of their own. The names are those of safetensors.
    Fp8, "dtype",
    /// Four bits of exponent and three of mantissa: at most 448, no infinities, NaN for 0x7f and 0xff (PyTorch's
    /// `float8_e4m3fn`).
    E4M3 = "F8_E4M3",
    /// The upper half of a binary16: at most 57344.
    E5M2 = "F8_E5M2",
}

impl Fp8 {
    /// What each byte stands for.
    pub fn values(self) -> [f32; 256] {
        std::array::from_fn(|byte| {
            let byte = byte as u8;
            match self {
                Self::E4M3 => e4m3(byte),
                Self::E5M2 => half::f16::from_bits(u16::from(byte) << 8).to_f32(),
            }
        })
    }
}

pub(crate) fn e4m3(byte: u8) -> f32 {
    let sign = u32::from(byte & 0x80) << 24;
    let magnitude = byte & 0x7f;
    let unsigned = match magnitude {
        0x7f => f32::NAN,
        // Subnormal: multiples of 2⁻⁹.
        0..8 => f32::from(magnitude) / 512.0,
        // The exponent's bias is 7, that of f32 is 127; the mantissa becomes the upper three bits of 23.
        8.. => f32::from_bits((u32::from(magnitude) << 20) + (120 << 23)),
    };
    f32::from_bits(unsigned.to_bits() | sign)
}

named! {
    /// A block type of ggml: a fixed number of consecutive weights of a row and their parameters, stored together. Scales and
    /// minima of blocks are f16; those of the runs of a block of 256 are integers in steps of them.
    BlockType, "block type",
    /// 32 weights in 18 bytes: `w = scale * (q - 8)`.
    Q4_0 = "q4_0",
    /// 32 weights in 20 bytes: `w = scale * q + min`.
    Q4_1 = "q4_1",
    /// 32 weights in 22 bytes: `w = scale * (q - 16)`.
    Q5_0 = "q5_0",
    /// 32 weights in 24 bytes: `w = scale * q + min`, q of five bits.
    Q5_1 = "q5_1",
    /// 32 weights in 34 bytes: `w = scale * q`, q a signed byte.
    Q8_0 = "q8_0",
    /// 64 weights in 18 bytes: `w = scale * (q - 1)`, q of two bits. Only llama.cpp reads it.
    Q2_0 = "q2_0",
    /// 256 weights in 84 bytes, in runs of 16: scales and minima of four bits, q of two.
    Q2K = "q2_k",
    /// 256 weights in 110 bytes, in runs of 16: signed scales of six bits, q of three.
    Q3K = "q3_k",
    /// 256 weights in 144 bytes, in runs of 32: scales and minima of six bits, q of four.
    Q4K = "q4_k",
    /// 256 weights in 176 bytes, in runs of 32: scales and minima of six bits, q of five.
    Q5K = "q5_k",
    /// 256 weights in 210 bytes, in runs of 16: signed scales of eight bits, q of six.
    Q6K = "q6_k",
    /// 32 weights in 18 bytes: a scale, and levels of a codebook of 16.
    Iq4Nl = "iq4_nl",
    /// 256 weights in 136 bytes, in runs of 32: signed scales of six bits, and levels of the codebook of `iq4_nl`.
    Iq4Xs = "iq4_xs",
    /// 256 weights in 54 bytes: a scale, and -1, 0 or 1 each, five in a byte.
    Tq1_0 = "tq1_0",
    /// 256 weights in 66 bytes: a scale, and -1, 0 or 1 each, four in a byte.
    Tq2_0 = "tq2_0",
    /// 32 weights in 17 bytes: a power of two, and floats of four bits (E2M1).
    Mxfp4 = "mxfp4",
    /// 64 weights in 36 bytes, in runs of 16: scales in E4M3, and floats of four bits (E2M1).
    Nvfp4 = "nvfp4",
}

impl BlockType {
    /// The types that [`quantize_blocks`](crate::quantize_blocks) fills; the others are read.
    pub const FILLED: &'static [Self] = &[
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
        Self::Nvfp4,
    ];

    /// Bits of a code; of three levels, which are packed more densely, two.
    pub const fn bits(self) -> Bits {
        match self {
            Self::Q2_0 | Self::Q2K | Self::Tq1_0 | Self::Tq2_0 => Bits::Two,
            Self::Q3K => Bits::Three,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K | Self::Iq4Nl | Self::Iq4Xs | Self::Mxfp4 | Self::Nvfp4 => Bits::Four,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => Bits::Five,
            Self::Q6K => Bits::Six,
            Self::Q8_0 => Bits::Eight,
        }
    }

    /// Weights of a block.
    pub const fn length(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl | Self::Mxfp4 => 32,
            Self::Q2_0 | Self::Nvfp4 => 64,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
            Self::Iq4Xs | Self::Tq1_0 | Self::Tq2_0 => 256,
        }
    }

    /// The greatest magnitude of a weight: the greatest f16 times the greatest level and step.
    pub(crate) const fn greatest(self) -> f32 {
        let multiple: u16 = match self {
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q4_1 => 15 + 1,
            Self::Q5_1 => 31 + 1,
            Self::Q8_0 | Self::Iq4Nl => 127,
            Self::Q2_0 => 2,
            Self::Q2K => 15 * 3 + 15,
            Self::Q3K => 32 * 4,
            Self::Q4K => 63 * 15 + 63,
            Self::Q5K => 63 * 31 + 63,
            Self::Q6K => 128 * 32,
            Self::Iq4Xs => 32 * 127,
            Self::Tq1_0 | Self::Tq2_0 => 1,
            // Scales are powers of two; or E4M3, which ggml lets stop at its greatest.
            Self::Mxfp4 | Self::Nvfp4 => return f32::MAX,
        };
        65504.0 * multiple as f32
    }

    /// Weights that share a scale.
    pub(crate) const fn run(self) -> usize {
        match self {
            Self::Q2K | Self::Q3K | Self::Q6K | Self::Nvfp4 => 16,
            Self::Q4K | Self::Q5K | Self::Iq4Xs => 32,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => self.length(),
            Self::Iq4Nl | Self::Mxfp4 | Self::Q2_0 | Self::Tq1_0 | Self::Tq2_0 => self.length(),
        }
    }

    /// Bytes of a block.
    pub const fn size(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q2_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
            Self::Tq1_0 => 54,
            Self::Tq2_0 => 66,
            Self::Mxfp4 => 17,
            Self::Nvfp4 => 36,
        }
    }
}

/// What the groups of grouped integers are, whatever the width of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grouping {
    /// Weights that share a scale.
    pub group_size: GroupSize,
    /// What a code means.
    pub scheme: Scheme,
    /// How scales and minima are stored.
    pub parameter_dtype: ParameterDtype,
}

impl Grouping {
    /// Bytes of the parameters of one group.
    pub const fn parameter_bytes(self) -> usize {
        let size = self.parameter_dtype.size();
        let minimum = if self.scheme.has_minima() { size } else { 0 };
        let zero_point = if self.scheme.has_zero_points() { 1 } else { 0 };
        size + minimum + zero_point
    }
}

/// How weights are stored. Match it exhaustively: an encoding that is added must then be answered for everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// A float each.
    Float(Dtype),
    /// A float of eight bits each. Their scales are not part of it: see [`Scales`](crate::Scales).
    Fp8(Fp8),
    /// A code each, with parameters for each group in buffers of their own: [`QuantizedRef`](crate::QuantizedRef).
    Grouped(Bits, Grouping),
    /// Blocks of codes and parameters.
    Block(BlockType),
}

impl Encoding {
    /// The name as users type it and as stored: `F32`, `F8_E4M3`, `int4`, `q8_0`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float(dtype) => dtype.name(),
            Self::Fp8(fp8) => fp8.name(),
            Self::Grouped(bits, _) => bits.name(),
            Self::Block(block_type) => block_type.name(),
        }
    }

    /// The encoding of a name. The name of grouped integers, `int4` say, leaves open what `grouping` then adds; it is not
    /// used for other names.
    ///
    /// # Errors
    /// If there is no encoding of that name, or it needs a grouping and has none.
    pub fn parse(name: &str, grouping: Option<Grouping>) -> Result<Self> {
        let refused = |allowed| KernelError::Argument { name: "encoding", value: format!("'{name}'"), allowed };
        if let Ok(bits) = name.parse() {
            let grouping = grouping.ok_or_else(|| refused("with a group size, a scheme and a parameter dtype"))?;
            return Ok(Self::Grouped(bits, grouping));
        }
        let whole =
            [name.parse().map(Self::Float).ok(), name.parse().map(Self::Fp8).ok(), name.parse().map(Self::Block).ok()];
        let found = whole.into_iter().flatten().next();
        found.ok_or_else(|| refused("F64, F32, F16, BF16, F8_E4M3, F8_E5M2, int2, int3, int4, int5, int6, int8, q4_0, q4_1, q5_0, q5_1, q8_0, q2_0, \
             q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, tq1_0, tq2_0, mxfp4 or nvfp4"))
    }

    /// Weights that share parameters, 1 if there are none.
    pub const fn block_length(self) -> usize {
        match self {
            Self::Float(_) | Self::Fp8(_) => 1,
            Self::Grouped(_, grouping) => grouping.group_size.get(),
            Self::Block(block_type) => block_type.length(),
        }
    }

    /// Bytes of a whole block, codes and parameters.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.size(),
            Self::Fp8(_) => 1,
            Self::Grouped(bits, grouping) => bits.packed_len(grouping.group_size.get()) + grouping.parameter_bytes(),
            Self::Block(block_type) => block_type.size(),
        }
    }

    /// Bytes that `length` weights in rows of `row_length` take.
    ///
    /// # Errors
    /// If the weights are no whole number of rows, the rows no whole number of ggml's blocks, or the bytes more than a
    /// `usize` counts.
    pub fn stored_bytes(self, length: usize, row_length: usize) -> Result<usize> {
        self.check_rows(length, row_length)?;
        let bytes = match self {
            Self::Float(_) | Self::Fp8(_) | Self::Block(_) => {
                (length / self.block_length()).checked_mul(self.block_bytes())
            }
            Self::Grouped(bits, grouping) => group_count(length, row_length, grouping.group_size)
                .checked_mul(grouping.parameter_bytes())
                .and_then(|parameters| parameters.checked_add(bits.packed_len(length))),
        };
        bytes.ok_or_else(|| KernelError::Argument {
            name: "weights",
            value: length.to_string(),
            allowed: "as many as memory can hold",
        })
    }

    /// Fails unless the weights are whole rows, and these whole blocks where blocks are stored together.
    pub(crate) fn check_rows(self, length: usize, row_length: usize) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        if row_length == 0 || !length.is_multiple_of(row_length) {
            return Err(KernelError::Length { what: "weights", found: length, multiple_of: row_length });
        }
        let unit = match self {
            // The last group of a row may be short.
            Self::Float(_) | Self::Fp8(_) | Self::Grouped(..) => 1,
            Self::Block(block_type) => block_type.length(),
        };
        if row_length.is_multiple_of(unit) {
            return Ok(());
        }
        Err(KernelError::Length { what: "weights of a row", found: row_length, multiple_of: unit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Encoding> {
        let parameter_dtype = ParameterDtype::F16;
        let grouping = |scheme| Grouping { group_size: GroupSize::try_from(64).unwrap(), scheme, parameter_dtype };
        let grouped = |bits: Bits| Scheme::ALL.iter().map(move |&scheme| Encoding::Grouped(bits, grouping(scheme)));
        let floats = Dtype::ALL.iter().copied().map(Encoding::Float);
        let blocks = BlockType::ALL.iter().copied().map(Encoding::Block);
        let fp8 = Fp8::ALL.iter().copied().map(Encoding::Fp8);
        floats.chain(fp8).chain(Bits::ALL.iter().copied().flat_map(grouped)).chain(blocks).collect()
    }

    #[test]
    fn every_name_is_read_back() {
        for encoding in all() {
            let grouping = match encoding {
                Encoding::Grouped(_, grouping) => Some(grouping),
                Encoding::Float(_) | Encoding::Fp8(_) | Encoding::Block(_) => None,
            };
            assert_eq!(Encoding::parse(encoding.name(), grouping), Ok(encoding));
        }
        let unknown = Encoding::parse("q9_0", None).unwrap_err().to_string();
        assert!(unknown.starts_with("encoding is 'q9_0', allowed: F64, "), "{unknown}");
        for encoding in all() {
            assert!(unknown.contains(encoding.name()), "{unknown} lacks {}", encoding.name());
        }
        let open = Encoding::parse("int4", None).unwrap_err().to_string();
        assert_eq!(open, "encoding is 'int4', allowed: with a group size, a scheme and a parameter dtype");
    }

    #[test]
    fn stored_bytes_count_codes_and_parameters() {
        // Two rows of a group and a half, or of a block.
        let bytes = |encoding: Encoding| match encoding {
            Encoding::Block(block_type) => encoding.stored_bytes(2 * block_type.length(), block_type.length()),
            Encoding::Float(_) | Encoding::Fp8(_) | Encoding::Grouped(..) => encoding.stored_bytes(192, 96),
        };
        let names: Vec<_> = all().into_iter().map(|encoding| (encoding.name(), bytes(encoding).unwrap())).collect();
        let expected = [
            ("F64", 1536),
            ("F32", 768),
            ("F16", 384),
            ("BF16", 384),
            ("F8_E4M3", 192),
            ("F8_E5M2", 192),
            // Four groups: scale and minimum, scale and zero point, scale.
            ("int2", 48 + 16),
            ("int2", 48 + 12),
            ("int2", 48 + 8),
            ("int3", 72 + 16),
            ("int3", 72 + 12),
            ("int3", 72 + 8),
            ("int4", 96 + 16),
            ("int4", 96 + 12),
            ("int4", 96 + 8),
            ("int5", 120 + 16),
            ("int5", 120 + 12),
            ("int5", 120 + 8),
            ("int6", 144 + 16),
            ("int6", 144 + 12),
            ("int6", 144 + 8),
            ("int8", 192 + 16),
            ("int8", 192 + 12),
            ("int8", 192 + 8),
        ];
        let blocks = BlockType::ALL.iter().map(|block_type| (block_type.name(), 2 * block_type.size()));
        let expected: Vec<_> = expected.into_iter().chain(blocks).collect();
        assert_eq!(names, expected);
        for encoding in all() {
            let (length, row) = (encoding.block_length() * 6, encoding.block_length() * 3);
            assert_eq!(encoding.stored_bytes(length, row), Ok(encoding.block_bytes() * 6));
            assert_eq!(encoding.stored_bytes(0, 0), Ok(0));
        }
        let q8_0 = Encoding::Block(BlockType::Q8_0);
        let message = |length, row_length| q8_0.stored_bytes(length, row_length).unwrap_err().to_string();
        assert_eq!(message(96, 48), "48 weights of a row do not divide into runs of 32");
        assert_eq!(message(96, 64), "96 weights do not divide into runs of 64");
        assert_eq!(message(96, 0), "96 weights do not divide into runs of 0");
        let most = usize::MAX / 32 * 32;
        assert_eq!(message(most, 32), format!("weights is {most}, allowed: as many as memory can hold"));
    }

    #[test]
    fn blocks_hold_codes_of_their_bits() {
        for block_type in BlockType::ALL {
            let (bits, stored) = (block_type.bits().get(), 8 * block_type.size());
            // What is stored beside codes is two bits a weight at most. Three levels are less than two bits.
            let codes = block_type.length() * bits;
            let is_packed_more_densely = *block_type == BlockType::Tq1_0;
            assert!(
                is_packed_more_densely || (codes + 1..=codes + 2 * block_type.length()).contains(&stored),
                "{block_type}"
            );
        }
    }

    #[test]
    fn fp8_values_follow_their_formula() {
        for fp8 in Fp8::ALL {
            let (mantissa_bits, bias) = match fp8 {
                Fp8::E4M3 => (3, 7),
                Fp8::E5M2 => (2, 15),
            };
            for (byte, &found) in fp8.values().iter().enumerate() {
                let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
                let exponent = (byte as i32 & 0x7f) >> mantissa_bits;
                let fraction = f64::from(byte as i32 & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
                let magnitude = match exponent {
                    0 => fraction * 2f64.powi(1 - bias),
                    _ => (1.0 + fraction) * 2f64.powi(exponent - bias),
                };
                let expected = match fp8 {
                    Fp8::E4M3 if byte & 0x7f == 0x7f => f64::NAN,
                    Fp8::E5M2 if exponent == 31 && fraction > 0.0 => f64::NAN,
                    Fp8::E5M2 if exponent == 31 => sign * f64::INFINITY,
                    Fp8::E4M3 | Fp8::E5M2 => sign * magnitude,
                };
                let same = found.is_nan() && expected.is_nan() || f64::from(found).to_bits() == expected.to_bits();
                assert!(same, "{fp8} {byte:#x}: {found} is not {expected}");
            }
        }
        assert_eq!(Fp8::E4M3.values()[0x7e], 448.0);
        assert_eq!(Fp8::E5M2.values()[0x7b], 57344.0);
    }
}
