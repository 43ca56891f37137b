//! Jobs: a model quantized, a quantized model validated.

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow_quant_v2::{
    DiffusionQuantConfig, JobOptions, ModelReport, OnProgress, Progress, QuantError, export_model as export,
    inspect_model as inspect, plan_model as plan, quantize_model as quantize, quantize_query as quantize_sql, session,
    unfinished_run as unfinished, validate_model as validate,
};
use datafusion::prelude::SessionContext;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::calibration::CalibrationTable;
use crate::config::Config;
use crate::errors::{Result, argument};
use crate::logging;
use crate::runtime::{self, cores};
use crate::sql::Connection;
use crate::values::to_object;
use crate::waiting::{self, Cancellation, Cancelled};

/// Time for cancelled tasks to end and clean up behind themselves.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// How often the engine leaves word at most.
const TICK: Duration = Duration::from_millis(100);

/// Quantizes a model into a new directory.
#[pyfunction]
#[pyo3(signature = (model, out, config, *, plan = None, calibration = None, resume = false, overwrite = false, on_progress = None, progress_interval_s = 5.0, cancellation = None))]
#[allow(clippy::too_many_arguments, reason = "they are the keywords of the function in Python")]
fn quantize_model<'py>(
    py: Python<'py>,
    model: PathBuf,
    out: PathBuf,
    config: &Config,
    plan: Option<PathBuf>,
    calibration: Option<&Bound<'_, PyAny>>,
    resume: bool,
    overwrite: bool,
    on_progress: Option<Py<PyAny>>,
    progress_interval_s: f64,
    cancellation: Option<Cancellation>,
) -> Result<Bound<'py, PyAny>> {
    let asked = Asked {
        plan,
        calibration: CalibrationTable::of(calibration)?,
        resume,
        overwrite,
        on_progress,
        progress_interval_s,
    };
    let job = move |config: DiffusionQuantConfig, options: JobOptions| async move {
        quantize(&model, &out, &config, &options).await
    };
    asked.run(py, config, cancellation.as_ref(), job)
}

/// Quantizes what a query gives into a new directory. The query may name the models and tables of a connection.
#[pyfunction]
#[pyo3(signature = (query, out, config, *, connection = None, plan = None, calibration = None, resume = false, overwrite = false, on_progress = None, progress_interval_s = 5.0, cancellation = None))]
#[allow(clippy::too_many_arguments, reason = "they are the keywords of the function in Python")]
fn quantize_query<'py>(
    py: Python<'py>,
    query: String,
    out: PathBuf,
    config: &Config,
    connection: Option<&Bound<'_, Connection>>,
    plan: Option<PathBuf>,
    calibration: Option<&Bound<'_, PyAny>>,
    resume: bool,
    overwrite: bool,
    on_progress: Option<Py<PyAny>>,
    progress_interval_s: f64,
    cancellation: Option<Cancellation>,
) -> Result<Bound<'py, PyAny>> {
    let asked = Asked {
        plan,
        calibration: CalibrationTable::of(calibration)?,
        resume,
        overwrite,
        on_progress,
        progress_interval_s,
    };
    let ctx: Option<SessionContext> = connection.map(|connection| connection.get().context());
    let job = move |config: DiffusionQuantConfig, options: JobOptions| async move {
        let ctx = match ctx {
            Some(ctx) => ctx,
            None => session(config.threads())?,
        };
        quantize_sql(&ctx, &query, &out, &config, &options).await
    };
    asked.run(py, config, cancellation.as_ref(), job)
}

/// What would become of a model. With `output`, the plan is written to a table.
#[pyfunction]
#[pyo3(signature = (model, config, *, output = None, calibration = None, on_progress = None, progress_interval_s = 5.0, cancellation = None))]
#[allow(clippy::too_many_arguments, reason = "they are the keywords of the function in Python")]
fn plan_model<'py>(
    py: Python<'py>,
    model: PathBuf,
    config: &Config,
    output: Option<PathBuf>,
    calibration: Option<&Bound<'_, PyAny>>,
    on_progress: Option<Py<PyAny>>,
    progress_interval_s: f64,
    cancellation: Option<Cancellation>,
) -> Result<Bound<'py, PyAny>> {
    let calibration = CalibrationTable::of(calibration)?;
    let asked = Asked { plan: None, calibration, resume: false, overwrite: false, on_progress, progress_interval_s };
    let job = move |config: DiffusionQuantConfig, options: JobOptions| async move {
        let planned = plan(&model, &config, &options).await?;
        if let Some(output) = output {
            planned.write(&output)?;
        }
        Ok(planned)
    };
    asked.run(py, config, cancellation.as_ref(), job)
}

