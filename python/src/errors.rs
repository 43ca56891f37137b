//! The engine's errors as the package's exceptions.

use std::path::Path;

use arrow::error::ArrowError;
use arrow_quant_v2::{About, Kind, Literals, QuantError, Words};
use datafusion::error::DataFusionError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Why a call failed: the engine said so, or Python did.
#[derive(Debug)]
pub enum Failure {
    /// The engine's error.
    Engine(Box<QuantError>),
    /// An exception.
    Python(PyErr),
}

/// The result of a call.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl From<QuantError> for Failure {
    fn from(error: QuantError) -> Self {
        Self::Engine(Box::new(error))
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        Self::from(QuantError::from(error))
    }
}

impl From<ArrowError> for Failure {
    fn from(error: ArrowError) -> Self {
        Self::from(QuantError::from(error))
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Engine(error) => Python::attach(|py| exception(py, &error)),
            Failure::Python(error) => error,
        }
    }
}

/// A `ConfigurationError` about an argument.
pub(crate) fn argument(field: &str, message: impl Into<String>) -> Failure {
    let error = QuantError::Configuration { field: Some(field.to_string()), path: None, message: message.into() };
    Failure::Engine(Box::new(error))
}

/// The exception that an error is in Python.
fn exception(py: Python<'_>, error: &QuantError) -> PyErr {
    let About { kind, tensor, field, path } = error.about();
    let build = || {
        let about = PyDict::new(py);
        about.set_item("tensor", tensor)?;
        about.set_item("field", field)?;
        about.set_item("path", path.map(Path::to_string_lossy))?;
        let class = py.import("arrow_quant_v2.errors")?.getattr(class_of(kind))?;
        class.call((error.worded(&Keywords).to_string(),), Some(&about)).map(PyErr::from_value)
    };
    build().unwrap_or_else(|error| error)
}

/// The words of Python: settings are keywords of a call.
struct Keywords;

impl Words for Keywords {
    fn setting(&self, name: &str) -> String {
        name.to_string()
    }

    fn advised(&self, name: &str) -> String {
        format!("`{name}=`")
    }

    fn switched(&self, name: &str, value: bool) -> String {
        format!("`{name}={}`", if value { "True" } else { "False" })
    }

    fn replacing(&self) -> Option<&'static str> {
        Some("`overwrite=True`")
    }

    fn literals(&self) -> Literals {
        Literals::Python
    }

    fn list_of_tensors(&self) -> &'static str {
        "`SELECT tensor FROM tensors('MODEL')`"
    }
}

/// The exception of a kind of errors.
fn class_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Configuration => "ConfigurationError",
        Kind::OutputExists => "OutputExistsError",
        Kind::ModelNotFound => "ModelNotFoundError",
        Kind::Metadata => "MetadataError",
        Kind::ShapeMismatch => "ShapeMismatchError",
        Kind::Validation => "ValidationError",
        Kind::Quantization => "QuantizationError",
    }
}
