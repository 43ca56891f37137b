//! What a calibration says of a quantized model: whether its parameters are for every timestep, what they lose against each
//! timestep's own, whether smoothing leaves the layers what they were, and what their outputs lose in all.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Int64Type};
use serde::Serialize;

use super::activations::{BITS, FINE, Losses, Parameters, loss};
use super::inputs::{ChannelWeights, decibels, least, mean, sqnr_db};
use super::smoothing::LayerWeights;
use super::{LayerState, LayerStatistics};
use crate::{QuantError, Result};

/// How good the parameters of a layer's inputs are, in one state of the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerQuality {
    /// The weight of the layer, `component/tensor` in a pipeline.
    pub tensor: String,
    /// The state; empty where there is none.
    pub state: String,
    /// Timesteps that were measured.
    pub timesteps: usize,
    /// Groups of timesteps with parameters of their own.
    pub time_groups: usize,
    /// SQNR of the quantized inputs in dB: the mean over timesteps.
    pub activation_sqnr_db: f64,
    /// That of the worst timestep.
    pub worst_activation_sqnr_db: f64,
    /// What the parameters lose over each timestep's own best, in dB: the mean over timesteps.
    pub loss_db: f64,
    /// That of the worst timestep.
    pub worst_loss_db: f64,
    /// ‖X Wᵀ − (X/s)(W s)ᵀ‖ ÷ ‖X Wᵀ‖ in 32-bit arithmetic, on values from the ranges of the inputs and a sample of rows;
    /// `None` without smoothing.
    pub smoothing_error: Option<f64>,
    /// SQNR of the layer's output in dB, inputs and weights both quantized: the mean over timesteps.
    pub output_sqnr_db: f64,
    /// That of the worst timestep.
    pub worst_output_sqnr_db: f64,
}

/// What a quantized model has of its calibration.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoredCalibration {
    /// By layer and state.
    activations: HashMap<LayerState, Vec<(Range<i64>, Parameters)>>,
    /// By layer, a factor a channel.
    smoothing: HashMap<String, Vec<f32>>,
}

impl StoredCalibration {
    /// Reads the tables.
    ///
    /// # Errors
    /// If a column is missing, of another type or has NULLs, or a number is out of its domain.
    pub fn read(path: &Path, activations: Option<&RecordBatch>, smoothing: Option<&RecordBatch>) -> Result<Self> {
        let mut stored = Self::default();
        if let Some(batch) = activations {
            let column = |name: &str, wanted: DataType| column(path, batch, name, &wanted);
            let (tensors, states) = (column("tensor", DataType::Utf8)?, column("state", DataType::Utf8)?);
            let (starts, ends) = (column("t_start", DataType::Int64)?, column("t_end", DataType::Int64)?);
            let (scales, zeros) = (column("scale", DataType::Float64)?, column("zero_point", DataType::Int64)?);
            let bits = column("bits", DataType::Int64)?;
            for row in 0..batch.num_rows() {
                let text = |column: &ArrayRef| column.as_string::<i32>().value(row).to_string();
                let whole = |column: &ArrayRef| column.as_primitive::<Int64Type>().value(row);
                let (tensor, scale) = (text(&tensors), scales.as_primitive::<Float64Type>().value(row));
                let zero_point = i32::try_from(whole(&zeros)).ok().filter(|zero| (0..1 << BITS).contains(zero));
                let parameters = zero_point.map(|zero_point| Parameters { scale, zero_point });
                match parameters.filter(|_| scale.is_finite() && scale > 0.0 && whole(&bits) == i64::from(BITS)) {
                    Some(parameters) => {
                        let groups = stored.activations.entry((tensor, text(&states))).or_default();
                        groups.push((whole(&starts)..whole(&ends), parameters));
                    }
                    None => return Err(damaged(path, &tensor, "has parameters of activations that are none")),
                }
            }
        }
        if let Some(batch) = smoothing {
            let tensors = column(path, batch, "tensor", &DataType::Utf8)?;
            let list = DataType::List(Field::new_list_field(DataType::Float32, true).into());
            let lists = column(path, batch, "smooth", &list)?;
            for row in 0..batch.num_rows() {
                let tensor = tensors.as_string::<i32>().value(row).to_string();
                let factors = lists.as_list::<i32>().value(row);
                let factors = factors.as_primitive::<Float32Type>();
                if factors.null_count() > 0 || factors.values().iter().any(|&f| !(f.is_finite() && f > 0.0)) {
                    return Err(damaged(path, &tensor, "has factors that are no numbers above 0"));
                }
                stored.smoothing.insert(tensor, factors.values().to_vec());
            }
        }
        Ok(stored)
    }

