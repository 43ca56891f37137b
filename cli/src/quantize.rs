//! `arrow-quant quantize`: write a quantized copy of a model and report its quality.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arrow_quant_v2::{
    DiffusionQuantConfig, JobOptions, LayeredConfig, QuantizeReport, TargetName, quantize_model, quantize_query,
    session, unfinished_run,
};

use crate::calibration::CalibrationArgument;
use crate::config::ConfigArguments;
use crate::failure::{Failure, Names};
use crate::interrupt::unless_interrupted;
use crate::output::Shown;
use crate::progress::Meter;
use crate::report::{Because, write_report};
use crate::source::Source;
use crate::{in_runtime, plan};

/// What help says after the flags.
const EXAMPLES: &str = "\
Examples:
  arrow-quant quantize dream-7b dream-7b-int4                     4 bits in groups of 128
  arrow-quant quantize dream-7b dream-7b-3bpw --target-bpw 3.5    the least error at a size
  arrow-quant quantize smollm2 smollm2.gguf --type q4_k_m         one file for llama.cpp
  arrow-quant quantize smollm2 smollm2-mlx --for mlx              a directory for mlx-lm
  arrow-quant quantize dream-7b dream-7b-int2 --profile edge --min-accuracy 0.9
  arrow-quant quantize dream-7b dream-7b-int4 --resume            goes on after an interruption
  arrow-quant quantize --query \"SELECT * FROM weights('dream-7b') WHERE tensor LIKE 'model.%'\" part";

/// Arguments of `arrow-quant quantize`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The model: a safetensors file, a model directory or a diffusers pipeline; none with --query
    #[arg(required_unless_present = "query")]
    model: Option<PathBuf>,
    /// The directory to write, which must not exist, or be empty; or a file, if the format is one (see arrow-quant targets)
    #[arg(required_unless_present_any = ["dry_run", "query"])]
    out: Option<PathBuf>,
    /// Quantize what this query gives: the columns tensor, shape, start and weights, as of the table weights
    #[arg(long, value_name = "SQL")]
    query: Option<String>,
    /// The model whose configuration and tokenizer go with what the query gives, for formats that need them
    #[arg(long, value_name = "MODEL", requires = "query")]
    files: Option<PathBuf>,
    /// Quantize by this plan, a table that `arrow-quant plan --output` wrote and that may have been edited
    #[arg(long, value_name = "FILE", conflicts_with_all = ["target", "bit_width", "type", "group_size"])]
    plan: Option<PathBuf>,
    #[command(flatten)]
    calibration: CalibrationArgument,
    /// Go on with what an interrupted run of the same job left
    #[arg(long)]
    resume: bool,
    /// Print the plan with sizes, time and memory, and write nothing
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    #[command(flatten)]
    pub shown: Shown,
    // Last, for its heading holds for all that follows.
    #[command(flatten)]
    config: ConfigArguments,
}

impl Arguments {
    /// What is quantized, and the directory to write. With a query, the only path is that of the directory.
    fn places(&self) -> Result<(Source<'_>, Option<&Path>), Failure> {
        let usage = |message: &str| Err(Failure::Usage(message.to_string()));
        match (self.query.as_deref(), self.model.as_deref(), self.out.as_deref()) {
            (Some(_), Some(_), Some(_)) => usage("--query and a model cannot be used together: give OUT alone"),
            (Some(_), None, _) if !self.dry_run => usage("the directory to write is missing: --query SQL OUT"),
            (Some(query), out, _) => Ok((Source::Query(query), out)),
            (None, Some(model), out) => Ok((Source::Model(model), out)),
            (None, None, _) => usage("the model is missing: give its path, or --query SQL"),
        }
    }
}

async fn quantize(
    source: Source<'_>,
    out: &Path,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
) -> arrow_quant_v2::Result<QuantizeReport> {
    match source {
        Source::Model(model) => quantize_model(model, out, config, options).await,
        Source::Query(query) => quantize_query(&session(config.threads())?, query, out, config, options).await,
    }
}

/// Quantizes the model and shows the report.
pub(crate) fn run(arguments: &Arguments, threads: Option<u16>) -> Result<(), Failure> {
    let layered = arguments.config.load(threads)?;
    let (source, out) = arguments.places()?;
    quantize_or_plan(arguments, source, out, &layered).map_err(|failure| failure.with(&layered))
}

/// The same, with a configuration.
fn quantize_or_plan(
    arguments: &Arguments,
    source: Source<'_>,
    out: Option<&Path>,
    layered: &LayeredConfig,
) -> Result<(), Failure> {
    let config = &layered.config;
    let meter = Meter::new(&arguments.shown);
    let options = JobOptions {
        // Of a plan too, for which nothing is written.
        target: Some(TargetName::of(config, out)),
        plan: arguments.plan.clone(),
        calibration: arguments.calibration.open(config.calibration_samples)?,
        files: arguments.files.clone(),
        resume: arguments.resume,
        overwrite: false,
        on_progress: Some(meter.callback()),
        progress_interval: meter.interval(),
    };
    let Some(out) = out.filter(|_| !arguments.dry_run) else {
        let planned = plan::planned(source, config, &options)?;
        drop(meter);
        return plan::show(&planned, &arguments.shown, layered);
    };
    let job = quantize(source, out, config, &options);
    let result = in_runtime(config.threads(), unless_interrupted(job));
    drop(meter);
    let report = result.map_err(|failure| match failure {
        // By now all of its tasks have ended.
        Failure::Interrupted { status, .. } => Failure::Interrupted {
            status,
            message: match unfinished_run(out) {
                Some(left) => format!(
                    "interrupted; the finished parts are in {}: continue with --resume, or remove it",
                    left.display()
                ),
                None => format!("interrupted; nothing was written to {}", out.display()),
            },
        },
        other => other,
    })?;
    let names = Names::of(layered);
    arguments.shown.print(&report, |report, out| write(report, &|reason| names.because(reason), out))
}

fn write(report: &QuantizeReport, because: Because<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut more = Vec::new();
    if !report.report.source_files.is_empty() {
        more.push(("read from", report.report.source_files.join(", ")));
    }
    more.extend([
        ("time", format!("{:.2} s", report.quantization_time_s)),
        ("written to", report.output.display().to_string()),
    ]);
    if report.was_finished {
        more.push(("resumed", "the output was finished before, nothing was left to do".to_string()));
    } else if report.resumed_parts > 0 {
        let found = format!("{} of {} parts were finished before", report.resumed_parts, report.parts);
        more.push(("resumed", found));
    }
    if let Some(reason) = &report.started_afresh {
        more.push(("started afresh", format!("the interrupted run was of no use, {reason}")));
    }
    write_report(&report.report, &more, because, out)
}
