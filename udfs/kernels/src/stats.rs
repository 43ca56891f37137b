//! The range and distribution of a slice.

use std::ops::Add;

use crate::Isa;
use crate::simd::{self, Element, Kernel, LANES, Simd, for_dtype, sum_lanes};
use crate::weights::Weights;

/// Counts, extremes and power sums, of which those of disjoint slices add up. Elements that are not finite are counted
/// and take no part in the rest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stats {
    /// Elements.
    pub n: u64,
    /// NaN among them.
    pub nans: u64,
    /// Infinities among them.
    pub infinities: u64,
    /// Zeros of either sign among them.
    pub zeros: u64,
    /// The least finite element; +inf if there is none.
    pub min: f64,
    /// The greatest finite element; -inf if there is none.
    pub max: f64,
    /// Σx.
    pub sum: f64,
    /// Σx².
    pub sum_squares: f64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            n: 0,
            nans: 0,
            infinities: 0,
            zeros: 0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sum: 0.0,
            sum_squares: 0.0,
        }
    }
}

impl Stats {
    /// Elements that are finite.
    pub fn finite(&self) -> u64 {
        self.n - self.nans - self.infinities
    }

    /// Of the finite elements; `None` without any.
    pub fn mean(&self) -> Option<f64> {
        (self.finite() > 0).then(|| self.sum / self.finite() as f64)
    }

    /// Root of the mean square of the finite elements; `None` without any.
    pub fn rms(&self) -> Option<f64> {
        (self.finite() > 0).then(|| (self.sum_squares / self.finite() as f64).sqrt())
    }

    /// Population standard deviation of the finite elements; `None` without any.
    pub fn std(&self) -> Option<f64> {
        let mean = self.mean()?;
        Some((self.sum_squares / self.finite() as f64 - mean * mean).max(0.0).sqrt())
    }
}

impl Add for Stats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            n: self.n + other.n,
            nans: self.nans + other.nans,
            infinities: self.infinities + other.infinities,
            zeros: self.zeros + other.zeros,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            sum: self.sum + other.sum,
            sum_squares: self.sum_squares + other.sum_squares,
        }
    }
}

/// The statistics of a slice.
pub fn stats(isa: Isa, weights: Weights<'_>) -> Stats {
    let mut scratch = Vec::new();
    let floats = weights.floats(isa, &mut scratch);
    if floats.dtype.exceeds_f32() {
        let of_element = |bytes| of_one(simd::F64::wide(bytes));
        return floats.bytes.chunks_exact(simd::F64::SIZE).map(of_element).fold(Stats::default(), |sum, one| sum + one);
    }
    for_dtype!(floats.dtype, E => isa.run(Run::<E> { bytes: floats.bytes, dtype: std::marker::PhantomData }))
}

struct Run<'a, E> {
    bytes: &'a [u8],
    dtype: std::marker::PhantomData<E>,
}

impl<E: Element> Kernel for Run<'_, E> {
    type Output = Stats;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Stats {
        let vectors = self.bytes.chunks_exact(LANES * E::SIZE);
        let tail = vectors.remainder();
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let mut stats = Stats::default();
        let (mut low, mut high) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
        // With a second factor of 1, the three sums of products are Σx, Σx² and a count.
        let mut sums = s.products_zero();
        for vector in vectors {
            let w = E::load(s, vector);
            let magnitude = s.abs(w);
            let finite = s.lt(magnitude, s.splat(f32::INFINITY));
            let nonzero = s.lt(zero, magnitude);
            let all = s.bits(finite);
            if all == u16::MAX {
                stats.zeros += u64::from((!s.bits(nonzero)).count_ones());
                (low, high) = (s.min(low, w), s.max(high, w));
            } else {
                // Infinities are above zero; NaN is neither above zero nor finite.
                let infinite = !all & s.bits(nonzero);
                stats.infinities += u64::from(infinite.count_ones());
                stats.nans += u64::from((!all & !infinite).count_ones());
                stats.zeros += u64::from((all & !s.bits(nonzero)).count_ones());
                low = s.min(low, s.select(finite, w, s.splat(f32::INFINITY)));
                high = s.max(high, s.select(finite, w, s.splat(f32::NEG_INFINITY)));
            }
            s.products_f64(s.select(finite, w, zero), one, &mut sums);
        }
        let [sum, squares, _] = s.products_to_arrays(&sums).map(sum_lanes);
        let least = s.to_array(s.add(low, zero)).into_iter().fold(f32::INFINITY, f32::min);
        let greatest = s.to_array(s.add(high, zero)).into_iter().fold(f32::NEG_INFINITY, f32::max);
        stats.n = (self.bytes.len() / E::SIZE) as u64;
        (stats.min, stats.max) = (least.into(), greatest.into());
        (stats.sum, stats.sum_squares) = (sum, squares);
        for element in tail.chunks_exact(E::SIZE) {
            stats = Stats { n: stats.n, ..stats + of_one(E::wide(element)) };
        }
        stats
    }
}

fn of_one(x: f64) -> Stats {
    let mut one = Stats { n: 1, ..Stats::default() };
    if x.is_nan() {
        one.nans = 1;
    } else if x.is_infinite() {
        one.infinities = 1;
    } else {
        one = Stats { zeros: (x == 0.0).into(), min: x, max: x, sum: x, sum_squares: x * x, ..one };
    }
    one
}
