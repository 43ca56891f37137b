//! Arrow data of other libraries, taken over by the Arrow C data interface.

use std::ffi::CStr;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, make_array};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, from_ffi_and_data_type};
use arrow::ffi_stream::FFI_ArrowArrayStream;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::errors::{Failure, Result, argument};
use crate::reaper::released_elsewhere;

const ARRAY: &CStr = c"arrow_array";
const SCHEMA: &CStr = c"arrow_schema";
const STREAM: &CStr = c"arrow_array_stream";

/// The pieces of an object with the Arrow PyCapsule interface, an array or a table; a table's are structs. A stream is read
/// to its end. Nothing is copied.
///
/// # Errors
/// If it is no such object, by the argument and the name that it has, or reading it fails.
pub(crate) fn chunks(field: &str, name: &str, object: &Bound<'_, PyAny>) -> Result<(FieldRef, Vec<ArrayRef>)> {
    let py = object.py();
    if object.hasattr("__arrow_c_stream__")? {
        let capsule = object.call_method0("__arrow_c_stream__")?;
        let pointer = capsule.cast::<PyCapsule>().map_err(PyErr::from)?.pointer_checked(Some(STREAM))?;
        // SAFETY: a capsule of this name holds a valid stream, by the interface's definition; it is moved out, which leaves
        // one that is released, so that the capsule's destructor does nothing.
        let stream = unsafe { FFI_ArrowArrayStream::from_raw(pointer.cast().as_ptr()) };
        // Reading may mean to wait for threads that want Python's lock.
        return Ok(py.detach(|| read(stream))?);
    }
    if object.hasattr("__arrow_c_array__")? {
        let (schema, array): (Bound<'_, PyCapsule>, Bound<'_, PyCapsule>) =
            object.call_method0("__arrow_c_array__")?.extract()?;
        let schema = schema.pointer_checked(Some(SCHEMA))?.cast::<FFI_ArrowSchema>();
        let array = array.pointer_checked(Some(ARRAY))?.cast::<FFI_ArrowArray>();
        // SAFETY: capsules of these names hold a schema, which lives as long as its capsule, and an array of it, which is
        // moved out as above; each is valid unless it was released, which is asked first.
        let array = unsafe { FFI_ArrowArray::from_raw(array.as_ptr()) };
        if array.is_released() {
            return Err(consumed().into());
        }
        // SAFETY: as above. An array that has not been released has a schema that has not either.
        let (field, data) = unsafe {
            let schema = schema.as_ref();
            (Field::try_from(schema)?, from_ffi(released_elsewhere(array), schema)?)
        };
        return Ok((Arc::new(field), vec![make_array(settled(data))]));
    }
    let found = object.get_type().name()?;
    let expected =
        "allowed: an object with the Arrow PyCapsule interface, such as a pyarrow.Table or a polars.DataFrame";
    Err(argument(field, format!("{name} is of the type {found}, {expected}")))
}

/// The batches of an object that is an Arrow table.
///
/// # Errors
/// If it is none, by the argument and the name that it has, or reading it fails.
pub(crate) fn batches(field: &str, name: &str, object: &Bound<'_, PyAny>) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let (found, chunks) = chunks(field, name, object)?;
    table(&found, &chunks)?
        .ok_or_else(|| argument(field, format!("{name} is an Arrow array of {}, allowed: a table", found.data_type())))
}

/// Structs as the batches of a table; `None` if they are no structs.
pub(crate) fn table(field: &Field, chunks: &[ArrayRef]) -> Result<Option<(SchemaRef, Vec<RecordBatch>)>> {
    let DataType::Struct(fields) = field.data_type() else { return Ok(None) };
    let schema = Arc::new(Schema::new_with_metadata(fields.clone(), field.metadata().clone()));
    let batches = chunks.iter().map(|chunk| {
        let options = RecordBatchOptions::new().with_row_count(Some(chunk.len()));
        let columns = chunk.as_struct().columns().to_vec();
        RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options).map_err(Failure::from)
    });
    let batches = batches.collect::<Result<_>>()?;
    Ok(Some((schema, batches)))
}

fn read(mut stream: FFI_ArrowArrayStream) -> std::result::Result<(FieldRef, Vec<ArrayRef>), ArrowError> {
    let (Some(get_schema), Some(get_next)) = (stream.get_schema, stream.get_next) else {
        return Err(consumed());
    };
    let mut schema = FFI_ArrowSchema::empty();
    // SAFETY: the stream is valid and not released, and the schema is there to be written.
    let code = unsafe { get_schema(&mut stream, &mut schema) };
    if code != 0 {
        return Err(last_error(&mut stream, code));
    }
    let field = Arc::new(Field::try_from(&schema)?);
    let mut chunks = Vec::new();
    loop {
        let mut array = FFI_ArrowArray::empty();
        // SAFETY: as above.
        let code = unsafe { get_next(&mut stream, &mut array) };
        if code != 0 {
            return Err(last_error(&mut stream, code));
        }
        if array.is_released() {
            return Ok((field, chunks));
        }
        // SAFETY: the array is valid, and of the stream's type, by the interface's definition.
        let data = unsafe { from_ffi_and_data_type(released_elsewhere(array), field.data_type().clone())? };
        chunks.push(make_array(settled(data)));
    }
}

fn consumed() -> ArrowError {
    ArrowError::CDataInterface("the data were read before: they can be read only once".to_string())
}

fn last_error(stream: &mut FFI_ArrowArrayStream, code: i32) -> ArrowError {
    // SAFETY: the stream is valid; the message, if there is one, is a C string that lives until the next call.
    let message = stream.get_last_error.and_then(|get_last_error| unsafe {
        let message = get_last_error(stream);
        (!message.is_null()).then(|| CStr::from_ptr(message).to_string_lossy().into_owned())
    });
    ArrowError::CDataInterface(message.unwrap_or_else(|| format!("the stream cannot be read: error {code}")))
}

/// The same data, in which no struct, and no list of one size, has an offset: what is in it has. `make_array` slices what is
/// in them, and where that is a struct, its fields twice.
fn settled(data: ArrayData) -> ArrayData {
    let times = match data.data_type() {
        DataType::Struct(_) => Some(1),
        DataType::FixedSizeList(_, size) => Some(*size as usize),
        _ => None,
    };
    let (offset, len) = (data.offset(), data.len());
    let own = |child: &ArrayData| times.map_or_else(|| child.clone(), |n| sliced(child, offset * n, len * n));
    let children = data.child_data().iter().map(|child| settled(own(child))).collect();
    let nulls = data.nulls().cloned();
    let builder = data.into_builder().nulls(nulls).child_data(children);
    let builder = if times.is_some() { builder.offset(0) } else { builder };
    // SAFETY: the data were valid. A struct's fields, and the values of lists of one size, are the same rows as before, from
    // their own offsets on, and validity is a bitmap with an offset of its own; of other types nothing has changed but
    // what is within them.
    unsafe { builder.build_unchecked() }
}

/// Some rows of an array, by its offset alone.
fn sliced(data: &ArrayData, offset: usize, len: usize) -> ArrayData {
    if !matches!(data.data_type(), DataType::Struct(_)) {
        return data.slice(offset, len);
    }
    let nulls = data.nulls().map(|nulls| nulls.slice(offset, len));
    let builder = data.clone().into_builder().nulls(nulls).offset(data.offset() + offset).len(len);
    // SAFETY: the data were valid, and the rows are some of theirs: `offset + len` is at most the struct's length, which
    // its parent's offset and length ask of it, and its fields are not touched.
    unsafe { builder.build_unchecked() }
}
