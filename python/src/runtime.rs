//! The engine's threads.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatchReader;
use arrow_quant_bounds::{QueryFault, on_planning_thread};
use arrow_quant_udfs::Cancellation;
use arrow_quant_v2::{DiffusionQuantConfig, QuantError, start_runtime};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::DataFrame;
use futures::StreamExt;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::config::checked;
use crate::errors::Result;
use crate::logging;
use crate::waiting;

/// Bytes of a thread's stack, of which only what is used takes memory: a long expression of SQL is a deep tree.
const STACK: usize = 256 << 20;

/// The name of all threads of the engine.
pub(crate) const THREADS: &str = "arrow-quant";

/// Batches that are computed before the reader of a result asks for them.
const AHEAD: usize = 2;

/// All cores.
pub(crate) fn all_cores() -> usize {
    // Asking the system takes as long as a small array.
    static ALL: OnceLock<usize> = OnceLock::new();
    *ALL.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Cores to use, checked as the field of a configuration is: 0, or nothing, stands for all.
///
/// # Errors
/// For what is no number, or more than can be asked for.
pub(crate) fn cores(num_threads: Option<&Bound<'_, PyAny>>) -> Result<usize> {
    let mut config = DiffusionQuantConfig::default();
    if let Some(num_threads) = num_threads {
        config.set("num_threads", &checked("num_threads", num_threads)?)?;
    }
    Ok(if config.num_threads == 0 { all_cores() } else { config.num_threads })
}

/// A runtime on so many cores, or on fewer where the system refuses threads.
///
/// # Errors
/// If it refuses all.
pub(crate) fn start(threads: usize) -> Result<Runtime> {
    Ok(start_runtime(threads, STACK)?.runtime)
}

/// The threads of a session. Whatever runs on them ends with it.
pub(crate) struct Threads {
    runtime: Option<Runtime>,
    process: u32,
}

impl Threads {
    /// So many threads.
    ///
    /// # Errors
    /// If they cannot be started.
    pub(crate) fn start(threads: usize) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { runtime: Some(start(threads)?), process: std::process::id() }))
    }

    /// The runtime, unless this process is a fork of the one that started it, in which its threads are not.
    fn runtime(&self) -> PyResult<&Runtime> {
        let here = self.process == std::process::id();
        self.runtime.as_ref().filter(|_| here).ok_or_else(|| {
            PyRuntimeError::new_err(
                "this object was made before the process was forked: make another one in the new process",
            )
        })
    }

    /// Waits for a future.
    ///
    /// # Errors
    /// Its own, and the exception of a signal.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        py: Python<'_>,
        future: impl Future<Output = arrow_quant_v2::Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (done, mut outcome) = channel();
        let task = self.runtime()?.spawn(async move {
            // Nobody listens any more only after an exception, which then is what happened.
            drop(done.send(future.await));
        });
        let outcome = waiting::next(py, &mut outcome, None, |_| Ok(()));
        logging::hand_on(py);
        match outcome {
            Ok(Some(result)) => Ok(result?),
            Ok(None) => Err(QuantError::from(fault_of(task)).into()),
            Err(failure) => {
                task.abort();
                Err(failure)
            }
        }
    }

    /// Lets a query run ahead of the reader of its batches.
    ///
    /// # Errors
    /// If the process was forked.
    pub(crate) fn stream(
        self: &Arc<Self>,
        mut stream: SendableRecordBatchStream,
        stop: StopOnDrop,
    ) -> PyResult<Batches> {
        let schema = stream.schema();
        let (sender, receiver) = channel();
        let room = Arc::new(Semaphore::new(AHEAD));
        let permits = Arc::clone(&room);
        let task = self.runtime()?.spawn(async move {
            while let Some(batch) = stream.next().await {
                let Ok(permit) = permits.acquire().await else { return };
                permit.forget();
                if sender.send(Some(batch.map_err(QuantError::from))).is_err() {
                    return;
                }
            }
            // Nobody may be reading any more.
            drop(sender.send(None));
        });
        Ok(Batches { schema, receiver, room, task, threads: Arc::clone(self), _stop: stop })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if self.process == std::process::id() {
            // Not waited for: this may be one of the threads itself.
            runtime.shutdown_background();
        } else {
            // There is nobody to stop.
            std::mem::forget(runtime);
        }
    }
}

/// Stops the functions of a query when it is dropped: a function that computes cannot be stopped from outside.
pub(crate) struct StopOnDrop(Cancellation);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Runs a query, and what stops its functions.
pub(crate) async fn executed(frame: DataFrame) -> arrow_quant_v2::Result<(SendableRecordBatchStream, StopOnDrop)> {
    let (mut state, plan) = frame.into_parts();
    let cancellation = Cancellation::default();
    state.config_mut().options_mut().extensions.insert(cancellation.clone());
    // Functions are planned with the options of the execution, which are older.
    let options = Arc::clone(state.config().options());
    state.execution_props_mut().config_options = Some(options);
    let stop = StopOnDrop(cancellation);
    let threads = tokio::runtime::Handle::current();
    let rows = on_planning_thread(&threads, async move { DataFrame::new(state, plan).execute_stream().await });
    Ok((rows.await?, stop))
}

/// The batches of a query as they come. Dropped, they stop it.
pub(crate) struct Batches {
    schema: SchemaRef,
    /// `None` is the end; without it the query was broken off.
    receiver: Receiver<Option<arrow_quant_v2::Result<RecordBatch>>>,
    room: Arc<Semaphore>,
    task: JoinHandle<()>,
    threads: Arc<Threads>,
    _stop: StopOnDrop,
}

/// Why a task ended without a word: it panicked.
fn fault_of(task: JoinHandle<()>) -> DataFusionError {
    // It has ended, and this thread may be one of another runtime.
    let fault = futures::executor::block_on(task).err().and_then(QueryFault::of_task);
    fault.map_or_else(|| DataFusionError::Execution("the query was stopped".to_string()), DataFusionError::from)
}

impl Batches {
    fn fault(&mut self) -> PyResult<DataFusionError> {
        let ended = std::mem::replace(&mut self.task, self.threads.runtime()?.spawn(async {}));
        Ok(fault_of(ended))
    }

    /// The next batch, hearing signals.
    ///
    /// # Errors
    /// The query's, and the exception of a signal.
    pub(crate) fn wait(&mut self, py: Python<'_>) -> Result<Option<RecordBatch>> {
        let next = waiting::next(py, &mut self.receiver, None, |_| Ok(()))?;
        self.room.add_permits(1);
        match next {
            Some(next) => Ok(next.transpose()?),
            None => Err(QuantError::from(self.fault()?).into()),
        }
    }
}

impl Iterator for Batches {
    type Item = std::result::Result<RecordBatch, ArrowError>;

    /// Any thread may call this, with Python's lock or without it.
    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = self.threads.runtime() {
            return Some(Err(ArrowError::ComputeError(error.to_string())));
        }
        let next = loop {
            match self.receiver.recv_timeout(waiting::TICK) {
                Ok(next) => break next?,
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(error) = waiting::signals_of_main_thread() {
                        self.task.abort();
                        return Some(Err(ArrowError::ComputeError(format!("the query was interrupted: {error}"))));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let fault = self.fault().map_or_else(|error| error.to_string(), |fault| fault.to_string());
                    return Some(Err(ArrowError::ComputeError(fault)));
                }
            }
        };
        self.room.add_permits(1);
        Some(next.map_err(|error| ArrowError::ExternalError(Box::new(error))))
    }
}

impl RecordBatchReader for Batches {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.task.abort();
    }
}
