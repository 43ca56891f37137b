//! The scale and minimum of sixteen runs of weights, one a lane, whatever can be stored: alternating least squares from a few
//! starts, as in the search of grouped integers, then from levels a little beside the best so far.

use crate::grid::{Range, inverse, magic_code};
use crate::simd::{MAGIC, Simd, Step};

/// How a search goes: the parts of the range that levels start over, then moves away from the best levels so far, each a factor
/// on the scale and a shift of the middle in steps.
pub(super) struct Effort {
    pub shrink: &'static [f32],
    pub moves: &'static [(f32, f32)],
}

/// The moves that precede those of an effort where weights have an importance.
const WEIGHTED: &[(f32, f32)] = &[
    (1.06, 0.3),
    (0.94, -0.3),
    (1.06, -0.3),
    (0.94, 0.3),
    (1.04, 0.0),
    (0.96, 0.0),
    (1.0, 0.4),
    (1.0, -0.4),
    (1.03, 0.15),
    (0.97, -0.15),
    (1.03, -0.15),
    (0.97, 0.15),
    (1.015, 0.1),
    (0.985, -0.1),
    (1.015, -0.1),
    (0.985, 0.1),
];

/// Normalizes weights to ±1 and finds levels `scale * (q - half) + base` of the least squared error.
pub(super) struct FindLevels<'a, F> {
    pub effort: &'a Effort,
    /// The greatest code; half of it is where p = q - half is 0.
    pub top: f32,
    /// May be wider than that of the weights.
    pub range: Range<F>,
    pub weights: &'a mut [F],
    /// Whether the lowest level may be above zero.
    pub free: bool,
    /// At most 1; empty if all are alike.
    pub importance: &'a [F],
}

/// Levels in normalized units.
#[derive(Clone, Copy)]
pub(super) struct Fit<F> {
    pub scale: F,
    pub base: F,
    /// By how much the levels lessen the sum of squares.
    gain: F,
}

/// Σw, Σwz and 1/Σw.
#[derive(Clone, Copy)]
struct Constant<F> {
    n: F,
    z: F,
    per_n: F,
}

impl<S: Simd> Step<S> for FindLevels<'_, S::F> {
    type Output = Fit<S::F>;

    // Long because: one loop over the weights, whose sums must stay in registers.
    #[inline(always)]
    fn take(self, s: S) -> Fit<S::F> {
        let Self { effort, top, range, free, weights, importance } = self;
        let (zero, half) = (s.splat(0.0), s.splat(0.5));
        let (centre, radius) = middle(s, range);
        let unit = inverse(s, radius);
        let shift = s.sub(zero, s.mul(centre, unit));
        for w in weights.iter_mut() {
            *w = s.fma(*w, unit, shift);
        }
        let (mut low, mut high) = (s.fma(range.min, unit, shift), s.fma(range.max, unit, shift));
        let mut sums = (zero, zero, zero);
        if importance.is_empty() {
            for &z in &*weights {
                sums.1 = s.add(sums.1, z);
            }
            sums.0 = s.splat(weights.len() as f32);
        } else {
            let (mut least, mut most) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
            for (&z, &w) in weights.iter().zip(importance) {
                let counts = s.lt(zero, w);
                least = s.select(counts, s.min(least, z), least);
                most = s.select(counts, s.max(most, z), most);
                sums.0 = s.add(sums.0, w);
                sums.1 = s.fma(w, z, sums.1);
                sums.2 = s.fma(s.mul(w, z), z, sums.2);
            }
            (low, high) = (s.max(low, least), s.min(high, most));
        }
        let constant = Constant { n: sums.0, z: sums.1, per_n: inverse(s, sums.0) };
        let origin = if free { s.splat(f32::INFINITY) } else { shift };
        let search = Search { s, top, weights, importance, constant, origin };
        let (width, mid) = (s.sub(high, low), s.mul(s.add(high, low), half));
        // Levels over the range, for weights that all have one code, which no least squares follow from.
        let scale = s.mul(width, s.splat(1.0 / top));
        let base = s.fma(scale, s.splat(0.5 * (top + 1.0)), low);
        let mut best = Fit { scale, base, gain: s.splat(f32::NEG_INFINITY) };
        for &shrink in effort.shrink {
            let scale = s.mul(width, s.splat(shrink / top));
            // The middle of the levels, p = -1/2, on the middle of the range.
            search.attempt(scale, s.fma(scale, half, mid), &mut best);
        }
        if !importance.is_empty() {
            // Where few weights count, their own spread is the better start: levels over 1.5 standard deviations to either
            // side, and over 3.
            let mean = s.mul(constant.z, constant.per_n);
            let variance = s.sub(s.mul(sums.2, constant.per_n), s.mul(mean, mean));
            let deviation = s.sqrt(s.max(variance, zero));
            for deviations in [3.0, 6.0] {
                let scale = s.mul(deviation, s.splat(deviations / top));
                search.attempt(scale, s.fma(scale, half, mean), &mut best);
            }
        }
        // Where few weights count, the error has many valleys, and more trials find deeper ones.
        let more = if importance.is_empty() { &[] } else { WEIGHTED };
        for &(stretch, shift) in more.iter().chain(effort.moves) {
            let scale = s.mul(best.scale, s.splat(stretch));
            // The level of p = -1/2, the middle, moves by `shift` steps.
            let middle = s.fma(best.scale, s.splat(shift - 0.5), best.base);
            search.attempt(scale, s.fma(scale, half, middle), &mut best);
        }
        best
    }
}

