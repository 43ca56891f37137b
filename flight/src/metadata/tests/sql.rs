//! What the server says of SQL is what DataFusion does.

use std::collections::BTreeSet;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, UInt32Type};
use arrow_flight::sql::{
    Command, CommandGetSqlInfo, CommandGetXdbcTypeInfo, SqlInfo, SqlSupportsConvert, XdbcDataType,
};
use datafusion::prelude::SessionContext;

use super::{answer, ask, column, context, schema_of};

/// The facts with these numbers, all if there are none.
async fn facts(read_only: bool, info: Vec<u32>) -> RecordBatch {
    let command = Command::CommandGetSqlInfo(CommandGetSqlInfo { info });
    let schema = schema_of(&command).unwrap();
    let batch = answer(&context().await, read_only, command).await.unwrap();
    assert_eq!(batch.schema(), schema);
    batch
}

fn fact(batch: &RecordBatch, info: SqlInfo) -> ArrayRef {
    let names = batch.column(0).as_primitive::<UInt32Type>();
    let row = names.values().iter().position(|name| *name == info as u32).unwrap();
    batch.column(1).as_union().value(row)
}

fn words(batch: &RecordBatch, info: SqlInfo) -> Vec<String> {
    let value = fact(batch, info);
    let list = value.as_list::<i32>().value(0);
    list.as_string::<i32>().iter().flatten().map(str::to_string).collect()
}

#[tokio::test]
async fn facts_are_those_that_are_asked_for() {
    let all = facts(false, vec![]).await;
    let names = all.column(0).as_primitive::<UInt32Type>().values().to_vec();
    assert!(names.is_sorted());
    let every = (0..=11).chain(100..=101).chain(500..=576).filter(|info| ![6, 7].contains(info));
    assert_eq!(names, every.collect::<Vec<u32>>());

    let some = facts(false, vec![SqlInfo::SqlKeywords as u32, 0, 0, 6, 4_000_000_000]).await;
    assert_eq!(some.column(0).as_primitive::<UInt32Type>().values().to_vec(), [0, 508]);
    for unknown in [vec![6], vec![77], vec![u32::MAX, 99]] {
        assert_eq!(facts(false, unknown).await.num_rows(), 0);
    }
}

#[tokio::test]
async fn facts_tell_the_server() {
    for read_only in [false, true] {
        let batch = facts(read_only, vec![]).await;
        assert_eq!(fact(&batch, SqlInfo::FlightSqlServerName).as_string::<i32>().value(0), "ArrowQuant");
        assert_eq!(fact(&batch, SqlInfo::FlightSqlServerReadOnly).as_boolean().value(0), read_only);
        assert_eq!(fact(&batch, SqlInfo::SqlDdlTable).as_boolean().value(0), !read_only);
        assert_eq!(fact(&batch, SqlInfo::FlightSqlServerTransaction).as_primitive::<Int32Type>().value(0), 0);
        assert_eq!(fact(&batch, SqlInfo::SqlDefaultTransactionIsolation).as_primitive::<Int64Type>().value(0), 0);
    }
}

#[tokio::test]
async fn functions_are_listed_by_what_they_are_for() {
    let batch = facts(false, vec![]).await;
    for (info, function) in [
        (SqlInfo::SqlNumericFunctions, "abs"),
        (SqlInfo::SqlStringFunctions, "upper"),
        (SqlInfo::SqlDatetimeFunctions, "date_trunc"),
        (SqlInfo::SqlSystemFunctions, "version"),
    ] {
        let functions = words(&batch, info);
        assert!(functions.is_sorted());
        assert!(functions.iter().any(|name| name == function), "{function} in {functions:?}");
    }
    assert!(words(&batch, SqlInfo::SqlKeywords).iter().any(|word| word == "SELECT"));
}

