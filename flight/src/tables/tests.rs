use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryArray, BinaryViewArray, DictionaryArray, FixedSizeBinaryArray, Int64Array, LargeStringArray,
    ListArray, RecordBatch, StringArray, StringViewArray, StructArray, TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Float32Type, Int32Type, Schema};
use datafusion::catalog::SchemaProvider;
use datafusion::common::{Result, TableReference};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::physical_plan::collect;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::stream;

use super::{IngestError, Mode, SessionSchema, UserTables, clear_staging};
use crate::ingest::{Target, ingest};

struct Client {
    ctx: SessionContext,
    tables: Arc<SessionSchema>,
}

fn client(directory: Option<&Path>, user: &str) -> Client {
    client_of(SessionContext::new(), directory, user)
}

fn client_of(ctx: SessionContext, directory: Option<&Path>, user: &str) -> Client {
    let stored = UserTables::open(&ctx, directory, user).unwrap();
    let tables = Arc::new(SessionSchema::new(Arc::new(stored)));
    ctx.catalog("datafusion").unwrap().register_schema("public", Arc::clone(&tables) as _).unwrap();
    Client { ctx, tables }
}

fn target(table: &str, mode: Mode) -> Target {
    Target { catalog: None, schema: None, table: table.to_string(), temporary: false, mode }
}

impl Client {
    async fn put(&self, table: &str, mode: Mode, batches: Vec<RecordBatch>) -> Result<i64> {
        let schema = batches[0].schema();
        let rows = stream::iter(batches.into_iter().map(Ok));
        self.put_stream(target(table, mode), Box::pin(RecordBatchStreamAdapter::new(schema, rows))).await
    }

    async fn put_stream(&self, target: Target, rows: SendableRecordBatchStream) -> Result<i64> {
        ingest(&self.ctx, &self.tables, target, rows).await
    }

    async fn rows(&self, table: &str) -> usize {
        self.ctx.table(TableReference::bare(table)).await.unwrap().count().await.unwrap()
    }

    async fn sql(&self, sql: &str) -> Result<()> {
        match self.ctx.state().create_logical_plan(sql).await? {
            LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) => {
                self.tables.create(self.ctx.state(), create).await
            }
            plan => self.ctx.execute_logical_plan(plan).await?.collect().await.map(drop),
        }
    }
}

fn numbers(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    RecordBatch::try_from_iter([("x", values)]).unwrap()
}

fn ingest_error(error: DataFusionError) -> IngestError {
    match error {
        DataFusionError::External(error) => *error.downcast::<IngestError>().unwrap(),
        other => panic!("{other}"),
    }
}

fn files(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, |entries| entries.count())
}

#[tokio::test]
async fn modes() {
    let directory = tempfile::tempdir().unwrap();
    for directory in [None, Some(directory.path())] {
        let client = client(directory, "ada");
        assert!(matches!(
            ingest_error(client.put("t", Mode::Append, vec![numbers(0..1)]).await.unwrap_err()),
            IngestError::Missing(table) if table == "t"
        ));
        assert_eq!(client.put("t", Mode::Create, vec![numbers(0..3), numbers(3..5)]).await.unwrap(), 5);
        assert_eq!(client.rows("t").await, 5);
        assert!(matches!(
            ingest_error(client.put("t", Mode::Create, vec![numbers(0..1)]).await.unwrap_err()),
            IngestError::Exists(table) if table == "t"
        ));
        assert_eq!(client.put("t", Mode::Append, vec![numbers(0..2)]).await.unwrap(), 2);
        assert_eq!(client.put("t", Mode::CreateAppend, vec![numbers(0..2)]).await.unwrap(), 2);
        assert_eq!(client.rows("t").await, 9);
        assert_eq!(client.put("t", Mode::Replace, vec![numbers(0..4)]).await.unwrap(), 4);
        assert_eq!(client.rows("t").await, 4);
        assert_eq!(client.put("new", Mode::CreateAppend, vec![numbers(0..1)]).await.unwrap(), 1);
        assert_eq!(client.put("newer", Mode::Replace, vec![numbers(0..1)]).await.unwrap(), 1);
        assert_eq!(client.tables.table_names(), ["new", "newer", "t"]);
        assert!(client.put("gone", Mode::ReplaceExisting, vec![numbers(0..1)]).await.is_err());
    }
}

#[tokio::test]
async fn an_empty_stream_is_an_empty_table() {
    let directory = tempfile::tempdir().unwrap();
    for directory in [None, Some(directory.path())] {
        let client = client(directory, "ada");
        assert_eq!(client.put("t", Mode::Create, vec![numbers([])]).await.unwrap(), 0);
        assert_eq!(client.rows("t").await, 0);
        client.put("t", Mode::Append, vec![numbers(0..2)]).await.unwrap();
        assert_eq!(client.rows("t").await, 2);
    }
}

