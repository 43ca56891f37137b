//! DoExchange: a query over the rows that the client sends, answered as they come.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use arrow::datatypes::SchemaRef;
use arrow_flight::FlightData;
use arrow_flight::sql::Command;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::execution_plan::execute_stream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::oneshot;
use tokio::time::timeout_at;
use tonic::Status;
use uuid::Uuid;

use crate::input::{Input, one_ahead};
use crate::interrupt::for_query;
use crate::lock::locked;
use crate::prepared::no_transaction;
use crate::results::asked;
use crate::service::{Asked, Call, State};
use crate::statements::has_effect;
use crate::stream::{Messages, Run, too_late};
use crate::wire::wire_schema;

/// What the query calls the client's rows.
const INPUT: &str = "input";

impl State {
    /// The result of the descriptor's SQL, in which the table `input` is the stream that the client sends. Rows keep their
    /// order where the query does not change it; neither the stream nor the result is ever held as a whole.
    pub(crate) async fn exchange(
        self: Arc<Self>,
        call: Call,
        messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
    ) -> Result<Messages, Status> {
        let deadline = Instant::now() + self.limits.query_timeout;
        let late = |_| too_late();
        // What has ended is asked once more when it comes back.
        let (messages, rest) = lent(one_ahead(messages).fuse());
        let input = timeout_at(deadline.into(), Input::open(messages)).await.map_err(late)??;
        let sql = match asked(&input.descriptor)? {
            Asked::Sql(sql) => sql,
            Asked::Command(Command::CommandStatementQuery(command)) => {
                no_transaction(command.transaction_id.as_ref())?;
                command.query
            }
            Asked::Command(_) => {
                return Err(Status::invalid_argument("DoExchange takes a SELECT over the table 'input'"));
            }
        };
        // Who has sent nothing yet takes no place.
        let rows = timeout_at(deadline.into(), input.rows()).await.map_err(late)??;
        let permit = Arc::new(self.admission.enter().await?);
        let table = Sent { schema: rows.schema(), rows: Mutex::new(Some(rows)) };
        let failed = |error: DataFusionError| self.status(&error, &sql);
        let provider = StreamingTable::try_new(Arc::clone(&table.schema), vec![Arc::new(table)]).map_err(failed)?;
        // One partition: the rows come in one order, and leave in it.
        let ctx = call.session.with_table(INPUT, Arc::new(provider)).map_err(failed)?;
        ctx.state_ref().write().config_mut().options_mut().execution.target_partitions = 1;
        let plan = self.plan_in(&call, ctx.clone(), &sql).await?;
        if has_effect(&plan) {
            return Err(Status::invalid_argument("DoExchange takes a query; to store rows, use DoPut"));
        }
        let (state, interrupt) = for_query(&ctx, self.interruptible);
        let plan = self.planned(async move { state.create_physical_plan(&plan).await }).await?.map_err(failed)?;
        let run = Run {
            id: Uuid::new_v4().to_string(),
            user: Arc::clone(&call.caller.user),
            sql: sql.clone(),
            schema: wire_schema(&plan.schema()),
            cancelled: call.session.cancelled.child_token(),
            deadline,
            _place: permit,
            metrics: Arc::clone(&self.metrics),
            classify: self.classify,
            stop: Box::new(move |_| interrupt()),
        };
        let answers = run.messages(&self.threads, async move { execute_stream(plan, ctx.task_ctx()) });
        Ok(answered(answers, rest, deadline))
    }
}

/// A stream that is given back when this is dropped.
struct Lent<S> {
    stream: Option<S>,
    back: Option<oneshot::Sender<S>>,
}

type Boxed<S> = Pin<Box<S>>;

/// Lends a stream: what is left of it comes back once it is dropped.
fn lent<S: Stream + Send + 'static>(stream: S) -> (Lent<Boxed<S>>, oneshot::Receiver<Boxed<S>>) {
    let (back, rest) = oneshot::channel();
    (Lent { stream: Some(Box::pin(stream)), back: Some(back) }, rest)
}

impl<S: Stream + Unpin> Stream for Lent<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_next(cx),
            None => Poll::Ready(None),
        }
    }
}

impl<S> Unpin for Lent<S> {}

impl<S> Drop for Lent<S> {
    fn drop(&mut self) {
        if let (Some(stream), Some(back)) = (self.stream.take(), self.back.take()) {
            // Nobody waits for it if the call has ended.
            let _ = back.send(stream);
        }
    }
}

/// The answers of a query, and then the end once the client has sent its last row: a query with LIMIT has its rows before, and
/// a call that ends while the client still writes is an error there, which would take the rows with it.
fn answered<S>(answers: Messages, rest: oneshot::Receiver<S>, deadline: Instant) -> Messages
where
    S: Stream + Unpin + Send + 'static,
{
    let failed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&failed);
    let answers = answers.inspect_err(move |_| seen.store(true, Ordering::Relaxed));
    let read = async move {
        if !failed.load(Ordering::Relaxed)
            && let Ok(mut rest) = rest.await
        {
            // What comes after the deadline is not waited for.
            let _ = timeout_at(deadline.into(), async { while rest.next().await.is_some() {} }).await;
        }
    };
    answers.chain(stream::once(read).filter_map(|()| futures::future::ready(None))).boxed()
}

/// The rows a client sends, which can be read once.
struct Sent {
    schema: SchemaRef,
    rows: Mutex<Option<SendableRecordBatchStream>>,
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(INPUT)
    }
}

impl PartitionStream for Sent {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        match locked(&self.rows).take() {
            Some(rows) => rows,
            None => {
                let twice = "the table 'input' is a stream: a query can read it once";
                let error = Err(DataFusionError::Plan(twice.to_string()));
                Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream::iter([error])))
            }
        }
    }
}