#[tokio::test]
async fn sql_can_do_what_the_facts_say() {
    let ctx = context().await;
    for sql in [
        "SELECT x AS a$b#c FROM models.unetta AS unetta",
        "SELECT count(*) FROM models.unet_a GROUP BY name",
        "SELECT name FROM models.unet_a ORDER BY tensors + 1",
        "SELECT * FROM models.unetta a FULL OUTER JOIN models.unet_a b ON a.x = b.tensors",
        "SELECT 1 WHERE 1 = (SELECT max(x) FROM models.unetta)",
        "SELECT 1 FROM models.unetta a WHERE EXISTS (SELECT 1 FROM models.unet_a b WHERE a.x = b.tensors)",
        "SELECT x FROM models.unetta WHERE x IN (SELECT tensors FROM models.unet_a)",
        "SELECT x FROM models.unetta WHERE x = ANY (SELECT tensors FROM models.unet_a)",
        "SELECT x FROM models.unetta WHERE x <= ALL (SELECT tensors FROM models.unet_a)",
        "SELECT 1 UNION SELECT 2 UNION ALL SELECT 3",
        "SELECT 1 FROM datafusion.models.unetta",
    ] {
        let frame = ctx.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        frame.collect().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

#[tokio::test]
async fn sql_converts_what_the_facts_say() {
    let name = |kind: i32| match SqlSupportsConvert::try_from(kind).unwrap() {
        SqlSupportsConvert::SqlConvertBigint => "BIGINT",
        SqlSupportsConvert::SqlConvertBinary | SqlSupportsConvert::SqlConvertVarbinary => "BYTEA",
        SqlSupportsConvert::SqlConvertBit => "BOOLEAN",
        SqlSupportsConvert::SqlConvertChar => "CHAR",
        SqlSupportsConvert::SqlConvertDate => "DATE",
        SqlSupportsConvert::SqlConvertDecimal => "DECIMAL",
        SqlSupportsConvert::SqlConvertFloat => "FLOAT",
        SqlSupportsConvert::SqlConvertInteger => "INTEGER",
        SqlSupportsConvert::SqlConvertLongvarchar => "TEXT",
        SqlSupportsConvert::SqlConvertNumeric => "NUMERIC",
        SqlSupportsConvert::SqlConvertReal => "REAL",
        SqlSupportsConvert::SqlConvertSmallint => "SMALLINT",
        SqlSupportsConvert::SqlConvertTime => "TIME",
        SqlSupportsConvert::SqlConvertTimestamp => "TIMESTAMP",
        SqlSupportsConvert::SqlConvertTinyint => "TINYINT",
        SqlSupportsConvert::SqlConvertVarchar => "VARCHAR",
        other => panic!("{other:?} has no name"),
    };
    let ctx = SessionContext::new();
    let batch = facts(false, vec![SqlInfo::SqlSupportsConvert as u32]).await;
    let value = fact(&batch, SqlInfo::SqlSupportsConvert);
    let map = value.as_map();
    let (from, to) = (map.keys().as_primitive::<Int32Type>(), map.values().as_list::<i32>());
    assert_eq!(from.len(), 17);
    for (from, to) in from.values().iter().zip(to.iter()) {
        let to = to.unwrap();
        let casts: BTreeSet<String> = to
            .as_primitive::<Int32Type>()
            .values()
            .iter()
            .map(|to| format!("CAST(CAST(NULL AS {}) AS {})", name(*from), name(*to)))
            .collect();
        assert!(casts.len() > 1, "{} is converted to more than itself", name(*from));
        for cast in casts {
            let frame = ctx.sql(&format!("SELECT {cast}")).await.unwrap();
            frame.collect().await.unwrap_or_else(|error| panic!("{cast}: {error}"));
        }
    }
}

#[tokio::test]
async fn types_are_known_to_sql_by_their_names_and_literals() {
    let ctx = SessionContext::new();
    let batch = ask(&ctx, Command::CommandGetXdbcTypeInfo(CommandGetXdbcTypeInfo::default())).await;
    let numbers = batch.column(1).as_primitive::<Int32Type>();
    let names = column(&batch, "type_name");
    assert!(numbers.values().iter().zip(&names).is_sorted());
    let [prefixes, suffixes] =
        ["literal_prefix", "literal_suffix"].map(|name| batch.column_by_name(name).unwrap().as_string::<i32>());
    let parameters = batch.column_by_name("create_params").unwrap();
    for (row, name) in names.iter().enumerate() {
        let mut queries = vec![format!("SELECT CAST(NULL AS {name})")];
        if parameters.is_valid(row) {
            queries.push(match *name {
                "DECIMAL" | "NUMERIC" => format!("SELECT CAST(NULL AS {name}(20, 3))"),
                _ => format!("SELECT CAST(NULL AS {name}(9))"),
            });
        }
        if prefixes.is_valid(row) {
            let value = match *name {
                "TIME" => "23:59:59.5",
                "INTERVAL" => "1 day",
                "BYTEA" => "00FF",
                _ => "2026-01-31",
            };
            queries.push(format!("SELECT {}{value}{}", prefixes.value(row), suffixes.value(row)));
        }
        for sql in queries {
            let frame = ctx.sql(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            frame.collect().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }
}

#[tokio::test]
async fn types_can_be_asked_for_by_number() {
    let ctx = SessionContext::new();
    let of = async |data_type: i32| {
        let command = CommandGetXdbcTypeInfo { data_type: Some(data_type) };
        let batch = ask(&ctx, Command::CommandGetXdbcTypeInfo(command)).await;
        column(&batch, "type_name").into_iter().map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(of(XdbcDataType::XdbcVarchar as i32).await, ["VARCHAR"]);
    assert_eq!(of(XdbcDataType::XdbcBigint as i32).await, ["BIGINT", "BIGINT UNSIGNED"]);
    assert_eq!(of(4_711).await, [""; 0]);
}
