//! The configuration: the engine's, with a property for every field.

use std::path::PathBuf;

use arrow_quant_v2::config::Field;
use arrow_quant_v2::{ConfigLayers, DiffusionQuantConfig, FIELDS, Literals};
use pyo3::basic::CompareOp;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyMappingProxy, PyTuple};
use serde_json::Value;

use crate::errors::{Result, argument};
use crate::values::{object_of, value_of};

/// How a model is to be quantized.
///
/// A profile gives every field its value ("local", unless deployment_profile says otherwise); the fields given differ.
/// A wrong name, type or value raises ConfigurationError, which names the field and what is allowed, at once.
///
/// Example:
///     >>> from arrow_quant_v2 import DiffusionQuantConfig
///     >>> config = DiffusionQuantConfig(bit_width=2, group_size=64)
///     >>> config.num_time_groups
///     10
#[pyclass(name = "DiffusionQuantConfig", module = "arrow_quant_v2")]
pub struct Config {
    /// The engine's.
    pub inner: DiffusionQuantConfig,
}

impl Config {
    fn get<'py>(&self, py: Python<'py>, field: &Field<DiffusionQuantConfig>) -> PyResult<Bound<'py, PyAny>> {
        let value = field.get(&self.inner);
        let object = object_of(py, &value)?;
        // What is read is a copy: it must not look as if it could be changed.
        match value {
            Value::Array(_) => Ok(PyTuple::new(py, object.try_iter()?.collect::<PyResult<Vec<_>>>()?)?.into_any()),
            Value::Object(_) => Ok(PyMappingProxy::new(py, object.cast()?).into_any()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(object),
        }
    }

    fn set(slf: &Bound<'_, Self>, field: &Field<DiffusionQuantConfig>, value: &Bound<'_, PyAny>) -> Result<()> {
        // Before it is borrowed, for to read a value may run any code of Python.
        let value = checked(field.name, value)?;
        Ok(slf.try_borrow_mut().map_err(PyErr::from)?.inner.set(field.name, &value)?)
    }

    /// The arguments that make an equal configuration: the profile, and the fields whose values follow neither from it nor
    /// from the arguments before them.
    fn arguments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let mut made = DiffusionQuantConfig::from_profile(self.inner.deployment_profile);
        let arguments = PyDict::new(py);
        for field in FIELDS {
            let value = field.get(&self.inner);
            if field.name == "deployment_profile" || value != field.get(&made) {
                arguments.set_item(field.name, object_of(py, &value)?)?;
                // A value that the field does not allow is shown as it is.
                let _ = field.set(&mut made, &value);
            }
        }
        Ok(arguments)
    }
}

/// A value for a field; what no field can hold is refused as a wrong value of this one.
pub(crate) fn checked(field: &str, value: &Bound<'_, PyAny>) -> Result<Value> {
    match value_of(value)? {
        Some(value) => Ok(value),
        None => {
            let Some(known) = FIELDS.iter().find(|known| known.name == field) else { return Ok(Value::Null) };
            // What contains itself without end cannot be shown.
            let shown = value.repr().or_else(|_| value.get_type().name())?;
            let allowed = known.allowed.spelled(Literals::Python);
            Err(argument(field, format!("{field} is {}, allowed: {allowed}", shown.to_string_lossy())))
        }
    }
}

fn path_of(path: &Bound<'_, PyAny>) -> Result<PathBuf> {
    path.extract().map_err(|_| argument("path", format!("path is {path}, allowed: a path, as str or os.PathLike")))
}

#[pymethods]
impl Config {
    #[new]
    #[pyo3(signature = (**fields))]
    fn new(fields: Option<&Bound<'_, PyDict>>) -> Result<Self> {
        let mut layers = ConfigLayers::new();
        for (name, value) in fields.into_iter().flatten() {
            let name: String = name.extract()?;
            let value = checked(&name, &value)?;
            layers = layers.explicit(&name, value);
        }
        Ok(Self { inner: layers.load()?.config })
    }

