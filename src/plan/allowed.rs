//! What a target can hold, as far as a plan needs to know: its limits are data, so that what does not fit becomes a reason
//! in the plan before any work.

use std::ops::Range;

use arrow_quant_formats::manifest::{Limit, Reason};
use arrow_quant_kernels::{Bits, GroupSize, Scheme, Settings};

use super::choice::Choice;
use crate::Tensor;

/// What a target can hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    /// The target's name.
    pub target: &'static str,
    /// Widths of codes, narrowest first.
    pub bits: &'static [Bits],
    /// Weights that share a scale, fewest first.
    pub group_sizes: &'static [GroupSize],
    pub schemes: &'static [Scheme],
    /// Whether a tensor must stay as it is, whatever is asked for it.
    pub must_stay: fn(&Tensor) -> bool,
    /// Bytes of a part's file beside payloads, more or less.
    pub file_overhead: f64,
    /// The same of each chunk's row.
    pub chunk_overhead: f64,
}

impl Allowed {
    /// Why a tensor cannot be quantized with some settings. `None` if it can.
    pub(crate) fn refusal(&self, tensor: &Tensor, settings: Settings) -> Option<Reason> {
        let limit = if !self.bits.contains(&settings.bits) {
            Limit::Bits { bits: settings.bits.get() as u8 }
        } else if !self.group_sizes.contains(&settings.group_size) {
            Limit::GroupSize { group_size: settings.group_size.get() as u32 }
        } else {
            return self.refusal_of_any(tensor, settings.scheme);
        };
        Some(self.reason(limit))
    }

    /// Why a tensor cannot be quantized with a scheme, whatever the bits and group size. `None` if it can.
    pub(crate) fn refusal_of_any(&self, tensor: &Tensor, scheme: Scheme) -> Option<Reason> {
        if !self.schemes.contains(&scheme) {
            return Some(self.reason(Limit::Scheme { scheme: scheme.name().to_string() }));
        }
        (self.must_stay)(tensor).then(|| self.reason(Limit::Tensor))
    }

    fn reason(&self, limit: Limit) -> Reason {
        Reason::NotHeld { target: self.target.to_string(), limit }
    }

    /// Every way to quantize: all bits in all group sizes.
    pub(crate) fn choices(&self) -> Vec<Choice> {
        let with = |&bits: &Bits| self.group_sizes.iter().map(move |&group_size| Choice { bits, group_size });
        self.bits.iter().flat_map(with).collect()
    }

    /// The next width, in groups of the same size. `None` if there is none.
    pub(crate) fn wider(&self, choice: Choice) -> Option<Choice> {
        let wider = self.bits.iter().copied().find(|bits| bits.get() > choice.bits.get());
        wider.map(|bits| Choice { bits, ..choice })
    }

    /// What files take beside payloads, more or less, given the chunks of each.
    pub(crate) fn overhead<'a>(&self, parts: impl Iterator<Item = &'a Range<usize>>) -> u64 {
        parts.map(|part| self.file_overhead + self.chunk_overhead * part.len() as f64).sum::<f64>() as u64
    }
}
