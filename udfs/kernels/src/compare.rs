//! How alike two slices are.

use std::ops::Add;

use crate::simd::{Element, Kernel, LANES, Simd, for_dtype, sum_lanes};
use crate::weights::{Floats, Weights};
use crate::{Isa, KernelError, Result};

/// Sums over pairs (a, b), from which cosine similarity, SQNR and the greatest error of a slice, a tensor or a model
/// follow exactly: the sums of disjoint slices add up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PairSums {
    /// Pairs.
    pub n: u64,
    /// Σa².
    pub sum_aa: f64,
    /// Σb².
    pub sum_bb: f64,
    /// Σab.
    pub sum_ab: f64,
    /// Σ(a − b)².
    pub sum_ee: f64,
    /// max |a − b|.
    pub max_abs_error: f64,
}

impl PairSums {
    /// Σab / √(Σa² Σb²), within ±1; `None` if either slice is all zero.
    pub fn cosine_similarity(&self) -> Option<f64> {
        // One root, so that equal slices have exactly 1; two where the product leaves the range of f64.
        let product = self.sum_aa * self.sum_bb;
        let norms = if product.is_normal() { product.sqrt() } else { self.sum_aa.sqrt() * self.sum_bb.sqrt() };
        (norms != 0.0).then(|| (self.sum_ab / norms).clamp(-1.0, 1.0))
    }

    /// 10 log₁₀(Σa² / Σ(a − b)²) in dB: infinite if nothing was lost, `-inf` if a is all zero and b is not.
    pub fn sqnr_db(&self) -> f64 {
        if self.sum_ee == 0.0 { f64::INFINITY } else { 10.0 * (self.sum_aa / self.sum_ee).log10() }
    }
}

impl Add for PairSums {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            n: self.n + other.n,
            sum_aa: self.sum_aa + other.sum_aa,
            sum_bb: self.sum_bb + other.sum_bb,
            sum_ab: self.sum_ab + other.sum_ab,
            sum_ee: self.sum_ee + other.sum_ee,
            max_abs_error: if other.max_abs_error > self.max_abs_error || other.max_abs_error.is_nan() {
                other.max_abs_error
            } else {
                self.max_abs_error
            },
        }
    }
}

/// Cosine similarity of two slices of equal length, of any two dtypes; products and sums in f64, so that neither
/// magnitude nor length costs accuracy. `None` if either is all zero; NaN if either has one.
///
/// # Errors
/// If the lengths differ.
pub fn cosine_similarity(isa: Isa, a: Weights<'_>, b: Weights<'_>) -> Result<Option<f64>> {
    Ok(product_sums(isa, a, b)?.cosine_similarity())
}

/// The sums of [`pair_sums`] that cosine similarity needs, which cost less; the others may be zero.
///
/// # Errors
/// If the lengths differ.
pub fn product_sums(isa: Isa, a: Weights<'_>, b: Weights<'_>) -> Result<PairSums> {
    check_lengths(&a, &b)?;
    let mut scratch = [Vec::new(), Vec::new()];
    let [a, b] = floats(isa, [&a, &b], &mut scratch);
    if is_wide(&a, &b) {
        return Ok(pair_sums_wide(&a, &b));
    }
    let [ab, aa, bb] = for_dtype!(a.dtype, A => for_dtype!(b.dtype, B => {
        isa.run(Products::<A, B> { a: a.bytes, b: b.bytes, dtypes: std::marker::PhantomData })
    }));
    Ok(PairSums { n: a.len() as u64, sum_aa: aa, sum_bb: bb, sum_ab: ab, ..PairSums::default() })
}

/// All sums over the pairs of two slices of equal length, of any two dtypes, in f64.
///
/// # Errors
/// If the lengths differ.
pub fn pair_sums(isa: Isa, a: Weights<'_>, b: Weights<'_>) -> Result<PairSums> {
    check_lengths(&a, &b)?;
    let mut scratch = [Vec::new(), Vec::new()];
    let [a, b] = floats(isa, [&a, &b], &mut scratch);
    if is_wide(&a, &b) {
        return Ok(pair_sums_wide(&a, &b));
    }
    Ok(for_dtype!(a.dtype, A => for_dtype!(b.dtype, B => {
        isa.run(Pairs::<A, B> { a: a.bytes, b: b.bytes, dtypes: std::marker::PhantomData })
    })))
}

/// True if an element of either may be no f32.
fn is_wide(a: &Floats<'_>, b: &Floats<'_>) -> bool {
    a.dtype.exceeds_f32() || b.dtype.exceeds_f32()
}

