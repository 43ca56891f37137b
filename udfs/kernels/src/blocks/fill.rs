//! Blocks of the least squared error: the search that grouped integers have, and what follows from scales and minima being
//! integers in steps that a block shares.
//!
//! With codes fixed, the squared error of a run is a quadratic form of its scale and minimum, whose coefficients are six
//! sums over the run. So the best steps of each run follow in closed form, and then the best scale and minimum that the
//! steps are multiples of, without another look at the weights. Codes and steps are found in turn, as in the search.

use super::MOST;
use super::layout::{
    pack_k_scales, pack_q3_k_scales, put_codes, put_half, put_q3_k, put_q4_k_or_q5_k, put_q6_k, put_quarters,
};
use crate::BlockType;
use crate::grid::{Grid, Range, Rules, inverse, magic_code, round_code};
use crate::search::{Groups, Search, middle};
use crate::simd::{Eight, Kernel, LANES, MAGIC, Simd, Step};
use crate::types::{Bits, ParameterDtype, Scheme};

/// Times that codes and steps are found in turn.
const ROUNDS: usize = 3;

/// How the levels of a run follow from the bytes of its block.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// Weights that share a scale.
    run: usize,
    rules: Rules,
    steps: Steps,
}

/// What scales and minima of runs are.
#[derive(Clone, Copy)]
enum Steps {
    /// An f16 each.
    Half,
    /// From 0 to these many times an f16 of the block, one for scales and one for minima.
    Positive { scale: f32, min: f32 },
    /// From minus this to this less one times an f16 of the block.
    Signed(f32),
}

impl Form {
    /// The form of a block type whose levels are equally far apart.
    pub(super) fn of(block_type: BlockType) -> Option<Self> {
        let form = |run, bits: Bits, scheme, steps| {
            let stored = match steps {
                Steps::Half => ParameterDtype::F16,
                Steps::Positive { .. } | Steps::Signed(_) => ParameterDtype::F32,
            };
            let max_code = f32::from(bits.max_code());
            Some(Self { run, rules: Rules { bits, scheme, max_code, half: (max_code + 1.0) / 2.0, stored }, steps })
        };
        let positive = |top: f32| Steps::Positive { scale: top, min: top };
        match block_type {
            BlockType::Q4_0 => form(32, Bits::Four, Scheme::Symmetric, Steps::Half),
            BlockType::Q5_0 => form(32, Bits::Five, Scheme::Symmetric, Steps::Half),
            BlockType::Q4_1 => form(32, Bits::Four, Scheme::Affine, Steps::Half),
            BlockType::Q5_1 => form(32, Bits::Five, Scheme::Affine, Steps::Half),
            // From -127 to 127, as runtimes expect.
            BlockType::Q8_0 => form(32, Bits::Eight, Scheme::Symmetric, Steps::Half)
                .map(|form| Self { rules: Rules { max_code: 254.0, half: 127.0, ..form.rules }, ..form }),
            BlockType::Q2K => form(16, Bits::Two, Scheme::Affine, positive(15.0)),
            BlockType::Q3K => form(16, Bits::Three, Scheme::Symmetric, Steps::Signed(32.0)),
            BlockType::Q4K => form(32, Bits::Four, Scheme::Affine, positive(63.0)),
            BlockType::Q5K => form(32, Bits::Five, Scheme::Affine, positive(63.0)),
            BlockType::Q6K => form(16, Bits::Six, Scheme::Symmetric, Steps::Signed(128.0)),
            BlockType::Q2_0 | BlockType::Tq1_0 | BlockType::Tq2_0 => None,
            BlockType::Iq4Nl | BlockType::Iq4Xs | BlockType::Mxfp4 | BlockType::Nvfp4 => None,
        }
    }
}

