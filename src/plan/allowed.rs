//! What a target can hold, as far as a plan needs to know: its limits are data, so that what does not fit becomes a reason
//! in the plan before any work.

use std::ops::Range;

use arrow_quant_formats::manifest::{Limit, Reason};
use arrow_quant_kernels::{Bits, BlockType, Dtype, GroupSize, Scheme};

use super::choice::{Choice, of_more_bits, of_shorter_blocks};
use crate::Tensor;
use crate::config::WeightType;

/// What a target can hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    /// The target's name.
    pub target: &'static str,
    /// Widths of grouped integers, narrowest first; empty if it holds none of them.
    pub bits: &'static [Bits],
    /// Weights that share a scale, fewest first.
    pub group_sizes: &'static [GroupSize],
    pub schemes: &'static [Scheme],
    /// Types of blocks; empty if it holds none of them.
    pub block_types: &'static [BlockType],
    /// Types of floats that all weights can be asked to become.
    pub floats: &'static [Dtype],
    /// Whether the groups of a row must be whole.
    pub whole_groups: bool,
    /// Whether it has a place for the factors of smoothed input channels, without which weights cannot be restored.
    pub smoothing: bool,
    /// Whether a tensor must stay as it is, whatever is asked for it.
    pub must_stay: fn(&Tensor) -> bool,
    /// Bytes of a part's file beside payloads, more or less.
    pub file_overhead: f64,
    /// The same of each chunk's row.
    pub chunk_overhead: f64,
}

impl Allowed {
    /// Why a tensor cannot become something. `None` if it can.
    pub(crate) fn refusal(&self, tensor: &Tensor, choice: Choice, scheme: Scheme) -> Option<Reason> {
        let limit = match choice {
            Choice::Grouped { bits, .. } if !self.bits.contains(&bits) => Some(Limit::Bits { bits: bits.get() as u8 }),
            Choice::Grouped { group_size, .. } if !self.group_sizes.contains(&group_size) => {
                Some(Limit::GroupSize { group_size: group_size.get() as u32 })
            }
            Choice::Block(block_type) if !self.block_types.contains(&block_type) => {
                Some(Limit::BlockType { block_type: block_type.name().to_string() })
            }
            Choice::Grouped { .. } | Choice::Block(_) => None,
        };
        let refusal = limit.map(|limit| self.reason(limit));
        let refusal = refusal.or_else(|| self.refusal_of_any(tensor, choice.weight_type(), scheme));
        refusal.or_else(|| match choice {
            Choice::Block(block_type) if !divides(block_type, tensor) => Some(rows(block_type, tensor)),
            Choice::Grouped { group_size, .. } if !self.has_whole_groups(tensor, group_size) => {
                Some(Reason::GroupRows { group_size: group_size.get() as u32, row_length: tensor.row_length() })
            }
            Choice::Grouped { .. } | Choice::Block(_) => None,
        })
    }

    /// Why a tensor cannot be quantized to any type of the same kind as this one. `None` if it can.
    pub(crate) fn refusal_of_any(&self, tensor: &Tensor, kind: WeightType, scheme: Scheme) -> Option<Reason> {
        match kind {
            WeightType::Int(_) if !self.schemes.contains(&scheme) => {
                return Some(self.reason(Limit::Scheme { scheme: scheme.name().to_string() }));
            }
            WeightType::Int(_) | WeightType::Block(_) | WeightType::Mix(_) | WeightType::Float(_) => {}
        }
        (self.must_stay)(tensor).then(|| self.reason(Limit::Tensor))
    }

    fn reason(&self, limit: Limit) -> Reason {
        Reason::NotHeld { target: self.target.to_string(), limit }
    }

