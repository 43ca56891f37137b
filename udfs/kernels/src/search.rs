//! The `mse` method: an alternating least-squares search for each group's grid, sixteen groups at once, one a lane.
//!
//! Weights are centred and scaled to a range of ±1, so that nothing overflows or vanishes. From each start (the range
//! shrunk by a factor), codes are assigned and the grid that fits them best follows in closed form (weighted least squares,
//! as in ggml's `make_qkx` quantizers); then the same step is taken from grids a little beside the best one so far. The
//! winner is rounded to the stored dtype and kept if its error, measured with the codes it will get, is below that of
//! `minmax`.
//!
//! Long because: a fifth of it is the table of efforts.

use crate::grid::{Grid, Range, Rules, inverse, magic_code, round_code};
use crate::simd::{MAGIC, Simd, Step};
use crate::types::{Bits, Scheme};

/// A candidate's error must be below this part of that of `minmax`, less `NOISE` for each weight, so that what is kept is
/// never worse in exact arithmetic. A normalized weight and its level are off by at most δ = 2⁻²², which changes a sum E
/// over n squares by at most 2δ√(nE) ≤ E/1000 + 1000nδ².
const CLEARLY: f32 = 1.0 - 2e-3;
const NOISE: f32 = 1e-10;

/// How a search goes: the shrink factors it starts from, then moves away from the best grid so far, each a factor on the
/// scale and a shift in steps.
struct Effort {
    shrink: &'static [f32],
    moves: &'static [(f32, f32)],
}

/// The effort by width. Moves find what repeating the least-squares step from more starts does not: at 2 bits and groups
/// of 64, two starts and six moves come within 0.03 dB of the exhaustive optimum, where eight starts of three steps each
/// leave 0.09; at 4 bits, 11 steps gain 0.12 dB over 24.
// Long because: a table with an entry for each width.
const fn effort(bits: Bits, scheme: Scheme) -> Effort {
    match bits {
        Bits::Two => Effort {
            shrink: &[0.5, 0.7],
            moves: &[(1.0, 0.0), (1.0, 0.3), (1.0, -0.3), (1.0, 0.15), (1.0, -0.15), (1.0, 0.0)],
        },
        Bits::Three => Effort {
            shrink: &[0.6, 0.8],
            moves: &[
                (1.0, 0.25),
                (1.0, -0.25),
                (1.04, 0.15),
                (0.96, -0.15),
                (1.04, -0.15),
                (0.96, 0.15),
                (1.0, 0.1),
                (1.0, -0.1),
                (1.0, 0.0),
            ],
        },
        Bits::Four => Effort {
            shrink: &[0.75, 0.9],
            moves: &[
                (1.02, 0.2),
                (0.98, -0.2),
                (1.02, -0.2),
                (0.98, 0.2),
                (1.04, 0.0),
                (0.96, 0.0),
                (1.0, 0.1),
                (1.0, -0.1),
                (1.0, 0.0),
            ],
        },
        Bits::Five if levels_shift(scheme) => Effort {
            shrink: &[0.88, 0.96],
            moves: &[
                (1.015, 0.25),
                (0.985, -0.25),
                (1.015, -0.25),
                (0.985, 0.25),
                (1.03, 0.0),
                (0.97, 0.0),
                (1.008, 0.12),
                (0.992, -0.12),
                (1.008, -0.12),
                (0.992, 0.12),
                (1.0, 0.0),
            ],
        },
        // Levels around zero: only their distance can change.
        Bits::Five => Effort {
            shrink: &[0.8],
            moves: &[
                (1.012, 0.0),
                (0.988, 0.0),
                (1.024, 0.0),
                (0.976, 0.0),
                (1.036, 0.0),
                (0.964, 0.0),
                (1.05, 0.0),
                (0.95, 0.0),
                (1.006, 0.0),
                (0.994, 0.0),
                (1.0, 0.0),
            ],
        },
        Bits::Six if levels_shift(scheme) => Effort {
            shrink: &[0.94, 1.0],
            moves: &[
                (1.008, 0.25),
                (0.992, -0.25),
                (1.008, -0.25),
                (0.992, 0.25),
                (1.015, 0.0),
                (0.985, 0.0),
                (1.004, 0.12),
                (0.996, -0.12),
                (1.0, 0.0),
            ],
        },
        Bits::Six => Effort {
            shrink: &[0.8],
            moves: &[
                (1.006, 0.0),
                (0.994, 0.0),
                (1.012, 0.0),
                (0.988, 0.0),
                (1.018, 0.0),
                (0.982, 0.0),
                (1.024, 0.0),
                (0.976, 0.0),
                (1.003, 0.0),
                (0.997, 0.0),
                (1.0, 0.0),
            ],
        },
        Bits::Eight => Effort {
            shrink: &[1.0],
            moves: &[(1.004, 0.25), (0.996, -0.25), (1.004, -0.25), (0.996, 0.25), (1.002, 0.0)],
        },
    }
}

