//! Joins that can be stopped. A join whose condition holds for no row compares all of one side with a batch of the other before
//! it looks up, which is minutes for millions of rows.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, Schema};
use arrow_quant_udfs::Cancellation;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder};

/// Has the conditions of joins fail once their query is cancelled.
#[derive(Debug, Default)]
pub(super) struct StopJoins;

impl PhysicalOptimizerRule for StopJoins {
    fn name(&self) -> &str {
        "StopJoins"
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(cancellation) = config.extensions.get::<Cancellation>() else {
            return Ok(plan);
        };
        let stopping = plan.transform_up(|plan| {
            if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>()
                && let Some(filter) = join.filter()
            {
                let filter = stopping(filter, cancellation);
                let join = NestedLoopJoinExecBuilder::from(join).with_filter(Some(filter)).build()?;
                return Ok(Transformed::yes(Arc::new(join) as _));
            }
            if let Some(join) = plan.downcast_ref::<HashJoinExec>()
                && let Some(filter) = join.filter()
            {
                let join = join.builder().with_filter(Some(stopping(filter, cancellation))).build()?;
                return Ok(Transformed::yes(Arc::new(join) as _));
            }
            Ok(Transformed::no(plan))
        });
        Ok(stopping?.data)
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn stopping(filter: &JoinFilter, cancellation: &Cancellation) -> JoinFilter {
    let expression = Unless { condition: Arc::clone(filter.expression()), cancellation: cancellation.clone() };
    JoinFilter::new(Arc::new(expression), filter.column_indices().to_vec(), Arc::clone(filter.schema()))
}

/// A condition that is an error once the query is cancelled.
#[derive(Debug)]
struct Unless {
    condition: Arc<dyn PhysicalExpr>,
    cancellation: Cancellation,
}

impl PartialEq for Unless {
    fn eq(&self, other: &Self) -> bool {
        self.condition.eq(&other.condition)
    }
}

impl Eq for Unless {}

impl Hash for Unless {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.condition.hash(state);
    }
}

impl fmt::Display for Unless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.condition.fmt(f)
    }
}

impl PhysicalExpr for Unless {
    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.condition.return_field(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.cancellation.check()?;
        self.condition.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.condition]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(match children.pop() {
            Some(condition) => Arc::new(Self { condition, cancellation: self.cancellation.clone() }),
            None => self,
        })
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.condition.fmt_sql(f)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::session::session;

    /// Minutes of comparing without one row, on a thread that never looks up.
    #[tokio::test(flavor = "current_thread")]
    async fn joins_that_find_nothing_end_when_they_are_cancelled() {
        for sql in [
            "SELECT count(*) FROM generate_series(1, 300000) a JOIN generate_series(1, 300000) b ON a.value + b.value < 0",
            "SELECT count(*) FROM generate_series(1, 300000) a LEFT JOIN generate_series(1, 300000) b ON a.value * b.value < 0",
            "SELECT count(*) FROM (SELECT value, 1 AS k FROM generate_series(1, 300000)) a \
             JOIN (SELECT value, 1 AS k FROM generate_series(1, 300000)) b ON a.k = b.k AND a.value + b.value < 0",
        ] {
            let ctx: SessionContext = session(1).expect("a session");
            ctx.sql("SET datafusion.execution.batch_size = 8192").await.expect("a setting");
            let cancellation = Cancellation::default();
            ctx.state_ref().write().config_mut().options_mut().extensions.insert(cancellation.clone());
            let stop = thread::spawn(move || {
                thread::sleep(Duration::from_millis(300));
                cancellation.cancel();
                Instant::now()
            });
            let result = ctx.sql(sql).await.expect(sql).collect().await;
            let late = stop.join().expect("it does not panic").elapsed();
            assert!(result.is_err_and(|error| error.to_string().contains("cancelled")), "{sql}");
            assert!(late < Duration::from_secs(2), "{sql}: {late:?}");
        }
    }
}
