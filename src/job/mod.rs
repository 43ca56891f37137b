//! The job: the query that quantizes a model, written as a quantized model directory; and the one that validates it.

mod figures;
mod journal;
mod planning;
mod query;
mod rounds;
mod run;
mod staging;
mod validate;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_quant_formats::ContentHash;
use arrow_quant_formats::manifest::{FORMAT_VERSION, Manifest, Source};

pub use planning::plan_model;
pub use query::{plan_query, quantize_query};
pub use staging::unfinished_run;
pub use validate::{validate_model, verify_model};

use crate::plan::TensorPlan;
use crate::report::{Listener, ModelReport, OnProgress, QuantizeReport};
use crate::tables::default_name;
use crate::{Calibration, DiffusionQuantConfig, QuantError, Result};
use journal::RunIdentity;
use planning::Planned;
use rounds::{Done, Rounds};
use run::Run;
use staging::{Earlier, Staging};

/// The program that writes quantized models.
const PROGRAM: &str = concat!("arrow-quant ", env!("CARGO_PKG_VERSION"));

/// The shortest time between two reports of progress, unless a job is asked for another.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What a job is asked for beside its configuration.
#[derive(Clone)]
pub struct JobOptions {
    /// A file that says what each tensor becomes, as [`PlanReport::write`] makes it; instead of what the configuration
    /// would have.
    pub plan: Option<PathBuf>,
    /// What the inputs of the model's layers were, for `enable_time_aware` and `enable_spatial`.
    pub calibration: Option<Arc<Calibration>>,
    /// Whether to go on with what an interrupted run of the same job left.
    pub resume: bool,
    /// Told how far the job is.
    pub on_progress: Option<OnProgress>,
    /// The shortest time between two calls of `on_progress`; each stage's first and last are made in any case.
    pub progress_interval: Duration,
}

impl Default for JobOptions {
    fn default() -> Self {
        Self { plan: None, calibration: None, resume: false, on_progress: None, progress_interval: PROGRESS_INTERVAL }
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
    quantize_source(model, out, config, options, None).await
}

/// The same of a model that is, if so told, the rows of a query: it has no other files, and the query is noted.
async fn quantize_source(
    model: &Path,
    out: &Path,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
    query: Option<&str>,
) -> Result<QuantizeReport> {
    let started = Instant::now();
    // Before anything else, for to plan may take a while.
    Staging::look(out, options.resume)?;
    let planned = Planned::new(model, config, options).await?;
    let settings = config.recorded();
    let source = Source { name: default_name(planned.source.path()), fingerprint: planned.source.fingerprint()? };
    let identity = RunIdentity {
        program: writer(),
        source: source.fingerprint.clone(),
        settings: settings.clone(),
        calibration: planned.calibrated.hash(),
        plan: plan_hash(&planned.plans),
    };
    let files = if query.is_some() { Vec::new() } else { planned.source.config_files()? };
    let (staging, earlier) = Staging::open(out, options.resume, &identity)?;
    let staging = Arc::new(staging);
    let mut manifest = Manifest::new(PROGRAM, source, settings);
    manifest.notes.extend(query.map(|sql| format!("the model is what this query gave: {sql}")));
    if let Err(error) = write(planned, &files, config, options, &staging, &mut manifest).await {
        return Err(if staging.end(!is_final(&error)) { resumable(error) } else { error });
    }
    Ok(QuantizeReport {
        model: model.to_path_buf(),
        output: out.to_path_buf(),
        parts: manifest.files.len(),
        resumed_parts: if let Earlier::Parts(parts) = &earlier { *parts } else { 0 },
        started_afresh: if let Earlier::Unlike(reason) = earlier { Some(reason) } else { None },
        report: ModelReport::new(manifest),
        quantization_time_s: started.elapsed().as_secs_f64(),
    })
}

/// Writes all files of the output, completes the manifest and gives the directory its name.
async fn write(
    planned: Planned,
    files: &[PathBuf],
    config: &DiffusionQuantConfig,
    options: &JobOptions,
    staging: &Arc<Staging>,
    manifest: &mut Manifest,
) -> Result<()> {
    let source = Arc::clone(&planned.source);
    for file in files {
        staging.copy(source.path(), file)?;
    }
    for (name, bytes) in &planned.calibrated.tables {
        manifest.tables.push(staging.write(name, bytes)?);
    }
    let run = Run {
        source: Arc::clone(&source),
        settings: planned.settings,
        parts: planned.parts.clone(),
        staging: Arc::clone(staging),
        in_flight: planned.in_flight,
        listener: options.listener(),
    };
    let at_first = planned.plans.clone();
    let Done { mut planned, fallbacks, sums, records } = Rounds::new(planned, config).run(&run).await?;
    planned.calibrated.forget_gains(&at_first, &planned.plans);
    manifest.files = records.into_iter().map(|record| record.file).collect();
    let stored_bytes = manifest.stored().map(|file| file.bytes).sum();
    manifest.totals = figures::totals(&source, stored_bytes, &sums);
    manifest.tensors = figures::tensor_reports(&source, &planned.plans, &sums, &fallbacks)?;
    manifest.modality = planned.modality.map(|modality| modality.to_string());
    manifest.notes.extend(planned.notes);
    manifest.time_aware = planned.calibrated.time_aware;
    manifest.reason = planned.calibrated.reason;
    manifest.layers = planned.calibrated.layers;
    let json = manifest.to_json().map_err(|error| QuantError::Quantization {
        tensor: None,
        message: format!("the manifest cannot be written: {error}"),
    })?;
    staging.complete(&json)
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
        QuantError::Io { path, source } => QuantError::Unfinished { path, source },
        other => other,
    }
}

/// The program and the version of what it writes: parts of another writer must not get into the same directory.
fn writer() -> String {
    format!("{PROGRAM}, format version {FORMAT_VERSION}")
}

fn plan_hash(plans: &[TensorPlan]) -> String {
    let mut hash = ContentHash::new();
    for plan in plans {
        let choice = plan.choice.map(|choice| (choice.bits.get(), choice.group_size.get()));
        let channels = plan.channels.as_ref().map(|channels| &channels.hash);
        hash.update(serde_json::json!([plan.component, plan.tensor, choice, plan.reason, channels]).to_string());
    }
    hash.finish()
}
