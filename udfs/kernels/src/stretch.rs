//! The `unbiased` method: after the search of `mse`, the levels of each group are stretched.
//!
//! Where the squared error is least it is orthogonal to what weights are restored to, so Σ w·ŵ = Σ ŵ² = Σ w² − Σ (w − ŵ)²:
//! restored weights are a little smaller than the weights, and so is all that is made with them. The factor
//! Σ i·w² / Σ i·w·ŵ takes that away, at the cost of an error that is larger by the square of its part.

use crate::grid::{Grid, Range, Rules, inverse, magic_code};
use crate::search::{Groups, middle};
use crate::simd::{MAGIC, Simd, Step};
use crate::types::ParameterDtype;

/// Factors beyond are of groups that have little left of their weights: they stay as they are.
const FACTORS: [f32; 2] = [0.5, 2.0];

/// The greatest number that f16 holds.
const LARGEST: f32 = 65504.0;

/// Stretches the levels of `grid` for each group. Codes, and the weights as the search left them, are those of `grid`.
pub(crate) struct Stretch<'a, F> {
    pub rules: &'a Rules,
    pub groups: Groups<'a, F>,
    pub range: Range<F>,
    pub grid: Grid<F>,
}

impl<S: Simd> Step<S> for Stretch<'_, S::F> {
    type Output = Grid<S::F>;

    #[inline(always)]
    fn take(self, s: S) -> Grid<S::F> {
        stretch(s, self)
    }
}

#[inline(always)]
fn stretch<S: Simd>(s: S, step: Stretch<'_, S::F>) -> Grid<S::F> {
    let Stretch { rules, groups, range, grid } = step;
    // In units of the greatest magnitude, so that no square overflows or vanishes.
    let unit = inverse(s, range.magnitude(s));
    let (centre, radius) = middle(s, rules, range);
    let (centre, radius) = (s.mul(centre, unit), s.mul(radius, unit));
    let (scale, min) = (s.mul(grid.scale, unit), s.mul(grid.min, unit));
    let inverse_scale = inverse(s, scale);
    let offset = s.fma(s.sub(s.splat(0.0), min), inverse_scale, grid.zero);
    let (magic_zero, top) = (s.add(grid.zero, s.splat(MAGIC)), s.splat(rules.max_code));
    let (mut squares, mut products) = (s.splat(0.0), s.splat(0.0));
    for (j, &z) in groups.weights.iter().enumerate() {
        let w = s.fma(z, radius, centre);
        let code = magic_code(s, s.fma(w, inverse_scale, offset), top);
        let restored = s.fma(s.sub(code, magic_zero), scale, min);
        let weighted = if groups.importance.is_empty() { w } else { s.mul(w, groups.importance[j]) };
        squares = s.fma(weighted, w, squares);
        products = s.fma(weighted, restored, products);
    }
    let one = s.splat(1.0);
    let factor = s.mul(squares, inverse(s, products));
    let factor = s.select(s.lt(factor, s.splat(FACTORS[0])), one, factor);
    let factor = s.select(s.lt(s.splat(FACTORS[1]), factor), one, factor);
    let [scale, min] = [grid.scale, grid.min].map(|parameter| s.mul(parameter, factor));
    let stretched = Grid { scale: rules.store_scale(s, scale), min: rules.store(s, min), zero: grid.zero };
    match rules.stored {
        ParameterDtype::F32 => stretched,
        ParameterDtype::F16 => {
            let fits = s.lt(s.max(s.abs(scale), s.abs(min)), s.splat(LARGEST));
            Grid {
                scale: s.select(fits, stretched.scale, grid.scale),
                min: s.select(fits, stretched.min, grid.min),
                zero: grid.zero,
            }
        }
    }
}