#[tokio::test]
async fn a_stream_that_fails_leaves_everything_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    for directory in [None, Some(directory.path())] {
        let client = client(directory, "ada");
        client.put("t", Mode::Create, vec![numbers(0..3)]).await.unwrap();
        for (table, mode) in [("t", Mode::Append), ("t", Mode::Replace), ("u", Mode::Create)] {
            let rows = [Ok(numbers(0..9)), Err(DataFusionError::Execution("lost".into())), Ok(numbers(0..9))];
            let rows = RecordBatchStreamAdapter::new(numbers([]).schema(), stream::iter(rows));
            let error = client.put_stream(target(table, mode), Box::pin(rows)).await.unwrap_err();
            assert!(error.to_string().contains("lost"), "{error}");
        }
        assert_eq!(client.rows("t").await, 3);
        assert_eq!(client.tables.table_names(), ["t"]);
        assert_eq!(client.ctx.runtime_env().memory_pool.reserved() > 0, directory.is_none());
        if let Some(directory) = directory {
            assert_eq!((files(&directory.join(".staging")), files(&directory.join("ada"))), (0, 1));
        }
    }
}

#[tokio::test]
async fn an_ingest_that_is_dropped_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let client = client(Some(directory.path()), "ada");
    let (reached, waiting) = tokio::sync::oneshot::channel();
    let mut reached = Some(reached);
    let mut first = Some(numbers(0..3));
    let rows = stream::poll_fn(move |_| match first.take() {
        Some(batch) => Poll::Ready(Some(Ok(batch))),
        None => {
            if let Some(reached) = reached.take() {
                let _ = reached.send(());
            }
            Poll::Pending
        }
    });
    let rows = RecordBatchStreamAdapter::new(numbers([]).schema(), rows);
    tokio::select! {
        result = client.put_stream(target("t", Mode::Create), Box::pin(rows)) => panic!("{result:?}"),
        _ = waiting => {}
    }
    let removed = async {
        while files(&directory.path().join(".staging")) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), removed).await.unwrap();
    assert!(client.tables.table_names().is_empty());
}

#[tokio::test]
async fn stored_tables_are_there_after_a_restart_and_for_their_user_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = Some(directory.path());
    let ada = client(path, "ada");
    for name in ["t", "T", "../x", ".", "a b/ä", "%41"] {
        ada.put(name, Mode::Create, vec![numbers(0..2)]).await.unwrap();
        ada.put(name, Mode::Append, vec![numbers(2..5)]).await.unwrap();
    }
    ada.put("t", Mode::Replace, vec![numbers(0..1)]).await.unwrap();
    let temporary = Target { temporary: true, ..target("own", Mode::Create) };
    let rows = RecordBatchStreamAdapter::new(numbers([]).schema(), stream::iter([Ok(numbers(0..7))]));
    ada.put_stream(temporary, Box::pin(rows)).await.unwrap();
    assert_eq!(ada.rows("own").await, 7);
    drop(ada);

    fs::write(directory.path().join(".staging/left.parquet"), "half").unwrap();
    clear_staging(directory.path()).unwrap();
    assert_eq!(files(&directory.path().join(".staging")), 0);
    let ada = client(path, "ada");
    assert_eq!(ada.tables.table_names(), ["%41", ".", "../x", "T", "a b/ä", "t"]);
    for (name, rows) in [("t", 1), ("T", 5), ("../x", 5), (".", 5), ("a b/ä", 5), ("%41", 5)] {
        assert_eq!(ada.rows(name).await, rows, "{name}");
    }
    assert!(client(path, "Ada").tables.table_names().is_empty());
    assert!(client(path, "..").tables.table_names().is_empty());
}

#[tokio::test]
async fn plans_read_what_was_there_when_they_were_made() {
    let directory = tempfile::tempdir().unwrap();
    let client = client(Some(directory.path()), "ada");
    client.put("t", Mode::Create, vec![numbers(0..3)]).await.unwrap();
    let plan = client.ctx.table("t").await.unwrap().create_physical_plan().await.unwrap();
    client.put("t", Mode::Replace, vec![numbers(0..9)]).await.unwrap();
    let batches = collect(Arc::clone(&plan), client.ctx.task_ctx()).await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    let table = directory.path().join("ada/t");
    assert_eq!(files(&table), 2);
    drop(plan);
    assert_eq!(files(&table), 1);
    assert_eq!(client.rows("t").await, 9);
}

