//! Results on their way to the client: computed on the query threads, a few messages ahead, and no further once the client is
//! gone, the query is cancelled or its time is over.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow_flight::FlightData;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::Instrument;

use crate::encoding::Encoder;
use crate::metrics::Metrics;
use crate::queries::failed;
use crate::queries::{Permit, cancelled};
use crate::status::{Classify, status_of};
use crate::wire::Pieces;

/// Messages computed before the client takes them.
const AHEAD: usize = 4;

type Sender = mpsc::Sender<Result<FlightData, Status>>;

/// What RPCs answer with.
pub(crate) type Messages = BoxStream<'static, Result<FlightData, Status>>;

/// What surrounds the computation of a result.
pub(crate) struct Run {
    /// A word for logs: the identifier of the query.
    pub id: String,
    pub user: Arc<str>,
    pub sql: String,
    pub schema: SchemaRef,
    pub cancelled: CancellationToken,
    pub deadline: Instant,
    /// The query's place among those that run, given back at the end.
    pub _place: Arc<Permit>,
    pub metrics: Arc<Metrics>,
    pub classify: Classify,
    /// Stops the functions of the query, which nothing else can stop while they compute.
    pub stop: Box<dyn Fn(Early) + Send + Sync>,
}

/// Why a result ends before its last row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Early {
    /// The client is gone.
    Left,
    /// The query was cancelled, or its time is over.
    Ended,
}

impl Run {
    /// The rows of a stream as messages, computed on `threads`.
    pub(crate) fn messages<F>(mut self, threads: &tokio::runtime::Handle, rows: F) -> Messages
    where
        F: Future<Output = datafusion::error::Result<SendableRecordBatchStream>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let stop = std::mem::replace(&mut self.stop, Box::new(|_| {}));
        let ended_early = Arc::new(OnceLock::new());
        let limits = limits_of(self.cancelled.clone(), self.deadline);
        let code_of_end = Arc::clone(&ended_early);
        let span = tracing::info_span!("query", id = %self.id);
        let work = async move {
            let started = Instant::now();
            let (sent, result) = self.send(rows, &sender).await;
            // A query that is told to end fails in its own way: why it was told is what counts.
            let told = code_of_end.get().copied().or_else(|| sender.is_closed().then_some(Code::Cancelled));
            let code = match &result {
                Ok(()) => Code::Ok,
                Err(status) => told.or_else(|| status.as_ref().map(Status::code)).unwrap_or(Code::Cancelled),
            };
            let seconds = started.elapsed().as_secs_f64();
            self.metrics.query(code, seconds);
            let Self { id, user, sql, .. } = &self;
            tracing::info!(query = %id, %user, rows = sent, seconds, code = ?code, sql = beginning(sql), "query");
            // A client that takes nothing may never hear of it, and keeps no place meanwhile.
            drop(self);
            if let Err(Some(status)) = result {
                let _ = sender.send(Err(status)).await;
            }
        };
        let task = threads.spawn(work.instrument(span));
        Received { receiver, task: Some(task), limits, ended_early, stop }.boxed()
    }

    /// Sends all messages; gives the rows sent and how it ended: `None` if nobody takes them.
    async fn send<F>(&self, rows: F, sender: &Sender) -> (u64, Result<(), Option<Status>>)
    where
        F: Future<Output = datafusion::error::Result<SendableRecordBatchStream>>,
    {
        let sent = Arc::new(AtomicU64::new(0));
        let result = tokio::select! {
            biased;
            () = self.cancelled.cancelled() => Err(Some(cancelled())),
            () = tokio::time::sleep_until(self.deadline.into()) => Err(Some(too_late())),
            () = sender.closed() => Err(None),
            result = self.forward(rows, sender, Arc::clone(&sent)) => result,
        };
        (sent.load(Ordering::Relaxed), result)
    }

    /// Sends message by message; `None` as error if nobody takes them.
    async fn forward<F>(&self, rows: F, sender: &Sender, sent: Arc<AtomicU64>) -> Result<(), Option<Status>>
    where
        F: Future<Output = datafusion::error::Result<SendableRecordBatchStream>>,
    {
        let rows = rows.await.map_err(|error| Some(status_of(&error, self.classify, &self.sql)))?;
        let total = self.metrics.rows_sent.clone();
        let count = move |rows| {
            total.inc_by(rows);
            sent.fetch_add(rows, Ordering::Relaxed);
        };
        let mut messages = encoded(rows, Arc::clone(&self.schema), self.classify, self.sql.clone(), count);
        while let Some(message) = messages.next().await {
            let message = message.map_err(Some)?;
            self.metrics.bytes_sent.inc_by(message.data_body.len() as u64);
            sender.send(Ok(message)).await.map_err(|_| None)?;
        }
        Ok(())
    }
}

