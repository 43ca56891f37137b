//! How the inputs of a layer are best quantized, at one timestep or at several with the same parameters.
//!
//! A value x becomes one of 2^bits levels between a least value l and a greatest h. What is lost is a step's rounding,
//! ((h − l) / (2^bits − 1))² / 12, and what lies beyond l and h. The latter is told by a histogram where there is one. Where
//! there is none, each channel is taken for a Gaussian on either side, as wide as makes the value that was the greatest of n
//! the one to be expected: minimum and maximum alone would allow no clipping, and the mean square alone tells little of the
//! tails.

use std::sync::LazyLock;

use super::{Histogram, StepStatistics};

/// Bits of a code of an activation.
pub(crate) const BITS: u32 = 8;

/// Bounds that are tried on either side: fractions of the greatest value of all timesteps, in equal ratios, so many to a
/// factor of ten.
pub(crate) const FINE: usize = 48;

/// As many where they are tried for each of many ways to smooth the inputs.
pub(crate) const COARSE: usize = 24;

/// The smallest of them: this part of the greatest value of that timestep whose values are the narrowest, which may be clipped
/// to it, and in any case between these.
const CLIPPED: f64 = 0.4;
const LEAST: std::ops::RangeInclusive<f64> = 1e-4..=0.1;

/// So that zero is a level whatever the values.
const NEAREST: f64 = 1e-12;

/// The mean squared errors of a layer's inputs at each timestep, for all bounds that are tried.
#[derive(Debug, Clone)]
pub(crate) struct Losses {
    low: Vec<f64>,
    high: Vec<f64>,
    /// At each timestep, of what lies below each of `low`, and then above each of `high`.
    beyond: Vec<Vec<f64>>,
    /// Sums of these over all timesteps before each.
    sums: Vec<Vec<f64>>,
    /// The mean square of the values at each timestep.
    powers: Vec<f64>,
}

/// Bounds of values, and what they lose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bounds {
    /// Index of the least value and of the greatest in the candidates.
    at: (usize, usize),
    /// The least value.
    pub low: f64,
    /// The greatest.
    pub high: f64,
}

/// The parameters that bounds make: x' = scale · (clamp(round(x / scale) + zero_point, 0, 2^bits − 1) − zero_point).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Parameters {
    pub scale: f64,
    pub zero_point: i32,
}

impl Bounds {
    pub(super) fn parameters(&self) -> Parameters {
        let scale = (self.high - self.low) / levels();
        Parameters { scale, zero_point: (-self.low / scale).round() as i32 }
    }
}

fn levels() -> f64 {
    f64::from((1u32 << BITS) - 1)
}

impl Losses {
    /// Of a layer's timesteps. `weights` has the part that each channel has in the error, adding up to 1; `divisors` what
    /// each channel is divided by before it is quantized. So many `candidates` to a factor of ten are tried as
    /// bounds on either side.
    pub(super) fn new(steps: &[StepStatistics], weights: &[f64], divisors: Option<&[f32]>, candidates: usize) -> Self {
        let divided = |channel: usize, value: f32| f64::from(value) / divisors.map_or(1.0, |d| f64::from(d[channel]));
        let extremes = |of: fn(&StepStatistics) -> &[f32], pick: fn(f64, f64) -> f64| {
            let values = steps.iter().flat_map(|step| of(step).iter().enumerate().map(|(j, &x)| divided(j, x)));
            values.fold(0.0, pick)
        };
        let lowest = extremes(|step| &step.min, f64::min).min(-NEAREST);
        let highest = extremes(|step| &step.max, f64::max).max(NEAREST);
        let width = |step: &StepStatistics| {
            let most = |of: &[f32]| of.iter().enumerate().map(|(j, &x)| divided(j, x).abs()).fold(0.0, f64::max);
            most(&step.min).max(most(&step.max))
        };
        let narrowest = steps.iter().map(width).filter(|width| *width > 0.0).fold(f64::INFINITY, f64::min);
        let least = (CLIPPED * narrowest / highest.max(-lowest)).clamp(*LEAST.start(), *LEAST.end());
        let candidates = (candidates as f64 * -libm::log10(least)).round() as usize;
        let fractions: Vec<f64> =
            (0..candidates).map(|i| libm::pow(least, 1.0 - i as f64 / (candidates - 1) as f64)).collect();
        let low: Vec<f64> = fractions.iter().map(|fraction| lowest * fraction).collect();
        let high: Vec<f64> = fractions.iter().map(|fraction| highest * fraction).collect();
        let power = |step: &StepStatistics| {
            let square = |(channel, &square): (usize, &f32)| {
                weights[channel] * f64::from(square) / divisors.map_or(1.0, |d| f64::from(d[channel]).powi(2))
            };
            step.mean_square.iter().enumerate().map(square).sum()
        };
        let powers = steps.iter().map(power).collect();
        let mut losses = Self { sums: vec![vec![0.0; 2 * candidates]], beyond: Vec::new(), powers, low, high };
        for step in steps {
            let beyond = beyond(step, weights, divisors, &losses.low, &losses.high);
            let sum = losses.sums[losses.sums.len() - 1].iter().zip(&beyond).map(|(sum, loss)| sum + loss).collect();
            losses.sums.push(sum);
            losses.beyond.push(beyond);
        }
        losses
    }

