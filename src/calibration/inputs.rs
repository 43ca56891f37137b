//! The inputs of a layer, quantized by time groups: which there are, what they lose, and what was gained by each step.

use std::ops::Range;

use super::activations::{Bounds, COARSE, FINE, Losses, Parameters};
use super::decibels::{decibels, least, mean, sqnr_db};
use super::groups::{Groups, finest_groups, time_groups};
use super::{LayerStatistics, StepStatistics};
use crate::config::{Boundaries, DiffusionQuantConfig};

/// What time groups are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grouping {
    /// Groups at most.
    pub most: usize,
    pub boundaries: Boundaries,
}

impl Grouping {
    /// What a configuration asks for.
    pub(crate) fn of(config: &DiffusionQuantConfig) -> Self {
        Self { most: config.num_time_groups as usize, boundaries: config.time_group_boundaries }
    }
}

/// What the input channels of a layer count for.
pub(crate) struct ChannelWeights<'a> {
    /// The part of each channel in the error, adding up to 1.
    pub parts: &'a [f64],
    /// What each channel is divided by before it is quantized.
    pub divisors: Option<&'a [f32]>,
}

impl ChannelWeights<'_> {
    /// The mean square of the inputs at a timestep.
    pub(super) fn power(&self, step: &StepStatistics) -> f64 {
        let square = |(channel, square): (usize, &f32)| {
            let divisor = self.divisors.map_or(1.0, |divisors| f64::from(divisors[channel]));
            self.parts[channel] * f64::from(*square) / (divisor * divisor)
        };
        step.mean_square.iter().enumerate().map(square).sum()
    }
}

/// A run of timesteps that share parameters.
#[derive(Debug, Clone)]
pub(crate) struct TimeGroup {
    /// From the first timestep to before the end, those that were not measured included.
    pub timesteps: Range<i64>,
    /// Timesteps that were measured.
    pub measured: usize,
    pub parameters: Parameters,
    /// Width of the bounds ÷ width of the values.
    pub clip: f64,
    pub sqnr_db: f64,
    /// Over the timesteps' own best parameters: the mean, and the worst.
    pub loss_db: f64,
    pub worst_loss_db: f64,
}

/// The inputs of a layer in one state as they are quantized.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    pub groups: Vec<TimeGroup>,
    /// At each timestep that was measured and has a signal, in dB.
    pub sqnr_db: Vec<f64>,
    /// What clipping gained over minimum and maximum, with one group: the mean, in dB.
    pub clipping_gain_db: f64,
    /// What groups gained over one: the mean, and that of the worst timestep.
    pub groups_gain_db: f64,
    pub worst_groups_gain_db: f64,
}

impl Inputs {
    pub(super) fn new(layer: &LayerStatistics, channels: &ChannelWeights<'_>, grouping: Grouping) -> Self {
        let steps = &layer.steps;
        let losses = Losses::new(steps, channels.parts, channels.divisors, FINE);
        let groups = time_groups(&losses, grouping.most, grouping.boundaries);
        let powers: Vec<f64> = (0..steps.len()).map(|step| losses.power(step)).collect();
        let noise_of = |bounds: &Bounds| -> Vec<f64> { (0..steps.len()).map(|step| losses.at(step, bounds)).collect() };
        let widest = sqnr_db(&powers, &noise_of(&losses.widest()));
        let one = sqnr_db(&powers, &noise_of(&losses.best(0..steps.len())));
        let own = sqnr_db(&powers, &noise(&losses, &groups));
        Self {
            clipping_gain_db: mean(&one) - mean(&widest),
            groups_gain_db: mean(&own) - mean(&one),
            worst_groups_gain_db: least(&own) - least(&one),
            groups: self::groups(steps, &losses, &groups, &powers, channels.divisors),
            sqnr_db: own,
        }
    }
}

