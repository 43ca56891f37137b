//! `arrow-quant quantize`: write a quantized copy of a model and report its quality.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use arrow_quant_kernels::{Method, Scheme};
use arrow_quant_v2::{DeploymentProfile, DiffusionQuantConfig, QuantizeReport, TensorReport, quantize_model};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use tokio::runtime::Runtime;

use crate::failure::Failure;
use crate::interrupt::unless_interrupted;
use crate::progress::Meter;
use crate::table::{Table, tensor_label, write_facts};
use crate::{numbers, output};

/// The most tensors a report lists; the rest is counted.
pub const LISTED: usize = 40;

/// Arguments of `arrow-quant quantize`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The model: a safetensors file, a model directory or a diffusers pipeline
    model: PathBuf,
    /// The directory to write; it must not exist
    out: PathBuf,
    /// Where the model will run: edge is 2 bits in groups of 256, local 4 in 128, cloud 8 in 64
    #[arg(long, default_value = "local", value_parser = PossibleValuesParser::new(["edge", "local", "cloud"]))]
    profile: String,
    /// Bits per code, instead of the profile's
    #[arg(long, value_parser = PossibleValuesParser::new(["2", "4", "8"]).try_map(|text| text.parse::<i64>()))]
    bits: Option<i64>,
    /// Weights that share a scale, instead of the profile's
    #[arg(
        long,
        value_name = "N",
        value_parser = PossibleValuesParser::new(["32", "64", "128", "256"]).try_map(|text| text.parse::<i64>())
    )]
    group_size: Option<i64>,
    /// What a code means, instead of the profile's
    #[arg(long, value_parser = PossibleValuesParser::new(Scheme::ALL.iter().map(|scheme| scheme.name())))]
    scheme: Option<String>,
    /// How scales are found, instead of the profile's
    #[arg(long, value_parser = PossibleValuesParser::new(Method::ALL.iter().map(|method| method.name())))]
    method: Option<String>,
    /// Quantize only tensors whose name matches; the others keep their dtype
    #[arg(long, value_name = "REGEX")]
    tensors: Option<String>,
    /// Print nothing but errors
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// The profile's settings under the flags that were given.
    fn config(&self, threads: usize) -> arrow_quant_v2::Result<DiffusionQuantConfig> {
        let mut config = DiffusionQuantConfig::from_profile(self.profile.parse::<DeploymentProfile>()?);
        config.num_threads = threads;
        config.tensors.clone_from(&self.tensors);
        if let Some(bits) = self.bits {
            config.bit_width = bits;
        }
        if let Some(group_size) = self.group_size {
            config.group_size = group_size;
        }
        if let Some(scheme) = &self.scheme {
            config.scheme.clone_from(scheme);
        }
        if let Some(method) = &self.method {
            config.method.clone_from(method);
        }
        config.validate()?;
        Ok(config)
    }
}

/// Quantizes the model and shows the report. `threads` of 0 are all cores.
pub fn run(arguments: &Arguments, runtime: &Runtime, threads: usize) -> Result<(), Failure> {
    let config = arguments.config(threads)?;
    let meter = Meter::new(arguments.quiet, arguments.json);
    let job = quantize_model(&arguments.model, &arguments.out, &config, meter.callback());
    let interrupted = format!("interrupted; nothing was written to {}", arguments.out.display());
    let report = runtime.block_on(unless_interrupted(job, &interrupted))?;
    drop(meter);
    if arguments.quiet {
        return Ok(());
    }
    if arguments.json {
        return output::write_json(&report);
    }
    let mut out = output::stdout();
    write_report(&report, &mut out)?;
    out.flush()?;
    Ok(())
}

/// The tensors, worst first, and the totals.
fn write_report(report: &QuantizeReport, out: &mut impl Write) -> io::Result<()> {
    let mut quantized: Vec<&TensorReport> = report.tensors.iter().filter(|tensor| tensor.bits.is_some()).collect();
    quantized.sort_by(|a, b| worse_first(a.sqnr_db, b.sqnr_db));
    if !quantized.is_empty() {
        tensor_table(&quantized[..quantized.len().min(LISTED)]).write(out)?;
        write_unlisted(quantized.len(), out)?;
    }
    if let Some(kept) = kept(&report.tensors) {
        writeln!(out, "{kept}")?;
    }
    writeln!(out)?;
    let sizes = (numbers::bytes(report.original_bytes), numbers::bytes(report.stored_bytes));
    write_facts(
        &[
            ("weights", numbers::count(report.weights)),
            ("size", format!("{} → {}", sizes.0, sizes.1)),
            ("compression ratio", format!("{:.2}", report.compression_ratio)),
            ("bits per weight", format!("{:.2}", report.bits_per_weight)),
            ("SQNR", decibels(report.sqnr_db)),
            ("cosine similarity", numbers::measure(report.cosine_similarity, 6)),
            ("time", format!("{:.2} s", report.quantization_time_s)),
            ("written to", report.output.display().to_string()),
        ],
        out,
    )
}

