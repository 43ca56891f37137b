//! ListFlights: every table there is, by the path that fetches it.

use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::{FlightDescriptor, FlightInfo};
use datafusion::common::stats::Precision;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use tonic::Status;

use crate::service::{Call, State, schema_bytes};
use crate::wire::wire_schema;

/// Tables that describe tables; they are there to be queried, and are not listed.
const INFORMATION_SCHEMA: &str = "information_schema";

impl State {
    /// The tables whose `schema.table` begins with the criteria's text; all, if it is empty. Endpoints are given by GetFlightInfo.
    pub(crate) async fn flights(&self, call: &Call, criteria: &[u8]) -> Result<Vec<FlightInfo>, Status> {
        let Ok(prefix) = std::str::from_utf8(criteria).map(str::to_string) else {
            return Err(Status::invalid_argument("the criteria are the beginning of schema.table, as text"));
        };
        let ctx = call.session.ctx.clone();
        let tables = self.on_threads(async move { tables(&ctx, &prefix).await }).await?;
        let tables = tables.map_err(|error| self.status(&error, ""))?;
        tables
            .into_iter()
            .map(|Table { path, schema, rows }| {
                let descriptor =
                    FlightDescriptor { r#type: DescriptorType::Path.into(), cmd: Default::default(), path };
                Ok(FlightInfo {
                    schema: schema_bytes(&wire_schema(&schema))?,
                    flight_descriptor: Some(descriptor),
                    total_records: rows,
                    total_bytes: -1,
                    ..Default::default()
                })
            })
            .collect()
    }
}

struct Table {
    path: Vec<String>,
    schema: arrow::datatypes::SchemaRef,
    /// -1 if it is not known.
    rows: i64,
}

/// The tables of the default catalog.
async fn tables(ctx: &SessionContext, prefix: &str) -> Result<Vec<Table>, DataFusionError> {
    let name = ctx.state().config_options().catalog.default_catalog.clone();
    let Some(catalog) = ctx.catalog(&name) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for schema_name in catalog.schema_names() {
        let Some(schema) = catalog.schema(&schema_name).filter(|_| schema_name != INFORMATION_SCHEMA) else { continue };
        let mut names = schema.table_names();
        names.sort();
        for name in names {
            if !format!("{schema_name}.{name}").starts_with(prefix) {
                continue;
            }
            // A table that another connection just dropped is not listed.
            let Some(table) = schema.table(&name).await? else { continue };
            let rows = match table.statistics().map(|statistics| statistics.num_rows) {
                Some(Precision::Exact(rows)) => i64::try_from(rows).unwrap_or(-1),
                _ => -1,
            };
            found.push(Table { path: vec![schema_name.clone(), name], schema: table.schema(), rows });
        }
    }
    Ok(found)
}
