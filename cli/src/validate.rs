//! `arrow-quant validate`: compare a quantized model with its original.

use std::io::{self, Write};
use std::path::PathBuf;

use arrow_quant_v2::config::value_of;
use arrow_quant_v2::{DiffusionQuantConfig, ModelReport, QuantError, TensorQuality, ValidationReport, validate_model};
use serde_json::Value;

use crate::calibration::{CalibrationArgument, write_qualities};
use crate::failure::Failure;
use crate::interrupt::unless_interrupted;
use crate::output::Shown;
use crate::report::{decibels, tensors_of, worse_first, write_unlisted};
use crate::table::{LISTED, Table, tensor_label, write_facts};
use crate::{in_runtime, numbers};

/// Tensors named in the error about those below the floor.
const NAMED: usize = 3;

/// Arguments of `arrow-quant validate`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The original model
    model: PathBuf,
    /// The quantized model
    out: PathBuf,
    /// Fail if a quantized tensor's cosine similarity is below this, 0.0 to 1.0
    #[arg(long, value_name = "X")]
    min_accuracy: Option<String>,
    #[command(flatten)]
    calibration: CalibrationArgument,
    #[command(flatten)]
    shown: Shown,
}

/// A cosine similarity to demand: the table of fields says which are allowed, as for `quantize`.
fn accuracy(text: &str) -> arrow_quant_v2::Result<f64> {
    let mut config = DiffusionQuantConfig::default();
    config.set("min_accuracy", &value_of(text))?;
    Ok(config.min_accuracy)
}

/// Compares the models, shows the report, and fails if a tensor is below the floor.
pub(crate) fn run(arguments: &Arguments, threads: usize) -> Result<(), Failure> {
    let min_accuracy = arguments.min_accuracy.as_deref().map(accuracy).transpose()?;
    let calibration = if arguments.calibration.is_given() {
        // As many samples as the job had.
        let samples = ModelReport::open(&arguments.out)?.settings.get("calibration_samples").and_then(Value::as_i64);
        let samples = samples.unwrap_or_else(|| DiffusionQuantConfig::default().calibration_samples);
        arguments.calibration.open(samples)?
    } else {
        None
    };
    let job = validate_model(&arguments.model, &arguments.out, threads, calibration);
    let report = in_runtime(threads, unless_interrupted(job))?;
    arguments.shown.print(&report, write_report)?;
    match min_accuracy.and_then(|floor| below(&report.tensors, floor)) {
        Some(message) => Err(QuantError::Validation { tensor: None, message }.into()),
        None => Ok(()),
    }
}

/// The tensors, worst first, and the totals.
fn write_report(report: &ValidationReport, out: &mut impl Write) -> io::Result<()> {
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
    write_facts(
        &[
            ("size", format!("{:.2} MB", report.model_size_mb)),
            ("compression ratio", format!("{:.2}", report.compression_ratio)),
            ("SQNR", decibels(report.sqnr_db)),
            ("cosine similarity", numbers::measure(report.cosine_similarity, 6)),
        ],
        out,
    )
}

fn tensor_table(tensors: &[&TensorQuality]) -> Table {
    let mut table = Table::new()
        .text("tensor")
        .number("weights")
        .number("bits")
        .number("SQNR dB")
        .number("cosine")
        .number("max error");
    for tensor in tensors {
        table.row([
            tensor_label(&tensor.component, &tensor.tensor),
            numbers::count(tensor.elements),
            tensor.bits.map_or_else(String::new, |bits| bits.to_string()),
            numbers::measure(tensor.sqnr_db, 2),
            numbers::measure(tensor.cosine_similarity, 6),
            tensor.max_abs_error.map_or_else(|| "-".to_string(), |error| format!("{error:.2e}")),
        ]);
    }
    table
}

/// Names the quantized tensors whose cosine similarity is below `floor`, if there are any. A tensor that became all
/// zeros has none, and is below every floor.
fn below(tensors: &[TensorQuality], floor: f64) -> Option<String> {
    let quantized: Vec<&TensorQuality> = tensors.iter().filter(|tensor| tensor.bits.is_some()).collect();
    let cosine = |tensor: &TensorQuality| match tensor.cosine_similarity {
        None if tensor.max_abs_error.is_some_and(|error| error > 0.0) => 0.0,
        Some(cosine) if cosine.is_nan() => -1.0,
        cosine => cosine.unwrap_or(1.0),
    };
    let lost = |tensor: &TensorQuality| tensor.cosine_similarity.is_none() && cosine(tensor) == 0.0;
    let mut below: Vec<&TensorQuality> =
        quantized.iter().copied().filter(|tensor| cosine(tensor) < floor || lost(tensor)).collect();
    below.sort_by(|a, b| cosine(a).total_cmp(&cosine(b)));
    let named = below.iter().take(NAMED).map(|tensor| {
        let cosine = numbers::measure(tensor.cosine_similarity, 6);
        format!("{} ({cosine})", tensor_label(&tensor.component, &tensor.tensor))
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let more = if below.len() > NAMED { ", …" } else { "" };
    (!below.is_empty()).then(|| {
        format!(
            "{} of {} quantized tensors are below a cosine similarity of {floor}: {named}{more}; use more bits or smaller groups",
            below.len(),
            quantized.len(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, bits: Option<u8>, cosine: Option<f64>, max_abs_error: Option<f64>) -> TensorQuality {
        TensorQuality {
            component: String::new(),
            tensor: name.to_string(),
            bits,
            elements: 100,
            cosine_similarity: cosine,
            sqnr_db: cosine.map(|_| 10.0),
            max_abs_error,
        }
    }

    #[test]
    fn those_below_the_floor_are_named_worst_first() {
        let tensors = [
            tensor("fine", Some(4), Some(0.99), Some(0.1)),
            tensor("poor", Some(4), Some(0.8), Some(0.1)),
            tensor("worse", Some(4), Some(0.7), Some(0.1)),
            tensor("lost", Some(4), None, Some(0.1)),
            tensor("zeros", Some(4), None, Some(0.0)),
            tensor("kept", None, None, None),
            tensor("weak", Some(4), Some(0.85), Some(0.1)),
        ];
        assert_eq!(
            below(&tensors, 0.9).unwrap(),
            "4 of 6 quantized tensors are below a cosine similarity of 0.9: lost (-), worse (0.700000), poor (0.800000), \
             …; use more bits or smaller groups"
        );
        assert!(below(&tensors[..1], 0.9).is_none());
    }

    #[test]
    fn an_accuracy_is_between_zero_and_one() {
        assert_eq!(accuracy("0.95").unwrap(), 0.95);
        for wrong in ["-0.1", "1.1", "NaN", "high", ""] {
            assert!(accuracy(wrong).is_err(), "{wrong}");
        }
    }
}
