//! Jobs over a query: its rows are a model, written beside the output for as long as the job runs.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow_quant_kernels::Dtype;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::{DataFrame, SessionContext};
use tokio::runtime::Handle;

use super::finished::finished;
use super::place::{absolute, create_error, in_the_way};
use super::planned::plan_model;
use super::staging::Staging;
use super::{JobOptions, quantize_source};
use crate::config::WeightType;
use crate::report::{PlanReport, QuantizeReport};
use crate::tables::stage;
use crate::workers::blocking;
use crate::{DiffusionQuantConfig, Model, OutputProblem, QuantError, Result, Tensor, disk};

/// The directory that opens as the model, and what the model is called.
const MODEL: &str = "query";

/// The file that a run holds a lock on for as long as it uses the directory.
const LOCK: &str = "arrow-quant.lock";

/// What notes say of the query of a `COPY`.
const COPIED: &str = "that of a COPY statement";

/// Quantizes what a query gives into a new directory, as [`quantize_model`](crate::quantize_model) does with a model. The query
/// gives rows of the table `weights`: the columns `tensor`, `shape`, `start` and `weights` and, for a pipeline, `component`,
/// in any order of the rows. It runs once. Its rows are written to a sibling of the output, `OUT.source`, which takes as much
/// disk as the weights do and is removed when the job ends. A run that is resumed runs the query again, and goes on if
/// it gives the same.
///
/// [`JobOptions::files`] names the model whose configuration files the rows go with.
///
/// The report's `model` is the text of the query, which also stands among the notes of the quantized model.
///
/// # Errors
/// If the statement is not a query, its result is not a model, and as [`quantize_model`](crate::quantize_model).
pub async fn quantize_query(
    ctx: &SessionContext,
    sql: &str,
    out: &Path,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
) -> Result<QuantizeReport> {
    let started = Instant::now();
    // Before the query, which may take a while.
    let target = options.target(config, Some(out)).target();
    if let Some(report) = finished(Path::new(sql), out, config, (options.existing(), target), Some(sql)).await? {
        return Ok(report);
    }
    config.validate()?;
    let source = Source::of_relation(relation(ctx, sql).await?, out, options.files.as_deref()).await?;
    let done = quantize_source(&source.model, out, config, options, Some(sql)).await;
    source.remove().await?;
    let mut report = done?;
    report.model = PathBuf::from(sql);
    report.quantization_time_s = started.elapsed().as_secs_f64();
    Ok(report)
}

/// The same with the rows of a relation, whose text is not known. With `keeps_type`, weights become the type of float that most of
/// them are.
pub(super) async fn quantize_relation(
    relation: DataFrame,
    out: &Path,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
    keeps_type: bool,
) -> Result<QuantizeReport> {
    config.validate()?;
    let target = options.target(config, Some(out)).target();
    let (to, existing) = (out.to_path_buf(), options.existing());
    blocking(move || Staging::look(&to, existing, target).map(drop)).await?;
    let source = Source::of_relation(relation, out, options.files.as_deref()).await?;
    let done = async {
        let mut config = config.clone();
        if keeps_type {
            let path = source.model.clone();
            config.weight_type = WeightType::Float(blocking(move || most(&Model::open(&path)?)).await?);
        }
        quantize_source(&source.model, out, &config, options, Some(COPIED)).await
    };
    let done = done.await;
    source.remove().await?;
    done
}

/// The type of float that most weights of a model are.
fn most(model: &Model) -> Result<Dtype> {
    let weights = |dtype: &Dtype| -> u64 {
        let same = model.tensors().iter().filter(|tensor| tensor.float_dtype() == Some(*dtype));
        same.map(Tensor::elements).sum()
    };
    Ok(WeightType::FLOATS.iter().copied().max_by_key(weights).unwrap_or(Dtype::F32))
}

/// What would become of the rows of a query, as [`plan_model`](crate::plan_model) tells it of a model. The rows are written
/// to a sibling of `beside`, which need not exist, and removed in the end.
///
/// # Errors
/// If the statement is not a query, its result is not a model, and as [`plan_model`](crate::plan_model).
pub async fn plan_query(
    ctx: &SessionContext,
    sql: &str,
    beside: &Path,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
) -> Result<PlanReport> {
    config.validate()?;
    let source = Source::of_relation(relation(ctx, sql).await?, beside, options.files.as_deref()).await?;
    let done = plan_model(&source.model, config, options).await;
    source.remove().await?;
    let mut report = done?;
    report.model = PathBuf::from(sql);
    Ok(report)
}

/// The relation of a query. Statements that change something are refused.
async fn relation(ctx: &SessionContext, sql: &str) -> Result<DataFrame> {
    let queries_alone = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    Ok(ctx.sql_with_options(sql, queries_alone).await?)
}

