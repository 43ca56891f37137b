//! `arrow-quant report`: what a quantized model says of itself, as text or as a page of HTML. And the same text after a
//! job.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use arrow_quant_v2::{Attempt, ModelReport, QuantError, RecordedReason, TensorReport};

use crate::calibration::write_layers;
use crate::failure::Failure;
use crate::table::{LISTED, Table, tensor_label, write_facts};
use crate::{numbers, output};

/// The most tensors that fell back which a report lists.
const FALLBACKS: usize = 10;

/// What help says after the flags.
const EXAMPLES: &str = "\
Examples:
  arrow-quant report dream-7b-int4
  arrow-quant report dream-7b-int4 --html report.html";

/// Arguments of `arrow-quant report`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The quantized model
    out: PathBuf,
    /// Write a page of HTML that needs nothing else, instead of printing the report; an older one is replaced
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Shows the report.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let report = ModelReport::open(&arguments.out)?;
    if let Some(path) = &arguments.html {
        let written = fs::write(path, report.to_html());
        return Ok(written.map_err(|source| QuantError::Io { path: path.clone(), source })?);
    }
    if arguments.json {
        return output::write_json(&report);
    }
    let mut out = output::stdout();
    // What made the model may have been a program of another kind: its settings have the names of fields.
    write_report(&report, &[], &RecordedReason::to_string, &mut out)?;
    out.flush()?;
    Ok(())
}

/// What makes a sentence of a reason.
pub(crate) type Because<'a> = &'a dyn Fn(&RecordedReason) -> String;

/// The tensors, worst first, and the totals.
pub(crate) fn write_report(
    report: &ModelReport,
    more: &[(&str, String)],
    because: Because<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut quantized: Vec<&TensorReport> = report.tensors.iter().filter(|tensor| tensor.bits.is_some()).collect();
    quantized.sort_by(|a, b| worse_first(a.sqnr_db, b.sqnr_db));
    if !quantized.is_empty() {
        tensor_table(&quantized[..quantized.len().min(LISTED)]).write(out)?;
        write_unlisted(quantized.len(), out)?;
    }
    for line in decisions(&report.tensors, because) {
        writeln!(out, "{line}")?;
    }
    write_layers(&report.layers, out)?;
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    writeln!(out)?;
    let totals = &report.totals;
    let sizes = (numbers::bytes(totals.original_bytes), numbers::bytes(totals.stored_bytes));
    let mut facts = vec![
        ("weights", numbers::count(totals.weights)),
        ("size", format!("{} → {}", sizes.0, sizes.1)),
        ("compression ratio", per_weight(totals.compression_ratio, totals.weights)),
        ("bits per weight", per_weight(totals.bits_per_weight, totals.weights)),
        ("SQNR", decibels(totals.sqnr_db)),
        ("cosine similarity", numbers::measure(totals.cosine_similarity, 6)),
        ("time-aware", time_aware(report)),
    ];
    facts.extend(target(report).map(|target| ("target", target)));
    write_facts(&[facts.as_slice(), more].concat(), out)?;
    writeln!(out, "\n{}", numbers::DECIBELS)
}

/// The target size, if there was one, in its unit; what was reached is above it.
fn target(report: &ModelReport) -> Option<String> {
    let asked = |name: &str| report.settings.get(name).and_then(serde_json::Value::as_f64);
    let bits = asked("target_bpw").map(|bits| format!("{bits} bits per weight"));
    bits.or_else(|| asked("target_model_size_mb").map(|size| numbers::bytes((size * 1e6) as u64)))
}

/// A figure that takes weights to have a meaning.
pub(crate) fn per_weight(figure: f64, weights: u64) -> String {
    numbers::measure((weights > 0).then_some(figure), 2)
}

