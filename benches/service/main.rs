//! What the service costs beside the same work without it: a plain stream of batches in memory, and a query in this process.
//!
//!     cargo bench --bench service -- MODEL
//!
//! MODEL is of BF16 weights, 2 GB or so. It is served by `arrow-quant serve`: the one that was built with this, or the one that
//! ARROW_QUANT names. Rates are medians of three runs, taken in turns. The messages of an exchange are encoded before the clock
//! starts, and what comes back is decoded and dropped. Takes 5 GB of memory beside the page cache.

#![allow(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

mod memory;
mod process;

use std::env;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor, Ticket};
use arrow_quant_v2::{register_model, session};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tonic::transport::Channel;

use process::{Memory, Server, Watch};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Runs of each kind, after one to warm up.
const ROUNDS: usize = 3;

/// What must hold: shares of the other rate, and how much the server's memory may grow.
const GET_SHARE: f64 = 0.70;
const EXCHANGE_SHARE: f64 = 0.80;
const GROWTH_MB: f64 = 256.0;

const WEIGHTS: &str = "SELECT tensor, chunk, weights FROM model.weights";
const QUANTIZED: &str = "SELECT tensor, chunk, quantize(weights, 4, 128) AS q FROM input";

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1).filter(|argument| argument != "--bench");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match (arguments.next(), arguments.next()) {
        (Some(flag), Some(address)) if flag == memory::FLAG => {
            runtime.block_on(memory::serve(&address.to_string_lossy()))
        }
        (Some(model), None) if !model.to_string_lossy().starts_with('-') => {
            runtime.block_on(measure(Path::new(&model)))
        }
        _ => Err("expected one argument, a model of BF16 weights: cargo bench --bench service -- MODEL".into()),
    }
}

async fn measure(model: &Path) -> Result<()> {
    gets(model).await?;
    exchanges(model).await
}

/// DoGet of all weights, and of the same batches from the memory of a service that does nothing else.
async fn gets(model: &Path) -> Result<()> {
    let server = Server::of_model(model)?;
    let mut ours = server.client().await?;
    let before = Memory::of(server.id())?;
    let watch = Watch::start(server.id());
    let plain = Server::of_memory(&server.address)?;
    let mut theirs = plain.client().await?;
    let (mut bytes, mut our_rates, mut their_rates) = (0, Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let theirs = fetch(&mut theirs).await?;
        let ours = fetch(&mut ours).await?;
        if ours.0 != theirs.0 {
            return Err(format!("{} and {} bytes of weights came, not the same", ours.0, theirs.0).into());
        }
        bytes = ours.0;
        if round > 0 {
            our_rates.push(bytes as f64 / ours.1 / 1e9);
            their_rates.push(bytes as f64 / theirs.1 / 1e9);
        }
    }
    let grown = watch.most()?.beyond(before);
    let (ours, theirs) = (median(our_rates), median(their_rates));
    print_table(
        &format!("do_get of {:.2} GB", bytes as f64 / 1e9),
        "GB/s",
        [
            ("a stream of the same batches in memory", format!("{theirs:.2}")),
            ("`arrow-quant serve`", format!("{ours:.2}")),
        ],
        (ours / theirs, GET_SHARE),
        grown,
    );
    Ok(())
}

/// DoExchange of all weights through `quantize`, and the same query over the same batches in this process.
async fn exchanges(model: &Path) -> Result<()> {
    let weights = elements(model).await? as f64 / 1e6;
    let server = Server::of_model(model)?;
    let mut client = server.client().await?;
    let mut messages: Vec<FlightData> = client.do_get(Ticket::new(WEIGHTS)).await?.into_inner().try_collect().await?;
    let batches = decoded(stream::iter(messages.clone()).map(Ok)).try_collect::<Vec<_>>().await?;
    let Some(schema) = batches.first().map(RecordBatch::schema) else { return Err("the model has no weights".into()) };
    if let Some(first) = messages.first_mut() {
        first.flight_descriptor = Some(FlightDescriptor::new_cmd(QUANTIZED));
    }
    // A server that has done nothing yet.
    drop(server);
    let server = Server::of_model(model)?;
    let mut client = server.client().await?;
    let before = Memory::of(server.id())?;
    let watch = Watch::start(server.id());
    let (mut served, mut here) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let alone = in_process(&schema, &batches).await?;
        let exchanged = exchange(&mut client, &messages).await?;
        if exchanged.0 != alone.0 {
            return Err(format!("{} and {} rows came, not the same", exchanged.0, alone.0).into());
        }
        if round > 0 {
            served.push(weights / exchanged.1);
            here.push(weights / alone.1);
        }
    }
    let grown = watch.most()?.beyond(before);
    let (served, here) = (median(served), median(here));
    print_table(
        &format!("do_exchange of {:.2} billion BF16, `quantize(weights, 4, 128)`", weights / 1e3),
        "10⁶ weights/s",
        [
            ("the query in this process, one partition", format!("{here:.0}")),
            ("`arrow-quant serve`", format!("{served:.0}")),
        ],
        (served / here, EXCHANGE_SHARE),
        grown,
    );
    Ok(())
}

