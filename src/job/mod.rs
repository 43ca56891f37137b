//! The job: the query that quantizes a model, written as a quantized model directory; and the one that validates it.

mod copy;
mod export;
mod factors;
#[cfg(test)]
mod feedback_tests;
mod figures;
mod finished;
mod inspect;
mod journal;
mod open;
mod place;
mod planned;
mod query;
mod report;
mod rounds;
mod run;
mod source;
mod staging;
mod task;
#[cfg(test)]
mod tests;
mod validate;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_quant_formats::ContentHash;
use arrow_quant_formats::manifest::{FORMAT_VERSION, FileEntry, Manifest, Source};

pub use copy::register_copy;
pub use export::export_model;
pub use inspect::inspect_model;
pub use planned::plan_model;
pub use source::{plan_query, quantize_query};
pub use staging::unfinished_run;
pub use validate::{validate_model, verify_model};

use crate::plan::TensorPlan;
use crate::report::{Listener, ModelReport, OnProgress, QuantizeReport};
use crate::tables::default_name;
use crate::targets::TargetName;
use crate::workers::blocking;
use crate::{Calibration, DiffusionQuantConfig, Model, QuantError, Result};
use finished::finished;
use journal::RunIdentity;
use planned::{Planned, plan};
use rounds::{Done, Rounds};
use run::Run;
use source::quantize_relation;
use staging::{Earlier, Existing, Staging};
use task::{PartRecord, TaskModel};

/// The program that writes quantized models.
const PROGRAM: &str = concat!("arrow-quant ", env!("CARGO_PKG_VERSION"));

/// The shortest time between two reports of progress, unless a job is asked for another.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What a job is asked for beside its configuration.
#[derive(Clone)]
pub struct JobOptions {
    /// What the model is written as; `None` for what the configuration's `format` or the output's name says.
    pub target: Option<TargetName>,
    /// A file that says what each tensor becomes, as [`PlanReport::write`] makes it; instead of what the configuration
    /// would have.
    pub plan: Option<PathBuf>,
    /// What the inputs of the model's layers were, for `enable_time_aware` and `enable_spatial`.
    pub calibration: Option<Arc<Calibration>>,
    /// A model whose configuration files, and tokenizer, go with the weights of a query.
    pub files: Option<PathBuf>,
    /// Whether to go on with what an interrupted run of the same job left.
    pub resume: bool,
    /// Whether to replace a quantized model that is where the output goes, with all that is in its directory, once the new one is
    /// complete. Nothing else is replaced.
    pub overwrite: bool,
    /// Told how far the job is.
    pub on_progress: Option<OnProgress>,
    /// The shortest time between two calls of `on_progress`; each stage's first and last are made in any case.
    pub progress_interval: Duration,
}

impl Default for JobOptions {
    fn default() -> Self {
        Self {
            target: None,
            plan: None,
            calibration: None,
            files: None,
            resume: false,
            overwrite: false,
            on_progress: None,
            progress_interval: PROGRESS_INTERVAL,
        }
    }
}

impl JobOptions {
    /// What becomes of what is where the output goes.
    fn existing(&self) -> Existing {
        Existing { resume: self.resume, overwrite: self.overwrite }
    }

    /// What is written, with these options and a configuration.
    fn target(&self, config: &DiffusionQuantConfig, out: Option<&Path>) -> TargetName {
        self.target.unwrap_or_else(|| TargetName::of(config, out))
    }

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
    let (started, existing, name) = (Instant::now(), options.existing(), options.target(config, Some(out)));
    let target = name.target();
    // Before anything else, as planning may take a while.
    if let Some(report) = finished(model, out, config, (existing, target), query).await? {
        return Ok(report);
    }
    let planned = plan(model, config, options, name).await?;
    let (source, settings) = (Arc::clone(&planned.plan.model), config.recorded());
    let fingerprint = blocking(move || source.fingerprint()).await?;
    let model_files = Arc::clone(&planned.plan.model);
    let has_files = query.is_none() || options.files.is_some();
    // The files of a query's rows are ours, and gone when the job ends.
    let files = model_files.files().filter(|_| query.is_none()).map(|(name, _)| name.to_string()).collect();
    let source = Source { name: default_name(model_files.path()), fingerprint, files };
    let identity = RunIdentity {
        program: writer(),
        target: name.to_string(),
        source: source.fingerprint.clone(),
        settings: settings.clone(),
        calibration: planned.calibrated.hash(),
        plan: plan_hash(&planned.plan.tensors),
    };
    let path = out.to_path_buf();
    let (staging, earlier) = blocking(move || Staging::open(&path, existing, &identity, target)).await?;
    let staging = Arc::new(staging);
    let mut manifest = Manifest::new(PROGRAM, source, settings);
    manifest.notes.extend(query.map(query_note));
    let manifest = match write(planned, has_files, config, options, &staging, manifest).await {
        Ok(manifest) => manifest,
        Err(error) => {
            // Weights of a file that was modified may fail in any way: the cause is told, not what came of it.
            let error = model_files.check().err().unwrap_or(error);
            let is_of_use = !is_final(&error);
            let stays = blocking(move || Ok(staging.end(is_of_use))).await?;
            return Err(if stays { QuantError::Unfinished { problem: Box::new(error) } } else { error });
        }
    };
    Ok(QuantizeReport {
        model: model.to_path_buf(),
        output: out.to_path_buf(),
        parts: manifest.files.len(),
        resumed_parts: if let Earlier::Parts(parts) = &earlier { *parts } else { 0 },
        was_finished: false,
        started_afresh: if let Earlier::Unlike(reason) = earlier { Some(reason) } else { None },
        report: ModelReport::new(manifest),
        quantization_time_s: started.elapsed().as_secs_f64(),
    })
}

