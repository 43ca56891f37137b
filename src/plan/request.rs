//! What a target asks of the plan of a model, tensor by tensor.

use arrow_quant_formats::manifest::{Limit, Omission, Reason};
use arrow_quant_kernels::BlockType;

use super::tensors::TensorPlan;
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

    /// Keeps the tensors that must stay, and those that are left out.
    pub(super) fn settle(requests: &[Self], tensors: &mut [TensorPlan], target: &str) {
        for (request, plan) in requests.iter().zip(tensors) {
            let target = || target.to_string();
            let reason = match request {
                Self::Stay if plan.choice.is_some() => Reason::NotHeld { target: target(), limit: Limit::Tensor },
                Self::LeftOut(why) if plan.same_as.is_none() => Reason::LeftOut { target: target(), why: *why },
                Self::Free | Self::Type(_) | Self::Stay | Self::LeftOut(_) => continue,
            };
            (plan.choice, plan.is_open, plan.reason) = (None, false, reason);
        }
    }
}