/// The bytes of weights that one stream brings, and its seconds.
async fn fetch(client: &mut FlightServiceClient<Channel>) -> Result<(u64, f64)> {
    let started = Instant::now();
    let answer = client.do_get(Ticket::new(WEIGHTS)).await?.into_inner();
    let mut batches = decoded(answer.map_err(FlightError::from));
    let mut bytes = 0;
    while let Some(batch) = batches.try_next().await? {
        bytes += payload(&batch)?;
    }
    Ok((bytes, started.elapsed().as_secs_f64()))
}

/// The rows that come back for a stream of weights, and the seconds.
async fn exchange(client: &mut FlightServiceClient<Channel>, messages: &[FlightData]) -> Result<(usize, f64)> {
    let messages = messages.to_vec();
    let started = Instant::now();
    let answer = client.do_exchange(stream::iter(messages)).await?.into_inner();
    let mut batches = decoded(answer.map_err(FlightError::from));
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows();
    }
    Ok((rows, started.elapsed().as_secs_f64()))
}

/// The rows of the query over batches in memory, and the seconds.
async fn in_process(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<(usize, f64)> {
    let ctx = session(1)?;
    let table = MemTable::try_new(Arc::clone(schema), vec![batches.to_vec()])?;
    ctx.register_table("input", Arc::new(table))?;
    let started = Instant::now();
    let rows = tokio::spawn(count(ctx)).await??;
    Ok((rows, started.elapsed().as_secs_f64()))
}

async fn count(ctx: SessionContext) -> Result<usize> {
    let mut results = ctx.sql(QUANTIZED).await?.execute_stream().await?;
    let mut rows = 0;
    while let Some(batch) = results.try_next().await? {
        rows += batch.num_rows();
    }
    Ok(rows)
}

fn decoded(messages: impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static) -> FlightRecordBatchStream {
    FlightRecordBatchStream::new_from_flight_data(messages)
}

/// The bytes of a batch's weights.
fn payload(batch: &RecordBatch) -> Result<u64> {
    let weights = batch.column_by_name("weights").and_then(|weights| weights.as_struct_opt());
    let data = weights.and_then(|weights| weights.column_by_name("data")).and_then(|data| data.as_binary_opt::<i32>());
    let offsets = data.ok_or("the batch has no weights")?.value_offsets();
    match (offsets.first(), offsets.last()) {
        (Some(first), Some(last)) => Ok(u64::try_from(last - first)?),
        _ => Ok(0),
    }
}

/// The weights of a model.
async fn elements(model: &Path) -> Result<i64> {
    let ctx = session(1)?;
    register_model(&ctx, "model", model).await?;
    let rows = ctx.sql("SELECT sum(elements) FROM model.tensors").await?.collect().await?;
    Ok(rows.first().ok_or("the model has no tensors")?.column(0).as_primitive::<Int64Type>().value(0))
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    let middle = rates.len() / 2;
    if rates.len() % 2 == 1 { rates[middle] } else { (rates[middle - 1] + rates[middle]) / 2.0 }
}

/// Two rates, the share of the second in the first with its limit, and by how much the server's memory grew.
fn print_table(what: &str, unit: &str, rates: [(&str, String); 2], (share, limit): (f64, f64), grown: Memory) {
    let [(other, other_rate), (ours, our_rate)] = rates;
    let (resident, anonymous) = (grown.resident as f64 / 1e6, grown.anonymous as f64 / 1e6);
    let holds = if share >= limit && resident <= GROWTH_MB { "yes" } else { "no" };
    println!("| {what} | {unit} | share | limit | anonymous + MB | resident + MB | limit MB | holds |");
    println!("|---|---|---|---|---|---|---|---|");
    println!("| {other} | {other_rate} | - | - | - | - | - | - |");
    println!(
        "| {ours} | {our_rate} | {share:.2} | {limit:.2} | {anonymous:.0} | {resident:.0} | {GROWTH_MB:.0} | {holds} |"
    );
    println!();
}
