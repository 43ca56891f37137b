//! Quantized models, read tensor by tensor.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow_quant_v2::{ModelReport, QuantError, TensorReport, register_model, session};
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::SessionContext;
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;

use crate::errors::{Result, argument};
use crate::runtime::{Threads, cores};
use crate::values::to_object;

/// What the model is called in the session.
const MODEL: &str = "model";

/// Reads the tensors of a quantized model directory.
#[pyclass(module = "arrow_quant_v2._native", frozen)]
pub struct ModelReader {
    path: PathBuf,
    report: ModelReport,
    ctx: SessionContext,
    threads: Arc<Threads>,
}

#[pymethods]
impl ModelReader {
    #[new]
    #[pyo3(signature = (path, *, num_threads = 0))]
    fn new(py: Python<'_>, path: PathBuf, num_threads: i64) -> Result<Self> {
        let threads = cores(num_threads)?;
        let (ctx, report) = (session(threads)?, ModelReport::open(&path)?);
        let threads = Threads::start(threads)?;
        let (session, model) = (ctx.clone(), path.clone());
        threads.wait(py, async move { register_model(&session, MODEL, model).await })?;
        Ok(Self { path, report, ctx, threads })
    }

    /// What the model says of itself.
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_object(py, &self.report)
    }

    /// Reads a tensor's bytes into an array that has room for them: float32 if it was quantized, as they are if not.
    fn read(&self, py: Python<'_>, component: &str, tensor: &str, out: &Bound<'_, PyArray1<u8>>) -> Result<()> {
        let wanted = self.report.tensors.iter().find(|report| report.component == component && report.tensor == tensor);
        let Some(report) = wanted else {
            return Err(argument("tensor", format!("{}: there is no tensor '{tensor}'", self.path.display())));
        };
        let mut out = out.try_readwrite().map_err(PyErr::from)?;
        let out = out.as_slice_mut().map_err(PyErr::from)?;
        let (ctx, key) = (self.ctx.clone(), (component.to_string(), tensor.to_string()));
        let stream = self.threads.wait(py, async move {
            let weights = ctx.table(datafusion::common::TableReference::partial(MODEL, "weights")).await?;
            let rows = weights.filter(col("component").eq(lit(key.0)).and(col("tensor").eq(lit(key.1))))?;
            Ok(rows.select_columns(&["start", "weights"])?.execute_stream().await?)
        })?;
        let mut batches = self.threads.stream(stream)?;
        let mut found = 0;
        while let Some(batch) = batches.wait(py)? {
            found += py.detach(|| copy(&batch, report, out)).map_err(|message| self.damaged(report, message))?;
        }
        if found != out.len() {
            return Err(self.damaged(report, format!("{found} bytes were found, expected {}", out.len())).into());
        }
        Ok(())
    }
}

impl ModelReader {
    fn damaged(&self, report: &TensorReport, message: String) -> QuantError {
        let message = format!("{}: {}: {message}: quantize the model again", self.path.display(), report.tensor);
        QuantError::Metadata { path: self.path.clone(), tensor: Some(report.tensor.clone()), message }
    }
}

/// Copies a batch's weights to where they belong; tells how many bytes.
fn copy(batch: &RecordBatch, report: &TensorReport, out: &mut [u8]) -> std::result::Result<usize, String> {
    let starts = batch.column(0).as_primitive::<Int64Type>();
    let data = batch.column(1).as_struct().column_by_name("data").ok_or("its weights are no tensor values")?;
    let data = data.as_binary_view();
    let mut copied = 0;
    for (&start, bytes) in starts.values().iter().zip(data.iter()) {
        let bytes = bytes.ok_or("a chunk is NULL")?;
        // Elements may have less than a byte, but chunks start between bytes.
        let at = u128::from(start.unsigned_abs()) * out.len() as u128 / u128::from(report.elements.max(1));
        let room = out.get_mut(at as usize..).and_then(|rest| rest.get_mut(..bytes.len()));
        room.ok_or_else(|| format!("the chunk from {start} on has {} bytes too many", bytes.len()))?
            .copy_from_slice(bytes);
        copied += bytes.len();
    }
    Ok(copied)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ModelReader>()
}
