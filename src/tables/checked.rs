//! The check at the end of a query: the files that it read must be those that it began with.
//!
//! Rows of `weights` are views of mapped files, and operators such as joins and sorts hold on to them. If a file is cut or
//! written to meanwhile, a result that looks right can be wrong. So the last operator of a query looks at the files once more
//! when it is done. If the query failed, and a file changed, then that is the reason that is told.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_quant_stores::check_listed;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics};
use datafusion::datasource::physical_plan::ParquetSource;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;
use object_store::ObjectMeta;

use super::weights::WeightsExec;
use crate::{Model, QuantError};

/// Puts the check over plans that read files of weights.
#[derive(Debug)]
pub(crate) struct CheckSources;

impl PhysicalOptimizerRule for CheckSources {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        // A plan may be optimized more than once.
        if plan.is::<CheckedExec>() {
            return Ok(plan);
        }
        let mut sources = Sources::default();
        sources.add(plan.as_ref());
        if sources.models.is_empty() && sources.files.is_empty() {
            return Ok(plan);
        }
        Ok(Arc::new(CheckedExec { input: plan, sources: Arc::new(sources) }))
    }

    fn name(&self) -> &str {
        "check_sources"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What a plan reads.
#[derive(Debug, Default)]
struct Sources {
    models: Vec<Arc<Model>>,
    /// Parquet files, as they were when they were listed. They end with what tells where their rows are, so unlike files of lines they
    /// do not grow.
    files: Vec<ObjectMeta>,
}

impl Sources {
    /// Adds what a plan reads.
    fn add(&mut self, plan: &dyn ExecutionPlan) {
        if let Some(model) = plan.downcast_ref::<WeightsExec>().and_then(WeightsExec::viewed)
            && !self.models.iter().any(|known| Arc::ptr_eq(known, model))
        {
            self.models.push(Arc::clone(model));
        }
        let scan =
            plan.downcast_ref::<DataSourceExec>().and_then(DataSourceExec::downcast_to_file_source::<ParquetSource>);
        if let Some((scan, _)) = scan.filter(|(scan, _)| scan.object_store_url.as_str().starts_with("file:")) {
            let files = scan.file_groups.iter().flat_map(|group| group.files());
            // Partitions may have parts of the same file.
            let mut files: Vec<_> = files.map(|file| file.object_meta.clone()).collect();
            files.dedup_by(|a, b| a.location == b.location);
            self.files.append(&mut files);
        }
        plan.children().into_iter().for_each(|child| self.add(child.as_ref()));
    }

    /// Checks that all of it is what it was.
    fn check(&self) -> Result<(), QuantError> {
        self.models.iter().try_for_each(|model| model.check())?;
        self.files.iter().try_for_each(|file| Ok(check_listed(file)?))
    }
}

/// Hands batches on, and checks at the end what they were made of.
#[derive(Debug)]
struct CheckedExec {
    input: Arc<dyn ExecutionPlan>,
    sources: Arc<Sources>,
}

impl DisplayAs for CheckedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sources { models, files } = self.sources.as_ref();
        write!(f, "CheckedExec: models={}, files={}", models.len(), files.len())
    }
}