/// Fills blocks with the weights `x`, whole blocks of rows of `row_length`, from weight `channel` of a row on.
pub(super) struct Piece<'a> {
    pub form: Form,
    pub block_type: BlockType,
    pub x: &'a [f32],
    pub importance: Option<&'a [f32]>,
    pub channel: usize,
    pub out: &'a mut [u8],
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { form, block_type, x, importance, channel, out } = self;
        let (length, size) = (block_type.length(), block_type.size());
        // Sixteen runs a batch, of whole blocks: all runs of a block are in one batch.
        let blocks = (LANES * form.run / length).max(1);
        let mut scratch = Scratch::new(s, form.run, importance.is_some());
        for (k, (x, out)) in x.chunks(blocks * length).zip(out.chunks_mut(blocks * size)).enumerate() {
            let place = importance.map(|importance| (importance, channel + k * blocks * length));
            let runs = batch(s, &form, length / form.run, x, place, &mut scratch);
            for (b, out) in out.chunks_exact_mut(size).enumerate() {
                lay_out(block_type, &runs, b * (length / form.run), &scratch.codes[b * length..], out);
            }
        }
    }
}

/// What a batch of runs is computed in.
struct Scratch<F> {
    /// The weights, transposed: element j of run k is lane k of vector j.
    weights: Vec<F>,
    importance: Vec<F>,
    /// The codes, transposed likewise, as `MAGIC` + code.
    transposed: Vec<F>,
    /// The codes, one a byte, run by run.
    codes: [u8; 16 * 32],
}

impl<F: Copy> Scratch<F> {
    #[inline(always)]
    fn new<S: Simd<F = F>>(s: S, run: usize, weighted: bool) -> Self {
        let vectors = |length: usize| vec![s.splat(0.0); length];
        let importance = vectors(if weighted { run } else { 0 });
        Self { weights: vectors(run), importance, transposed: vectors(run), codes: [0; 16 * 32] }
    }
}

/// The parameters of sixteen runs, as they are stored.
struct Runs {
    scale: [f32; LANES],
    min: [f32; LANES],
    /// Of the block of each run.
    block_scale: [f32; LANES],
    block_min: [f32; LANES],
}

/// Finds the parameters and codes of up to sixteen runs, which are `x`.
#[inline(always)]
fn batch<S: Simd>(
    s: S,
    form: &Form,
    runs_per_block: usize,
    x: &[f32],
    importance: Option<(&[f32], usize)>,
    scratch: &mut Scratch<S::F>,
) -> Runs {
    let count = x.len() / form.run;
    // A batch that is not full repeats its last run.
    let start: [usize; LANES] = std::array::from_fn(|lane| lane.min(count - 1) * form.run);
    let range = transpose(s, x, &start, &mut scratch.weights);
    let share = match importance {
        Some((importance, channel)) => {
            let at = start.map(|start| (channel + start) % importance.len());
            transpose_importance(s, importance, at, runs_per_block, &mut scratch.importance)
        }
        None => s.splat(1.0),
    };
    let (minmax, _) = form.rules.minmax(s, range);
    let groups = Groups { weights: &mut scratch.weights, importance: &scratch.importance };
    let found = s.call(Search { rules: &form.rules, groups, range, minmax });
    let (runs, grid) = match form.steps {
        Steps::Half => (Runs::of_halves(s, &found), found),
        Steps::Positive { .. } | Steps::Signed(_) => {
            let (weights, importance) = (&scratch.weights, &scratch.importance);
            s.call(Refine { form, runs_per_block, share, range, found, weights, importance })
        }
    };
    let inverse_scale = inverse(s, grid.scale);
    let offset = s.fma(s.sub(s.splat(0.0), grid.min), inverse_scale, grid.zero);
    let (centre, radius) = middle(s, &form.rules, range);
    for (out, &z) in scratch.transposed.iter_mut().zip(&scratch.weights) {
        let w = s.fma(z, radius, centre);
        *out = magic_code(s, s.fma(w, inverse_scale, offset), s.splat(form.rules.max_code));
    }
    for (first, vectors) in scratch.transposed.chunks_exact(LANES).enumerate() {
        let rows = s.transpose(vectors.first_chunk().expect("runs are of sixteen or 32 weights"));
        for (lane, row) in rows.iter().enumerate() {
            let mut bytes = [0; 2 * LANES];
            s.pack::<Eight>([*row, s.splat(MAGIC)], &mut bytes);
            scratch.codes[lane * form.run + first * LANES..][..LANES].copy_from_slice(&bytes[..LANES]);
        }
    }
    runs
}

