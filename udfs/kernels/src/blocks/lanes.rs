//! Sixteen blocks at once, one a lane, and their parameters.

use crate::BlockType;
use crate::grid::{Range, inverse};
use crate::simd::{LANES, Simd};

/// Runs of the block that has most.
pub(super) const RUNS: usize = 16;

/// Up to sixteen blocks to be filled.
pub(super) struct Batch<'a, F> {
    pub block_type: BlockType,
    /// Their weights, block by block.
    pub x: &'a [f32],
    /// The same, transposed: weight j of block k is lane k of vector j. A batch that is not full repeats its last block.
    pub weights: &'a mut [F],
    /// The importance of each, likewise; empty if all are alike.
    pub importance: &'a mut [F],
}

/// The range of the weights of each lane.
#[inline(always)]
pub(super) fn range<S: Simd>(s: S, weights: &[S::F]) -> Range<S::F> {
    let mut bounds = [(weights[0], weights[0]); 2];
    for pair in weights.chunks_exact(2) {
        for (bounds, &w) in bounds.iter_mut().zip(pair) {
            *bounds = (s.min(bounds.0, w), s.max(bounds.1, w));
        }
    }
    Range::new(s, s.min(bounds[0].0, bounds[1].0), s.max(bounds[0].1, bounds[1].1))
}

/// Scales importance to a greatest value of 1 in each lane, which is returned as it was. Where all of it is zero, weights count
/// alike.
#[inline(always)]
pub(super) fn scale_importance<S: Simd>(s: S, importance: &mut [S::F]) -> S::F {
    let mut greatest = s.splat(0.0);
    for &w in &*importance {
        greatest = s.max(greatest, w);
    }
    let some = s.lt(s.splat(f32::MIN_POSITIVE), greatest);
    let unit = inverse(s, greatest);
    for w in importance.iter_mut() {
        *w = s.select(some, s.mul(*w, unit), s.splat(1.0));
    }
    greatest
}

/// The parameters of blocks: of each run, a value for each block.
pub(super) struct Parameters {
    /// Scales and minima as they are stored: f16, or steps.
    pub scale: [[f32; LANES]; RUNS],
    pub min: [[f32; LANES]; RUNS],
    /// What steps are multiples of.
    pub block_scale: [f32; LANES],
    pub block_min: [f32; LANES],
    /// A code is the weight times the slope, and the offset added.
    pub slope: [[f32; LANES]; RUNS],
    pub offset: [[f32; LANES]; RUNS],
}

impl Parameters {
    #[inline(always)]
    pub(super) fn new() -> Self {
        let (none, all) = ([0.0; LANES], [[0.0; LANES]; RUNS]);
        Self { scale: all, min: all, block_scale: none, block_min: none, slope: all, offset: all }
    }
}

/// Run `j` of importance, if there is any.
#[inline(always)]
pub(super) fn part<F>(importance: &mut [F], j: usize, run: usize) -> &mut [F] {
    if importance.is_empty() { importance } else { &mut importance[j * run..][..run] }
}
