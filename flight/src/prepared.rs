//! Prepared statements and what is bound to their parameters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
};
use datafusion::common::{ParamValues, ScalarValue, plan_err, resources_err};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use tonic::Status;
use uuid::Uuid;

use crate::bounds;
use crate::queries::Query;
use crate::service::{Call, State, schema_bytes};
use crate::session::locked;
use crate::statements::has_effect;
use crate::wire::wire_schema;

/// Bytes of bound values in a plan, counted as often as it names them.
const COPIED_BYTES: usize = 64 << 20;

/// A statement that is run with different values. It is planned anew each time: the tables it names may be others by then.
pub(crate) struct Prepared {
    sql: String,
    schema: SchemaRef,
    bound: Mutex<Bound>,
}

/// Values, and the memory that is counted for them.
#[derive(Default)]
struct Bound {
    values: Vec<RecordBatch>,
    _memory: Option<MemoryReservation>,
}

/// The prepared statements of a session.
pub(crate) struct Statements {
    limit: usize,
    open: Mutex<HashMap<Uuid, Arc<Prepared>>>,
}

impl Statements {
    pub fn new(limit: usize) -> Self {
        Self { limit, open: Mutex::default() }
    }

    fn insert(&self, prepared: Prepared) -> Result<Uuid, Status> {
        let mut open = locked(&self.open);
        if open.len() >= self.limit {
            return Err(Status::resource_exhausted(format!(
                "statements: this session has {} prepared statements; close some",
                open.len()
            )));
        }
        let id = Uuid::new_v4();
        open.insert(id, Arc::new(prepared));
        Ok(id)
    }

    fn get(&self, handle: &[u8]) -> Option<Arc<Prepared>> {
        Uuid::from_slice(handle).ok().and_then(|id| locked(&self.open).get(&id).cloned())
    }

    pub fn len(&self) -> usize {
        locked(&self.open).len()
    }
}

impl State {
    pub async fn create_prepared(
        &self,
        call: &Call,
        request: ActionCreatePreparedStatementRequest,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        no_transaction(request.transaction_id.as_ref())?;
        let sql = request.query;
        let plan = self.plan(call, &sql).await?;
        // A driver tells updates from queries by whether there are columns.
        let dataset = if has_effect(&plan) { Arc::new(Schema::empty()) } else { wire_schema(plan.schema().as_arrow()) };
        let parameters = parameter_schema(&plan).map_err(|error| self.status(&error, &sql))?;
        let prepared = Prepared { sql, schema: Arc::clone(&dataset), bound: Mutex::default() };
        let id = call.session.statements.insert(prepared)?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: id.as_bytes().to_vec().into(),
            dataset_schema: schema_bytes(&dataset)?,
            parameter_schema: schema_bytes(&parameters)?,
        })
    }

    /// A prepared statement of any of the user's sessions: the first call of a client that keeps cookies is made in another session
    /// than those that follow.
    fn prepared(&self, call: &Call, handle: &[u8]) -> Result<Arc<Prepared>, Status> {
        let own = call.session.statements.get(handle);
        let others =
            || self.sessions.of_user(&call.caller.user).iter().find_map(|session| session.statements.get(handle));
        own.or_else(others)
            .ok_or_else(|| Status::not_found("no such prepared statement: it was closed, or its session ended"))
    }

    pub fn close_prepared(&self, call: &Call, request: &ActionClosePreparedStatementRequest) {
        if let Ok(id) = Uuid::from_slice(&request.prepared_statement_handle) {
            for session in self.sessions.of_user(&call.caller.user) {
                locked(&session.statements.open).remove(&id);
            }
        }
    }

    /// Binds values to the parameters of the next execution.
    pub fn bind(&self, call: &Call, handle: &[u8], values: Vec<RecordBatch>) -> Result<(), Status> {
        let prepared = self.prepared(call, handle)?;
        let memory = MemoryConsumer::new("bound values").register(&call.session.ctx.runtime_env().memory_pool);
        let taken = memory.try_grow(values.iter().map(RecordBatch::get_array_memory_size).sum());
        taken.map_err(|error| self.status(&error, ""))?;
        *locked(&prepared.bound) = Bound { values, _memory: Some(memory) };
        Ok(())
    }

    /// The result of a prepared query with the values bound to it. Of several rows of values, the results one after the other.
    pub async fn query_prepared(&self, call: &Call, handle: &[u8]) -> Result<Arc<Query>, Status> {
        let prepared = self.prepared(call, handle)?;
        let plan = self.plan(call, &prepared.sql).await?;
        let bound = locked(&prepared.bound).values.clone();
        let plan = self.planned(async move { bound_plan(plan, &bound) }).await?;
        let plan = plan.map_err(|error| self.status(&error, &prepared.sql))?;
        bounds::check_plan(&plan)?;
        self.query(call, plan, &prepared.sql).await
    }

    /// The schema of a prepared query's result.
    pub fn prepared_schema(&self, call: &Call, handle: &[u8]) -> Result<SchemaRef, Status> {
        Ok(Arc::clone(&self.prepared(call, handle)?.schema))
    }

    /// Executes a prepared update once for each row of values; without parameters, once.
    pub async fn update_prepared(&self, call: &Call, handle: &[u8], values: Vec<RecordBatch>) -> Result<i64, Status> {
        let prepared = self.prepared(call, handle)?;
        let failed = |error| self.status(&error, &prepared.sql);
        let plan = self.plan(call, &prepared.sql).await?;
        let bound = if values.is_empty() { locked(&prepared.bound).values.clone() } else { values };
        let wanted = parameter_schema(&plan).map_err(failed)?.fields().len();
        if wanted == 0 {
            return self.update(call, plan, &prepared.sql).await;
        }
        if bound.is_empty() {
            return Err(self.status(&nothing_bound(wanted), ""));
        }
        let mut changed = 0;
        let named = bounds::placeholders(&plan).map_err(failed)?;
        for values in each_row(&bound) {
            let values = values.map_err(failed)?;
            check_values(named, bytes(&values)).map_err(failed)?;
            let plan = plan.clone().replace_params_with_values(&values).map_err(failed)?;
            changed += self.update(call, plan, &prepared.sql).await?;
        }
        Ok(changed)
    }
}

