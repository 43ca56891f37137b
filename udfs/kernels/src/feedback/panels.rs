//! Products of panels of a triangular matrix with columns of rows, sixteen rows at once.

use crate::simd::Simd;

/// Columns of a panel. With sixteen lanes in two registers of AVX2, the sums of four columns and what they are made of stay
/// in registers, and there are as many sums as its units work on at once.
pub(super) const PANEL: usize = 4;

/// `sums[t] = fma(panel[k][t], columns[k], sums[t])` for k = 0, 1, ... in this order. A panel has [`PANEL`] numbers for
/// each k.
#[inline(always)]
pub(super) fn multiply<S: Simd>(s: S, panel: &[f32], columns: &[S::F], sums: [S::F; PANEL]) -> [S::F; PANEL] {
    let [mut a, mut b, mut c, mut d] = sums;
    for (factors, &column) in panel.chunks_exact(PANEL).zip(columns) {
        a = s.fma(s.splat(factors[0]), column, a);
        b = s.fma(s.splat(factors[1]), column, b);
        c = s.fma(s.splat(factors[2]), column, c);
        d = s.fma(s.splat(factors[3]), column, d);
    }
    [a, b, c, d]
}

/// Where panel `p` of a triangular matrix begins: panel q has `PANEL` numbers for each of the `PANEL * (q + 1)` columns up to
/// its own last.
pub(super) const fn panel_start(p: usize) -> usize {
    PANEL * PANEL * (p * (p + 1) / 2)
}