/// The weights of sixteen runs, transposed, and their ranges.
#[inline(always)]
fn transpose<S: Simd>(s: S, x: &[f32], start: &[usize; LANES], out: &mut [S::F]) -> Range<S::F> {
    let (mut low, mut high) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
    for (first, out) in out.chunks_exact_mut(LANES).enumerate() {
        let mut rows = [s.splat(0.0); LANES];
        for (row, &start) in rows.iter_mut().zip(start) {
            *row = s.load_lanes(x[start + first * LANES..].first_chunk().expect("runs are whole vectors"));
        }
        for (out, w) in out.iter_mut().zip(s.transpose(&rows)) {
            *out = w;
            (low, high) = (s.min(low, w), s.max(high, w));
        }
    }
    Range::new(s, low, high)
}

/// The importance of the weights of sixteen runs, transposed and scaled to a greatest value of 1 in each run, and what the
/// greatest value of each was as a part of that of its block. Where all of it is zero, weights count alike.
#[inline(always)]
fn transpose_importance<S: Simd>(
    s: S,
    importance: &[f32],
    channel: [usize; LANES],
    runs_per_block: usize,
    out: &mut [S::F],
) -> S::F {
    let mut greatest = s.splat(0.0);
    for (j, to) in out.iter_mut().enumerate() {
        *to = s.load_lanes(&channel.map(|channel| importance[channel + j]));
        greatest = s.max(greatest, *to);
    }
    let some = s.lt(s.splat(f32::MIN_POSITIVE), greatest);
    let unit = inverse(s, greatest);
    for to in out.iter_mut() {
        *to = s.select(some, s.mul(*to, unit), s.splat(1.0));
    }
    let of_block = s.load_lanes(&over_block(s.to_array(greatest), runs_per_block, f32::max));
    let counts = s.lt(s.splat(f32::MIN_POSITIVE), of_block);
    s.select(counts, s.mul(greatest, inverse(s, of_block)), s.splat(1.0))
}

/// Each block's values put together, for every run of it.
#[inline(always)]
fn over_block(values: [f32; LANES], runs_per_block: usize, join: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut out = values;
    for block in out.chunks_exact_mut(runs_per_block) {
        let all = block.iter().copied().reduce(&join).expect("a block has runs");
        block.fill(all);
    }
    out
}

impl Runs {
    #[inline(always)]
    fn of_halves<S: Simd>(s: S, grid: &Grid<S::F>) -> Self {
        let none = [0.0; LANES];
        Self { scale: s.to_array(grid.scale), min: s.to_array(grid.min), block_scale: none, block_min: none }
    }
}

/// Makes steps of the scales and minima that were found, and improves them.
struct Refine<'a, F> {
    form: &'a Form,
    runs_per_block: usize,
    /// What each run's importance is multiplied by.
    share: F,
    range: Range<F>,
    found: Grid<F>,
    /// As the search left them.
    weights: &'a [F],
    importance: &'a [F],
}

/// Sums over a run of codes p and weights x, each times its importance. For types without minima p is negative too.
#[derive(Clone, Copy)]
struct Moments<F> {
    n: F,
    x: F,
    p: F,
    pp: F,
    px: F,
}

/// Steps of runs, and what they are multiples of: rounded to f16 in the units of the weights, and in those of the block.
#[derive(Clone, Copy)]
struct Stepped<F> {
    scale: F,
    min: F,
    block_scale: F,
    block_min: F,
    scale_unit: F,
    min_unit: F,
}

impl<S: Simd> Step<S> for Refine<'_, S::F> {
    type Output = (Runs, Grid<S::F>);

    #[inline(always)]
    fn take(self, s: S) -> Self::Output {
        let mut stepped = self.start(s);
        for _ in 0..ROUNDS {
            let moments = self.moments(s, &stepped);
            self.best_steps(s, &moments, &mut stepped);
            self.best_units(s, &moments, &mut stepped);
        }
        let runs = Runs {
            scale: s.to_array(stepped.scale),
            min: s.to_array(stepped.min),
            block_scale: s.to_array(stepped.block_scale),
            block_min: s.to_array(stepped.block_min),
        };
        let scale = s.mul(stepped.block_scale, stepped.scale);
        let min = s.sub(s.splat(0.0), s.mul(stepped.block_min, stepped.min));
        (runs, Grid { scale, min, zero: self.found.zero })
    }
}

