//! Quantized models, read tensor by tensor.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow_quant_v2::{ModelReport, QuantError, TensorReport, register_model, session, verify_model};
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::SessionContext;
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;

use crate::errors::{Result, argument};
use crate::runtime::{Threads, cores, executed};
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
    /// Whether the files were found to be those that were written.
    is_verified: AtomicBool,
}

#[pymethods]
impl ModelReader {
    #[new]
    #[pyo3(signature = (path, *, num_threads = None))]
    fn new(py: Python<'_>, path: PathBuf, num_threads: Option<&Bound<'_, PyAny>>) -> Result<Self> {
        let threads = cores(num_threads)?;
        let (ctx, report) = (session(threads)?, ModelReport::open(&path)?);
        for tensor in &report.tensors {
            let elements = tensor.shape.iter().try_fold(1u64, |all, &n| all.checked_mul(u64::try_from(n).ok()?));
            // Elements of four bits are the smallest that are kept. What is stored under another name has no bytes.
            let bits = u64::from(tensor.bits.unwrap_or(4));
            let is_stored = tensor.same_as.is_some() || tensor.elements <= tensor.bytes.saturating_mul(8) / bits;
            if elements != Some(tensor.elements) || !is_stored {
                let message = format!(
                    "its shape {:?} does not have the {} elements that are stored",
                    tensor.shape, tensor.elements
                );
                return Err(damaged(&path, &tensor.tensor, &message).into());
            }
        }
        let threads = Threads::start(threads)?;
        let (session, model) = (ctx.clone(), path.clone());
        threads.wait(py, async move { register_model(&session, MODEL, model).await })?;
        Ok(Self { path, report, ctx, threads, is_verified: AtomicBool::new(false) })
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
        if !self.is_verified.load(Ordering::Relaxed) {
            let path = self.path.clone();
            self.threads.wait(py, async move { verify_model(&path).await })?;
            self.is_verified.store(true, Ordering::Relaxed);
        }
        let mut out = out.try_readwrite().map_err(PyErr::from)?;
        let out = out.as_slice_mut().map_err(PyErr::from)?;
        let (ctx, key) = (self.ctx.clone(), (component.to_string(), tensor.to_string()));
        let (rows, stop) = self.threads.wait(py, async move {
            let weights = ctx.table(datafusion::common::TableReference::partial(MODEL, "weights")).await?;
            let rows = weights.filter(col("component").eq(lit(key.0)).and(col("tensor").eq(lit(key.1))))?;
            executed(rows.select_columns(&["start", "weights"])?).await
        })?;
        let mut batches = self.threads.stream(rows, stop)?;
        let mut copied = Vec::new();
        while let Some(batch) = batches.wait(py)? {
            let copy = py.detach(|| copy(&batch, report, out, &mut copied));
            copy.map_err(|message| damaged(&self.path, tensor, &message))?;
        }
        // Each byte must have been written once.
        copied.sort_unstable_by_key(|range| range.start);
        let end = copied.iter().try_fold(0, |end, range| (range.start == end).then_some(range.end));
        if end != Some(out.len()) {
            return Err(damaged(&self.path, tensor, "chunks are missing, or there more than once").into());
        }
        Ok(())
    }
}

fn damaged(path: &Path, tensor: &str, what: &str) -> QuantError {
    QuantError::defect(path, Some(tensor.to_string()), format!("{what}: quantize the model again"))
}

/// Copies a batch's weights to where they belong, and notes where that is.
fn copy(
    batch: &RecordBatch,
    report: &TensorReport,
    out: &mut [u8],
    copied: &mut Vec<Range<usize>>,
) -> std::result::Result<(), String> {
    let starts = batch.column(0).as_primitive::<Int64Type>();
    let data = batch.column(1).as_struct().column_by_name("data").ok_or("its weights are no tensor values")?;
    for (&start, bytes) in starts.values().iter().zip(data.as_binary_view()) {
        let bytes = bytes.ok_or("a chunk is NULL")?;
        // Elements may have less than a byte, but chunks start between bytes.
        let at = u128::from(start.unsigned_abs()) * out.len() as u128 / u128::from(report.elements.max(1));
        let room = out.get_mut(at as usize..).and_then(|rest| rest.get_mut(..bytes.len()));
        room.ok_or_else(|| format!("the chunk from {start} on has too many bytes"))?.copy_from_slice(bytes);
        copied.push(at as usize..at as usize + bytes.len());
    }
    Ok(())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ModelReader>()
}