/// True if the scheme's levels can lie anywhere, so that a search can start from levels over the whole range: the minimum, or
/// the zero point, follows them. Symmetric levels lie around zero.
const fn levels_shift(scheme: Scheme) -> bool {
    match scheme {
        Scheme::Affine | Scheme::Asymmetric => true,
        Scheme::Symmetric => false,
    }
}

/// Sixteen groups of equal length, transposed: element j of the group in lane k is lane k of vector j.
pub(crate) struct Groups<'a, F> {
    /// The weights; overwritten by their normalized form.
    pub weights: &'a mut [F],
    /// The importance of each weight, likewise transposed and scaled to at most 1; empty if all are alike.
    pub importance: &'a [F],
}

/// Sums over a group of powers of p = q - half and of the normalized weight z, each times its importance.
#[derive(Clone, Copy)]
struct Moments<F> {
    n: F,
    z: F,
    zz: F,
    p: F,
    pp: F,
    pz: F,
}

/// A grid in normalized units: level of p is `scale * p + base`.
#[derive(Clone, Copy)]
struct Fit<F> {
    scale: F,
    base: F,
    error: F,
}

struct Fitting<'a, S: Simd> {
    s: S,
    rules: &'a Rules,
    z: &'a [S::F],
    importance: &'a [S::F],
    top: S::F,
    /// `MAGIC + half`.
    magic_half: S::F,
}

/// The middle of what weights are normalized by, and half its width.
#[inline(always)]
pub(crate) fn middle<S: Simd>(s: S, rules: &Rules, range: Range<S::F>) -> (S::F, S::F) {
    match rules.scheme {
        Scheme::Affine => {
            let (low, high) = (s.mul(range.min, s.splat(0.5)), s.mul(range.max, s.splat(0.5)));
            (s.add(low, high), s.sub(high, low))
        }
        Scheme::Asymmetric | Scheme::Symmetric => (s.splat(0.0), range.magnitude(s)),
    }
}

/// Looks for the best grid for each group, none worse than `minmax`.
pub(crate) struct Search<'a, F> {
    pub rules: &'a Rules,
    pub groups: Groups<'a, F>,
    pub range: Range<F>,
    pub minmax: Grid<F>,
}

impl<S: Simd> Step<S> for Search<'_, S::F> {
    type Output = Grid<S::F>;

    #[inline(always)]
    fn take(self, s: S) -> Grid<S::F> {
        search(s, self)
    }
}