    /// The configuration of a profile: "edge", "local" or "cloud".
    ///
    /// Raises:
    ///     ConfigurationError: for another name.
    ///
    /// Example:
    ///     >>> from arrow_quant_v2 import DiffusionQuantConfig
    ///     >>> DiffusionQuantConfig.from_profile("edge").bit_width
    ///     2
    #[staticmethod]
    fn from_profile(profile: &Bound<'_, PyAny>) -> Result<Self> {
        let layers = ConfigLayers::new().explicit("deployment_profile", checked("deployment_profile", profile)?);
        Ok(Self { inner: layers.load()?.config })
    }

    /// Reads a configuration: the values of the file over those of the profile it names, or of "local".
    ///
    /// Raises:
    ///     ConfigurationError: if the file is not there or no YAML, or for a key or value that is not allowed.
    #[staticmethod]
    fn from_yaml(path: &Bound<'_, PyAny>) -> Result<Self> {
        Ok(Self { inner: DiffusionQuantConfig::from_yaml(path_of(path)?)? })
    }

    /// Writes every field, so that from_yaml gives an equal configuration.
    ///
    /// Raises:
    ///     QuantizationError: if the file cannot be written.
    fn to_yaml(&self, path: &Bound<'_, PyAny>) -> Result<()> {
        Ok(self.inner.to_yaml(path_of(path)?)?)
    }

    /// Sets the fields that the environment has variables for, such as ARROW_QUANT_BIT_WIDTH.
    ///
    /// Raises:
    ///     ConfigurationError: for a value that is not allowed, naming the variable.
    fn apply_env_overrides(&mut self) -> Result<()> {
        let mut changed = self.inner.clone();
        changed.apply_env_overrides()?;
        self.inner = changed;
        Ok(())
    }

    /// Checks every field, and those that belong together.
    ///
    /// Raises:
    ///     ConfigurationError: naming the field, its value and what is allowed.
    fn validate(&self) -> Result<()> {
        Ok(self.inner.validate()?)
    }

    fn __richcmp__<'py>(&self, other: &Bound<'py, PyAny>, op: CompareOp, py: Python<'py>) -> PyResult<Py<PyAny>> {
        let equal = match other.cast::<Self>() {
            Ok(other) => Some(other.try_borrow()?.inner == self.inner),
            Err(_) => None,
        };
        Ok(match (op, equal) {
            (CompareOp::Eq, Some(equal)) => equal.into_pyobject(py)?.to_owned().into_any().unbind(),
            (CompareOp::Ne, Some(equal)) => (!equal).into_pyobject(py)?.to_owned().into_any().unbind(),
            _ => py.NotImplemented(),
        })
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let arguments = self.arguments(py)?;
        let shown = arguments.iter().map(|(name, value)| Ok(format!("{name}={}", value.repr()?)));
        Ok(format!("DiffusionQuantConfig({})", shown.collect::<PyResult<Vec<_>>>()?.join(", ")))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let class = py.get_type::<Self>();
        let partial = py.import("functools")?.getattr("partial")?;
        Ok((partial.call((class,), Some(&self.arguments(py)?))?, PyTuple::empty(py)))
    }
}

/// A property of a field: its value is read as YAML and JSON have it, and checked when it is set.
fn property<'py>(py: Python<'py>, field: &'static Field<DiffusionQuantConfig>) -> PyResult<Bound<'py, PyAny>> {
    let get = PyCFunction::new_closure(py, None, None, move |arguments, _| -> PyResult<Py<PyAny>> {
        let config = arguments.get_item(0)?;
        let config = config.cast::<Config>()?.try_borrow()?;
        Ok(config.get(arguments.py(), field)?.unbind())
    })?;
    let set = PyCFunction::new_closure(py, None, None, move |arguments, _| -> PyResult<()> {
        let (config, value) = (arguments.get_item(0)?, arguments.get_item(1)?);
        Ok(Config::set(config.cast::<Config>()?, field, &value)?)
    })?;
    py.import("builtins")?.getattr("property")?.call1((get, set, py.None(), field.docstring()))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("FIELDS", PyTuple::new(py, FIELDS.iter().map(|field| field.name))?)?;
    module.add_class::<Config>()?;
    let class = py.get_type::<Config>();
    FIELDS.iter().try_for_each(|field| class.setattr(field.name, property(py, field)?))
}
