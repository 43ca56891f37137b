//! What the inputs of a layer have to say on its weights: importance, and smoothing.
//!
//! Smoothing divides input channel j by a factor and multiplies its weights with the same, so that what the layer gives stays
//! as it was, while channels of the inputs become more alike: s_j = x_j^alpha / w_j^(1 − alpha), x_j the greatest input over
//! all timesteps and w_j the greatest weight (SmoothQuant, Xiao et al. 2023; over all timesteps as DiTAS, Dong et al. 2024).
//! Alpha is the one with the least error of the layer's output, for which both count: the inputs as they are quantized, and
//! the weights if they are.

use arrow_quant_kernels::{Isa, Scheme, Weights, scale_channels, to_f32};

use super::LayerStatistics;
use super::decibels::decibels;
use super::inputs::{ChannelWeights, Grouping, finest_noise};
use crate::plan::{Choice, JobSettings};
use crate::{Result, Tensor};

/// Alphas are tried at these distances: from 0 to 1, and then beside the best.
const ALPHA_STEPS: [f64; 3] = [0.2, 0.1, 0.05];

/// The least part of the mean importance that a channel has: one that was never seen may be seen yet.
const LEAST_IMPORTANCE: f64 = 1e-3;

/// Weights that a sample has, in rows from all over the tensor.
const SAMPLE: usize = 1 << 20;

/// Rows that a sample has at most.
const SAMPLE_ROWS: usize = 256;

/// What is to be known of the weights of a layer.
pub(crate) struct LayerWeights {
    /// Weights of a row that belong to one input channel: 1, or those of a kernel of a convolution.
    kernel: usize,
    rows: usize,
    /// By input channel, the sum of the squares of its weights, and the greatest.
    squares: Vec<f64>,
    greatest: Vec<f32>,
    /// Whole rows.
    sample: Vec<f32>,
    /// How the weights are quantized; `None` if they are kept.
    quantized: Option<(Choice, JobSettings)>,
}

/// What input channels are divided by, and their weights multiplied with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Smoothing {
    pub alpha: f64,
    /// By input channel.
    pub factors: Vec<f32>,
}

impl LayerWeights {
    /// Reads the weights of a layer of so many input channels.
    pub(crate) fn read(tensor: &Tensor, channels: usize, quantized: Option<(Choice, JobSettings)>) -> Result<Self> {
        let isa = Isa::active()?;
        let row = tensor.row_length() as usize;
        let (kernel, rows) = (row / channels, (tensor.elements() / tensor.row_length()) as usize);
        let sampled = (SAMPLE / row).clamp(1, SAMPLE_ROWS).min(rows);
        let (mut squares, mut greatest) = (vec![0.0; channels], vec![0.0f32; channels]);
        let mut sample = Vec::with_capacity(sampled * row);
        // Some rows at a time, whose pages are given back.
        let step = (SAMPLE / row).max(1);
        for first in (0..rows).step_by(step) {
            let last = rows.min(first + step);
            let Some(dtype) = tensor.float_dtype() else { break };
            let bytes = tensor.read((first * row) as u64..(last * row) as u64)?;
            let floats = to_f32(isa, Weights::new(dtype, &bytes, row)?);
            for (index, weights) in (first..).zip(floats.chunks_exact(row)) {
                for ((square, most), weights) in squares.iter_mut().zip(&mut greatest).zip(weights.chunks_exact(kernel))
                {
                    *square += weights.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>();
                    *most = weights.iter().fold(*most, |most, w| most.max(w.abs()));
                }
                // The first row of each of as many runs of rows as there are samples.
                if index == 0 || index * sampled / rows != (index - 1) * sampled / rows {
                    sample.extend_from_slice(weights);
                }
            }
            tensor.release((first * row) as u64..(last * row) as u64);
        }
        Ok(Self { kernel, rows, squares, greatest, sample, quantized })
    }

    /// The part of each channel in the error of the layer's output, adding up to 1, and what they add up to without that.
    pub(crate) fn parts(&self, factors: Option<&[f32]>) -> (Vec<f64>, f64) {
        let factor = |channel: usize| factors.map_or(1.0, |factors| f64::from(factors[channel]));
        let squares = self.squares.iter().enumerate().map(|(j, square)| square * factor(j) * factor(j));
        let mut parts: Vec<f64> = squares.collect();
        let sum: f64 = parts.iter().sum();
        if sum > 0.0 && sum.is_finite() {
            parts.iter_mut().for_each(|part| *part /= sum);
        } else {
            parts.fill(1.0 / self.squares.len() as f64);
        }
        (parts, sum)
    }

    fn row(&self) -> usize {
        self.kernel * self.squares.len()
    }

    /// One number a weight of a row, from one a channel.
    pub(crate) fn of_rows(&self, channels: &[f32]) -> Vec<f32> {
        channels.iter().flat_map(|&channel| std::iter::repeat_n(channel, self.kernel)).collect()
    }

