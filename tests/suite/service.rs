//! `arrow-quant serve` as a process, and the Rust client of Flight SQL.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    CommandGetDbSchemas, CommandGetTables, CommandStatementIngest, TableDefinitionOptions, TableExistsOption,
    TableNotExistOption,
};
use arrow_flight::{FlightInfo, error::FlightError};
use arrow_quant_v2::{register_model, session};
use futures::{StreamExt, TryStreamExt, stream};
use tonic::transport::{Channel, Endpoint};

use crate::common::DIGITS;

/// A server that ends with the test.
pub(crate) struct Service {
    process: Child,
    address: String,
    /// Reads what the server logs, so that the pipe never fills up and stops the server; `None` once the log was taken.
    log: Option<JoinHandle<String>>,
}

impl Service {
    /// Starts a server on a port that is free.
    pub(crate) fn start(flags: &[String]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_arrow-quant"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(flags)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut stderr = process.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).unwrap();
            log
        });
        let Some(address) = line.trim().strip_prefix("listening on grpc://") else {
            panic!("{line}{}", log.join().unwrap());
        };
        Self { address: address.to_string(), process, log: Some(log) }
    }

    /// A server of the example model.
    fn of_digits(flags: &[&str]) -> Self {
        let mut all = vec![format!("--model=digits={DIGITS}")];
        all.extend(flags.iter().map(|flag| (*flag).to_string()));
        Self::start(&all)
    }

    pub(crate) async fn connect(&self) -> FlightSqlServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        FlightSqlServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// Ends it as an operator would; it must have had no panic, and end well.
    pub(crate) fn stop(mut self) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let status = self.process.wait().unwrap();
        let log = self.log.take().unwrap().join().unwrap();
        assert!(status.success() && !log.contains("panicked"), "{status}\n{log}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// All rows of a result.
async fn rows(client: &mut FlightSqlServiceClient<Channel>, info: FlightInfo) -> Result<Vec<RecordBatch>, FlightError> {
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let rows = client.do_get(endpoint.ticket.unwrap()).await?;
        batches.extend(rows.try_collect::<Vec<_>>().await?);
    }
    Ok(batches)
}

async fn query(client: &mut FlightSqlServiceClient<Channel>, sql: &str) -> Result<Vec<RecordBatch>, FlightError> {
    let info = client.execute(sql.to_string(), None).await?;
    rows(client, info).await
}

/// The one number a query gives.
async fn number(client: &mut FlightSqlServiceClient<Channel>, sql: &str) -> i64 {
    query(client, sql).await.unwrap()[0].column(0).as_primitive::<Int64Type>().value(0)
}

const QUANTIZED: &str =
    "SELECT tensor, chunk, quantize(weights, 4, 128) AS q FROM digits.weights ORDER BY tensor, chunk";

