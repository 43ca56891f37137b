//! What a calibration makes of a layer: parameters of its inputs, smoothing, and the importance of its input channels.

use super::LayerStatistics;
use super::decibels::{least, mean};
use super::inputs::{ChannelWeights, Grouping, Inputs};
use super::smoothing::{LayerWeights, Smoothing, importance};
use super::table::{ActivationRow, activation_rows};
use crate::plan::{Choice, JobSettings};
use crate::{LayerReport, Result, Tensor};

/// What is asked of a calibration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub grouping: Grouping,
    pub smoothing: bool,
    pub importance: bool,
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
    /// What the statistics of all states of a layer make of it. `quantized` is how its weights are quantized, `None`
    /// if they are kept.
    pub(super) fn new(
        states: &[LayerStatistics],
        tensor: &Tensor,
        quantized: Option<(Choice, JobSettings)>,
        wanted: Wanted,
    ) -> Result<Self> {
        let weights = LayerWeights::read(tensor, states[0].channels(), quantized)?;
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
