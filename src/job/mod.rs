//! The job: the query that quantizes a model, written as a quantized model directory; and the one that validates it.

mod manifest;
mod part;
mod plan;
mod report;
mod staging;
mod validate;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arrow_quant_kernels::PairSums;
use datafusion::datasource::provider_as_source;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{JoinType, LogicalPlanBuilder, col, lit, when};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::{StreamExt, TryStreamExt};

pub(crate) use manifest::Manifest;
pub use report::{QuantizeReport, TensorReport};
pub use validate::{TensorQuality, ValidationReport, validate_model};

use crate::session::{session_config, with_config};
use crate::tables::{WeightsTable, default_name, part_schema};
use crate::{DiffusionQuantConfig, Model, QuantError, Result};
use manifest::FileEntry;
use part::{PartWriter, WrittenChunk};
use plan::{TensorPlan, plan_table, plan_tensors};
use staging::Staging;

/// Weights of a part, the unit of work: one Parquet file, written by one thread.
const PART_WEIGHTS: u64 = 1 << 25;

/// How far a job is.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Weights quantized.
    pub done: u64,
    /// Weights to quantize; those that are kept cost no time to speak of.
    pub total: u64,
    /// The tensor worked on last.
    pub tensor: String,
}

/// Called with every batch of weights done, from any thread.
pub type OnProgress = Arc<dyn Fn(&Progress) + Send + Sync>;

/// Quantizes a model into a new directory. The directory appears when it is complete: until then all is written to a
/// sibling named `OUT.partial`, which is removed if the job fails or its future is dropped.
///
/// # Errors
/// If the configuration is not valid, there is no readable model, the output exists already, a weight is NaN or infinite,
/// or a file cannot be written.
pub async fn quantize_model(
    model: &Path,
    out: &Path,
    config: &DiffusionQuantConfig,
    on_progress: OnProgress,
) -> Result<QuantizeReport> {
    let started = Instant::now();
    let settings = config.settings()?;
    let selected = config.selected()?;
    arrow_quant_kernels::Isa::active()?;
    let source = Arc::new(Model::open(model)?);
    let plans = plan_tensors(&source, settings, selected.as_ref());
    if source.tensors().is_empty() {
        let message = format!("`{}` has no tensors", source.path().display());
        return Err(QuantError::ModelNotFound { path: source.path().to_path_buf(), message });
    }
    if selected.is_some() && plans.iter().all(|plan| plan.settings.is_none()) {
        let pattern = config.tensors.as_deref().unwrap_or_default();
        let message =
            format!("tensors is '{pattern}', which selects no tensor that can be quantized; see arrow-quant inspect");
        return Err(QuantError::Configuration(message));
    }
    let staging = Staging::create(out)?;
    for file in source.config_files()? {
        staging.copy(source.path(), &file)?;
    }
    let job = Job {
        source: Arc::clone(&source),
        plans: plans.clone(),
        staging: staging.path().to_path_buf(),
        on_progress,
        done: AtomicU64::new(0),
        total: source
            .tensors()
            .iter()
            .zip(&plans)
            .filter(|(_, p)| p.settings.is_some())
            .map(|(t, _)| t.elements())
            .sum(),
    };
    let (files, chunks) = Arc::new(job).run(settings, config.threads()).await?;
    let tensors = report::tensor_reports(&source, &plans, &chunks)?;
    let manifest = Manifest::new(config, default_name(source.path()), source.fingerprint(), tensors, files)?;
    staging.complete(&manifest.to_json()?)?;
    let pooled = chunks.iter().filter_map(|chunk| chunk.errors).fold(PairSums::default(), |sum, part| sum + part);
    Ok(QuantizeReport::new(&source, out, manifest, pooled, started.elapsed()))
}

/// A job under way.
struct Job {
    source: Arc<Model>,
    plans: Vec<TensorPlan>,
    staging: PathBuf,
    on_progress: OnProgress,
    done: AtomicU64,
    total: u64,
}

