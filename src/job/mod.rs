//! The job: the query that quantizes a model, written as a quantized model directory; and the one that validates it.

mod html;
mod journal;
mod manifest;
mod memory;
mod part;
mod plan;
mod plan_file;
mod planning;
mod progress;
mod report;
mod run;
mod sample;
mod staging;
mod target;
mod ties;
mod validate;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_quant_kernels::{Bits, PairSums};
use sha2::{Digest, Sha256};

pub(crate) use manifest::Manifest;
pub(crate) use part::hash_of;
pub(crate) use plan::full_name;
pub use planning::{PlanReport, PlannedTensor, plan_model};
pub use progress::{OnProgress, Progress, Stage};
pub use report::{Attempt, ModelReport, QuantizeReport, TensorReport, Totals};
pub use staging::unfinished_run;
pub use validate::{TensorQuality, ValidationReport, validate_model};

use crate::tables::default_name;
use crate::{DiffusionQuantConfig, QuantError, Result};
use journal::{PartRecord, RunIdentity};
use manifest::{PROGRAM, Source};
use plan::{Choice, TensorPlan, kept_unless_smaller};
use planning::Planned;
use progress::Listener;
use run::{Run, TensorSums, tensor_sums};
use staging::{Earlier, Staging};

/// The shortest time between two reports of progress, unless a job is asked for another.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A part of the target size that may stay unused.
const UNUSED: f64 = 0.005;

/// The part of the error that must be left after an adjustment for it to be made where the size is right already.
const WORTH_A_ROUND: f64 = 0.95;

/// Times that a plan is adjusted to the target size before it is given up. Each time files are written anew, the first
/// one makes good for what could not be known before, and a second one is rare.
const ADJUSTMENTS: usize = 6;

/// What a job is asked for beside its configuration.
#[derive(Clone)]
pub struct JobOptions {
    /// A file that says what each tensor becomes, as [`PlanReport::write`] makes it; instead of what the configuration
    /// would have.
    pub plan: Option<PathBuf>,
    /// Whether to go on with what an interrupted run of the same job left.
    pub resume: bool,
    /// Told how far the job is.
    pub on_progress: Option<OnProgress>,
    /// The shortest time between two calls of `on_progress`; each stage's first and last are made in any case.
    pub progress_interval: Duration,
}

impl Default for JobOptions {
    fn default() -> Self {
        Self { plan: None, resume: false, on_progress: None, progress_interval: PROGRESS_INTERVAL }
    }
}

impl JobOptions {
    fn listener(&self) -> Listener {
        Listener { on_progress: self.on_progress.clone(), interval: self.progress_interval }
    }
}

