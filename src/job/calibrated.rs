//! What a calibration has to say on a job: how the inputs of layers are quantized, and what that makes of their weights.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_quant_kernels::Settings;
use parquet::arrow::ArrowWriter;
use sha2::{Digest, Sha256};

use super::JobOptions;
use super::part::hex;
use super::plan::TensorPlan;
use super::progress::{Stage, StageProgress};
use super::workers::on_threads;
use crate::calibration::{CalibratedLayer, Grouping, Smoothing, Wanted, activation_table, smoothing_table};
use crate::{Calibration, DiffusionQuantConfig, LayerReport, Model, QuantError, Result};

/// The file of the parameters of activations.
pub(crate) const ACTIVATIONS: &str = "activations.parquet";

/// The file of smoothing.
pub(crate) const SMOOTHING: &str = "smoothing.parquet";

/// What the input channels of a layer have to say on its weights: one number a weight of a row, or none.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Channels {
    pub importance: Vec<f32>,
    pub smoothing: Vec<f32>,
    /// Of both.
    pub hash: String,
}

impl Channels {
    fn new(importance: Vec<f32>, smoothing: Vec<f32>) -> Self {
        let mut hash = Sha256::new();
        for list in [&importance, &smoothing] {
            hash.update(list.len().to_le_bytes());
            list.iter().for_each(|x| hash.update(x.to_le_bytes()));
        }
        Self { importance, smoothing, hash: hex(hash)[..16].to_string() }
    }
}

/// Whether a job is time-aware, why if not, and what became of the layers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calibrated {
    pub time_aware: bool,
    pub reason: Option<String>,
    pub layers: Vec<LayerReport>,
    /// The tables to be written: names and contents of their files.
    pub tables: Vec<(&'static str, Vec<u8>)>,
}

impl Calibrated {
    /// Bytes of the tables.
    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// A hash of the tables; empty without any.
    pub fn hash(&self) -> String {
        if self.tables.is_empty() {
            return String::new();
        }
        let mut hash = Sha256::new();
        self.tables.iter().for_each(|(_, bytes)| hash.update(bytes));
        hex(hash)[..16].to_string()
    }

    /// Of a job without a calibration.
    pub fn none() -> Self {
        Self { reason: Some("no calibration".to_string()), ..Self::default() }
    }
}

/// Finds out what a calibration makes of each layer, and plans what that makes of its weights.
///
/// # Errors
/// If the calibration is not of the model.
pub(crate) async fn calibrate(
    calibration: &Calibration,
    model: &Arc<Model>,
    plans: &mut [TensorPlan],
    settings: Settings,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
) -> Result<Calibrated> {
    let mut work = Vec::new();
    for (index, states) in calibration.tensors(model)? {
        let is_tied = plans[index].same_as.is_some() || plans.iter().any(|plan| plan.same_as == Some(index));
        let grouping = config.grouping()?;
        let wanted = Wanted {
            grouping: if config.enable_time_aware { grouping } else { Grouping { most: 1, ..grouping } },
            // Of a weight that is used in two places, the inputs in the other one are not known.
            smoothing: config.enable_spatial && !is_tied,
            importance: config.enable_time_aware,
        };
        work.push((index, states.to_vec(), plans[index].choice.map(|choice| choice.with(settings)), wanted));
    }
    let stored: Vec<usize> = work.iter().map(|(index, ..)| plans[*index].same_as.unwrap_or(*index)).collect();
    let total = work.iter().map(|(index, ..)| model.tensors()[*index].elements()).sum();
    let progress = Arc::new(StageProgress::new(Stage::Calibrating, total, options.listener()));
    let (model, counted) = (Arc::clone(model), Arc::clone(&progress));
    let layers = on_threads(config.threads(), work.len(), move |at| {
        let (index, states, settings, wanted) = &work[at];
        let tensor = &model.tensors()[*index];
        let layer = CalibratedLayer::new(states, tensor, *settings, *wanted)?;
        counted.add(tensor.elements(), &tensor.name);
        Ok(layer)
    });
    let layers = layers.await?;
    progress.finish();
    for (index, layer) in stored.into_iter().zip(&layers) {
        let plan = &mut plans[index];
        // Of two layers with the same weights, the first decides.
        if plan.channels.is_none() && !(layer.row_importance.is_empty() && layer.row_factors.is_empty()) {
            plan.channels = Some(Arc::new(Channels::new(layer.row_importance.clone(), layer.row_factors.clone())));
        }
    }
    let rows: Vec<_> = layers.iter().flat_map(|layer| layer.activations.iter().cloned()).collect();
    let mut tables = vec![(ACTIVATIONS, encoded(&activation_table(&rows)?)?)];
    let smoothed: Vec<(&str, &Smoothing)> =
        layers.iter().filter_map(|layer| Some((layer.tensor.as_str(), layer.smoothing.as_ref()?))).collect();
    if !smoothed.is_empty() {
        tables.push((SMOOTHING, encoded(&smoothing_table(&smoothed)?)?));
    }
    Ok(Calibrated {
        time_aware: config.enable_time_aware,
        reason: (!config.enable_time_aware).then(|| "enable_time_aware is false".to_string()),
        layers: layers.into_iter().flat_map(|layer| layer.reports).collect(),
        tables,
    })
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
    let (layers, channels) = calibration.size();
    let groups = if config.enable_time_aware { config.num_time_groups.unsigned_abs() } else { 1 };
    let smoothing = if config.enable_spatial { OVERHEAD[0] + 4 * channels } else { 0 };
    OVERHEAD[0] + OVERHEAD[1] * layers * groups + smoothing
}