/// `no: no calibration`, or the time groups there are.
fn time_aware(report: &ModelReport) -> String {
    let why = |reason: &String| format!(": {reason}");
    let (layers, groups) = (report.layers.len(), report.layers.iter().map(|layer| layer.time_groups).sum::<usize>());
    match report.time_aware {
        true => format!("yes: {groups} time groups in {layers} layers"),
        false => format!("no{}", report.reason.as_ref().map_or_else(String::new, why)),
    }
}

/// What was decided for tensors: those kept, those that fell back, those of other widths than most, and ties.
fn decisions(tensors: &[TensorReport], because: Because<'_>) -> Vec<String> {
    let mut lines: Vec<String> = kept(tensors, because).into_iter().collect();
    let fell_back = || tensors.iter().filter(|tensor| !tensor.fallbacks.is_empty() && tensor.same_as.is_none());
    for tensor in fell_back().take(FALLBACKS) {
        let tried = |attempt: &Attempt| {
            let cosine = numbers::measure(attempt.cosine_similarity, 6);
            format!("{} bits ({} dB, cosine {cosine})", attempt.bits, numbers::measure(attempt.sqnr_db, 2))
        };
        let tried: Vec<String> = tensor.fallbacks.iter().map(tried).collect();
        let now = tensor.bits.map_or("kept".to_string(), |bits| format!("{bits} bits"));
        let label = tensor_label(&tensor.component, &tensor.tensor);
        lines.push(format!("fell back: {label} from {} to {now}", tried.join(", ")));
    }
    if let more @ 1.. = fell_back().count().saturating_sub(FALLBACKS) {
        lines.push(format!("… and {more} more fell back: list them with --json"));
    }
    let ties = tensors.iter().filter_map(|tensor| Some((tensor, tensor.same_as.as_ref()?)));
    lines.extend(ties.map(|(tensor, first)| {
        format!("tied: {} is stored once, as {first}", tensor_label(&tensor.component, &tensor.tensor))
    }));
    lines
}

fn tensor_table(tensors: &[&TensorReport]) -> Table {
    let mut table = Table::new()
        .names("tensor")
        .number("SQNR dB")
        .number("cosine")
        .number("max error")
        .number("bits")
        .number("group")
        .number("bits per weight")
        .text("shape");
    for tensor in tensors {
        table.row([
            tensor_label(&tensor.component, &tensor.tensor),
            numbers::measure(tensor.sqnr_db, 2),
            numbers::measure(tensor.cosine_similarity, 6),
            greatest_error(tensor.max_abs_error),
            tensor.bits.map_or_else(String::new, |bits| bits.to_string()),
            tensor.grouping(),
            format!("{:.2}", tensor.bits_per_weight()),
            format!("{:?}", tensor.shape),
        ]);
    }
    table
}

/// The greatest difference of a weight, with the digits that count.
pub(crate) fn greatest_error(error: Option<f64>) -> String {
    error.map_or_else(|| "-".to_string(), |error| format!("{error:.2e}"))
}

/// `kept: 23 tensors at their own dtype (1-D 20, not selected 3)`, if any were kept.
fn kept(tensors: &[TensorReport], because: Because<'_>) -> Option<String> {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in tensors.iter().filter(|tensor| tensor.bits.is_none()) {
        let reason = if tensor.fallbacks.is_empty() { because(&tensor.because) } else { "below the floor".to_string() };
        *reasons.entry(reason).or_default() += 1;
    }
    let count: usize = reasons.values().sum();
    let mut reasons: Vec<(String, usize)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, tensors)| std::cmp::Reverse(*tensors));
    let reasons: Vec<String> = reasons.iter().map(|(reason, tensors)| format!("{reason} {tensors}")).collect();
    (count > 0).then(|| format!("kept: {} at their own dtype ({})", tensors_of(count), reasons.join(", ")))
}

/// Says how many of `tensors` the table leaves out, if any.
pub(crate) fn write_unlisted(tensors: usize, out: &mut impl Write) -> io::Result<()> {
    match tensors.saturating_sub(LISTED) {
        0 => Ok(()),
        more => writeln!(out, "… and {more} more with a higher SQNR: list them with --json or arrow-quant sql"),
    }
}

