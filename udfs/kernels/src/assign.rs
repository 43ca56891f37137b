//! Codes from weights and a grid, with the sums that tell what was lost.

use crate::compare::PairSums;
use crate::grid::{Grid, inverse, magic_code};
use crate::simd::scalar::Scalar;
use crate::simd::{Element, LANES, MAGIC, Simd, Width, sum_lanes};

/// Magnitudes of a group between which no square, nor the square of a quantization error that matters, leaves f32's
/// normal range. Outside, sums are taken in f64.
const F32_SQUARES: std::ops::Range<f32> = 1e-12..1e15;

/// Error sums of a batch: lane i takes the elements i mod 16 of every group. Two of each, for two chains of dependent
/// additions.
#[derive(Clone, Copy)]
pub(crate) struct BatchSums<F> {
    ww: [F; 2],
    wq: [F; 2],
    ee: [F; 2],
    max: [F; 2],
}

impl<F: Copy> BatchSums<F> {
    #[inline(always)]
    pub(crate) fn zero<S: Simd<F = F>>(s: S) -> Self {
        let zero = [s.splat(0.0); 2];
        Self { ww: zero, wq: zero, ee: zero, max: zero }
    }

    /// False if some weight was NaN or infinite, or so large that its square is.
    #[inline(always)]
    pub(crate) fn finite<S: Simd<F = F>>(&self, s: S) -> bool {
        s.bits(s.lt(s.add(self.ww[0], self.ww[1]), s.splat(f32::INFINITY))) == u16::MAX
    }

    /// Takes in a vector of weights and what they are restored to.
    #[inline(always)]
    fn take<S: Simd<F = F>>(&mut self, s: S, k: usize, w: F, restored: F) {
        let error = s.sub(w, restored);
        self.ww[k] = s.fma(w, w, self.ww[k]);
        self.wq[k] = s.fma(w, restored, self.wq[k]);
        self.ee[k] = s.fma(error, error, self.ee[k]);
        self.max[k] = s.max_abs(self.max[k], error);
    }
}

/// Error sums of the batches done, in f64.
pub(crate) struct Losses {
    n: u64,
    ww: [f64; LANES],
    wq: [f64; LANES],
    ee: [f64; LANES],
    max: f32,
}

impl Losses {
    pub(crate) fn new() -> Self {
        Self { n: 0, ww: [0.0; LANES], wq: [0.0; LANES], ee: [0.0; LANES], max: 0.0 }
    }

    /// Adds the sums of a batch of `n` weights.
    #[inline(always)]
    pub(crate) fn add<S: Simd>(&mut self, s: S, n: usize, sums: &BatchSums<S::F>) {
        s.add_to_f64(s.add(sums.ww[0], sums.ww[1]), &mut self.ww);
        s.add_to_f64(s.add(sums.wq[0], sums.wq[1]), &mut self.wq);
        s.add_to_f64(s.add(sums.ee[0], sums.ee[1]), &mut self.ee);
        self.add_max(s, n, sums);
    }

    /// Adds only the count and the greatest error of a batch.
    #[inline(always)]
    pub(crate) fn add_max<S: Simd>(&mut self, s: S, n: usize, sums: &BatchSums<S::F>) {
        self.n += n as u64;
        self.max = s.to_array(s.max(sums.max[0], sums.max[1])).into_iter().fold(self.max, f32::max);
    }

    /// Adds the sums of a group so large or so small that f32 squares would overflow or vanish. False if some weight is
    /// NaN or infinite.
    #[cold]
    pub(crate) fn add_in_f64<E: Element>(&mut self, bytes: &[u8], grids: &Grids, lane: usize) -> bool {
        let levels = grids.levels(Scalar, lane);
        for (i, element) in bytes.chunks_exact(E::SIZE).enumerate() {
            let w = E::one(element);
            let restored = f64::from(levels.nearest(Scalar, [w; LANES]).1[0]);
            let (w, lane) = (f64::from(w), i % LANES);
            self.ww[lane] += w * w;
            self.wq[lane] += w * restored;
            self.ee[lane] += (w - restored) * (w - restored);
        }
        self.ww.iter().all(|sum| sum.is_finite())
    }

    pub(crate) fn finish(self) -> PairSums {
        let (aa, ab, ee) = (sum_lanes(self.ww), sum_lanes(self.wq), sum_lanes(self.ee));
        PairSums {
            n: self.n,
            sum_aa: aa,
            // From (w - ŵ)² = w² - 2wŵ + ŵ²: one sum less to carry through the loop.
            sum_bb: (ee - aa + 2.0 * ab).max(0.0),
            sum_ab: ab,
            sum_ee: ee,
            max_abs_error: self.max.into(),
        }
    }
}

/// One group's grid, and how to find a weight's code in it.
struct Levels<F> {
    inverse: F,
    /// zero - min / scale: what the quotient w / scale lacks to be a code.
    offset: F,
    /// `MAGIC + zero`, exact: the difference from a magic code is q - zero.
    magic_zero: F,
    scale: F,
    min: F,
    top: F,
}

