//! Tables in memory, counted against the pool that all queries share.

use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::utils::memory::RecordBatchMemoryCounter;
use datafusion::common::{Result, Statistics};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;

use super::incoming::{Columns, IngestError};
use super::{Destination, insertion};
use crate::lock::locked;

/// Bytes of a batch, and of each of its columns, besides their values, about.
const OVERHEAD: usize = 256;

/// Batches, and the memory they take, which is given back with them.
#[derive(Debug)]
pub(super) struct Rows {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    count: usize,
    _memory: MemoryReservation,
}

impl Rows {
    /// Reads a stream to its end.
    ///
    /// # Errors
    /// Those of the stream; if a batch does not fit the columns; `ResourcesExhausted`.
    pub(crate) async fn collect(
        columns: &Columns,
        mut input: SendableRecordBatchStream,
        pool: &Arc<dyn MemoryPool>,
    ) -> Result<Self> {
        let memory = MemoryConsumer::new("tables in memory").register(pool);
        let mut counter = RecordBatchMemoryCounter::new();
        let (mut batches, mut count) = (Vec::new(), 0);
        while let Some(batch) = input.next().await {
            let batch = columns.batch(&batch?)?;
            if batch.num_rows() > 0 {
                memory.try_grow(counter.count_batch(&batch) + OVERHEAD * (1 + batch.num_columns()))?;
                count += batch.num_rows();
                batches.push(batch);
            }
        }
        Ok(Self { schema: Arc::clone(columns.schema()), batches, count, _memory: memory })
    }

    pub(crate) fn count(&self) -> u64 {
        self.count as u64
    }
}

/// A table in memory. Clones are the same table.
#[derive(Debug, Clone)]
pub(super) struct MemoryTable {
    schema: SchemaRef,
    rows: Arc<Mutex<Vec<Rows>>>,
}

impl MemoryTable {
    pub(crate) fn new(rows: Rows) -> Self {
        Self { schema: Arc::clone(&rows.schema), rows: Arc::new(Mutex::new(vec![rows])) }
    }

    /// Adds a stream's rows once all of them are there; gives their number.
    pub(crate) async fn append(&self, input: SendableRecordBatchStream, pool: &Arc<dyn MemoryPool>) -> Result<u64> {
        let columns = Columns::of(&input.schema(), Some(&self.schema))?;
        let rows = Rows::collect(&columns, input, pool).await?;
        let count = rows.count();
        locked(&self.rows).push(rows);
        Ok(count)
    }

    /// Adds rows that were checked against another table of this name.
    ///
    /// # Errors
    /// If they are of another schema.
    pub(crate) fn push(&self, name: &str, rows: Rows) -> Result<(), IngestError> {
        if rows.schema != self.schema {
            return Err(IngestError::changed(name));
        }
        locked(&self.rows).push(rows);
        Ok(())
    }
}

#[async_trait]
impl TableProvider for MemoryTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batches: Vec<_> = locked(&self.rows).iter().flat_map(|rows| rows.batches.iter().cloned()).collect();
        let plan = MemorySourceConfig::try_new_exec(&[batches], Arc::clone(&self.schema), projection.cloned())?;
        Ok(plan)
    }

    fn statistics(&self) -> Option<Statistics> {
        let rows = locked(&self.rows).iter().map(|rows| rows.count).sum();
        Some(Statistics::new_unknown(&self.schema).with_num_rows(Precision::Exact(rows)))
    }

    async fn insert_into(
        &self,
        _: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        operation: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        insertion(Destination::Memory(self.clone()), Arc::clone(&self.schema), input, operation)
    }
}
