//! Scales and minima that are integers in steps which the runs of a block share.
//!
//! With codes fixed, the squared error of a run is a quadratic form of its scale and minimum, whose coefficients are a few
//! sums over the run. So the best steps of each run follow in closed form, and then the best scale and minimum that the
//! steps are multiples of, without another look at the weights. Codes and steps are found in turn.

use super::lanes::{Parameters, RUNS};
use super::scales::Levels;
use crate::grid::{inverse, round_code};
use crate::simd::{Simd, Step};

/// What f16 rounds to infinity.
const BEYOND_HALF: f32 = 65520.0;

/// What scales and minima of runs are.
#[derive(Clone, Copy)]
pub(super) enum Steps {
    /// From 0 to this many times an f16 of the block, one for scales and one for minima.
    Positive(f32),
    /// Scales from minus this to this less one times an f16 of the block; no minima.
    Signed(f32),
}

/// What was found for each run of sixteen blocks, whatever can be stored.
pub(super) struct Found<F> {
    /// In the units of the weights.
    pub scale: [F; RUNS],
    pub min: [F; RUNS],
    /// What weights were normalized by.
    pub centre: [F; RUNS],
    pub radius: [F; RUNS],
    /// The greatest importance of the run.
    pub share: [F; RUNS],
}

impl<F: Copy> Found<F> {
    #[inline(always)]
    pub(super) fn new<S: Simd<F = F>>(s: S) -> Self {
        let none = [s.splat(0.0); RUNS];
        Self { scale: none, min: none, centre: none, radius: none, share: none }
    }
}

/// Rounds of finding codes and steps in turn. Each has moves, in steps of a run's scale, away from the best steps so far.
pub(super) type Rounds = &'static [&'static [f32]];

/// Makes steps of the scales and minima that were found, and improves them.
pub(super) struct Refine<'a, F, L> {
    pub levels: L,
    pub steps: Steps,
    pub rounds: Rounds,
    /// Weights of a run.
    pub run: usize,
    pub found: &'a mut Found<F>,
    /// Normalized weights, and their importance, scaled to at most 1 in each run; empty if all are alike.
    pub z: &'a [F],
    pub importance: &'a [F],
}

/// A [`Refine`] and where its result goes.
pub(super) struct RefineInto<'a, 'p, F, L>(Refine<'a, F, L>, &'p mut Parameters);

impl<'a, F, L> Refine<'a, F, L> {
    #[inline(always)]
    pub(super) fn into(self, parameters: &mut Parameters) -> RefineInto<'a, '_, F, L> {
        RefineInto(self, parameters)
    }
}

/// Sums over a run of levels p and weights x, in units of the block, each times its importance.
#[derive(Clone, Copy)]
struct Moments<F> {
    n: F,
    /// 1 / n.
    per_n: F,
    x: F,
    p: F,
    pp: F,
    px: F,
}

/// Σ1 and Σz over a run, each times its importance.
#[derive(Clone, Copy)]
struct Constant<F> {
    n: F,
    z: F,
    per_n: F,
}

/// The best steps for the levels that some steps give.
#[derive(Clone, Copy)]
struct Best<F> {
    scale: F,
    min: F,
    /// Less Σx².
    error: F,
    moments: Moments<F>,
}

impl<F: Copy> Best<F> {
    /// The better of two.
    #[inline(always)]
    fn or<S: Simd<F = F>>(self, s: S, other: Self) -> Self {
        let better = s.lt(other.error, self.error);
        let (a, b) = (other.moments, self.moments);
        Self {
            scale: s.select(better, other.scale, self.scale),
            min: s.select(better, other.min, self.min),
            error: s.select(better, other.error, self.error),
            moments: Moments {
                p: s.select(better, a.p, b.p),
                pp: s.select(better, a.pp, b.pp),
                px: s.select(better, a.px, b.px),
                ..b
            },
        }
    }
}

