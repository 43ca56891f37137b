//! A target size: bits and group size of each tensor, chosen so that the sum of all squared errors is least.
//!
//! A multiple-choice knapsack. Each tensor's choices that are worth it lie on a convex curve of error over bytes; steps
//! along those curves are taken in the order of what a byte brings (Shoham and Gersho, "Efficient bit allocation for an
//! arbitrary set of quantizers", 1988). What is left of the budget is filled with the best single changes, and then choices
//! are exchanged between two tensors while that helps. The same starts from the best uniform choice as well, which is far
//! from those steps where a budget is just enough for it.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use super::choice::Choice;
use super::sample::Cost;
use crate::{QuantError, Result};

/// The factor by which error may differ between a sample and the whole.
const UNLIKE: f64 = 1.5;

/// Exchanges that are made at most: on real models a few dozen are left to make.
const EXCHANGES: usize = 1000;

/// Uniform choices to start from, beside the steps by gain.
const STARTS: usize = 3;

/// A part of a tensor's error below which a gain is rounding.
const SLIGHTEST: f64 = 1e-9;

/// The choices of one tensor.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    /// Its index in the model.
    pub tensor: usize,
    /// Ways to quantize it, and to keep it, in the order of bytes.
    costs: Vec<Cost>,
    chosen: usize,
}

/// Tensors whose choices share a budget of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Allocation {
    open: Vec<Open>,
    /// If all must have the same choice.
    is_uniform: bool,
}

impl Allocation {
    /// The choices of some tensors, given by index with the costs of each, those of keeping it included.
    pub(crate) fn new(costs: Vec<(usize, Vec<Cost>)>, is_uniform: bool) -> Self {
        let open = |(tensor, mut costs): (usize, Vec<Cost>)| {
            // Of groups that are longer than a row, the largest: models then have fewer sizes in all.
            let size = |cost: &Cost| std::cmp::Reverse(cost.choice.map(|choice| choice.group_size()));
            costs.sort_by(|a, b| {
                let by_error = a.squared_error.total_cmp(&b.squared_error);
                a.bytes.cmp(&b.bytes).then(by_error).then(size(a).cmp(&size(b)))
            });
            Open { tensor, costs, chosen: 0 }
        };
        Self { open: costs.into_iter().map(open).collect(), is_uniform }
    }

    /// What each tensor becomes.
    pub(crate) fn chosen(&self) -> impl Iterator<Item = (usize, &Cost)> {
        self.open.iter().map(|open| (open.tensor, &open.costs[open.chosen]))
    }

    /// Bytes of all tensors as chosen.
    pub(crate) fn bytes(&self) -> u64 {
        self.chosen().map(|(_, cost)| cost.bytes).sum()
    }

    /// The fewest bytes that there is a choice for.
    pub(crate) fn least_bytes(&self) -> u64 {
        if self.is_uniform {
            let of = |choice| self.of_all(choice).map(|(bytes, _)| bytes);
            return self.common_choices().into_iter().filter_map(of).min().unwrap_or_default();
        }
        self.open.iter().filter_map(|open| open.costs.iter().map(|cost| cost.bytes).min()).sum()
    }

    /// Chooses for all tensors within a budget.
    ///
    /// # Errors
    /// If even the smallest choices exceed it.
    pub(crate) fn choose(&mut self, budget: u64) -> Result<()> {
        if self.is_uniform {
            return self.choose_one_for_all(budget);
        }
        self.open.iter_mut().for_each(|open| open.chosen = 0);
        if self.bytes() > budget {
            return Err(too_small());
        }
        let uniform = self.near_uniform(budget);
        self.take_steps(budget);
        self.improve(budget);
        for mut other in uniform {
            if other.cut(budget).is_ok() {
                other.improve(budget);
                if other.squared_error() < self.squared_error() {
                    *self = other;
                }
            }
        }
        Ok(())
    }