fn floats<'s>(isa: Isa, weights: [&Weights<'s>; 2], scratch: &'s mut [Vec<[u8; 4]>; 2]) -> [Floats<'s>; 2] {
    let [first, second] = scratch;
    [weights[0].floats(isa, first), weights[1].floats(isa, second)]
}

/// The sums of slices of which one is binary64, element i in lane i mod 16: the same on every instruction set.
fn pair_sums_wide(a: &Floats<'_>, b: &Floats<'_>) -> PairSums {
    for_dtype!(a.dtype, A => for_dtype!(b.dtype, B => {
        let mut lanes = [[0.0; LANES]; 4];
        let mut max = 0.0f64;
        let elements = a.bytes.chunks_exact(A::SIZE).map(A::wide).zip(b.bytes.chunks_exact(B::SIZE).map(B::wide));
        for (i, (x, y)) in elements.enumerate() {
            let error = x - y;
            for (lane, product) in lanes.iter_mut().zip([x * x, y * y, x * y, error * error]) {
                lane[i % LANES] += product;
            }
            max = if error.abs() > max || error.is_nan() { error.abs() } else { max };
        }
        let [sum_aa, sum_bb, sum_ab, sum_ee] = lanes.map(sum_lanes);
        PairSums { n: a.len() as u64, sum_aa, sum_bb, sum_ab, sum_ee, max_abs_error: max }
    }))
}

fn check_lengths(a: &Weights<'_>, b: &Weights<'_>) -> Result<()> {
    if a.len() == b.len() {
        return Ok(());
    }
    Err(KernelError::Mismatch { what: "elements of the second slice", found: b.len(), expected: a.len() })
}

/// The last elements, zeros after them.
#[inline(always)]
fn load_zero_padded<S: Simd, E: Element>(s: S, bytes: &[u8]) -> S::F {
    s.load_lanes(&std::array::from_fn(|i| bytes.get(i * E::SIZE..).filter(|b| !b.is_empty()).map_or(0.0, E::one)))
}

/// Runs `$body` for the vectors of two slices, the last padded with zeros. A macro, since a closure that is not inlined
/// would lose the instruction set.
macro_rules! for_each_pair {
    ($s:expr, $A:ident, $B:ident, $slices:expr, |$a:ident, $b:ident| $body:block) => {
        let (va, vb) = ($slices.a.chunks_exact(LANES * $A::SIZE), $slices.b.chunks_exact(LANES * $B::SIZE));
        let (ta, tb) = (va.remainder(), vb.remainder());
        for (a, b) in va.zip(vb) {
            let ($a, $b) = ($A::load($s, a), $B::load($s, b));
            $body
        }
        if !ta.is_empty() {
            let ($a, $b) = (load_zero_padded::<S, $A>($s, ta), load_zero_padded::<S, $B>($s, tb));
            $body
        }
    };
}

struct Products<'a, A, B> {
    a: &'a [u8],
    b: &'a [u8],
    dtypes: std::marker::PhantomData<(A, B)>,
}

impl<A: Element, B: Element> Kernel for Products<'_, A, B> {
    /// Σab, Σa², Σb².
    type Output = [f64; 3];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut sums = s.products_zero();
        for_each_pair!(s, A, B, self, |a, b| { s.products_f64(a, b, &mut sums) });
        s.products_to_arrays(&sums).map(sum_lanes)
    }
}

struct Pairs<'a, A, B> {
    a: &'a [u8],
    b: &'a [u8],
    dtypes: std::marker::PhantomData<(A, B)>,
}

impl<A: Element, B: Element> Kernel for Pairs<'_, A, B> {
    type Output = PairSums;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> PairSums {
        let zero = s.splat(0.0);
        let (mut sums, mut squares) = (s.products_zero(), s.products_zero());
        let (mut max, mut bad) = (zero, zero);
        for_each_pair!(s, A, B, self, |a, b| {
            let error = s.sub(a, b);
            s.products_f64(a, b, &mut sums);
            s.products_f64(error, error, &mut squares);
            max = s.max(max, s.abs(error));
            bad = s.fma(error, zero, bad);
        });
        let [ab, aa, bb] = s.products_to_arrays(&sums).map(sum_lanes);
        let ee = sum_lanes(s.products_to_arrays(&squares)[0]);
        let finite = s.bits(s.lt(bad, s.splat(1.0))) == u16::MAX;
        let greatest = s.to_array(max).into_iter().fold(0.0, f32::max);
        PairSums {
            n: (self.a.len() / A::SIZE) as u64,
            sum_aa: aa,
            sum_bb: bb,
            sum_ab: ab,
            sum_ee: ee,
            // An instruction set's maximum may drop a NaN.
            max_abs_error: if finite { greatest.into() } else { ee.sqrt() },
        }
    }
}
