//! Flight SQL's metadata commands: what there is in a session, and what the server and its SQL can do.

mod objects;
mod sql_info;
#[cfg(test)]
mod tests;
mod type_info;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{SqlInfoDataBuilder, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{Command, CommandGetCatalogs, CommandGetDbSchemas, CommandGetTables};
use datafusion::common::{Result, not_impl_err};
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;

/// The schema of what [`answer`] gives for a command; `None` if the command does not ask for metadata.
pub(crate) fn schema_of(command: &Command) -> Option<SchemaRef> {
    Some(match command {
        Command::CommandGetCatalogs(_) => CommandGetCatalogs {}.into_builder().schema(),
        Command::CommandGetDbSchemas(_) => CommandGetDbSchemas::default().into_builder().schema(),
        Command::CommandGetTables(command) => {
            let include_schema = command.include_schema;
            CommandGetTables { include_schema, ..Default::default() }.into_builder().schema()
        }
        Command::CommandGetTableTypes(command) => command.into_builder().schema(),
        Command::CommandGetSqlInfo(_) => Arc::new(SqlInfoDataBuilder::schema().clone()),
        Command::CommandGetXdbcTypeInfo(_) => XdbcTypeInfoDataBuilder::new().schema(),
        Command::CommandGetPrimaryKeys(_) => primary_keys_schema(),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => foreign_keys_schema(),
        _ => return None,
    })
}

/// The rows of a metadata command, sorted as Flight SQL demands. `read_only`: whether the server refuses all writes.
///
/// # Errors
/// If a table that is asked for cannot be opened, or the command does not ask for metadata.
pub(crate) async fn answer(ctx: &SessionContext, read_only: bool, command: Command) -> Result<RecordBatch> {
    match command {
        Command::CommandGetCatalogs(_) => objects::catalogs(ctx),
        Command::CommandGetDbSchemas(command) => objects::schemas(ctx, command),
        Command::CommandGetTables(command) => objects::tables(ctx, command).await,
        Command::CommandGetTableTypes(command) => objects::table_types(command),
        Command::CommandGetSqlInfo(command) => sql_info::sql_info(ctx, read_only, command),
        Command::CommandGetXdbcTypeInfo(command) => type_info::type_info(command),
        // What is left asks for keys: tables have none.
        keys => match schema_of(&keys) {
            Some(schema) => Ok(RecordBatch::new_empty(schema)),
            None => not_impl_err!("the command '{}' does not ask for metadata", keys.type_url()),
        },
    }
}

fn failed(error: FlightError) -> DataFusionError {
    match error {
        FlightError::Arrow(error) => error.into(),
        other => DataFusionError::External(Box::new(other)),
    }
}

/// The schema of `CommandGetPrimaryKeys` in `FlightSql.proto`.
fn primary_keys_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ]))
}

/// The schema of `CommandGetExportedKeys`, `-ImportedKeys` and `-CrossReference` in `FlightSql.proto`.
fn foreign_keys_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
}