/// What the inputs of a layer lose at each timestep with as many groups as there may be: more or less, to compare ways to
/// smooth them.
pub(crate) fn finest_noise(layer: &LayerStatistics, channels: &ChannelWeights<'_>, grouping: Grouping) -> Vec<f64> {
    let losses = Losses::new(&layer.steps, channels.parts, channels.divisors, COARSE);
    noise(&losses, &finest_groups(&losses, grouping.most, grouping.boundaries))
}

fn noise(losses: &Losses, groups: &Groups) -> Vec<f64> {
    let of_run = |(steps, bounds): &(Range<usize>, Bounds)| {
        steps.clone().map(|step| losses.at(step, bounds)).collect::<Vec<_>>()
    };
    groups.runs.iter().flat_map(of_run).collect()
}

fn groups(
    steps: &[StepStatistics],
    losses: &Losses,
    groups: &Groups,
    powers: &[f64],
    divisors: Option<&[f32]>,
) -> Vec<TimeGroup> {
    let mut all = Vec::with_capacity(groups.runs.len());
    for ((run, bounds), timesteps) in groups.runs.iter().zip(timesteps(steps, groups, divisors)) {
        let lost: Vec<f64> = run.clone().map(|step| losses.at(step, bounds)).collect();
        let own = |step: usize| losses.at(step, &losses.best(step..step + 1));
        let ratios: Vec<f64> = run.clone().zip(&lost).map(|(step, lost)| decibels(lost / own(step))).collect();
        let (low, high) = range(&steps[run.clone()], divisors);
        all.push(TimeGroup {
            timesteps,
            measured: run.len(),
            parameters: bounds.parameters(),
            clip: if high > low { (bounds.high - bounds.low) / (high - low) } else { 1.0 },
            sqnr_db: sqnr_db(&[powers[run.clone()].iter().sum()], &[lost.iter().sum()])[0],
            loss_db: mean(&ratios),
            worst_loss_db: ratios.iter().copied().fold(0.0, f64::max),
        });
    }
    all
}

/// The least and the greatest value of some timesteps, with zero among them.
fn range(steps: &[StepStatistics], divisors: Option<&[f32]>) -> (f64, f64) {
    let extreme = |of: fn(&StepStatistics) -> &[f32], pick: fn(f64, f64) -> f64| {
        let divisor = |channel: usize| divisors.map_or(1.0, |divisors| f64::from(divisors[channel]));
        let values = steps.iter().flat_map(|step| of(step).iter().enumerate().map(|(j, &x)| f64::from(x) / divisor(j)));
        values.fold(0.0, pick)
    };
    (extreme(|step| &step.min, f64::min), extreme(|step| &step.max, f64::max))
}

/// The timesteps of each group, those that were not measured included: the first begins with 0, and the last ends one step
/// width after the last that was measured. What lies between two groups belongs to the one that falls less short of the other's
/// values, for values between are as wide as the wider.
fn timesteps(steps: &[StepStatistics], groups: &Groups, divisors: Option<&[f32]>) -> Vec<Range<i64>> {
    let mut starts = vec![0];
    for pair in groups.runs.windows(2) {
        let (before, after) = (&steps[pair[0].0.clone()], &steps[pair[1].0.clone()]);
        let (last, first) = (&before[before.len() - 1..], &after[..1]);
        let short =
            |of: &[StepStatistics], other: &[StepStatistics]| shortfall(range(of, divisors), range(other, divisors));
        let (last_step, first_step) = (last[0].timestep, first[0].timestep);
        starts.push(match short(before, first).total_cmp(&short(after, last)) {
            std::cmp::Ordering::Less => first_step,
            std::cmp::Ordering::Equal => (last_step + first_step + 1) / 2,
            std::cmp::Ordering::Greater => last_step + 1,
        });
    }
    let last = steps[steps.len() - 1].timestep;
    let width = if steps.len() > 1 { last - steps[steps.len() - 2].timestep } else { 1 };
    let ends = starts[1..].iter().copied().chain([last + width]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// By how much a range falls short of another.
fn shortfall(range: (f64, f64), other: (f64, f64)) -> f64 {
    (range.0 - other.0).max(0.0) + (other.1 - range.1).max(0.0)
}