#[inline(always)]
fn search<S: Simd>(s: S, step: Search<'_, S::F>) -> Grid<S::F> {
    let Search { rules, groups, range, minmax } = step;
    let (zero, half) = (s.splat(0.0), s.splat(rules.half));
    let (centre, radius) = middle(s, rules, range);
    let unit = inverse(s, radius);
    for w in groups.weights.iter_mut() {
        *w = s.mul(s.sub(*w, centre), unit);
    }
    let search = Fitting {
        s,
        rules,
        z: groups.weights,
        importance: groups.importance,
        top: s.splat(rules.max_code),
        magic_half: s.splat(MAGIC + rules.half),
    };
    let fit = search.best(search.extent());

    // Back to the weights' units, rounded as stored; then both grids measured with the codes they give.
    let scale = rules.store_scale(s, s.mul(fit.scale, radius));
    let grid = match rules.scheme {
        Scheme::Affine => {
            let base = s.fma(fit.base, radius, centre);
            let min = s.add(rules.store(s, s.sub(base, s.mul(half, scale))), zero);
            Grid { scale, min, zero }
        }
        Scheme::Asymmetric | Scheme::Symmetric => {
            let zero_point = s.sub(half, s.mul(fit.base, inverse(s, fit.scale)));
            Grid { scale, min: zero, zero: round_code(s, zero_point, search.top) }
        }
    };
    let found_error = search.error(&grid, centre, unit);
    let plain_error = search.error(&minmax, centre, unit);
    // A scale that became 0 is no grid.
    let usable = s.lt(zero, s.abs(scale));
    let noise = s.splat(NOISE * search.z.len() as f32);
    let limit = s.select(usable, s.sub(s.mul(plain_error, s.splat(CLEARLY)), noise), zero);
    let better = s.lt(found_error, limit);
    Grid {
        scale: s.select(better, grid.scale, minmax.scale),
        min: s.select(better, grid.min, minmax.min),
        zero: s.select(better, grid.zero, minmax.zero),
    }
}

