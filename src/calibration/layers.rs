//! What a calibration makes of a layer: parameters of its inputs, smoothing, and the importance of its input channels.

use arrow_quant_kernels::Settings;
use serde::{Deserialize, Serialize};

use super::LayerStatistics;
use super::inputs::{ChannelWeights, Grouping, Inputs, least, mean};
use super::smoothing::{LayerWeights, Smoothing, importance};
use super::table::{ActivationRow, activation_rows};
use crate::{Result, Tensor};

/// What is asked of a calibration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub grouping: Grouping,
    pub smoothing: bool,
    pub importance: bool,
}

/// What became of the inputs of a layer, in one state of the model, and what each step gained. Gains are estimated from the
/// calibration table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The weight of the layer, `component/tensor` in a pipeline.
    pub tensor: String,
    /// The state; empty where there is none.
    pub state: String,
    /// Input channels.
    pub channels: usize,
    /// Timesteps that were measured.
    pub timesteps: usize,
    /// Groups of timesteps with parameters of their own.
    pub time_groups: usize,
    /// Alpha of the smoothing, which was chosen for the width that was planned at first; `None` without.
    pub smoothing_alpha: Option<f64>,
    /// SQNR of the quantized inputs in dB, each channel counting for what the weights make of it: the mean over timesteps.
    pub activation_sqnr_db: f64,
    /// That of the worst timestep.
    pub worst_activation_sqnr_db: f64,
    /// What clipping gained over minimum and maximum, with one group: the mean over timesteps in dB.
    pub clipping_gain_db: f64,
    /// What time groups gained over one group: the mean over timesteps in dB.
    pub time_groups_gain_db: f64,
    /// What they gained at the worst timestep.
    pub worst_time_groups_gain_db: f64,
    /// What smoothing gained, of the error of the layer's output: the mean over timesteps in dB.
    pub smoothing_gain_db: f64,
    /// What importance gained, of the error that the weights make in the output, in dB, from a sample of rows. `None` if the
    /// weights are kept, became other than planned (a fallback, another width for a target size), or are those of several
    /// layers; and if importance was not used.
    pub importance_gain_db: Option<f64>,
}

/// What a calibration makes of a layer.
#[derive(Debug, Clone)]
pub(crate) struct CalibratedLayer {
    pub tensor: String,
    pub smoothing: Option<Smoothing>,
    /// One number for each weight of a row: what `quantize` multiplies with; empty without smoothing.
    pub row_factors: Vec<f32>,
    /// One number for each weight of a row; empty if importance is not wanted.
    pub row_importance: Vec<f32>,
    pub activations: Vec<ActivationRow>,
    pub reports: Vec<LayerReport>,
}

impl CalibratedLayer {
    /// What the statistics of all states of a layer make of it. `settings` are those its weights are quantized with, `None`
    /// if they are kept.
    pub fn new(
        states: &[LayerStatistics],
        tensor: &Tensor,
        settings: Option<Settings>,
        wanted: Wanted,
    ) -> Result<Self> {
        let weights = LayerWeights::read(tensor, states[0].channels(), settings)?;
        let (smoothing, smoothing_gain_db) =
            if wanted.smoothing { weights.smoothing(states, wanted.grouping) } else { (None, 0.0) };
        let factors = smoothing.as_ref().map(|smoothing| smoothing.factors.as_slice());
        let importance = importance(states, factors);
        let gain = if wanted.importance { weights.importance_gain_db(&importance, factors) } else { None };
        let (parts, _) = weights.parts(factors);
        let channels = ChannelWeights { parts: &parts, divisors: factors };
        let (mut activations, mut reports) = (Vec::new(), Vec::new());
        for layer in states {
            let inputs = Inputs::new(layer, &channels, wanted.grouping);
            activations.extend(activation_rows(layer, &inputs));
            reports.push(LayerReport {
                tensor: layer.tensor.clone(),
                state: layer.state.clone(),
                channels: layer.channels(),
                timesteps: layer.steps.len(),
                time_groups: inputs.groups.len(),
                smoothing_alpha: smoothing.as_ref().map(|smoothing| smoothing.alpha),
                activation_sqnr_db: mean(&inputs.sqnr_db),
                worst_activation_sqnr_db: least(&inputs.sqnr_db),
                clipping_gain_db: inputs.clipping_gain_db,
                time_groups_gain_db: inputs.groups_gain_db,
                worst_time_groups_gain_db: inputs.worst_groups_gain_db,
                smoothing_gain_db,
                importance_gain_db: gain,
            });
        }
        Ok(Self {
            tensor: states[0].tensor.clone(),
            row_factors: factors.map_or_else(Vec::new, |factors| weights.of_rows(factors)),
            row_importance: if wanted.importance { weights.of_rows(&importance) } else { Vec::new() },
            smoothing,
            activations,
            reports,
        })
    }
}