/// Quantizes a model into a new directory. The directory appears when it is complete: until then all is written to a
/// sibling, `OUT.partial`. If the job is interrupted - its future dropped, the process killed, the disk full - the parts
/// that are finished stay there, for a later run to go on from ([`JobOptions::resume`]).
///
/// # Errors
/// If the configuration is not valid, there is no readable model, the output exists already, a weight is NaN or infinite,
/// a file cannot be written, the target size cannot be met or, with `fail_fast`, a tensor is below the floor.
pub async fn quantize_model(
    model: &Path,
    out: &Path,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
) -> Result<QuantizeReport> {
    let started = Instant::now();
    let planned = Planned::new(model, config, options).await?;
    let held =
        if config.enable_streaming { 0 } else { planned.source.files().map(|(_, f)| f.bytes().len() as u64).sum() };
    let in_flight = memory::in_flight(config, held)?;
    let settings = config.recorded()?;
    let source = Source { name: default_name(planned.source.path()), fingerprint: planned.source.fingerprint() };
    let identity = RunIdentity {
        program: PROGRAM.to_string(),
        source: source.fingerprint.clone(),
        settings: settings.clone(),
        plan: plan_hash(&planned.plans),
    };
    let (staging, earlier) = Staging::open(out, options.resume, &identity)?;
    let copied = planned
        .source
        .config_files()
        .and_then(|files| files.iter().try_for_each(|file| staging.copy(planned.source.path(), file)));
    // What an earlier run finished stays: to copy a file can be tried again.
    copied.map_err(|error| if staging.stays() { resumable(error) } else { error })?;
    let staging = Arc::new(staging);
    let run = Run {
        source: Arc::clone(&planned.source),
        settings: planned.settings,
        parts: planned.parts.clone(),
        staging: Arc::clone(&staging),
        in_flight,
        listener: options.listener(),
    };
    let floor = Floor::of(config);
    let tensors = planned.plans.len();
    let (fallbacks, fell_because) = (vec![Vec::new(); tensors], vec![None; tensors]);
    let rounds = Rounds { floor, fail_fast: config.fail_fast, fallbacks, fell_because, planned };
    let result = rounds.run(&run).await;
    drop(run);
    // The run's tasks have ended by now, so nobody else holds it.
    let Some(mut staging) = Arc::into_inner(staging) else {
        return result.and(Err(defect("a part is still being written")));
    };
    let done = match result {
        Ok(done) => done,
        Err(error) => {
            if is_final(&error) {
                staging.discard();
            }
            return Err(if staging.stays() { resumable(error) } else { error });
        }
    };
    let mut manifest = Manifest::new(source, settings);
    manifest.files = done.records.into_iter().map(|record| record.file).collect();
    let stored_bytes = manifest.files.iter().map(|file| file.bytes).sum();
    let planned = done.planned;
    manifest.totals = Totals::new(&planned.source, stored_bytes, &done.sums);
    manifest.tensors = report::tensor_reports(&planned.source, &planned.plans, &done.sums, &done.fallbacks)?;
    manifest.modality = planned.modality.map(|modality| modality.to_string());
    manifest.notes = planned.notes;
    let completed = staging.complete(&manifest.to_json()?);
    completed.map_err(|error| if staging.stays() { resumable(error) } else { error })?;
    Ok(QuantizeReport {
        model: planned.source.path().to_path_buf(),
        output: out.to_path_buf(),
        parts: manifest.files.len(),
        resumed_parts: if let Earlier::Parts(parts) = &earlier { *parts } else { 0 },
        started_afresh: if let Earlier::Unlike(reason) = earlier { Some(reason) } else { None },
        report: ModelReport::new(manifest),
        quantization_time_s: started.elapsed().as_secs_f64(),
    })
}

/// Whether another run would end the same way.
fn is_final(error: &QuantError) -> bool {
    match error {
        QuantError::Io { .. } => false,
        QuantError::Quantization { tensor, .. } => tensor.is_some(),
        _ => true,
    }
}

/// A failure that leaves parts behind says so.
fn resumable(error: QuantError) -> QuantError {
    match error {
        QuantError::Io { path, source } => {
            let said = QuantError::io(&path, source);
            let message = format!("{said}; the finished parts are kept, continue with --resume");
            let message =
                message.strip_prefix(&format!("{}: ", path.display())).map_or(message.clone(), str::to_string);
            QuantError::io(&path, io::Error::other(message))
        }
        other => other,
    }
}

fn defect(what: &str) -> QuantError {
    QuantError::Quantization { tensor: None, message: format!("{what}; this is a defect, please report it") }
}

fn plan_hash(plans: &[TensorPlan]) -> String {
    let mut hash = Sha256::new();
    for plan in plans {
        let choice = plan.choice.map(|choice| (choice.bits.get(), choice.group_size.get()));
        hash.update(serde_json::json!([plan.component, plan.tensor, choice, plan.because]).to_string());
    }
    part::hex(hash)
}

/// The least quality of a quantized tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    cosine_similarity: f64,
    sqnr_db: Option<f64>,
}

impl Floor {
    pub fn of(config: &DiffusionQuantConfig) -> Self {
        Self { cosine_similarity: config.min_accuracy, sqnr_db: config.min_sqnr_db }
    }