    /// Timesteps in all.
    pub(super) fn steps(&self) -> usize {
        self.beyond.len()
    }

    /// The mean square of the values at a timestep.
    pub(super) fn power(&self, step: usize) -> f64 {
        self.powers[step]
    }

    /// What bounds lose at a timestep.
    pub(super) fn at(&self, step: usize, bounds: &Bounds) -> f64 {
        let beyond = &self.beyond[step];
        rounding(bounds.low, bounds.high) + beyond[bounds.at.0] + beyond[self.low.len() + bounds.at.1]
    }

    /// The bounds that clip nothing, at any timestep.
    pub(super) fn widest(&self) -> Bounds {
        let at = self.low.len() - 1;
        Bounds { at: (at, at), low: self.low[at], high: self.high[at] }
    }

    /// The bounds that lose least in all of a run of timesteps.
    pub(super) fn best(&self, steps: std::ops::Range<usize>) -> Bounds {
        let count = steps.len() as f64;
        let beyond = |at: usize| self.sums[steps.end][at] - self.sums[steps.start][at];
        let candidates = self.low.len();
        let above: Vec<f64> = (0..candidates).map(|at| beyond(candidates + at)).collect();
        let mut best = (f64::INFINITY, (0, 0));
        for l in 0..candidates {
            let below = beyond(l);
            for (h, above) in above.iter().enumerate() {
                let loss = count * rounding(self.low[l], self.high[h]) + below + above;
                if loss < best.0 {
                    best = (loss, (l, h));
                }
            }
        }
        let at = best.1;
        Bounds { at, low: self.low[at.0], high: self.high[at.1] }
    }
}

/// What parameters lose at a timestep: as [`Losses::at`], of parameters from anywhere.
pub(crate) fn loss(
    step: &StepStatistics,
    weights: &[f64],
    divisors: Option<&[f32]>,
    Parameters { scale, zero_point }: Parameters,
) -> f64 {
    // What is less than half a step beyond a level is rounded to it, as what is between two of them is.
    let (low, high) = (-scale * (f64::from(zero_point) + 0.5), scale * (levels() + 0.5 - f64::from(zero_point)));
    scale * scale / 12.0 + beyond(step, weights, divisors, &[low], &[high]).iter().sum::<f64>()
}

/// The mean square of what rounding to a level loses.
fn rounding(low: f64, high: f64) -> f64 {
    let width = (high - low) / levels();
    width * width / 12.0
}

/// The mean square of what lies below each of `low`, followed by that of what lies above each of `high`.
fn beyond(step: &StepStatistics, weights: &[f64], divisors: Option<&[f32]>, low: &[f64], high: &[f64]) -> Vec<f64> {
    // A histogram is of values that were not divided.
    match step.histogram.as_ref().filter(|_| divisors.is_none()) {
        Some(histogram) => beyond_in_histogram(histogram, low, high),
        None => beyond_in_channels(step, weights, divisors, low, high),
    }
}

fn beyond_in_histogram(histogram: &Histogram, low: &[f64], high: &[f64]) -> Vec<f64> {
    let total: f64 = histogram.counts.iter().sum();
    let width = histogram.width();
    let beyond = |excess: &dyn Fn(f64) -> f64| {
        let bins = histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0.0);
        let squares = bins.map(|(bin, count)| {
            let middle = f64::from(histogram.min) + width * (bin as f64 + 0.5);
            count * excess(middle).max(0.0).powi(2)
        });
        squares.sum::<f64>() / total.max(1.0)
    };
    let below = low.iter().map(|&low| beyond(&|x| low - x));
    let above = high.iter().map(|&high| beyond(&|x| x - high));
    below.chain(above).collect()
}