    /// What the inputs of a layer are divided by.
    pub fn factors(&self, tensor: &str) -> Option<&[f32]> {
        self.smoothing.get(tensor).map(Vec::as_slice)
    }

    /// Measures a layer in one state. `errors` are the sums of the squared errors of the weights, by input channel.
    ///
    /// # Errors
    /// Unless exactly one group has each timestep that was measured, naming layer and timestep.
    pub fn quality(&self, layer: &LayerStatistics, weights: &LayerWeights, errors: &[f64]) -> Result<LayerQuality> {
        let refused = |message: String| QuantError::Validation { tensor: Some(layer.tensor.clone()), message };
        let of_state = if layer.state.is_empty() { String::new() } else { format!(" in the state '{}'", layer.state) };
        let groups = self.activations.get(&(layer.tensor.clone(), layer.state.clone())).map_or(&[][..], Vec::as_slice);
        let factors = self.factors(&layer.tensor);
        if factors.is_some_and(|factors| factors.len() != layer.channels()) {
            return Err(refused(format!("{}: its smoothing is of another number of channels", layer.tensor)));
        }
        let (parts, sum) = weights.parts(factors);
        let channels = ChannelWeights { parts: &parts, divisors: factors };
        let losses = Losses::new(&layer.steps, &parts, factors, FINE);
        let (mut powers, mut noises, mut errors_of_output, mut lost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, step) in layer.steps.iter().enumerate() {
            let mut covering = groups.iter().filter(|(timesteps, _)| timesteps.contains(&step.timestep));
            let (Some((_, parameters)), None) = (covering.next(), covering.next()) else {
                let covering = groups.iter().filter(|(timesteps, _)| timesteps.contains(&step.timestep)).count();
                let at = format!("{}: timestep {}{of_state}", layer.tensor, step.timestep);
                return Err(refused(format!("{at} is in {covering} time groups of the quantized model, expected 1")));
            };
            let noise = loss(step, &parts, factors, *parameters);
            let power = channels.power(step);
            powers.push(power);
            noises.push(noise);
            // Other parameters than those that are tried may be better by a little.
            lost.push(decibels(noise / losses.at(index, &losses.best(index..index + 1))).max(0.0));
            let of_weights = ChannelWeights { parts: errors, divisors: None }.power(step);
            // Of the output, in units of what the inputs are multiplied with.
            errors_of_output.push(if sum > 0.0 { noise + of_weights / sum } else { noise });
        }
        let (activations, outputs) = (sqnr_db(&powers, &noises), sqnr_db(&powers, &errors_of_output));
        Ok(LayerQuality {
            tensor: layer.tensor.clone(),
            state: layer.state.clone(),
            timesteps: layer.steps.len(),
            time_groups: groups.len(),
            activation_sqnr_db: mean(&activations),
            worst_activation_sqnr_db: least(&activations),
            loss_db: mean(&lost),
            worst_loss_db: lost.iter().copied().fold(0.0, f64::max),
            smoothing_error: factors.map(|factors| weights.smoothing_error(layer, factors)),
            output_sqnr_db: mean(&outputs),
            worst_output_sqnr_db: least(&outputs),
        })
    }
}

fn damaged(path: &Path, tensor: &str, what: &str) -> QuantError {
    QuantError::Metadata {
        path: path.to_path_buf(),
        tensor: Some(tensor.to_string()),
        message: format!("{}: {tensor} {what}: quantize the model again", path.display()),
    }
}

/// A column without NULLs, as another type.
fn column(path: &Path, batch: &RecordBatch, name: &str, wanted: &DataType) -> Result<ArrayRef> {
    let found = batch.column_by_name(name).and_then(|column| cast(column, wanted).ok());
    found.filter(|column| column.null_count() == 0).ok_or_else(|| QuantError::Metadata {
        path: path.to_path_buf(),
        tensor: None,
        message: format!("{}: its column {name} is missing or damaged: quantize the model again", path.display()),
    })
}