impl Job {
    /// Runs the query, each of its partitions into a file; files and chunks in order.
    async fn run(
        self: Arc<Self>,
        settings: arrow_quant_kernels::Settings,
        threads: usize,
    ) -> Result<(Vec<FileEntry>, Vec<WrittenChunk>)> {
        // Partitions are parts of the model, whatever the number of threads; one thread takes one at a time.
        let mut config = session_config(1);
        config.options_mut().optimizer.enable_dynamic_filter_pushdown = false;
        let ctx = with_config(config)?;
        let plan = self.query(&ctx, settings).await?;
        let parts = plan.properties().partitioning.partition_count();
        let written = futures::stream::iter(0..parts)
            .map(|part| {
                let (job, plan, ctx) = (Arc::clone(&self), Arc::clone(&plan), ctx.clone());
                let task = tokio::spawn(async move { Ok((part, job.write(part, plan, &ctx).await?)) });
                AbortOnDrop(task)
            })
            // One more than there are threads, to work on while another waits for the disk.
            .buffer_unordered(threads + 1)
            .try_collect::<Vec<_>>()
            .await;
        let mut written = written.map_err(|error| self.explain(error))?;
        written.sort_by_key(|(part, _)| *part);
        let (files, chunks): (Vec<_>, Vec<_>) = written.into_iter().map(|(_, written)| written).unzip();
        Ok((files, chunks.into_iter().flatten().collect()))
    }

    /// `SELECT ..., quantize(w.weights, p.bits, p.group_size, scheme, method), CASE WHEN p.bits IS NULL THEN w.weights END
    /// FROM plan p JOIN weights w USING (component, tensor)`.
    async fn query(
        &self,
        ctx: &SessionContext,
        settings: arrow_quant_kernels::Settings,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let weights = WeightsTable::new("", Arc::clone(&self.source)).in_parts_of(PART_WEIGHTS);
        let plan = LogicalPlanBuilder::scan("p", provider_as_source(plan_table(&self.plans)?), None)?;
        let weights = LogicalPlanBuilder::scan("w", provider_as_source(Arc::new(weights)), None)?;
        let keys = (vec!["p.component", "p.tensor"], vec!["w.component", "w.tensor"]);
        let quantize = ctx.udf("quantize")?.call(vec![
            col("w.weights"),
            col("p.bits"),
            col("p.group_size"),
            lit(settings.scheme.name()),
            lit(settings.method.name()),
        ]);
        let kept = when(col("p.bits").is_null(), col("w.weights")).end()?;
        let headers = ["component", "tensor", "shape", "chunk", "start"].map(|name| col(format!("w.{name}")));
        let logical = plan
            .join(weights.build()?, JoinType::Inner, keys, None)?
            .project(headers.into_iter().chain([quantize.alias("quantized"), kept.alias("weights")]))?
            .build()?;
        Ok(ctx.state().create_physical_plan(&logical).await?)
    }

    /// Writes one partition of the query.
    async fn write(
        &self,
        part: usize,
        plan: Arc<dyn ExecutionPlan>,
        ctx: &SessionContext,
    ) -> Result<(FileEntry, Vec<WrittenChunk>)> {
        let mut batches = plan.execute(part, ctx.task_ctx())?;
        let mut writer = PartWriter::create(&self.staging, part, part_schema())?;
        while let Some(batch) = batches.try_next().await? {
            let chunks = writer.write(&batch)?;
            let weights: u64 = chunks.iter().map(|chunk| chunk.elements).sum();
            let done = self.done.fetch_add(weights, Ordering::Relaxed) + weights;
            if let Some(last) = chunks.last() {
                let tensor = last.tensor.clone();
                (self.on_progress)(&Progress { done, total: self.total, tensor });
            }
            // Batches are always ready; without a pause here, a cancelled job would go on to the end of the part.
            tokio::task::yield_now().await;
        }
        writer.finish().await
    }

    /// Puts the tensor's name to the error of a weight that cannot be quantized: the function that met it saw only a chunk.
    fn explain(&self, error: QuantError) -> QuantError {
        if !matches!(error, QuantError::Query(_)) {
            return error;
        }
        let quantized: HashMap<_, _> = self.plans.iter().map(|plan| (plan.key(), plan)).collect();
        for tensor in self.source.tensors() {
            let is_quantized = quantized.get(&(tensor.component.as_str(), tensor.name.as_str()));
            let Some(settings) = is_quantized.and_then(|plan| plan.settings) else { continue };
            if let Some(reason) = plan::first_refused(tensor, settings) {
                let name = plan::full_name(&tensor.component, &tensor.name);
                let message = format!("{name}: {reason}; repair the model, or leave the tensor out with --tensors");
                return QuantError::Quantization { tensor: Some(name), message };
            }
        }
        error
    }
}

/// A spawned task that ends when its handle is dropped, so that a cancelled job stops working.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for AbortOnDrop<Result<T>> {
    type Output = Result<T>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context).map(|joined| match joined {
            Ok(result) => result,
            Err(error) => {
                Err(QuantError::Quantization { tensor: None, message: format!("a worker ended early: {error}") })
            }
        })
    }
}