    /// Whether a tensor with these sums may be as it is. One of zeros that stay zeros may; one that became zeros may not.
    pub fn allows(&self, sums: &PairSums) -> bool {
        if sums.sum_ee == 0.0 {
            return true;
        }
        sums.cosine_similarity().is_some_and(|cosine| cosine >= self.cosine_similarity)
            && self.sqnr_db.is_none_or(|floor| sums.sqnr_db() >= floor)
    }

    /// The part of the floor that a tensor is below, in words.
    fn violated_by(&self, sums: &PairSums) -> String {
        match (sums.cosine_similarity(), self.sqnr_db) {
            (Some(cosine), Some(floor)) if cosine >= self.cosine_similarity => {
                format!("an SQNR of {:.2} dB, below min_sqnr_db {floor}", sums.sqnr_db())
            }
            (Some(cosine), _) => {
                format!("a cosine similarity of {cosine:.6}, below min_accuracy {}", self.cosine_similarity)
            }
            (None, _) => format!("become all zeros, below min_accuracy {}", self.cosine_similarity),
        }
    }
}

/// The rounds of a job: the model is quantized by a plan, and what falls short of the floor or the target size gets
/// another plan, until nothing does.
struct Rounds {
    planned: Planned,
    floor: Floor,
    fail_fast: bool,
    fallbacks: Vec<Vec<Attempt>>,
    /// Of those that fell back, why.
    fell_because: Vec<Option<String>>,
}

/// All parts written as they shall be.
struct Done {
    planned: Planned,
    fallbacks: Vec<Vec<Attempt>>,
    sums: Vec<TensorSums>,
    records: Vec<PartRecord>,
}

impl Rounds {
    async fn run(mut self, run: &Run) -> Result<Done> {
        let (mut stage, mut adjustments) = (Stage::Quantizing, 0);
        loop {
            let mut watch = Watch::new(&self);
            let records = run.measure(&self.planned.plans, stage, &mut |record| watch.see(record)).await?;
            let sums = tensor_sums(&records, &self.planned.plans);
            let below = self.below(&sums);
            if let Some(&first) = below.iter().find(|&&index| self.fail_fast && !self.is_up_to_target(index)) {
                return Err(stopped(&self.planned.plans[first], &self.floor, &sums[first].errors));
            }
            let files: u64 = records.iter().map(|record| record.file.bytes).sum();
            below.iter().for_each(|&index| self.fall_back(index, &sums[index].errors));
            let is_adjusted = (adjustments < ADJUSTMENTS || !below.is_empty())
                && self.meet_target(&sums, files, !below.is_empty())?;
            for (plan, because) in self.planned.plans.iter_mut().zip(&self.fell_because) {
                if let Some(because) = because {
                    plan.because.clone_from(because);
                }
            }
            self.planned.follow_ties();
            if below.is_empty() && !is_adjusted {
                self.refuse_too_large(files)?;
                run.complete(&self.planned.plans).await?;
                return Ok(Done { planned: self.planned, fallbacks: self.fallbacks, sums, records });
            }
            adjustments += usize::from(is_adjusted);
            stage = Stage::Requantizing;
        }
    }

    /// Whether a target size chose for a tensor: that it chose badly, from a sample, is no reason to stop.
    fn is_up_to_target(&self, index: usize) -> bool {
        self.planned.allocation.is_some() && self.planned.plans[index].is_open
    }

    /// The tensors that are below the floor.
    fn below(&self, sums: &[TensorSums]) -> Vec<usize> {
        let is_below =
            |&index: &usize| self.planned.plans[index].choice.is_some() && !self.floor.allows(&sums[index].errors);
        (0..sums.len()).filter(is_below).collect()
    }

