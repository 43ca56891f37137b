//! `arrow-quant plan`: what would become of a model, without writing it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use arrow_quant_v2::{
    DiffusionQuantConfig, JobOptions, LayeredConfig, PlanReport, PlannedTensor, grouping, plan_model, plan_query,
    session,
};

use crate::calibration::{CalibrationArgument, write_layers};
use crate::config::ConfigArguments;
use crate::failure::{Failure, Names};
use crate::interrupt::unless_interrupted;
use crate::output::Shown;
use crate::progress::Meter;
use crate::report::{Because, decibels, per_weight, write_unlisted};
use crate::source::Source;
use crate::table::{LISTED, Table, tensor_label, write_facts};
use crate::{in_runtime, numbers};

/// What help says after the flags.
const EXAMPLES: &str = "\
Examples:
  arrow-quant plan dream-7b --target-size 3.3GB
  arrow-quant plan dream-7b --output plan.csv                     edit it, then
  arrow-quant quantize dream-7b dream-7b-mine --plan plan.csv";

/// Arguments of `arrow-quant plan`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The model: a safetensors file, a model directory or a diffusers pipeline
    #[arg(required_unless_present = "query")]
    model: Option<PathBuf>,
    /// Plan for what this query gives, instead of a model; its rows are written to the system's temporary directory first
    #[arg(long, value_name = "SQL", conflicts_with = "model")]
    query: Option<String>,
    /// Write the plan to a table, .parquet or .csv, for `arrow-quant quantize --plan`; an older one is replaced
    #[arg(long, short, value_name = "FILE", value_parser = table)]
    output: Option<PathBuf>,
    #[command(flatten)]
    calibration: CalibrationArgument,
    #[command(flatten)]
    pub shown: Shown,
    // Last, for its heading holds for all that follows.
    #[command(flatten)]
    config: ConfigArguments,
}

/// A path that tells the table's format.
fn table(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let is_known =
        path.extension().is_some_and(|found| ["parquet", "csv"].iter().any(|e| found.eq_ignore_ascii_case(e)));
    if is_known { Ok(path) } else { Err("expected a name that ends with .parquet or .csv".to_string()) }
}

/// Plans and shows the plan.
pub(crate) fn run(arguments: &Arguments, threads: Option<u16>) -> Result<(), Failure> {
    let layered = arguments.config.load(threads)?;
    plan(arguments, &layered).map_err(|failure| failure.with(&layered))
}

/// The same, with a configuration.
fn plan(arguments: &Arguments, layered: &LayeredConfig) -> Result<(), Failure> {
    let config = &layered.config;
    let meter = Meter::new(&arguments.shown);
    let options = JobOptions {
        on_progress: Some(meter.callback()),
        progress_interval: meter.interval(),
        calibration: arguments.calibration.open(config.calibration_samples)?,
        ..JobOptions::default()
    };
    let source = match (&arguments.model, &arguments.query) {
        (_, Some(query)) => Source::Query(query),
        (Some(model), None) => Source::Model(model),
        (None, None) => return Err(Failure::Usage("the model is missing: give its path, or --query SQL".to_string())),
    };
    let planned = planned(source, config, &options)?;
    if let Some(path) = &arguments.output {
        planned.write(path)?;
    }
    show(&planned, &arguments.shown, layered)
}

/// What would become of a model, or of what a query gives.
pub(crate) fn planned(
    source: Source<'_>,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
) -> Result<PlanReport, Failure> {
    let planned = async {
        match source {
            Source::Model(model) => plan_model(model, config, options).await,
            Source::Query(query) => {
                // Of this process alone.
                let beside = std::env::temp_dir().join(format!("arrow-quant-plan-{}", std::process::id()));
                plan_query(&session(config.threads())?, query, &beside, config, options).await
            }
        }
    };
    in_runtime(config.threads(), unless_interrupted(planned))
}

/// Prints a plan.
pub(crate) fn show(planned: &PlanReport, shown: &Shown, layered: &LayeredConfig) -> Result<(), Failure> {
    let names = Names::of(layered);
    shown.print(planned, |plan, out| write_plan(plan, &|reason| names.because(reason), out))
}

/// The tensors, those that will lose most first, and the totals.
fn write_plan(plan: &PlanReport, because: Because<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut quantized: Vec<&PlannedTensor> = plan.tensors.iter().filter(|tensor| tensor.bits.is_some()).collect();
    quantized.sort_by(|a, b| crate::report::worse_first(a.sqnr_db, b.sqnr_db));
    if !quantized.is_empty() {
        tensor_table(&quantized[..quantized.len().min(LISTED)], because).write(out)?;
        write_unlisted(quantized.len(), out)?;
    }
    for (width, tensors, weights) in widths(&plan.tensors) {
        writeln!(out, "{width}: {tensors} with {} weights", numbers::count(weights))?;
    }
    write_layers(&plan.layers, out)?;
    for note in &plan.notes {
        writeln!(out, "note: {note}")?;
    }
    writeln!(out)?;
    let sizes = (numbers::bytes(plan.original_bytes), numbers::bytes(plan.stored_bytes));
    write_facts(
        &[
            ("weights", numbers::count(plan.weights)),
            ("size", format!("{} → {}", sizes.0, sizes.1)),
            ("compression ratio", per_weight(plan.compression_ratio, plan.weights)),
            ("bits per weight", per_weight(plan.bits_per_weight, plan.weights)),
            ("SQNR", format!("{}, from a sample", decibels(plan.sqnr_db))),
            ("time", format!("about {:.1} s", plan.estimated_time_s)),
            ("memory", format!("at most {}", numbers::bytes(plan.estimated_memory_mb * 1_000_000))),
        ],
        out,
    )
}

fn tensor_table(tensors: &[&PlannedTensor], because: Because<'_>) -> Table {
    let mut table = Table::new()
        .names("tensor")
        .number("SQNR dB")
        .number("cosine")
        .number("bits")
        .number("group")
        .text("because")
        .text("shape");
    for tensor in tensors {
        table.row([
            tensor_label(&tensor.component, &tensor.tensor),
            numbers::measure(tensor.sqnr_db, 2),
            numbers::measure(tensor.cosine_similarity, 6),
            tensor.bits.map_or_else(String::new, |bits| bits.to_string()),
            grouping(tensor.bits, tensor.group_size, &tensor.encoding),
            because(&tensor.because),
            format!("{:?}", tensor.shape),
        ]);
    }
    table
}

/// For each width its tensors and weights, the narrowest first and what is kept last.
fn widths(tensors: &[PlannedTensor]) -> Vec<(String, String, u64)> {
    let mut widths: BTreeMap<u8, (usize, u64)> = BTreeMap::new();
    for tensor in tensors.iter().filter(|tensor| tensor.same_as.is_none()) {
        let width = widths.entry(tensor.bits.unwrap_or(u8::MAX)).or_default();
        *width = (width.0 + 1, width.1 + tensor.elements);
    }
    let name = |bits: u8| if bits == u8::MAX { "kept".to_string() } else { format!("{bits} bits") };
    let all = widths.into_iter();
    all.map(|(bits, (tensors, weights))| (name(bits), crate::report::tensors_of(tensors), weights)).collect()
}
