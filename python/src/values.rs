//! Values as YAML and JSON have them, to Python and back.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PySequence, PyString};
use serde::Serialize;
use serde_json::{Map, Number, Value};

/// Lists within lists, or mappings, that a value has at most; what a report of tensors needs, and more than any field.
const DEPTH: usize = 8;

/// A Python object as a value; `None` for one that no configuration can hold.
pub(crate) fn value_of(object: &Bound<'_, PyAny>) -> PyResult<Option<Value>> {
    value_within(object, DEPTH)
}

fn value_within(object: &Bound<'_, PyAny>, depth: usize) -> PyResult<Option<Value>> {
    if object.is_none() {
        return Ok(Some(Value::Null));
    }
    if let Ok(truth) = object.cast::<PyBool>() {
        return Ok(Some(truth.is_true().into()));
    }
    if let Ok(text) = object.cast::<PyString>() {
        // Lone surrogates have no place in UTF-8.
        return Ok(text.to_str().ok().map(Value::from));
    }
    if object.is_instance_of::<PyInt>() || !object.is_instance_of::<PyFloat>() && object.hasattr("__index__")? {
        // One beyond 64 bits is a number still, and refused as such by every field.
        let whole = object.extract::<i64>().map(Number::from).ok();
        return Ok(whole.or_else(|| Number::from_f64(object.extract::<f64>().ok()?)).map(Value::Number));
    }
    if let Ok(float) = object.cast::<PyFloat>() {
        return Ok(Number::from_f64(float.value()).map(Value::Number));
    }
    if depth == 0 {
        return Ok(None);
    }
    if let Ok(mapping) = object.cast::<PyMapping>() {
        let mut entries = Map::new();
        for item in mapping.items()? {
            let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            let (Ok(name), Some(value)) = (name.extract::<String>(), value_within(&value, depth - 1)?) else {
                return Ok(None);
            };
            entries.insert(name, value);
        }
        return Ok(Some(Value::Object(entries)));
    }
    if let Ok(sequence) = object.cast::<PySequence>() {
        let mut items = Vec::new();
        for item in sequence.try_iter()? {
            let Some(value) = value_within(&item?, depth - 1)? else { return Ok(None) };
            items.push(value);
        }
        return Ok(Some(Value::Array(items)));
    }
    // Such as NumPy's numbers.
    if object.is_instance(&object.py().import("numbers")?.getattr("Real")?)? {
        return Ok(object.extract::<f64>().ok().and_then(Number::from_f64).map(Value::Number));
    }
    Ok(None)
}

/// A value as a Python object, of lists and dicts.
pub(crate) fn object_of<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Null => Ok(py.None().into_bound(py)),
        Value::Bool(truth) => truth.into_bound_py_any(py),
        Value::String(text) => text.into_bound_py_any(py),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => whole.into_bound_py_any(py),
            (None, Some(whole)) => whole.into_bound_py_any(py),
            (None, None) => number.as_f64().into_bound_py_any(py),
        },
        Value::Array(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(object_of(py, item)?)?;
            }
            Ok(list.into_any())
        }
        Value::Object(entries) => {
            let dict = PyDict::new(py);
            for (name, value) in entries {
                dict.set_item(name, object_of(py, value)?)?;
            }
            Ok(dict.into_any())
        }
    }
}

/// What can be written as JSON, as a Python object of lists and dicts.
pub(crate) fn to_object<'py>(py: Python<'py>, value: &impl Serialize) -> PyResult<Bound<'py, PyAny>> {
    let value = serde_json::to_value(value).map_err(|e| pyo3::exceptions::PyValueError::new_err(e.to_string()))?;
    object_of(py, &value)
}