fn tensor_table(tensors: &[&TensorReport]) -> Table {
    let mut table = Table::new()
        .text("tensor")
        .text("shape")
        .number("bits")
        .number("bits per weight")
        .number("SQNR dB")
        .number("cosine");
    for tensor in tensors {
        table.row([
            tensor_label(&tensor.component, &tensor.tensor),
            format!("{:?}", tensor.shape),
            tensor.bits.map_or_else(String::new, |bits| bits.to_string()),
            format!("{:.2}", tensor.bits_per_weight()),
            numbers::measure(tensor.sqnr_db, 2),
            numbers::measure(tensor.cosine_similarity, 6),
        ]);
    }
    table
}

/// `kept: 23 tensors at their own dtype (1-D 20, not selected 3)`, if any were kept.
fn kept(tensors: &[TensorReport]) -> Option<String> {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for tensor in tensors.iter().filter(|tensor| tensor.bits.is_none()) {
        *reasons.entry(tensor.kept_because.as_deref().unwrap_or("no reason given")).or_default() += 1;
    }
    let count: usize = reasons.values().sum();
    let mut reasons: Vec<(&str, usize)> = reasons.into_iter().collect();
    reasons.sort_by_key(|&(_, tensors)| std::cmp::Reverse(tensors));
    let reasons: Vec<String> = reasons.iter().map(|(reason, tensors)| format!("{reason} {tensors}")).collect();
    (count > 0).then(|| format!("kept: {} at their own dtype ({})", tensors_of(count), reasons.join(", ")))
}

/// Says how many of `tensors` the table leaves out, if any.
pub fn write_unlisted(tensors: usize, out: &mut impl Write) -> io::Result<()> {
    match tensors.saturating_sub(LISTED) {
        0 => Ok(()),
        more => writeln!(out, "… and {more} more with a higher SQNR: list them with --json or arrow-quant sql"),
    }
}

/// `1 tensor`, `2 tensors`.
pub fn tensors_of(count: usize) -> String {
    if count == 1 { "1 tensor".to_string() } else { format!("{count} tensors") }
}

/// An SQNR with its unit.
pub fn decibels(sqnr_db: Option<f64>) -> String {
    let figure = numbers::measure(sqnr_db, 2);
    if sqnr_db.is_some_and(f64::is_finite) { figure + " dB" } else { figure }
}

/// Orders by quality, lowest first, undefined last.
pub fn worse_first(a: Option<f64>, b: Option<f64>) -> std::cmp::Ordering {
    let rank = |quality: Option<f64>| (quality.is_none(), quality.unwrap_or(0.0));
    let ((a_missing, a), (b_missing, b)) = (rank(a), rank(b));
    a_missing.cmp(&b_missing).then(a.total_cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, sqnr_db: Option<f64>, kept_because: Option<&str>) -> TensorReport {
        TensorReport {
            component: "unet".to_string(),
            tensor: name.to_string(),
            dtype: "BF16".to_string(),
            shape: vec![64, 128],
            elements: 8192,
            bits: kept_because.is_none().then_some(4),
            group_size: kept_because.is_none().then_some(128),
            kept_because: kept_because.map(str::to_string),
            bytes: 4352,
            cosine_similarity: sqnr_db.map(|_| 0.995),
            sqnr_db,
            max_abs_error: sqnr_db.map(|_| 0.1),
        }
    }

    fn report(tensors: Vec<TensorReport>) -> String {
        let report = QuantizeReport {
            model: "model".into(),
            output: "out".into(),
            tensors,
            weights: 1_240_000,
            original_bytes: 2_480_000,
            stored_bytes: 666_000,
            bits_per_weight: 4.297,
            compression_ratio: 3.724,
            cosine_similarity: Some(0.995),
            sqnr_db: Some(20.614),
            quantization_time_s: 0.42,
        };
        let mut out = Vec::new();
        write_report(&report, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_worst_come_first_and_kept_tensors_are_counted() {
        let text = report(vec![
            tensor("good", Some(30.0), None),
            tensor("zeros", None, None),
            tensor("bad", Some(9.5), None),
            tensor("norm", None, Some("1-D")),
            tensor("bias", None, Some("1-D")),
            tensor("other", None, Some("not selected")),
        ]);
        let position = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name} is missing in {text}"));
        assert!(position("unet/bad") < position("unet/good") && position("unet/good") < position("unet/zeros"));
        assert!(text.contains("kept: 3 tensors at their own dtype (1-D 2, not selected 1)\n"), "{text}");
        assert!(text.contains("2.48 MB → 666 kB") && text.contains("20.61 dB"), "{text}");
    }

    #[test]
    fn a_long_report_is_cut() {
        let text = report((0..50).map(|index| tensor("some", Some(f64::from(index)), None)).collect());
        assert_eq!(text.matches("unet/some").count(), LISTED);
        assert!(text.contains("… and 10 more"), "{text}");
    }
}
