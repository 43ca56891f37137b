//! The fields of a configuration by their names: what each may hold, and how a value from outside becomes one.

use std::collections::BTreeMap;
use std::fmt::Display;

use arrow_quant_kernels::{Bits, GroupSize, Method, Scheme};
use serde_json::Value;

use arrow_quant_formats::nearest;

use super::{Boundaries, DiffusionQuantConfig, LEAST_MEMORY_MB, regex};

/// A field.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name, in Rust, YAML, Python and, with dashes, on the command line.
    pub name: &'static str,
    /// The environment's variable for it.
    pub variable: Option<&'static str>,
    /// What it may hold.
    pub allowed: &'static str,
}

const fn field(name: &'static str, allowed: &'static str) -> Field {
    Field { name, variable: None, allowed }
}

const fn variable(name: &'static str, variable: &'static str, allowed: &'static str) -> Field {
    Field { name, variable: Some(variable), allowed }
}

const BOOLEAN: &str = "true or false";

/// Every field, in the order they are shown.
pub const FIELDS: [Field; 25] = [
    field("deployment_profile", "edge, local or cloud"),
    field("modality", "text, code, image or audio, or null to find out"),
    variable("bit_width", "ARROW_QUANT_BIT_WIDTH", "2, 4 or 8"),
    variable("group_size", "ARROW_QUANT_GROUP_SIZE", "32, 64, 128 or 256"),
    field("scheme", "affine, asymmetric or symmetric"),
    field("method", "minmax, mse or unbiased"),
    variable("min_accuracy", "ARROW_QUANT_MIN_ACCURACY", "0.0 to 1.0"),
    field("min_sqnr_db", "a number of dB, or null for no floor"),
    variable("fail_fast", "ARROW_QUANT_FAIL_FAST", BOOLEAN),
    field("tensors", "a regular expression, or null for all"),
    field("skip_sensitive_layers", BOOLEAN),
    field("sensitive_layer_names", "a list of names of tensors or modules"),
    field("sensitive_layer_patterns", "a list of regular expressions"),
    field("layer_bit_widths", "a mapping from a name or regular expression to 2, 4, 8 or 16"),
    field("enable_mixed_precision", BOOLEAN),
    field("target_model_size_mb", "a number above 0, or null for no target"),
    field("target_bpw", "a number above 0 and up to 64, or null for no target"),
    field("enable_time_aware", BOOLEAN),
    variable("num_time_groups", "ARROW_QUANT_NUM_TIME_GROUPS", "1 to 100"),
    field("time_group_boundaries", "optimal or equal"),
    variable("calibration_samples", "ARROW_QUANT_CALIBRATION_SAMPLES", "1 or more"),
    field("enable_spatial", BOOLEAN),
    variable("num_threads", "ARROW_QUANT_NUM_THREADS", "1 to 1024, or 0 for all cores"),
    field("enable_streaming", BOOLEAN),
    variable("max_memory_limit_mb", "ARROW_QUANT_MAX_MEMORY_MB", "192 or more, or null for no limit"),
];

/// Fields whose flag has another name.
const FLAGS: [(&str, &str); 5] = [
    ("bits", "bit_width"),
    ("profile", "deployment_profile"),
    ("threads", "num_threads"),
    ("target_size", "target_model_size_mb"),
    ("max_memory_mb", "max_memory_limit_mb"),
];

/// The most cores that can be asked for.
const MAX_THREADS: usize = 1024;

/// The field of a name, or else the nearest name.
pub(super) fn named(name: &str) -> Result<&'static Field, String> {
    FIELDS.iter().find(|field| field.name == name).ok_or_else(|| {
        let names = || FIELDS.iter().map(|field| field.name);
        let flag = FLAGS.iter().find(|(flag, _)| *flag == name.replace('-', "_")).map(|(_, field)| *field);
        match flag.or_else(|| nearest(name, names())) {
            Some(near) => format!("there is no field '{name}'; did you mean {near}?"),
            None => format!("there is no field '{name}', allowed: {}", names().collect::<Vec<_>>().join(", ")),
        }
    })
}

/// `is x, allowed: ...`
pub(super) fn refusal(name: &str, value: impl Display) -> String {
    let allowed = named(name).map_or("", |field| field.allowed);
    format!("{name} is {value}, allowed: {allowed}")
}

/// Sets a field to a value that is allowed, or says why not; then nothing is changed.
pub(super) fn set(config: &mut DiffusionQuantConfig, name: &str, value: &Value) -> Result<(), String> {
    let name = named(name)?.name;
    let mut changed = config.clone();
    assign(&mut changed, name, value).ok_or_else(|| refusal(name, shown(value)))?;
    check(&changed, name)?;
    *config = changed;
    Ok(())
}

/// A value as a message shows it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("'{text}'"),
        other => other.to_string(),
    }
}

