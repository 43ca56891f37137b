mod sql;

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use arrow_flight::IpcMessage;
use arrow_flight::sql::{
    Command, CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys,
    CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
    CommandStatementQuery,
};
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider,
};
use datafusion::common::{Result, exec_err};
use datafusion::prelude::{SessionConfig, SessionContext};

use super::{answer, schema_of};

/// The catalogs `datafusion` (schemas `public` and `models`) and `other` (an empty schema `models_of_others`).
async fn context() -> SessionContext {
    let ctx = SessionContext::new_with_config(SessionConfig::new().with_information_schema(true));
    let other = MemoryCatalogProvider::new();
    other.register_schema("models_of_others", Arc::new(MemorySchemaProvider::new())).unwrap();
    ctx.register_catalog("other", Arc::new(other));
    for sql in [
        "CREATE SCHEMA models",
        "CREATE TABLE models.unet_a AS SELECT CAST('x' AS VARCHAR) AS name, 1 AS tensors",
        "CREATE TABLE models.unetta AS SELECT 1 AS x",
        "CREATE TABLE words AS SELECT arrow_cast('x', 'Dictionary(Int8, Utf8)') AS word",
        "CREATE VIEW large AS SELECT * FROM models.unet_a WHERE tensors > 10",
    ] {
        ctx.sql(sql).await.unwrap().collect().await.unwrap();
    }
    ctx
}

async fn ask(ctx: &SessionContext, command: Command) -> RecordBatch {
    let schema = schema_of(&command).unwrap();
    let batch = answer(ctx, false, command).await.unwrap();
    assert_eq!(batch.schema(), schema);
    batch
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Vec<&'a str> {
    batch.column_by_name(name).unwrap().as_string::<i32>().iter().flatten().collect()
}

/// Tables that are not of `information_schema`, in full and with their types.
fn own_tables(batch: &RecordBatch) -> Vec<String> {
    let [catalogs, schemas, tables, types] =
        ["catalog_name", "db_schema_name", "table_name", "table_type"].map(|name| column(batch, name));
    (0..batch.num_rows())
        .filter(|row| schemas[*row] != "information_schema")
        .map(|row| format!("{}.{}.{} {}", catalogs[row], schemas[row], tables[row], types[row]))
        .collect()
}

async fn tables(ctx: &SessionContext, command: CommandGetTables) -> Vec<String> {
    own_tables(&ask(ctx, Command::CommandGetTables(command)).await)
}

fn some(text: &str) -> Option<String> {
    Some(text.to_string())
}

#[tokio::test]
async fn catalogs_and_schemas_are_sorted_and_complete() {
    let ctx = context().await;
    let catalogs = ask(&ctx, Command::CommandGetCatalogs(CommandGetCatalogs {})).await;
    assert_eq!(column(&catalogs, "catalog_name"), ["datafusion", "other"]);

    let schemas = async |catalog: Option<&str>, pattern: Option<&str>| {
        let command = CommandGetDbSchemas {
            catalog: catalog.map(str::to_string),
            db_schema_filter_pattern: pattern.map(str::to_string),
        };
        let batch = ask(&ctx, Command::CommandGetDbSchemas(command)).await;
        let names = column(&batch, "catalog_name").into_iter().zip(column(&batch, "db_schema_name"));
        names.map(|(catalog, schema)| format!("{catalog}.{schema}")).collect::<Vec<_>>()
    };
    assert_eq!(
        schemas(None, None).await,
        [
            "datafusion.information_schema",
            "datafusion.models",
            "datafusion.public",
            "other.information_schema",
            "other.models_of_others",
        ]
    );
    assert_eq!(schemas(None, Some("models%")).await, ["datafusion.models", "other.models_of_others"]);
    assert_eq!(schemas(Some("datafusion"), Some("m%")).await, ["datafusion.models"]);
    assert_eq!(schemas(Some(""), None).await, [""; 0]);
    assert_eq!(schemas(Some("none"), None).await, [""; 0]);
}

