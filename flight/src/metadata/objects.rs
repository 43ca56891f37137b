//! Catalogs, schemas and tables of a session, those of `information_schema` among them.

use arrow::array::{RecordBatch, StringArray};
use arrow::compute::kernels::comparison::ilike;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::sql::metadata::{GetCatalogsBuilder, GetTablesBuilder};
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTableTypes, CommandGetTables};
use datafusion::catalog::SchemaProvider;
use datafusion::catalog::information_schema::INFORMATION_SCHEMA;
use datafusion::common::{Result, TableReference};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::TableType;
use datafusion::prelude::SessionContext;

use super::failed;
use crate::wire::wire_schema;

const TABLE_TYPES: [TableType; 3] = [TableType::Base, TableType::View, TableType::Temporary];

pub(super) fn catalogs(ctx: &SessionContext) -> Result<RecordBatch> {
    let mut builder = GetCatalogsBuilder::new();
    for name in ctx.catalog_names() {
        builder.append(name);
    }
    builder.build().map_err(failed)
}

pub(super) fn schemas(ctx: &SessionContext, command: CommandGetDbSchemas) -> Result<RecordBatch> {
    let state = ctx.state();
    let mut builder = command.into_builder();
    for catalog in state.catalog_list().catalog_names() {
        for schema in schema_names(&state, &catalog) {
            builder.append(&catalog, schema);
        }
    }
    builder.build().map_err(failed)
}

pub(super) fn table_types(command: CommandGetTableTypes) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    for kind in TABLE_TYPES {
        builder.append(type_name(kind));
    }
    builder.build().map_err(failed)
}

/// The tables that all filters let through; only these are opened, and only if their schemas are asked for.
///
/// # Errors
/// If one of them cannot be opened; the message names it.
pub(super) async fn tables(ctx: &SessionContext, command: CommandGetTables) -> Result<RecordBatch> {
    let state = ctx.state();
    let CommandGetTables { catalog, db_schema_filter_pattern, table_name_filter_pattern, table_types, include_schema } =
        command;
    let mut builder = CommandGetTables { include_schema, ..Default::default() }.into_builder();
    for name in state.catalog_list().catalog_names() {
        // An empty name asks for what is in no catalog: everything is in one.
        if catalog.as_ref().is_some_and(|wanted| *wanted != name) {
            continue;
        }
        for schema in matching(schema_names(&state, &name), db_schema_filter_pattern.as_deref())? {
            // A schema that was dropped since has no tables.
            let Ok(provider) = state.schema_for_ref(TableReference::full(name.as_str(), schema.as_str(), "")) else {
                continue;
            };
            for table in matching(provider.table_names(), table_name_filter_pattern.as_deref())? {
                let wanted = |kind| table_types.is_empty() || table_types.iter().any(|word| word == type_name(kind));
                let found = describe(&*provider, &schema, &table, wanted, include_schema);
                let found = found.await.map_err(|error| unopened(&name, &schema, &table, &error))?;
                if let Some((kind, columns)) = found {
                    append(&mut builder, [&name, &schema, &table], kind, &columns)?;
                }
            }
        }
    }
    builder.build().map_err(failed)
}

fn append(builder: &mut GetTablesBuilder, name: [&str; 3], kind: TableType, columns: &Schema) -> Result<()> {
    let [catalog, schema, table] = name;
    builder.append(catalog, schema, table, type_name(kind), columns).map_err(failed)
}

/// The type of a table and its schema on the wire, if wanted; `None` if the type is not wanted or the table is gone.
async fn describe(
    provider: &dyn SchemaProvider,
    schema: &str,
    table: &str,
    wanted: impl Fn(TableType) -> bool,
    include_schema: bool,
) -> Result<Option<(TableType, SchemaRef)>> {
    let kind = if schema == INFORMATION_SCHEMA {
        // As `information_schema.tables` lists them.
        Some(TableType::View)
    } else {
        provider.table_type(table).await?
    };
    let Some(kind) = kind.filter(|kind| wanted(*kind)) else { return Ok(None) };
    if !include_schema {
        return Ok(Some((kind, Schema::empty().into())));
    }
    Ok(provider.table(table).await?.map(|table| (kind, wire_schema(&table.schema()))))
}

/// The error of a table, with its name in the message.
fn unopened(catalog: &str, schema: &str, table: &str, error: &DataFusionError) -> DataFusionError {
    let name = TableReference::full(catalog, schema, table);
    DataFusionError::External(format!("the table {name} cannot be opened: {}", error.strip_backtrace()).into())
}

/// What a table is called in `GetTables` and `GetTableTypes`.
fn type_name(kind: TableType) -> &'static str {
    match kind {
        TableType::Base => "TABLE",
        TableType::View => "VIEW",
        TableType::Temporary => "LOCAL TEMPORARY",
    }
}

/// The schemas of a catalog; `information_schema` is in each, if the session has it.
fn schema_names(state: &SessionState, catalog: &str) -> Vec<String> {
    let Some(provider) = state.catalog_list().catalog(catalog) else { return Vec::new() };
    let mut names = provider.schema_names();
    if state.config_options().catalog.information_schema {
        names.push(INFORMATION_SCHEMA.to_string());
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// The names that a pattern matches, in letters of either case: SQL finds them so. `%` is any characters, `_` is one, `\` takes
/// the meaning of the next away.
fn matching(names: Vec<String>, pattern: Option<&str>) -> Result<Vec<String>> {
    let Some(pattern) = pattern else { return Ok(names) };
    let candidates = StringArray::from_iter_values(&names);
    let matches = ilike(&candidates, &StringArray::new_scalar(pattern))?;
    Ok(names.into_iter().zip(matches.iter()).filter_map(|(name, fits)| (fits == Some(true)).then_some(name)).collect())
}
