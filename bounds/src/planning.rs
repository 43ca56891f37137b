//! Where statements are planned and run: on the threads of a runtime with deep stacks, never on the thread that waits.

use datafusion::error::{DataFusionError, Result};
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::faults::QueryFault;
use crate::functions::while_planning;

/// Plans something on a thread that no query waits for: planning cannot be interrupted between its steps. If the caller is
/// dropped, the planning ends at its next step.
///
/// # Errors
/// What `work` says, and [`QueryFault`] if it panics.
pub async fn on_planning_thread<T, F>(threads: &Handle, work: F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (wanted, unwanted) = tokio::sync::oneshot::channel::<()>();
    let handle = threads.clone();
    let planning = threads.spawn_blocking(move || {
        while_planning(|| {
            handle.block_on(async move {
                tokio::select! {
                    planned = work => Some(planned),
                    _ = unwanted => None,
                }
            })
        })
    });
    let planned = planning.await;
    drop(wanted);
    match planned {
        Ok(Some(planned)) => planned.map_err(QueryFault::named),
        Ok(None) => Err(cancelled()),
        Err(error) => Err(QueryFault::of_task(error).map_or_else(cancelled, DataFusionError::from)),
    }
}

/// Batches that are computed before the reader asks for them.
const AHEAD: usize = 2;

/// Computes rows on the threads of a runtime, a little ahead of their reader. When the stream is dropped, the computation stops
/// at its next step. A panic becomes an error of the stream.
pub fn streamed(threads: &Handle, mut rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let schema = rows.schema();
    let (sender, receiver) = mpsc::channel(AHEAD);
    let task = threads.spawn(async move {
        while let Some(batch) = rows.next().await {
            if sender.send(batch.map_err(QueryFault::named)).await.is_err() {
                break;
            }
        }
    });
    let stopped = StopOnDrop(task.abort_handle());
    let received = stream::unfold(Some((receiver, task, stopped)), |state| async {
        let (mut receiver, task, stopped) = state?;
        if let Some(batch) = receiver.recv().await {
            return Some((batch, Some((receiver, task, stopped))));
        }
        // Without a word, the task ended with a panic.
        let fault = task.await.err().and_then(QueryFault::of_task)?;
        Some((Err(fault.into()), None))
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, received))
}

struct StopOnDrop(AbortHandle);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn cancelled() -> DataFusionError {
    DataFusionError::Execution("the query was cancelled".to_string())
}
