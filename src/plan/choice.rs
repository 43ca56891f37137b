//! How a tensor is quantized.

use arrow_quant_kernels::{
    Bits, BlockType, Blocks, Encoding, GroupSize, Grouping, Isa, KernelError, PairSums, ParameterDtype, Quantized,
    Scheme, Settings, Weights, dequantize, quantize, quantize_blocks, to_f32,
};
use serde::{Deserialize, Serialize};

use crate::QuantError;
use crate::config::{Method, WeightType};

/// What all tensors of a job have in common in how they are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct JobSettings {
    /// Of grouped integers.
    pub scheme: Scheme,
    pub method: Method,
}

/// How a tensor is quantized; scheme and method are the job's. Match it exhaustively.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "StoredChoice", try_from = "StoredChoice")]
pub(crate) enum Choice {
    /// Grouped integers.
    Grouped { bits: Bits, group_size: GroupSize },
    /// Blocks of ggml.
    Block(BlockType),
}

/// A choice as names and numbers.
#[derive(Serialize, Deserialize)]
struct StoredChoice {
    r#type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group_size: Option<i64>,
}

impl From<Choice> for StoredChoice {
    fn from(choice: Choice) -> Self {
        let group_size = choice.group_size().map(|size| size.get() as i64);
        Self { r#type: choice.weight_type().name().to_string(), group_size }
    }
}

impl TryFrom<StoredChoice> for Choice {
    type Error = QuantError;

