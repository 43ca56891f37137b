//! The flag that names a calibration table, and what became of it as text.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use arrow_quant_v2::{Calibration, LayerQuality, LayerReport};

use crate::numbers;
use crate::table::{LISTED, Table};

/// A calibration table.
#[derive(clap::Args)]
pub(crate) struct CalibrationArgument {
    /// What the inputs of the model's layers were: a table, .parquet or .arrow, or llama.cpp's importance matrix, .gguf or .dat
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
}

impl CalibrationArgument {
    /// Whether there is one.
    pub(crate) fn is_given(&self) -> bool {
        self.calibration.is_some()
    }

    /// Reads the table, if there is one; so many samples of it are used.
    pub(crate) fn open(&self, samples: i64) -> arrow_quant_v2::Result<Option<Arc<Calibration>>> {
        self.calibration.as_ref().map(|path| Calibration::open(path, samples).map(Arc::new)).transpose()
    }
}

/// What became of layers, and what each step gained.
pub(crate) fn write_layers(layers: &[LayerReport], out: &mut impl Write) -> io::Result<()> {
    if layers.is_empty() {
        return Ok(());
    }
    let mut table = Table::new()
        .names("inputs of")
        .number("SQNR dB")
        .number("worst dB")
        .number("groups")
        .number("alpha")
        .number("clipping +dB")
        .number("groups +dB")
        .number("worst +dB")
        .number("smoothing +dB")
        .number("importance +dB");
    let mut worst: Vec<&LayerReport> = layers.iter().collect();
    worst.sort_by(|a, b| a.worst_activation_sqnr_db.total_cmp(&b.worst_activation_sqnr_db));
    for layer in worst.iter().take(LISTED) {
        let decibels = |figure: f64| format!("{figure:.2}");
        table.row([
            label(&layer.tensor, &layer.state),
            decibels(layer.activation_sqnr_db),
            decibels(layer.worst_activation_sqnr_db),
            layer.time_groups.to_string(),
            numbers::measure(layer.smoothing_alpha, 2),
            decibels(layer.clipping_gain_db),
            decibels(layer.time_groups_gain_db),
            decibels(layer.worst_time_groups_gain_db),
            decibels(layer.smoothing_gain_db),
            numbers::measure(layer.importance_gain_db, 2),
        ]);
    }
    write_table(&table, layers.len(), out)
}

/// How good the parameters of layers' inputs are.
pub(crate) fn write_qualities(layers: &[LayerQuality], out: &mut impl Write) -> io::Result<()> {
    if layers.is_empty() {
        return Ok(());
    }
    let mut table = Table::new()
        .names("inputs of")
        .number("output dB")
        .number("worst output dB")
        .number("SQNR dB")
        .number("worst dB")
        .number("groups")
        .number("loss dB")
        .number("worst loss dB")
        .number("smoothing error");
    let mut worst: Vec<&LayerQuality> = layers.iter().collect();
    worst.sort_by(|a, b| a.worst_output_sqnr_db.total_cmp(&b.worst_output_sqnr_db));
    for layer in worst.iter().take(LISTED) {
        let decibels = |figure: f64| format!("{figure:.2}");
        table.row([
            label(&layer.tensor, &layer.state),
            decibels(layer.output_sqnr_db),
            decibels(layer.worst_output_sqnr_db),
            decibels(layer.activation_sqnr_db),
            decibels(layer.worst_activation_sqnr_db),
            layer.time_groups.to_string(),
            decibels(layer.loss_db),
            decibels(layer.worst_loss_db),
            layer.smoothing_error.map_or_else(|| "-".to_string(), |error| format!("{error:.1e}")),
        ]);
    }
    write_table(&table, layers.len(), out)
}

fn label(tensor: &str, state: &str) -> String {
    if state.is_empty() { tensor.to_string() } else { format!("{tensor} ({state})") }
}

fn write_table(table: &Table, layers: usize, out: &mut impl Write) -> io::Result<()> {
    table.write(out)?;
    match layers.saturating_sub(LISTED) {
        0 => Ok(()),
        more => writeln!(out, "… and {more} more: list them with --json"),
    }
}