#[tokio::test]
async fn ingests_at_the_same_time() {
    let directory = tempfile::tempdir().unwrap();
    for directory in [None, Some(directory.path())] {
        let client = client(directory, "ada");
        let create = || client.put("t", Mode::Create, vec![numbers(0..3)]);
        let (one, other) = tokio::join!(create(), create());
        let failed = [one, other].into_iter().filter_map(Result::err).map(ingest_error).collect::<Vec<_>>();
        assert!(matches!(failed.as_slice(), [IngestError::Exists(_)]), "{failed:?}");
        let append = || client.put("t", Mode::Append, vec![numbers(0..2)]);
        let (one, other) = tokio::join!(append(), append());
        assert_eq!((one.unwrap(), other.unwrap()), (2, 2));
        assert_eq!(client.rows("t").await, 7);
    }
}

#[tokio::test]
async fn tables_by_sql() {
    let directory = tempfile::tempdir().unwrap();
    for directory in [None, Some(directory.path())] {
        let client = client(directory, "ada");
        client.sql("CREATE TABLE t (a BIGINT, b VARCHAR)").await.unwrap();
        assert!(matches!(
            ingest_error(client.sql("CREATE TABLE t (a INT)").await.unwrap_err()),
            IngestError::Exists(_)
        ));
        client.sql("CREATE TABLE IF NOT EXISTS t (a INT)").await.unwrap();
        client.sql("INSERT INTO t (b, a) VALUES ('x', 1), (NULL, 2)").await.unwrap();
        client.sql("INSERT INTO t SELECT * FROM t").await.unwrap();
        assert_eq!(client.rows("t").await, 4);
        client.sql("CREATE VIEW v AS SELECT a FROM t WHERE a > 1").await.unwrap();
        client.sql("INSERT INTO t VALUES (3, 'y')").await.unwrap();
        assert_eq!(client.rows("v").await, 3);
        let error = client.put("v", Mode::Replace, vec![numbers(0..1)]).await.unwrap_err();
        assert!(matches!(ingest_error(error), IngestError::Unsupported(_)));
        client.sql("CREATE OR REPLACE TABLE u AS SELECT a FROM t").await.unwrap();
        client.sql("DROP TABLE t").await.unwrap();
        assert!(client.sql("DROP TABLE t").await.is_err());
        assert!(client.sql("CREATE TABLE k (a INT PRIMARY KEY)").await.is_err());
        assert_eq!(client.tables.table_names(), ["u", "v"]);
        client.sql("CREATE TABLE t AS SELECT 1 AS a").await.unwrap();
        assert_eq!(client.rows("t").await, 1);
        client.sql("DROP TABLE t").await.unwrap();
        client.sql("DROP TABLE u").await.unwrap();
        if let Some(directory) = directory {
            assert_eq!((files(&directory.join(".staging")), files(&directory.join("ada"))), (0, 0));
        }
        client.sql("DROP VIEW v").await.unwrap();
        assert_eq!(client.ctx.runtime_env().memory_pool.reserved(), 0);
    }
}

#[tokio::test]
async fn columns_are_matched_by_name_and_content() {
    let directory = tempfile::tempdir().unwrap();
    for directory in [None, Some(directory.path())] {
        let client = client(directory, "ada");
        let batch = |columns: Vec<(&str, ArrayRef)>| {
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
                .unwrap()
        };
        let x: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let s: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None]));
        client.put("t", Mode::Create, vec![batch(vec![("x", Arc::clone(&x)), ("s", Arc::clone(&s))])]).await.unwrap();
        let views: ArrayRef =
            Arc::new(StringViewArray::from(vec!["b", "a long value that a view does not hold itself"]));
        let large: ArrayRef = Arc::new(LargeStringArray::from(vec!["c", "d"]));
        let keys: ArrayRef = Arc::new(["e", "e"].into_iter().collect::<DictionaryArray<Int32Type>>());
        for text in [views, large, keys] {
            client.put("t", Mode::Append, vec![batch(vec![("s", text), ("x", Arc::clone(&x))])]).await.unwrap();
        }
        assert_eq!(client.rows("t").await, 8);
        for (rows, message) in [
            (vec![("x", Arc::clone(&x))], "column 's': the table has it, the rows do not"),
            (vec![("x", Arc::clone(&s)), ("s", Arc::clone(&s))], "column 'x': the table has Int64, the rows have Utf8"),
            (
                vec![("x", Arc::clone(&x)), ("s", Arc::clone(&s)), ("y", Arc::clone(&x))],
                "column 'y': the rows have it, the table does not",
            ),
        ] {
            let error = client.put("t", Mode::Append, vec![batch(rows)]).await.unwrap_err();
            assert_eq!(ingest_error(error).to_string(), message);
        }
        let required = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, false)]));
        let rows = RecordBatch::try_new(required, vec![Arc::clone(&x)]).unwrap();
        client.put("required", Mode::Create, vec![rows]).await.unwrap();
        let null: ArrayRef = Arc::new(Int64Array::from(vec![None::<i64>]));
        let error = client.put("required", Mode::Append, vec![batch(vec![("x", null)])]).await.unwrap_err();
        assert!(error.to_string().contains("column 'x': it is not nullable"), "{error}");
        assert_eq!(client.rows("required").await, 2);
    }
}