/// The rows of a query for as long as a job reads them. Removing them takes as long as removing a model, so a future that is
/// dropped leaves that to a thread for blocking work.
struct Source {
    model: PathBuf,
    /// `None` once it is being removed.
    directory: Option<Arc<SourceDirectory>>,
}

impl Source {
    /// Runs the query of a relation, and writes its rows beside an output, with the configuration of a model if one is given.
    async fn of_relation(relation: DataFrame, out: &Path, files: Option<&Path>) -> Result<Self> {
        let out = out.to_path_buf();
        let directory = Arc::new(blocking(move || SourceDirectory::create(&out)).await?);
        let source = Self { model: directory.model.clone(), directory: Some(Arc::clone(&directory)) };
        let staged = async {
            if let Some(files) = files {
                let (files, to) = (files.to_path_buf(), directory.model.clone());
                blocking(move || copy_configuration(&files, &to)).await?;
            }
            stage(relation, directory).await
        };
        match staged.await {
            Ok(()) => Ok(source),
            Err(error) => {
                source.remove().await?;
                Err(error)
            }
        }
    }

    /// Removes them. Returns when they are gone.
    async fn remove(mut self) -> Result<()> {
        let directory = self.directory.take();
        blocking(move || {
            drop(directory);
            Ok(())
        })
        .await
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // Without a runtime, the directory is removed here.
        if let (Some(directory), Ok(runtime)) = (self.directory.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(directory));
        }
    }
}

/// Copies the configuration files of a model, which the rows of a query go with.
fn copy_configuration(model: &Path, to: &Path) -> Result<()> {
    let model = Model::open(model)?;
    for file in model.config_files()? {
        let copy = to.join(&file);
        if let Some(parent) = copy.parent() {
            fs::create_dir_all(parent).map_err(|e| QuantError::io(parent, e))?;
        }
        model.copy_file(&file, &copy)?;
    }
    Ok(())
}

/// Where the rows of a query are while a job reads them: `OUT.source`. It is removed when it is dropped.
struct SourceDirectory {
    path: PathBuf,
    /// The directory in it that opens as a model.
    model: PathBuf,
    /// Locked, so that another run can tell a directory in use from one that is left.
    _lock: File,
}

impl SourceDirectory {
    /// Makes the directory beside an output. One that a run left which was killed is replaced.
    fn create(out: &Path) -> Result<Self> {
        let out = absolute(out)?;
        let path = sibling(&out);
        let found = match fs::create_dir(&path) {
            Ok(()) => None,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Self::left(&path)?,
            // Of the output, which is what was asked for.
            Err(e) => return Err(create_error(&out, e)),
        };
        let lock = match found {
            Some(lock) => lock,
            None => Self::lock(&path, OpenOptions::new().write(true).create_new(true))?,
        };
        let source = Self { model: path.join(MODEL), path, _lock: lock };
        fs::create_dir(&source.model).map_err(|e| QuantError::io(&source.model, e))?;
        Ok(source)
    }

    /// Takes a directory that is there: the lock of the run that left it, `None` if it is empty.
    fn left(path: &Path) -> Result<Option<File>> {
        let foreign = || in_the_way(path, OutputProblem::Foreign);
        if !path.join(LOCK).is_file() {
            let is_empty = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
            return if is_empty { Ok(None) } else { Err(foreign()) };
        }
        let lock = Self::lock(path, OpenOptions::new().write(true))?;
        let model = path.join(MODEL);
        match fs::remove_dir_all(&model) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(QuantError::io(&model, e)),
            Ok(()) | Err(_) => Ok(Some(lock)),
        }
    }

    /// Opens the lock file and locks it.
    fn lock(path: &Path, options: &OpenOptions) -> Result<File> {
        let lock_path = path.join(LOCK);
        let running = || in_the_way(path, OutputProblem::Running);
        let lock = match options.open(&lock_path) {
            // Another run was faster.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(running()),
            opened => opened.map_err(|e| QuantError::io(&lock_path, e))?,
        };
        if disk::lock(&lock, &lock_path) { Ok(lock) } else { Err(running()) }
    }

    fn remove(&self) -> io::Result<()> {
        // A task of a job that was dropped may still be creating a file; the directory is then empty at the second try.
        fs::remove_dir_all(&self.path).or_else(|_| fs::remove_dir_all(&self.path))
    }
}

impl AsRef<Path> for SourceDirectory {
    fn as_ref(&self) -> &Path {
        &self.model
    }
}

impl Drop for SourceDirectory {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            log::warn!("`{}` cannot be removed: {error}", self.path.display());
        }
    }
}

fn sibling(out: &Path) -> PathBuf {
    let mut name = out.file_name().map(OsString::from).unwrap_or_default();
    name.push(".source");
    out.with_file_name(name)
}