    /// By input channel, the sum over all its weights of the mean square error that rounding to their groups' levels makes of
    /// the weights times the factors.
    fn rounding(&self, (choice, settings): (Choice, JobSettings), factors: Option<&[f32]>) -> Vec<f64> {
        let (row, group_size) = (self.row(), choice.encoding(settings.scheme).block_length());
        let levels = f64::from((1u32 << choice.bits().get()) - 1);
        let factors = factors.map_or_else(|| vec![1.0; row], |factors| self.of_rows(factors));
        let mut sums = vec![0.0; self.squares.len()];
        for weights in self.sample.chunks_exact(row) {
            let scaled: Vec<f32> = weights.iter().zip(&factors).map(|(weight, factor)| weight * factor).collect();
            for (group, start) in scaled.chunks(group_size).zip((0..).step_by(group_size)) {
                let (low, high) =
                    group.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &w| (low.min(w), high.max(w)));
                let width = match settings.scheme {
                    Scheme::Symmetric => 2.0 * f64::from(high.max(-low)),
                    Scheme::Affine | Scheme::Asymmetric => f64::from(high) - f64::from(low),
                };
                let square = (width / levels).powi(2) / 12.0;
                (start..start + group.len()).for_each(|at| sums[at / self.kernel] += square);
            }
        }
        let of_all = self.rows as f64 / (self.sample.len() / row).max(1) as f64;
        sums.iter().map(|sum| sum * of_all).collect()
    }

    /// The mean over timesteps and states of the logarithm of the error of the layer's output, relative to that output.
    fn output_error(&self, states: &[LayerStatistics], factors: Option<&[f32]>, grouping: Grouping) -> f64 {
        let (parts, sum) = self.parts(factors);
        let rounding = self.quantized.map(|quantized| self.rounding(quantized, factors));
        let (mut logarithms, mut steps) = (0.0, 0);
        for layer in states {
            let channels = ChannelWeights { parts: &parts, divisors: factors };
            for (step, noise) in layer.steps.iter().zip(finest_noise(layer, &channels, grouping)) {
                // What a channel adds to the output is as much with smoothing as without.
                let signal = sum * channels.power(step);
                let of_weights = rounding
                    .as_ref()
                    .map_or(0.0, |rounding| ChannelWeights { parts: rounding, divisors: factors }.power(step));
                if signal > 0.0 {
                    logarithms += libm::log((sum * noise + of_weights) / signal);
                    steps += 1;
                }
            }
        }
        logarithms / f64::from(steps.max(1))
    }

    /// The best smoothing, and what it gains in dB; `None` if none gains anything.
    pub(crate) fn smoothing(&self, states: &[LayerStatistics], grouping: Grouping) -> (Option<Smoothing>, f64) {
        let mut inputs = vec![0.0f32; self.squares.len()];
        for step in states.iter().flat_map(|layer| &layer.steps) {
            for (most, (min, max)) in inputs.iter_mut().zip(step.min.iter().zip(&step.max)) {
                *most = most.max(min.abs()).max(max.abs());
            }
        }
        let without = self.output_error(states, None, grouping);
        let (mut middle, mut least, mut best) = (0.5, f64::INFINITY, None);
        for (round, step) in ALPHA_STEPS.into_iter().enumerate() {
            let alphas = match round {
                0 => (0..=(1.0 / step).round() as i32).map(|i| f64::from(i) * step).collect(),
                _ => vec![middle - step, middle + step],
            };
            for alpha in alphas.into_iter().filter(|alpha| (-1e-9..=1.0 + 1e-9).contains(alpha)) {
                // Sums of steps have digits that mean nothing.
                let alpha = (alpha * 100.0).round() / 100.0;
                let factors = factors(&inputs, &self.greatest, alpha);
                let error = self.output_error(states, Some(&factors), grouping);
                if error < least - 1e-9 {
                    (middle, least, best) = (alpha, error, Some(Smoothing { alpha, factors }));
                }
            }
        }
        match best.filter(|_| least < without - 1e-9) {
            Some(best) => (Some(best), (without - least) * 10.0 / std::f64::consts::LN_10),
            None => (None, 0.0),
        }
    }

    /// What importance gains in a sample of rows, in dB: by how much it lessens the error of the weights as the inputs see it.
    /// `None` if weights are kept, or cannot be quantized, which the job will say.
    pub(crate) fn importance_gain_db(&self, importance: &[f32], factors: Option<&[f32]>) -> Option<f64> {
        let ((choice, settings), isa, row) = (self.quantized?, Isa::active().ok()?, self.row());
        let bytes: Vec<u8> = self.sample.iter().flat_map(|w| w.to_le_bytes()).collect();
        let sample = Weights::new(arrow_quant_kernels::Dtype::F32, &bytes, row).ok()?;
        let ones = vec![1.0; self.squares.len()];
        let scaled = scale_channels(isa, sample, &self.of_rows(factors.unwrap_or(&ones))).ok()?;
        let bytes: Vec<u8> = scaled.iter().flat_map(|w| w.to_le_bytes()).collect();
        let sample = Weights::new(arrow_quant_kernels::Dtype::F32, &bytes, row).ok()?;
        let importance = self.of_rows(importance);
        let error = |used: Option<&[f32]>| {
            let restored = choice.quantize(isa, sample, settings, used).ok()?.restored(isa).ok()?;
            let errors = restored.iter().zip(&scaled).enumerate();
            Some(errors.map(|(i, (a, b))| f64::from(importance[i % row]) * f64::from(a - b).powi(2)).sum::<f64>())
        };
        let (without, with) = (error(None)?, error(Some(&importance))?);
        Some(if without > 0.0 { decibels(without / with) } else { 0.0 })
    }
}

