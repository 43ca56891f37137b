//! Time groups: runs of consecutive timesteps that share parameters.
//!
//! What a group loses at a timestep is told as a ratio to what that timestep's own best bounds would lose. Groups are cut by
//! dynamic programming for the least mean of its logarithm, the mean loss in dB, among those cuts whose worst ratio is no more than
//! half a dB above the least there is, and whose worst ratio and worst SQNR are no worse than those of equal groups. So the cut is
//! never worse than equal groups, in the mean or at the worst timestep.

use std::ops::Range;

use super::activations::{Bounds, Losses};
use super::decibels::decibels;
use crate::config::Boundaries;

/// Half a dB, as a ratio of powers.
const HALF_DB: f64 = 1.122_018_454_301_963_4;

/// Runs of timesteps that share bounds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Groups {
    /// Steps of each, by index, and their bounds.
    pub runs: Vec<(Range<usize>, Bounds)>,
    /// The mean loss over the timesteps' own best bounds, in dB.
    pub mean_db: f64,
    /// The worst.
    pub worst_db: f64,
    /// The least SQNR of a timestep, negated, in dB.
    pub worst_noise_db: f64,
}

/// Units that groups are made of: of more timesteps, several make a unit. There are a few more where equal groups end within one.
const UNITS: usize = 128;

/// What a run of units would be as a group.
struct Candidate {
    bounds: Bounds,
    /// The sum of the logarithms of the ratios of what is lost to what each timestep's own bounds lose.
    sum: f64,
    /// The greatest of the ratios.
    worst: f64,
    /// The greatest ratio of what is lost to the values' own mean square.
    worst_noise: f64,
}

/// What each run of units would be as a group.
struct Candidates {
    /// Where each unit begins, as an index of a timestep, and where the last ends.
    units: Vec<usize>,
    /// By first and last unit.
    runs: Vec<Candidate>,
}

impl Candidates {
    /// For so many groups at most.
    fn new(losses: &Losses, most: usize) -> Self {
        let steps = losses.steps();
        let starts = [UNITS, most].map(|runs| equal(steps, runs.min(steps)).into_iter().map(|run| run.start));
        let mut units: Vec<usize> = starts.into_iter().flatten().chain([steps]).collect();
        units.sort_unstable();
        units.dedup();
        let own: Vec<f64> = (0..steps).map(|step| losses.at(step, &losses.best(step..step + 1))).collect();
        let mut runs = Vec::with_capacity(units.len() * (units.len() - 1) / 2);
        for (first, &start) in units[..units.len() - 1].iter().enumerate() {
            for &end in &units[first + 1..] {
                let bounds = losses.best(start..end);
                let mut run = Candidate { bounds, sum: 0.0, worst: 0.0, worst_noise: 0.0 };
                for (step, own) in (start..end).zip(&own[start..end]) {
                    let lost = losses.at(step, &run.bounds);
                    run.sum += libm::log(lost / own);
                    run.worst = run.worst.max(lost / own);
                    // Where there is nothing but zeros there is no noise to speak of.
                    if losses.power(step) > 0.0 {
                        run.worst_noise = run.worst_noise.max(lost / losses.power(step));
                    }
                }
                runs.push(run);
            }
        }
        Self { units, runs }
    }

    fn count(&self) -> usize {
        self.units.len() - 1
    }

    fn get(&self, run: &Range<usize>) -> &Candidate {
        let before = run.start * self.count() - run.start * run.start.saturating_sub(1) / 2;
        &self.runs[before + run.end - 1 - run.start]
    }

    /// The cut into at most `groups` runs of the least cost, where costs of runs are joined by `join`.
    fn cut(
        &self,
        groups: usize,
        cost: impl Fn(&Candidate) -> f64,
        join: fn(f64, f64) -> f64,
    ) -> Option<Vec<Range<usize>>> {
        let count = self.count();
        // By number of groups: the least cost of the units before each, and where the last group begins.
        let mut least = vec![f64::INFINITY; count + 1];
        least[0] = 0.0;
        let mut begins: Vec<Vec<usize>> = Vec::new();
        for _ in 0..groups.min(count) {
            let (mut next, mut begin) = (least.clone(), vec![usize::MAX; count + 1]);
            for end in 1..=count {
                for (first, before) in least[..end].iter().enumerate() {
                    let joined = join(*before, cost(self.get(&(first..end))));
                    if joined < next[end] {
                        (next[end], begin[end]) = (joined, first);
                    }
                }
            }
            least = next;
            begins.push(begin);
        }
        if !least[count].is_finite() {
            return None;
        }
        let (mut runs, mut end) = (Vec::new(), count);
        for begin in begins.iter().rev() {
            // With fewer groups it was as good.
            if begin[end] != usize::MAX {
                runs.push(begin[end]..end);
                end = begin[end];
            }
            if end == 0 {
                break;
            }
        }
        runs.reverse();
        Some(runs)
    }

