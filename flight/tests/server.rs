//! A server over a plain DataFusion session, and the Rust clients of Flight and Flight SQL.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::Int64Type;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt};
use arrow_flight::{
    Action as ActionRequest, CancelFlightInfoRequest, FlightClient, FlightDescriptor, FlightInfo, Ticket,
};
use arrow_quant_flight::{Action, ActionCall, ActionStream, Limits, Server, ServerConfig};
use async_trait::async_trait;
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider};
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

/// A server in this process, ended by `stop`.
struct Running {
    channel: Channel,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

fn config() -> ServerConfig {
    ServerConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        metrics_listen: None,
        tls: None,
        credentials: None,
        insecure: false,
        read_only: false,
        ingest_directory: None,
        threads: 2,
        limits: Limits::default(),
        classify: |_| None,
        interruptible: |_| Arc::new(|| {}),
    }
}

impl Running {
    async fn start(config: ServerConfig) -> Self {
        let ctx = SessionContext::new_with_config(
            SessionConfig::new().with_target_partitions(2).with_information_schema(true),
        );
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
        let texts: ArrayRef =
            Arc::new(StringViewArray::from_iter_values((0..1000).map(|i| format!("number {i} as text"))));
        let batch = RecordBatch::try_from_iter([("n", numbers), ("text", texts)]).unwrap();
        let halves = vec![vec![batch.slice(0, 500)], vec![batch.slice(500, 500)]];
        let shared = MemorySchemaProvider::new();
        shared.register_table("numbers".into(), Arc::new(MemTable::try_new(batch.schema(), halves).unwrap())).unwrap();
        ctx.catalog("datafusion").unwrap().register_schema("shared", Arc::new(shared)).unwrap();
        let server = Server::bind(ctx, config, vec![Arc::new(Echo)]).await.unwrap();
        let channel = Endpoint::from_shared(format!("http://{}", server.address())).unwrap().connect_lazy();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(async move {
            server.run(async { drop(stopped.await) }).await.unwrap();
        });
        Self { channel, stop, ended }
    }

    fn plain(&self) -> FlightClient {
        FlightClient::new(self.channel.clone())
    }

    fn sql(&self) -> FlightSqlServiceClient<Channel> {
        FlightSqlServiceClient::new(self.channel.clone())
    }

    async fn stop(self) {
        drop(self.channel);
        self.stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), self.ended).await.unwrap().unwrap();
    }
}

/// Answers with what it was sent, twice.
struct Echo;

#[async_trait]
impl Action for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn description(&self) -> &'static str {
        "answers with its body, twice"
    }

    fn writes(&self) -> bool {
        false
    }

    async fn run(&self, call: ActionCall) -> datafusion::error::Result<ActionStream> {
        Ok(stream::iter([Ok(call.body.clone()), Ok(call.body)]).boxed())
    }
}

async fn rows(client: &mut FlightClient, info: FlightInfo) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        batches.extend(client.do_get(endpoint.ticket.unwrap()).await.unwrap().try_collect::<Vec<_>>().await.unwrap());
    }
    batches
}