    /// Goes along the curves of all tensors, from the smallest choices.
    fn take_steps(&mut self, budget: u64) {
        let mut bytes = self.bytes();
        let mut steps: Vec<Step> = self.open.iter().enumerate().flat_map(|(i, open)| hull(i, &open.costs)).collect();
        steps.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.open.cmp(&b.open)).then(a.to.cmp(&b.to)));
        for step in &steps {
            let open = &mut self.open[step.open];
            let more = open.costs[step.to].bytes - open.costs[open.chosen].bytes;
            // A tensor whose step did not fit stays where it is: later steps of it lead further.
            if open.chosen == step.from && bytes + more <= budget {
                (open.chosen, bytes) = (step.to, bytes + more);
            }
        }
    }

    /// The choices that are the same for all tensors which have them, and come nearest to a budget from either side; the
    /// other tensors take their smallest.
    fn near_uniform(&self, budget: u64) -> Vec<Self> {
        let of = |choice: Choice| {
            let mut all = self.clone();
            for open in &mut all.open {
                open.chosen = open.costs.iter().position(|cost| cost.choice == Some(choice)).unwrap_or(0);
            }
            all
        };
        let mut all: Vec<Self> = self.every_choice().into_iter().map(of).collect();
        all.sort_by_key(|all| all.bytes().abs_diff(budget));
        all.truncate(STARTS);
        all
    }

    /// The sum over all tensors as chosen.
    pub(crate) fn squared_error(&self) -> f64 {
        self.chosen().map(|(_, cost)| cost.squared_error).sum()
    }

    /// Fills what is left of the budget, and exchanges choices between two tensors, while either helps.
    fn improve(&mut self, budget: u64) {
        self.fill(budget);
        for _ in 0..EXCHANGES {
            let Some(changes) = self.best_exchange(budget) else { return };
            for (open, to) in changes {
                self.open[open].chosen = to;
            }
            self.fill(budget);
        }
    }

    /// The two changes, one to more bytes and one to fewer, that together fit the budget and take most error away.
    fn best_exchange(&self, budget: u64) -> Option<[(usize, usize); 2]> {
        let left = budget.saturating_sub(self.bytes());
        let cuts = self.cuts();
        let mut best: Option<(f64, [(usize, usize); 2])> = None;
        for (i, open) in self.open.iter().enumerate() {
            let now = &open.costs[open.chosen];
            for (to, cost) in open.costs.iter().enumerate() {
                let needed = cost.bytes.saturating_sub(now.bytes).saturating_sub(left);
                // The cuts that free enough come first.
                let enough = cuts.partition_point(|cut| cut.fewer >= needed);
                let Some(Some(cut)) = enough.checked_sub(1).map(|last| cuts[last].cheapest_other_than(i)) else {
                    continue;
                };
                let gain = now.squared_error - cost.squared_error - cut.worse;
                if gain > SLIGHTEST * now.squared_error && best.is_none_or(|(other, _)| gain > other) {
                    best = Some((gain, [(i, to), (cut.open, cut.to)]));
                }
            }
        }
        best.map(|(_, changes)| changes)
    }

    /// All changes to fewer bytes, those that free most first, each with the cheapest two of those up to it.
    fn cuts(&self) -> Vec<Cuts> {
        let mut all: Vec<(u64, Cut)> = Vec::new();
        for (i, open) in self.open.iter().enumerate() {
            let now = &open.costs[open.chosen];
            for (to, cost) in open.costs.iter().enumerate().filter(|(_, cost)| cost.bytes < now.bytes) {
                let cut = Cut { open: i, to, worse: cost.squared_error - now.squared_error };
                all.push((now.bytes.saturating_sub(cost.bytes), cut));
            }
        }
        all.sort_by_key(|(fewer, _)| std::cmp::Reverse(*fewer));
        let mut cheapest: [Option<Cut>; 2] = [None, None];
        let with_cheapest = |(fewer, cut): (u64, Cut)| {
            match &cheapest {
                [None, _] => cheapest = [Some(cut), None],
                [Some(first), _] if cut.worse < first.worse => {
                    // The second is another tensor's.
                    let second = if first.open == cut.open { cheapest[1] } else { Some(*first) };
                    cheapest = [Some(cut), second];
                }
                [Some(first), second] => {
                    if first.open != cut.open && second.is_none_or(|second| cut.worse < second.worse) {
                        cheapest[1] = Some(cut);
                    }
                }
            }
            Cuts { fewer, cheapest }
        };
        all.into_iter().map(with_cheapest).collect()
    }

    /// Moves to a budget that differs a little from what is chosen, changing as few tensors as need be.
    ///
    /// # Errors
    /// If even the smallest choices exceed it.
    pub(crate) fn adjust(&mut self, budget: u64) -> Result<()> {
        if self.is_uniform {
            return self.choose_one_for_all(budget);
        }
        self.cut(budget)?;
        // No exchanges here: what changes is written anew.
        self.fill(budget);
        Ok(())
    }

    /// Takes the cheapest changes that lead down to a budget.
    fn cut(&mut self, budget: u64) -> Result<()> {
        while self.bytes() > budget {
            let excess = self.bytes() - budget;
            let Some((open, to)) = self.cheapest_cut(excess) else { return Err(too_small()) };
            self.open[open].chosen = to;
        }
        Ok(())
    }

    /// Takes a choice away from a tensor, and all that are not better. Gives false if it was the last.
    pub(crate) fn forbid(&mut self, tensor: usize, choice: Choice) -> bool {
        let mut is_left = true;
        // What one tensor cannot have, none can where all have the same.
        for open in self.open.iter_mut().filter(|open| self.is_uniform || open.tensor == tensor) {
            let is_allowed = |cost: &&Cost| cost.choice.is_none_or(|other| !other.is_no_better_than(choice));
            let costs: Vec<Cost> = open.costs.iter().filter(is_allowed).copied().collect();
            is_left &= !costs.is_empty();
            if !costs.is_empty() {
                (open.costs, open.chosen) = (costs, 0);
            }
        }
        is_left
    }

    /// Puts what was measured of a tensor, as chosen, in place of what was estimated. Where the sample was not like the
    /// rest, its other choices are taken to be as far off; true if that is so.
    pub(crate) fn measured(&mut self, tensor: usize, bytes: u64, squared_error: f64) -> bool {
        let Some(open) = self.open.iter_mut().find(|open| open.tensor == tensor) else { return false };
        let chosen = open.costs[open.chosen];
        let Some(choice) = chosen.choice else { return false };
        let is_like = squared_error <= UNLIKE * chosen.squared_error && chosen.squared_error <= UNLIKE * squared_error;
        for cost in open.costs.iter_mut().filter(|_| !is_like) {
            let Some(other) = cost.choice else { continue };
            cost.squared_error = if chosen.squared_error > 0.0 {
                cost.squared_error * (squared_error / chosen.squared_error)
            } else {
                // Nothing was lost in the sample: a step is half as wide with every bit more.
                squared_error * 4f64.powi(choice.bits().get() as i32 - other.bits().get() as i32)
            };
        }
        let cost = &mut open.costs[open.chosen];
        (cost.bytes, cost.squared_error) = (bytes, squared_error);
        !is_like
    }

    /// The change to fewer bytes that costs least: of those that suffice by themselves, or else by the byte.
    fn cheapest_cut(&self, excess: u64) -> Option<(usize, usize)> {
        let mut best: Option<((bool, f64), (usize, usize))> = None;
        for (i, open) in self.open.iter().enumerate() {
            let now = &open.costs[open.chosen];
            for (to, cost) in open.costs.iter().enumerate().filter(|(_, cost)| cost.bytes < now.bytes) {
                let (fewer, worse) = (now.bytes - cost.bytes, cost.squared_error - now.squared_error);
                let suffices = fewer >= excess;
                let price = if suffices { worse } else { worse / fewer as f64 };
                let is_better = best.is_none_or(|((other_suffices, other), _)| match (suffices, other_suffices) {
                    (true, false) => true,
                    (false, true) => false,
                    _ => price < other,
                });
                if is_better {
                    best = Some(((suffices, price), (i, to)));
                }
            }
        }
        best.map(|(_, change)| change)
    }

    /// Spends what is left of the budget on the changes that take most error away, one by one.
    fn fill(&mut self, budget: u64) {
        let mut left = budget.saturating_sub(self.bytes());
        loop {
            let mut best: Option<(f64, usize, usize, u64)> = None;
            for (i, open) in self.open.iter().enumerate() {
                let now = &open.costs[open.chosen];
                for (to, cost) in open.costs.iter().enumerate() {
                    let more = cost.bytes.saturating_sub(now.bytes);
                    let gain = now.squared_error - cost.squared_error;
                    if more <= left && gain > 0.0 && best.is_none_or(|(other, ..)| gain > other) {
                        best = Some((gain, i, to, more));
                    }
                }
            }
            let Some((_, open, to, more)) = best else { return };
            (self.open[open].chosen, left) = (to, left - more);
        }
    }

    /// The choice for all tensors alike that has least error within the budget.
    fn choose_one_for_all(&mut self, budget: u64) -> Result<()> {
        let within =
            |choice| self.of_all(choice).filter(|(bytes, _)| *bytes <= budget).map(|(_, error)| (error, choice));
        let found = self.common_choices().into_iter().filter_map(within).min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, choice)) = found else {
            return if self.open.is_empty() { Ok(()) } else { Err(too_small()) };
        };
        for open in &mut self.open {
            open.chosen = open.costs.iter().position(|cost| cost.choice == choice).unwrap_or_default();
        }
        Ok(())
    }

    /// The choices that some tensor has, each once.
    fn every_choice(&self) -> Vec<Choice> {
        let mut all: Vec<Choice> = Vec::new();
        for choice in self.open.iter().flat_map(|open| &open.costs).filter_map(|cost| cost.choice) {
            if !all.contains(&choice) {
                all.push(choice);
            }
        }
        all
    }

    /// The choices of the first tensor; one that another tensor lacks is none for all.
    fn common_choices(&self) -> Vec<Option<Choice>> {
        self.open.first().map_or(Vec::new(), |first| first.costs.iter().map(|cost| cost.choice).collect())
    }

    /// Bytes and error of all tensors with one choice, if all have it.
    fn of_all(&self, choice: Option<Choice>) -> Option<(u64, f64)> {
        let cost = |open: &Open| open.costs.iter().find(|cost| cost.choice == choice).copied();
        let costs: Option<Vec<Cost>> = self.open.iter().map(cost).collect();
        Some(costs?.iter().fold((0, 0.0), |(bytes, error), cost| (bytes + cost.bytes, error + cost.squared_error)))
    }
}

