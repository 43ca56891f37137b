//! Jobs as streams of what clients are told: progress, then the result.

use std::sync::Arc;

use arrow_quant_flight::{ActionCall, ActionStream};
use bytes::Bytes;
use datafusion::error::DataFusionError;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use arrow_quant_v2::{OnProgress, Progress, QuantError, Result};

/// A job that its client, or the server's end, stopped.
#[derive(Debug, thiserror::Error)]
#[error("cancelled{0}")]
pub(super) struct Cancelled(&'static str);

/// A job that runs. It is stopped when this is dropped.
struct Running<L> {
    /// The job alone.
    task: JoinSet<Result<Value>>,
    /// How far it was told to be last; what is not fetched in time is overwritten.
    progress: watch::Receiver<Option<Progress>>,
    call: ActionCall,
    /// Says what a stopped job has left.
    left: L,
    has_ended: bool,
}

/// Runs a job, which is told what to call as it goes on, and streams `{"progress": …}` and at last `{"result": …}`. `left` says
/// what there is of one that was stopped.
pub(super) fn stream<F, L>(call: ActionCall, left: L, job: impl FnOnce(OnProgress) -> F) -> ActionStream
where
    F: Future<Output = Result<Value>> + Send + 'static,
    L: Fn() -> &'static str + Send + 'static,
{
    let (sender, progress) = watch::channel(None);
    let on_progress: OnProgress = Arc::new(move |progress: &Progress| {
        // Nobody is left to hear of it when the job is being stopped.
        let _ = sender.send(Some(progress.clone()));
    });
    let mut task = JoinSet::new();
    task.spawn(job(on_progress));
    let running = Running { task, progress, call, left, has_ended: false };
    stream::unfold(running, |mut running| async move {
        let message = running.next().await?;
        Some((message.map(|message| Bytes::from(message.to_string())), running))
    })
    .boxed()
}

impl<L: Fn() -> &'static str> Running<L> {
    async fn next(&mut self) -> Option<Result<Value, DataFusionError>> {
        if self.has_ended {
            return None;
        }
        tokio::select! {
            biased;
            () = self.call.cancelled.cancelled() => {
                self.has_ended = true;
                // Until it has cleaned up behind itself.
                self.task.shutdown().await;
                Some(Err(DataFusionError::External(Box::new(Cancelled((self.left)())))))
            }
            Ok(()) = self.progress.changed() => {
                let progress = self.progress.borrow_and_update().clone()?;
                Some(Ok(json!({"progress": {
                    "stage": progress.stage.to_string(),
                    "done": progress.done,
                    "total": progress.total,
                    "tensor": progress.tensor,
                }})))
            }
            ended = self.task.join_next() => {
                self.has_ended = true;
                Some(match ended? {
                    Ok(result) => result.map(|result| json!({"result": result})).map_err(Into::into),
                    Err(error) => {
                        let message = format!("the job ended early: {error}");
                        Err(QuantError::Quantization { tensor: None, message }.into())
                    }
                })
            }
        }
    }
}
