//! `arrow-quant validate`: compare a quantized model with its original.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arrow_quant_v2::config::value_of;
use arrow_quant_v2::{Below, DiffusionQuantConfig, ModelReport, TensorQuality, ValidationReport, validate_model};
use serde::Serialize;
use serde_json::Value;

use crate::calibration::{CalibrationArgument, write_qualities};
use crate::failure::Failure;
use crate::interrupt::unless_interrupted;
use crate::output::Shown;
use crate::report::{decibels, greatest_error, tensors_of, worse_first, write_unlisted};
use crate::table::{LISTED, Table, tensor_label, write_facts};
use crate::{in_runtime, numbers};

/// Tensors named in the error about those below the floor.
const NAMED: usize = 3;

/// What help says after the flags.
const EXAMPLES: &str = "\
Examples:
  arrow-quant validate dream-7b dream-7b-int4
  arrow-quant validate dream-7b dream-7b-int4 --min-accuracy 0.99 --json";

/// Arguments of `arrow-quant validate`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The original model
    model: PathBuf,
    /// The quantized model
    out: PathBuf,
    /// Exit with status 3 if a quantized tensor's cosine similarity is below this, 0.0 to 1.0 [default: the floor recorded
    /// with the quantized model]
    #[arg(long, value_name = "X")]
    min_accuracy: Option<String>,
    #[command(flatten)]
    calibration: CalibrationArgument,
    #[command(flatten)]
    pub shown: Shown,
}

/// A cosine similarity to demand: the table of fields says which are allowed, as for `quantize`.
fn accuracy(text: &str) -> arrow_quant_v2::Result<f64> {
    let mut config = DiffusionQuantConfig::default();
    config.set("min_accuracy", &value_of(text))?;
    Ok(config.min_accuracy)
}

/// What the comparison found, and whether it is good enough.
#[derive(Serialize)]
struct Verdict<'a> {
    /// Whether no quantized tensor is below the floor.
    passed: bool,
    /// The floor; none if none was given and none is recorded with the model.
    min_accuracy: Option<f64>,
    /// The quantized tensors below it, worst first.
    below: Vec<Below>,
    #[serde(flatten)]
    report: &'a ValidationReport,
}

/// Compares the models, shows the report, and fails if a tensor is below the floor.
pub(crate) fn run(arguments: &Arguments, threads: usize) -> Result<(), Failure> {
    let min_accuracy = arguments.min_accuracy.as_deref().map(accuracy).transpose()?;
    let calibration = if arguments.calibration.is_given() {
        // As many samples as the job had.
        let samples = recorded(&arguments.out, "calibration_samples")?.and_then(|samples| samples.as_i64());
        let samples = samples.unwrap_or_else(|| DiffusionQuantConfig::default().calibration_samples);
        arguments.calibration.open(samples)?
    } else {
        None
    };
    let job = validate_model(&arguments.model, &arguments.out, threads, calibration);
    let report = in_runtime(threads, unless_interrupted(job))?;
    let min_accuracy = match min_accuracy {
        Some(floor) => Some(floor),
        None => recorded(&arguments.out, "min_accuracy")?.and_then(|floor| floor.as_f64()),
    };
    // Without a floor, what is lost altogether is still too bad.
    let below = report.below(min_accuracy.unwrap_or(f64::NEG_INFINITY));
    let verdict = Verdict { passed: below.is_empty(), min_accuracy, below, report: &report };
    arguments.shown.print(&verdict, write_verdict)?;
    if verdict.passed { Ok(()) } else { Err(Failure::BelowFloor(message(&verdict))) }
}

/// A setting of the job that wrote the model.
fn recorded(out: &Path, setting: &str) -> Result<Option<Value>, Failure> {
    Ok(ModelReport::open(out)?.settings.remove(setting))
}

