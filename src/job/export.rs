//! An export: what a quantized model directory holds, written for another program code by code. Nothing is quantized again.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int32Type;
use arrow_quant_formats::ContentHash;
use arrow_quant_formats::full_name;
use arrow_quant_formats::manifest::{FileEntry, Manifest, SMOOTHING, TensorReport};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::journal::RunIdentity;
use super::staging::{Existing, Staging};
use super::{JobOptions, plan_hash, writer};
use crate::config::{Format, WeightType};
use crate::model::QuantizedDirectory;
use crate::plan::{Allowed, Choice, Contents, JobSettings, ModelPlan, TensorPlan};
use crate::report::{ModelReport, QuantizeReport};
use crate::tables::ModelParts;
use crate::targets::{PartWriter, Target, TargetName};
use crate::workers::blocking;
use crate::{DiffusionQuantConfig, Model, QuantError, Result};

/// Rows that are read at once.
const BATCH: usize = 64;

/// Writes what a quantized model directory holds in another format, with the same codes. Of the configuration those fields count
/// that concern the format: `format`, `architecture` and `pre_tokenizer`.
///
/// # Errors
/// If there is no quantized model directory, the format cannot hold what is in it as it is, the output exists already, or a file cannot
/// be read or written.
pub async fn export_model(
    quantized: &Path,
    out: &Path,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
) -> Result<QuantizeReport> {
    let started = Instant::now();
    let name = options.target(config, Some(out));
    let (path, to, asked) = (quantized.to_path_buf(), out.to_path_buf(), config.clone());
    let existing = options.existing();
    let export = blocking(move || Export::plan(&path, &to, &asked, name, existing)).await?;
    let export = Arc::new(export);
    let mut parts = Vec::new();
    // Part by part, so that a caller who stops waiting is not waited for longer than that.
    let mut position = Position::default();
    while position.part < export.parts.iter().len() {
        let export = Arc::clone(&export);
        let (written, next) = blocking(move || export.write_part(position)).await?;
        parts.push(written);
        position = next;
    }
    let count = parts.len();
    let manifest = blocking(move || export.finish(parts)).await?;
    Ok(QuantizeReport {
        model: quantized.to_path_buf(),
        output: out.to_path_buf(),
        parts: count,
        resumed_parts: 0,
        was_finished: false,
        started_afresh: None,
        report: ModelReport::new(manifest),
        quantization_time_s: started.elapsed().as_secs_f64(),
    })
}

/// What is exported, and where to.
struct Export {
    directory: QuantizedDirectory,
    plan: ModelPlan,
    layout: Arc<dyn crate::targets::Layout>,
    parts: ModelParts,
    target: &'static dyn Target,
    staging: Staging,
    manifest: Manifest,
}

/// How far the rows of the directory are read.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    /// The part that is to be written next.
    part: usize,
    /// The file that its first row is in, and the number of that row.
    file: usize,
    row: usize,
}

impl Export {
    /// Looks whether the directory can be exported, and makes the place for it.
    fn plan(
        quantized: &Path,
        out: &Path,
        config: &DiffusionQuantConfig,
        name: TargetName,
        existing: Existing,
    ) -> Result<Self> {
        let directory = QuantizedDirectory::open(quantized)?;
        let target = name.target();
        let wrong = |message: String| Err(QuantError::configuration(message).at(quantized));
        let shown = quantized.display();
        if directory.manifest.is_export() {
            return wrong(format!(
                "`{shown}` was written for another program: give a directory of the format {}, or quantize this one",
                Format::ArrowQuant
            ));
        }
        if target.allowed().target == TargetName::default().target().allowed().target {
            return wrong(format!(
                "`{shown}` has the format {} already: choose another with format",
                Format::ArrowQuant
            ));
        }
        if directory.manifest.tables.iter().any(|table| table.path == SMOOTHING) {
            return wrong(format!(
                "the codes of `{shown}` are of smoothed weights, which no other format has: quantize without enable_spatial"
            ));
        }
        let model = Model::of_quantized(&directory)?;
        let mut settings = directory.manifest.settings.clone();
        for field in ["format", "architecture", "pre_tokenizer"] {
            settings.insert(field.to_string(), config.get(field).unwrap_or_default());
        }
        let recorded = recorded_config(&settings, config)?;
        let layout = target.layout(&model, &recorded)?;
        let plan = plan(&directory, model, &recorded, target.allowed_with(&recorded))?;
        layout.check(&plan)?;
        refuse_split(&plan, &layout.units())?;
        refuse_changed(&plan, layout.requests())?;
        let parts = ModelParts::new(&plan.model, |tensor| plan.tensors[tensor].same_as.is_none());
        let hash = ContentHash::of(directory.manifest.to_json().unwrap_or_default());
        let identity = RunIdentity {
            program: writer(),
            target: name.to_string(),
            source: hash,
            settings: settings.clone(),
            calibration: String::new(),
            plan: plan_hash(&plan.tensors),
        };
        // What an export was interrupted at takes as long to check as to write again.
        let existing = Existing { resume: false, ..existing };
        let (staging, _) = Staging::open(out, existing, &identity, target)?;
        let manifest = Manifest { settings, tables: Vec::new(), files: Vec::new(), ..directory.manifest.clone() };
        Ok(Self { directory, plan, layout, parts, target, staging, manifest })
    }

