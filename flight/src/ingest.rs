//! Bulk ingest: a stream of batches becomes a table, or more rows of one, entirely or not at all.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;

use crate::tables::{IngestError, Mode, OWN_SCHEMA, SessionSchema};

/// Where rows go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub catalog: Option<String>,
    pub schema: Option<String>,
    pub table: String,
    /// In memory of the session, even if tables are stored.
    pub temporary: bool,
    pub mode: Mode,
}

/// Stores a stream as a table, and gives the number of its rows. If it fails or is dropped, everything is as it was.
///
/// # Errors
/// Those of the stream; [`IngestError`] if the table cannot take it; `ResourcesExhausted` if it is to be held in memory and there
/// is too little.
pub(crate) async fn ingest(
    session: &SessionContext,
    tables: &SessionSchema,
    target: Target,
    input: SendableRecordBatchStream,
) -> Result<i64> {
    let own = session.state().config_options().catalog.default_catalog.clone();
    for (what, asked, own) in [("catalog", &target.catalog, own.as_str()), ("schema", &target.schema, OWN_SCHEMA)] {
        if let Some(asked) = asked.as_deref().filter(|asked| !asked.is_empty() && *asked != own) {
            return Err(IngestError::Unsupported(format!(
                "tables cannot be stored in the {what} '{asked}', only in '{own}'"
            ))
            .into());
        }
    }
    let pool = Arc::clone(&session.runtime_env().memory_pool);
    let rows = tables.write(&target.table, target.temporary, target.mode, input, &pool).await?;
    Ok(i64::try_from(rows).unwrap_or(i64::MAX))
}
