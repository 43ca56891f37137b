//! What clients ask for of prepared statements.

use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
};
use arrow_quant_bounds as bounds;
use datafusion::execution::memory_pool::MemoryConsumer;
use tonic::Status;
use uuid::Uuid;

use crate::lock::locked;
use crate::parameters::{
    Bound, Prepared, bound_plan, bytes_of, check_number, check_values, each_row, parameter_schema,
};
use crate::queries::Query;
use crate::service::{Call, State, schema_bytes};
use crate::statements::has_effect;
use crate::wire::wire_schema;

impl State {
    pub(crate) async fn create_prepared(
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

    pub(crate) fn close_prepared(&self, call: &Call, request: &ActionClosePreparedStatementRequest) {
        if let Ok(id) = Uuid::from_slice(&request.prepared_statement_handle) {
            for session in self.sessions.of_user(&call.caller.user) {
                session.statements.remove(&id);
            }
        }
    }

    /// Binds values to the parameters of the next execution.
    pub(crate) fn bind(&self, call: &Call, handle: &[u8], values: Vec<RecordBatch>) -> Result<(), Status> {
        let prepared = self.prepared(call, handle)?;
        let memory = MemoryConsumer::new("bound values").register(&call.session.ctx.runtime_env().memory_pool);
        let taken = memory.try_grow(values.iter().map(RecordBatch::get_array_memory_size).sum());
        taken.map_err(|error| self.status(&error, ""))?;
        *locked(&prepared.bound) = Bound { values, _memory: Some(memory) };
        Ok(())
    }

    /// The result of a prepared query with the values bound to it. Of several rows of values, the results one after the other.
    pub(crate) async fn query_prepared(&self, call: &Call, handle: &[u8]) -> Result<Arc<Query>, Status> {
        let prepared = self.prepared(call, handle)?;
        let plan = self.plan(call, &prepared.sql).await?;
        let bound = locked(&prepared.bound).values.clone();
        let plan = self.planned(async move { bound_plan(plan, &bound) }).await?;
        let plan = plan.map_err(|error| self.status(&error, &prepared.sql))?;
        bounds::check_plan(&plan).map_err(|error| self.status(&error.into(), &prepared.sql))?;
        self.query(call, plan, &prepared.sql).await
    }

    /// The schema of a prepared query's result.
    pub(crate) fn prepared_schema(&self, call: &Call, handle: &[u8]) -> Result<SchemaRef, Status> {
        Ok(Arc::clone(&self.prepared(call, handle)?.schema))
    }

    /// Executes a prepared update once for each row of values; without parameters, once.
    pub(crate) async fn update_prepared(
        &self,
        call: &Call,
        handle: &[u8],
        values: Vec<RecordBatch>,
    ) -> Result<i64, Status> {
        let prepared = self.prepared(call, handle)?;
        let failed = |error| self.status(&error, &prepared.sql);
        let plan = self.plan(call, &prepared.sql).await?;
        let bound = if values.is_empty() { locked(&prepared.bound).values.clone() } else { values };
        let wanted = parameter_schema(&plan).map_err(failed)?.fields().len();
        if !bound.is_empty() && bound.iter().all(|batch| batch.num_rows() == 0) {
            // Executed for no rows at all.
            return Ok(0);
        }
        check_number(wanted, &bound).map_err(failed)?;
        if wanted == 0 {
            return self.update(call, plan, &prepared.sql).await;
        }
        // -1 says that it is not known, as of a query.
        let mut changed = 0;
        let named = bounds::placeholders(&plan).map_err(failed)?;
        for values in each_row(&bound) {
            let values = values.map_err(failed)?;
            check_values(named, bytes_of(&values)).map_err(failed)?;
            let plan = plan.clone().replace_params_with_values(&values).map_err(failed)?;
            let rows = self.update(call, plan, &prepared.sql).await?;
            changed = if rows < 0 { -1 } else { changed + rows };
        }
        Ok(changed)
    }
}

/// Refuses transactions, which there are none of.
pub(crate) fn no_transaction(id: Option<&bytes::Bytes>) -> Result<(), Status> {
    match id {
        Some(id) if !id.is_empty() => Err(Status::unimplemented("there are no transactions on this server")),
        _ => Ok(()),
    }
}
