//! Second moments, factored for feedback.

use super::cholesky::factorize;
use super::moments::MomentBlock;
use super::panels::panel_start;
use crate::{Isa, KernelError, Result};

/// Second moments H of an input, with H = R D Rᵀ: the channels of each block in the order of rounding, and R.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    blocks: Vec<BlockFactor>,
    /// By channel.
    importance: Vec<f32>,
}

/// The factor of one block.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BlockFactor {
    start: usize,
    /// Channels of the block by falling moment.
    order: Vec<u32>,
    /// R in panels.
    panels: Vec<f32>,
}

impl Factor {
    /// Factors the second moments of an input, given as the diagonal blocks that were recorded, in the order of the channels.
    /// `damping` times the mean of the diagonal is added to it first, or channels with little input would be overfitted.
    ///
    /// # Errors
    /// [`KernelError::Moments`] if moments are not finite or all zero, or not positive definite in spite of the damping, and
    /// [`KernelError::Mismatch`] if a triangle does not have the numbers of its size.
    pub fn new(isa: Isa, blocks: &[MomentBlock<'_>], damping: f32) -> Result<Self> {
        let channels: usize = blocks.iter().map(|block| block.size).sum();
        let mut start = 0;
        for block in blocks {
            check(block, start)?;
            start += block.size;
        }
        let total: f64 = blocks.iter().flat_map(|block| block.diagonal()).map(f64::from).sum();
        let mean = total / channels.max(1) as f64;
        if mean <= 0.0 && channels > 0 {
            return Err(KernelError::Moments { channel: 0, what: "zero, and so are those of all others" });
        }
        let added = (f64::from(damping) * mean) as f32;
        let mut start = 0;
        let mut importance = vec![0.0; channels];
        let factored = blocks.iter().map(|block| {
            let order = falling(block);
            let (panels, left) = factorize(isa, block, &order, added).map_err(|place| KernelError::Moments {
                channel: start + order[place] as usize,
                what: "not positive definite, or nearly so",
            })?;
            for (left, &channel) in left.iter().zip(&order) {
                let moment = block.at(channel as usize, channel as usize) + added;
                importance[start + channel as usize] = (left * moment).sqrt() / mean as f32;
            }
            let factored = BlockFactor { start, order, panels };
            start += block.size;
            Ok(factored)
        });
        let blocks = factored.collect::<Result<_>>()?;
        Ok(Self { blocks, importance })
    }

    /// How much each channel counts when levels are searched that feedback will round to: √(d_j H_jj). A rounding error of
    /// channel j costs d_j, which is what the channels after it leave of H_jj; but what is clipped far from all levels is
    /// not made up for so well. Their geometric mean gives outputs a tenth of a decibel less error than either
    /// (`docs/quality.md`).
    pub fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// Channels of the input.
    pub fn channels(&self) -> usize {
        self.blocks.last().map_or(0, |block| block.start + block.order.len())
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> usize {
        let of_blocks: usize = self.blocks.iter().map(|block| 4 * (block.order.len() + block.panels.len())).sum();
        of_blocks + 4 * self.importance.len()
    }

    pub(super) fn blocks(&self) -> &[BlockFactor] {
        &self.blocks
    }
}

impl BlockFactor {
    /// The first channel.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    pub(super) fn channels(&self) -> usize {
        self.order.len()
    }

    pub(super) fn order(&self) -> &[u32] {
        &self.order
    }

    /// The panel of columns `PANEL * p` and the following.
    pub(super) fn panel(&self, p: usize) -> &[f32] {
        &self.panels[panel_start(p)..panel_start(p + 1)]
    }
}

/// Checks the moments of a block whose first channel is `start`.
fn check(block: &MomentBlock<'_>, start: usize) -> Result<()> {
    let expected = block.size * (block.size + 1) / 2;
    if block.triangle.len() != expected {
        let what = "second moments of a block, an upper triangle";
        return Err(KernelError::Mismatch { what, found: block.triangle.len(), expected });
    }
    if block.triangle.iter().all(|moment| moment.is_finite()) && block.diagonal().all(|moment| moment >= 0.0) {
        return Ok(());
    }
    let is_wrong = |&channel: &usize| {
        (channel..block.size).any(|other| !block.at(channel, other).is_finite()) || block.at(channel, channel) < 0.0
    };
    let channel = start + (0..block.size).find(is_wrong).unwrap_or_default();
    Err(KernelError::Moments { channel, what: "not finite, or negative on the diagonal" })
}

/// The channels by falling moment; those with equal ones stay in order.
fn falling(block: &MomentBlock<'_>) -> Vec<u32> {
    let diagonal: Vec<f32> = block.diagonal().collect();
    let mut order: Vec<u32> = (0..block.size as u32).collect();
    order.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]));
    order
}