/// `1 tensor`, `2 tensors`.
pub(crate) fn tensors_of(count: usize) -> String {
    if count == 1 { "1 tensor".to_string() } else { format!("{count} tensors") }
}

/// An SQNR with its unit.
pub(crate) fn decibels(sqnr_db: Option<f64>) -> String {
    let figure = numbers::measure(sqnr_db, 2);
    if sqnr_db.is_some_and(f64::is_finite) { figure + " dB" } else { figure }
}

/// Orders by quality, lowest first, undefined last.
pub(crate) fn worse_first(a: Option<f64>, b: Option<f64>) -> std::cmp::Ordering {
    let rank = |quality: Option<f64>| (quality.is_none(), quality.unwrap_or(0.0));
    let ((a_missing, a), (b_missing, b)) = (rank(a), rank(b));
    a_missing.cmp(&b_missing).then(a.total_cmp(&b))
}

#[cfg(test)]
mod tests {
    use arrow_quant_v2::{Reason, Totals};

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
            because: Reason::Recorded { sentence: kept_because.unwrap_or("bit_width").to_string() }.into(),
            bytes: 4352,
            cosine_similarity: sqnr_db.map(|_| 0.995),
            sqnr_db,
            max_abs_error: sqnr_db.map(|_| 0.1),
            ..TensorReport::default()
        }
    }

    fn report(tensors: Vec<TensorReport>) -> String {
        let report = ModelReport {
            name: "model".to_string(),
            source_files: vec![],
            created_by: String::new(),
            settings: serde_json::Map::new(),
            modality: None,
            notes: vec!["this and that".to_string()],
            time_aware: false,
            reason: Some("no calibration".to_string()),
            layers: vec![],
            tensors,
            totals: Totals {
                weights: 1_240_000,
                original_bytes: 2_480_000,
                stored_bytes: 666_000,
                bits_per_weight: 4.297,
                compression_ratio: 3.724,
                cosine_similarity: Some(0.995),
                sqnr_db: Some(20.614),
                squared_error: 1.0,
            },
        };
        let mut out = Vec::new();
        write_report(&report, &[], &RecordedReason::to_string, &mut out).unwrap();
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
        assert!(text.contains("note: this and that\n"), "{text}");
        assert!(text.contains("2.48 MB → 666 kB") && text.contains("20.61 dB"), "{text}");
    }

    #[test]
    fn a_long_report_is_cut() {
        let text = report((0..50).map(|index| tensor("some", Some(f64::from(index)), None)).collect());
        assert_eq!(text.matches("unet/some").count(), LISTED);
        assert!(text.contains("… and 10 more"), "{text}");
    }

    #[test]
    fn what_fell_back_says_from_what_to_what() {
        let attempt = |bits| Attempt {
            encoding: format!("int{bits}"),
            bits,
            group_size: Some(64),
            cosine_similarity: Some(0.6),
            sqnr_db: Some(2.0),
        };
        let mut poor = tensor("poor", Some(20.0), None);
        poor.fallbacks = vec![attempt(2)];
        let mut lost = tensor("lost", None, Some("fallback"));
        lost.fallbacks = vec![attempt(2), attempt(4)];
        let mut tied = tensor("tied", Some(20.0), None);
        tied.same_as = Some("unet/poor".to_string());
        let text = report(vec![poor, lost, tied]);
        for line in [
            "kept: 1 tensor at their own dtype (below the floor 1)\n",
            "fell back: unet/poor from 2 bits (2.00 dB, cosine 0.600000) to 4 bits\n",
            "fell back: unet/lost from 2 bits (2.00 dB, cosine 0.600000), 4 bits (2.00 dB, cosine 0.600000) to kept\n",
            "tied: unet/tied is stored once, as unet/poor\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
