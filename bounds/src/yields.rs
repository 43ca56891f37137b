//! Plans that hand their thread back every few milliseconds. DataFusion counts batches (128 of them), whatever they hold, and
//! only those of scans: over weights that is a GiB of work, and a join of millions of rows comes without any scan.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, Statistics};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::Stream;
use futures::future::BoxFuture;

/// How long a stream works before it hands its thread back.
const TURN: Duration = Duration::from_millis(5);

/// Puts a [`YieldExec`] above what can give rows for long without waiting: scans, joins, and what gathers its input.
#[derive(Debug, Default)]
pub struct YieldOften;

impl YieldOften {
    /// DataFusion's rules, and this one after them.
    pub fn with_default_rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
        let mut rules = PhysicalOptimizer::new().rules;
        rules.push(Arc::new(Self));
        rules
    }
}

impl PhysicalOptimizerRule for YieldOften {
    fn name(&self) -> &str {
        "YieldOften"
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let wrapped = plan.transform_up(|plan| {
            if plan.is::<YieldExec>() || !gives_much(&plan) {
                return Ok(Transformed::no(plan));
            }
            Ok(Transformed::yes(Arc::new(YieldExec { properties: Arc::clone(plan.properties()), input: plan }) as _))
        });
        Ok(wrapped?.data)
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Whether a node may give many batches for one that it takes, or takes many and gives none.
fn gives_much(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if plan.children().is_empty() {
        // A leaf of one row, such as that of `SELECT 1`, is done at once.
        let statistics = plan.statistics_from_inputs(&[], &StatisticsArgs::new());
        return !statistics.is_ok_and(|statistics| statistics.num_rows == Precision::Exact(1));
    }
    let grows = match plan.cardinality_effect() {
        CardinalityEffect::Unknown | CardinalityEffect::GreaterEqual => true,
        CardinalityEffect::Equal | CardinalityEffect::LowerEqual => false,
    };
    let gathers = match plan.properties().emission_type {
        EmissionType::Final | EmissionType::Both => true,
        EmissionType::Incremental => false,
    };
    grows || gathers
}

/// Gives the rows of its input, and hands the thread back after each [`TURN`].
#[derive(Debug)]
struct YieldExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for YieldExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YieldExec")
    }
}

impl ExecutionPlan for YieldExec {
    fn name(&self) -> &str {
        "YieldExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
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
            Some(input) => Arc::new(Self { properties: Arc::clone(input.properties()), input }),
            None => self,
        })
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        Ok(Box::pin(YieldStream { input, since: Instant::now(), pause: None }))
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        Ok(Arc::clone(&inputs[0]))
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

struct YieldStream {
    input: SendableRecordBatchStream,
    /// When the thread was last handed back.
    since: Instant,
    /// The pause that is being made.
    pause: Option<BoxFuture<'static, ()>>,
}

impl Stream for YieldStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.pause.is_none() && self.since.elapsed() > TURN {
            self.pause = Some(Box::pin(tokio::task::yield_now()));
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
            self.since = Instant::now();
        }
        let batch = self.input.as_mut().poll_next(cx);
        if batch.is_pending() {
            // The thread is handed back anyway.
            self.since = Instant::now();
        }
        batch
    }
}

impl RecordBatchStream for YieldStream {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::SessionStateBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    fn session() -> SessionContext {
        let state = SessionStateBuilder::new_with_default_features()
            .with_config(SessionConfig::new().with_target_partitions(1).with_batch_size(64))
            .with_physical_optimizer_rules(YieldOften::with_default_rules())
            .build();
        SessionContext::new_with_state(state)
    }

    /// On one thread, a query that takes minutes ends soon after it is told to.
    #[tokio::test(flavor = "current_thread")]
    async fn queries_that_take_minutes_end_at_once_on_one_thread() {
        for sql in [
            "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b",
            "SELECT sum(a.value + b.value) FROM generate_series(1, 300000) a JOIN generate_series(1, 300000) b ON a.value > b.value",
            "SELECT a.value, b.value FROM generate_series(1, 100000) a, generate_series(1, 100000) b ORDER BY 2, 1",
            "SELECT a.value % 7, count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b GROUP BY 1",
            "SELECT sum(x) FROM (SELECT unnest(range(0, 100000)) AS x FROM generate_series(1, 1000000))",
            "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
            "SELECT count(*) FROM generate_series(1, 100000000000)",
        ] {
            let rows = session().sql(sql).await.expect(sql).collect();
            let started = Instant::now();
            let ended = tokio::time::timeout(Duration::from_millis(100), rows).await;
            assert!(ended.is_err(), "{sql}: it should take minutes");
            assert!(started.elapsed() < Duration::from_millis(2_000), "{sql}: {:?}", started.elapsed());
        }
    }
}