impl LayerWeights {
    /// How far (X/s)(W s)ᵀ is from X Wᵀ in 32-bit arithmetic, relative to the latter: of the sample of rows, and inputs
    /// from the ranges of their channels.
    pub(crate) fn smoothing_error(&self, layer: &LayerStatistics, factors: &[f32]) -> f64 {
        /// Inputs that are tried.
        const INPUTS: u64 = 8;
        let (mut low, mut high) = (vec![0.0f32; factors.len()], vec![0.0f32; factors.len()]);
        for step in &layer.steps {
            for (channel, (low, high)) in low.iter_mut().zip(&mut high).enumerate() {
                (*low, *high) = (low.min(step.min[channel]), high.max(step.max[channel]));
            }
        }
        let (low, high, factors) = (self.of_rows(&low), self.of_rows(&high), self.of_rows(factors));
        let (mut difference, mut sum) = (0.0, 0.0);
        for input in 0..INPUTS {
            let at = |i: usize| low[i] + (high[i] - low[i]) * fraction(input * low.len() as u64 + i as u64);
            let inputs: Vec<f32> = (0..low.len()).map(at).collect();
            let divided: Vec<f32> = inputs.iter().zip(&factors).map(|(x, factor)| x / factor).collect();
            for weights in self.sample.chunks_exact(self.row()) {
                let scaled: Vec<f32> = weights.iter().zip(&factors).map(|(w, factor)| w * factor).collect();
                let (plain, smoothed) = (f64::from(dot(&inputs, weights)), f64::from(dot(&divided, &scaled)));
                difference += (plain - smoothed).powi(2);
                sum += plain * plain;
            }
        }
        if difference > 0.0 { (difference / sum).sqrt() } else { 0.0 }
    }
}

/// A number from 0 to 1 that follows from an index: SplitMix64.
fn fraction(index: u64) -> f32 {
    let mut x = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// One factor a channel, about 1 in all; 1 where nothing is known.
fn factors(inputs: &[f32], weights: &[f32], alpha: f64) -> Vec<f32> {
    const LIMIT: f64 = 1e5;
    let logarithm = |(&x, &w): (&f32, &f32)| {
        let is_known = x > 0.0 && w > 0.0 && w.is_finite();
        let factor = alpha * libm::log(f64::from(x)) - (1.0 - alpha) * libm::log(f64::from(w));
        if is_known { factor.clamp(-libm::log(LIMIT), libm::log(LIMIT)) } else { 0.0 }
    };
    let logarithms: Vec<f64> = inputs.iter().zip(weights).map(logarithm).collect();
    let middle = logarithms.iter().sum::<f64>() / logarithms.len().max(1) as f64;
    logarithms.iter().map(|logarithm| libm::exp(logarithm - middle) as f32).collect()
}

/// The importance of each input channel, 1 in the mean: E[x²] over all samples of all timesteps and states, of what is left
/// of the inputs after they were divided.
pub(crate) fn importance(states: &[LayerStatistics], divisors: Option<&[f32]>) -> Vec<f32> {
    let mut sums = vec![0.0; states.first().map_or(0, LayerStatistics::channels)];
    for step in states.iter().flat_map(|layer| &layer.steps) {
        for (channel, (sum, square)) in sums.iter_mut().zip(&step.mean_square).enumerate() {
            let divisor = divisors.map_or(1.0, |divisors| f64::from(divisors[channel]));
            *sum += step.samples as f64 * f64::from(*square) / (divisor * divisor);
        }
    }
    relative(&sums)
}

/// Sums relative to their mean, none of them nothing.
pub(super) fn relative(sums: &[f64]) -> Vec<f32> {
    let mean = sums.iter().sum::<f64>() / sums.len().max(1) as f64;
    if mean > 0.0 && mean.is_finite() {
        sums.iter().map(|sum| (sum / mean).max(LEAST_IMPORTANCE) as f32).collect()
    } else {
        vec![1.0; sums.len()]
    }
}