/// Steps of runs, and what they are multiples of: rounded to f16 in the units of the weights, and in those of the block.
struct Stepped<F> {
    scale: [F; RUNS],
    min: [F; RUNS],
    block_scale: F,
    block_min: F,
    scale_unit: F,
    min_unit: F,
    /// 1 over each of the two.
    per_scale: F,
    per_min: F,
}

/// Sums over a block of what its steps and moments give, for the best units.
struct Normal<F> {
    ss: F,
    sm: F,
    mm: F,
    sx: F,
    mx: F,
}

impl<S: Simd, L: Levels> Step<S> for RefineInto<'_, '_, S::F, L> {
    type Output = ();

    #[inline(always)]
    fn take(self, s: S) {
        let Self(mut refine, parameters) = self;
        let magnitude = refine.scale_to_block(s);
        let runs = refine.z.len() / refine.run;
        let (mut stepped, beyond) = refine.start(s, magnitude);
        let constant = refine.constant_sums(s);
        let zero = s.splat(0.0);
        for moves in refine.rounds {
            let mut normal = Normal { ss: zero, sm: zero, mm: zero, sx: zero, mx: zero };
            for (j, &constant) in constant.iter().enumerate().take(runs) {
                let mut best = refine.best_steps(s, &stepped, (stepped.scale[j], stepped.min[j]), j, constant);
                for &by in *moves {
                    let scale = refine.scale_step(s, s.add(best.scale, s.splat(by)));
                    let min = refine.min_beside(s, &best.moments, scale, &stepped);
                    let other = refine.best_steps(s, &stepped, (scale, min), j, constant);
                    best = best.or(s, other);
                }
                (stepped.scale[j], stepped.min[j]) = (best.scale, best.min);
                normal.add(s, &best.moments, refine.found.share[j], best.scale, best.min);
            }
            refine.best_units(s, &normal, magnitude, &mut stepped);
        }
        let offset = s.splat(refine.levels.zero());
        for j in 0..runs {
            parameters.scale[j] = s.to_array(stepped.scale[j]);
            parameters.min[j] = s.to_array(stepped.min[j]);
            let slope = inverse(s, s.mul(stepped.block_scale, stepped.scale[j]));
            parameters.slope[j] = s.to_array(slope);
            parameters.offset[j] = s.to_array(s.fma(s.mul(stepped.block_min, stepped.min[j]), slope, offset));
        }
        // Infinite where f16 does not hold it, so that the caller sees it.
        let infinite = s.splat(f32::INFINITY);
        parameters.block_scale = s.to_array(s.select(beyond, infinite, stepped.block_scale));
        parameters.block_min = s.to_array(stepped.block_min);
    }
}

impl<F: Copy> Normal<F> {
    #[inline(always)]
    fn add<S: Simd<F = F>>(&mut self, s: S, m: &Moments<F>, share: F, scale: F, min: F) {
        let (weighted_scale, weighted_min) = (s.mul(share, scale), s.mul(share, min));
        self.ss = s.fma(s.mul(weighted_scale, scale), m.pp, self.ss);
        self.sm = s.fma(s.mul(weighted_scale, min), m.p, self.sm);
        self.mm = s.fma(s.mul(weighted_min, min), m.n, self.mm);
        self.sx = s.fma(weighted_scale, m.px, self.sx);
        self.mx = s.fma(weighted_min, m.x, self.mx);
    }
}

