//! What clients can ask for beside queries: models and jobs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow_quant_flight::{Action, ActionCall, ActionStream};
use arrow_quant_formats::manifest::MANIFEST;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::common::Result;
use futures::{StreamExt, stream};
use serde::Serialize;
use serde_json::Value;

use super::body::Body;
use super::job;
use super::models::{Models, Summary};
use arrow_quant_v2::{
    Calibration, ConfigLayers, DiffusionQuantConfig, JobOptions, ModelReport, QuantError, blocking, quantize_model,
    unfinished_run, validate_model,
};

/// The shortest time between two messages of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// All actions.
pub(super) fn all(models: &Arc<Models>) -> Vec<Arc<dyn Action>> {
    let models = || Arc::clone(models);
    vec![
        Arc::new(ListModels(models())),
        Arc::new(AddModel(models())),
        Arc::new(QuantizeModel(models())),
        Arc::new(ValidateModel(models())),
    ]
}

/// `list_models`: every model with its size.
struct ListModels(Arc<Models>);

#[async_trait]
impl Action for ListModels {
    fn name(&self) -> &'static str {
        "list_models"
    }

    fn description(&self) -> &'static str {
        "lists the models: {}; one {\"name\", \"tensors\", \"bytes\"} each"
    }

    fn writes(&self) -> bool {
        false
    }

    async fn run(&self, call: ActionCall) -> Result<ActionStream> {
        Body::parse(self.name(), &call.body, &[])?;
        let messages: Vec<_> = self.0.summaries().iter().map(message).collect();
        Ok(stream::iter(messages).boxed())
    }
}

/// `add_model`: makes a model a schema, for everyone.
struct AddModel(Arc<Models>);

#[async_trait]
impl Action for AddModel {
    fn name(&self) -> &'static str {
        "add_model"
    }

    fn description(&self) -> &'static str {
        "makes a model a schema, for everyone: {\"name\", \"path\"}"
    }

    fn writes(&self) -> bool {
        true
    }

    fn is_job(&self) -> bool {
        false
    }

    async fn run(&self, call: ActionCall) -> Result<ActionStream> {
        let body = Body::parse(self.name(), &call.body, &["name", "path"])?;
        let path = allowed_input(&self.0, body.text("path")?)?;
        let name = self.0.free_name(&call.base, body.text("name")?)?;
        let summary = self.0.add(&call.base, &name, &path).await?;
        Ok(stream::iter([message(&summary)]).boxed())
    }
}

/// `quantize_model`: writes a quantized copy of a model.
struct QuantizeModel(Arc<Models>);

#[async_trait]
impl Action for QuantizeModel {
    fn name(&self) -> &'static str {
        "quantize_model"
    }

    fn description(&self) -> &'static str {
        "writes a quantized copy of a model: {\"model\": a name or path, \"output\": path, \"config\"?: fields of the configuration, \
         \"calibration\"?: path, \"resume\"?: bool, \"name\"?: a schema for the result}; {\"progress\"} as it goes on, then {\"result\"}"
    }

    fn writes(&self) -> bool {
        true
    }

    async fn run(&self, call: ActionCall) -> Result<ActionStream> {
        let known = ["model", "output", "config", "calibration", "resume", "name"];
        let body = Body::parse(self.name(), &call.body, &known)?;
        let (asked, output) = (body.text("model")?.to_string(), body.text("output")?.to_string());
        let (model, out) = (self.0.path(&asked)?, output_path(&self.0, &output)?);
        let calibration = calibration(&self.0, &body)?;
        let config = configuration(&body, self.0.threads)?;
        let resume = body.flag("resume")?;
        let name = body.optional_text("name")?.map(|name| self.0.free_name(&call.base, name)).transpose()?;
        let (models, base, left) = (Arc::clone(&self.0), call.base.clone(), out.clone());
        let left = move || match unfinished_run(&left) {
            Some(_) => "; the finished parts are kept, continue with them (\"resume\": true)",
            None if left.join(MANIFEST).is_file() => "; it was complete already",
            None => "; nothing was written",
        };
        Ok(job::stream(call, left, move |on_progress| async move {
            let options = JobOptions {
                calibration: open(calibration, config.calibration_samples).await?,
                resume,
                overwrite: false,
                on_progress: Some(on_progress),
                progress_interval: PROGRESS_EVERY,
                ..JobOptions::default()
            };
            let report = quantize_model(&model, &out, &config, &options).await?;
            if let Some(name) = name {
                models.add(&base, &name, &out).await?;
            }
            let mut result = json(&report)?;
            // Where they really are is not the client's to know.
            result["model"] = asked.into();
            result["output"] = output.into();
            Ok::<_, QuantError>(result)
        }))
    }
}