fn beyond_in_channels(
    step: &StepStatistics,
    weights: &[f64],
    divisors: Option<&[f32]>,
    low: &[f64],
    high: &[f64],
) -> Vec<f64> {
    let samples = step.samples as f64;
    let quantile = expected_maximum(samples);
    let mut sums = vec![0.0; low.len() + high.len()];
    let (below, above) = sums.split_at_mut(low.len());
    for channel in 0..step.min.len() {
        let divisor = divisors.map_or(1.0, |divisors| f64::from(divisors[channel]));
        let [min, max] = [step.min[channel], step.max[channel]].map(|x| f64::from(x) / divisor);
        let mean_square = f64::from(step.mean_square[channel]) / (divisor * divisor);
        let rms = mean_square.sqrt();
        let mean = ((min + max) / 2.0).clamp(-rms, rms);
        let deviation = (mean_square - mean * mean).max(0.0).sqrt();
        let tail = |mean: f64, extreme: f64| {
            let deviation = deviation.max((extreme - mean) / quantile).max(NEAREST);
            Tail { mean, extreme, deviation, samples }
        };
        let (lower, upper) = (tail(-mean, -min), tail(mean, max));
        for (sum, &low) in below.iter_mut().zip(low) {
            *sum += weights[channel] * lower.beyond(-low);
        }
        for (sum, &high) in above.iter_mut().zip(high) {
            *sum += weights[channel] * upper.beyond(high);
        }
    }
    sums
}

/// The values of a channel on one side of its mean.
struct Tail {
    mean: f64,
    extreme: f64,
    deviation: f64,
    samples: f64,
}

impl Tail {
    /// E[(x − bound)²] over x beyond the bound, 0 if none was seen there; at least that of the one value that was.
    fn beyond(&self, bound: f64) -> f64 {
        if self.extreme <= bound {
            return 0.0;
        }
        let expected = self.deviation * self.deviation * excess((bound - self.mean) / self.deviation);
        expected.max((self.extreme - bound).powi(2) / self.samples)
    }
}

/// E[max(x − z, 0)²] of a standard normal x: (1 + z²)·Q(z) − z·φ(z), right to 5e-5 of it, from a table, for it is asked for
/// millions of times. Beyond 9 it is less than anything that counts.
fn excess(z: f64) -> f64 {
    const END: f64 = 9.0;
    const STEPS: f64 = 512.0;
    static TABLE: LazyLock<Vec<f64>> = LazyLock::new(|| {
        let points = (2.0 * END * STEPS) as usize + 2;
        let exactly = |z: f64| ((1.0 + z * z) * upper_tail(z) - z * density(z)).max(0.0);
        (0..points).map(|i| exactly(i as f64 / STEPS - END)).collect()
    });
    if z <= -END {
        return 1.0 + z * z;
    }
    let at = (z.min(END) + END) * STEPS;
    let (index, part) = (at as usize, at.fract());
    TABLE[index] * (1.0 - part) + TABLE[index + 1] * part
}

/// The density of the standard normal distribution.
fn density(z: f64) -> f64 {
    libm::exp(-z * z / 2.0) / (2.0 * std::f64::consts::PI).sqrt()
}

/// The probability that a standard normal value is greater than z.
fn upper_tail(z: f64) -> f64 {
    libm::erfc(z / std::f64::consts::SQRT_2) / 2.0
}

/// The value that one of n + 1 standard normal ones exceeds on the average: Φ⁻¹(1 − 1 / (n + 1)).
fn expected_maximum(n: f64) -> f64 {
    let probability = 1.0 / (n + 1.0);
    let (mut low, mut high) = (0.0, 40.0);
    // The tail falls steadily, so bisection finds the value to the last digit.
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if upper_tail(middle) > probability { low = middle } else { high = middle }
    }
    // One sample alone says nothing of a width.
    low.max(0.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_distribution_is_as_tables_have_it() {
        assert!((upper_tail(0.0) - 0.5).abs() < 1e-15 && (upper_tail(1.0) - 0.158_655_253_931_457).abs() < 1e-12);
        assert!((density(1.0) - 0.241_970_724_519_143).abs() < 1e-12);
        assert!((expected_maximum(2048.0) - 3.297).abs() < 1e-3);
    }

    #[test]
    fn what_lies_beyond_a_bound_is_what_is_drawn() {
        // The mean of (x - 1)² over x > 1 of a standard normal value, by a sum over its density.
        let step = 1e-4;
        let sum: f64 = (0..90_000).map(|i| i as f64 * step).map(|x| x * x * density(1.0 + x) * step).sum();
        let tail = Tail { mean: 0.0, extreme: 4.0, deviation: 1.0, samples: 1e9 };
        assert!((tail.beyond(1.0) - sum).abs() < 1e-6, "{} {sum}", tail.beyond(1.0));
        assert_eq!(tail.beyond(4.0), 0.0);
    }

    #[test]
    fn the_table_is_near_what_it_stands_for() {
        for i in -2000..1800 {
            let z = f64::from(i) * 0.004_97;
            let exactly = (1.0 + z * z) * upper_tail(z) - z * density(z);
            assert!((excess(z) - exactly).abs() <= 1e-4 * exactly + 1e-18, "{z}: {} {exactly}", excess(z));
        }
        assert!(excess(1e300) < 1e-18 && excess(-1e10) == 1.0 + 1e20);
    }
}
