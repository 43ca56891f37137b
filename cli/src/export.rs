//! `arrow-quant export`: write a quantized model directory for another program, with the codes that it has.

use std::io::{self, Write};
use std::path::PathBuf;

use arrow_quant_v2::{DiffusionQuantConfig, JobOptions, QuantizeReport, TargetName, export_model};
use serde_json::Value;

use crate::failure::Failure;
use crate::in_runtime;
use crate::interrupt::unless_interrupted;
use crate::output::Shown;
use crate::report::write_report;

/// What help says after the flags.
const EXAMPLES: &str = "\
Examples:
  arrow-quant quantize smollm2 smollm2-int4 --group-size 64
  arrow-quant export smollm2-int4 smollm2-mlx --format mlx";

/// Arguments of `arrow-quant export`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The quantized model: a directory that quantize wrote in the format arrow-quant
    quantized: PathBuf,
    /// The directory or file to write, which must not exist
    out: PathBuf,
    /// What to write it as; see arrow-quant targets [default: gguf if OUT ends in .gguf]
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// What GGUF calls the model's architecture, where its config.json does not say it
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    /// How text is cut before BPE, by llama.cpp's name for it
    #[arg(long = "pre", value_name = "NAME")]
    pre_tokenizer: Option<String>,
    #[command(flatten)]
    pub shown: Shown,
}

/// Exports the model and shows the report.
pub(crate) fn run(arguments: &Arguments, threads: usize) -> Result<(), Failure> {
    let mut config = DiffusionQuantConfig::default();
    let fields = [
        ("format", &arguments.format),
        ("architecture", &arguments.architecture),
        ("pre_tokenizer", &arguments.pre_tokenizer),
    ];
    for (field, value) in fields {
        if let Some(value) = value {
            config.set(field, &Value::from(value.as_str()))?;
        }
    }
    let out = &arguments.out;
    let options = JobOptions { target: Some(TargetName::of(&config, Some(out))), ..JobOptions::default() };
    let job = export_model(&arguments.quantized, out, &config, &options);
    let report = in_runtime(threads, unless_interrupted(job))?;
    arguments.shown.print(&report, write)
}

fn write(report: &QuantizeReport, out: &mut impl Write) -> io::Result<()> {
    let more =
        [("time", format!("{:.2} s", report.quantization_time_s)), ("written to", report.output.display().to_string())];
    write_report(&report.report, &more, &ToString::to_string, out)
}