/// The tensors, worst first, the totals and the verdict.
fn write_verdict(verdict: &Verdict<'_>, out: &mut impl Write) -> io::Result<()> {
    let report = verdict.report;
    let mut quantized: Vec<&TensorQuality> = report.tensors.iter().filter(|tensor| tensor.bits.is_some()).collect();
    quantized.sort_by(|a, b| worse_first(a.sqnr_db, b.sqnr_db));
    let kept = report.tensors.len() - quantized.len();
    if !quantized.is_empty() {
        tensor_table(&quantized[..quantized.len().min(LISTED)]).write(out)?;
        write_unlisted(quantized.len(), out)?;
    }
    if kept > 0 {
        writeln!(out, "kept: {} at their own dtype", tensors_of(kept))?;
    }
    write_qualities(&report.layers, out)?;
    writeln!(out)?;
    let floor = verdict.min_accuracy.map_or_else(String::new, |floor| format!(" (floor {floor})"));
    let passed = match verdict.below.len() {
        0 => format!("yes{floor}"),
        count => format!("no: {} below{floor}", tensors_of(count)),
    };
    write_facts(
        &[
            ("size", numbers::bytes((report.model_size_mb * 1e6).round() as u64)),
            ("compression ratio", format!("{:.2}", report.compression_ratio)),
            ("SQNR", decibels(report.sqnr_db)),
            ("cosine similarity", numbers::measure(report.cosine_similarity, 6)),
            ("passed", passed),
        ],
        out,
    )
}

fn tensor_table(tensors: &[&TensorQuality]) -> Table {
    let mut table = Table::new()
        .names("tensor")
        .number("SQNR dB")
        .number("cosine")
        .number("max error")
        .number("bits")
        .number("weights");
    for tensor in tensors {
        table.row([
            tensor_label(&tensor.component, &tensor.tensor),
            numbers::measure(tensor.sqnr_db, 2),
            numbers::measure(tensor.cosine_similarity, 6),
            greatest_error(tensor.max_abs_error),
            tensor.bits.map_or_else(String::new, |bits| bits.to_string()),
            numbers::count(tensor.elements),
        ]);
    }
    table
}

/// Names the tensors below the floor.
fn message(verdict: &Verdict<'_>) -> String {
    let quantized = verdict.report.tensors.iter().filter(|tensor| tensor.bits.is_some()).count();
    let named = verdict.below.iter().take(NAMED).map(|tensor| {
        let cosine = numbers::measure(tensor.cosine_similarity, 6);
        format!("{} ({cosine})", tensor_label(&tensor.component, &tensor.tensor))
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let more = if verdict.below.len() > NAMED { ", …" } else { "" };
    let floor = verdict.min_accuracy.map_or_else(|| "above 0".to_string(), |floor| floor.to_string());
    format!(
        "{} of {quantized} quantized tensors are below a cosine similarity of {floor}: {named}{more}; use more bits or \
         smaller groups",
        verdict.below.len(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_tensors_below_the_floor_are_named() {
        let tensor = |name: &str, cosine_similarity| Below {
            component: "unet".to_string(),
            tensor: name.to_string(),
            cosine_similarity,
        };
        let report = ValidationReport {
            tensors: vec![],
            cosine_similarity: None,
            sqnr_db: None,
            compression_ratio: 1.0,
            model_size_mb: 1.0,
            layers: vec![],
        };
        let below = vec![tensor("lost", None), tensor("a", Some(0.7)), tensor("b", Some(0.8)), tensor("c", Some(0.85))];
        let verdict = Verdict { passed: false, min_accuracy: Some(0.9), below, report: &report };
        assert_eq!(
            message(&verdict),
            "4 of 0 quantized tensors are below a cosine similarity of 0.9: unet/lost (-), unet/a (0.700000), unet/b \
             (0.800000), …; use more bits or smaller groups"
        );
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!(json["passed"], false);
        assert_eq!(json["below"][1], serde_json::json!({"component": "unet", "tensor": "a", "cosine_similarity": 0.7}));
    }

    #[test]
    fn an_accuracy_is_between_zero_and_one() {
        assert_eq!(accuracy("0.95").unwrap(), 0.95);
        for wrong in ["-0.1", "1.1", "NaN", "high", ""] {
            assert!(accuracy(wrong).is_err(), "{wrong}");
        }
    }
}
