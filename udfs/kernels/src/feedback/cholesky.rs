//! R of H = R D Rᵀ, by Cholesky's method on H turned by 180 degrees: the last channel in the order of rounding is the first
//! row, so that the factor needs no inverse.
//!
//! Rows of L are found in groups of sixteen, one a lane. Row a, column b of L is (A_ab - Σ_{c<b} L_ac L_bc) / L_bb, and the
//! sums run over c = 0, 1, ... on every instruction set.

use super::moments::MomentBlock;
use super::panels::{PANEL, multiply, panel_start};
use crate::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// The least that may be left of a diagonal element, as a part of it. Rounding leaves about 2⁻²⁴ of it.
const LEAST: f32 = 1e-6;

/// R in panels and the diagonal of D by place, of the moments with `added` on their diagonal, channels in `order`.
///
/// # Errors
/// The place in the order at which the moments turn out not to be positive definite.
pub(super) fn factorize(
    isa: Isa,
    block: &MomentBlock<'_>,
    order: &[u32],
    added: f32,
) -> Result<(Vec<f32>, Vec<f32>), usize> {
    let size = order.len();
    let padded = size.next_multiple_of(LANES);
    let lower = isa.run(Cholesky { block, order, added, padded }).map_err(|row| padded - 1 - row)?;
    // Row a of L in panels of rows: L_ac is number a % PANEL of the panel's column c.
    let at = |a: usize, c: usize| lower[panel_start(a / PANEL) + c * PANEL + a % PANEL];
    let panels = size.div_ceil(PANEL);
    let (mut out, mut diagonal) = (vec![0.0; panel_start(panels)], Vec::with_capacity(size));
    for j in 0..size {
        let b = padded - 1 - j;
        diagonal.push(at(b, b) * at(b, b));
        let unit = 1.0 / at(b, b);
        let panel = &mut out[panel_start(j / PANEL)..];
        for k in 0..j {
            panel[k * PANEL + j % PANEL] = at(padded - 1 - k, b) * unit;
        }
    }
    Ok((out, diagonal))
}

/// The lower triangle L in panels of rows. Rows before the moments' own are those of the identity.
struct Cholesky<'a> {
    block: &'a MomentBlock<'a>,
    order: &'a [u32],
    added: f32,
    padded: usize,
}

impl Cholesky<'_> {
    /// Element (a, b) of the matrix.
    fn element(&self, a: usize, b: usize) -> f32 {
        let channel = |a: usize| self.order.get(self.padded - 1 - a).map(|&channel| channel as usize);
        match (channel(a), channel(b)) {
            (Some(x), Some(y)) if a == b => self.block.at(x, y) + self.added,
            (Some(x), Some(y)) => self.block.at(x, y),
            _ => f32::from(u8::from(a == b)),
        }
    }
}

impl Kernel for Cholesky<'_> {
    type Output = Result<Vec<f32>, usize>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut lower = vec![0.0f32; panel_start(self.padded / PANEL)];
        // Of the group's rows, the columns so far with their sign changed.
        let mut columns = vec![s.splat(0.0); self.padded];
        for first in (0..self.padded).step_by(LANES) {
            for panel in 0..(first + LANES) / PANEL {
                let begin = panel * PANEL;
                let factors = &mut lower[panel_start(panel)..panel_start(panel + 1)];
                if begin >= first {
                    // Rows of the group, whose columns so far are those just found.
                    for (factors, &column) in factors.chunks_exact_mut(PANEL).zip(&columns[..begin]) {
                        let found = s.to_array(column);
                        for (t, factor) in factors.iter_mut().enumerate() {
                            *factor = -found[begin - first + t];
                        }
                    }
                }
                let mut sums = [s.splat(0.0); PANEL];
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load_lanes(&std::array::from_fn(|lane| self.element(first + lane, begin + t)));
                }
                let mut sums = multiply(s, factors, &columns[..begin], sums);
                for t in 0..PANEL {
                    let column = begin + t;
                    for u in 0..t {
                        sums[t] = s.fma(s.splat(factors[(begin + u) * PANEL + t]), columns[begin + u], sums[t]);
                    }
                    if begin >= first {
                        let pivot = s.to_array(sums[t])[column - first];
                        if !(pivot > LEAST * self.element(column, column) && pivot.is_finite()) {
                            return Err(column);
                        }
                        factors[column * PANEL + t] = pivot.sqrt();
                    }
                    let diagonal = factors[column * PANEL + t];
                    columns[column] = s.mul(sums[t], s.splat(-1.0 / diagonal));
                    if begin >= first {
                        let found = s.to_array(columns[column]);
                        for row in t + 1..PANEL {
                            factors[column * PANEL + row] = -found[begin - first + row];
                        }
                    }
                }
            }
        }
        Ok(lower)
    }
}
