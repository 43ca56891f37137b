//! Prepared statements of a session as values, and what is bound to their parameters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_quant_bounds as bounds;
use datafusion::common::{ParamValues, ScalarValue, plan_err, resources_err};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use tonic::Status;
use uuid::Uuid;

use crate::lock::locked;
use crate::wire::wire_schema;

/// Bytes of bound values in a plan, counted as often as it names them.
const COPIED_BYTES: usize = 64 << 20;

/// Parameters of a statement.
const MOST_PARAMETERS: usize = 65_535;

/// A statement that is run with different values. It is planned anew each time: the tables it names may be others by then.
pub(crate) struct Prepared {
    pub(crate) sql: String,
    pub(crate) schema: SchemaRef,
    pub(crate) bound: Mutex<Bound>,
}

/// Values, and the memory that is counted for them.
#[derive(Default)]
pub(crate) struct Bound {
    pub(crate) values: Vec<RecordBatch>,
    pub(crate) _memory: Option<MemoryReservation>,
}

/// The prepared statements of a session.
pub(crate) struct Statements {
    limit: usize,
    open: Mutex<HashMap<Uuid, Arc<Prepared>>>,
}

impl Statements {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, open: Mutex::default() }
    }

    pub(crate) fn insert(&self, prepared: Prepared) -> Result<Uuid, Status> {
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

    pub(crate) fn get(&self, handle: &[u8]) -> Option<Arc<Prepared>> {
        Uuid::from_slice(handle).ok().and_then(|id| locked(&self.open).get(&id).cloned())
    }

    pub(crate) fn remove(&self, id: &Uuid) {
        locked(&self.open).remove(id);
    }

    pub(crate) fn len(&self) -> usize {
        locked(&self.open).len()
    }
}

/// Refuses values that are not as many as the statement has parameters.
pub(crate) fn check_number(wanted: usize, bound: &[RecordBatch]) -> datafusion::error::Result<()> {
    let rows = bound.iter().map(RecordBatch::num_rows).sum::<usize>();
    let columns = bound.first().map_or(0, RecordBatch::num_columns);
    if columns == wanted && (rows > 0 || wanted == 0) {
        return Ok(());
    }
    let parameters = if wanted == 1 { "1 parameter".to_string() } else { format!("{wanted} parameters") };
    let bound = if rows == 0 || columns == 0 { "none".to_string() } else { columns.to_string() };
    let is = if bound == "none" || bound == "1" { "is" } else { "are" };
    plan_err!("the statement has {parameters}, {bound} {is} bound")
}

/// A query with the values bound to its parameters: of several rows of values, the results one after the other.
pub(crate) fn bound_plan(plan: LogicalPlan, bound: &[RecordBatch]) -> datafusion::error::Result<LogicalPlan> {
    let rows = bound.iter().map(RecordBatch::num_rows).sum::<usize>();
    if rows.saturating_mul(bounds::count(&plan).0) > bounds::NODES {
        return plan_err!("{rows} rows are bound to the query: bind fewer, or join with a table of values");
    }
    let wanted = parameter_schema(&plan)?.fields().len();
    check_number(wanted, bound)?;
    if wanted == 0 {
        return Ok(plan);
    }
    check_values(bounds::placeholders(&plan)?, bound.iter().map(value_bytes).sum())?;
    let mut plans = each_row(bound).map(|values| plan.clone().replace_params_with_values(&values?));
    let Some(first) = plans.next() else { return Ok(plan) };
    plans.try_fold(LogicalPlanBuilder::from(first?), |all, next| all.union(next?))?.build()
}

/// Bytes of the values themselves: arrays that came over the wire share their message.
pub(crate) fn value_bytes(bound: &RecordBatch) -> usize {
    let bytes = bound.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(COPIED_BYTES));
    bytes.fold(0, usize::saturating_add)
}

/// Refuses values that the statement names so often that they would become too much: each name is a copy.
pub(crate) fn check_values(named: usize, bytes: usize) -> datafusion::error::Result<()> {
    let all = named.saturating_mul(bytes);
    if all > COPIED_BYTES {
        return resources_err!(
            "the values bound to the statement have {bytes} bytes and are named {named} times, {COPIED_BYTES} bytes are allowed in all"
        );
    }
    Ok(())
}

/// Bytes of the values of a row.
pub(crate) fn bytes_of(values: &ParamValues) -> usize {
    match values {
        ParamValues::List(values) => values.iter().map(|value| value.value().size()).sum(),
        ParamValues::Map(values) => values.values().map(|value| value.value().size()).sum(),
    }
}

/// The parameters `$1`, `$2`, ... in this order; text where the statement does not say.
pub(crate) fn parameter_schema(plan: &LogicalPlan) -> datafusion::error::Result<SchemaRef> {
    let mut types = plan.get_parameter_types()?;
    let number = |name: &str| name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
    if let Some(name) = types.keys().find(|name| number(name).is_none()) {
        return plan_err!("the parameter {name} has a name: write ?, or $1, $2 and so on");
    }
    let most = types.keys().filter_map(|name| number(name)).max().unwrap_or(0);
    if most > MOST_PARAMETERS {
        return plan_err!("the statement has the parameter ${most}, ${MOST_PARAMETERS} is the last that is allowed");
    }
    // A value is bound for each number up to the last, named or not.
    let fields = (1..=most)
        .map(|number| {
            let name = format!("${number}");
            let data_type = types.remove(&name).flatten().unwrap_or(DataType::Utf8);
            Field::new(name, data_type, true)
        })
        .collect::<Vec<_>>();
    Ok(wire_schema(&Schema::new(fields)))
}

/// The values of each bound row, by position.
pub(crate) fn each_row(bound: &[RecordBatch]) -> impl Iterator<Item = datafusion::error::Result<ParamValues>> {
    bound.iter().flat_map(|batch| {
        (0..batch.num_rows()).map(|row| {
            let values = batch.columns().iter().map(|column| ScalarValue::try_from_array(column, row));
            Ok(ParamValues::from(values.collect::<datafusion::error::Result<Vec<_>>>()?))
        })
    })
}