    fn groups(&self, runs: &[Range<usize>]) -> Groups {
        let found: Vec<_> = runs.iter().map(|run| self.get(run)).collect();
        let greatest = |of: fn(&Candidate) -> f64| found.iter().map(|run| of(run)).fold(0.0, f64::max);
        let mean = found.iter().map(|run| run.sum).sum::<f64>() / self.units[self.count()] as f64;
        let steps = |run: &Range<usize>| self.units[run.start]..self.units[run.end];
        Groups {
            runs: runs.iter().map(steps).zip(found.iter().map(|run| run.bounds)).collect(),
            mean_db: mean * 10.0 / std::f64::consts::LN_10,
            worst_db: decibels(greatest(|run| run.worst)),
            worst_noise_db: decibels(greatest(|run| run.worst_noise)),
        }
    }

    fn finest(&self, groups: usize, boundaries: Boundaries) -> Groups {
        match boundaries {
            Boundaries::Optimal => self.groups(&self.best(groups)),
            Boundaries::Equal => self.groups(&self.equal(groups)),
        }
    }

    /// Runs of as equal a number of timesteps as there are; of units, where they do not end with one.
    fn equal(&self, groups: usize) -> Vec<Range<usize>> {
        let unit = |step: usize| self.units.binary_search(&step).ok();
        let runs = equal(self.units[self.count()], groups).into_iter();
        let runs: Option<Vec<_>> = runs.map(|run| Some(unit(run.start)?..unit(run.end)?)).collect();
        runs.unwrap_or_else(|| equal(self.count(), groups))
    }

    fn greatest(&self, runs: &[Range<usize>], of: fn(&Candidate) -> f64) -> f64 {
        runs.iter().map(|run| of(self.get(run))).fold(0.0, f64::max)
    }

    fn sum(&self, runs: &[Range<usize>]) -> f64 {
        runs.iter().map(|run| self.get(run).sum).sum()
    }

    fn best(&self, groups: usize) -> Vec<Range<usize>> {
        let equal = self.equal(groups);
        let least_worst = self.cut(groups, |run| run.worst, f64::max).unwrap_or_else(|| equal.clone());
        let of_equal = self.greatest(&equal, |run| run.worst);
        let noise = self.greatest(&equal, |run| run.worst_noise);
        let within = |worst: f64| {
            let allows = move |run: &Candidate| run.worst <= worst && run.worst_noise <= noise;
            self.cut(groups, |run| if allows(run) { run.sum } else { f64::INFINITY }, |a, b| a + b)
        };
        let near_least = (self.greatest(&least_worst, |run| run.worst) * HALF_DB).min(of_equal);
        // The bound may leave nothing, or nothing as good in the mean. Equal groups are within their own.
        let found = within(near_least).filter(|runs| self.sum(runs) <= self.sum(&equal));
        found.or_else(|| within(of_equal)).unwrap_or(equal)
    }
}

/// Runs of as equal a length as there are.
fn equal(steps: usize, groups: usize) -> Vec<Range<usize>> {
    let groups = groups.clamp(1, steps.max(1));
    (0..groups).map(|group| group * steps / groups..(group + 1) * steps / groups).collect()
}

/// As many groups of timesteps as there may be, if they gain anything.
pub(crate) fn finest_groups(losses: &Losses, most: usize, boundaries: Boundaries) -> Groups {
    Candidates::new(losses, most).finest(most, boundaries)
}

/// At most so many groups of timesteps.
pub(crate) fn time_groups(losses: &Losses, most: usize, boundaries: Boundaries) -> Groups {
    /// In dB.
    const GAIN: f64 = 0.5;
    let candidates = Candidates::new(losses, most);
    let best = candidates.finest(most, boundaries);
    if boundaries == Boundaries::Equal {
        return best;
    }
    let equal = candidates.finest(most, Boundaries::Equal);
    for fewer in 1..best.runs.len() {
        let groups = candidates.finest(fewer, Boundaries::Optimal);
        let is_near = groups.mean_db - best.mean_db < GAIN
            && groups.worst_db - best.worst_db < GAIN
            && groups.worst_noise_db - best.worst_noise_db < GAIN;
        // Nor may as many equal groups as were asked for be better.
        let is_no_worse = groups.mean_db <= equal.mean_db
            && groups.worst_db <= equal.worst_db
            && groups.worst_noise_db <= equal.worst_noise_db;
        if is_near && is_no_worse {
            return groups;
        }
    }
    best
}