#[tokio::test]
async fn values_and_types_come_back_as_they_were() {
    let lists = ListArray::from_iter_primitive::<Float32Type, _, _>([Some(vec![Some(1.5), None]), None, Some(vec![])]);
    let inner: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
    let columns: [(&str, ArrayRef); 8] = [
        ("binary", Arc::new(BinaryArray::from(vec![Some(b"\0\xff".as_slice()), None, Some(b"".as_slice())]))),
        (
            "binary_view",
            Arc::new(BinaryViewArray::from_iter([Some(b"\0\xff".as_slice()), None, Some([7; 100].as_slice())])),
        ),
        ("text_view", Arc::new(StringViewArray::from_iter([Some("a"), None, Some("a long value of its own buffer")]))),
        ("fixed", Arc::new(FixedSizeBinaryArray::try_from_iter([b"ab", b"cd", b"ef"].into_iter()).unwrap())),
        ("keys", Arc::new(["a", "b", "a"].into_iter().collect::<DictionaryArray<Int32Type>>())),
        ("time", Arc::new(TimestampMicrosecondArray::from(vec![1, 2, 3]).with_timezone("UTC"))),
        ("list", Arc::new(lists)),
        ("struct", Arc::new(StructArray::from(vec![(Arc::new(Field::new("i", DataType::Int64, true)), inner)]))),
    ];
    let metadata = HashMap::from([("ARROW:extension:name".to_string(), "test.bytes".to_string())]);
    let (fields, arrays): (Vec<_>, Vec<_>) = columns
        .into_iter()
        .map(|(name, array)| (Field::new(name, array.data_type().clone(), name != "fixed"), array))
        .map(|(field, array)| match field.name().as_str() {
            "binary" => (field.with_metadata(metadata.clone()), array),
            _ => (field, array),
        })
        .unzip();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for directory in [None, Some(directory.path()), Some(directory.path())] {
        let client = client(directory, "ada");
        if !client.tables.table_exist("t") {
            client.put("t", Mode::Create, vec![batch.clone()]).await.unwrap();
        }
        let table = client.ctx.table("t").await.unwrap();
        assert_eq!(table.schema().as_arrow(), batch.schema().as_ref());
        let plan = table.create_physical_plan().await.unwrap();
        assert_eq!(plan.schema(), batch.schema());
        let batches = collect(plan, client.ctx.task_ctx()).await.unwrap();
        assert_eq!(concat_batches(&batch.schema(), &batches).unwrap(), batch);
        assert!(batches.iter().all(|found| found.schema() == batch.schema()));
    }
}

#[tokio::test]
async fn tables_in_memory_count() {
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(1 << 20, 1.0).build_arc().unwrap();
    let ctx = SessionContext::new_with_config_rt(SessionConfig::new(), runtime);
    let client = client_of(ctx, None, "ada");
    client.put("t", Mode::Create, vec![numbers(0..1000)]).await.unwrap();
    let held = client.ctx.runtime_env().memory_pool.reserved();
    assert!(held >= 8000);
    for (table, mode) in [("u", Mode::Create), ("t", Mode::Append), ("t", Mode::Replace)] {
        let error = client.put(table, mode, vec![numbers(0..1000), numbers(0..200_000)]).await.unwrap_err();
        assert!(matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)), "{error}");
        assert_eq!(client.ctx.runtime_env().memory_pool.reserved(), held);
    }
    assert_eq!(client.rows("t").await, 1000);
    drop(client.tables.deregister_table("t").unwrap());
    assert_eq!(client.ctx.runtime_env().memory_pool.reserved(), 0);
}

#[tokio::test]
async fn places_and_names_that_are_refused() {
    let client = client(None, "ada");
    let long = "x".repeat(201);
    let refused = |target: Target| {
        let rows = RecordBatchStreamAdapter::new(numbers([]).schema(), stream::iter([Ok(numbers(0..1))]));
        client.put_stream(target, Box::pin(rows))
    };
    for target in [
        target("", Mode::Create),
        target(&long, Mode::Create),
        Target { catalog: Some("other".into()), ..target("t", Mode::Create) },
        Target { schema: Some("dream".into()), ..target("t", Mode::Create) },
    ] {
        assert!(matches!(ingest_error(refused(target).await.unwrap_err()), IngestError::Unsupported(_)));
    }
    let named =
        Target { catalog: Some("datafusion".into()), schema: Some("public".into()), ..target("t", Mode::Create) };
    assert_eq!(refused(named).await.unwrap(), 1);
    assert!(client.tables.table_exist("t"));
}
