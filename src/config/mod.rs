//! The configuration of a job.

mod fields;
mod grouping;
mod layers;
mod modality;
mod profile;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use arrow_quant_kernels::{Bits, GroupSize, Method, Scheme, Settings};
use regex::Regex;
use serde::Serialize;
use serde_json::{Map, Value};

pub use fields::{FIELDS, Field};
pub(crate) use grouping::{Boundaries, Grouping};
pub use layers::{ConfigLayers, LayeredConfig, Origin};
pub use modality::Modality;
pub(crate) use modality::modality_not_allowed;
pub use profile::DeploymentProfile;
pub use {
    fields::shown,
    layers::{SERVICE_PREFIX, environment, read, value_of},
};

use crate::{QuantError, Result};

/// Fields that say how a job runs, not what comes of it: they are not recorded with a model, and a run can be resumed
/// with others.
const OF_THE_RUN: [&str; 3] = ["num_threads", "enable_streaming", "max_memory_limit_mb"];

/// The least memory a job can be bounded to, in MB: what the program itself takes, and one part under way.
const LEAST_MEMORY_MB: u64 = 192;

/// How a model is to be quantized. A profile gives every field its value; set those that should differ.
///
/// [`ConfigLayers`] puts a configuration together from a profile, a YAML file, the environment and explicit values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiffusionQuantConfig {
    /// Where the other fields' values came from.
    pub deployment_profile: DeploymentProfile,
    /// What the model makes; `None` to find out from its files.
    pub modality: Option<Modality>,
    /// Bits of a code: 2, 4 or 8. With a target size, they are chosen for each tensor.
    pub bit_width: i64,
    /// Weights that share a scale: 32, 64, 128 or 256. With a target size, they are chosen for each tensor.
    pub group_size: i64,
    /// What a code means: `affine`, `asymmetric` or `symmetric`.
    pub scheme: String,
    /// How scales are found: `mse`, `unbiased` or `minmax`.
    pub method: String,
    /// The least cosine similarity of a quantized tensor, 0.0 to 1.0; one below is quantized again at the next width.
    pub min_accuracy: f64,
    /// The least SQNR of a quantized tensor in dB; likewise.
    pub min_sqnr_db: Option<f64>,
    /// Whether a tensor below the floor ends the job instead.
    pub fail_fast: bool,
    /// A regular expression; tensors whose names it does not match are kept as they are.
    pub tensors: Option<String>,
    /// Whether to keep the tensors that are known to be sensitive in the model's architecture.
    pub skip_sensitive_layers: bool,
    /// Names of tensors, or of modules with all their tensors, to keep.
    pub sensitive_layer_names: Vec<String>,
    /// Regular expressions; tensors whose names match one are kept.
    pub sensitive_layer_patterns: Vec<String>,
    /// Bits of single tensors: from a name, or a regular expression, to 2, 4, 8, or 16 to keep it.
    pub layer_bit_widths: BTreeMap<String, i64>,
    /// Whether a target size may give tensors different bits, and `layer_bit_widths` be set. If not, a target size
    /// chooses the best bits and group size for all tensors alike.
    pub enable_mixed_precision: bool,
    /// The most that the files of weights may take, in 10⁶ bytes.
    pub target_model_size_mb: Option<f64>,
    /// Likewise, in bits per weight.
    pub target_bpw: Option<f64>,
    /// Whether activations are quantized for each group of timesteps, and weights by the importance of their input channels
    /// over all timesteps; takes a calibration table.
    pub enable_time_aware: bool,
    /// Groups of timesteps, 1 to 100.
    pub num_time_groups: i64,
    /// Where time groups end: `optimal`, by what they lose, then fewer where they gain little; or `equal`.
    pub time_group_boundaries: String,
    /// Samples of the calibration table to use.
    pub calibration_samples: i64,
    /// Whether activations are smoothed channel by channel; takes a calibration table.
    pub enable_spatial: bool,
    /// Cores to use; 0 for all.
    pub num_threads: usize,
    /// Whether weights are read as they are needed, from files that are mapped; if not, the model is read into memory
    /// first, which suits network file systems.
    pub enable_streaming: bool,
    /// The most memory the job may take, in 10⁶ bytes.
    pub max_memory_limit_mb: Option<u64>,
}

impl Default for DiffusionQuantConfig {
    fn default() -> Self {
        Self::from_profile(DeploymentProfile::default())
    }
}

