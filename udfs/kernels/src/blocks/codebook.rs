//! Blocks whose levels are not equally far apart: `iq4_nl` and `iq4_xs`, and the floats of four bits of `mxfp4` and `nvfp4`.

use super::decode::e8m0_half;
use super::lanes::{Batch, Parameters, part, range, scale_importance};
use super::reference::{self, to_ue4m3};
use super::scales::Levels;
use super::write::write;
use super::{IQ4_VALUES, ue4m3};
use crate::BlockType;
use crate::grid::inverse;
use crate::simd::{LANES, MAGIC, Simd, Step};

/// The levels of `iq4_nl` and `iq4_xs`.
#[derive(Clone, Copy)]
pub(crate) struct Iq4;

/// Where the levels of [`Iq4`] change, and by how much.
const IQ4_STEPS: [(f32, f32); 15] = {
    let mut steps = [(0.0, 0.0); 15];
    let mut i = 0;
    while i < 15 {
        let (low, high) = (IQ4_VALUES[i] as f32, IQ4_VALUES[i + 1] as f32);
        steps[i] = ((low + high) / 2.0, high - low);
        i += 1;
    }
    steps
};

impl Levels for Iq4 {
    #[inline(always)]
    fn zero(self) -> f32 {
        0.0
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        127.0
    }
    #[inline(always)]
    fn code<S: Simd>(self, s: S, y: S::F) -> S::F {
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let mut code = s.splat(MAGIC);
        for (at, _) in IQ4_STEPS {
            code = s.add(code, s.select(s.lt(y, s.splat(at)), zero, one));
        }
        code
    }
    #[inline(always)]
    fn level<S: Simd>(self, s: S, y: S::F) -> S::F {
        let zero = s.splat(0.0);
        // Three sums, for chains of additions that do not wait for one another; all are exact.
        let mut sums = [s.splat(IQ4_VALUES[0].into()), zero, zero];
        for (i, (at, step)) in IQ4_STEPS.into_iter().enumerate() {
            sums[i % 3] = s.add(sums[i % 3], s.select(s.lt(y, s.splat(at)), zero, s.splat(step)));
        }
        s.add(s.add(sums[0], sums[1]), sums[2])
    }
}

/// Floats of two bits of exponent and one of mantissa.
#[derive(Clone, Copy)]
pub(crate) struct E2m1;

impl E2m1 {
    /// The level nearest to a magnitude.
    #[inline(always)]
    fn magnitude<S: Simd>(self, s: S, y: S::F) -> S::F {
        // Adding and taking away rounds to multiples of 1/2, 1 or 2, which levels are below 2, below 4, and up to 6.
        let coarse = s.select(s.lt(y, s.splat(4.0)), s.splat(MAGIC), s.splat(2.0 * MAGIC));
        let magic = s.select(s.lt(y, s.splat(2.0)), s.splat(0.5 * MAGIC), coarse);
        s.min(s.sub(s.add(y, magic), magic), s.splat(6.0))
    }
}

impl Levels for E2m1 {
    #[inline(always)]
    fn zero(self) -> f32 {
        0.0
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        6.0
    }
    #[inline(always)]
    fn code<S: Simd>(self, s: S, y: S::F) -> S::F {
        let (zero, one, magnitude) = (s.splat(0.0), s.splat(1.0), s.abs(y));
        let mut code = s.splat(MAGIC);
        for at in [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] {
            code = s.add(code, s.select(s.lt(s.splat(at), magnitude), one, zero));
        }
        // The fourth bit is the sign; zero has none.
        s.add(code, s.select(s.lt(y, s.splat(-0.25)), s.splat(8.0), zero))
    }
    #[inline(always)]
    fn level<S: Simd>(self, s: S, y: S::F) -> S::F {
        let magnitude = self.magnitude(s, s.abs(y));
        s.select(s.lt(y, s.splat(0.0)), s.sub(s.splat(0.0), magnitude), magnitude)
    }
}

/// The squared error of magnitudes whose levels are multiples of `scale`, one a lane.
struct Loss<'a, F> {
    weights: &'a [F],
    importance: &'a [F],
    slope: F,
    scale: F,
}