impl<F: Copy> Levels<F> {
    /// Magic codes and restored weights.
    #[inline(always)]
    fn nearest<S: Simd<F = F>>(&self, s: S, w: F) -> (F, F) {
        let code = magic_code(s, s.fma(w, self.inverse, self.offset), self.top);
        (code, s.fma(s.sub(code, self.magic_zero), self.scale, self.min))
    }
}

/// Sixteen grids as arrays, with what assigning codes needs beside them.
pub(crate) struct Grids {
    scale: [f32; LANES],
    min: [f32; LANES],
    inverse: [f32; LANES],
    offset: [f32; LANES],
    magic_zero: [f32; LANES],
    max_code: f32,
    /// Whether the groups' squares can be summed in f32.
    pub squares_fit: bool,
}

impl Grids {
    #[inline(always)]
    pub(crate) fn new<S: Simd>(s: S, grid: &Grid<S::F>, magnitude: S::F, max_code: f32) -> Self {
        let inverse = inverse(s, grid.scale);
        let negative_min = s.sub(s.splat(0.0), grid.min);
        let small = s.bits(s.lt(magnitude, s.splat(F32_SQUARES.start)));
        let some = s.bits(s.lt(s.splat(0.0), magnitude));
        let large = !s.bits(s.lt(magnitude, s.splat(F32_SQUARES.end)));
        Self {
            scale: s.to_array(grid.scale),
            min: s.to_array(grid.min),
            inverse: s.to_array(inverse),
            offset: s.to_array(s.fma(negative_min, inverse, grid.zero)),
            magic_zero: s.to_array(s.add(grid.zero, s.splat(MAGIC))),
            max_code,
            squares_fit: small & some | large == 0,
        }
    }

    /// Lets codes, which stay as they are found, stand for the levels of another grid with the same zeros.
    #[inline(always)]
    pub(crate) fn stand_for<S: Simd>(&mut self, s: S, grid: &Grid<S::F>) {
        (self.scale, self.min) = (s.to_array(grid.scale), s.to_array(grid.min));
    }

    #[inline(always)]
    fn levels<S: Simd>(&self, s: S, lane: usize) -> Levels<S::F> {
        Levels {
            inverse: s.splat(self.inverse[lane]),
            offset: s.splat(self.offset[lane]),
            magic_zero: s.splat(self.magic_zero[lane]),
            scale: s.splat(self.scale[lane]),
            min: s.splat(self.min[lane]),
            top: s.splat(self.max_code),
        }
    }
}

/// Writes the codes of one group, `bytes` in the dtype of `E`, packed to the width `W` at the start of `out`, and adds
/// its losses to those of the batch. `W` is a byte for codes that are packed later, because their rows do not end on a byte.
#[inline(always)]
pub(crate) fn assign<S: Simd, E: Element, W: Width>(
    s: S,
    bytes: &[u8],
    grids: &Grids,
    lane: usize,
    out: &mut [u8],
    sums: &mut BatchSums<S::F>,
) {
    let levels = grids.levels(s, lane);
    let vectors = bytes.chunks_exact(2 * LANES * E::SIZE);
    let mut tail = vectors.remainder();
    let mut packed = out.chunks_exact_mut(W::packed_len(2 * LANES));
    for (pair, out) in vectors.zip(&mut packed) {
        let mut codes = [s.splat(0.0); 2];
        for k in 0..2 {
            let w = E::load(s, &pair[k * LANES * E::SIZE..]);
            let (code, restored) = levels.nearest(s, w);
            codes[k] = code;
            sums.take(s, k, w, restored);
        }
        s.pack::<W>(codes, out);
    }
    let mut rest = packed.into_remainder();
    if tail.len() >= LANES * E::SIZE {
        // Half of a pair, as groups of sixteen are: the other half is padding.
        let w = E::load(s, tail);
        let (code, restored) = levels.nearest(s, w);
        sums.take(s, 0, w, restored);
        let mut padded = [0; 2 * LANES];
        s.pack::<W>([code, s.splat(MAGIC)], &mut padded);
        let half = W::packed_len(LANES);
        rest[..half].copy_from_slice(&padded[..half]);
        (tail, rest) = (&tail[LANES * E::SIZE..], &mut rest[half..]);
    }
    if !tail.is_empty() {
        let padded = assign_tail::<E, W>(tail, &grids.levels(Scalar, lane), rest);
        for (k, (w, restored)) in padded.iter().enumerate() {
            sums.take(s, k, s.load_lanes(w), s.load_lanes(restored));
        }
    }
}

/// The last weights of a group, fewer than two vectors: their codes, and the weights and what they are restored to, zeros
/// after them.
#[cold]
fn assign_tail<E: Element, W: Width>(
    tail: &[u8],
    levels: &Levels<[f32; LANES]>,
    out: &mut [u8],
) -> [([f32; LANES], [f32; LANES]); 2] {
    let mut padded = [([0.0; LANES], [0.0; LANES]); 2];
    out.fill(0);
    for (i, element) in tail.chunks_exact(E::SIZE).enumerate() {
        let w = E::one(element);
        let (code, restored) = levels.nearest(Scalar, [w; LANES]);
        W::BITS.put(out, i, code[0].to_bits() as u8);
        let (weights, restored_weights) = &mut padded[i / LANES];
        (weights[i % LANES], restored_weights[i % LANES]) = (w, restored[0]);
    }
    padded
}
