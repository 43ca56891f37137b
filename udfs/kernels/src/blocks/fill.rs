//! Blocks of the least squared error that a search finds: sixteen blocks at once, one a lane.
//!
//! Each run of weights that shares a scale is searched on its own. Where scales and minima are integers in steps that a block
//! shares, [`steps`](super::steps) then finds these. Codes follow from the weights and the parameters as stored.

use super::affine::{Effort, FindLevels, middle};
use super::codebook::{Iq4, mxfp4, nvfp4};
use super::lanes::{Batch, Parameters, part, range, scale_importance};
use super::measure::load;
use super::scales::{Even, Levels, Trials, find_scale};
use super::steps::{Found, Refine, Rounds, Steps};
use super::write::write;
use crate::BlockType;
use crate::grid::{Range, Rules, inverse};
use crate::search::{Groups, Search};
use crate::simd::{Kernel, LANES, Simd};
use crate::types::{Bits, ParameterDtype, Scheme};

/// How blocks of a type are filled.
#[derive(Clone, Copy)]
enum Form {
    /// A scale for each block.
    Symmetric(Rules),
    /// A scale and a minimum for each block.
    Minimum(Rules, &'static Effort),
    /// Scales and minima in steps.
    Affine(Rules, Steps, &'static Effort, Rounds),
    /// Signed scales in steps, levels from minus this to this less one.
    Signed(f32, Steps, &'static Trials, Rounds),
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
    Nvfp4,
}

/// Whether there is a search for a block type.
pub(super) fn searches(block_type: BlockType) -> bool {
    Form::of(block_type).is_some()
}

/// The efforts of the types with minima. Steps are found after the search, which therefore has fewer moves than that of
/// integers in groups.
const TWO: Effort = Effort { shrink: &[0.55, 0.75], moves: &[(1.0, 0.25), (1.0, -0.25), (1.0, 0.0)] };
const FOUR: Effort =
    Effort { shrink: &[0.72, 0.8, 0.88, 0.96], moves: &[(1.03, 0.2), (0.97, -0.2), (1.03, -0.2), (0.97, 0.2)] };
const FIVE: Effort =
    Effort { shrink: &[0.88, 0.94, 1.0], moves: &[(1.02, 0.25), (0.98, -0.25), (1.02, -0.25), (0.98, 0.25)] };

/// Those of the types whose minima are not in steps.
const FOUR_ALONE: Effort = Effort {
    shrink: &[0.72, 0.8, 0.88, 0.96],
    moves: &[
        (1.03, 0.2),
        (0.97, -0.2),
        (1.03, -0.2),
        (0.97, 0.2),
        (1.04, 0.0),
        (0.96, 0.0),
        (1.0, 0.1),
        (1.0, -0.1),
        (1.0, 0.0),
    ],
};
const FIVE_ALONE: Effort = Effort {
    shrink: &[0.88, 0.94, 1.0],
    moves: &[
        (1.02, 0.25),
        (0.98, -0.25),
        (1.02, -0.25),
        (0.98, 0.25),
        (1.03, 0.0),
        (0.97, 0.0),
        (1.008, 0.12),
        (0.992, -0.12),
        (1.0, 0.0),
    ],
};

/// And of those without minima.
const THREE: Trials = Trials { starts: &[-1.0, 1.3, -1.25], factors: &[1.08, 0.92, 1.04, 0.96, 1.0] };
const SIX: Trials = Trials { starts: &[-1.0], factors: &[1.03, 0.97, 1.015, 0.985, 1.007, 0.993, 1.0] };
const IQ4: Trials = Trials { starts: &[-1.0, -0.86, 1.0], factors: &[1.05, 0.95, 1.025, 0.975, 1.012, 0.988, 1.0] };

/// Codes and steps are found once more for the steps that follow from the search.
const ONCE: Rounds = &[&[]];
/// And from scales of one step more and one less, which matters where scales are coarse for the levels.
const BESIDE: Rounds = &[&[1.0, -1.0]];

impl Form {
    fn of(block_type: BlockType) -> Option<Self> {
        let rules = |bits: Bits, scheme, stored| {
            let max_code = f32::from(bits.max_code());
            Rules { bits, scheme, max_code, half: (max_code + 1.0) / 2.0, stored }
        };
        let symmetric = |bits| Self::Symmetric(rules(bits, Scheme::Symmetric, ParameterDtype::F16));
        let minimum = |bits, effort| Self::Minimum(rules(bits, Scheme::Affine, ParameterDtype::F16), effort);
        let affine = |bits, top, (effort, rounds)| {
            Self::Affine(rules(bits, Scheme::Affine, ParameterDtype::F32), Steps::Positive(top), effort, rounds)
        };
        match block_type {
            BlockType::Q4_0 => Some(symmetric(Bits::Four)),
            BlockType::Q5_0 => Some(symmetric(Bits::Five)),
            BlockType::Q4_1 => Some(minimum(Bits::Four, &FOUR_ALONE)),
            BlockType::Q5_1 => Some(minimum(Bits::Five, &FIVE_ALONE)),
            BlockType::Q8_0 => {
                // From -127 to 127, as runtimes expect.
                let rules = rules(Bits::Eight, Scheme::Symmetric, ParameterDtype::F16);
                Some(Self::Symmetric(Rules { max_code: 254.0, half: 127.0, ..rules }))
            }
            BlockType::Q2K => Some(affine(Bits::Two, 15.0, (&TWO, ONCE))),
            BlockType::Q4K => Some(affine(Bits::Four, 63.0, (&FOUR, BESIDE))),
            BlockType::Q5K => Some(affine(Bits::Five, 63.0, (&FIVE, BESIDE))),
            BlockType::Q3K => Some(Self::Signed(4.0, Steps::Signed(32.0), &THREE, ONCE)),
            BlockType::Q6K => Some(Self::Signed(32.0, Steps::Signed(128.0), &SIX, ONCE)),
            BlockType::Iq4Nl => Some(Self::Iq4Nl),
            BlockType::Iq4Xs => Some(Self::Iq4Xs),
            BlockType::Mxfp4 => Some(Self::Mxfp4),
            BlockType::Nvfp4 => Some(Self::Nvfp4),
            // Three levels or four: ggml's scale is the greatest magnitude, for weights that were trained so.
            BlockType::Q2_0 | BlockType::Tq1_0 | BlockType::Tq2_0 => None,
        }
    }
}

/// Fills blocks with the weights `x`, whole blocks of rows as long as the importance, from weight `channel` of a row on. Types
/// without a search are left alone.
pub(super) struct Piece<'a> {
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
        let Self { block_type, x, importance, channel, out } = self;
        let Some(form) = Form::of(block_type) else { return };
        let (length, size) = (block_type.length(), block_type.size());
        let zero = s.splat(0.0);
        let mut weights = vec![zero; length];
        let mut weighting = vec![zero; if importance.is_some() { length } else { 0 }];
        let pieces = x.chunks(LANES * length).zip(out.chunks_mut(LANES * size));
        for (k, (x, out)) in pieces.enumerate() {
            let starts = starts(x.len() / length, length);
            transpose(s, x, &starts, &mut weights);
            if let Some(importance) = importance {
                let first = channel + k * LANES * length;
                transpose(s, importance, &starts.map(|start| (first + start) % importance.len()), &mut weighting);
            }
            let batch = Batch { block_type, x, weights: &mut weights, importance: &mut weighting };
            match form {
                Form::Symmetric(rules) => symmetric(s, &rules, batch, out),
                Form::Minimum(rules, effort) => minimum(s, &rules, effort, batch, out),
                Form::Affine(rules, steps, effort, rounds) => affine(s, &rules, steps, effort, rounds, batch, out),
                Form::Signed(half, steps, trials, rounds) => {
                    signed(s, Even::signed(half), steps, trials, rounds, batch, out)
                }
                Form::Iq4Nl => iq4_nl(s, batch, out),
                Form::Iq4Xs => signed(s, Iq4, Steps::Signed(32.0), &IQ4, ONCE, batch, out),
                Form::Mxfp4 => mxfp4(s, batch, out),
                Form::Nvfp4 => nvfp4(s, batch, out),
            }
        }
    }
}

/// Where the first `count` blocks start; the last is repeated.
#[inline(always)]
fn starts(count: usize, length: usize) -> [usize; LANES] {
    let mut starts = [0; LANES];
    for (lane, start) in starts.iter_mut().enumerate() {
        *start = lane.min(count - 1) * length;
    }
    starts
}

/// Sixteen blocks, transposed.
#[inline(always)]
fn transpose<S: Simd>(s: S, x: &[f32], starts: &[usize; LANES], out: &mut [S::F]) {
    for (first, out) in out.chunks_exact_mut(LANES).enumerate() {
        let mut rows = [s.splat(0.0); LANES];
        for (row, &start) in rows.iter_mut().zip(starts) {
            *row = load(s, &x[start + first * LANES..]);
        }
        let columns = s.transpose(&rows);
        for (out, &column) in out.iter_mut().zip(&columns) {
            *out = column;
        }
    }
}

/// Blocks of one run, whose scale is f16, by the search that grouped integers have.
#[inline(always)]
fn symmetric<S: Simd>(s: S, rules: &Rules, batch: Batch<'_, S::F>, out: &mut [u8]) {
    let range = range(s, batch.weights);
    scale_importance(s, batch.importance);
    let (minmax, _) = rules.minmax(s, range);
    let groups = Groups { weights: &mut *batch.weights, importance: batch.importance };
    let grid = s.call(Search { rules, groups, range, minmax });
    let mut parameters = Parameters::new();
    parameters.scale[0] = s.to_array(grid.scale);
    parameters.slope[0] = s.to_array(inverse(s, grid.scale));
    parameters.offset[0] = s.to_array(grid.zero);
    write(s, Even { zero: 0.0, top: rules.max_code }, &batch, &parameters, out);
}

/// Blocks of one run, whose scale and minimum are f16.
#[inline(always)]
fn minimum<S: Simd>(s: S, rules: &Rules, effort: &Effort, batch: Batch<'_, S::F>, out: &mut [u8]) {
    let range = range(s, batch.weights);
    scale_importance(s, batch.importance);
    let (weights, importance) = (&mut *batch.weights, &*batch.importance);
    let fit = s.call(FindLevels { effort, top: rules.max_code, range, free: true, weights, importance });
    let (centre, radius) = middle(s, range);
    let scale = rules.store_scale(s, s.mul(fit.scale, radius));
    let base = s.fma(fit.base, radius, centre);
    let min = s.add(rules.store(s, s.sub(base, s.mul(s.splat(rules.half), scale))), s.splat(0.0));
    let mut parameters = Parameters::new();
    let slope = inverse(s, scale);
    parameters.scale[0] = s.to_array(scale);
    parameters.min[0] = s.to_array(min);
    parameters.slope[0] = s.to_array(slope);
    parameters.offset[0] = s.to_array(s.sub(s.splat(0.0), s.mul(min, slope)));
    write(s, Even { zero: 0.0, top: rules.max_code }, &batch, &parameters, out);
}

/// Blocks whose runs have scales and minima in steps.
#[inline(always)]
fn affine<S: Simd>(
    s: S,
    rules: &Rules,
    steps: Steps,
    effort: &Effort,
    rounds: Rounds,
    batch: Batch<'_, S::F>,
    out: &mut [u8],
) {
    let zero = s.splat(0.0);
    let run = batch.block_type.run();
    let mut found = Found::new(s);
    for (j, weights) in batch.weights.chunks_exact_mut(run).enumerate() {
        let range = range(s, weights);
        // Minima are not positive.
        let range = Range { min: s.min(range.min, zero), max: range.max };
        let importance = part(batch.importance, j, run);
        found.share[j] = scale_importance(s, importance);
        let fit = s.call(FindLevels { effort, top: rules.max_code, range, free: false, weights, importance });
        let (centre, radius) = middle(s, range);
        let base = s.fma(fit.base, radius, centre);
        found.scale[j] = s.mul(fit.scale, radius);
        found.min[j] = s.sub(base, s.mul(s.splat(rules.half), found.scale[j]));
        (found.centre[j], found.radius[j]) = (centre, radius);
    }
    let levels = Even { zero: 0.0, top: rules.max_code };
    let mut parameters = Parameters::new();
    let refine =
        Refine { levels, steps, rounds, run, found: &mut found, z: batch.weights, importance: batch.importance };
    s.call(refine.into(&mut parameters));
    write(s, levels, &batch, &parameters, out);
}

/// Blocks whose runs have signed scales in steps.
#[inline(always)]
fn signed<S: Simd, L: Levels>(
    s: S,
    levels: L,
    steps: Steps,
    trials: &Trials,
    rounds: Rounds,
    batch: Batch<'_, S::F>,
    out: &mut [u8],
) {
    let run = batch.block_type.run();
    let mut found = Found::new(s);
    for (j, weights) in batch.weights.chunks_exact_mut(run).enumerate() {
        let range = range(s, weights);
        let importance = part(batch.importance, j, run);
        found.share[j] = scale_importance(s, importance);
        (found.centre[j], found.radius[j]) = (s.splat(0.0), range.magnitude(s));
        found.scale[j] = s.mul(s.call(find_scale(levels, trials, range, weights, importance)), found.radius[j]);
    }
    let mut parameters = Parameters::new();
    let refine =
        Refine { levels, steps, rounds, run, found: &mut found, z: batch.weights, importance: batch.importance };
    s.call(refine.into(&mut parameters));
    write(s, levels, &batch, &parameters, out);
}

#[inline(always)]
fn iq4_nl<S: Simd>(s: S, batch: Batch<'_, S::F>, out: &mut [u8]) {
    let range = range(s, batch.weights);
    scale_importance(s, batch.importance);
    let scale = s.call(find_scale(Iq4, &IQ4, range, batch.weights, batch.importance));
    let scale = s.round_f16(s.mul(scale, range.magnitude(s)));
    let mut parameters = Parameters::new();
    parameters.scale[0] = s.to_array(scale);
    parameters.slope[0] = s.to_array(inverse(s, scale));
    write(s, Iq4, &batch, &parameters, out);
}