/// Writes all files of the output, completes the manifest and gives the directory its name.
async fn write(
    planned: Planned,
    has_files: bool,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
    staging: &Arc<Staging>,
    mut manifest: Manifest,
) -> Result<Manifest> {
    let Planned { plan, layout, parts, in_flight, modality, notes, mut calibrated, .. } = planned;
    let beside = calibrated.bytes() + layout.overhead(&plan.model);
    let tables = std::mem::take(&mut calibrated.tables);
    if staging.is_directory() {
        manifest.tables = write_beside(staging, has_files.then(|| Arc::clone(&plan.model)), tables).await?;
    }
    let model = TaskModel { location: plan.model.absolute_path()?, fingerprint: manifest.source.fingerprint.clone() };
    let run = Run { model, parts, staging: Arc::clone(staging), in_flight, listener: options.listener() };
    let at_first = plan.tensors.clone();
    let Done { plan, fallbacks, sums, records } = Rounds::new(plan, beside, config).run(&run).await?;
    calibrated.forget_gains(&at_first, &plan.tensors);
    let plan = Arc::new(plan);
    manifest.files = {
        let (plan, staging) = (Arc::clone(&plan), Arc::clone(staging));
        let parts = records.into_iter().map(|PartRecord { file, .. }| file).collect();
        blocking(move || staging.assemble(&*layout, parts, &plan)).await?
    };
    let stored_bytes = manifest.stored().map(|file| file.bytes).sum();
    manifest.totals = figures::totals(&plan.model, stored_bytes, &sums);
    manifest.tensors = figures::tensor_reports(&plan.model, &plan.tensors, &sums, &fallbacks)?;
    manifest.modality = modality.map(|modality| modality.to_string());
    manifest.notes.extend(notes);
    manifest.time_aware = calibrated.time_aware;
    manifest.reason = calibrated.reason;
    manifest.layers = calibrated.layers;
    let staging = Arc::clone(staging);
    blocking(move || {
        staging.complete(&manifest)?;
        Ok(manifest)
    })
    .await
}

/// Writes what is beside the weights: copies of the source's files, if it has any, and the tables of a calibration, which
/// are given back as entries of the manifest.
async fn write_beside(
    staging: &Arc<Staging>,
    source: Option<Arc<Model>>,
    tables: Vec<(&'static str, Vec<u8>)>,
) -> Result<Vec<FileEntry>> {
    let staging = Arc::clone(staging);
    blocking(move || {
        if let Some(source) = source {
            for file in source.config_files()? {
                staging.copy(&source, &file)?;
            }
        }
        tables.iter().map(|(name, bytes)| staging.write(name, bytes)).collect()
    })
    .await
}

/// What the notes of an output say of the query that gave its weights.
fn query_note(sql: &str) -> String {
    format!("the model is what this query gave: {sql}")
}

/// True if another run of the same job would fail the same way, so that its finished parts are of no use. Where that is
/// not certain, they are kept.
fn is_final(error: &QuantError) -> bool {
    match error {
        // The disk, the machine and files that are in the way can change.
        QuantError::Io { .. }
        | QuantError::Query(_)
        | QuantError::Output { .. }
        | QuantError::ModelNotFound { .. }
        | QuantError::Threads { .. }
        | QuantError::Unfinished { .. } => false,
        QuantError::Quantization { tensor, .. } => tensor.is_some(),
        QuantError::Refused(_)
        | QuantError::Configuration { .. }
        | QuantError::Setting { .. }
        | QuantError::Metadata { .. }
        | QuantError::UnknownModality { .. }
        | QuantError::Language { .. }
        | QuantError::ShapeMismatch { .. }
        | QuantError::Validation { .. }
        | QuantError::BelowFloor { .. }
        | QuantError::Weights { .. }
        // Parts of the file as it was must not get beside parts of the file as it is.
        | QuantError::Changed { .. }
        | QuantError::Access(_) => true,
    }
}

/// The program and the version of what it writes: parts of another writer must not get into the same directory.
fn writer() -> String {
    format!("{PROGRAM}, format version {FORMAT_VERSION}")
}

/// A hash of what tensors become. It leaves out the reasons, which change no byte of a part.
fn plan_hash(plans: &[TensorPlan]) -> String {
    let mut hash = ContentHash::new();
    for plan in plans {
        let channels = plan.channels.as_ref().map(|channels| &channels.hash);
        hash.update(serde_json::json!([plan.component, plan.tensor, plan.choice, channels]).to_string());
    }
    hash.finish()
}