#[tokio::test]
async fn tables_of_all_catalogs_pass_the_filters() {
    let ctx = context().await;
    let all = CommandGetTables::default();
    assert_eq!(
        tables(&ctx, all.clone()).await,
        [
            "datafusion.models.unet_a TABLE",
            "datafusion.models.unetta TABLE",
            "datafusion.public.large VIEW",
            "datafusion.public.words TABLE",
        ]
    );
    let named = |pattern| CommandGetTables { table_name_filter_pattern: some(pattern), ..CommandGetTables::default() };
    assert_eq!(tables(&ctx, named("unet_a")).await.len(), 2);
    assert_eq!(tables(&ctx, named("unet\\_a")).await, ["datafusion.models.unet_a TABLE"]);
    assert_eq!(tables(&ctx, named("%o%")).await, ["datafusion.public.words TABLE"]);
    assert_eq!(tables(&ctx, named("UNET%")).await.len(), 2);
    let views = CommandGetTables { table_types: vec!["VIEW".to_string()], ..all.clone() };
    assert_eq!(tables(&ctx, views).await, ["datafusion.public.large VIEW"]);
    let system = CommandGetTables { table_types: vec!["SYSTEM TABLE".to_string()], ..all.clone() };
    assert_eq!(tables(&ctx, system).await, [""; 0]);
    let public = CommandGetTables { db_schema_filter_pattern: some("publi_"), ..all.clone() };
    assert_eq!(tables(&ctx, public).await.len(), 2);
    for catalog in ["", "other", "%"] {
        let elsewhere = CommandGetTables { catalog: some(catalog), ..all.clone() };
        assert_eq!(tables(&ctx, elsewhere).await, [""; 0]);
    }
    let information =
        CommandGetTables { catalog: some("other"), db_schema_filter_pattern: some("information%"), ..all };
    let information = ask(&ctx, Command::CommandGetTables(information)).await;
    assert!(column(&information, "table_name").contains(&"columns"));
    assert!(column(&information, "table_type").iter().all(|kind| *kind == "VIEW"));
}

#[tokio::test]
async fn a_session_without_information_schema_lists_none() {
    let ctx = SessionContext::new();
    let batch = ask(&ctx, Command::CommandGetDbSchemas(CommandGetDbSchemas::default())).await;
    assert_eq!(column(&batch, "db_schema_name"), ["public"]);
}

#[tokio::test]
async fn schemas_of_tables_are_those_of_the_wire() {
    let ctx = context().await;
    let command = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
    let batch = ask(&ctx, Command::CommandGetTables(command)).await;
    let (names, schemas) = (column(&batch, "table_name"), batch.column(4).as_binary::<i32>());
    let schema_of_table = |name: &str| {
        let row = names.iter().position(|table| *table == name).unwrap();
        Schema::try_from(IpcMessage(schemas.value(row).to_vec().into())).unwrap()
    };
    for table in ["unet_a", "large"] {
        let schema = schema_of_table(table);
        assert_eq!(schema.field_with_name("name").unwrap().data_type(), &DataType::Utf8, "{table}");
        assert_eq!(schema.field_with_name("tensors").unwrap().data_type(), &DataType::Int64, "{table}");
    }
    assert_eq!(schema_of_table("words").field(0).data_type(), &DataType::Utf8);
}

#[tokio::test]
async fn table_types_are_all_that_tables_have() {
    let ctx = context().await;
    let types = ask(&ctx, Command::CommandGetTableTypes(CommandGetTableTypes {})).await;
    let types = column(&types, "table_type");
    assert_eq!(types, ["LOCAL TEMPORARY", "TABLE", "VIEW"]);
    let tables = ask(&ctx, Command::CommandGetTables(CommandGetTables::default())).await;
    assert!(column(&tables, "table_type").iter().all(|kind| types.contains(kind)));
}

/// A schema whose one table cannot be opened.
#[derive(Debug)]
struct Broken;

#[async_trait]
impl SchemaProvider for Broken {
    fn table_names(&self) -> Vec<String> {
        vec!["torn".to_string()]
    }

    async fn table(&self, _: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        exec_err!("the header is cut off")
    }

    fn table_exist(&self, name: &str) -> bool {
        name == "torn"
    }
}

#[tokio::test]
async fn a_table_that_cannot_be_opened_is_named() {
    let ctx = context().await;
    ctx.catalog("datafusion").unwrap().register_schema("files", Arc::new(Broken)).unwrap();
    let error = answer(&ctx, false, Command::CommandGetTables(CommandGetTables::default())).await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("datafusion.files.torn") && message.contains("the header is cut off"), "{message}");
    let others = CommandGetTables { db_schema_filter_pattern: some("models"), ..CommandGetTables::default() };
    assert_eq!(tables(&ctx, others).await.len(), 2, "tables that are filtered out are not opened");
}

