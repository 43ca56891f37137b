//! The run of a job's tasks by threads: those whose parts an earlier run or round has not written already.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;

use super::query::TaskQuery;
use super::staging::Staging;
use super::task::{PartRecord, PartTask, TaskModel};
use crate::plan::ModelPlan;
use crate::report::{Listener, Stage, StageProgress};
use crate::tables::ModelParts;
use crate::targets::{PartWriter, TargetName};
use crate::workers::{blocking, ended_early};
use crate::{QuantError, Result};

/// What a job works on, and with.
pub(super) struct Run {
    /// The model as its tasks name it.
    pub model: TaskModel,
    pub parts: ModelParts,
    pub staging: Arc<Staging>,
    /// Parts under way at once.
    pub in_flight: usize,
    pub listener: Listener,
}

/// Called with each part that was written.
pub(super) type OnPart<'a> = &'a mut (dyn FnMut(&PartRecord) -> Result<()> + Send);

impl Run {
    /// What was measured of every part as a plan has it; parts that were never written so are written now.
    pub(super) async fn measure(&self, plan: &ModelPlan, stage: Stage, on_part: OnPart<'_>) -> Result<Vec<PartRecord>> {
        let journal = self.staging.journal();
        let tasks = PartTask::all(plan, &self.parts, &self.model);
        let missing = tasks.iter().filter(|task| journal.record(task.part, &task.key).is_none());
        self.write(missing.cloned().collect(), plan, stage, on_part).await?;
        let record = |task: &PartTask| {
            journal.record(task.part, &task.key).ok_or_else(|| QuantError::Quantization {
                tensor: None,
                message: format!("part {} was not written; this is a defect, please report it", task.part),
            })
        };
        tasks.iter().map(record).collect()
    }

    /// Writes the parts that do not lie on disk as a plan has them.
    pub(super) async fn complete(&self, plan: &ModelPlan) -> Result<()> {
        let mut tasks = PartTask::all(plan, &self.parts, &self.model);
        tasks.retain(|task| !self.staging.journal().is_on_disk(task.part, &task.key));
        self.write(tasks, plan, Stage::Requantizing, &mut |_| Ok(())).await
    }

    async fn write(&self, tasks: Vec<PartTask>, plan: &ModelPlan, stage: Stage, on_part: OnPart<'_>) -> Result<()> {
        if tasks.is_empty() {
            return Ok(());
        }
        let is_quantized = |tensor: usize| plan.tensors[tensor].choice.is_some();
        let total = tasks.iter().map(|task| self.parts.weights(task.part, is_quantized)).sum();
        let progress = Arc::new(StageProgress::new(stage, total, self.listener.clone()));
        let query = Arc::new(TaskQuery::new(&plan.model, tasks.clone()).await?);
        let working = Arc::new(Semaphore::new(self.in_flight));
        let written = futures::stream::iter(tasks.into_iter().enumerate())
            .map(|(index, task)| {
                let (query, progress) = (Arc::clone(&query), Arc::clone(&progress));
                let (staging, working) = (Arc::clone(&self.staging), Arc::clone(&working));
                AbortOnDrop(tokio::spawn(async move {
                    let permit = working.acquire_owned().await.map_err(|error| ended_early(&error))?;
                    let guard = StagingGuard { staging, _permit: Arc::new(permit) };
                    guard.write(&query, index, &task, &progress).await
                }))
            })
            .buffer_unordered(self.in_flight);
        let result = written.try_for_each(|record| std::future::ready(on_part(&record))).await;
        // After an error, other parts are written for a moment longer. The error is returned after them, when it is known which
        // parts are finished.
        let all = u32::try_from(self.in_flight).unwrap_or(u32::MAX);
        drop(working.acquire_many(all).await);
        result?;
        progress.finish();
        Ok(())
    }
}

/// Held while a part is written to the staging directory, until its file is synced. When all permits are back, no part is
/// being written.
#[derive(Clone)]
struct StagingGuard {
    staging: Arc<Staging>,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl StagingGuard {
    /// Runs a task, and records what it wrote.
    async fn write(
        self,
        query: &TaskQuery,
        index: usize,
        task: &PartTask,
        progress: &StageProgress,
    ) -> Result<PartRecord> {
        let (guard, part, target) = (self.clone(), task.part, task.target.clone());
        let writer = blocking(move || StagedPart::create(guard, part, &target)).await?;
        let record = query.run(index, writer, |written| progress.add(written.weights, &written.tensor)).await?;
        blocking(move || {
            self.staging.journal().append(&record)?;
            Ok(record)
        })
        .await
    }
}

/// The writer of a part in the staging directory.
struct StagedPart {
    part: usize,
    writer: Box<dyn PartWriter>,
    guard: StagingGuard,
}

impl StagedPart {
    fn create(guard: StagingGuard, part: usize, target: &str) -> Result<Box<dyn PartWriter>> {
        let target: TargetName = target.parse()?;
        let writer = target.target().part_writer(guard.staging.path(), part)?;
        Ok(Box::new(Self { part, writer, guard }))
    }
}

impl PartWriter for StagedPart {
    fn write(&mut self, batch: &arrow::array::RecordBatch) -> Result<()> {
        self.writer.write(batch)
    }

    fn finish(self: Box<Self>) -> Result<arrow_quant_formats::manifest::FileEntry> {
        // What lies on disk is about to be replaced.
        self.guard.staging.journal().forget(self.part);
        self.writer.finish()
    }
}

fn joined<T>(result: Result<Result<T>, JoinError>) -> Result<T> {
    result.unwrap_or_else(|error| Err(ended_early(&error)))
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
