//! The engine's log, for Python's `logging`.
//!
//! Threads of the engine must not wait for Python's lock: a thread that holds it may be waiting for them. So they only
//! leave what they have to say, and calls from Python hand it on, while they wait and when they return.

use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;

static LEFT: Mutex<Vec<(Level, String, String)>> = Mutex::new(Vec::new());

struct Deferred;

impl Log for Deferred {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Those of other crates are for their authors.
        metadata.target().starts_with("arrow_quant")
    }

    fn log(&self, record: &Record<'_>) {
        if let (true, Ok(mut left)) = (self.enabled(record.metadata()), LEFT.lock()) {
            left.push((record.level(), record.target().replace("::", "."), record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// Takes the engine's log from now on.
pub(crate) fn init() {
    // It fails only where this module was initialized before.
    if log::set_logger(&Deferred).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Hands on what was left. A handler that raises does not change what the engine's call comes to.
pub(crate) fn hand_on(py: Python<'_>) {
    let left = LEFT.lock().map(|mut left| std::mem::take(&mut *left)).unwrap_or_default();
    for (level, target, message) in left {
        if let Err(error) = log_in_python(py, level, &target, &message) {
            error.write_unraisable(py, None);
        }
    }
}

fn log_in_python(py: Python<'_>, level: Level, target: &str, message: &str) -> PyResult<()> {
    let level = match level {
        Level::Error => 40,
        Level::Warn => 30,
        Level::Info => 20,
        Level::Debug | Level::Trace => 10,
    };
    // All of the engine's crates are this package.
    let rest = target.trim_start_matches("arrow_quant_v2").trim_start_matches('.');
    let name = if rest.is_empty() { "arrow_quant_v2".to_string() } else { format!("arrow_quant_v2.{rest}") };
    py.import("logging")?.call_method1("getLogger", (name,))?.call_method1("log", (level, "%s", message))?;
    Ok(())
}
