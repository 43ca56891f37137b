//! The rounds of a job: the model is quantized by a plan, and what falls short of the floor or the target size gets
//! another plan, until nothing does.

use std::collections::HashMap;

use arrow_quant_formats::full_name;
use arrow_quant_formats::manifest::{Attempt, Reason};
use arrow_quant_kernels::PairSums;

use super::figures::{TensorSums, tensor_sums};
use super::run::Run;
use super::task::PartRecord;
use crate::plan::{Allocation, Floor, ModelPlan, TensorPlan};
use crate::report::{self, Stage};
use crate::{DiffusionQuantConfig, QuantError, Result, SettingProblem};

/// A part of the target size that may stay unused.
const UNUSED: f64 = 0.005;

/// The part of the error that must be left after an adjustment for it to be made where the size is right already.
const WORTH_A_ROUND: f64 = 0.95;

/// Times that a plan is adjusted to the target size before it is given up. Each time files are written anew, the first
/// one makes good for what could not be known before, and a second one is rare.
const ADJUSTMENTS: usize = 6;

/// The rounds of a job: the model is quantized by a plan, and what falls short of the floor or the target size gets
/// another plan, until nothing does.
pub(super) struct Rounds {
    plan: ModelPlan,
    /// Bytes that are stored beside the parts.
    beside: u64,
    floor: Floor,
    fail_fast: bool,
    fallbacks: Vec<Vec<Attempt>>,
    /// Of those that fell back, why.
    fell_because: Vec<Option<Reason>>,
    /// Bytes of the target size that are left unused, since files turned out larger than expected.
    reserve: u64,
}

/// All parts written as they shall be.
pub(super) struct Done {
    pub plan: ModelPlan,
    pub fallbacks: Vec<Vec<Attempt>>,
    pub sums: Vec<TensorSums>,
    pub records: Vec<PartRecord>,
}

impl Rounds {
    pub(super) fn new(plan: ModelPlan, beside: u64, config: &DiffusionQuantConfig) -> Self {
        let tensors = plan.tensors.len();
        let (fallbacks, fell_because) = (vec![Vec::new(); tensors], vec![None; tensors]);
        let (floor, fail_fast) = (Floor::of(config), config.fail_fast);
        Self { plan, beside, floor, fail_fast, fallbacks, fell_because, reserve: 0 }
    }

    /// Writes every part as it shall be in the end.
    ///
    /// # Errors
    /// If a part cannot be written, the target size not be met or, with `fail_fast`, a tensor is below the floor.
    pub(super) async fn run(mut self, run: &Run) -> Result<Done> {
        let (mut stage, mut adjustments) = (Stage::Quantizing, 0);
        loop {
            let mut watch = Watch::new(&self);
            let records = run.measure(&self.plan, stage, &mut |record| watch.see(record)).await?;
            let sums = tensor_sums(&records, &self.plan.tensors);
            let below = self.below(&sums);
            if let Some(&first) = below.iter().find(|&&index| self.fail_fast && !self.is_up_to_target(index)) {
                return Err(stopped(&self.plan.tensors[first], &self.floor, &sums[first].errors));
            }
            let files: u64 = self.beside + records.iter().map(|record| record.file.bytes).sum::<u64>();
            below.iter().for_each(|&index| self.fall_back(index, &sums[index].errors));
            let is_adjusted = (adjustments < ADJUSTMENTS || !below.is_empty())
                && self.meet_target(&sums, files, !below.is_empty())?;
            for (plan, reason) in self.plan.tensors.iter_mut().zip(&self.fell_because) {
                if let Some(reason) = reason {
                    plan.reason.clone_from(reason);
                }
            }
            let is_united = self.plan.follow_units();
            self.plan.follow_ties();
            if below.is_empty() && !is_adjusted && !is_united {
                self.refuse_too_large(files)?;
                run.complete(&self.plan).await?;
                return Ok(Done { plan: self.plan, fallbacks: self.fallbacks, sums, records });
            }
            adjustments += usize::from(is_adjusted);
            stage = Stage::Requantizing;
        }
    }

    /// Whether a target size chose for a tensor: that it chose badly, from a sample, is no reason to stop.
    fn is_up_to_target(&self, index: usize) -> bool {
        self.plan.sizing.is_some() && self.plan.tensors[index].is_open
    }

    /// The tensors that are below the floor.
    fn below(&self, sums: &[TensorSums]) -> Vec<usize> {
        let is_below =
            |&index: &usize| self.plan.tensors[index].choice.is_some() && !self.floor.allows(&sums[index].errors);
        (0..sums.len()).filter(is_below).collect()
    }

    /// Gives a tensor the next width that the target allows, or its own dtype.
    fn fall_back(&mut self, index: usize, sums: &PairSums) {
        let plan = &mut self.plan.tensors[index];
        let Some(choice) = plan.choice else { return };
        self.fallbacks[index].push(Attempt {
            encoding: choice.weight_type().to_string(),
            bits: choice.bits().get() as u8,
            group_size: choice.group_size().map(|size| size.get() as u32),
            cosine_similarity: sums.cosine_similarity(),
            sqnr_db: report::sqnr_db(sums).and_then(report::finite),
        });
        let shortfall = self.floor.shortfall(sums);
        self.fell_because[index] = Some(Reason::Fallback { bits: choice.bits().get() as u8, shortfall });
        let unit = self.plan.unit(index);
        let is_open = self.plan.tensors[index].is_open;
        if let Some(sizing) = self.plan.sizing.as_mut().filter(|_| is_open) {
            if sizing.allocation.forbid(unit[0], choice) {
                return;
            }
            unit.iter().for_each(|index| self.plan.tensors[*index].is_open = false);
        }
        self.plan.widen(index);
    }