    fn try_from(stored: StoredChoice) -> Result<Self, QuantError> {
        match stored.r#type.parse()? {
            WeightType::Int(bits) => {
                Ok(Self::Grouped { bits, group_size: stored.group_size.unwrap_or_default().try_into()? })
            }
            WeightType::Block(block_type) => Ok(Self::Block(block_type)),
            WeightType::Mix(mix) => Ok(Self::Block(mix.base())),
            WeightType::Float(_) => {
                Err(QuantError::configuration(format!("{} is not a type of quantized weights", stored.r#type)))
            }
        }
    }
}

impl Choice {
    /// A type, in groups of a size if it has groups; of a mix that of most tensors. `None` for floats.
    pub(crate) fn new(weight_type: WeightType, group_size: GroupSize) -> Option<Self> {
        match weight_type {
            WeightType::Int(bits) => Some(Self::Grouped { bits, group_size }),
            WeightType::Block(block_type) => Some(Self::Block(block_type)),
            WeightType::Mix(mix) => Some(Self::Block(mix.base())),
            WeightType::Float(_) => None,
        }
    }

    pub(crate) fn weight_type(self) -> WeightType {
        match self {
            Self::Grouped { bits, .. } => WeightType::Int(bits),
            Self::Block(block_type) => WeightType::Block(block_type),
        }
    }

    /// Bits of a code.
    pub(crate) fn bits(self) -> Bits {
        self.weight_type().bits()
    }

    /// Weights that share a scale; `None` for blocks, which have what their type has.
    pub(crate) fn group_size(self) -> Option<GroupSize> {
        match self {
            Self::Grouped { group_size, .. } => Some(group_size),
            Self::Block(_) => None,
        }
    }

    /// The encoding, with parameters in F16 where it has a choice.
    pub(crate) fn encoding(self, scheme: Scheme) -> Encoding {
        match self {
            Self::Grouped { bits, group_size } => {
                Encoding::Grouped(bits, Grouping { group_size, scheme, parameter_dtype: ParameterDtype::F16 })
            }
            Self::Block(block_type) => Encoding::Block(block_type),
        }
    }

    /// The settings of the kernel of grouped integers, for a method that there is for them; `None` for blocks.
    pub(crate) fn settings(self, job: JobSettings) -> Option<Settings> {
        match self {
            Self::Grouped { bits, group_size } => {
                Some(Settings { bits, group_size, scheme: job.scheme, method: job.method.of_integers()? })
            }
            Self::Block(_) => None,
        }
    }

    /// Quantizes weights, `importance` having a number for each weight of a row.
    ///
    /// # Errors
    /// If a weight cannot be quantized, rows are no whole number of blocks, or the type has no such method.
    pub(crate) fn quantize(
        self,
        isa: Isa,
        weights: Weights<'_>,
        job: JobSettings,
        importance: Option<&[f32]>,
    ) -> Result<Sample, KernelError> {
        let no_method = || KernelError::Argument {
            name: "method",
            value: format!("'{}' for {}", job.method, self.weight_type()),
            allowed: self.weight_type().methods(),
        };
        match self {
            Self::Grouped { .. } => {
                let settings = self.settings(job).ok_or_else(no_method)?;
                quantize(isa, weights, settings, importance).map(Sample::Groups)
            }
            Self::Block(block_type) => {
                let fill = job.method.of_blocks().ok_or_else(no_method)?;
                quantize_blocks(isa, weights, block_type, fill, importance).map(Sample::Blocks)
            }
        }
    }

    /// Whether it is no better than another in what a tensor loses, as far as that is known without quantizing it: groups
    /// with as many bits or fewer, and as large or larger, or blocks of no more bytes.
    pub(crate) fn is_no_better_than(self, other: Self) -> bool {
        match (self, other) {
            (Self::Grouped { bits, group_size }, Self::Grouped { bits: other, group_size: other_size }) => {
                bits < other || bits == other && group_size >= other_size
            }
            (Self::Block(block_type), Self::Block(other)) => {
                block_type.size() * other.length() <= other.size() * block_type.length()
            }
            (Self::Grouped { .. }, Self::Block(_)) | (Self::Block(_), Self::Grouped { .. }) => false,
        }
    }
}

/// Weights that were quantized to see what is lost.
#[derive(Debug)]
pub(crate) enum Sample {
    Groups(Quantized),
    Blocks(Blocks),
}

impl Sample {
    pub(crate) fn errors(&self) -> PairSums {
        match self {
            Self::Groups(quantized) => quantized.errors,
            Self::Blocks(blocks) => blocks.errors,
        }
    }

    /// Bytes that parameters take more than they would in F16.
    pub(crate) fn bytes_beyond_f16(&self) -> usize {
        match self {
            Self::Groups(quantized) => match quantized.parameter_dtype {
                ParameterDtype::F32 => (quantized.scales.len() + quantized.minima.len()) / 2,
                ParameterDtype::F16 => 0,
            },
            Self::Blocks(_) => 0,
        }
    }

    /// The restored weights.
    ///
    /// # Errors
    /// Never, for what was just quantized.
    pub(crate) fn restored(&self, isa: Isa) -> Result<Vec<f32>, KernelError> {
        match self {
            Self::Groups(quantized) => dequantize(isa, &quantized.as_ref()),
            Self::Blocks(Blocks { block_type, row_length, bytes, .. }) => {
                Ok(to_f32(isa, Weights::blocks(*block_type, bytes, *row_length)?))
            }
        }
    }
}

/// The block type that takes another's place in rows that this one does not divide, as in llama.cpp: with shorter blocks,
/// and no fewer bytes. `None` if there is none.
pub(super) fn of_shorter_blocks(block_type: BlockType) -> Option<BlockType> {
    match block_type {
        BlockType::Q2K | BlockType::Q3K => Some(BlockType::Q4_0),
        BlockType::Q4K => Some(BlockType::Q5_0),
        BlockType::Q5K => Some(BlockType::Q5_1),
        BlockType::Q6K => Some(BlockType::Q8_0),
        BlockType::Iq4Xs | BlockType::Nvfp4 => Some(BlockType::Iq4Nl),
        BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q8_0 => None,
        BlockType::Iq4Nl | BlockType::Mxfp4 => None,
        BlockType::Q2_0 | BlockType::Tq1_0 | BlockType::Tq2_0 => None,
    }
}

/// The next block type of more bits, of the same kind as far as there is one. `None` if there is none.
pub(super) fn of_more_bits(block_type: BlockType) -> Option<BlockType> {
    match block_type {
        BlockType::Q2K => Some(BlockType::Q3K),
        BlockType::Q3K => Some(BlockType::Q4K),
        BlockType::Q4K | BlockType::Iq4Xs | BlockType::Iq4Nl | BlockType::Mxfp4 | BlockType::Nvfp4 => {
            Some(BlockType::Q5K)
        }
        BlockType::Q5K => Some(BlockType::Q6K),
        BlockType::Q4_0 => Some(BlockType::Q5_0),
        BlockType::Q4_1 => Some(BlockType::Q5_1),
        BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q6K => Some(BlockType::Q8_0),
        BlockType::Q8_0 => None,
        BlockType::Q2_0 | BlockType::Tq1_0 | BlockType::Tq2_0 => None,
    }
}