/// Writes a quantized model for another program, with the same codes.
#[pyfunction]
#[pyo3(signature = (quantized, out, config, *, overwrite = false, cancellation = None))]
fn export_model<'py>(
    py: Python<'py>,
    quantized: PathBuf,
    out: PathBuf,
    config: &Config,
    overwrite: bool,
    cancellation: Option<Cancellation>,
) -> Result<Bound<'py, PyAny>> {
    let config = config.inner.clone();
    let threads = config.threads();
    let job = async move {
        let options = JobOptions { overwrite, ..JobOptions::default() };
        export(&quantized, &out, &config, &options).await
    };
    let report = run(py, threads, cancellation.as_ref(), job, |_| Ok(()))?;
    Ok(to_object(py, &report)?)
}

/// A model's tensors, from its headers alone.
#[pyfunction]
#[pyo3(signature = (model, *, variant = None, num_threads = None, cancellation = None))]
fn inspect_model<'py>(
    py: Python<'py>,
    model: PathBuf,
    variant: Option<String>,
    num_threads: Option<&Bound<'_, PyAny>>,
    cancellation: Option<Cancellation>,
) -> Result<Bound<'py, PyAny>> {
    let threads = cores(num_threads)?;
    let job = async move { inspect(&model, variant.as_deref(), threads).await };
    let inspection = run(py, threads, cancellation.as_ref(), job, |_| Ok(()))?;
    Ok(to_object(py, &inspection)?)
}

/// What a quantized model says of itself. With `html`, the same is written as a page.
#[pyfunction]
#[pyo3(signature = (quantized, *, html = None))]
fn model_report<'py>(py: Python<'py>, quantized: PathBuf, html: Option<PathBuf>) -> Result<Bound<'py, PyAny>> {
    let report = py.detach(|| {
        let report = ModelReport::open(&quantized)?;
        if let Some(path) = html {
            std::fs::write(&path, report.to_html()).map_err(|source| QuantError::Io { path, source })?;
        }
        Ok::<_, QuantError>(report)
    })?;
    Ok(to_object(py, &report)?)
}

/// What a job that quantizes or plans was asked for in Python.
struct Asked {
    plan: Option<PathBuf>,
    calibration: Option<CalibrationTable>,
    resume: bool,
    overwrite: bool,
    on_progress: Option<Py<PyAny>>,
    progress_interval_s: f64,
}

impl Asked {
    /// Runs a job on threads of its own; its report.
    fn run<'py, F, T>(
        self,
        py: Python<'py>,
        config: &Config,
        cancellation: Option<&Cancellation>,
        job: impl FnOnce(DiffusionQuantConfig, JobOptions) -> F + Send + 'static,
    ) -> Result<Bound<'py, PyAny>>
    where
        F: Future<Output = arrow_quant_v2::Result<T>> + Send,
        T: Serialize + Send + 'static,
    {
        let Self { plan, calibration: table, resume, overwrite, on_progress, progress_interval_s } = self;
        let interval = Duration::try_from_secs_f64(progress_interval_s).map_err(|_| {
            argument(
                "progress_interval_s",
                format!("progress_interval_s is {progress_interval_s}, allowed: seconds, 0 or more"),
            )
        })?;
        let latest = Arc::new(Mutex::new(None));
        let mut told = Told { on_progress, interval, last: None, latest: Arc::clone(&latest) };
        let listener: OnProgress = Arc::new(move |progress: &Progress| {
            if let Ok(mut latest) = latest.lock() {
                *latest = Some(progress.clone());
            }
        });
        let config = config.inner.clone();
        let threads = config.threads();
        let work = async move {
            let calibration = match table {
                Some(table) => Some(table.open(config.calibration_samples).await?),
                None => None,
            };
            let progress_interval = interval.min(TICK);
            let on_progress = Some(listener);
            let options = JobOptions {
                plan,
                calibration,
                resume,
                overwrite,
                on_progress,
                progress_interval,
                ..JobOptions::default()
            };
            job(config, options).await
        };
        let report = run(py, threads, cancellation, work, |py| told.tell(py))?;
        Ok(to_object(py, &report)?)
    }
}

/// Who is told how far a job is, on the thread that called, and not too often.
struct Told {
    on_progress: Option<Py<PyAny>>,
    interval: Duration,
    last: Option<Instant>,
    latest: Arc<Mutex<Option<Progress>>>,
}

