//! A configuration from several places: profile, YAML file, environment, explicit values. Later ones win.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::fields::{self, FIELDS};
use arrow_quant_formats::nearest;

use super::{DeploymentProfile, DiffusionQuantConfig};
use crate::{QuantError, Result};

/// What the names of all our variables start with.
const PREFIX: &str = "ARROW_QUANT_";

/// What those of the service start with, which are its own.
pub const SERVICE_PREFIX: &str = "ARROW_QUANT_SERVE_";

/// Where a field's value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The profile.
    Profile(DeploymentProfile),
    /// A YAML file.
    File(PathBuf),
    /// A variable of the environment.
    Variable(&'static str),
    /// The caller.
    Explicit,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Profile(profile) => write!(f, "profile {profile}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Explicit => f.write_str("explicit"),
        }
    }
}

/// A configuration, and where each field's value came from.
#[derive(Debug, Clone)]
pub struct LayeredConfig {
    /// All layers together.
    pub config: DiffusionQuantConfig,
    origins: BTreeMap<&'static str, Origin>,
}

impl LayeredConfig {
    /// Where a field's value came from; the profile, unless a layer above it set the field.
    pub fn origin(&self, field: &str) -> Origin {
        let profile = Origin::Profile(self.config.deployment_profile);
        self.origins.get(field).cloned().unwrap_or(profile)
    }

    /// A field's value as JSON.
    pub fn value(&self, field: &str) -> Value {
        fields::value_of(&self.config, field).unwrap_or_default()
    }

    /// A target given in one unit takes the place of one that a lower layer gave in the other.
    fn set(&mut self, field: &str, value: &Value, origin: Origin) -> Result<(), String> {
        let field = fields::named(field)?.name;
        fields::set(&mut self.config, field, value)?;
        let replaced = match field {
            "target_model_size_mb" => "target_bpw",
            "target_bpw" => "target_model_size_mb",
            _ => "",
        };
        if !value.is_null() && self.origins.get(replaced).is_some_and(|other| *other != origin) {
            fields::set(&mut self.config, replaced, &Value::Null)?;
            self.origins.remove(replaced);
        }
        self.origins.insert(field, origin);
        Ok(())
    }
}

/// The places that a configuration comes from: profile < YAML file < environment < explicit values.
///
/// ```
/// use arrow_quant_v2::{ConfigLayers, DeploymentProfile};
///
/// let layered = ConfigLayers::new().explicit("deployment_profile", "edge".into()).explicit("bit_width", 4.into()).load()?;
/// assert_eq!((layered.config.bit_width, layered.config.group_size), (4, 256));
/// # Ok::<(), arrow_quant_v2::QuantError>(())
/// ```
#[derive(Debug, Default)]
pub struct ConfigLayers {
    file: Option<PathBuf>,
    variables: Vec<(String, String)>,
    explicit: Map<String, Value>,
}

impl ConfigLayers {
    /// The default profile alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a YAML file.
    pub fn file(mut self, path: &Path) -> Self {
        self.file = Some(path.to_path_buf());
        self
    }

    /// With the environment.
    pub fn environment(self) -> Self {
        self.variables(environment())
    }

    /// With these variables.
    pub fn variables(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.variables.extend(variables);
        self
    }

    /// With a field's value, null for none.
    pub fn explicit(mut self, field: &str, value: Value) -> Self {
        self.explicit.insert(field.to_string(), value);
        self
    }

    /// Puts the layers together, and checks the whole.
    ///
    /// # Errors
    /// Naming the field, the file or variable, the value, what is allowed, and for unknown names the nearest one.
    pub fn load(&self) -> Result<LayeredConfig> {
        let file = self.file.as_deref().map(read).transpose()?.unwrap_or_default();
        let mut profile_only = DiffusionQuantConfig::default();
        let mut origin = None;
        if let (Some(path), Some(value)) = (&self.file, file.get("deployment_profile")) {
            fields::set(&mut profile_only, "deployment_profile", value)
                .map_err(|e| in_file(path, Some("deployment_profile"), e))?;
            origin = Some(Origin::File(path.clone()));
        }
        if let Some(value) = self.explicit.get("deployment_profile") {
            profile_only.set("deployment_profile", value)?;
            origin = Some(Origin::Explicit);
        }
        let mut layered = LayeredConfig {
            config: DiffusionQuantConfig::from_profile(profile_only.deployment_profile),
            origins: origin.map(|origin| ("deployment_profile", origin)).into_iter().collect(),
        };
        if let Some(path) = &self.file {
            for (field, value) in others(&file) {
                layered.set(field, value, Origin::File(path.clone())).map_err(|e| in_file(path, Some(field), e))?;
            }
            layered.config.validate().map_err(|e| match &e {
                QuantError::Configuration { field, .. } => in_file(path, field.as_deref(), &e),
                _ => in_file(path, None, e),
            })?;
        }
        for (field, variable, value) in overrides(&self.variables)? {
            let set = layered.set(field, &value, Origin::Variable(variable));
            set.map_err(|_| refused(variable, field, &value))?;
        }
        for (field, value) in others(&self.explicit) {
            layered.set(field, value, Origin::Explicit).map_err(|message| QuantError::field(field, message))?;
        }
        layered.config.validate()?;
        Ok(layered)
    }
}