impl<F: Copy, L: Levels> Refine<'_, F, L> {
    /// Scales what was found so that weights of the block are at most 1, and shares so that the greatest is 1. Returns what
    /// weights are divided by.
    #[inline(always)]
    fn scale_to_block<S: Simd<F = F>>(&mut self, s: S) -> F {
        let runs = self.z.len() / self.run;
        let zero = s.splat(0.0);
        let (mut magnitude, mut greatest) = (zero, zero);
        for j in 0..runs {
            magnitude = s.max(magnitude, s.add(s.abs(self.found.centre[j]), self.found.radius[j]));
            greatest = s.max(greatest, self.found.share[j]);
        }
        let (unit, share_unit) = (inverse(s, magnitude), inverse(s, greatest));
        let counts = s.lt(s.splat(f32::MIN_POSITIVE), greatest);
        for j in 0..runs {
            for value in [&mut self.found.scale, &mut self.found.min, &mut self.found.centre, &mut self.found.radius] {
                value[j] = s.mul(value[j], unit);
            }
            self.found.share[j] = s.select(counts, s.mul(self.found.share[j], share_unit), s.splat(1.0));
        }
        magnitude
    }

    /// What scales or minima are multiples of, as stored and in units of the block.
    #[inline(always)]
    fn stored<S: Simd<F = F>>(&self, s: S, unit: F, magnitude: F) -> (F, F) {
        let most = s.splat(65504.0);
        let within = s.max(s.min(s.mul(unit, magnitude), most), s.sub(s.splat(0.0), most));
        let stored = s.round_f16(within);
        (stored, s.mul(stored, inverse(s, magnitude)))
    }

    /// The steps nearest to what was found, and where f16 holds no scale that they could be multiples of.
    #[inline(always)]
    fn start<S: Simd<F = F>>(&self, s: S, magnitude: F) -> (Stepped<F>, S::M) {
        let zero = s.splat(0.0);
        let runs = self.z.len() / self.run;
        let (mut extreme, mut min) = (zero, zero);
        for j in 0..runs {
            let scale = self.found.scale[j];
            extreme = s.select(s.lt(s.abs(extreme), s.abs(scale)), scale, extreme);
            // Zero is a level, or between two: minima are not positive.
            min = s.max(min, s.sub(zero, self.found.min[j]));
        }
        let (scale_unit, min_unit) = match self.steps {
            Steps::Positive(top) => (s.div(s.abs(extreme), s.splat(top)), s.div(min, s.splat(top))),
            // The greatest magnitude, whatever its sign, falls on the step that has no counterpart.
            Steps::Signed(low) => (s.div(extreme, s.splat(-low)), zero),
        };
        let beyond = s.lt(s.splat(BEYOND_HALF), s.mul(s.max(s.abs(scale_unit), min_unit), magnitude));
        let (block_scale, scale_unit) = self.stored(s, scale_unit, magnitude);
        let (block_min, min_unit) = self.stored(s, min_unit, magnitude);
        let (per_scale, per_min) = (inverse(s, scale_unit), inverse(s, min_unit));
        let none = [zero; RUNS];
        let mut stepped =
            Stepped { scale: none, min: none, block_scale, block_min, scale_unit, min_unit, per_scale, per_min };
        for j in 0..runs {
            stepped.scale[j] = self.scale_step(s, s.mul(self.found.scale[j], per_scale));
            stepped.min[j] = self.min_step(s, s.mul(s.sub(zero, self.found.min[j]), per_min));
        }
        (stepped, beyond)
    }

    /// The nearest step of a scale.
    #[inline(always)]
    fn scale_step<S: Simd<F = F>>(&self, s: S, x: F) -> F {
        match self.steps {
            Steps::Positive(top) => round_code(s, x, s.splat(top)),
            Steps::Signed(low) => {
                let low_vector = s.splat(low);
                s.sub(round_code(s, s.add(x, low_vector), s.splat(2.0 * low - 1.0)), low_vector)
            }
        }
    }

    /// The nearest step of a minimum.
    #[inline(always)]
    fn min_step<S: Simd<F = F>>(&self, s: S, x: F) -> F {
        match self.steps {
            Steps::Positive(top) => round_code(s, x, s.splat(top)),
            Steps::Signed(_) => s.splat(0.0),
        }
    }

    /// The sums over each run that do not depend on levels. Without minima they are not needed.
    #[inline(always)]
    fn constant_sums<S: Simd<F = F>>(&self, s: S) -> [Constant<F>; RUNS] {
        let zero = s.splat(0.0);
        let (n, per_n) = (s.splat(self.run as f32), s.splat(1.0 / self.run as f32));
        let mut sums = [Constant { n, z: zero, per_n }; RUNS];
        if let Steps::Signed(_) = self.steps {
            return sums;
        }
        for (j, (z, sums)) in self.z.chunks_exact(self.run).zip(&mut sums).enumerate() {
            if self.importance.is_empty() {
                for &z in z {
                    sums.z = s.add(sums.z, z);
                }
            } else {
                sums.n = zero;
                for (&z, &w) in z.iter().zip(&self.importance[j * self.run..]) {
                    sums.n = s.add(sums.n, w);
                    sums.z = s.fma(w, z, sums.z);
                }
                sums.per_n = inverse(s, sums.n);
            }
        }
        sums
    }

    /// The sums over the levels that the steps of run `j` give.
    #[inline(always)]
    fn moments<S: Simd<F = F>>(
        &self,
        s: S,
        stepped: &Stepped<F>,
        (scale, min): (F, F),
        j: usize,
        Constant { n, z: z_sum, per_n }: Constant<F>,
    ) -> Moments<F> {
        let zero = s.splat(0.0);
        let (centre, radius) = (self.found.centre[j], self.found.radius[j]);
        let per_scale = inverse(s, s.mul(stepped.scale_unit, scale));
        let middle = s.fma(stepped.min_unit, min, centre);
        let (slope, offset) = (s.mul(radius, per_scale), s.fma(middle, per_scale, s.splat(self.levels.zero())));
        let (mut p, mut pp, mut pz) = (zero, zero, zero);
        let weights = &self.z[j * self.run..][..self.run];
        if self.importance.is_empty() {
            for &z in weights {
                let level = self.levels.level(s, s.fma(z, slope, offset));
                p = s.add(p, level);
                pp = s.fma(level, level, pp);
                pz = s.fma(level, z, pz);
            }
        } else {
            for (&z, &w) in weights.iter().zip(&self.importance[j * self.run..]) {
                let level = self.levels.level(s, s.fma(z, slope, offset));
                let weighted = s.mul(w, level);
                p = s.add(p, weighted);
                pp = s.fma(weighted, level, pp);
                pz = s.fma(weighted, z, pz);
            }
        }
        Moments { n, per_n, x: s.fma(centre, n, s.mul(radius, z_sum)), p, pp, px: s.fma(centre, p, s.mul(radius, pz)) }
    }

    /// The steps of run `j` with the least error for the levels that steps give.
    #[inline(always)]
    fn best_steps<S: Simd<F = F>>(
        &self,
        s: S,
        stepped: &Stepped<F>,
        steps: (F, F),
        j: usize,
        constant: Constant<F>,
    ) -> Best<F> {
        let zero = s.splat(0.0);
        let m = self.moments(s, stepped, steps, j, constant);
        let mut best = Best { scale: steps.0, min: steps.1, error: zero, moments: m };
        match self.steps {
            Steps::Signed(_) => {
                // Levels that are all zero say nothing of the scale.
                let some = s.lt(s.splat(f32::MIN_POSITIVE), m.pp);
                let least = s.mul(s.mul(m.px, inverse(s, m.pp)), stepped.per_scale);
                best.scale = s.select(some, self.scale_step(s, least), best.scale);
                best.error = self.error(s, &m, (best.scale, zero), stepped);
            }
            Steps::Positive(_) => {
                let determinant = s.sub(s.mul(m.n, m.pp), s.mul(m.p, m.p));
                let product = s.sub(s.mul(m.n, m.px), s.mul(m.x, m.p));
                // Where the best minimum has the other sign, it is zero.
                let alone = s.lt(s.mul(product, m.p), s.mul(m.x, determinant));
                let over = inverse(s, s.select(alone, m.pp, determinant));
                let wanted = s.mul(s.mul(s.select(alone, m.px, product), over), stepped.per_scale);
                best.error = self.error(s, &m, steps, stepped);
                for beside in [-0.5, 0.5] {
                    let scale = self.scale_step(s, s.add(wanted, s.splat(beside)));
                    let min = self.min_beside(s, &m, scale, stepped);
                    let error = self.error(s, &m, (scale, min), stepped);
                    let better = s.lt(error, best.error);
                    best.scale = s.select(better, scale, best.scale);
                    best.min = s.select(better, min, best.min);
                    best.error = s.select(better, error, best.error);
                }
            }
        }
        best
    }

    /// Σ(x − scale·p + min)² without Σx².
    #[inline(always)]
    fn error<S: Simd<F = F>>(&self, s: S, m: &Moments<F>, (scale, min): (F, F), stepped: &Stepped<F>) -> F {
        let two = s.splat(2.0);
        let scale = s.mul(scale, stepped.scale_unit);
        let without = s.mul(scale, s.fma(scale, m.pp, s.mul(s.splat(-2.0), m.px)));
        match self.steps {
            Steps::Signed(_) => without,
            Steps::Positive(_) => {
                let min = s.mul(min, stepped.min_unit);
                let inner = s.fma(min, m.n, s.mul(two, s.sub(m.x, s.mul(scale, m.p))));
                s.fma(min, inner, without)
            }
        }
    }

    /// The best step of a minimum for a step of the scale.
    #[inline(always)]
    fn min_beside<S: Simd<F = F>>(&self, s: S, m: &Moments<F>, scale: F, stepped: &Stepped<F>) -> F {
        match self.steps {
            Steps::Signed(_) => s.splat(0.0),
            Steps::Positive(_) => {
                let min = s.mul(s.sub(s.mul(s.mul(scale, stepped.scale_unit), m.p), m.x), m.per_n);
                self.min_step(s, s.mul(min, stepped.per_min))
            }
        }
    }

    /// What the steps are best multiples of, over all runs of a block.
    #[inline(always)]
    fn best_units<S: Simd<F = F>>(&self, s: S, sums: &Normal<F>, magnitude: F, stepped: &mut Stepped<F>) {
        let zero = s.splat(0.0);
        let some = s.lt(s.splat(f32::MIN_POSITIVE), sums.ss);
        let alone = s.mul(sums.sx, inverse(s, sums.ss));
        let (scale_unit, min_unit) = match self.steps {
            Steps::Signed(_) => (s.select(some, alone, stepped.scale_unit), stepped.min_unit),
            Steps::Positive(_) => {
                let determinant = s.sub(s.mul(sums.ss, sums.mm), s.mul(sums.sm, sums.sm));
                let per = inverse(s, determinant);
                let scale = s.mul(s.sub(s.mul(sums.sx, sums.mm), s.mul(sums.mx, sums.sm)), per);
                let min = s.mul(s.sub(s.mul(sums.sx, sums.sm), s.mul(sums.mx, sums.ss)), per);
                // Of no use where minima are none, or where rounding ate the determinant.
                let both = s.lt(s.mul(s.mul(sums.ss, sums.mm), s.splat(1e-4)), determinant);
                let no_minima = s.lt(sums.mm, s.splat(f32::MIN_POSITIVE));
                let scale = s.select(both, scale, s.select(no_minima, alone, stepped.scale_unit));
                let min = s.select(both, min, stepped.min_unit);
                (
                    s.select(s.lt(zero, scale), scale, stepped.scale_unit),
                    s.select(s.lt(zero, min), min, stepped.min_unit),
                )
            }
        };
        (stepped.block_scale, stepped.scale_unit) = self.stored(s, scale_unit, magnitude);
        (stepped.block_min, stepped.min_unit) = self.stored(s, min_unit, magnitude);
        (stepped.per_scale, stepped.per_min) = (inverse(s, stepped.scale_unit), inverse(s, stepped.min_unit));
    }
}