    /// Writes a part of the rows, whose first is at a position.
    fn write_part(&self, position: Position) -> Result<(FileEntry, Position)> {
        let mut writer = self.target.part_writer(self.staging.path(), position.part)?;
        let chunks = self.parts.iter().nth(position.part).cloned().unwrap_or_default();
        let mut next = Position { part: position.part + 1, ..position };
        let mut done = 0;
        while done < chunks.len() {
            let Some(file) = self.directory.manifest.files.get(next.file) else {
                return Err(self.damaged("rows are missing"));
            };
            let read = self.copy_rows(file, next.row, chunks.start + done..chunks.end, writer.as_mut())?;
            done += read;
            if done < chunks.len() {
                (next.file, next.row) = (next.file + 1, 0);
            } else {
                next.row += read;
            }
        }
        Ok((writer.finish()?, next))
    }

    /// Copies rows of a file from one on, until the chunks or the file end; the number of rows.
    fn copy_rows(
        &self,
        file: &FileEntry,
        first: usize,
        chunks: std::ops::Range<usize>,
        writer: &mut dyn PartWriter,
    ) -> Result<usize> {
        let path = self.directory.path().join(&file.path);
        let opened = File::open(&path).map_err(|e| QuantError::io(&path, e))?;
        let damaged = |error: &dyn std::fmt::Display| QuantError::defect(&path, None, error.to_string());
        let reader = ParquetRecordBatchReaderBuilder::try_new(opened).map_err(|e| damaged(&e))?;
        let reader = reader.with_offset(first).with_limit(chunks.len()).with_batch_size(BATCH);
        let mut copied = 0;
        for batch in reader.build().map_err(|e| damaged(&e))? {
            let batch = batch.map_err(|e| damaged(&e))?;
            self.check_rows(&batch, chunks.start + copied)?;
            writer.write(&batch)?;
            copied += batch.num_rows();
        }
        Ok(copied)
    }

    /// Checks that rows are those of the chunks from one on.
    fn check_rows(&self, batch: &RecordBatch, first: usize) -> Result<()> {
        let column =
            |name: &str| batch.column_by_name(name).ok_or_else(|| self.damaged(&format!("there is no {name}")));
        let text = |name| Ok::<_, QuantError>(column(name)?.as_string_opt::<i32>());
        let numbers = column("chunk")?.as_primitive_opt::<Int32Type>();
        let (Some(components), Some(tensors), Some(numbers)) = (text("component")?, text("tensor")?, numbers) else {
            return Err(self.damaged("columns are of other types"));
        };
        let expected = &self.parts.all_chunks()[first..first + batch.num_rows()];
        for (row, chunk) in expected.iter().enumerate() {
            let tensor = &self.plan.model.tensors()[chunk.tensor];
            let is_it = components.value(row) == tensor.component
                && tensors.value(row) == tensor.name
                && numbers.value(row) == chunk.number;
            if !is_it {
                return Err(self.damaged("its rows are in another order than they were written in"));
            }
        }
        Ok(())
    }

    fn damaged(&self, problem: &str) -> QuantError {
        QuantError::defect(self.directory.path(), None, format!("{problem}: quantize the model again"))
    }

    /// Makes the output of the parts.
    fn finish(&self, parts: Vec<FileEntry>) -> Result<Manifest> {
        let mut manifest = self.manifest.clone();
        if self.staging.is_directory() {
            for file in self.plan.model.config_files()? {
                self.staging.copy(&self.plan.model, &file)?;
            }
        }
        manifest.files = self.staging.assemble(&*self.layout, parts, &self.plan)?;
        let stored: u64 = manifest.stored().map(|file| file.bytes).sum();
        let totals = &mut manifest.totals;
        totals.stored_bytes = stored;
        totals.bits_per_weight = 8.0 * stored as f64 / totals.weights.max(1) as f64;
        totals.compression_ratio = totals.original_bytes as f64 / stored.max(1) as f64;
        manifest.notes.push(format!("exported from `{}`", self.directory.path().display()));
        self.staging.complete(&manifest)?;
        Ok(manifest)
    }
}