/// A schema as the comments of `FlightSql.proto` write it: `name: type`, then `not null` or nothing.
fn schema_from(text: &str) -> Schema {
    let field = |line: &str| {
        let (name, rest) = line.trim().split_once(": ").unwrap();
        let nullable = !rest.contains("not null");
        let data_type = match rest.split([' ', ',']).next().unwrap() {
            "utf8" => DataType::Utf8,
            "int32" | "int" => DataType::Int32,
            "uint8" => DataType::UInt8,
            "bytes" => DataType::Binary,
            "bool" => DataType::Boolean,
            "list<utf8" => {
                return Field::new(name, DataType::List(Field::new_list_field(DataType::Utf8, false).into()), true);
            }
            other => panic!("no type '{other}'"),
        };
        Field::new(name, data_type, nullable)
    };
    Schema::new(text.trim().lines().map(field).collect::<Vec<_>>())
}

const FOREIGN_KEYS: &str = "
    pk_catalog_name: utf8,
    pk_db_schema_name: utf8,
    pk_table_name: utf8 not null,
    pk_column_name: utf8 not null,
    fk_catalog_name: utf8,
    fk_db_schema_name: utf8,
    fk_table_name: utf8 not null,
    fk_column_name: utf8 not null,
    key_sequence: int32 not null,
    fk_key_name: utf8,
    pk_key_name: utf8,
    update_rule: uint8 not null,
    delete_rule: uint8 not null";

#[tokio::test]
async fn keys_are_none_with_the_schemas_of_the_specification() {
    let ctx = context().await;
    let primary = "
        catalog_name: utf8,
        db_schema_name: utf8,
        table_name: utf8 not null,
        column_name: utf8 not null,
        key_name: utf8,
        key_sequence: int32 not null";
    let table = "no such table".to_string();
    for (command, schema) in [
        (Command::CommandGetPrimaryKeys(CommandGetPrimaryKeys { table, ..Default::default() }), primary),
        (Command::CommandGetExportedKeys(CommandGetExportedKeys::default()), FOREIGN_KEYS),
        (Command::CommandGetImportedKeys(CommandGetImportedKeys::default()), FOREIGN_KEYS),
        (Command::CommandGetCrossReference(CommandGetCrossReference::default()), FOREIGN_KEYS),
    ] {
        let batch = ask(&ctx, command).await;
        assert_eq!((batch.num_rows(), batch.schema().as_ref()), (0, &schema_from(schema)));
    }
}

#[tokio::test]
async fn schemas_are_those_of_the_specification() {
    let tables = "
        catalog_name: utf8,
        db_schema_name: utf8,
        table_name: utf8 not null,
        table_type: utf8 not null";
    let described = format!("{tables},\n    table_schema: bytes not null");
    let types = "
        type_name: utf8 not null,
        data_type: int32 not null,
        column_size: int32,
        literal_prefix: utf8,
        literal_suffix: utf8,
        create_params: list<utf8 not null>,
        nullable: int32 not null,
        case_sensitive: bool not null,
        searchable: int32 not null,
        unsigned_attribute: bool,
        fixed_prec_scale: bool not null,
        auto_increment: bool,
        local_type_name: utf8,
        minimum_scale: int32,
        maximum_scale: int32,
        sql_data_type: int32 not null,
        datetime_subcode: int32,
        num_prec_radix: int32,
        interval_precision: int32";
    let with_schema = CommandGetTables { include_schema: true, ..Default::default() };
    for (command, schema) in [
        (Command::CommandGetCatalogs(CommandGetCatalogs {}), "catalog_name: utf8 not null"),
        (
            Command::CommandGetDbSchemas(CommandGetDbSchemas::default()),
            "catalog_name: utf8,\n db_schema_name: utf8 not null",
        ),
        (Command::CommandGetTables(CommandGetTables::default()), tables),
        (Command::CommandGetTables(with_schema), described.as_str()),
        (Command::CommandGetTableTypes(CommandGetTableTypes {}), "table_type: utf8 not null"),
        (Command::CommandGetXdbcTypeInfo(CommandGetXdbcTypeInfo::default()), types),
    ] {
        assert_eq!(*schema_of(&command).unwrap(), schema_from(schema));
    }
    let query = Command::CommandStatementQuery(CommandStatementQuery::default());
    assert!(schema_of(&query).is_none());
    assert!(answer(&SessionContext::new(), true, query).await.is_err());
}
