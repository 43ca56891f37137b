//! What a target asks of the plan of a model, tensor by tensor.

use arrow_quant_formats::manifest::Omission;
use arrow_quant_kernels::BlockType;

use crate::config::WeightType;

/// What a target asks of the plan of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Nothing.
    Free,
    /// This type, where nothing else is said of the tensor.
    Type(BlockType),
    /// That it is not quantized.
    Stay,
    /// That it is not written.
    LeftOut(Omission),
}

impl Request {
    /// The type that is asked for.
    pub(super) fn weight_type(self) -> Option<WeightType> {
        match self {
            Self::Type(block_type) => Some(WeightType::Block(block_type)),
            Self::Free | Self::Stay | Self::LeftOut(_) => None,
        }
    }
}