impl Told {
    fn tell(&mut self, py: Python<'_>) -> PyResult<()> {
        let Some(on_progress) = &self.on_progress else { return Ok(()) };
        if self.last.is_some_and(|last| last.elapsed() < self.interval) {
            return Ok(());
        }
        let Some(progress) = self.latest.lock().ok().and_then(|mut latest| latest.take()) else { return Ok(()) };
        self.last = Some(Instant::now());
        let Progress { stage, tensor, done, total, .. } = &progress;
        on_progress.call1(py, (stage.to_string(), tensor, *done, *total, progress.to_string())).map(drop)
    }
}

/// Runs a job on threads of its own, which have ended when this returns.
fn run<T: Send + 'static>(
    py: Python<'_>,
    threads: usize,
    cancellation: Option<&Cancellation>,
    job: impl Future<Output = arrow_quant_v2::Result<T>> + Send + 'static,
    between: impl FnMut(Python<'_>) -> PyResult<()>,
) -> Result<T> {
    let runtime = runtime::start(threads)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (done, mut outcome) = sync_channel(1);
    let thread = std::thread::Builder::new().spawn(move || {
        let result = runtime.block_on(async {
            tokio::select! {
                biased;
                _ = stopped => None,
                result = job => Some(result),
            }
        });
        // Before the end is reported, because the caller may then look at what the job left.
        runtime.shutdown_timeout(SHUTDOWN);
        // Sending fails if an exception ended the waiting; then the exception is reported.
        drop(done.send(result));
    });
    let thread = thread.map_err(|source| QuantError::Threads { source })?;
    let outcome: Result<Option<Option<_>>> = waiting::next(py, &mut outcome, cancellation, between);
    if outcome.is_err() {
        drop(stop);
    }
    let ended = py.detach(|| thread.join());
    logging::hand_on(py);
    match (outcome?, ended) {
        (Some(Some(result)), Ok(())) => Ok(result?),
        (Some(None), Ok(())) => Err(Cancelled::new_err("the job was cancelled").into()),
        _ => Err(waiting::panicked().into()),
    }
}

/// The directory in which an interrupted run left what a later one can go on from, or None.
#[pyfunction]
fn unfinished_run(out: PathBuf) -> Option<PathBuf> {
    unfinished(&out)
}

/// Compares a quantized model with its original, weight by weight; and with a calibration, layer by layer.
#[pyfunction]
#[pyo3(signature = (original, quantized, *, calibration = None, calibration_samples = None, num_threads = None, cancellation = None))]
fn validate_model<'py>(
    py: Python<'py>,
    original: PathBuf,
    quantized: PathBuf,
    calibration: Option<&Bound<'_, PyAny>>,
    calibration_samples: Option<i64>,
    num_threads: Option<&Bound<'_, PyAny>>,
    cancellation: Option<Cancellation>,
) -> Result<Bound<'py, PyAny>> {
    let threads = cores(num_threads)?;
    let table = CalibrationTable::of(calibration)?;
    let job = async move {
        let calibration = match table {
            Some(table) => {
                // As many samples as the job had.
                let settings = ModelReport::open(&quantized)?.settings;
                let recorded = settings.get("calibration_samples").and_then(serde_json::Value::as_i64);
                let samples = calibration_samples.or(recorded);
                let samples = samples.unwrap_or_else(|| DiffusionQuantConfig::default().calibration_samples);
                Some(table.open(samples).await?)
            }
            None => None,
        };
        let report = validate(&original, &quantized, threads, calibration).await?;
        let floor = ModelReport::open(&quantized)?.settings.get("min_accuracy").and_then(serde_json::Value::as_f64);
        Ok::<_, QuantError>((report, floor))
    };
    let (report, floor) = run(py, threads, cancellation.as_ref(), job, |_| Ok(()))?;
    let object = to_object(py, &report)?;
    object.cast::<PyDict>().map_err(PyErr::from)?.set_item("min_accuracy", floor)?;
    Ok(object)
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("Cancelled", module.py().get_type::<Cancelled>())?;
    module.add_class::<Cancellation>()?;
    module.add_function(wrap_pyfunction!(quantize_model, module)?)?;
    module.add_function(wrap_pyfunction!(quantize_query, module)?)?;
    module.add_function(wrap_pyfunction!(export_model, module)?)?;
    module.add_function(wrap_pyfunction!(plan_model, module)?)?;
    module.add_function(wrap_pyfunction!(inspect_model, module)?)?;
    module.add_function(wrap_pyfunction!(model_report, module)?)?;
    module.add_function(wrap_pyfunction!(unfinished_run, module)?)?;
    module.add_function(wrap_pyfunction!(validate_model, module)?)
}