impl<S: Simd> Step<S> for Loss<'_, S::F> {
    type Output = S::F;

    #[inline(always)]
    fn take(self, s: S) -> S::F {
        let Self { weights, importance, slope, scale } = self;
        let mut sums = [s.splat(0.0); 2];
        for (i, &w) in weights.iter().enumerate() {
            let magnitude = s.abs(w);
            let error = s.sub(magnitude, s.mul(E2m1.magnitude(s, s.mul(magnitude, slope)), scale));
            let weighted = match importance.get(i) {
                Some(&importance) => s.mul(error, importance),
                None => error,
            };
            sums[i % 2] = s.fma(weighted, error, sums[i % 2]);
        }
        s.add(sums[0], sums[1])
    }
}

/// The exponents that `mxfp4` tries, beside the one that has the greatest weight between 4 and 8.
const EXPONENTS: [i32; 3] = [0, 1, -1];

/// Blocks whose scale is a power of two: the best of three.
#[inline(always)]
pub(super) fn mxfp4<S: Simd>(s: S, batch: Batch<'_, S::F>, out: &mut [u8]) {
    let magnitude = s.to_array(range(s, batch.weights).magnitude(s));
    scale_importance(s, batch.importance);
    // Powers of two near the ends of f32 are ggml's.
    let exponent = magnitude.map(|m| (m.to_bits() >> 23) as i32 - 127);
    let usual = exponent.map(|e| e.abs() < 100);
    let mut unit = [0.0; LANES];
    for ((unit, e), usual) in unit.iter_mut().zip(exponent).zip(usual) {
        *unit = if usual { f32::from_bits(((127 - e) as u32) << 23) } else { 0.0 };
    }
    let unit = s.load_lanes(&unit);
    for w in batch.weights.iter_mut() {
        *w = s.mul(*w, unit);
    }
    let mut best = (s.splat(0.0), s.splat(f32::INFINITY));
    for step in EXPONENTS {
        let scale = s.splat(0.25 * 2f32.powi(step));
        let slope = s.splat(4.0 * 0.5f32.powi(step));
        let error = s.call(Loss { weights: batch.weights, importance: batch.importance, slope, scale });
        let better = s.lt(error, best.1);
        best = (s.select(better, s.splat(step as f32), best.0), s.select(better, error, best.1));
    }
    let mut parameters = Parameters::new();
    let steps = s.to_array(best.0);
    for lane in 0..LANES {
        let code = (exponent[lane] - 2 + steps[lane] as i32 + 127).clamp(0, 254) as u8;
        parameters.scale[0][lane] = code.into();
        // Twice the half is the scale.
        parameters.slope[0][lane] = if usual[lane] { 0.5 / e8m0_half(code) } else { 0.0 };
    }
    write(s, E2m1, &batch, &parameters, out);
    for (k, (x, out)) in batch.x.chunks_exact(32).zip(out.chunks_exact_mut(BlockType::Mxfp4.size())).enumerate() {
        if !usual[k] {
            reference::block(BlockType::Mxfp4, x, None, out);
        }
    }
}

/// The scales that `nvfp4` tries: codes beside that of a sixth of the greatest weight, which stand for 3/4 to 5/3 of it.
const CODES: std::ops::RangeInclusive<i32> = -3..=6;

/// Blocks of four runs, each with a scale in E4M3: the best of ten.
#[inline(always)]
pub(super) fn nvfp4<S: Simd>(s: S, batch: Batch<'_, S::F>, out: &mut [u8]) {
    const RUN: usize = 16;
    let mut parameters = Parameters::new();
    for (j, weights) in batch.weights.chunks_exact(RUN).enumerate() {
        let importance = part(batch.importance, j, RUN);
        scale_importance(s, importance);
        let plain = s.to_array(range(s, weights).magnitude(s)).map(|m| i32::from(to_ue4m3(m / 6.0)));
        let mut best = (s.load_lanes(&plain.map(|code| code as f32)), s.splat(f32::INFINITY));
        for step in CODES {
            let codes = plain.map(|code| (code + step).clamp(0, 0x7e) as u8);
            let scale = s.load_lanes(&codes.map(ue4m3));
            let slope = inverse(s, scale);
            let error = s.call(Loss { weights, importance, slope, scale });
            let better = s.lt(error, best.1);
            best = (s.select(better, s.load_lanes(&codes.map(f32::from)), best.0), s.select(better, error, best.1));
        }
        parameters.scale[j] = s.to_array(best.0);
        let scale = s.load_lanes(&parameters.scale[j].map(|code| ue4m3(code as u8)));
        parameters.slope[j] = s.to_array(inverse(s, scale));
    }
    write(s, E2m1, &batch, &parameters, out);
}
