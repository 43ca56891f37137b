//! Tables of files below a directory whose path the file system's object store cannot spell: it refuses control characters,
//! such as a line end.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow_quant_formats::ContentHash;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use object_store::local::LocalFileSystem;
use url::Url;

use crate::QuantError;

/// A directory as an object store of its own, in which paths are relative to it.
#[derive(Debug, Clone)]
pub(super) struct Root {
    url: Url,
    store: Arc<LocalFileSystem>,
}

impl Root {
    /// The directory's store, if its path needs one.
    ///
    /// # Errors
    /// If the directory cannot be opened.
    pub(super) fn of(directory: &Path) -> crate::Result<Option<Self>> {
        let path = directory.to_string_lossy();
        if !path.chars().any(char::is_control) {
            return Ok(None);
        }
        let failed = |error: &dyn std::fmt::Display| {
            QuantError::configuration(format!("`{}` cannot be read: {error}", directory.display())).at(directory)
        };
        let store = LocalFileSystem::new_with_prefix(directory).map_err(|error| failed(&error))?;
        let hash = ContentHash::of(path.as_bytes());
        let url = Url::parse(&format!("directory://{hash}/")).map_err(|error| failed(&error))?;
        Ok(Some(Self { url, store: Arc::new(store) }))
    }

    /// The URL of a file.
    ///
    /// # Errors
    /// If its path is not one of a URL.
    pub(super) fn url(&self, relative: &str) -> crate::Result<Url> {
        self.url
            .join(relative)
            .map_err(|error| QuantError::configuration(format!("`{relative}` cannot be read: {error}")))
    }
}

/// A table of files of a root.
#[derive(Debug)]
pub(super) struct Rooted<T> {
    pub root: Root,
    pub table: T,
}

#[async_trait]
impl<T: TableProvider> TableProvider for Rooted<T> {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        self.table.table_type()
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        self.table.get_logical_plan()
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        self.table.supports_filters_pushdown(filters)
    }

    /// The session learns of the store when the table is looked at: until then no session is known.
    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        state.runtime_env().register_object_store(&self.root.url, Arc::<LocalFileSystem>::clone(&self.root.store));
        self.table.scan(state, projection, filters, limit).await
    }
}