impl ExecutionPlan for CheckedExec {
    fn name(&self) -> &str {
        "CheckedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(match children.pop() {
            Some(input) => Arc::new(Self { input, sources: Arc::clone(&self.sources) }),
            None => self,
        })
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let checked = Checked { input: self.input.execute(partition, context)?, sources: Arc::clone(&self.sources) };
        let batches = futures::stream::unfold(Some(checked), |checked| async move {
            let mut checked = checked?;
            let next = checked.next().await?;
            let goes_on = next.is_ok();
            Some((next, goes_on.then_some(checked)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        Ok(Arc::clone(&inputs[0]))
    }
}

/// The batches of a partition.
struct Checked {
    input: SendableRecordBatchStream,
    sources: Arc<Sources>,
}

impl Checked {
    async fn next(&mut self) -> Option<Result<RecordBatch>> {
        let next = self.input.next().await;
        if let Some(Ok(_)) = next {
            return next;
        }
        match self.sources.check() {
            Ok(()) => next,
            Err(changed) => Some(Err(changed.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use datafusion::prelude::SessionContext;
    use futures::TryStreamExt;

    use super::*;
    use crate::model::tests::directory;
    use crate::{register_model, session};

    /// A model of one tensor in many chunks, all zeros, and its file.
    async fn opened() -> (tempfile::TempDir, std::path::PathBuf, SessionContext) {
        let header = r#"{"w":{"dtype":"F32","shape":[4096,2048],"data_offsets":[0,33554432]}}"#;
        let mut file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        file.resize(file.len() + (32 << 20), 0);
        let model = directory(&[("model.safetensors", file)]);
        let path = model.path().join("model.safetensors");
        let ctx = session(1).unwrap();
        register_model(&ctx, "m", model.path()).await.unwrap();
        (model, path, ctx)
    }

    fn cut(path: &Path) {
        File::options().write(true).open(path).unwrap().set_len(100_000).unwrap();
    }

    async fn failure(ctx: &SessionContext, sql: &str) -> QuantError {
        ctx.sql(sql).await.unwrap().collect().await.unwrap_err().into()
    }

    #[tokio::test]
    async fn a_file_that_was_cut_before_a_query_is_named() {
        let (_model, path, ctx) = opened().await;
        cut(&path);
        let error = failure(&ctx, "SELECT sum(tensor_stats(weights)['n']) FROM m.weights").await;
        assert!(matches!(&error, QuantError::Changed { path: found, .. } if *found == path), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("model.safetensors: it had 33554") && message.contains("has 100000"), "{message}");
        // What needs no weights is answered.
        assert!(ctx.sql("SELECT tensor FROM m.weights").await.unwrap().count().await.unwrap() > 1);
    }

    #[tokio::test]
    async fn a_file_that_is_cut_or_written_to_in_a_query_makes_it_fail() {
        let written: fn(&Path) = |path| fs::write(path, vec![1; fs::metadata(path).unwrap().len() as usize]).unwrap();
        for change in [cut as fn(&Path), written] {
            for sql in ["SELECT weights FROM m.weights", "SELECT tensor_stats(weights)['n'] FROM m.weights"] {
                let (_model, path, ctx) = opened().await;
                let mut rows = ctx.sql(sql).await.unwrap().execute_stream().await.unwrap();
                assert!(rows.try_next().await.unwrap().is_some());
                change(&path);
                let error = loop {
                    match rows.try_next().await {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("the result looks complete"),
                        Err(error) => break QuantError::from(error),
                    }
                };
                assert!(matches!(error, QuantError::Changed { .. }), "{error:?}");
            }
        }
    }

    /// The scan has ended when the file is cut; a sort holds its rows.
    #[tokio::test]
    async fn rows_that_are_held_until_after_the_scan_are_checked_too() {
        let (_model, path, ctx) = opened().await;
        let sorted = "SELECT start, weights FROM m.weights ORDER BY start DESC";
        let mut rows = ctx.sql(sorted).await.unwrap().execute_stream().await.unwrap();
        assert!(rows.try_next().await.unwrap().is_some());
        cut(&path);
        assert!(rows.try_collect::<Vec<_>>().await.is_err());
    }

    #[tokio::test]
    async fn a_file_that_was_replaced_by_renaming_is_read_as_it_was() {
        let (model, path, ctx) = opened().await;
        let other = model.path().join("other");
        fs::write(&other, b"another model").unwrap();
        fs::rename(&other, &path).unwrap();
        let sql = "SELECT tensor_stats(weights)['n'] FROM m.weights";
        let rows = ctx.sql(sql).await.unwrap().collect().await.unwrap();
        assert!(rows.iter().map(RecordBatch::num_rows).sum::<usize>() > 1);
    }
}
