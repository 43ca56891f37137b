//! The flags that make a configuration, and `arrow-quant config`: show or check one.

use std::io::Write;
use std::path::PathBuf;

use arrow_quant_v2::config::Field;
use arrow_quant_v2::{ConfigLayers, DiffusionQuantConfig, FIELDS, LayeredConfig};
use clap::{Arg, ArgGroup, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::failure::Failure;
use crate::flags::{flag, given};
use crate::output;

/// A YAML file of fields.
const FILE: &str = "config";

/// The target size with a unit.
const TARGET_SIZE: &str = "target_size";

/// A flag for every field, save that of the number of threads, which all commands have.
pub struct ConfigArguments(ArgMatches);

fn fields() -> impl Iterator<Item = &'static Field<DiffusionQuantConfig>> {
    FIELDS.iter().filter(|field| field.name != "num_threads")
}

impl Args for ConfigArguments {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE).long(FILE).value_name("FILE").value_parser(value_parser!(PathBuf));
        let file = file.help("A YAML file of fields; flags and the environment go before it");
        let size = Arg::new(TARGET_SIZE).long("target-size").value_name("SIZE").value_parser(megabytes);
        let size = size.help("As --target-model-size-mb, with a unit: 1.9GB, 700MB, 650MiB");
        // A size in one of several units, which chooses bits and group size.
        let target = ArgGroup::new("target").args([TARGET_SIZE, "target_model_size_mb", "target_bpw"]).multiple(false);
        let flags = fields().map(flag).chain([file, size]).map(|flag| flag.help_heading("Configuration"));
        command.args(flags).group(target.conflicts_with_all(["bit_width", "group_size"]))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigArguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(matches.clone()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = matches.clone();
        Ok(())
    }
}

impl ConfigArguments {
    /// The file, the environment and the flags together.
    pub fn load(&self, threads: Option<u16>) -> arrow_quant_v2::Result<LayeredConfig> {
        let mut layers = ConfigLayers::new().environment();
        if let Some(path) = self.0.get_one::<PathBuf>(FILE) {
            layers = layers.file(path);
        }
        for field in fields() {
            if let Some(value) = given(field, &self.0)? {
                layers = layers.explicit(field.name, value);
            }
        }
        if let Some(size) = self.0.get_one::<f64>(TARGET_SIZE) {
            layers = layers.explicit("target_model_size_mb", (*size).into());
        }
        if let Some(threads) = threads {
            layers = layers.explicit("num_threads", threads.into());
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

    /// The flag of the number of threads is the whole command's.
    #[test]
    fn flags_are_those_of_the_table() {
        let command = ConfigArguments::augment_args(Command::new("test"));
        for field in fields() {
            let flag = command.get_arguments().find(|flag| flag.get_id() == field.name).unwrap();
            assert_eq!(flag.get_long(), Some(field.flag().as_str()));
            let (help, said) =
                (field.help().trim_end_matches('.').replace('`', ""), flag.get_help().unwrap().to_string());
            assert!(said.starts_with(&help), "{said}");
            for possible in flag.get_possible_values() {
                let words: Vec<_> = field.allowed.split([' ', ',']).collect();
                let is_truth = ["true", "false"].contains(&possible.get_name());
                assert!(is_truth || words.contains(&possible.get_name()), "{}", field.name);
            }
            assert!(!flag.get_possible_values().is_empty() || said.contains(field.allowed), "{said}");
        }
    }
}