    /// Every way to quantize to types of the same kind as this one: all bits in all group sizes, or all block types.
    pub(crate) fn choices(&self, kind: WeightType) -> Vec<Choice> {
        match kind {
            WeightType::Int(_) => {
                let with =
                    |&bits: &Bits| self.group_sizes.iter().map(move |&group_size| Choice::Grouped { bits, group_size });
                self.bits.iter().flat_map(with).collect()
            }
            WeightType::Block(_) | WeightType::Mix(_) => self.block_types.iter().copied().map(Choice::Block).collect(),
            WeightType::Float(_) => Vec::new(),
        }
    }

    /// Whether blocks of a choice are whole in the rows of a tensor; of grouped integers the last group may be short, unless the
    /// target says otherwise.
    pub(crate) fn fits_rows(&self, tensor: &Tensor, choice: Choice) -> bool {
        match choice {
            Choice::Grouped { group_size, .. } => self.has_whole_groups(tensor, group_size),
            Choice::Block(block_type) => divides(block_type, tensor),
        }
    }

    /// What a choice becomes for the rows of a tensor: where its blocks do not divide them, blocks that do, and the reason.
    /// `None` in the place of a choice if there is none.
    pub(crate) fn for_rows(&self, tensor: &Tensor, choice: Choice) -> (Option<Choice>, Option<Reason>) {
        let asked = match choice {
            Choice::Block(asked) => asked,
            Choice::Grouped { group_size: asked, .. } if self.has_whole_groups(tensor, asked) => {
                return (Some(choice), None);
            }
            Choice::Grouped { bits, group_size: asked } => {
                let mut smaller = self.group_sizes.iter().rev().copied().filter(|size| *size < asked);
                let fitting = smaller.find(|size| self.has_whole_groups(tensor, *size));
                let reason = Reason::GroupRows { group_size: asked.get() as u32, row_length: tensor.row_length() };
                return (fitting.map(|group_size| Choice::Grouped { bits, group_size }), Some(reason));
            }
        };
        if divides(asked, tensor) {
            return (Some(choice), None);
        }
        let mut shorter = of_shorter_blocks(asked);
        while let Some(block_type) = shorter
            && !(self.block_types.contains(&block_type) && divides(block_type, tensor))
        {
            shorter = of_shorter_blocks(block_type);
        }
        (shorter.map(Choice::Block), Some(rows(asked, tensor)))
    }

    /// Whether the groups of the rows of a tensor are as the target needs them.
    fn has_whole_groups(&self, tensor: &Tensor, group_size: GroupSize) -> bool {
        !self.whole_groups || tensor.row_length().is_multiple_of(group_size.get() as u64)
    }

    /// The next width, in groups of the same size, or the next block type. `None` if there is none.
    pub(crate) fn wider(&self, choice: Choice) -> Option<Choice> {
        match choice {
            Choice::Grouped { bits, group_size } => {
                let wider = self.bits.iter().copied().find(|wider| *wider > bits);
                wider.map(|bits| Choice::Grouped { bits, group_size })
            }
            Choice::Block(block_type) => {
                let mut wider = of_more_bits(block_type);
                while let Some(block_type) = wider
                    && !self.block_types.contains(&block_type)
                {
                    wider = of_more_bits(block_type);
                }
                wider.map(Choice::Block)
            }
        }
    }

    /// What files take beside payloads, more or less, given the chunks of each.
    pub(crate) fn overhead<'a>(&self, parts: impl Iterator<Item = &'a Range<usize>>) -> u64 {
        parts.map(|part| self.file_overhead + self.chunk_overhead * part.len() as f64).sum::<f64>() as u64
    }
}

fn divides(block_type: BlockType, tensor: &Tensor) -> bool {
    tensor.row_length().is_multiple_of(block_type.length() as u64)
}

/// That the rows of a tensor are no whole number of blocks.
fn rows(block_type: BlockType, tensor: &Tensor) -> Reason {
    Reason::Rows {
        block_type: block_type.name().to_string(),
        block_length: block_type.length() as u32,
        row_length: tensor.row_length(),
    }
}
