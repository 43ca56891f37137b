//! SQL statements: planned, checked against what the caller may do, and either executed at once (what changes something) or
//! kept as a result to be fetched.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use arrow_quant_bounds as bounds;
use datafusion::catalog::SchemaProvider;
use datafusion::common::{TableReference, plan_err};
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{DdlStatement, LogicalPlan, Statement, TableType};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use tonic::Status;

use crate::interrupt::{InterruptOnDrop, for_query};
use crate::placeholders::numbered;
use crate::queries::{Query, cancelled};
use crate::service::{Call, State};
use crate::session::Session;
use crate::stream::{beginning, too_late};
use crate::tables::OWN_SCHEMA;

impl State {
    /// The logical plan of a statement that the caller may run.
    pub(crate) async fn plan(&self, call: &Call, sql: &str) -> Result<LogicalPlan, Status> {
        self.plan_in(call, call.session.ctx.clone(), sql).await
    }

    /// The same in a context that has more tables than the caller's session.
    pub(crate) async fn plan_in(&self, call: &Call, ctx: SessionContext, sql: &str) -> Result<LogicalPlan, Status> {
        let limit = self.limits.statement_bytes;
        if sql.len() > limit {
            return Err(Status::resource_exhausted(format!(
                "statement_bytes: the statement has {} bytes, {limit} are allowed",
                sql.len()
            )));
        }
        let text = numbered(sql)?.into_owned();
        let plan = self.planned(async move { bounds::plan(&ctx.state(), &text).await }).await?;
        let plan = plan.map_err(|error| self.status(&error, sql)).inspect_err(|status| {
            tracing::info!(user = %call.caller.user, code = ?status.code(), sql = beginning(sql), "statement not planned");
        })?;
        self.check(call, &plan)?;
        Ok(plan)
    }

    /// Refuses what the caller may not do.
    fn check(&self, call: &Call, plan: &LogicalPlan) -> Result<(), Status> {
        let reads = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        if reads.verify_plan(plan).is_err() {
            self.permit_write(call)?;
        }
        match plan {
            LogicalPlan::Statement(Statement::SetVariable(set)) => check_option(&set.variable, &set.value),
            LogicalPlan::Statement(Statement::ResetVariable(reset)) => check_option(&reset.variable, ""),
            LogicalPlan::Statement(Statement::TransactionStart(_) | Statement::TransactionEnd(_)) => {
                Err(Status::unimplemented("there are no transactions on this server"))
            }
            LogicalPlan::Statement(_) => {
                Err(Status::unimplemented("PREPARE and EXECUTE are those of Flight SQL here, not statements"))
            }
            LogicalPlan::Ddl(
                DdlStatement::CreateCatalog(_)
                | DdlStatement::CreateCatalogSchema(_)
                | DdlStatement::CreateFunction(_)
                | DdlStatement::DropFunction(_),
            ) => Err(Status::unimplemented("catalogs, schemas and functions are those of this server")),
            _ => Ok(()),
        }
    }

    /// A statement as a result that can be fetched. What changes something is executed now.
    pub(crate) async fn query(&self, call: &Call, plan: LogicalPlan, sql: &str) -> Result<Arc<Query>, Status> {
        let query = if has_effect(&plan) {
            let batches = self.execute(call, plan, sql).await?;
            let state = call.session.ctx.state();
            Query::of_result(state, batches, sql.to_string(), self.interruptible)
        } else {
            let (state, text) = (call.session.ctx.state(), sql.to_string());
            self.planned(Query::plan(state, plan, text, self.interruptible)).await?
        };
        call.session.queries.insert(query.map_err(|error| self.status(&error, sql))?)
    }

    /// Runs a statement to its end; gives the number of rows it changed.
    pub(crate) async fn update(&self, call: &Call, plan: LogicalPlan, sql: &str) -> Result<i64, Status> {
        let changes = has_effect(&plan);
        let batches = self.execute(call, plan, sql).await?;
        Ok(if changes { changed(&batches) } else { -1 })
    }

    /// Runs a statement to its end, under the limits of a query; dropped, it stops.
    async fn execute(&self, call: &Call, plan: LogicalPlan, sql: &str) -> Result<Vec<RecordBatch>, Status> {
        let _place = self.admission.enter().await?;
        let started = std::time::Instant::now();
        let session = Arc::clone(&call.session);
        let (state, interrupt) = for_query(&session.ctx, self.interruptible);
        // Dropped with this future, also if the client leaves.
        let _interrupted = InterruptOnDrop(interrupt);
        let work = self.on_threads(run(session, state, plan));
        let result = tokio::select! {
            result = work => result.and_then(|result| result.map_err(|error| self.status(&error, sql))),
            () = tokio::time::sleep(self.limits.query_timeout) => Err(too_late()),
            () = call.session.cancelled.cancelled() => Err(cancelled()),
        };
        call.session.queries.forget_fetched();
        let code = result.as_ref().err().map_or(tonic::Code::Ok, Status::code);
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.query(code, seconds);
        tracing::info!(user = %call.caller.user, code = ?code, seconds, sql = beginning(sql), "statement");
        result
    }
}