/// The beginning of a statement, for logs.
pub(crate) fn beginning(sql: &str) -> &str {
    &sql[..sql.floor_char_boundary(400)]
}

/// What a query ends with that took too long.
pub(crate) fn too_late() -> Status {
    Status::deadline_exceeded("query_timeout: the query took longer than this server allows")
}

/// Rows as messages; `count` is told of each piece's rows.
fn encoded(
    rows: SendableRecordBatchStream,
    schema: SchemaRef,
    classify: Classify,
    request: String,
    count: impl Fn(u64) + Send + 'static,
) -> Messages {
    let (mut encoder, first) = Encoder::new(&schema);
    let messages = rows.flat_map(move |batch| match batch {
        Ok(batch) => stream::iter(Pieces::new(batch, Arc::clone(&schema))).map_err(DataFusionError::from).left_stream(),
        Err(error) => stream::once(async { Err(error) }).right_stream(),
    });
    let messages = messages.map(move |piece| {
        let messages = piece.and_then(|piece| {
            count(piece.num_rows() as u64);
            Ok(encoder.messages(&piece)?)
        });
        messages.map_err(|error| status_of(&error, classify, &request))
    });
    let messages = messages.flat_map(|messages| match messages {
        Ok(messages) => stream::iter(messages.into_iter().map(Ok)).left_stream(),
        Err(status) => stream::once(async { Err(status) }).right_stream(),
    });
    stream::once(async { Ok(first) }).chain(messages).boxed()
}

/// Ends with the status of a query that is cancelled, or whose time is over.
fn limits_of(token: CancellationToken, deadline: Instant) -> BoxFuture<'static, Status> {
    Box::pin(async move {
        tokio::select! {
            () = token.cancelled() => cancelled(),
            () = tokio::time::sleep_until(deadline.into()) => too_late(),
        }
    })
}

/// What a client is sent; dropped, it stops what computes it. It watches the limits on the network's threads, because a query
/// that computes keeps its thread.
struct Received {
    receiver: mpsc::Receiver<Result<FlightData, Status>>,
    /// `None` once it has ended.
    task: Option<JoinHandle<()>>,
    limits: BoxFuture<'static, Status>,
    /// Why it ended early, for the metrics.
    ended_early: Arc<OnceLock<Code>>,
    stop: Box<dyn Fn(Early) + Send + Sync>,
}

impl Stream for Received {
    type Item = Result<FlightData, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.task.is_none() {
            return Poll::Ready(None);
        }
        let next = match self.receiver.poll_recv(cx) {
            Poll::Pending => None,
            Poll::Ready(Some(message)) => return Poll::Ready(Some(message)),
            // All is sent, or the task ended without a word: it panicked.
            Poll::Ready(None) => self.task.as_mut().map(|task| Pin::new(task).poll(cx)),
        };
        if let Some(Poll::Ready(ended)) = next {
            self.task = None;
            return Poll::Ready(ended.err().map(|error| Err(failed(error))));
        }
        let status = ready!(self.limits.as_mut().poll(cx));
        // The task is not waited for: it ends at its next step.
        let _ = self.ended_early.set(status.code());
        self.task = None;
        self.receiver.close();
        (self.stop)(Early::Ended);
        Poll::Ready(Some(Err(status)))
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // The task sees that nobody receives and stops at its next step, in which it counts the query as cancelled.
        self.receiver.close();
        if self.task.is_some() {
            (self.stop)(Early::Left);
        }
    }
}

/// A stream over batches that are there.
pub(crate) fn of_batches(schema: SchemaRef, batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches.into_iter().map(Ok))))
}

/// Batches that are small and known as messages.
pub(crate) fn small(schema: SchemaRef, batches: Vec<RecordBatch>, classify: Classify) -> Messages {
    encoded(of_batches(Arc::clone(&schema), batches), schema, classify, String::new(), |_| ())
}
