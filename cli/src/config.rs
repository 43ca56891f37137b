//! The flags that make a configuration, and `arrow-quant config`: show or check one.

use std::io::Write;
use std::path::PathBuf;

use arrow_quant_kernels::{Method, Scheme};
use arrow_quant_v2::{ConfigLayers, FIELDS, LayeredConfig, QuantError};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::Value;

use crate::failure::Failure;
use crate::output;

/// A flag for every field. Fields that have none here come from the YAML file, the environment or the profile.
#[derive(clap::Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigArguments {
    /// A YAML file of fields; flags and the environment go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the model will run: edge is 2 bits in groups of 256, local 4 in 128, cloud 8 in 64 [default: local]
    #[arg(long, alias = "deployment-profile", value_parser = PossibleValuesParser::new(["edge", "local", "cloud"]))]
    profile: Option<String>,
    /// What the model makes [default: found out]
    #[arg(long, value_parser = PossibleValuesParser::new(["text", "code", "image", "audio"]))]
    modality: Option<String>,
    /// Bits per code
    #[arg(
        long,
        alias = "bit-width",
        value_parser = PossibleValuesParser::new(["2", "4", "8"]).try_map(|text| text.parse::<i64>())
    )]
    bits: Option<i64>,
    /// Weights that share a scale
    #[arg(
        long,
        value_name = "N",
        value_parser = PossibleValuesParser::new(["32", "64", "128", "256"]).try_map(|text| text.parse::<i64>())
    )]
    group_size: Option<i64>,
    /// What a code means
    #[arg(long, value_parser = PossibleValuesParser::new(Scheme::ALL.iter().map(|scheme| scheme.name())))]
    scheme: Option<String>,
    /// How scales are found
    #[arg(long, value_parser = PossibleValuesParser::new(Method::ALL.iter().map(|method| method.name())))]
    method: Option<String>,
    /// The least cosine similarity of a tensor; one below gets more bits
    #[arg(long, value_name = "X")]
    min_accuracy: Option<f64>,
    /// The least SQNR of a tensor in dB; one below gets more bits
    #[arg(long, value_name = "DB", allow_negative_numbers = true)]
    min_sqnr_db: Option<f64>,
    /// Stop at the first tensor below the floor
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    fail_fast: Option<bool>,
    /// Quantize only tensors whose name matches; the others keep their dtype
    #[arg(long, value_name = "REGEX")]
    tensors: Option<String>,
    /// Keep the tensors that are known to be sensitive in the model's architecture
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    skip_sensitive_layers: Option<bool>,
    /// Keep these tensors, or all of these modules
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    sensitive_layer_names: Option<Vec<String>>,
    /// Keep tensors whose name matches; may be given more than once
    #[arg(long, value_name = "REGEX")]
    sensitive_layer_patterns: Option<Vec<String>>,
    /// Bits of the tensors of a name, or matching a regex: 2, 4, 8, or 16 to keep them; may be given more than once
    #[arg(long, value_name = "NAME=BITS", value_parser = width)]
    layer_bit_widths: Option<Vec<(String, i64)>>,
    /// Whether a target size may give tensors different bits
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_mixed_precision: Option<bool>,
    #[command(flatten)]
    target: Target,
    /// Quantize activations for each group of timesteps, and weights by the importance of their input channels; takes a
    /// calibration table
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_time_aware: Option<bool>,
    /// Groups of timesteps
    #[arg(long, value_name = "N")]
    num_time_groups: Option<i64>,
    /// Where time groups end: by what they lose, or after as many timesteps each
    #[arg(long, value_parser = PossibleValuesParser::new(["optimal", "equal"]))]
    time_group_boundaries: Option<String>,
    /// Samples of the calibration table to use
    #[arg(long, value_name = "N")]
    calibration_samples: Option<i64>,
    /// Smooth activations channel by channel; takes a calibration table
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_spatial: Option<bool>,
    /// Map the files of weights; =false reads the model into memory first
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_streaming: Option<bool>,
    /// The most memory to take, in MB (10^6 bytes)
    #[arg(long, alias = "max-memory-mb", value_name = "MB")]
    max_memory_limit_mb: Option<u64>,
}

/// The size that a model shall have, in one unit of several.
#[derive(clap::Args)]
#[group(id = "target", multiple = false, conflicts_with_all = ["bits", "group_size"])]
struct Target {
    /// Choose bits and group size of each tensor for the least error at this size: 1.9GB, 700MB, 650MiB
    #[arg(long, value_name = "SIZE", value_parser = megabytes)]
    target_size: Option<f64>,
    /// The same, in MB (10^6 bytes)
    #[arg(long, value_name = "MB")]
    target_model_size_mb: Option<f64>,
    /// The same, in bits per weight
    #[arg(long, value_name = "BITS")]
    target_bpw: Option<f64>,
}

impl ConfigArguments {
    /// The file, the environment and the flags together.
    pub fn load(&self, threads: Option<u16>) -> arrow_quant_v2::Result<LayeredConfig> {
        let mut layers = ConfigLayers::new().environment();
        let widths = self.layer_bit_widths.as_deref().unwrap_or_default();
        if let Some((name, _)) = widths.iter().enumerate().find_map(|(i, w)| widths[..i].iter().find(|o| o.0 == w.0)) {
            let message = format!("layer_bit_widths has '{name}' twice: give it once");
            return Err(QuantError::Configuration { field: Some("layer_bit_widths".to_string()), path: None, message });
        }
        if let Some(path) = &self.config {
            layers = layers.file(path);
        }
        for (field, value) in self.explicit(threads) {
            if let Some(value) = value {
                layers = layers.explicit(field, value);
            }
        }
        layers.load()
    }