impl DiffusionQuantConfig {
    /// The configuration of a profile.
    pub fn from_profile(profile: DeploymentProfile) -> Self {
        let (bit_width, num_time_groups, group_size, min_accuracy, calibration_samples, enable_spatial) = match profile
        {
            DeploymentProfile::Edge => (2, 5, 256, 0.65, 32, false),
            DeploymentProfile::Local => (4, 10, 128, 0.85, 128, true),
            DeploymentProfile::Cloud => (8, 20, 64, 0.95, 512, true),
        };
        Self {
            deployment_profile: profile,
            modality: None,
            bit_width,
            group_size,
            scheme: Scheme::Affine.name().to_string(),
            method: Method::Mse.name().to_string(),
            min_accuracy,
            min_sqnr_db: None,
            fail_fast: false,
            tensors: None,
            skip_sensitive_layers: false,
            sensitive_layer_names: Vec::new(),
            sensitive_layer_patterns: Vec::new(),
            layer_bit_widths: BTreeMap::new(),
            enable_mixed_precision: true,
            target_model_size_mb: None,
            target_bpw: None,
            enable_time_aware: true,
            num_time_groups,
            time_group_boundaries: "optimal".to_string(),
            calibration_samples,
            enable_spatial,
            num_threads: 0,
            enable_streaming: true,
            max_memory_limit_mb: None,
        }
    }

    /// Reads a configuration: the values of the file over those of the profile it names, or of the default profile.
    ///
    /// # Errors
    /// If the file cannot be read or is no YAML, or for a key or value that is not allowed, with the nearest that is.
    pub fn from_yaml(path: impl AsRef<Path>) -> Result<Self> {
        Ok(ConfigLayers::new().file(path.as_ref()).load()?.config)
    }

    /// Writes every field, so that [`from_yaml`](Self::from_yaml) gives an equal configuration.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn to_yaml(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let text = serde_yaml::to_string(self)
            .map_err(|e| QuantError::configuration(format!("the configuration cannot be written as YAML: {e}")))?;
        fs::write(path, text).map_err(|e| QuantError::io(path, e))
    }

    /// Sets the fields that the environment has variables for.
    ///
    /// # Errors
    /// For a value that is not allowed, naming the variable, and for a variable whose name is almost that of another.
    pub fn apply_env_overrides(&mut self) -> Result<()> {
        layers::apply_variables(self, layers::environment()).map(drop)
    }

    /// Sets a field by its name, to a value as YAML or JSON would have it, null for none.
    ///
    /// # Errors
    /// Naming the field, the value and what is allowed; for a field that does not exist, the nearest name.
    pub fn set(&mut self, field: &str, value: &Value) -> Result<()> {
        fields::set(self, field, value).map_err(|message| QuantError::field(field, message))
    }

    /// A field's value by its name, as YAML or JSON would have it; `None` for a field that does not exist.
    pub fn get(&self, field: &str) -> Option<Value> {
        fields::named(field).ok().and_then(|field| fields::value_of(self, field.name))
    }

    /// Cores to use.
    pub fn threads(&self) -> usize {
        match self.num_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    /// Checks every field, and those that belong together.
    ///
    /// # Errors
    /// Naming the field, its value and what is allowed.
    pub fn validate(&self) -> Result<()> {
        for field in &FIELDS {
            fields::check(self, field.name).map_err(|message| QuantError::field(field.name, message))?;
        }
        let (field, contradiction) = if self.target_model_size_mb.is_some() && self.target_bpw.is_some() {
            ("target_bpw", "target_model_size_mb and target_bpw are both set, allowed: one of them")
        } else if !self.enable_mixed_precision && !self.layer_bit_widths.is_empty() {
            let message =
                "layer_bit_widths is set but enable_mixed_precision is false: set it to true, or leave the widths out";
            ("layer_bit_widths", message)
        } else {
            return Ok(());
        };
        Err(QuantError::field(field, contradiction))
    }

    /// What is recorded with a model: every field that has a part in what it became.
    pub(crate) fn recorded(&self) -> Result<Map<String, Value>> {
        match serde_json::to_value(self) {
            Ok(Value::Object(mut fields)) => {
                fields.retain(|name, _| !OF_THE_RUN.contains(&name.as_str()));
                Ok(fields)
            }
            Ok(_) | Err(_) => Err(QuantError::configuration("the configuration cannot be written as JSON")),
        }
    }

    /// What time groups are asked for.
    pub(crate) fn grouping(&self) -> Result<Grouping> {
        let boundaries = self.time_group_boundaries.parse()?;
        Ok(Grouping { most: usize::try_from(self.num_time_groups).unwrap_or(1), boundaries })
    }

    /// The settings of the kernels.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn settings(&self) -> Result<Settings> {
        self.validate()?;
        Ok(Settings {
            bits: Bits::try_from(self.bit_width)?,
            group_size: GroupSize::try_from(self.group_size)?,
            scheme: self.scheme.parse()?,
            method: self.method.parse()?,
        })
    }
}

/// A regular expression that a field holds.
pub(crate) fn regex(field: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| {
        let reason = error.to_string();
        let last = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
        QuantError::field(field, format!("{field} is '{pattern}', which is no regular expression: {last}"))
    })
}