fn sum(batches: &[RecordBatch]) -> i64 {
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().iter()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_commands_and_tickets_of_plain_flight() {
    let server = Running::start(config()).await;
    let mut client = server.plain();
    let flights: Vec<FlightInfo> = client.list_flights("").await.unwrap().try_collect().await.unwrap();
    let path = flights[0].flight_descriptor.clone().unwrap();
    assert_eq!((path.path.join("."), flights.len()), ("shared.numbers".to_string(), 1));

    let info = client.get_flight_info(path.clone()).await.unwrap();
    assert_eq!((info.endpoint.len(), info.total_records), (2, 1000), "an endpoint for each partition");
    let announced = info.clone().try_decode_schema().unwrap();
    assert_eq!(client.get_schema(path).await.unwrap(), announced);
    let batches = rows(&mut client, info).await;
    assert!(batches.iter().all(|batch| *batch.schema() == announced), "what is announced is sent");
    assert_eq!(sum(&batches), 499_500);

    let sql = "SELECT sum(n) FROM shared.numbers";
    let info = client.get_flight_info(FlightDescriptor::new_cmd(sql)).await.unwrap();
    assert_eq!(sum(&rows(&mut client, info.clone()).await), 499_500);
    assert_eq!(sum(&rows(&mut client, info).await), 499_500, "a result can be fetched again");
    let text = client.do_get(Ticket::new(sql)).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(sum(&text), 499_500);
    let actions: Vec<_> = client.list_actions().await.unwrap().try_collect().await.unwrap();
    assert!(actions.iter().any(|action| action.r#type == "echo"));
    let echoed =
        client.do_action(ActionRequest::new("echo", "a")).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(echoed, ["a", "a"]);
    drop(client);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_answers_before_the_client_is_done() {
    let server = Running::start(config()).await;
    let mut client = server.plain();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let batch = |numbers: std::ops::Range<i64>| {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
        RecordBatch::try_from_iter([("n", numbers)]).unwrap()
    };
    let input = FlightDataEncoderBuilder::new()
        .with_schema(batch(0..1).schema())
        .with_flight_descriptor(Some(FlightDescriptor::new_cmd("SELECT n * 2 AS twice FROM input")))
        .build(tokio_stream::wrappers::ReceiverStream::new(receiver));
    sender.send(Ok(batch(0..10))).await.unwrap();
    let mut output = client.do_exchange(input).await.unwrap();
    assert_eq!(sum(&[output.next().await.unwrap().unwrap()]), 90);
    for round in 1..100 {
        sender.send(Ok(batch(round * 10..round * 10 + 10))).await.unwrap();
        assert_eq!(sum(&[output.next().await.unwrap().unwrap()]), 90 + 200 * round, "in order, one for one");
    }
    drop(sender);
    assert!(output.next().await.is_none());
    drop((output, client));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_tells_the_progress_and_gives_the_result() {
    let server = Running::start(config()).await;
    let mut client = server.plain();
    let command = CommandStatementQuery { query: "SELECT n FROM shared.numbers".into(), transaction_id: None };
    let mut descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let info = loop {
        let poll = client.poll_flight_info(descriptor).await.unwrap();
        match poll.flight_descriptor {
            Some(next) => descriptor = next,
            None => break poll.info.unwrap(),
        }
    };
    assert_eq!(sum(&rows(&mut client, info).await), 499_500);

    let endless = "SELECT count(*) FROM generate_series(1, 1000000000) a, generate_series(1, 1000000) b";
    let poll = client.poll_flight_info(FlightDescriptor::new_cmd(endless)).await.unwrap();
    let next = poll.flight_descriptor.expect("this takes years");
    let mut sql = server.sql();
    let request = CancelFlightInfoRequest { info: poll.info };
    let action = ActionRequest::new("CancelFlightInfo", request.encode_to_vec());
    sql.do_action(tonic::Request::new(action)).await.unwrap();
    assert!(client.poll_flight_info(next).await.is_err(), "it is cancelled");
    drop((client, sql));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_to_everyone_cannot_be_changed() {
    let server = Running::start(config()).await;
    let mut client = server.sql();
    for sql in [
        "DROP TABLE shared.numbers",
        "CREATE TABLE shared.more (a INT)",
        "DROP SCHEMA shared CASCADE",
        "SET datafusion.runtime.memory_limit = '1G'",
    ] {
        assert!(client.execute_update(sql.into(), None).await.is_err(), "{sql}");
    }
    client.execute_update("CREATE TABLE mine AS SELECT * FROM shared.numbers".into(), None).await.unwrap();
    let mut other = server.sql();
    other.handshake("someone", "else").await.unwrap();
    assert!(other.execute("SELECT * FROM mine".into(), None).await.is_err(), "sessions see their own tables");
    drop((client, other));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_encryption_stays_on_this_machine() {
    let open = ServerConfig { listen: ([0, 0, 0, 0], 0).into(), ..config() };
    let refused = Server::bind(SessionContext::new(), open.clone(), Vec::new()).await.err().unwrap().to_string();
    assert!(refused.contains("set `tls`") && refused.contains("set `insecure`"), "{refused}");
    assert!(Server::bind(SessionContext::new(), ServerConfig { insecure: true, ..open }, Vec::new()).await.is_ok());
}
