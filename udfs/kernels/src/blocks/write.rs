//! Blocks from parameters that were found.

use super::MOST;
use super::lanes::{Batch, Parameters};
use super::layout::lay_out;
use super::measure::load;
use super::scales::Levels;
use crate::simd::{Eight, LANES, Simd};

/// Writes blocks: their codes are the levels that `L` rounds to.
#[inline(always)]
pub(super) fn write<S: Simd, L: Levels>(
    s: S,
    levels: L,
    batch: &Batch<'_, S::F>,
    parameters: &Parameters,
    out: &mut [u8],
) {
    let (length, size) = (batch.block_type.length(), batch.block_type.size());
    let run = batch.block_type.run();
    let mut codes = [0; MOST];
    for (k, (x, out)) in batch.x.chunks_exact(length).zip(out.chunks_exact_mut(size)).enumerate() {
        for (i, (x, codes)) in x.chunks_exact(2 * LANES).zip(codes.chunks_exact_mut(2 * LANES)).enumerate() {
            // Two halves, of one run or two.
            let (a, b) = (2 * LANES * i / run, (2 * LANES * i + LANES) / run);
            let first = s.fma(load(s, x), s.splat(parameters.slope[a][k]), s.splat(parameters.offset[a][k]));
            let second = s.fma(load(s, &x[LANES..]), s.splat(parameters.slope[b][k]), s.splat(parameters.offset[b][k]));
            s.pack::<Eight>([levels.code(s, first), levels.code(s, second)], codes);
        }
        lay_out(s, batch.block_type, parameters, k, &codes, out);
    }
}
