//! Arrays in memory: quantized, and restored.

use std::ptr::NonNull;
use std::sync::Arc;

use arrow::buffer::Buffer;
use arrow::datatypes::FieldRef;
use arrow_quant_kernels::{Dtype, Settings};
use arrow_quant_v2::{DiffusionQuantConfig, QuantError, QuantizedData, TensorData, quantized_row_schema};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};
use pyo3_arrow::error::PyArrowResult;
use pyo3_arrow::ffi::to_schema_pycapsule;

use crate::arrow_objects::{ArrowArray, Table, stream_capsule};
use crate::config::checked;
use crate::errors::{Failure, Result, argument};
use crate::html;
use crate::import::{batches, chunks};
use crate::runtime::all_cores;

/// A quantized tensor in memory: codes, parameters, and what was lost.
///
/// An Arrow table too, with one row a chunk: tensor, dtype, shape, chunk, start, quantized.
///
/// Example:
///     >>> import numpy as np
///     >>> from arrow_quant_v2 import ArrowQuantV2
///     >>> quantized = ArrowQuantV2().quantize(np.ones((256, 1024), np.float32))
///     >>> quantized.shape, quantized.bits_per_weight, quantized.max_abs_error
///     ((256, 1024), 4.25, 0.0)
#[pyclass(module = "arrow_quant_v2")]
pub struct QuantizedTensor {
    /// Its name.
    #[pyo3(get)]
    name: String,
    data: Arc<QuantizedData>,
    /// Of the Arrow array it was made from.
    field: Option<FieldRef>,
    /// What becomes of it when it is restored, a matter of the package's Python half.
    #[pyo3(get, set, name = "_kind")]
    kind: Option<Py<PyAny>>,
}

#[pymethods]
impl QuantizedTensor {
    /// Its shape.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.data.shape())
    }

    /// The dtype it had: "F64", "F32", "F16" or "BF16".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.data.dtype().name()
    }

    /// Bits of a code.
    #[getter]
    fn bit_width(&self) -> usize {
        self.data.settings().bits.get()
    }

    /// Weights that share a scale.
    #[getter]
    fn group_size(&self) -> usize {
        self.data.settings().group_size.get()
    }

    /// What a code means.
    #[getter]
    fn scheme(&self) -> &'static str {
        self.data.settings().scheme.name()
    }

    /// How scales were found.
    #[getter]
    fn method(&self) -> &'static str {
        self.data.settings().method.name()
    }

    /// Bytes of codes and parameters.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.data.bytes()
    }

    /// 8 × nbytes ÷ elements.
    #[getter]
    fn bits_per_weight(&self) -> f64 {
        8.0 * self.data.bytes() as f64 / self.data.elements().max(1) as f64
    }

    /// Between the weights and what they are restored to; None if all are zero.
    #[getter]
    fn cosine_similarity(&self) -> Option<f64> {
        self.data.errors().cosine_similarity()
    }

    /// In dB, infinite where nothing was lost; None if all weights are zero.
    #[getter]
    fn sqnr_db(&self) -> Option<f64> {
        let errors = self.data.errors();
        (errors.sum_aa > 0.0 || errors.sum_ee > 0.0).then(|| errors.sqnr_db())
    }

    /// The greatest error of a weight.
    #[getter]
    fn max_abs_error(&self) -> f64 {
        self.data.errors().max_abs_error
    }

    /// Whether it was made from an Arrow array.
    #[getter]
    fn is_arrow(&self) -> bool {
        self.field.is_some()
    }

    /// Restores the weights into a C-contiguous one-dimensional float32 array of as many elements.
    fn dequantize_into(&self, py: Python<'_>, out: &Bound<'_, PyArray1<f32>>) -> Result<()> {
        let mut out = out.try_readwrite().map_err(PyErr::from)?;
        let out = out.as_slice_mut().map_err(PyErr::from)?;
        let threads = all_cores();
        py.detach(|| self.data.dequantize_into(out, threads)).map_err(|error| self.named(error).into())
    }

    /// Restores the weights as an Arrow array of the type it was made from, or float32 of one dimension.
    fn dequantize_arrow(&self, py: Python<'_>) -> Result<ArrowArray> {
        let Some(field) = &self.field else {
            return Err(argument("quantized", format!("{} was not made from an Arrow array", self.name)));
        };
        let threads = all_cores();
        let array = py.detach(|| self.data.to_arrow(field.data_type(), threads)).map_err(|error| self.named(error))?;
        Ok(ArrowArray { field: Arc::clone(field), chunks: vec![array] })
    }

    /// What it is, as a notebook shows it.
    fn _repr_html_(&self) -> String {
        let figure = |value: Option<f64>, digits| value.map_or_else(String::new, |value| format!("{value:.digits$}"));
        html::facts(&[
            ("name", self.name.clone()),
            ("shape", format!("{:?}", self.data.shape())),
            ("bit_width", self.bit_width().to_string()),
            ("group_size", self.group_size().to_string()),
            ("bits_per_weight", figure(Some(self.bits_per_weight()), 2)),
            ("sqnr_db", figure(self.sqnr_db(), 2)),
            ("cosine_similarity", figure(self.cosine_similarity(), 6)),
            ("max_abs_error", format!("{:.2e}", self.max_abs_error())),
        ])
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyCapsule>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let rows = self.data.rows(&self.name).map_err(Failure::from)?;
        let schema = rows.schema();
        let reader = arrow::record_batch::RecordBatchIterator::new([Ok(rows)], schema);
        Ok(stream_capsule(py, Box::new(reader), requested_schema)?)
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyArrowResult<Bound<'py, PyCapsule>> {
        to_schema_pycapsule(py, quantized_row_schema().as_ref())
    }

    fn __repr__(&self) -> String {
        let shape = self.data.shape();
        format!(
            "QuantizedTensor({:?}, {} {shape:?}, {} bits in groups of {}{})",
            self.name,
            self.dtype(),
            self.bit_width(),
            self.group_size(),
            self.sqnr_db().map_or_else(String::new, |db| format!(", {db:.2} dB"))
        )
    }
}