/// `validate_model`: compares a quantized model with its original.
struct ValidateModel(Arc<Models>);

#[async_trait]
impl Action for ValidateModel {
    fn name(&self) -> &'static str {
        "validate_model"
    }

    fn description(&self) -> &'static str {
        "compares a quantized model with its original: {\"original\": a name or path, \"quantized\": a name or path, \
         \"calibration\"?: path}; then {\"result\"}"
    }

    fn writes(&self) -> bool {
        false
    }

    fn is_job(&self) -> bool {
        true
    }

    async fn run(&self, call: ActionCall) -> Result<ActionStream> {
        let body = Body::parse(self.name(), &call.body, &["original", "quantized", "calibration"])?;
        let (original, quantized) = (self.0.path(body.text("original")?)?, self.0.path(body.text("quantized")?)?);
        let (calibration, threads) = (calibration(&self.0, &body)?, self.0.threads);
        Ok(job::stream(
            call,
            || "",
            move |_| async move {
                let calibration = match calibration {
                    Some(path) => {
                        let quantized = quantized.clone();
                        let samples = blocking(move || samples(&quantized)).await?;
                        open(Some(path), samples).await?
                    }
                    None => None,
                };
                json(&validate_model(&original, &quantized, threads, calibration).await?)
            },
        ))
    }
}

/// A path that is to be read, if that is allowed.
fn allowed_input(models: &Models, path: &str) -> arrow_quant_v2::Result<PathBuf> {
    Ok(models.allowed.check_input(Path::new(path))?)
}

/// The directory to write, if it and what it is called before it is complete are allowed.
fn output_path(models: &Models, output: &str) -> arrow_quant_v2::Result<PathBuf> {
    let out = models.allowed.check(Path::new(output))?;
    models.allowed.check(Path::new(&format!("{}.partial", output.trim_end_matches('/'))))?;
    Ok(out)
}

fn calibration(models: &Models, body: &Body) -> arrow_quant_v2::Result<Option<PathBuf>> {
    body.optional_text("calibration")?.map(|path| allowed_input(models, path)).transpose()
}

async fn open(calibration: Option<PathBuf>, samples: i64) -> arrow_quant_v2::Result<Option<Arc<Calibration>>> {
    blocking(move || calibration.map(|path| Calibration::open(path, samples).map(Arc::new)).transpose()).await
}

/// As many samples of a calibration as the job had.
fn samples(quantized: &Path) -> arrow_quant_v2::Result<i64> {
    let samples = ModelReport::open(quantized)?.settings.get("calibration_samples").and_then(Value::as_i64);
    Ok(samples.unwrap_or_else(|| DiffusionQuantConfig::default().calibration_samples))
}

/// The configuration of a job: its profile, the fields of the body over it, and no more threads than the server has.
fn configuration(body: &Body, threads: usize) -> arrow_quant_v2::Result<DiffusionQuantConfig> {
    let mut layers = ConfigLayers::new();
    for (field, value) in body.fields("config")? {
        layers = layers.explicit(field, value.clone());
    }
    let mut config = layers.load()?.config;
    config.num_threads = match config.num_threads {
        0 => threads,
        asked => asked.min(threads),
    };
    Ok(config)
}

fn message(summary: &Summary) -> Result<Bytes> {
    Ok(json(summary)?.to_string().into())
}

fn json(value: &impl Serialize) -> arrow_quant_v2::Result<Value> {
    serde_json::to_value(value).map_err(|error| QuantError::Quantization {
        tensor: None,
        message: format!("the result cannot be written as JSON: {error}"),
    })
}