    /// What the flags say of each field.
    fn explicit(&self, threads: Option<u16>) -> [(&'static str, Option<Value>); 25] {
        let text = |text: &Option<String>| text.as_deref().map(Value::from);
        let texts = |texts: &Option<Vec<String>>| texts.as_ref().map(|texts| Value::from(texts.as_slice()));
        let widths = self.layer_bit_widths.as_ref();
        [
            ("deployment_profile", text(&self.profile)),
            ("modality", text(&self.modality)),
            ("bit_width", self.bits.map(Value::from)),
            ("group_size", self.group_size.map(Value::from)),
            ("scheme", text(&self.scheme)),
            ("method", text(&self.method)),
            ("min_accuracy", self.min_accuracy.map(number)),
            ("min_sqnr_db", self.min_sqnr_db.map(number)),
            ("fail_fast", self.fail_fast.map(Value::from)),
            ("tensors", text(&self.tensors)),
            ("skip_sensitive_layers", self.skip_sensitive_layers.map(Value::from)),
            ("sensitive_layer_names", texts(&self.sensitive_layer_names)),
            ("sensitive_layer_patterns", texts(&self.sensitive_layer_patterns)),
            ("layer_bit_widths", widths.map(|widths| widths.iter().cloned().collect())),
            ("enable_mixed_precision", self.enable_mixed_precision.map(Value::from)),
            ("target_model_size_mb", self.target.target_size.or(self.target.target_model_size_mb).map(number)),
            ("target_bpw", self.target.target_bpw.map(number)),
            ("enable_time_aware", self.enable_time_aware.map(Value::from)),
            ("num_time_groups", self.num_time_groups.map(Value::from)),
            ("time_group_boundaries", text(&self.time_group_boundaries)),
            ("calibration_samples", self.calibration_samples.map(Value::from)),
            ("enable_spatial", self.enable_spatial.map(Value::from)),
            ("num_threads", threads.map(Value::from)),
            ("enable_streaming", self.enable_streaming.map(Value::from)),
            ("max_memory_limit_mb", self.max_memory_limit_mb.map(Value::from)),
        ]
    }
}

/// A number, or what it is called where JSON has none: the field then refuses it.
fn number(number: f64) -> Value {
    serde_json::Number::from_f64(number).map_or_else(|| number.to_string().into(), Value::Number)
}

/// `NAME=BITS`.
fn width(text: &str) -> Result<(String, i64), String> {
    let (name, bits) = text.rsplit_once('=').ok_or("expected NAME=BITS")?;
    let bits = bits.parse().map_err(|_| format!("'{bits}' is no number of bits, expected 2, 4, 8 or 16"))?;
    Ok((name.to_string(), bits))
}

/// A size with its unit, in 10^6 bytes.
fn megabytes(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 9] = [
        ("kB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
        ("KiB", 1024.0),
        ("MiB", 1048576.0),
        ("GiB", 1073741824.0),
        ("TiB", 1099511627776.0),
        ("B", 1.0),
    ];
    let text = text.trim();
    let unit = UNITS.iter().find(|(unit, _)| text.to_lowercase().ends_with(&unit.to_lowercase()));
    let Some((unit, bytes)) = unit else { return Err("expected a size with its unit, such as 1.9GB".to_string()) };
    let number = text[..text.len() - unit.len()].trim();
    let size: f64 = number.parse().map_err(|_| format!("'{number}' is no number, expected a size such as 1.9GB"))?;
    if size > 0.0 && size.is_finite() { Ok(size * bytes / 1e6) } else { Err("expected a size above 0".to_string()) }
}

/// Arguments of `arrow-quant config`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

/// What to do with a configuration.
#[derive(clap::Subcommand)]
enum Action {
    /// Print the value of every field and where it comes from, as a YAML file
    Show(ConfigArguments),
    /// Check a configuration
    Validate(ConfigArguments),
}

/// Shows or checks a configuration.
pub fn run(arguments: &Arguments, threads: Option<u16>) -> Result<(), Failure> {
    let mut out = output::stdout();
    match &arguments.action {
        Action::Show(config) => {
            let layered = config.load(threads)?;
            let lines: Vec<_> =
                FIELDS.iter().map(|field| format!("{}: {}", field.name, layered.value(field.name))).collect();
            let widest = lines.iter().map(|line| line.chars().count()).filter(|&width| width < 60).max().unwrap_or(0);
            for (field, line) in FIELDS.iter().zip(&lines) {
                writeln!(out, "{line:<widest$}  # {}", layered.origin(field.name))?;
            }
        }
        Action::Validate(config) => {
            config.load(threads)?;
            writeln!(out, "the configuration is valid")?;
        }
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_units() {
        for (text, expected) in
            [("1.9GB", 1900.0), ("700 MB", 700.0), ("1MiB", 1.048576), ("5kb", 0.005), ("64B", 0.000064)]
        {
            assert!((megabytes(text).unwrap() - expected).abs() < 1e-9, "{text}");
        }
        for wrong in ["1.9", "GB", "-1GB", "0MB", "many MB", "NaNGB", "", "infGB"] {
            assert!(megabytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn widths_of_names() {
        assert_eq!(width("a.b=8"), Ok(("a.b".to_string(), 8)));
        assert_eq!(width("a=b=16"), Ok(("a=b".to_string(), 16)));
        assert!(width("a").is_err() && width("a=four").is_err());
    }
}