/// The configuration that a directory was written with, as far as a target looks at it.
fn recorded_config(
    settings: &serde_json::Map<String, serde_json::Value>,
    config: &DiffusionQuantConfig,
) -> Result<DiffusionQuantConfig> {
    let mut recorded = config.clone();
    for field in ["scheme", "method", "group_size", "type"] {
        if let Some(value) = settings.get(field) {
            recorded.set(field, value)?;
        }
    }
    Ok(recorded)
}

/// What each tensor is, as a plan.
fn plan(
    directory: &QuantizedDirectory,
    model: Arc<Model>,
    config: &DiffusionQuantConfig,
    allowed: Allowed,
) -> Result<ModelPlan> {
    let settings = JobSettings { scheme: config.scheme, method: config.method };
    let mut tensors = Vec::with_capacity(model.tensors().len());
    for (index, (report, tensor)) in directory.manifest.tensors.iter().zip(model.tensors()).enumerate() {
        let choice = choice(report)?;
        if let Some(reason) = choice.and_then(|choice| allowed.refusal(tensor, choice, settings.scheme)) {
            let message = format!(
                "{} cannot be exported as it is: {reason}; quantize the model for this format instead",
                full_name(&report.component, &report.tensor)
            );
            return Err(QuantError::configuration(message).at(directory.path()));
        }
        tensors.push(TensorPlan {
            component: report.component.clone(),
            tensor: report.tensor.clone(),
            choice,
            reason: report.because.reason().clone(),
            is_open: false,
            same_as: model.ties().and_then(|ties| ties[index]),
            channels: None,
        });
    }
    let contents = vec![Contents::Weights; tensors.len()];
    Ok(ModelPlan { model, settings, allowed, tensors, contents, sizing: None, units: Vec::new() })
}

/// What a tensor became.
fn choice(report: &TensorReport) -> Result<Option<Choice>> {
    let Some(bits) = report.bits else { return Ok(None) };
    // Earlier versions name no encoding.
    let encoding = if report.encoding.is_empty() { format!("int{bits}") } else { report.encoding.clone() };
    let weight_type: WeightType = encoding.parse()?;
    let group_size = match report.group_size {
        Some(size) => i64::from(size).try_into()?,
        None => DiffusionQuantConfig::default().group_size,
    };
    Ok(Choice::new(weight_type, group_size))
}

/// Tensors that must be the same, and are not, cannot be made so.
fn refuse_split(plan: &ModelPlan, units: &[Vec<usize>]) -> Result<()> {
    for unit in units {
        let first = &plan.tensors[unit[0]];
        if let Some(other) = unit.iter().map(|index| &plan.tensors[*index]).find(|other| other.choice != first.choice) {
            let message = format!(
                "{} and {} cannot be exported as they are: {} makes one layer of both, and they are stored differently",
                first.name(),
                other.name(),
                plan.allowed.target
            );
            return Err(QuantError::configuration(message));
        }
    }
    Ok(())
}

/// A tensor that the target wants as floats, and that is quantized, cannot be had as such again.
fn refuse_changed(plan: &ModelPlan, requests: &[crate::plan::Request]) -> Result<()> {
    let stays = |request: &crate::plan::Request| matches!(request, crate::plan::Request::Stay);
    match plan.tensors.iter().zip(requests).find(|(tensor, request)| tensor.choice.is_some() && stays(request)) {
        Some((tensor, _)) => {
            let message = format!(
                "{} cannot be exported as it is: {} keeps it; quantize the model for this format instead",
                tensor.name(),
                plan.allowed.target
            );
            Err(QuantError::configuration(message))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tensor_became_is_read_from_its_report() {
        let report = |encoding: &str, bits, group_size| TensorReport {
            encoding: encoding.to_string(),
            bits,
            group_size,
            ..TensorReport::default()
        };
        let name = |report: &TensorReport| choice(report).unwrap().map(|choice| choice.weight_type().name());
        assert_eq!(name(&report("int3", Some(3), Some(64))), Some("int3"));
        assert_eq!(name(&report("", Some(4), Some(128))), Some("int4"));
        assert_eq!(name(&report("q4_k", Some(4), None)), Some("q4_k"));
        assert_eq!(name(&report("BF16", None, None)), None);
        assert!(choice(&report("int4", Some(4), Some(48))).is_err());
    }
}