/// Whether a statement does something besides giving rows.
pub(crate) fn has_effect(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Ddl(_) | LogicalPlan::Dml(_) | LogicalPlan::Copy(_) | LogicalPlan::Statement(_) => true,
        // EXPLAIN ANALYZE executes what it explains.
        LogicalPlan::Analyze(analyze) => has_effect(&analyze.input),
        _ => false,
    }
}

/// The options that sessions set: their names' beginnings, and the most that is allowed. The others are the server's, for some of
/// them keep one session from taking everything.
const OPTIONS: [(&str, u64); 7] = [
    ("datafusion.catalog.default_catalog", u64::MAX),
    ("datafusion.catalog.default_schema", u64::MAX),
    ("datafusion.execution.batch_size", 8192),
    ("datafusion.execution.target_partitions", 256),
    ("datafusion.execution.time_zone", u64::MAX),
    ("datafusion.explain.", u64::MAX),
    ("datafusion.format.", u64::MAX),
];

/// Refuses options that are the server's, not the session's, and values that would take too much.
pub(crate) fn check_option(name: &str, value: &str) -> Result<(), Status> {
    let name = name.to_ascii_lowercase();
    let Some((_, most)) = OPTIONS.iter().find(|(option, _)| name.starts_with(option)) else {
        let allowed = OPTIONS.map(|(option, _)| option.trim_end_matches('.')).join(", ");
        return Err(Status::permission_denied(format!("'{name}' is set by this server; sessions set {allowed}")));
    };
    match value.trim().parse::<u64>() {
        Ok(value) if value > *most => {
            Err(Status::permission_denied(format!("'{name}' may be at most {most} on this server, not {value}")))
        }
        _ => Ok(()),
    }
}

/// Runs a statement in a session, what it computes in a state of its own.
async fn run(
    session: Arc<Session>,
    state: SessionState,
    plan: LogicalPlan,
) -> Result<Vec<RecordBatch>, DataFusionError> {
    match plan {
        LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) => {
            session.tables.create(state, create).await?;
            Ok(Vec::new())
        }
        plan if has_effect(&plan) => {
            match &plan {
                LogicalPlan::Copy(copy) => check_output(&session.ctx, &copy.output_url).await?,
                LogicalPlan::Ddl(DdlStatement::CreateView(view)) => check_view(&session, &view.name).await?,
                _ => {}
            }
            let frame = match plan {
                // These change the session.
                LogicalPlan::Ddl(_) | LogicalPlan::Statement(_) => session.ctx.execute_logical_plan(plan).await?,
                plan => DataFrame::new(state, plan),
            };
            frame.collect().await
        }
        // Nobody asked for its rows.
        plan => {
            let mut rows = DataFrame::new(state, plan).execute_stream().await?;
            while rows.try_next().await?.is_some() {}
            Ok(Vec::new())
        }
    }
}

/// A view replaces a view, never a table and its rows.
async fn check_view(session: &Session, name: &TableReference) -> Result<(), DataFusionError> {
    let own = name.schema().is_none_or(|schema| schema == OWN_SCHEMA);
    match session.tables.table_type(name.table()).await? {
        Some(kind) if own && kind != TableType::View => {
            plan_err!("'{}' is a table: drop it first, or name the view otherwise", name.table())
        }
        _ => Ok(()),
    }
}

/// Asks the store of an output whether it lets it be looked at: writers do not say why they failed.
async fn check_output(ctx: &SessionContext, url: &str) -> Result<(), DataFusionError> {
    let url = ListingTableUrl::parse(url)?;
    match ctx.runtime_env().object_store(&url)?.head(url.prefix()).await {
        Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The rows that DataFusion says were changed.
fn changed(batches: &[RecordBatch]) -> i64 {
    batches
        .iter()
        .filter_map(|batch| batch.column_by_name("count"))
        .filter_map(|count| count.as_primitive_opt::<UInt64Type>())
        .flat_map(|count| count.values().iter())
        .map(|&rows| i64::try_from(rows).unwrap_or(i64::MAX))
        .sum()
}