/// Every field of a layer but the profile, which comes first.
fn others(layer: &Map<String, Value>) -> impl Iterator<Item = (&str, &Value)> {
    layer.iter().map(|(field, value)| (field.as_str(), value)).filter(|(field, _)| *field != "deployment_profile")
}

/// The variables that the process was started with.
pub fn environment() -> Vec<(String, String)> {
    // One that is not UTF-8 must not pass for one that is not set.
    let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// Sets the fields that have variables; gives their names.
pub(super) fn apply_variables(
    config: &mut DiffusionQuantConfig,
    variables: Vec<(String, String)>,
) -> Result<Vec<&'static str>> {
    let overrides = overrides(&variables)?;
    for (field, variable, value) in &overrides {
        fields::set(config, field, value).map_err(|_| refused(variable, field, value))?;
    }
    Ok(overrides.into_iter().map(|(field, _, _)| field).collect())
}

/// Fields, their variables and what those hold; variables that are empty count as not set.
fn overrides(variables: &[(String, String)]) -> Result<Vec<(&'static str, &'static str, Value)>> {
    let ours = || FIELDS.iter().filter_map(|field| Some((field.name, field.variable?)));
    let is_ours = |name: &str| name.starts_with(PREFIX) && !name.starts_with(SERVICE_PREFIX);
    let mut found = Vec::new();
    for (name, text) in variables.iter().filter(|(name, text)| is_ours(name) && !text.is_empty()) {
        match ours().find(|(_, variable)| variable == name) {
            Some((field, variable)) => found.push((field, variable, value_of(text))),
            None => refuse_unknown(name, ours().map(|(_, variable)| variable))?,
        }
    }
    Ok(found)
}

/// Names that are far from any of ours may belong to other programs of this project.
fn refuse_unknown<'a>(name: &str, ours: impl Iterator<Item = &'a str>) -> Result<()> {
    // Without the prefix, which makes all of them alike.
    let rest = name.strip_prefix(PREFIX).unwrap_or(name);
    let field = rest.to_lowercase();
    if fields::named(&field).is_ok() || field == "profile" {
        return Err(QuantError::configuration(format!(
            "there is no variable {name}: set the field in a YAML file or by its flag, and unset the variable"
        )));
    }
    let ours: Vec<&str> = ours.filter_map(|variable| variable.strip_prefix(PREFIX)).collect();
    match nearest(rest, ours) {
        Some(near) => Err(QuantError::configuration(format!(
            "there is no variable {name}; did you mean {PREFIX}{near}? unset it, or set that one"
        ))),
        None => Ok(()),
    }
}

/// What a variable's text stands for: a number, a truth value, or text.
pub fn value_of(text: &str) -> Value {
    let text = text.trim();
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => serde_json::from_str(text).ok().filter(Value::is_number).unwrap_or_else(|| text.into()),
    }
}

fn refused(variable: &str, field: &str, value: &Value) -> QuantError {
    let allowed = fields::named(field).map_or("", |field| field.allowed);
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    QuantError::field(field, format!("{variable} is '{value}', allowed: {allowed}"))
}

fn in_file(path: &Path, field: Option<&str>, message: impl fmt::Display) -> QuantError {
    let message = format!("{}: {message}", path.display());
    QuantError::Configuration { field: field.map(str::to_string), path: Some(path.to_path_buf()), message }
}

/// The fields of a YAML file.
pub fn read(path: &Path) -> Result<Map<String, Value>> {
    // A configuration that is not there is one that is wrong, not a failing disk.
    let missing = |e| QuantError::configuration(QuantError::io(path, e).to_string()).at(path);
    let text = fs::read_to_string(path).map_err(missing)?;
    let yaml = serde_yaml::from_str(&text).map_err(|e| in_file(path, None, format_args!("no YAML: {e}")))?;
    match json(yaml).map_err(|e| in_file(path, None, e))? {
        Value::Object(fields) => Ok(fields),
        Value::Null => Ok(Map::new()),
        _ => Err(in_file(path, None, "expected fields and their values, one `field: value` a line")),
    }
}

/// YAML as JSON. What JSON has no word for becomes text, which the field then refuses.
fn json(yaml: serde_yaml::Value) -> Result<Value, String> {
    use serde_yaml::Value as Yaml;

    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => value.into(),
        Yaml::String(text) => text.into(),
        Yaml::Number(number) => serde_json::to_value(&number)
            .ok()
            .filter(|value| !value.is_null())
            .unwrap_or_else(|| number.to_string().into()),
        Yaml::Sequence(items) => items.into_iter().map(json).collect::<Result<_, _>>()?,
        Yaml::Mapping(entries) => {
            let entry = |(name, value)| match name {
                Yaml::String(name) => Ok((name, json(value)?)),
                other => Err(format!("a name is {other:?}, expected text: put it in quotes")),
            };
            Value::Object(entries.into_iter().map(entry).collect::<Result<_, _>>()?)
        }
        Yaml::Tagged(tagged) => return Err(format!("the tag {} is not understood, leave it out", tagged.tag)),
    })
}