impl<F: Copy> Refine<'_, F> {
    /// 1 / the greatest magnitude of the block, so that no square overflows or vanishes.
    #[inline(always)]
    fn unit<S: Simd<F = F>>(&self, s: S) -> (F, F) {
        let magnitude = over_block(s.to_array(self.range.magnitude(s)), self.runs_per_block, f32::max);
        let magnitude = s.load_lanes(&magnitude);
        (inverse(s, magnitude), magnitude)
    }

    /// What scales or minima are multiples of, as stored and in units of the block.
    #[inline(always)]
    fn stored<S: Simd<F = F>>(&self, s: S, unit: F) -> (F, F) {
        let (inverse, magnitude) = self.unit(s);
        let stored = s.round_f16(s.mul(unit, magnitude));
        (stored, s.mul(stored, inverse))
    }

    /// The steps nearest to what the search found.
    #[inline(always)]
    fn start<S: Simd<F = F>>(&self, s: S) -> Stepped<F> {
        let zero = s.splat(0.0);
        let (unit, _) = self.unit(s);
        let scale = s.mul(self.found.scale, unit);
        // Zero is a level, or between two: minima are not positive.
        let min = s.max(s.sub(zero, s.mul(self.found.min, unit)), zero);
        let over = |values: F, join: fn(f32, f32) -> f32| {
            s.load_lanes(&over_block(s.to_array(values), self.runs_per_block, join))
        };
        let (scale_unit, min_unit) = match self.form.steps {
            Steps::Half => (scale, min),
            Steps::Positive { scale: top, min: min_top } => {
                (s.div(over(scale, f32::max), s.splat(top)), s.div(over(min, f32::max), s.splat(min_top)))
            }
            // The greatest magnitude, whatever its sign, falls on the step that has no counterpart.
            Steps::Signed(low) => {
                let extreme = over(scale, |a, b| if b.abs() > a.abs() { b } else { a });
                (s.div(extreme, s.splat(-low)), zero)
            }
        };
        let (block_scale, scale_unit) = self.stored(s, scale_unit);
        let (block_min, min_unit) = self.stored(s, min_unit);
        let scale = self.scale_step(s, s.mul(scale, inverse(s, scale_unit)));
        let min = self.min_step(s, s.mul(min, inverse(s, min_unit)));
        Stepped { scale, min, block_scale, block_min, scale_unit, min_unit }
    }

    /// The nearest step of a scale.
    #[inline(always)]
    fn scale_step<S: Simd<F = F>>(&self, s: S, x: F) -> F {
        match self.form.steps {
            Steps::Half => x,
            Steps::Positive { scale, min: _ } => round_code(s, x, s.splat(scale)),
            Steps::Signed(low) => {
                let low_vector = s.splat(low);
                s.sub(round_code(s, s.add(x, low_vector), s.splat(2.0 * low - 1.0)), low_vector)
            }
        }
    }

    /// The nearest step of a minimum.
    #[inline(always)]
    fn min_step<S: Simd<F = F>>(&self, s: S, x: F) -> F {
        match self.form.steps {
            Steps::Half => x,
            Steps::Positive { scale: _, min } => round_code(s, x, s.splat(min)),
            Steps::Signed(_) => s.splat(0.0),
        }
    }

    /// The sums over the codes that the steps give.
    #[inline(always)]
    fn moments<S: Simd<F = F>>(&self, s: S, stepped: &Stepped<F>) -> Moments<F> {
        let zero = s.splat(0.0);
        let (unit, _) = self.unit(s);
        let (centre, radius) = middle(s, &self.form.rules, self.range);
        let (centre, radius) = (s.mul(centre, unit), s.mul(radius, unit));
        let inverse_scale = inverse(s, s.mul(stepped.scale_unit, stepped.scale));
        let offset = s.fma(s.mul(stepped.min_unit, stepped.min), inverse_scale, self.found.zero);
        let (magic_zero, top) = (s.add(self.found.zero, s.splat(MAGIC)), s.splat(self.form.rules.max_code));
        let mut sums = Moments { n: zero, x: zero, p: zero, pp: zero, px: zero };
        for (j, &z) in self.weights.iter().enumerate() {
            let x = s.fma(z, radius, centre);
            let p = s.sub(magic_code(s, s.fma(x, inverse_scale, offset), top), magic_zero);
            let (weighted_x, weighted_p) = match self.importance.get(j) {
                Some(&w) => {
                    sums.n = s.add(sums.n, w);
                    (s.mul(w, x), s.mul(w, p))
                }
                None => (x, p),
            };
            sums.x = s.add(sums.x, weighted_x);
            sums.p = s.add(sums.p, weighted_p);
            sums.pp = s.fma(weighted_p, p, sums.pp);
            sums.px = s.fma(weighted_p, x, sums.px);
        }
        if self.importance.is_empty() {
            sums.n = s.splat(self.weights.len() as f32);
        }
        sums
    }

    /// The steps with the least error for these codes.
    #[inline(always)]
    fn best_steps<S: Simd<F = F>>(&self, s: S, m: &Moments<F>, stepped: &mut Stepped<F>) {
        let zero = s.splat(0.0);
        let (per_scale, per_min) = (inverse(s, stepped.scale_unit), inverse(s, stepped.min_unit));
        let least = match self.form.rules.scheme {
            Scheme::Affine => {
                let determinant = s.sub(s.mul(m.n, m.pp), s.mul(m.p, m.p));
                s.mul(s.sub(s.mul(m.n, m.px), s.mul(m.x, m.p)), inverse(s, determinant))
            }
            Scheme::Asymmetric | Scheme::Symmetric => s.mul(m.px, inverse(s, m.pp)),
        };
        let wanted = s.mul(least, per_scale);
        let per_n = inverse(s, m.n);
        let error = |scale: F, min: F| {
            // Σ(x − scale·p + min)² without Σx².
            let (scale, min) = (s.mul(scale, stepped.scale_unit), s.mul(min, stepped.min_unit));
            let two = s.splat(2.0);
            let squares = s.fma(s.mul(scale, scale), m.pp, s.mul(s.mul(min, min), m.n));
            let linear = s.sub(s.sub(s.mul(min, m.x), s.mul(scale, m.px)), s.mul(s.mul(scale, min), m.p));
            s.fma(two, linear, squares)
        };
        let mut best = (stepped.scale, stepped.min, error(stepped.scale, stepped.min));
        for beside in [0.0, -0.5, 0.5] {
            let scale = self.scale_step(s, s.add(wanted, s.splat(beside)));
            let restored = s.mul(scale, stepped.scale_unit);
            let min = s.mul(s.sub(s.mul(restored, m.p), m.x), per_n);
            let min = self.min_step(s, s.max(s.mul(min, per_min), zero));
            let this = error(scale, min);
            let better = s.lt(this, best.2);
            best = (s.select(better, scale, best.0), s.select(better, min, best.1), s.select(better, this, best.2));
        }
        (stepped.scale, stepped.min) = (best.0, best.1);
    }

    /// What the steps are best multiples of, over all runs of a block.
    #[inline(always)]
    fn best_units<S: Simd<F = F>>(&self, s: S, m: &Moments<F>, stepped: &mut Stepped<F>) {
        let sum = |value: F| {
            s.load_lanes(&over_block(s.to_array(s.mul(value, self.share)), self.runs_per_block, |a, b| a + b))
        };
        let (scale, min) = (stepped.scale, stepped.min);
        let a = sum(s.mul(s.mul(scale, scale), m.pp));
        let p = sum(s.mul(scale, m.px));
        let (scale_unit, min_unit) = match self.form.rules.scheme {
            Scheme::Affine => {
                let b = sum(s.mul(s.mul(scale, min), m.p));
                let c = sum(s.mul(s.mul(min, min), m.n));
                let q = sum(s.mul(min, m.x));
                let determinant = s.sub(s.mul(a, c), s.mul(b, b));
                let per = inverse(s, determinant);
                let scale_unit = s.mul(s.sub(s.mul(p, c), s.mul(q, b)), per);
                let min_unit = s.mul(s.sub(s.mul(p, b), s.mul(q, a)), per);
                // Of no use where minima are none, or where rounding ate the determinant.
                let both = s.lt(s.mul(s.mul(a, c), s.splat(1e-4)), determinant);
                let alone = s.mul(p, inverse(s, a));
                let zero = s.splat(0.0);
                let usable = |x: F, otherwise: F| s.select(s.lt(zero, x), x, otherwise);
                let no_minima = s.lt(c, s.splat(f32::MIN_POSITIVE));
                let scale_unit = s.select(both, scale_unit, s.select(no_minima, alone, stepped.scale_unit));
                let min_unit = s.select(both, min_unit, stepped.min_unit);
                (usable(scale_unit, stepped.scale_unit), usable(min_unit, stepped.min_unit))
            }
            Scheme::Asymmetric | Scheme::Symmetric => {
                let some = s.lt(s.splat(f32::MIN_POSITIVE), a);
                (s.select(some, s.mul(p, inverse(s, a)), stepped.scale_unit), stepped.min_unit)
            }
        };
        (stepped.block_scale, stepped.scale_unit) = self.stored(s, scale_unit);
        (stepped.block_min, stepped.min_unit) = self.stored(s, min_unit);
    }
}