/// The middle of what weights are normalized by, and half its width.
#[inline(always)]
pub(super) fn middle<S: Simd>(s: S, range: Range<S::F>) -> (S::F, S::F) {
    let half = s.splat(0.5);
    let (low, high) = (s.mul(range.min, half), s.mul(range.max, half));
    (s.add(low, high), s.sub(high, low))
}

struct Search<'a, S: Simd> {
    s: S,
    top: f32,
    weights: &'a [S::F],
    importance: &'a [S::F],
    constant: Constant<S::F>,
    /// What the lowest level may not be above: where zero is, or infinity.
    origin: S::F,
}

impl<S: Simd> Search<'_, S> {
    /// Assigns codes by the levels given, fits levels to them, and keeps these where they are the best so far.
    #[inline(always)]
    fn attempt(&self, scale: S::F, base: S::F, best: &mut Fit<S::F>) {
        let s = self.s;
        let zero = s.splat(0.0);
        let half = 0.5 * (self.top + 1.0);
        let slope = inverse(s, scale);
        let offset = s.sub(s.splat(half), s.mul(base, slope));
        let (top, magic) = (s.splat(self.top), s.splat(MAGIC + half));
        // One sum of each kind: more do not fit in the registers of AVX2.
        let (mut p_sum, mut pp_sum, mut pz_sum) = (zero, zero, zero);
        if self.importance.is_empty() {
            for &z in self.weights {
                let p = s.sub(magic_code(s, s.fma(z, slope, offset), top), magic);
                p_sum = s.add(p_sum, p);
                pp_sum = s.fma(p, p, pp_sum);
                pz_sum = s.fma(p, z, pz_sum);
            }
        } else {
            for (&z, &w) in self.weights.iter().zip(self.importance) {
                let p = s.sub(magic_code(s, s.fma(z, slope, offset), top), magic);
                let weighted = s.mul(w, p);
                p_sum = s.add(p_sum, weighted);
                pp_sum = s.fma(weighted, p, pp_sum);
                pz_sum = s.fma(weighted, z, pz_sum);
            }
        }
        // With D = nΣp² − (Σp)², scale = (nΣpz − ΣpΣz)/D and base = (Σz − scale·Σp)/n.
        let Constant { n, z, per_n } = self.constant;
        let determinant = s.sub(s.mul(n, pp_sum), s.mul(p_sum, p_sum));
        let product = s.sub(s.mul(n, pz_sum), s.mul(p_sum, z));
        let scale = s.mul(product, inverse(s, determinant));
        let base = s.mul(s.sub(z, s.mul(scale, p_sum)), per_n);
        // What levels gain over the mean: scale·product/n. All gain the mean.
        let gain = s.mul(scale, s.mul(product, per_n));
        let determined = s.lt(s.splat(f32::MIN_POSITIVE), s.abs(scale));
        let gain = s.select(determined, gain, s.splat(f32::NEG_INFINITY));
        let mut fit = Fit { scale, base, gain };
        let lowest = s.sub(base, s.mul(scale, s.splat(half)));
        let above = s.lt(self.origin, lowest);
        if s.bits(above) != 0 {
            let through = self.through_zero(p_sum, pp_sum, pz_sum);
            fit.scale = s.select(above, through.scale, scale);
            fit.base = s.select(above, through.base, base);
            fit.gain = s.select(above, through.gain, gain);
        }
        let Fit { scale, base, gain } = fit;
        let better = s.lt(best.gain, gain);
        best.scale = s.select(better, scale, best.scale);
        best.base = s.select(better, base, best.base);
        best.gain = s.select(better, gain, best.gain);
    }

    /// The levels whose lowest is zero: with q = p + half and u = z - origin, scale = Σqu/Σq².
    #[inline(always)]
    fn through_zero(&self, p: S::F, pp: S::F, pz: S::F) -> Fit<S::F> {
        let s = self.s;
        let half = s.splat(0.5 * (self.top + 1.0));
        let Constant { n, z, per_n } = self.constant;
        let q = s.fma(half, n, p);
        let qq = s.fma(half, s.add(p, q), pp);
        let qu = s.sub(s.fma(half, z, pz), s.mul(self.origin, q));
        let scale = s.mul(qu, inverse(s, qq));
        let sum = s.sub(z, s.mul(n, self.origin));
        let gain = s.sub(s.mul(scale, qu), s.mul(s.mul(sum, sum), per_n));
        Fit { scale, base: s.fma(scale, half, self.origin), gain }
    }
}