fn nothing_bound(wanted: usize) -> DataFusionError {
    DataFusionError::Plan(format!("the statement has {wanted} parameters, none is bound"))
}

/// A query with the values bound to its parameters: of several rows of values, the results one after the other.
fn bound_plan(plan: LogicalPlan, bound: &[RecordBatch]) -> datafusion::error::Result<LogicalPlan> {
    let rows = bound.iter().map(RecordBatch::num_rows).sum::<usize>();
    if rows.saturating_mul(bounds::count(&plan).0) > bounds::NODES {
        return plan_err!("{rows} rows are bound to the query: bind fewer, or join with a table of values");
    }
    let wanted = parameter_schema(&plan)?.fields().len();
    if rows == 0 {
        return if wanted == 0 { Ok(plan) } else { Err(nothing_bound(wanted)) };
    }
    check_values(bounds::placeholders(&plan)?, bound.iter().map(RecordBatch::get_array_memory_size).sum())?;
    let mut plans = each_row(bound).map(|values| plan.clone().replace_params_with_values(&values?));
    let Some(first) = plans.next() else { return Ok(plan) };
    plans.try_fold(LogicalPlanBuilder::from(first?), |all, next| all.union(next?))?.build()
}

/// Refuses values that the statement names so often that they would become too much: each name is a copy.
fn check_values(named: usize, bytes: usize) -> datafusion::error::Result<()> {
    let all = named.saturating_mul(bytes);
    if all > COPIED_BYTES {
        return resources_err!(
            "the values bound to the statement have {bytes} bytes and are named {named} times, {COPIED_BYTES} bytes are allowed in all"
        );
    }
    Ok(())
}

fn bytes(values: &ParamValues) -> usize {
    match values {
        ParamValues::List(values) => values.iter().map(|value| value.value().size()).sum(),
        ParamValues::Map(values) => values.values().map(|value| value.value().size()).sum(),
    }
}

/// Refuses transactions, which there are none of.
pub(crate) fn no_transaction(id: Option<&bytes::Bytes>) -> Result<(), Status> {
    match id {
        Some(id) if !id.is_empty() => Err(Status::unimplemented("there are no transactions on this server")),
        _ => Ok(()),
    }
}

/// The parameters `$1`, `$2`, ... in this order; text where the statement does not say.
fn parameter_schema(plan: &LogicalPlan) -> datafusion::error::Result<SchemaRef> {
    let mut parameters: Vec<_> = plan.get_parameter_types()?.into_iter().collect();
    let number = |name: &str| name.trim_start_matches('$').parse::<usize>().unwrap_or(usize::MAX);
    parameters.sort_by(|(a, _), (b, _)| number(a).cmp(&number(b)).then_with(|| a.cmp(b)));
    let fields = parameters
        .into_iter()
        .map(|(name, data_type)| Field::new(name, data_type.unwrap_or(DataType::Utf8), true))
        .collect::<Vec<_>>();
    Ok(wire_schema(&Schema::new(fields)))
}

/// The values of each bound row, by position.
fn each_row(bound: &[RecordBatch]) -> impl Iterator<Item = datafusion::error::Result<ParamValues>> {
    bound.iter().flat_map(|batch| {
        (0..batch.num_rows()).map(|row| {
            let values = batch.columns().iter().map(|column| ScalarValue::try_from_array(column, row));
            Ok(ParamValues::from(values.collect::<datafusion::error::Result<Vec<_>>>()?))
        })
    })
}
