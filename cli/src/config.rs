//! The flags that make a configuration, and `arrow-quant config`: show or check one.

use std::io::Write;
use std::path::PathBuf;

use arrow_quant_v2::config::{Configuration, Field};
use arrow_quant_v2::{ConfigLayers, DeploymentProfile, DiffusionQuantConfig, FIELDS, LayeredConfig, Runtime};
use clap::ArgGroup;
use clap::builder::PossibleValuesParser;

use crate::failure::Failure;
use crate::flags::{Flagged, Flags, in_words};
use crate::output;

/// The flags that make a configuration: one for every field, a file of fields, and a target size with a unit.
#[derive(clap::Args)]
#[command(
    next_help_heading = "Configuration",
    group = ArgGroup::new("target")
        .args(["target_size", "target_model_size_mb", "target_bpw"])
        .multiple(false)
        .conflicts_with_all(["bit_width", "group_size"])
)]
pub(crate) struct ConfigArguments {
    /// A YAML file of fields; flags and the environment go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As --target-model-size-mb, with a unit: 1.9GB, 700MB, 650MiB
    #[arg(long, value_name = "SIZE", value_parser = megabytes)]
    target_size: Option<f64>,
    /// The program that is to load the model: gives --format, and --type and --group-size where nothing else sets them
    #[arg(
        long = "for",
        value_name = "RUNTIME",
        conflicts_with = "format",
        value_parser = PossibleValuesParser::new(Runtime::ALL.iter().map(|runtime| runtime.name()))
    )]
    runtime: Option<String>,
    #[command(flatten)]
    fields: Flags<DiffusionQuantConfig>,
}

impl Flagged for DiffusionQuantConfig {
    const HEADING: Option<&'static str> = Some("Configuration");

    fn has_flag(field: &Field<Self>) -> bool {
        // All commands have the number of threads.
        field.name != "num_threads"
    }

    /// The default of the profile local, and those of the others where they differ.
    fn default_in_words(field: &Field<Self>) -> Option<String> {
        let of = |profile| in_words(&field.get(&Self::from_profile(profile)));
        let local = of(DeploymentProfile::Local)?;
        if Some(field.name) == Self::PROFILE {
            return Some(local);
        }
        let others = [DeploymentProfile::Edge, DeploymentProfile::Cloud].map(|profile| (profile, of(profile)));
        let others: Vec<String> = others
            .into_iter()
            .filter_map(|(profile, default)| Some(format!("{profile} {}", default.filter(|d| *d != local)?)))
            .collect();
        Some(if others.is_empty() { local } else { format!("{local}; {}", others.join(", ")) })
    }
}

/// Fields that say what weights become.
const TYPES: &[&str] = &["bit_width", "type", "group_size"];

/// Fields that say how large the model may be.
const TARGETS: &[&str] = &["target_bpw", "target_model_size_mb"];

impl ConfigArguments {
    /// The file, the environment and the flags together.
    pub(crate) fn load(&self, threads: Option<u16>) -> arrow_quant_v2::Result<LayeredConfig> {
        let mut layers = ConfigLayers::new().environment();
        if let Some(path) = &self.config {
            layers = layers.file(path);
        }
        let given = self.fields.given()?;
        // What a program suits is a default, which anything else goes before. Of a target size, groups do not follow where
        // the format has one size for the whole model.
        let is_said = |fields: &[&str]| self.config.is_some() || given.iter().any(|(field, _)| fields.contains(field));
        let has_target = self.target_size.is_some() || is_said(TARGETS);
        let runtime = Runtime::ALL.iter().find(|runtime| Some(runtime.name()) == self.runtime.as_deref());
        for (field, value) in runtime.iter().flat_map(|runtime| runtime.settings()) {
            let is_open = match field {
                "format" => true,
                "group_size" => !is_said(TYPES),
                _ => !is_said(TYPES) && !has_target,
            };
            if is_open {
                layers = layers.another_flag("--for", field, value);
            }
        }
        let threads = threads.map(|threads| ("num_threads", threads.into()));
        for (field, value) in given.into_iter().chain(threads) {
            layers = layers.flag(field, value);
        }
        if let Some(size) = self.target_size {
            layers = layers.another_flag("--target-size", "target_model_size_mb", size.into());
        }
        layers.load()
    }
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
    let Some((unit, bytes)) = unit else {
        return Err("the unit is missing: write a size such as 1.9GB, 700MB or 650MiB".to_string());
    };
    let number = text[..text.len() - unit.len()].trim();
    let size: f64 = number.parse().map_err(|_| format!("'{number}' is not a number: write a size such as 1.9GB"))?;
    if size > 0.0 && size.is_finite() {
        Ok(size * bytes / 1e6)
    } else {
        Err("the size must be above 0: write a size such as 1.9GB".to_string())
    }
}

/// What help says after the flags.
const EXAMPLES: &str = "\
Examples:
  arrow-quant config show --config job.yaml --min-accuracy 0.9
  arrow-quant config validate --config job.yaml";

/// Arguments of `arrow-quant config`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
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
pub(crate) fn run(arguments: &Arguments, threads: Option<u16>) -> Result<(), Failure> {
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
}
