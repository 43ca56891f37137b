//! The configuration: the engine's, with a property for every field.

use std::path::PathBuf;

use arrow_quant_v2::{ConfigLayers, DiffusionQuantConfig, FIELDS};
use pyo3::basic::CompareOp;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMappingProxy, PyTuple};
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
    fn get<'py>(&self, py: Python<'py>, field: &str) -> PyResult<Bound<'py, PyAny>> {
        let value = self.inner.get(field).unwrap_or_default();
        let object = object_of(py, &value)?;
        // What is read is a copy: it must not look as if it could be changed.
        match value {
            Value::Array(_) => Ok(PyTuple::new(py, object.try_iter()?.collect::<PyResult<Vec<_>>>()?)?.into_any()),
            Value::Object(_) => Ok(PyMappingProxy::new(py, object.cast()?).into_any()),
            _ => Ok(object),
        }
    }

    fn set(slf: &Bound<'_, Self>, field: &str, value: &Bound<'_, PyAny>) -> Result<()> {
        // Before it is borrowed, for to read a value may run any code of Python.
        let value = checked(field, value)?;
        Ok(slf.try_borrow_mut().map_err(PyErr::from)?.inner.set(field, &value)?)
    }

    /// The fields whose values are not the profile's.
    fn differing(&self) -> impl Iterator<Item = &'static str> {
        let profile = DiffusionQuantConfig::from_profile(self.inner.deployment_profile);
        let names = FIELDS.iter().map(|field| field.name);
        names.filter(move |name| self.inner.get(name) != profile.get(name)).collect::<Vec<_>>().into_iter()
    }

    /// The arguments that make an equal configuration.
    fn arguments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let arguments = PyDict::new(py);
        arguments.set_item("deployment_profile", self.get(py, "deployment_profile")?)?;
        for field in self.differing() {
            let value = self.inner.get(field).unwrap_or_default();
            arguments.set_item(field, object_of(py, &value)?)?;
        }
        Ok(arguments)
    }
}

/// A value for a field; what no field can hold is refused as a wrong value of this one.
pub fn checked(field: &str, value: &Bound<'_, PyAny>) -> Result<Value> {
    match value_of(value)? {
        Some(value) => Ok(value),
        None => {
            let Some(known) = FIELDS.iter().find(|known| known.name == field) else { return Ok(Value::Null) };
            // What contains itself without end cannot be shown.
            let shown = value.repr().or_else(|_| value.get_type().name())?;
            Err(argument(field, format!("{field} is {}, allowed: {}", shown.to_string_lossy(), known.allowed)))
        }
    }
}

fn path_of(path: &Bound<'_, PyAny>) -> Result<PathBuf> {
    path.extract().map_err(|_| argument("path", format!("path is {path}, allowed: a path, as str or os.PathLike")))
}

/// The class' methods, with a getter and a setter for each field.
macro_rules! config {
    ($($(#[doc = $doc:literal])+ $field:ident, $setter:ident;)+) => {
        #[pymethods]
        impl Config {
            $(
                $(#[doc = $doc])+
                #[getter]
                fn $field<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                    self.get(py, stringify!($field))
                }

                #[setter($field)]
                fn $setter(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> Result<()> {
                    Self::set(slf, stringify!($field), value)
                }
            )+

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
    };
}

config! {
    /// Where the other fields' values came from: "edge", "local" or "cloud".
    deployment_profile, set_deployment_profile;
    /// What the model makes: "text", "code", "image" or "audio"; None to find out from its files.
    modality, set_modality;
    /// Bits of a code: 2, 4 or 8. With a target size, they are chosen for each tensor.
    bit_width, set_bit_width;
    /// Weights that share a scale: 32, 64, 128 or 256. With a target size, they are chosen for each tensor.
    group_size, set_group_size;
    /// What a code means: "affine", "asymmetric" or "symmetric".
    scheme, set_scheme;
    /// How scales are found: "mse", "unbiased" or "minmax".
    method, set_method;
    /// The least cosine similarity of a quantized tensor, 0.0 to 1.0; one below is quantized again at the next width.
    min_accuracy, set_min_accuracy;
    /// The least SQNR of a quantized tensor in dB; likewise. None for no floor.
    min_sqnr_db, set_min_sqnr_db;
    /// Whether a tensor below the floor ends the job instead.
    fail_fast, set_fail_fast;
    /// A regular expression; tensors whose names it does not match are kept as they are. None for all.
    tensors, set_tensors;
    /// Whether to keep the tensors that are known to be sensitive in the model's architecture.
    skip_sensitive_layers, set_skip_sensitive_layers;
    /// Names of tensors, or of modules with all their tensors, to keep.
    sensitive_layer_names, set_sensitive_layer_names;
    /// Regular expressions; tensors whose names match one are kept.
    sensitive_layer_patterns, set_sensitive_layer_patterns;
    /// Bits of single tensors: from a name, or a regular expression, to 2, 4, 8, or 16 to keep it.
    layer_bit_widths, set_layer_bit_widths;
    /// Whether a target size may give tensors different bits, and layer_bit_widths be set.
    enable_mixed_precision, set_enable_mixed_precision;
    /// The most that the files of weights may take, in 10⁶ bytes. None for no target.
    target_model_size_mb, set_target_model_size_mb;
    /// Likewise, in bits per weight.
    target_bpw, set_target_bpw;
    /// Whether activations are quantized for each group of timesteps, and weights by the importance of their input channels;
    /// takes a calibration table.
    enable_time_aware, set_enable_time_aware;
    /// Groups of timesteps at most, 1 to 100.
    num_time_groups, set_num_time_groups;
    /// Where groups of timesteps end: "optimal", by what they lose, or "equal", after as many timesteps each.
    time_group_boundaries, set_time_group_boundaries;
    /// Samples of the calibration table to use.
    calibration_samples, set_calibration_samples;
    /// Whether activations are smoothed channel by channel; takes a calibration table.
    enable_spatial, set_enable_spatial;
    /// Cores to use; 0 for all.
    num_threads, set_num_threads;
    /// Whether weights are read as they are needed, from files that are mapped; if not, the model is read into memory first.
    enable_streaming, set_enable_streaming;
    /// The most memory the job may take, in 10⁶ bytes. None for no limit.
    max_memory_limit_mb, set_max_memory_limit_mb;
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("FIELDS", PyTuple::new(module.py(), FIELDS.map(|field| field.name))?)?;
    module.add_class::<Config>()
}
