//! What a calibration has to say on a job: how the inputs of layers are quantized, and what that makes of their weights.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_quant_formats::ContentHash;
use arrow_quant_formats::manifest::{ACTIVATIONS, SMOOTHING};
use parquet::arrow::ArrowWriter;

use super::imatrix::plan_importance;
use super::inputs::Grouping;
use super::layers::{CalibratedLayer, Wanted};
use super::smoothing::Smoothing;
use super::table::{activation_table, smoothing_table};
use crate::plan::{Channels, Choice, JobSettings, TensorPlan};
use crate::report::{Listener, Stage, StageProgress};
use crate::workers::on_threads;
use crate::{Calibration, DiffusionQuantConfig, LayerReport, Model, QuantError, Result};

/// Whether a job is time-aware, why if not, and what became of the layers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calibrated {
    pub time_aware: bool,
    pub reason: Option<String>,
    pub layers: Vec<LayerReport>,
    /// What there is to know beside.
    pub notes: Vec<String>,
    /// The tables to be written: names and contents of their files.
    pub tables: Vec<(&'static str, Vec<u8>)>,
}

impl Calibrated {
    /// Bytes of the tables.
    pub(crate) fn bytes(&self) -> u64 {
        self.tables.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// A hash of the tables; empty without any.
    pub(crate) fn hash(&self) -> String {
        if self.tables.is_empty() {
            return String::new();
        }
        let mut hash = ContentHash::new();
        self.tables.iter().for_each(|(_, bytes)| hash.update(bytes));
        hash.finish()[..16].to_string()
    }

    /// Takes back what was estimated of weights that became other than planned when it was.
    pub(crate) fn forget_gains(&mut self, planned: &[TensorPlan], became: &[TensorPlan]) {
        for (_, became) in planned.iter().zip(became).filter(|(planned, became)| planned.choice != became.choice) {
            let name = became.name();
            for report in self.layers.iter_mut().filter(|report| report.tensor == name) {
                report.importance_gain_db = None;
            }
        }
    }

    /// Of a job without a calibration.
    pub(crate) fn none() -> Self {
        Self { reason: Some("no calibration".to_string()), ..Self::default() }
    }
}

/// Finds out what a calibration makes of each layer, and plans what that makes of its weights.
///
/// # Errors
/// If the calibration is not of the model.
pub(crate) async fn calibrate(
    calibration: &Arc<Calibration>,
    model: &Arc<Model>,
    plans: &mut [TensorPlan],
    settings: JobSettings,
    config: &DiffusionQuantConfig,
    listener: Listener,
) -> Result<Calibrated> {
    if calibration.is_imatrix() {
        let notes = plan_importance(calibration, model, plans)?.into_iter().collect();
        let reason = Some("the calibration is an importance matrix".to_string());
        return Ok(Calibrated { reason, notes, ..Calibrated::default() });
    }
    let layers = calibration.tensors(model)?;
    let tensors: Vec<usize> = layers.iter().map(|(tensor, _)| *tensor).collect();
    let stored: Vec<usize> = tensors.iter().map(|&tensor| plans[tensor].same_as.unwrap_or(tensor)).collect();
    let grouping = Grouping::of(config);
    // Inputs of models without timesteps are not quantized as a rule, and smoothing makes their weights worse.
    let smooths = config.smooths() && calibration.has_timesteps();
    let mut work = Vec::new();
    for &tensor in &tensors {
        let is_tied = plans[tensor].same_as.is_some() || plans.iter().any(|plan| plan.same_as == Some(tensor));
        let choice = plans[tensor].choice;
        let wanted = Wanted {
            grouping: if config.enable_time_aware { grouping } else { Grouping { most: 1, ..grouping } },
            // Of a weight that is used in two places, the inputs in the other one may not be known. Blocks are for runtimes
            // that have no place for factors.
            smoothing: smooths && !is_tied && !matches!(choice, Some(Choice::Block(_))),
            importance: config.enable_time_aware || config.method.feeds_back(),
        };
        work.push((choice, wanted));
    }
    let total = tensors.iter().map(|&tensor| model.tensors()[tensor].elements()).sum();
    let progress = Arc::new(StageProgress::new(Stage::Calibrating, total, listener));
    let (model, calibration, counted) = (Arc::clone(model), Arc::clone(calibration), Arc::clone(&progress));
    let layers = on_threads(config.threads(), work.len(), move |at| {
        let ((tensor, range), (choice, wanted)) = (&layers[at], work[at]);
        let tensor = &model.tensors()[*tensor];
        let layer =
            CalibratedLayer::new(calibration.states(range), tensor, choice.map(|choice| (choice, settings)), wanted)?;
        counted.add(tensor.elements(), &tensor.name);
        Ok(layer)
    });
    let mut layers = layers.await?;
    progress.finish();
    for &index in &stored {
        if plans[index].channels.is_none() {
            plans[index].channels = channels(index, &stored, &mut layers);
        }
    }
    let tables = tables(&layers)?;
    let note = "the calibration has one timestep: inputs are not smoothed, enable_spatial has no effect";
    Ok(Calibrated {
        time_aware: config.enable_time_aware,
        reason: (!config.enable_time_aware).then(|| "enable_time_aware is false".to_string()),
        layers: layers.into_iter().flat_map(|layer| layer.reports).collect(),
        notes: if config.smooths() && !smooths { vec![note.to_string()] } else { Vec::new() },
        tables,
    })
}

/// The tables that layers become.
fn tables(layers: &[CalibratedLayer]) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let rows: Vec<_> = layers.iter().flat_map(|layer| layer.activations.iter().cloned()).collect();
    let mut tables = vec![(ACTIVATIONS, encoded(&activation_table(&rows)?)?)];
    let smoothed: Vec<(&str, &Smoothing)> =
        layers.iter().filter_map(|layer| Some((layer.tensor.as_str(), layer.smoothing.as_ref()?))).collect();
    if !smoothed.is_empty() {
        tables.push((SMOOTHING, encoded(&smoothing_table(&smoothed)?)?));
    }
    Ok(tables)
}

