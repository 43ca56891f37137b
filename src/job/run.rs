//! The query of a job, its partitions written as parts: those that an earlier run or round has not written already.

use std::ops::Range;
use std::sync::Arc;

use arrow_quant_formats::ContentHash;
use arrow_quant_kernels::{PairSums, Settings};
use datafusion::datasource::provider_as_source;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{JoinType, LogicalPlanBuilder, col, lit, when};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;

use super::journal::PartRecord;
use super::staging::Staging;
use crate::plan::{TensorPlan, has_channels, plan_table, refusal};
use crate::report::{Listener, Stage, StageProgress};
use crate::session::{session_config, with_config};
use crate::tables::{ModelParts, WeightsTable, part_schema};
use crate::targets::PartWriter;
use crate::{Model, QuantError, Result};

/// What a job works on, and with.
pub(crate) struct Run {
    pub source: Arc<Model>,
    /// Scheme and method; bits and group size are each tensor's own.
    pub settings: Settings,
    pub parts: ModelParts,
    pub staging: Arc<Staging>,
    /// Parts under way at once.
    pub in_flight: usize,
    pub listener: Listener,
}

/// Called with each part that was written.
pub(crate) type OnPart<'a> = &'a mut (dyn FnMut(&PartRecord) -> Result<()> + Send);

impl Run {
    /// What was measured of every part as `plans` have it; parts that were never written so are written now.
    pub async fn measure(&self, plans: &[TensorPlan], stage: Stage, on_part: OnPart<'_>) -> Result<Vec<PartRecord>> {
        let journal = self.staging.journal();
        let keys: Vec<String> = self.parts.iter().map(|part| self.key(part, plans)).collect();
        let missing = (0..keys.len()).filter(|&part| journal.record(part, &keys[part]).is_none());
        self.write(missing.collect(), &keys, plans, stage, on_part).await?;
        let record = |(part, key): (usize, &String)| {
            journal.record(part, key).ok_or_else(|| QuantError::Quantization {
                tensor: None,
                message: format!("part {part} was not written; this is a defect, please report it"),
            })
        };
        keys.iter().enumerate().map(record).collect()
    }

    /// Writes the parts that do not lie on disk as `plans` have them.
    pub async fn complete(&self, plans: &[TensorPlan]) -> Result<()> {
        let keys: Vec<String> = self.parts.iter().map(|part| self.key(part, plans)).collect();
        let missing = (0..keys.len()).filter(|&part| !self.staging.journal().is_on_disk(part, &keys[part]));
        self.write(missing.collect(), &keys, plans, Stage::Requantizing, &mut |_| Ok(())).await
    }

    /// A hash of what the tensors of a part are to become.
    fn key(&self, part: &Range<usize>, plans: &[TensorPlan]) -> String {
        let mut hash = ContentHash::new();
        for tensor in self.parts.tensors(part) {
            let plan = &plans[tensor];
            let choice = plan.choice.map(|c| (c.bits.get(), c.group_size.get()));
            // Of what is kept, channels have nothing to say.
            let channels = plan.channels.as_ref().filter(|_| choice.is_some()).map(|channels| &channels.hash);
            // No name holds what separates names.
            hash.update(serde_json::json!([plan.component, plan.tensor, choice, channels]).to_string());
        }
        hash.finish()[..16].to_string()
    }

