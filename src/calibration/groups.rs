//! Time groups: runs of consecutive timesteps that share parameters.
//!
//! What a group loses at a timestep is told as a ratio to what that timestep's own best bounds would lose. Groups are cut by
//! dynamic programming for the least mean of its logarithm, the mean loss in dB, among those cuts whose worst ratio is no more than
//! half a dB above the least there is, nor above that of equal groups. So the cut is never worse than equal groups in
//! either.

use std::ops::Range;

use super::activations::{Bounds, Losses};

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

/// What each run of timesteps would be as a group.
struct Candidates {
    steps: usize,
    /// By first and last step: bounds, the sum of the logarithms of the ratios and the greatest ratio.
    runs: Vec<(Bounds, f64, f64)>,
}

impl Candidates {
    fn new(losses: &Losses) -> Self {
        let steps = losses.steps();
        let own: Vec<f64> = (0..steps).map(|step| losses.at(step, &losses.best(step..step + 1))).collect();
        let mut runs = Vec::with_capacity(steps * (steps + 1) / 2);
        for first in 0..steps {
            for last in first..steps {
                let bounds = losses.best(first..last + 1);
                let ratios = (first..=last).map(|step| losses.at(step, &bounds) / own[step]);
                let (sum, worst) =
                    ratios.fold((0.0, 0.0f64), |(sum, worst), ratio| (sum + ratio.ln(), worst.max(ratio)));
                runs.push((bounds, sum, worst));
            }
        }
        Self { steps, runs }
    }

    fn get(&self, run: &Range<usize>) -> &(Bounds, f64, f64) {
        let before = run.start * self.steps - run.start * run.start.saturating_sub(1) / 2;
        &self.runs[before + run.end - 1 - run.start]
    }

    /// The cut into at most `groups` runs of the least cost, where costs of runs are joined by `join`.
    fn cut(
        &self,
        groups: usize,
        cost: impl Fn(&(Bounds, f64, f64)) -> f64,
        join: fn(f64, f64) -> f64,
    ) -> Option<Vec<Range<usize>>> {
        // By number of groups: the least cost of the steps before each, and where the last group begins.
        let mut least = vec![f64::INFINITY; self.steps + 1];
        least[0] = 0.0;
        let mut begins: Vec<Vec<usize>> = Vec::new();
        for _ in 0..groups.min(self.steps) {
            let (mut next, mut begin) = (least.clone(), vec![usize::MAX; self.steps + 1]);
            for end in 1..=self.steps {
                for first in 0..end {
                    let joined = join(least[first], cost(self.get(&(first..end))));
                    if joined < next[end] {
                        (next[end], begin[end]) = (joined, first);
                    }
                }
            }
            least = next;
            begins.push(begin);
        }
        if !least[self.steps].is_finite() {
            return None;
        }
        let (mut runs, mut end) = (Vec::new(), self.steps);
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
        let mean = found.iter().map(|run| run.1).sum::<f64>() / self.steps as f64;
        Groups {
            runs: runs.iter().cloned().zip(found.iter().map(|run| run.0)).collect(),
            mean_db: mean * 10.0 / std::f64::consts::LN_10,
            worst_db: 10.0 * worst.log10(),
        }
    }

    fn best(&self, groups: usize) -> Groups {
        let equal = equal(self.steps, groups);
        let worst = |runs: &[Range<usize>]| runs.iter().map(|run| self.get(run).2).fold(0.0, f64::max);
        let least_worst = self.cut(groups, |run| run.2, f64::max).unwrap_or_else(|| equal.clone());
        let bound = (worst(&least_worst) * HALF_DB).min(worst(&equal));
        let cost = |run: &(Bounds, f64, f64)| if run.2 <= bound { run.1 } else { f64::INFINITY };
        self.groups(&self.cut(groups, cost, |a, b| a + b).unwrap_or(equal))
    }
}

/// Runs of as equal a length as there are.
fn equal(steps: usize, groups: usize) -> Vec<Range<usize>> {
    let groups = groups.clamp(1, steps.max(1));
    (0..groups).map(|group| group * steps / groups..(group + 1) * steps / groups).collect()
}

/// At most so many groups of timesteps: fewer where they gain less than half a dB, in the mean and at the worst timestep.
pub(crate) fn time_groups(losses: &Losses, most: usize) -> Groups {
    /// In dB.
    const GAIN: f64 = 0.5;
    let candidates = Candidates::new(losses);
    let best = candidates.best(most);
    for fewer in 1..best.runs.len() {
        let groups = candidates.best(fewer);
        if groups.mean_db - best.mean_db < GAIN && groups.worst_db - best.worst_db < GAIN {
            return groups;
        }
    }
    best
}
