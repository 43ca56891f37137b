//! Arrow data in and out by the Arrow PyCapsule interface, without a copy.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::record_batch::{RecordBatchIterator, RecordBatchReader};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};
use pyo3_arrow::error::PyArrowResult;
use pyo3_arrow::ffi::{ArrayIterator, ArrayReader, to_array_pycapsules, to_schema_pycapsule, to_stream_pycapsule};
use pyo3_arrow::input::{AnyArray, AnyRecordBatch};

use crate::errors::Result;

/// An Arrow array, in one piece or several, for any library that knows the Arrow PyCapsule interface.
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
pub fn names(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name().clone()).collect()
}

/// An Arrow object as a pyarrow.Table.
pub fn to_pyarrow<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    object.py().import("pyarrow")?.call_method1("table", (object,))
}

/// An Arrow object as a pandas.DataFrame.
pub fn to_pandas<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    to_pyarrow(object)?.call_method0("to_pandas")
}

/// An Arrow object as a polars.DataFrame.
pub fn to_polars<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    object.py().import("polars")?.call_method1("DataFrame", (object,))
}

/// Batches as a capsule that holds an Arrow stream.
pub fn stream_capsule<'py>(
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

/// The batches of an object that is an Arrow table.
///
/// # Errors
/// If it is none, or reading it fails.
pub fn batches(object: &Bound<'_, PyAny>) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let py = object.py();
    let reader =
        object.extract::<AnyRecordBatch>().map_err(|error| not_arrow(object, "a table", &error))?.into_reader()?;
    let schema = reader.schema();
    // Reading may mean to wait for threads that want Python's lock.
    let batches = py.detach(|| reader.collect::<std::result::Result<Vec<_>, _>>())?;
    Ok((schema, batches))
}

/// The pieces of an object that is an Arrow array.
///
/// # Errors
/// If it is none, or reading it fails.
pub fn chunks(object: &Bound<'_, PyAny>) -> Result<(FieldRef, Vec<ArrayRef>)> {
    let py = object.py();
    let reader = object.extract::<AnyArray>().map_err(|error| not_arrow(object, "an array", &error))?.into_reader()?;
    let field = reader.field();
    let chunks = py.detach(|| reader.collect::<std::result::Result<Vec<_>, _>>())?;
    Ok((field, chunks))
}

fn not_arrow(object: &Bound<'_, PyAny>, expected: &str, error: &PyErr) -> PyErr {
    let name = object.get_type().name().map(|name| name.to_string()).unwrap_or_default();
    PyTypeError::new_err(format!("expected {expected} with the Arrow PyCapsule interface, found {name}: {error}"))
}

/// An object with the Arrow PyCapsule interface as a Table or an ArrowArray. It is read once, and not copied.
#[pyfunction]
fn import_arrow<'py>(object: &Bound<'py, PyAny>) -> Result<Bound<'py, PyAny>> {
    let py = object.py();
    let (field, chunks) = chunks(object)?;
    let DataType::Struct(fields) = field.data_type() else {
        return Ok(Bound::new(py, ArrowArray { field, chunks })?.into_any());
    };
    let schema = Arc::new(Schema::new_with_metadata(fields.clone(), field.metadata().clone()));
    let batches = chunks.iter().map(|chunk| {
        let (_, columns, _) = arrow::array::AsArray::as_struct(chunk).clone().into_parts();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(chunk.len()));
        RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)
    });
    let batches = batches.collect::<std::result::Result<_, _>>()?;
    Ok(Bound::new(py, Table { schema, batches })?.into_any())
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

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ArrowArray>()?;
    module.add_class::<Table>()?;
    module.add_function(wrap_pyfunction!(import_arrow, module)?)?;
    module.add_function(wrap_pyfunction!(columns, module)?)
}
