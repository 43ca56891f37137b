//! Arrow data in and out by the Arrow PyCapsule interface, without a copy.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use arrow::record_batch::{RecordBatchIterator, RecordBatchReader};
use pyo3::exceptions::{PyImportError, PyModuleNotFoundError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};
use pyo3_arrow::error::PyArrowResult;
use pyo3_arrow::ffi::{ArrayIterator, ArrayReader, to_array_pycapsules, to_schema_pycapsule, to_stream_pycapsule};

use crate::errors::Result;
use crate::{html, import};

/// An Arrow array, in one piece or several, for any library that knows the Arrow PyCapsule interface.
///
/// Example:
///     >>> import pyarrow as pa
///     >>> from arrow_quant_v2 import ArrowQuantV2
///     >>> class Weights:
///     ...     def __arrow_c_array__(self, requested_schema=None):
///     ...         return pa.array([0.5, 0.25]).__arrow_c_array__(requested_schema)
///     >>> quantizer = ArrowQuantV2()
///     >>> restored = quantizer.dequantize(quantizer.quantize(Weights(), bit_width=8))
///     >>> type(restored).__name__, pa.array(restored).type
///     ('ArrowArray', DataType(double))
#[pyclass(module = "arrow_quant_v2", frozen)]
pub struct ArrowArray {
    /// The type, and what else is known of it.
    pub field: FieldRef,
    /// The pieces.
    pub chunks: Vec<ArrayRef>,
}

#[pymethods]
impl ArrowArray {
    fn __len__(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyCapsule>>,
    ) -> PyArrowResult<Bound<'py, PyTuple>> {
        let chunks: Vec<&dyn Array> = self.chunks.iter().map(|chunk| &**chunk).collect();
        match &chunks[..] {
            [one] => to_array_pycapsules(py, Arc::clone(&self.field), *one, requested_schema),
            [] => {
                let none = arrow::array::new_empty_array(self.field.data_type());
                to_array_pycapsules(py, Arc::clone(&self.field), &none, requested_schema)
            }
            _ => {
                let one = arrow::compute::concat(&chunks)?;
                to_array_pycapsules(py, Arc::clone(&self.field), &one, requested_schema)
            }
        }
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyCapsule>>,
    ) -> PyArrowResult<Bound<'py, PyCapsule>> {
        let chunks = self.chunks.clone().into_iter().map(Ok);
        to_stream_pycapsule(py, Box::new(ArrayIterator::new(chunks, Arc::clone(&self.field))), requested_schema)
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyArrowResult<Bound<'py, PyCapsule>> {
        to_schema_pycapsule(py, self.field.as_ref())
    }
}

/// An Arrow table in memory, for any library that knows the Arrow PyCapsule interface.
///
/// Example:
///     >>> import arrow_quant_v2
///     >>> table = arrow_quant_v2.connect().sql("SELECT 1 AS one").collect()
///     >>> table.num_rows, table.column_names
///     (1, ['one'])
#[pyclass(module = "arrow_quant_v2", frozen)]
pub struct Table {
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
}

#[pymethods]
impl Table {
    /// Rows in all.
    #[getter]
    fn num_rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Names of the columns.
    #[getter]
    fn column_names(&self) -> Vec<String> {
        names(&self.schema)
    }

    fn __len__(&self) -> usize {
        self.num_rows()
    }

    fn __repr__(&self) -> String {
        format!("Table({} rows: {})", self.num_rows(), self.column_names().join(", "))
    }

    /// The first rows, as a notebook shows them.
    fn _repr_html_(&self) -> Result<String> {
        Ok(html::table(&self.schema, &self.batches, Some(self.num_rows()))?)
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyCapsule>>,
    ) -> PyArrowResult<Bound<'py, PyCapsule>> {
        let batches = self.batches.clone().into_iter().map(Ok);
        stream_capsule(py, Box::new(RecordBatchIterator::new(batches, Arc::clone(&self.schema))), requested_schema)
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyArrowResult<Bound<'py, PyCapsule>> {
        to_schema_pycapsule(py, self.schema.as_ref())
    }

    /// As a pyarrow.Table; the data are shared.
    fn to_pyarrow<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        to_pyarrow(slf.as_any())
    }

    /// As a pandas.DataFrame. Needs pyarrow and pandas.
    fn to_pandas<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        to_pandas(slf.as_any())
    }

    /// As a polars.DataFrame; the data are shared where polars can.
    fn to_polars<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        to_polars(slf.as_any())
    }
}

/// The columns' names.
pub(crate) fn names(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name().clone()).collect()
}

/// An Arrow object as a pyarrow.Table.
pub(crate) fn to_pyarrow<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    library(object.py(), "pyarrow")?.call_method1("table", (object,))
}

/// An Arrow object as a pandas.DataFrame.
pub(crate) fn to_pandas<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    library(object.py(), "pandas")?;
    to_pyarrow(object)?.call_method0("to_pandas")
}

/// An Arrow object as a polars.DataFrame.
pub(crate) fn to_polars<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    library(object.py(), "polars")?.call_method1("DataFrame", (object,))
}

/// A library that the package can do without.
fn library<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyModule>> {
    py.import(name).map_err(|error| {
        // What fails while it is imported is another matter.
        if !error.is_instance_of::<PyModuleNotFoundError>(py) {
            return error;
        }
        let missing = PyImportError::new_err(format!("{name} is not installed: pip install {name}"));
        missing.set_cause(py, Some(error));
        missing
    })
}

/// Batches as a capsule that holds an Arrow stream.
pub(crate) fn stream_capsule<'py>(
    py: Python<'py>,
    reader: Box<dyn RecordBatchReader + Send>,
    requested_schema: Option<Bound<'py, PyCapsule>>,
) -> PyArrowResult<Bound<'py, PyCapsule>> {
    let schema = reader.schema();
    let field = Field::new_struct("", schema.fields().clone(), false).with_metadata(schema.metadata().clone());
    let arrays = reader.map(|batch| Ok(Arc::new(StructArray::from(batch?)) as ArrayRef));
    let arrays: Box<dyn ArrayReader + Send> = Box::new(ArrayIterator::new(arrays, Arc::new(field)));
    to_stream_pycapsule(py, arrays, requested_schema)
}

/// An object with the Arrow PyCapsule interface as a Table or an ArrowArray. It is read once, and not copied.
#[pyfunction]
fn import_arrow<'py>(object: &Bound<'py, PyAny>) -> Result<Bound<'py, PyAny>> {
    let py = object.py();
    let (field, chunks) = import::chunks("object", "object", object)?;
    Ok(match import::table(&field, &chunks)? {
        Some((schema, batches)) => Bound::new(py, Table { schema, batches })?.into_any(),
        None => Bound::new(py, ArrowArray { field, chunks })?.into_any(),
    })
}

/// The columns of a Table with their names. They are not copied.
#[pyfunction]
fn columns(table: &Bound<'_, Table>) -> Vec<(String, ArrowArray)> {
    let table = table.get();
    let fields = table.schema.fields().iter().enumerate();
    let column = |(index, field): (usize, &FieldRef)| {
        let chunks = table.batches.iter().map(|batch| Arc::clone(batch.column(index))).collect();
        (field.name().clone(), ArrowArray { field: Arc::clone(field), chunks })
    };
    fields.map(column).collect()
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ArrowArray>()?;
    module.add_class::<Table>()?;
    module.add_function(wrap_pyfunction!(import_arrow, module)?)?;
    module.add_function(wrap_pyfunction!(columns, module)?)
}