/// What all layers with the same weights have to say on these: smoothing, if there is but one of them, and the mean of their
/// importance.
fn channels(index: usize, stored: &[usize], layers: &mut [CalibratedLayer]) -> Option<Arc<Channels>> {
    let with_it: Vec<usize> = (0..layers.len()).filter(|&at| stored[at] == index).collect();
    let first = &layers[*with_it.first()?];
    let (mut importance, smoothing) = (first.row_importance.clone(), first.row_factors.clone());
    if with_it.len() > 1 {
        for (at, mean) in importance.iter_mut().enumerate() {
            let sum: f32 = with_it.iter().map(|&layer| layers[layer].row_importance[at]).sum();
            *mean = sum / with_it.len() as f32;
        }
        // What was estimated was with the importance of one of them.
        for &layer in &with_it {
            layers[layer].reports.iter_mut().for_each(|report| report.importance_gain_db = None);
        }
    }
    let is_empty = importance.is_empty() && smoothing.is_empty();
    (!is_empty).then(|| Arc::new(Channels::new(importance, smoothing)))
}

/// A table as a Parquet file.
fn encoded(table: &RecordBatch) -> Result<Vec<u8>> {
    let failed = |error: parquet::errors::ParquetError| QuantError::Quantization {
        tensor: None,
        message: format!("a table of the calibration cannot be written: {error}"),
    };
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, table.schema(), None).map_err(failed)?;
    writer.write(table).and_then(|()| writer.close().map(drop)).map_err(failed)?;
    Ok(bytes)
}

/// Bytes of the tables that a calibration will become, more or less.
pub(crate) fn expected_bytes(calibration: &Calibration, config: &DiffusionQuantConfig) -> u64 {
    /// Of a file, and of a row of the parameters of activations.
    const OVERHEAD: [u64; 2] = [6000, 60];
    if calibration.is_imatrix() {
        return 0;
    }
    let (layers, channels) = calibration.size();
    let groups = if config.enable_time_aware { u64::from(config.num_time_groups) } else { 1 };
    let smoothing = if config.smooths() { OVERHEAD[0] + 4 * channels } else { 0 };
    OVERHEAD[0] + OVERHEAD[1] * layers * groups + smoothing
}
