//! The scale of sixteen runs of weights, one a lane, whose levels are a scale times fixed numbers.

use crate::grid::{Range, inverse, magic_code};
use crate::simd::{MAGIC, Simd, Step};

/// What codes stand for, as multiples of a scale.
pub(crate) trait Levels: Copy {
    /// What is added to a weight over its scale before [`code`](Self::code) and [`level`](Self::level).
    fn zero(self) -> f32;
    /// The greatest magnitude of a level.
    fn greatest(self) -> f32;
    /// `MAGIC` + the code of the level nearest to y.
    fn code<S: Simd>(self, s: S, y: S::F) -> S::F;
    /// The level nearest to y.
    fn level<S: Simd>(self, s: S, y: S::F) -> S::F;
}

/// The integers from `-zero` to `top - zero`.
#[derive(Clone, Copy)]
pub(crate) struct Even {
    pub zero: f32,
    pub top: f32,
}

impl Even {
    /// From `-half` to `half - 1`.
    pub(super) fn signed(half: f32) -> Self {
        Self { zero: half, top: 2.0 * half - 1.0 }
    }
}

impl Levels for Even {
    #[inline(always)]
    fn zero(self) -> f32 {
        self.zero
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        self.zero.max(self.top - self.zero)
    }
    #[inline(always)]
    fn code<S: Simd>(self, s: S, y: S::F) -> S::F {
        magic_code(s, y, s.splat(self.top))
    }
    #[inline(always)]
    fn level<S: Simd>(self, s: S, y: S::F) -> S::F {
        s.sub(magic_code(s, y, s.splat(self.top)), s.splat(MAGIC + self.zero))
    }
}

/// How a scale is looked for: the level, as a part of the greatest, that the extreme weight starts on; then factors on the best
/// scale so far.
pub(super) struct Trials {
    pub starts: &'static [f32],
    pub factors: &'static [f32],
}

/// Normalizes weights to a greatest magnitude of 1, and finds the scale of the least squared error.
pub(super) struct FindScale<'a, F, L> {
    levels: L,
    trials: &'a Trials,
    range: Range<F>,
    weights: &'a mut [F],
    importance: &'a [F],
}

pub(super) fn find_scale<'a, F, L>(
    levels: L,
    trials: &'a Trials,
    range: Range<F>,
    weights: &'a mut [F],
    importance: &'a [F],
) -> FindScale<'a, F, L> {
    FindScale { levels, trials, range, weights, importance }
}

impl<S: Simd, L: Levels> Step<S> for FindScale<'_, S::F, L> {
    type Output = S::F;

    #[inline(always)]
    fn take(self, s: S) -> S::F {
        let Self { levels, trials, range, weights, importance } = self;
        let zero = s.splat(0.0);
        let unit = inverse(s, range.magnitude(s));
        for w in weights.iter_mut() {
            *w = s.mul(*w, unit);
        }
        let (mut low, mut high) = (s.mul(range.min, unit), s.mul(range.max, unit));
        if !importance.is_empty() {
            (low, high) = (zero, zero);
            for (&z, &w) in weights.iter().zip(importance) {
                let z = s.select(s.lt(zero, w), z, zero);
                (low, high) = (s.min(low, z), s.max(high, z));
            }
        }
        let extreme = s.add(s.select(s.lt(s.sub(zero, low), high), high, low), zero);
        // The scale, and by how much it lessens the sum of squares.
        let mut best = (zero, zero);
        for &start in trials.starts {
            let scale = s.mul(extreme, s.splat(1.0 / (start * levels.greatest())));
            best = attempt(s, levels, weights, importance, scale, best);
        }
        for &factor in trials.factors {
            let scale = s.mul(best.0, s.splat(factor));
            best = attempt(s, levels, weights, importance, scale, best);
        }
        best.0
    }
}

/// The better of the best scale so far, and of the least squares for the levels that `scale` gives.
#[inline(always)]
fn attempt<S: Simd, L: Levels>(
    s: S,
    levels: L,
    weights: &[S::F],
    importance: &[S::F],
    scale: S::F,
    best: (S::F, S::F),
) -> (S::F, S::F) {
    let zero = s.splat(0.0);
    let (slope, offset) = (inverse(s, scale), s.splat(levels.zero()));
    let (mut pp, mut pz) = (zero, zero);
    if importance.is_empty() {
        for &z in weights {
            let p = levels.level(s, s.fma(z, slope, offset));
            pp = s.fma(p, p, pp);
            pz = s.fma(p, z, pz);
        }
    } else {
        for (&z, &w) in weights.iter().zip(importance) {
            let p = levels.level(s, s.fma(z, slope, offset));
            let weighted = s.mul(p, w);
            pp = s.fma(weighted, p, pp);
            pz = s.fma(weighted, z, pz);
        }
    }
    let fitted = s.mul(pz, inverse(s, pp));
    let gain = s.mul(fitted, pz);
    let better = s.lt(best.1, gain);
    (s.select(better, fitted, best.0), s.select(better, gain, best.1))
}