/// A change of a tensor to fewer bytes.
#[derive(Debug, Clone, Copy)]
struct Cut {
    open: usize,
    to: usize,
    worse: f64,
}

/// A change in a list of them, with the cheapest, of two tensors, of those up to it.
#[derive(Debug)]
struct Cuts {
    fewer: u64,
    cheapest: [Option<Cut>; 2],
}

impl Cuts {
    fn cheapest_other_than(&self, open: usize) -> Option<Cut> {
        self.cheapest.iter().flatten().find(|cut| cut.open != open).copied()
    }
}

/// Along a tensor's curve, from one choice to a better one.
#[derive(Debug)]
struct Step {
    open: usize,
    from: usize,
    to: usize,
    /// Error taken away by a byte.
    gain: f64,
}

/// The smallest size is the caller's to tell: it knows what is stored beside the tensors that have a choice.
fn too_small() -> QuantError {
    QuantError::configuration("the target size is too small")
}

/// The choices that no other one beats with no more bytes, in order.
fn worth_it(costs: &[Cost]) -> Vec<usize> {
    let mut least = f64::INFINITY;
    let is_better = |index: &usize| {
        let error = costs[*index].squared_error;
        let is_better = error.total_cmp(&least) == Ordering::Less;
        least = least.min(error);
        is_better
    };
    (0..costs.len()).filter(is_better).collect()
}

/// Steps along the lower convex hull of a tensor's choices.
fn hull(open: usize, costs: &[Cost]) -> Vec<Step> {
    let gain = |from: usize, to: usize| {
        (costs[from].squared_error - costs[to].squared_error) / (costs[to].bytes - costs[from].bytes).max(1) as f64
    };
    let mut corners: Vec<usize> = Vec::new();
    for next in worth_it(costs) {
        while let [.., before, last] = corners[..] {
            if gain(before, last) >= gain(last, next) {
                break;
            }
            corners.pop();
        }
        corners.push(next);
    }
    corners.windows(2).map(|w| Step { open, from: w[0], to: w[1], gain: gain(w[0], w[1]) }).collect()
}
