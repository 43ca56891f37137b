//! How a thread of Python waits for the engine: without the lock, and still hearing Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;

use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;

use crate::errors::Result;
use crate::logging;

/// How long a signal, or a cancellation, may go unheard.
pub(crate) const TICK: Duration = Duration::from_millis(50);

pyo3::create_exception!(_native, Cancelled, pyo3::exceptions::PyException, "A job was cancelled.");

/// A token that cancels a job from another thread.
#[pyclass(module = "arrow_quant_v2._native", frozen, from_py_object)]
#[derive(Clone, Default)]
pub struct Cancellation(Arc<AtomicBool>);

#[pymethods]
impl Cancellation {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Cancels the job; the call that waits for it raises Cancelled once it has cleaned up.
    fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for what comes next; `None` when nothing more will. Every now and then calls `between`, hands on the log and looks
/// for signals.
///
/// # Errors
/// The exception of a signal, `Cancelled`, or what `between` raises.
pub(crate) fn next<T: Send>(
    py: Python<'_>,
    from: &mut Receiver<T>,
    cancellation: Option<&Cancellation>,
    mut between: impl FnMut(Python<'_>) -> PyResult<()>,
) -> Result<Option<T>> {
    loop {
        let receiver = &mut *from;
        match py.detach(move || receiver.recv_timeout(TICK)) {
            Ok(next) => return Ok(Some(next)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
        logging::hand_on(py);
        py.check_signals()?;
        if cancellation.is_some_and(|cancellation| cancellation.0.load(Ordering::Relaxed)) {
            return Err(Cancelled::new_err("the job was cancelled").into());
        }
        between(py)?;
    }
}

/// Looks for signals, if this is the thread that Python handles them on: no other thread may wait for the lock here, because
/// its holder may be waiting for it.
///
/// # Errors
/// What the exception of a signal says. The library that reads raises an exception of its own, and Python hears of Ctrl-C once
/// it is back.
pub(crate) fn signals_of_main_thread() -> std::result::Result<(), String> {
    if MAIN.get().is_none_or(|main| *main != std::thread::current().id()) {
        return Ok(());
    }
    Python::attach(|py| {
        let Err(error) = py.check_signals() else { return Ok(()) };
        // Showing an exception looks for signals too, and would swallow the one that is raised below.
        let said = error.to_string();
        if error.is_instance_of::<PyKeyboardInterrupt>(py) {
            let again = py.import("_thread").and_then(|thread| thread.call_method0("interrupt_main"));
            again.map_err(|error| error.to_string())?;
        }
        Err(said)
    })
}

/// Python's main thread, as far as it imported the package.
static MAIN: OnceLock<ThreadId> = OnceLock::new();

/// Remembers Python's main thread.
///
/// # Errors
/// If Python has no threads.
pub(crate) fn remember_main_thread(py: Python<'_>) -> PyResult<()> {
    let threading = py.import("threading")?;
    if threading.call_method0("current_thread")?.is(&threading.call_method0("main_thread")?) {
        MAIN.get_or_init(|| std::thread::current().id());
    }
    Ok(())
}

/// What is said of a job whose thread ended without a word, which only a panic does.
pub(crate) fn panicked() -> PyErr {
    PyRuntimeError::new_err("the engine stopped unexpectedly; this is a defect, please report it")
}