    /// Gives a tensor the next width: 2, 4, 8 bits, its own dtype.
    fn fall_back(&mut self, index: usize, sums: &PairSums) {
        let plan = &mut self.planned.plans[index];
        let Some(choice) = plan.choice else { return };
        self.fallbacks[index].push(Attempt {
            bits: choice.bits.get() as u8,
            group_size: choice.group_size.get() as u32,
            cosine_similarity: sums.cosine_similarity(),
            sqnr_db: report::sqnr_db(sums).and_then(report::finite),
        });
        let found = self.floor.violated_by(sums);
        self.fell_because[index] = Some(format!("fallback: {} bits have {found}", choice.bits.get()));
        if let Some(allocation) = self.planned.allocation.as_mut().filter(|_| plan.is_open) {
            if allocation.forbid(index, choice) {
                return;
            }
            plan.is_open = false;
        }
        let wider = Bits::ALL.iter().copied().find(|bits| bits.get() > choice.bits.get());
        plan.choice = wider.map(|bits| Choice { bits, ..choice });
        *plan = kept_unless_smaller(plan.clone(), &self.planned.source.tensors()[index], self.planned.settings);
    }

    /// Brings the plan nearer to the target size, where what was written, or what a fallback adds to it, is too far from it.
    fn meet_target(&mut self, sums: &[TensorSums], files: u64, is_changed: bool) -> Result<bool> {
        let (Some(target), Some(allocation)) = (&self.planned.target, self.planned.allocation.as_mut()) else {
            return Ok(false);
        };
        let target = target.bytes;
        let before: Vec<Option<Choice>> = allocation.chosen().map(|(_, cost)| cost.choice).collect();
        let mut open = 0;
        for (index, is_as_written) in allocation
            .chosen()
            .map(|(index, cost)| (index, cost.choice == self.planned.plans[index].choice))
            .collect::<Vec<_>>()
        {
            open += sums[index].bytes;
            if is_as_written {
                allocation.measured(index, sums[index].bytes, sums[index].errors.sum_ee);
            }
        }
        let beside = files.saturating_sub(open);
        // What the target leaves for the tensors, a little less than all of it: files vary by some bytes.
        let budget = target.saturating_sub(beside + target / 5000);
        let mut adjusted = allocation.clone();
        adjusted.adjust(budget).map_err(|_| too_small(target))?;
        let is_near = files <= target && files as f64 >= (1.0 - UNUSED) * target as f64;
        // Parts are written again for what is missing from the target, or for what the choices gain.
        if !is_changed && is_near && adjusted.squared_error() > WORTH_A_ROUND * allocation.squared_error() {
            return Ok(false);
        }
        *allocation = adjusted;
        let is_other = allocation.chosen().zip(&before).any(|((_, cost), before)| cost.choice != *before);
        self.planned.follow_allocation();
        Ok(is_other || is_changed)
    }

    fn refuse_too_large(&self, files: u64) -> Result<()> {
        match &self.planned.target {
            Some(target) if files > target.bytes => Err(too_small(target.bytes)),
            _ => Ok(()),
        }
    }
}

fn too_small(target: u64) -> QuantError {
    QuantError::Configuration(format!(
        "the target size of {:.3} MB cannot be met, for tensors that are below the floor need more: allow more, or lower \
         min_accuracy",
        target as f64 / 1e6
    ))
}

fn stopped(plan: &TensorPlan, floor: &Floor, sums: &PairSums) -> QuantError {
    let name = full_name(&plan.component, &plan.tensor);
    let bits = plan.choice.map_or(0, |choice| choice.bits.get());
    let found = floor.violated_by(sums);
    QuantError::Validation {
        message: format!(
            "{name} quantized to {bits} bits has {found}: give it more bits, or leave out fail_fast to have that done"
        ),
    }
}

/// Looks at parts as they are written, to end a job that shall fail fast.
struct Watch<'a> {
    plans: &'a [TensorPlan],
    rounds: &'a Rounds,
    index: std::collections::HashMap<(&'a str, &'a str), usize>,
    sums: Vec<PairSums>,
}

impl<'a> Watch<'a> {
    fn new(rounds: &'a Rounds) -> Self {
        let plans = &rounds.planned.plans;
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
            let is_whole = sums.n == self.rounds.planned.source.tensors()[index].elements();
            if is_whole && !self.rounds.floor.allows(sums) && !self.rounds.is_up_to_target(index) {
                return Err(stopped(&self.plans[index], &self.rounds.floor, sums));
            }
        }
        Ok(())
    }
}
