//! The levels that a group's codes stand for, and the way they follow from the group's range.

use crate::simd::{MAGIC, Simd};
use crate::types::{Bits, ParameterDtype, Scheme, Settings};

/// The levels of sixteen groups, one a lane: code q stands for `scale * (q - zero) + min`. `zero` is 0 for the affine
/// scheme, `min` is 0 for the others.
#[derive(Clone, Copy)]
pub(crate) struct Grid<F> {
    pub scale: F,
    pub min: F,
    pub zero: F,
}

/// The least and greatest weight of sixteen groups.
#[derive(Clone, Copy)]
pub(crate) struct Range<F> {
    pub min: F,
    pub max: F,
}

impl<F: Copy> Range<F> {
    /// Both zeros made +0, whose sign an instruction set's minimum leaves open.
    #[inline(always)]
    pub(crate) fn new<S: Simd<F = F>>(s: S, min: F, max: F) -> Self {
        let zero = s.splat(0.0);
        Self { min: s.add(min, zero), max: s.add(max, zero) }
    }

    /// max |w|.
    #[inline(always)]
    pub(crate) fn magnitude<S: Simd<F = F>>(&self, s: S) -> F {
        s.max(s.abs(self.min), s.abs(self.max))
    }
}

/// The settings as the kernels need them.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub bits: Bits,
    pub scheme: Scheme,
    /// The greatest code.
    pub max_code: f32,
    /// 2^(bits - 1): the zero point of the symmetric scheme.
    pub half: f32,
    pub stored: ParameterDtype,
}

impl Rules {
    pub(crate) fn new(settings: &Settings, stored: ParameterDtype) -> Self {
        let max_code = f32::from(settings.bits.max_code());
        Self { bits: settings.bits, scheme: settings.scheme, max_code, half: (max_code + 1.0) / 2.0, stored }
    }

    /// A minimum as it is stored.
    #[inline(always)]
    pub(crate) fn store<S: Simd>(&self, s: S, x: S::F) -> S::F {
        match self.stored {
            ParameterDtype::F16 => s.round_f16(x),
            ParameterDtype::F32 => x,
        }
    }

    /// A scale as it is stored; one whose reciprocal overflows becomes 0.
    #[inline(always)]
    pub(crate) fn store_scale<S: Simd>(&self, s: S, x: S::F) -> S::F {
        let tiny = s.lt(s.abs(x), s.splat(f32::MIN_POSITIVE));
        s.select(tiny, s.splat(0.0), self.store(s, x))
    }

    /// The grid that `minmax` gives, and the lanes whose parameters f16 does not hold: those where rounding moves some
    /// level by more than a quarter of a step.
    #[inline(always)]
    pub(crate) fn minmax<S: Simd>(&self, s: S, range: Range<S::F>) -> (Grid<S::F>, u16) {
        let zero = s.splat(0.0);
        let top = s.splat(self.max_code);
        let (scale, min) = match self.scheme {
            Scheme::Affine => (s.div(s.sub(range.max, range.min), top), range.min),
            Scheme::Asymmetric => (s.div(s.sub(s.max(range.max, zero), s.min(range.min, zero)), top), zero),
            Scheme::Symmetric => {
                // The greater magnitude falls on the extra level, code 0, whatever its sign.
                let positive = s.lt(s.abs(range.min), range.max);
                let extreme = s.select(positive, range.max, range.min);
                (s.add(s.div(extreme, s.splat(-self.half)), zero), zero)
            }
        };
        let grid_scale = self.store_scale(s, scale);
        // Without a scale the group becomes one value, that of its range which is nearest to zero.
        let flat = s.lt(s.abs(grid_scale), s.splat(f32::MIN_POSITIVE));
        let nearest_zero = s.min(s.max(range.min, zero), range.max);
        let min = match self.scheme {
            Scheme::Affine => s.select(flat, nearest_zero, min),
            Scheme::Asymmetric | Scheme::Symmetric => min,
        };
        let grid_min = s.add(self.store(s, min), zero);
        let grid_zero = match self.scheme {
            Scheme::Affine => zero,
            Scheme::Asymmetric => {
                let low = s.sub(zero, s.min(range.min, zero));
                round_code(s, s.mul(low, inverse(s, grid_scale)), top)
            }
            Scheme::Symmetric => s.splat(self.half),
        };
        let moved = s.fma(s.abs(s.sub(grid_scale, scale)), top, s.abs(s.sub(grid_min, min)));
        let quarter = s.mul(s.abs(scale), s.splat(0.25));
        let lost = match self.stored {
            ParameterDtype::F16 => s.bits(s.lt(quarter, moved)),
            ParameterDtype::F32 => 0,
        };
        (Grid { scale: grid_scale, min: grid_min, zero: grid_zero }, lost)
    }
}

/// 1 / x, and 0 for 0.
#[inline(always)]
pub(crate) fn inverse<S: Simd>(s: S, x: S::F) -> S::F {
    let is_zero = s.lt(s.abs(x), s.splat(f32::MIN_POSITIVE));
    s.select(is_zero, s.splat(0.0), s.div(s.splat(1.0), x))
}

/// `MAGIC` + the code nearest to x: clamped to 0..=top, ties to even.
#[inline(always)]
pub(crate) fn magic_code<S: Simd>(s: S, x: S::F, top: S::F) -> S::F {
    s.add(s.min(s.max(x, s.splat(0.0)), top), s.splat(MAGIC))
}

/// The code nearest to x.
#[inline(always)]
pub(crate) fn round_code<S: Simd>(s: S, x: S::F, top: S::F) -> S::F {
    s.sub(magic_code(s, x, top), s.splat(MAGIC))
}