    /// Brings the plan nearer to the target size, where what was written, or what a fallback adds to it, is too far from it,
    /// or where what was measured shows a much better way.
    fn meet_target(&mut self, sums: &[TensorSums], files: u64, fell_back: bool) -> Result<bool> {
        let Some(sizing) = &self.plan.sizing else { return Ok(false) };
        let units: Vec<_> = sizing.allocation.chosen().map(|(first, _)| self.plan.unit(first)).collect();
        let Some(sizing) = self.plan.sizing.as_mut() else { return Ok(false) };
        let (target, allocation) = (sizing.target.bytes, &mut sizing.allocation);
        let before: Vec<_> = allocation.chosen().map(|(index, cost)| (index, cost.choice)).collect();
        let (mut open, mut is_unlike) = (0, false);
        for ((first, choice), unit) in before.iter().zip(units) {
            let bytes = unit.iter().map(|index| sums[*index].bytes).sum();
            open += bytes;
            if *choice == self.plan.tensors[*first].choice {
                let squared_error = unit.iter().map(|index| sums[*index].errors.sum_ee).sum();
                is_unlike |= allocation.measured(*first, bytes, squared_error);
            }
        }
        if files > target {
            // What is beside the tensors' bytes varies a little with what they are.
            self.reserve += (files - target) / 4 + 16;
        }
        let budget = target.saturating_sub(files.saturating_sub(open) + self.reserve);
        let fits = files <= target && !fell_back;
        let Some(adjusted) = better(allocation, budget, is_unlike) else {
            return if fits { Ok(false) } else { Err(self.too_small()) };
        };
        let is_near = fits && files as f64 >= (1.0 - UNUSED) * target as f64;
        // Parts are written again for what is missing from the target, or for what the choices gain.
        if is_near && adjusted.squared_error() > WORTH_A_ROUND * allocation.squared_error() {
            return Ok(false);
        }
        *allocation = adjusted;
        let is_other = allocation.chosen().zip(&before).any(|((_, cost), (_, before))| cost.choice != *before);
        self.plan.follow_sizing();
        Ok(is_other || fell_back)
    }

    fn too_small(&self) -> QuantError {
        let target = self.plan.sizing.as_ref().map(|sizing| sizing.target);
        let (field, bytes) = target.map_or(("target_model_size_mb", 0), |target| (target.field, target.bytes));
        let below_floor = self.fell_because.iter().flatten().count();
        QuantError::setting(field, SettingProblem::NotMet { target_mb: bytes as f64 / 1e6, below_floor })
    }

    fn refuse_too_large(&self, files: u64) -> Result<()> {
        match &self.plan.sizing {
            Some(sizing) if files > sizing.target.bytes => Err(self.too_small()),
            _ => Ok(()),
        }
    }
}

/// The smallest change of an allocation that meets a budget, unless to choose anew is much better. `None` if nothing does.
fn better(allocation: &Allocation, budget: u64, is_unlike: bool) -> Option<Allocation> {
    let mut adjusted = allocation.clone();
    let is_adjusted = adjusted.adjust(budget).is_ok();
    let mut anew = allocation.clone();
    if anew.choose(budget).is_err() {
        return is_adjusted.then_some(adjusted);
    }
    let is_much_better = anew.squared_error() < WORTH_A_ROUND * adjusted.squared_error();
    Some(if is_adjusted && !is_unlike && !is_much_better { adjusted } else { anew })
}

fn stopped(plan: &TensorPlan, floor: &Floor, sums: &PairSums) -> QuantError {
    let name = full_name(&plan.component, &plan.tensor);
    let bits = plan.choice.map_or(0, |choice| choice.bits().get());
    QuantError::BelowFloor { tensor: name, bits, shortfall: floor.shortfall(sums) }
}

/// Looks at parts as they are written, to end a job that shall fail fast.
struct Watch<'a> {
    plans: &'a [TensorPlan],
    rounds: &'a Rounds,
    index: HashMap<(&'a str, &'a str), usize>,
    sums: Vec<PairSums>,
}

impl<'a> Watch<'a> {
    fn new(rounds: &'a Rounds) -> Self {
        let plans = &rounds.plan.tensors;
        Self {
            plans,
            rounds,
            index: plans.iter().enumerate().map(|(index, plan)| (plan.key(), index)).collect(),
            sums: vec![PairSums::default(); plans.len()],
        }
    }

    fn see(&mut self, record: &PartRecord) -> Result<()> {
        if !self.rounds.fail_fast {
            return Ok(());
        }
        for written in &record.tensors {
            let key = (written.component.as_str(), written.tensor.as_str());
            let (Some(&index), Some(errors)) = (self.index.get(&key), written.errors) else { continue };
            let sums = &mut self.sums[index];
            *sums = *sums + errors;
            let is_whole = sums.n == self.rounds.plan.model.tensors()[index].elements();
            if is_whole && !self.rounds.floor.allows(sums) && !self.rounds.is_up_to_target(index) {
                return Err(stopped(&self.plans[index], &self.rounds.floor, sums));
            }
        }
        Ok(())
    }
}