impl QuantizedTensor {
    /// The same error, with the tensor's name.
    fn named(&self, error: QuantError) -> QuantError {
        let (tensor, message) = (self.name.clone(), format!("{}: {error}", self.name));
        match error {
            QuantError::ShapeMismatch { problem, .. } => QuantError::shape(Some(&tensor), *problem),
            QuantError::Refused(_) | QuantError::Configuration { .. } | QuantError::Io { .. } => error,
            _ => QuantError::Quantization { tensor: Some(tensor), message },
        }
    }
}

/// What arrays are quantized with, checked as the fields of a configuration are: bit_width, group_size, scheme and method.
fn settings(values: [&Bound<'_, PyAny>; 4]) -> Result<Settings> {
    let mut config = DiffusionQuantConfig::default();
    for (field, value) in ["bit_width", "group_size", "scheme", "method"].into_iter().zip(values) {
        config.set(field, &checked(field, value)?)?;
    }
    config.validate()?;
    let no_method = || argument("method", "arrays are quantized by minmax, mse or unbiased".to_string());
    config.settings().ok_or_else(no_method)
}

/// Quantizes the elements of a tensor, given as their bytes.
#[pyfunction]
#[pyo3(signature = (name, data, dtype, shape, *, bit_width, group_size, scheme, method))]
#[allow(clippy::too_many_arguments, reason = "they are the keywords of the function in Python")]
fn quantize_buffer(
    py: Python<'_>,
    name: String,
    data: Bound<'_, PyArray1<u8>>,
    dtype: &str,
    shape: Vec<i64>,
    bit_width: &Bound<'_, PyAny>,
    group_size: &Bound<'_, PyAny>,
    scheme: &Bound<'_, PyAny>,
    method: &Bound<'_, PyAny>,
) -> Result<QuantizedTensor> {
    let settings = settings([bit_width, group_size, scheme, method])?;
    let dtype = dtype.parse::<Dtype>().map_err(QuantError::from)?;
    let threads = all_cores();
    let view = data.try_readonly().map_err(PyErr::from)?;
    let bytes = view.as_slice().map_err(PyErr::from)?;
    let length = bytes.len();
    let buffer = match NonNull::new(bytes.as_ptr().cast_mut()) {
        // SAFETY: the pointer and length are those of the array's elements, in one piece, for `as_slice` gave them. The
        // array lives until this function returns, and so outlives the buffer, of which the quantized tensor keeps
        // nothing. Another thread that writes to the array meanwhile races with this one, which is undefined here as in
        // NumPy's own functions that let go of the lock; that nobody does is asked of callers.
        Some(pointer) if length > 0 => unsafe { Buffer::from_custom_allocation(pointer, length, Arc::new(())) },
        _ => Buffer::from_vec(Vec::<u8>::new()),
    };
    let tensor = TensorData::new(dtype, shape, vec![buffer])?;
    let quantized = py.detach(|| tensor.quantize(&name, settings, threads))?;
    Ok(QuantizedTensor { name, data: Arc::new(quantized), field: None, kind: None })
}

/// Quantizes an Arrow array of floats, or of lists of floats of equal length.
#[pyfunction]
#[pyo3(signature = (name, array, *, bit_width, group_size, scheme, method))]
fn quantize_arrow(
    py: Python<'_>,
    name: String,
    array: &Bound<'_, PyAny>,
    bit_width: &Bound<'_, PyAny>,
    group_size: &Bound<'_, PyAny>,
    scheme: &Bound<'_, PyAny>,
    method: &Bound<'_, PyAny>,
) -> Result<QuantizedTensor> {
    let settings = settings([bit_width, group_size, scheme, method])?;
    let threads = all_cores();
    let (field, chunks) = chunks("weights", &name, array)?;
    let quantized =
        py.detach(|| TensorData::from_arrow(&name, field.data_type(), &chunks)?.quantize(&name, settings, threads))?;
    Ok(QuantizedTensor { name, data: Arc::new(quantized), field: Some(field), kind: None })
}

/// The rows of quantized tensors as one table.
#[pyfunction]
fn quantized_rows(tensors: Vec<PyRef<'_, QuantizedTensor>>) -> Result<Table> {
    let batches = tensors.iter().map(|tensor| tensor.data.rows(&tensor.name)).collect::<std::result::Result<_, _>>()?;
    Ok(Table { schema: quantized_row_schema(), batches })
}

/// The quantized tensors in a table of their rows.
#[pyfunction]
fn from_quantized_rows(table: &Bound<'_, PyAny>) -> Result<Vec<QuantizedTensor>> {
    let (_, batches) = batches("quantized", "quantized", table)?;
    let tensors = table.py().detach(|| QuantizedData::from_rows(&batches))?;
    let tensor = |(name, data)| QuantizedTensor { name, data: Arc::new(data), field: None, kind: None };
    Ok(tensors.into_iter().map(tensor).collect())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<QuantizedTensor>()?;
    module.add_function(wrap_pyfunction!(quantize_buffer, module)?)?;
    module.add_function(wrap_pyfunction!(quantize_arrow, module)?)?;
    module.add_function(wrap_pyfunction!(quantized_rows, module)?)?;
    module.add_function(wrap_pyfunction!(from_quantized_rows, module)?)
}