/// Writes one block: its runs are those from `first` on.
fn lay_out(block_type: BlockType, runs: &Runs, first: usize, codes: &[u8], out: &mut [u8]) {
    let step = |values: &[f32; LANES], j: usize| values[first + j] as i32 as u8;
    let all: &[u8; MOST] = match block_type.length() {
        MOST => codes.first_chunk().expect("a block has 256 codes"),
        _ => &[0; MOST],
    };
    let (scale, min) = (runs.scale[first], runs.min[first]);
    let (block_scale, block_min) = (runs.block_scale[first], runs.block_min[first]);
    match block_type {
        BlockType::Q4_0 | BlockType::Q5_0 => {
            put_half(out, 0, scale);
            put_codes(&mut out[2..], &codes[..32], if block_type.size() == 18 { 4 } else { 5 });
        }
        BlockType::Q4_1 | BlockType::Q5_1 => {
            put_half(out, 0, scale);
            put_half(out, 2, min);
            put_codes(&mut out[4..], &codes[..32], if block_type.size() == 20 { 4 } else { 5 });
        }
        BlockType::Q8_0 => {
            put_half(out, 0, scale);
            for (out, code) in out[2..].iter_mut().zip(codes) {
                *out = code.wrapping_sub(127);
            }
        }
        BlockType::Q2K => {
            for (j, out) in out[..16].iter_mut().enumerate() {
                *out = step(&runs.scale, j) | step(&runs.min, j) << 4;
            }
            put_quarters(&mut out[16..80], all, 32);
            put_half(out, 80, block_scale);
            put_half(out, 82, block_min);
        }
        BlockType::Q3K => {
            put_q3_k(out, all);
            let scales = std::array::from_fn(|j| step(&runs.scale, j).wrapping_add(32));
            out[96..108].copy_from_slice(&pack_q3_k_scales(&scales));
            put_half(out, 108, block_scale);
        }
        BlockType::Q4K | BlockType::Q5K => {
            put_half(out, 0, block_scale);
            put_half(out, 2, block_min);
            let [scales, minima] = [&runs.scale, &runs.min].map(|values| std::array::from_fn(|j| step(values, j)));
            out[4..16].copy_from_slice(&pack_k_scales(&scales, &minima));
            if block_type.size() == 144 {
                put_q4_k_or_q5_k::<4>(out, all);
            } else {
                put_q4_k_or_q5_k::<5>(out, all);
            }
        }
        BlockType::Q6K => {
            put_q6_k(out, all);
            for (j, out) in out[192..208].iter_mut().enumerate() {
                *out = step(&runs.scale, j);
            }
            put_half(out, 208, block_scale);
        }
        BlockType::Q2_0 | BlockType::Tq1_0 | BlockType::Tq2_0 => unreachable!("the type has no form"),
        BlockType::Iq4Nl | BlockType::Iq4Xs | BlockType::Mxfp4 | BlockType::Nvfp4 => {
            unreachable!("the type has no form")
        }
    }
}
