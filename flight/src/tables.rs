//! The schema `public` of a session: its tables in memory and its views, then the tables that its user stored.

mod files;
mod incoming;
mod memory;
mod staged;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::{Result, not_impl_err, plan_err};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::sink::{DataSink, DataSinkExec};
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::CreateMemoryTable;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};

use crate::lock::locked;
use memory::{MemoryTable, Rows};

pub(crate) use incoming::{Columns, IngestError, Mode};
pub(crate) use staged::blocking;
pub(crate) use stored::{UserTables, clear_staging};

/// The schema of a session's own tables.
pub(crate) const OWN_SCHEMA: &str = "public";

/// Bytes of a table's name.
const NAME_BYTES: usize = 200;

/// The tables of a session. One of its own hides one that its user stored under the same name.
#[derive(Debug)]
pub(crate) struct SessionSchema {
    own: Mutex<BTreeMap<String, Arc<dyn TableProvider>>>,
    stored: Arc<UserTables>,
}

impl SessionSchema {
    pub(crate) fn new(stored: Arc<UserTables>) -> Self {
        Self { own: Mutex::default(), stored }
    }

    fn own(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        locked(&self.own).get(name).cloned()
    }

    /// Writes rows to a table where it is. A new one is stored, or held in memory if it is temporary or nothing is stored.
    /// Gives the number of rows.
    ///
    /// # Errors
    /// See [`crate::ingest::ingest`]; nothing has changed then.
    pub(crate) async fn write(
        &self,
        name: &str,
        temporary: bool,
        mode: Mode,
        input: SendableRecordBatchStream,
        pool: &Arc<dyn MemoryPool>,
    ) -> Result<u64> {
        check_name(name)?;
        let own = self.own(name);
        if own.is_none() && !temporary && self.stored.stores() {
            return self.stored.write(name, mode, input, pool).await;
        }
        let existing = own.as_ref().map(|table| memory_table(name, table)).transpose()?;
        if mode.appends(name, existing.is_some())?
            && let Some(table) = existing
        {
            return table.append(input, pool).await;
        }
        let rows = Rows::collect(&Columns::of(&input.schema(), None)?, input, pool).await?;
        let count = rows.count();
        let replaced = self.commit(name, mode, rows)?;
        // Its memory is given back without the lock.
        drop(replaced);
        Ok(count)
    }

    /// Makes rows a table in memory; gives the one they replace.
    fn commit(&self, name: &str, mode: Mode, rows: Rows) -> Result<Option<Arc<dyn TableProvider>>> {
        let mut own = locked(&self.own);
        if mode.appends(name, own.contains_key(name))?
            && let Some(table) = own.get(name)
        {
            memory_table(name, table)?.push(name, rows)?;
            return Ok(None);
        }
        Ok(own.insert(name.to_string(), Arc::new(MemoryTable::new(rows))))
    }

    /// `CREATE TABLE`, with or without a query.
    pub(crate) async fn create(&self, state: SessionState, create: CreateMemoryTable) -> Result<()> {
        if !create.constraints.is_empty() || !create.column_defaults.is_empty() {
            return not_impl_err!("tables have no keys, constraints and defaults");
        }
        let catalog = state.config_options().catalog.default_catalog.clone();
        let name = create.name.resolve(&catalog, &state.config_options().catalog.default_schema);
        if *name.catalog != *catalog || &*name.schema != OWN_SCHEMA {
            return plan_err!("'{name}': tables are created in '{catalog}.{OWN_SCHEMA}'");
        }
        let own = locked(&self.own).contains_key(&*name.table);
        let exists = own || !create.temporary && self.stored.contains(&name.table);
        let mode = match (create.if_not_exists, create.or_replace) {
            (true, true) => return plan_err!("IF NOT EXISTS and OR REPLACE exclude each other"),
            (true, false) if exists => return Ok(()),
            (_, true) => Mode::Replace,
            (_, false) => Mode::Create,
        };
        mode.appends(&name.table, exists)?;
        let pool = Arc::clone(&state.runtime_env().memory_pool);
        let input = DataFrame::new(state, Arc::unwrap_or_clone(create.input)).execute_stream().await?;
        self.write(&name.table, create.temporary, mode, input, &pool).await?;
        Ok(())
    }
}

#[async_trait]
impl SchemaProvider for SessionSchema {
    fn table_names(&self) -> Vec<String> {
        let mut names = self.stored.names();
        names.extend(locked(&self.own).keys().cloned());
        names.sort();
        names.dedup();
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(self.own(name).or_else(|| self.stored.table(name)))
    }

    fn register_table(&self, name: String, table: Arc<dyn TableProvider>) -> Result<Option<Arc<dyn TableProvider>>> {
        check_name(&name)?;
        let mut own = locked(&self.own);
        if own.contains_key(&name) || self.stored.contains(&name) {
            return Err(IngestError::Exists(name).into());
        }
        Ok(own.insert(name, table))
    }

    fn deregister_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let own = locked(&self.own).remove(name);
        match own {
            Some(table) => Ok(Some(table)),
            None => self.stored.drop_table(name),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        locked(&self.own).contains_key(name) || self.stored.contains(name)
    }
}

fn check_name(name: &str) -> Result<(), IngestError> {
    match name.len() {
        0 => Err(IngestError::Unsupported("a table needs a name".to_string())),
        1..=NAME_BYTES => Ok(()),
        bytes => Err(IngestError::Unsupported(format!("the table's name has {bytes} bytes, {NAME_BYTES} are allowed"))),
    }
}

fn memory_table<'a>(name: &str, table: &'a Arc<dyn TableProvider>) -> Result<&'a MemoryTable, IngestError> {
    let no_table = || IngestError::Unsupported(format!("'{name}' is a view or an external table, which takes no rows"));
    table.downcast_ref::<MemoryTable>().ok_or_else(no_table)
}

/// The table that an INSERT adds rows to.
#[derive(Debug)]
enum Destination {
    Memory(MemoryTable),
    Stored(Arc<UserTables>, String),
}

/// `INSERT INTO`: the rows of a query are added when all of them are there.
#[derive(Debug)]
struct Insertion {
    destination: Destination,
    schema: SchemaRef,
}

/// The plan that adds the rows of `input` to a table.
fn insertion(
    destination: Destination,
    schema: SchemaRef,
    input: Arc<dyn ExecutionPlan>,
    operation: InsertOp,
) -> Result<Arc<dyn ExecutionPlan>> {
    if operation != InsertOp::Append {
        return not_impl_err!("{operation}: rows can only be added");
    }
    Columns::of(&input.schema(), Some(&schema))?;
    Ok(Arc::new(DataSinkExec::new(input, Arc::new(Insertion { destination, schema }), None)))
}

impl DisplayAs for Insertion {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.destination {
            Destination::Memory(_) => "table in memory",
            Destination::Stored(..) => "stored table",
        })
    }
}

#[async_trait]
impl DataSink for Insertion {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn write_all(&self, data: SendableRecordBatchStream, context: &Arc<TaskContext>) -> Result<u64> {
        match &self.destination {
            Destination::Memory(table) => table.append(data, context.memory_pool()).await,
            Destination::Stored(tables, name) => tables.write(name, Mode::Append, data, context.memory_pool()).await,
        }
    }
}