impl<S: Simd> Fitting<'_, S> {
    /// The range of the normalized weights that count.
    #[inline(always)]
    fn extent(&self) -> (S::F, S::F) {
        let s = self.s;
        let (mut low, mut high) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
        for (i, &z) in self.z.iter().enumerate() {
            let (below, above) = match self.importance.get(i) {
                Some(&w) => {
                    let counts = s.lt(s.splat(0.0), w);
                    (s.select(counts, z, s.splat(f32::INFINITY)), s.select(counts, z, s.splat(f32::NEG_INFINITY)))
                }
                None => (z, z),
            };
            (low, high) = (s.min(low, below), s.max(high, above));
        }
        let zero = s.splat(0.0);
        (s.add(low, zero), s.add(high, zero))
    }

    /// The fit with the least error over all starts, refined.
    #[inline(always)]
    fn best(&self, (low, high): (S::F, S::F)) -> Fit<S::F> {
        let s = self.s;
        let constant = self.constant_moments();
        let effort = effort(self.rules.bits, self.rules.scheme);
        let zero = s.splat(0.0);
        let mut best = Fit { scale: s.splat(0.0), base: s.splat(0.0), error: s.splat(f32::INFINITY) };
        for &shrink in effort.shrink {
            if levels_shift(self.rules.scheme) {
                let width = s.mul(s.sub(high, low), s.splat(shrink));
                let scale = s.div(width, self.top);
                // The middle of the levels, p = -1/2, on the middle of the range.
                let middle = s.mul(s.add(high, low), s.splat(0.5));
                self.step(scale, s.fma(scale, s.splat(0.5), middle), &constant, &mut best);
            }
            // Zero on a level, the extra level below it or above: for the symmetric scheme by the scale's sign, for the
            // asymmetric one by the zero point.
            let scale = s.splat((shrink + 0.2).min(1.0) / self.rules.half);
            let above = match self.rules.scheme {
                Scheme::Affine => None,
                Scheme::Asymmetric => Some((scale, scale)),
                Scheme::Symmetric => Some((s.sub(zero, scale), zero)),
            };
            if let Some((scale_above, base_above)) = above {
                self.step(scale, zero, &constant, &mut best);
                self.step(scale_above, base_above, &constant, &mut best);
            }
        }
        if !self.importance.is_empty() && levels_shift(self.rules.scheme) {
            // Where few weights count, their own spread is the better start: levels over 1.5 standard deviations to
            // either side, and over 3.
            let mean = s.mul(constant.z, inverse(s, constant.n));
            let variance =
                s.max(s.fma(s.sub(s.splat(0.0), mean), mean, s.mul(constant.zz, inverse(s, constant.n))), s.splat(0.0));
            for deviations in [3.0, 6.0] {
                let scale = s.div(s.mul(s.sqrt(variance), s.splat(deviations)), self.top);
                self.step(scale, s.fma(scale, s.splat(0.5), mean), &constant, &mut best);
            }
        }
        for &(stretch, shift) in effort.moves {
            let scale = s.mul(best.scale, s.splat(stretch));
            // The level of p = -1/2, the middle, moves by `shift` steps.
            let middle = s.fma(best.scale, s.splat(shift - 0.5), best.base);
            self.step(scale, s.fma(scale, s.splat(0.5), middle), &constant, &mut best);
        }
        best
    }

    /// Assigns codes by the grid given, fits the grid to them, and keeps it where it is the best so far.
    #[inline(always)]
    fn step(&self, scale: S::F, base: S::F, constant: &Moments<S::F>, best: &mut Fit<S::F>) {
        let s = self.s;
        let fit = self.fit(&self.moments(scale, base, constant));
        let better = s.lt(fit.error, best.error);
        best.scale = s.select(better, fit.scale, best.scale);
        best.base = s.select(better, fit.base, best.base);
        best.error = s.select(better, fit.error, best.error);
    }

    /// What multiplies z, and what is then added, to give a code.
    #[inline(always)]
    fn coding(&self, scale: S::F, base: S::F) -> (S::F, S::F) {
        let s = self.s;
        let slope = inverse(s, scale);
        (slope, s.sub(s.splat(self.rules.half), s.mul(base, slope)))
    }

    /// q - half for a weight.
    #[inline(always)]
    fn code(&self, z: S::F, slope: S::F, offset: S::F) -> S::F {
        let s = self.s;
        s.sub(magic_code(s, s.fma(z, slope, offset), self.top), self.magic_half)
    }

    #[inline(always)]
    fn constant_moments(&self) -> Moments<S::F> {
        let s = self.s;
        let zero = s.splat(0.0);
        let mut sums = Moments { n: zero, z: zero, zz: zero, p: zero, pp: zero, pz: zero };
        if self.importance.is_empty() {
            sums.n = s.splat(self.z.len() as f32);
            for &z in self.z {
                sums.z = s.add(sums.z, z);
                sums.zz = s.fma(z, z, sums.zz);
            }
        } else {
            for (&z, &w) in self.z.iter().zip(self.importance) {
                let wz = s.mul(w, z);
                sums.n = s.add(sums.n, w);
                sums.z = s.add(sums.z, wz);
                sums.zz = s.fma(wz, z, sums.zz);
            }
        }
        sums
    }

    /// The sums over the codes that a grid gives: the loop that a search spends its time in.
    #[inline(always)]
    fn moments(&self, scale: S::F, base: S::F, constant: &Moments<S::F>) -> Moments<S::F> {
        let s = self.s;
        let zero = s.splat(0.0);
        let (slope, offset) = self.coding(scale, base);
        // Two sums of each kind, for two chains of dependent additions.
        let (mut p_sums, mut pp_sums, mut pz_sums) = ([zero; 2], [zero; 2], [zero; 2]);
        if self.importance.is_empty() {
            for pair in self.z.chunks(2) {
                for (k, &z) in pair.iter().enumerate() {
                    let p = self.code(z, slope, offset);
                    p_sums[k] = s.add(p_sums[k], p);
                    pp_sums[k] = s.fma(p, p, pp_sums[k]);
                    pz_sums[k] = s.fma(p, z, pz_sums[k]);
                }
            }
        } else {
            for (i, (&z, &w)) in self.z.iter().zip(self.importance).enumerate() {
                let (k, p) = (i % 2, self.code(z, slope, offset));
                let wp = s.mul(w, p);
                p_sums[k] = s.add(p_sums[k], wp);
                pp_sums[k] = s.fma(wp, p, pp_sums[k]);
                pz_sums[k] = s.fma(wp, z, pz_sums[k]);
            }
        }
        Moments {
            p: s.add(p_sums[0], p_sums[1]),
            pp: s.add(pp_sums[0], pp_sums[1]),
            pz: s.add(pz_sums[0], pz_sums[1]),
            ..*constant
        }
    }

    /// The least-squares grid for fixed codes, and its error: infinite where the codes do not determine one.
    #[inline(always)]
    fn fit(&self, m: &Moments<S::F>) -> Fit<S::F> {
        let s = self.s;
        let fit = match self.rules.scheme {
            Scheme::Affine => self.fit_affine(m),
            Scheme::Asymmetric => {
                let affine = self.fit_affine(m);
                let (half, zero) = (s.splat(self.rules.half), s.splat(0.0));
                let start = s.sub(zero, s.mul(affine.base, inverse(s, affine.scale)));
                let nearest = s.sub(round_code(s, s.add(start, half), self.top), half);
                let mut best = self.fit_scale(m, nearest);
                for neighbour in [-1.0, 1.0] {
                    let zero_point = s.add(nearest, s.splat(neighbour));
                    let inside = s.max(s.min(zero_point, s.sub(self.top, half)), s.sub(zero, half));
                    let fit = self.fit_scale(m, inside);
                    let better = s.lt(fit.error, best.error);
                    best.scale = s.select(better, fit.scale, best.scale);
                    best.base = s.select(better, fit.base, best.base);
                    best.error = s.select(better, fit.error, best.error);
                }
                best
            }
            Scheme::Symmetric => self.fit_scale(m, s.splat(0.0)),
        };
        let determined = s.lt(s.splat(f32::MIN_POSITIVE), s.abs(fit.scale));
        Fit { error: s.select(determined, fit.error, s.splat(f32::INFINITY)), ..fit }
    }

    /// Scale and base free: with D = nΣp² − (Σp)², scale = (nΣpz − ΣpΣz)/D and base = (Σz − scale·Σp)/n.
    #[inline(always)]
    fn fit_affine(&self, m: &Moments<S::F>) -> Fit<S::F> {
        let s = self.s;
        let zero = s.splat(0.0);
        let determinant = s.sub(s.mul(m.n, m.pp), s.mul(m.p, m.p));
        let scale = s.mul(s.sub(s.mul(m.n, m.pz), s.mul(m.p, m.z)), inverse(s, determinant));
        let base = s.mul(s.sub(m.z, s.mul(scale, m.p)), inverse(s, m.n));
        let error = s.sub(s.sub(m.zz, s.mul(scale, m.pz)), s.mul(base, m.z));
        Fit { scale, base, error: s.max(error, zero) }
    }

    /// The zero point fixed at p = `zero_point`: scale = Σ(p − zero)z / Σ(p − zero)².
    #[inline(always)]
    fn fit_scale(&self, m: &Moments<S::F>, zero_point: S::F) -> Fit<S::F> {
        let s = self.s;
        let zero = s.splat(0.0);
        let product = s.sub(m.pz, s.mul(zero_point, m.z));
        let double = s.add(zero_point, zero_point);
        let square = s.fma(s.mul(zero_point, zero_point), m.n, s.sub(m.pp, s.mul(double, m.p)));
        let scale = s.mul(product, inverse(s, square));
        let error = s.sub(m.zz, s.mul(scale, product));
        Fit { scale, base: s.sub(zero, s.mul(scale, zero_point)), error: s.max(error, zero) }
    }

    /// The squared error of a grid in the weights' units, with the codes it gives.
    #[inline(always)]
    fn error(&self, grid: &Grid<S::F>, centre: S::F, unit: S::F) -> S::F {
        let s = self.s;
        let scale = s.mul(grid.scale, unit);
        let min = s.mul(s.sub(grid.min, centre), unit);
        let base = s.fma(scale, s.sub(s.splat(self.rules.half), grid.zero), min);
        let (slope, offset) = self.coding(scale, base);
        let mut sums = [s.splat(0.0); 2];
        for (i, &z) in self.z.iter().enumerate() {
            let error = s.sub(z, s.fma(self.code(z, slope, offset), scale, base));
            let weighted = match self.importance.get(i) {
                Some(&w) => s.mul(error, w),
                None => error,
            };
            sums[i % 2] = s.fma(weighted, error, sums[i % 2]);
        }
        s.add(sums[0], sums[1])
    }
}
