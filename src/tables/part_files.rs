//! The Parquet files of a quantized model as a table. Files that were cut since the model was opened are told by their names, where
//! Parquet would say that a footer is corrupt.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, Statistics};
use datafusion::datasource::listing::ListingTable;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;

use super::rooted::Root;
use crate::model::QuantizedDirectory;

/// The rows of all parts.
#[derive(Debug)]
pub(super) struct PartFiles {
    pub directory: Arc<QuantizedDirectory>,
    pub rows: ListingTable,
    /// The directory's own store, where its path needs one.
    pub root: Option<Root>,
}

#[async_trait]
impl TableProvider for PartFiles {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    fn table_type(&self) -> TableType {
        self.rows.table_type()
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        self.rows.supports_filters_pushdown(filters)
    }

    fn statistics(&self) -> Option<Statistics> {
        self.rows.statistics()
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.directory.check_sizes()?;
        // Until the table is scanned, no session is known.
        if let Some(root) = &self.root {
            root.register(state);
        }
        self.rows.scan(state, projection, filters, limit).await
    }
}
