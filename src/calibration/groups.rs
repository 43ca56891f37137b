//! Time groups: runs of consecutive timesteps that share parameters.
//!
//! What a group loses at a timestep is told as a ratio to what that timestep's own best bounds would lose. Groups are cut by
//! dynamic programming for the least mean of its logarithm, the mean loss in dB, among those cuts whose worst ratio is no more than
//! half a dB above the least there is, nor above that of equal groups. So the cut is never worse than equal groups in
//! either.

use std::ops::Range;
use std::str::FromStr;

use super::activations::{Bounds, Losses};
use crate::{QuantError, Result};

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
}

/// Units that groups are made of at most: of more timesteps, several make a unit.
const UNITS: usize = 128;

/// What a run of units would be as a group: bounds, the sum of the logarithms of the ratios and the greatest ratio.
type Candidate = (Bounds, f64, f64);

/// What each run of units would be as a group.
struct Candidates {
    /// Where each unit begins, as an index of a timestep, and where the last ends.
    units: Vec<usize>,
    /// By first and last unit.
    runs: Vec<Candidate>,
}

impl Candidates {
    fn new(losses: &Losses) -> Self {
        let steps = losses.steps();
        let units: Vec<usize> =
            equal(steps, UNITS.min(steps)).into_iter().map(|unit| unit.start).chain([steps]).collect();
        let own: Vec<f64> = (0..steps).map(|step| losses.at(step, &losses.best(step..step + 1))).collect();
        let mut runs = Vec::with_capacity(units.len() * (units.len() - 1) / 2);
        for (first, &start) in units[..units.len() - 1].iter().enumerate() {
            for &end in &units[first + 1..] {
                let bounds = losses.best(start..end);
                let ratios = (start..end).map(|step| losses.at(step, &bounds) / own[step]);
                let (sum, worst) =
                    ratios.fold((0.0, 0.0f64), |(sum, worst), ratio| (sum + ratio.ln(), worst.max(ratio)));
                runs.push((bounds, sum, worst));
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
        let worst = found.iter().map(|run| run.2).fold(1.0, f64::max);
        let mean = found.iter().map(|run| run.1).sum::<f64>() / self.units[self.count()] as f64;
        let steps = |run: &Range<usize>| self.units[run.start]..self.units[run.end];
        Groups {
            runs: runs.iter().map(steps).zip(found.iter().map(|run| run.0)).collect(),
            mean_db: mean * 10.0 / std::f64::consts::LN_10,
            worst_db: 10.0 * worst.log10(),
        }
    }

    fn finest(&self, groups: usize, boundaries: Boundaries) -> Groups {
        match boundaries {
            Boundaries::Optimal => self.best(groups),
            Boundaries::Equal => self.groups(&equal(self.count(), groups)),
        }
    }

    fn best(&self, groups: usize) -> Groups {
        let equal = equal(self.count(), groups);
        let worst = |runs: &[Range<usize>]| runs.iter().map(|run| self.get(run).2).fold(0.0, f64::max);
        let least_worst = self.cut(groups, |run| run.2, f64::max).unwrap_or_else(|| equal.clone());
        let bound = (worst(&least_worst) * HALF_DB).min(worst(&equal));
        let cost = |run: &Candidate| if run.2 <= bound { run.1 } else { f64::INFINITY };
        self.groups(&self.cut(groups, cost, |a, b| a + b).unwrap_or(equal))
    }
}

/// Runs of as equal a length as there are.
fn equal(steps: usize, groups: usize) -> Vec<Range<usize>> {
    let groups = groups.clamp(1, steps.max(1));
    (0..groups).map(|group| group * steps / groups..(group + 1) * steps / groups).collect()
}

/// Where groups end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boundaries {
    /// Where the least is lost; fewer groups where they gain less than half a dB, in the mean and at the worst timestep.
    Optimal,
    /// After as many timesteps each, or as nearly as can be.
    Equal,
}

impl FromStr for Boundaries {
    type Err = QuantError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "optimal" => Ok(Self::Optimal),
            "equal" => Ok(Self::Equal),
            _ => Err(QuantError::field(
                "time_group_boundaries",
                format!("time_group_boundaries is '{text}', allowed: optimal or equal"),
            )),
        }
    }
}

/// As many groups of timesteps as there may be, if they gain anything.
pub(crate) fn finest_groups(losses: &Losses, most: usize, boundaries: Boundaries) -> Groups {
    Candidates::new(losses).finest(most, boundaries)
}

/// At most so many groups of timesteps.
pub(crate) fn time_groups(losses: &Losses, most: usize, boundaries: Boundaries) -> Groups {
    /// In dB.
    const GAIN: f64 = 0.5;
    let candidates = Candidates::new(losses);
    let best = candidates.finest(most, boundaries);
    if boundaries == Boundaries::Equal {
        return best;
    }
    for fewer in 1..best.runs.len() {
        let groups = candidates.best(fewer);
        if groups.mean_db - best.mean_db < GAIN && groups.worst_db - best.worst_db < GAIN {
            return groups;
        }
    }
    best
}