#[tokio::test(flavor = "multi_thread")]
async fn a_query_gives_the_same_bytes_as_in_process() {
    let service = Service::of_digits(&[]);
    let mut client = service.connect().await;
    let served = query(&mut client, QUANTIZED).await.unwrap();
    let ctx = session(2).unwrap();
    register_model(&ctx, "digits", DIGITS).await.unwrap();
    let here = ctx.sql(QUANTIZED).await.unwrap().collect().await.unwrap();
    let shown = |batches: &[RecordBatch]| {
        let options = arrow::util::display::FormatOptions::default();
        let table = arrow::util::pretty::pretty_format_batches_with_options(batches, &options).unwrap().to_string();
        // The types of the head are not those of the wire.
        table.lines().skip(2).map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(shown(&served), shown(&here));
    assert!(served.iter().map(RecordBatch::num_rows).sum::<usize>() > 10);
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_updates_and_metadata() {
    let service = Service::of_digits(&["--read-write"]);
    let mut client = service.connect().await;
    client.handshake("anyone", "").await.unwrap();
    assert_eq!(client.execute_update("CREATE TABLE t (a BIGINT, b VARCHAR)".into(), None).await.unwrap(), 0);
    assert_eq!(client.execute_update("INSERT INTO t VALUES (1, 'x'), (2, 'y')".into(), None).await.unwrap(), 2);

    let mut prepared = client.prepare("SELECT b FROM t WHERE a = $1".to_string(), None).await.unwrap();
    assert_eq!(prepared.parameter_schema().unwrap().fields().len(), 1);
    assert_eq!(prepared.dataset_schema().unwrap().field(0).name(), "b");
    let two: ArrayRef = Arc::new(Int64Array::from(vec![2]));
    prepared.set_parameters(RecordBatch::try_from_iter([("$1", two)]).unwrap()).unwrap();
    let info = prepared.execute().await.unwrap();
    let found = rows(&mut client, info).await.unwrap();
    assert_eq!(found[0].column(0).as_string::<i32>().value(0), "y");
    prepared.close().await.unwrap();

    let mut prepared = client.prepare("INSERT INTO t VALUES ($1, $2)".to_string(), None).await.unwrap();
    assert!(prepared.dataset_schema().unwrap().fields().is_empty(), "drivers tell an update by this");
    let values: [(&str, ArrayRef); 2] = [
        ("$1", Arc::new(Int64Array::from(vec![3, 4, 5]))),
        ("$2", Arc::new(StringArray::from(vec![Some("z"), None, Some("it's")]))),
    ];
    prepared.set_parameters(RecordBatch::try_from_iter(values).unwrap()).unwrap();
    assert_eq!(prepared.execute_update().await.unwrap(), 3);
    assert_eq!(number(&mut client, "SELECT count(*) FROM t WHERE b IS NULL").await, 1);

    let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
    let schemas = rows(&mut client, info).await.unwrap();
    let names: Vec<_> = schemas[0].column(1).as_string::<i32>().iter().flatten().map(str::to_string).collect();
    assert_eq!(names, ["digits", "information_schema", "public"]);
    let tables =
        CommandGetTables { include_schema: true, table_name_filter_pattern: Some("t%".into()), ..Default::default() };
    let info = client.get_tables(tables).await.unwrap();
    let tables = rows(&mut client, info).await.unwrap();
    assert!(tables[0].column(2).as_string::<i32>().iter().flatten().any(|name| name == "tensors"));
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_in_all_modes() {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::of_digits(&["--read-write", "--ingest-directory", directory.path().to_str().unwrap()]);
    let mut client = service.connect().await;
    let command = |exists: TableExistsOption, not: TableNotExistOption| CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions { if_not_exist: not.into(), if_exists: exists.into() }),
        table: "numbers".to_string(),
        ..Default::default()
    };
    let batch = |numbers: Vec<i64>| {
        let numbers: ArrayRef = Arc::new(Int64Array::from(numbers));
        stream::iter([Ok(RecordBatch::try_from_iter([("n", numbers)]).unwrap())])
    };
    let create = command(TableExistsOption::Fail, TableNotExistOption::Create);
    assert_eq!(client.execute_ingest(create.clone(), batch(vec![1, 2, 3])).await.unwrap(), 3);
    assert!(client.execute_ingest(create, batch(vec![9])).await.is_err(), "it exists");
    let append = command(TableExistsOption::Append, TableNotExistOption::Fail);
    assert_eq!(client.execute_ingest(append, batch(vec![4])).await.unwrap(), 1);
    assert_eq!(number(&mut client, "SELECT sum(n) FROM numbers").await, 10);
    let either = command(TableExistsOption::Append, TableNotExistOption::Create);
    // A client that goes away in the middle.
    let unfinished = client.execute_ingest(either.clone(), batch(vec![50]).chain(stream::pending()));
    assert!(tokio::time::timeout(Duration::from_millis(300), unfinished).await.is_err());
    assert_eq!(number(&mut client, "SELECT sum(n) FROM numbers").await, 10);
    assert_eq!(client.execute_ingest(either, batch(vec![5])).await.unwrap(), 1);
    let replace = command(TableExistsOption::Replace, TableNotExistOption::Create);
    assert_eq!(client.execute_ingest(replace, batch(vec![7])).await.unwrap(), 1);
    assert_eq!(number(&mut client, "SELECT sum(n) FROM numbers").await, 7);
    service.stop();

    let service = Service::of_digits(&["--ingest-directory", directory.path().to_str().unwrap()]);
    let mut client = service.connect().await;
    assert_eq!(number(&mut client, "SELECT sum(n) FROM numbers").await, 7);
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_stops_its_query() {
    let service = Service::of_digits(&["--limit=concurrent_queries=1", "--limit=queued_queries=0"]);
    let mut client = service.connect().await;
    let endless = "SELECT value FROM generate_series(1, 1000000000000)";
    let info = client.execute(endless.to_string(), None).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert!(stream.next().await.unwrap().unwrap().num_rows() > 0);
    let refused = query(&mut client, "SELECT 1").await.unwrap_err().to_string();
    assert!(refused.contains("concurrent_queries"), "{refused}");
    drop(stream);
    // The place is free again as soon as the server has noticed.
    let deadline = Instant::now() + Duration::from_secs(10);
    while query(&mut client, "SELECT 1").await.is_err() {
        assert!(Instant::now() < deadline, "the query goes on");
        tokio::task::yield_now().await;
    }
    service.stop();
}