/// `None` if the value is not of the field's type.
fn assign(config: &mut DiffusionQuantConfig, name: &str, value: &Value) -> Option<()> {
    let text = || value.as_str().map(str::to_string);
    match name {
        "deployment_profile" => config.deployment_profile = value.as_str()?.parse().ok()?,
        "modality" => config.modality = optional(value, |v| v.as_str()?.parse().ok())?,
        "bit_width" => config.bit_width = value.as_i64()?,
        "group_size" => config.group_size = value.as_i64()?,
        "scheme" => config.scheme = text()?,
        "method" => config.method = text()?,
        "min_accuracy" => config.min_accuracy = value.as_f64()?,
        "min_sqnr_db" => config.min_sqnr_db = optional(value, Value::as_f64)?,
        "fail_fast" => config.fail_fast = value.as_bool()?,
        "tensors" => config.tensors = optional(value, |v| v.as_str().map(str::to_string))?,
        "skip_sensitive_layers" => config.skip_sensitive_layers = value.as_bool()?,
        "sensitive_layer_names" => config.sensitive_layer_names = texts(value)?,
        "sensitive_layer_patterns" => config.sensitive_layer_patterns = texts(value)?,
        "layer_bit_widths" => config.layer_bit_widths = widths(value)?,
        "enable_mixed_precision" => config.enable_mixed_precision = value.as_bool()?,
        "target_model_size_mb" => config.target_model_size_mb = optional(value, Value::as_f64)?,
        "target_bpw" => config.target_bpw = optional(value, Value::as_f64)?,
        "enable_time_aware" => config.enable_time_aware = value.as_bool()?,
        "num_time_groups" => config.num_time_groups = value.as_i64()?,
        "time_group_boundaries" => config.time_group_boundaries = text()?,
        "calibration_samples" => config.calibration_samples = value.as_i64()?,
        "enable_spatial" => config.enable_spatial = value.as_bool()?,
        "num_threads" => config.num_threads = usize::try_from(value.as_u64()?).ok()?,
        "enable_streaming" => config.enable_streaming = value.as_bool()?,
        "max_memory_limit_mb" => config.max_memory_limit_mb = optional(value, Value::as_u64)?,
        _ => return None,
    }
    Some(())
}

/// Null is none; anything else must convert.
fn optional<T>(value: &Value, convert: impl Fn(&Value) -> Option<T>) -> Option<Option<T>> {
    if value.is_null() { Some(None) } else { convert(value).map(Some) }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_string)).collect()
}

fn widths(value: &Value) -> Option<BTreeMap<String, i64>> {
    value.as_object()?.iter().map(|(name, bits)| Some((name.clone(), bits.as_i64()?))).collect()
}

/// Says why a field's value is not allowed.
pub(super) fn check(config: &DiffusionQuantConfig, name: &str) -> Result<(), String> {
    let is_positive = |value: f64, most: f64| value > 0.0 && value <= most;
    let in_order = match name {
        "bit_width" => Bits::try_from(config.bit_width).is_ok(),
        "group_size" => GroupSize::try_from(config.group_size).is_ok(),
        "scheme" => config.scheme.parse::<Scheme>().is_ok(),
        "method" => config.method.parse::<Method>().is_ok(),
        "min_accuracy" => (0.0..=1.0).contains(&config.min_accuracy),
        "min_sqnr_db" => config.min_sqnr_db.is_none_or(f64::is_finite),
        "target_model_size_mb" => config.target_model_size_mb.is_none_or(|size| is_positive(size, f64::MAX)),
        "target_bpw" => config.target_bpw.is_none_or(|bits| is_positive(bits, 64.0)),
        "num_time_groups" => (1..=100).contains(&config.num_time_groups),
        "time_group_boundaries" => config.time_group_boundaries.parse::<Boundaries>().is_ok(),
        "calibration_samples" => config.calibration_samples >= 1,
        "num_threads" => config.num_threads <= MAX_THREADS,
        "max_memory_limit_mb" => config.max_memory_limit_mb.is_none_or(|limit| limit >= LEAST_MEMORY_MB),
        "layer_bit_widths" => return check_widths(&config.layer_bit_widths),
        "tensors" => return check_patterns(name, config.tensors.as_slice()),
        "sensitive_layer_patterns" => return check_patterns(name, &config.sensitive_layer_patterns),
        _ => true,
    };
    if in_order { Ok(()) } else { Err(refusal(name, found(config, name))) }
}

fn check_widths(widths: &BTreeMap<String, i64>) -> Result<(), String> {
    for (layer, bits) in widths {
        if ![2, 4, 8, 16].contains(bits) {
            return Err(format!("layer_bit_widths of '{layer}' is {bits}, allowed: 2, 4, 8, or 16 to keep it"));
        }
        regex("layer_bit_widths", layer).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn check_patterns(name: &str, patterns: &[String]) -> Result<(), String> {
    patterns.iter().try_for_each(|pattern| regex(name, pattern).map(drop).map_err(|error| error.to_string()))
}

/// A field's value as a message shows it.
fn found(config: &DiffusionQuantConfig, name: &str) -> String {
    value_of(config, name).map_or_else(|| "not a number".to_string(), |value| shown(&value))
}

/// A field's value.
pub(super) fn value_of(config: &DiffusionQuantConfig, name: &str) -> Option<Value> {
    let not_a_number = match name {
        "min_accuracy" => !config.min_accuracy.is_finite(),
        _ => false,
    };
    serde_json::to_value(config).ok().filter(|_| !not_a_number)?.get(name).cloned()
}