    async fn write(
        &self,
        parts: Vec<usize>,
        keys: &[String],
        plans: &[TensorPlan],
        stage: Stage,
        on_part: OnPart<'_>,
    ) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let total = parts.iter().map(|&part| self.parts.weights(part, |tensor| plans[tensor].choice.is_some())).sum();
        let progress = Arc::new(StageProgress::new(stage, total, self.listener.clone()));
        // Partitions are parts of the model, whatever the number of threads; one thread takes one at a time.
        let mut config = session_config(1);
        config.options_mut().optimizer.enable_dynamic_filter_pushdown = false;
        let ctx = with_config(config)?;
        let query = self.query(&ctx, plans).await?;
        // Who holds a permit works on a part still, be it that its file is being synced.
        let working = Arc::new(Semaphore::new(self.in_flight));
        let written = futures::stream::iter(parts)
            .map(|part| {
                let work = PartWork {
                    part,
                    key: keys[part].clone(),
                    source: Arc::clone(&self.source),
                    parts: self.parts.clone(),
                    staging: Arc::clone(&self.staging),
                    progress: Arc::clone(&progress),
                };
                let (working, query, ctx) = (Arc::clone(&working), Arc::clone(&query), ctx.clone());
                AbortOnDrop(tokio::spawn(async move {
                    let permit = working.acquire_owned().await.map_err(|error| early(&error))?;
                    work.write(query, ctx, permit).await
                }))
            })
            .buffer_unordered(self.in_flight);
        let result = written.try_for_each(|record| std::future::ready(on_part(&record))).await;
        // After an error others are at work for a moment longer. What they leave must be known before it is told.
        let all = u32::try_from(self.in_flight).unwrap_or(u32::MAX);
        drop(working.acquire_many(all).await);
        result.map_err(|error| self.explain(error, plans))?;
        progress.finish();
        Ok(())
    }

    /// `SELECT ..., quantize(w.weights, p.bits, p.group_size, scheme, method [, p.importance, p.smoothing]), CASE WHEN p.bits IS NULL THEN w.weights END
    /// FROM plan p JOIN weights w USING (component, tensor)`.
    async fn query(&self, ctx: &SessionContext, plans: &[TensorPlan]) -> Result<Arc<dyn ExecutionPlan>> {
        let weights = WeightsTable::new("", Arc::clone(&self.source)).in_parts(self.parts.clone());
        let plan = LogicalPlanBuilder::scan("p", provider_as_source(plan_table(plans)?), None)?;
        let weights = LogicalPlanBuilder::scan("w", provider_as_source(Arc::new(weights)), None)?;
        let keys = (vec!["p.component", "p.tensor"], vec!["w.component", "w.tensor"]);
        let mut arguments = vec![
            col("w.weights"),
            col("p.bits"),
            col("p.group_size"),
            lit(self.settings.scheme.name()),
            lit(self.settings.method.name()),
        ];
        if has_channels(plans) {
            arguments.extend([col("p.importance"), col("p.smoothing")]);
        }
        let quantize = ctx.udf("quantize")?.call(arguments);
        let kept = when(col("p.bits").is_null(), col("w.weights")).end()?;
        let headers = ["component", "tensor", "shape", "chunk", "start"].map(|name| col(format!("w.{name}")));
        let logical = plan
            .join(weights.build()?, JoinType::Inner, keys, None)?
            .project(headers.into_iter().chain([quantize.alias("quantized"), kept.alias("weights")]))?
            .build()?;
        Ok(ctx.state().create_physical_plan(&logical).await?)
    }

    /// Puts the tensor's name to the error of a weight that cannot be quantized: the function that met it saw only a chunk.
    fn explain(&self, error: QuantError, plans: &[TensorPlan]) -> QuantError {
        if !matches!(error, QuantError::Query(_)) {
            return error;
        }
        let quantized = self.source.tensors().iter().zip(plans).filter_map(|(t, plan)| Some((t, plan.choice?)));
        quantized.into_iter().find_map(|(t, choice)| refusal(t, choice.with(self.settings))).unwrap_or(error)
    }
}

/// The work of one thread.
struct PartWork {
    part: usize,
    key: String,
    source: Arc<Model>,
    parts: ModelParts,
    staging: Arc<Staging>,
    progress: Arc<StageProgress>,
}

impl PartWork {
    /// Writes one partition of the query.
    async fn write(
        self,
        query: Arc<dyn ExecutionPlan>,
        ctx: SessionContext,
        permit: OwnedSemaphorePermit,
    ) -> Result<PartRecord> {
        let mut batches = query.execute(self.part, ctx.task_ctx())?;
        let mut writer = PartWriter::create(self.staging.path(), self.part, part_schema())?;
        let mut chunks = self.parts.chunks(self.part);
        while let Some(batch) = batches.try_next().await? {
            let written = writer.write(&batch)?;
            let rows = batch.num_rows();
            // Views of the weights must be gone before their pages are given back.
            drop(batch);
            for (tensor, elements) in chunks.next_rows(rows) {
                self.source.tensors()[tensor].release(elements);
            }
            self.progress.add(written.weights, &written.tensor);
            // Batches are always ready; without a pause here, a cancelled job would go on to the end of the part.
            tokio::task::yield_now().await;
        }
        let finish = move || {
            self.staging.journal().forget(self.part);
            let (file, tensors) = writer.finish()?;
            let record = PartRecord { part: self.part, plan: self.key, file, tensors };
            self.staging.journal().append(&record)?;
            // When the permit is back, nobody is at work in the directory any more.
            drop(permit);
            Ok(record)
        };
        // Waiting for the disk must not hold up what other parts compute.
        joined(tokio::task::spawn_blocking(finish).await)
    }
}

fn joined<T>(result: Result<Result<T>, JoinError>) -> Result<T> {
    result.unwrap_or_else(|error| Err(early(&error)))
}

fn early(error: &dyn std::error::Error) -> QuantError {
    QuantError::Quantization { tensor: None, message: format!("a worker ended early: {error}") }
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
        std::pin::Pin::new(&mut self.0).poll(context).map(joined)
    }
}

/// The sums of all parts of each tensor, in the order of the parts.
pub(crate) fn tensor_sums(records: &[PartRecord], plans: &[TensorPlan]) -> Vec<TensorSums> {
    let index: std::collections::HashMap<_, _> = plans.iter().enumerate().map(|(i, plan)| (plan.key(), i)).collect();
    let mut sums = vec![TensorSums::default(); plans.len()];
    for written in records.iter().flat_map(|record| &record.tensors) {
        if let Some(&i) = index.get(&(written.component.as_str(), written.tensor.as_str())) {
            sums[i].bytes += written.bytes;
            sums[i].errors = sums[i].errors + written.errors.unwrap_or_default();
        }
    }
    sums
}

/// What was written of one tensor.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TensorSums {
    pub bytes: u64,
    pub errors: PairSums,
}
