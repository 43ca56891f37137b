//! The native half of the Python package `arrow_quant_v2`: the engine, called from Python.
//!
//! Nothing is implemented here. Each file turns one kind of Python object into what the engine takes, lets go of Python's
//! lock while the engine works, and turns the outcome back.

mod arrays;
mod arrow_objects;
mod calibration;
mod config;
mod errors;
mod functions;
mod html;
mod import;
mod jobs;
mod logging;
mod reader;
mod reaper;
mod reports;
mod runtime;
mod sql;
mod values;
mod waiting;

use pyo3::prelude::*;

/// The engine of ArrowQuant. Use the package `arrow_quant_v2`, of which this is the private half.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    logging::init();
    arrow_quant_bounds::quiet_panics(|name| name == Some(runtime::THREADS));
    waiting::remember_main_thread(module.py())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    config::register(module)?;
    jobs::register(module)?;
    arrow_objects::register(module)?;
    arrays::register(module)?;
    sql::register(module)?;
    functions::register(module)?;
    reader::register(module)?;
    reports::register(module)
}
