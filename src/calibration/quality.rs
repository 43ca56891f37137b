//! What a calibration says of a quantized model: whether its parameters are for every timestep, what they lose against each
//! timestep's own, whether smoothing leaves the layers what they were, and what their outputs lose in all.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::activations::{BITS, FINE, Losses, Parameters, loss};
use super::decibels::{decibels, least, mean, sqnr_db};
use super::inputs::ChannelWeights;
use super::smoothing::LayerWeights;
use super::{LayerState, LayerStatistics};
use crate::tables::QuantizedModel;
use crate::{LayerQuality, QuantError, Result, ValidationProblem};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use arrow_quant_formats::manifest::ACTIVATIONS;

/// What a quantized model has of its calibration.
pub(crate) struct StoredCalibration {
    /// Its smoothing is the model's.
    model: Arc<QuantizedModel>,
    /// By layer and state.
    activations: HashMap<LayerState, Vec<(Range<i64>, Parameters)>>,
}

impl StoredCalibration {
    /// Reads the parameters of activations of a quantized model.
    ///
    /// # Errors
    /// If a column is missing, of another type or has NULLs, or a number is out of its domain.
    pub(crate) fn read(model: &Arc<QuantizedModel>) -> Result<Self> {
        let path = &model.path().join(ACTIVATIONS);
        let mut stored = Self { activations: HashMap::new(), model: Arc::clone(model) };
        if let Some(batch) = model.activations() {
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
                    None => {
                        return Err(damaged(
                            path,
                            &tensor,
                            "has parameters of activations that are out of their domain",
                        ));
                    }
                }
            }
        }
        Ok(stored)
    }

    /// Measures a layer in one state. `errors` are the sums of the squared errors of the weights, by input channel.
    ///
    /// # Errors
    /// Unless exactly one group has each timestep that was measured, naming layer and timestep.
    pub(crate) fn quality(
        &self,
        layer: &LayerStatistics,
        weights: &LayerWeights,
        errors: &[f64],
    ) -> Result<LayerQuality> {
        let refused = |problem| QuantError::validation(Some(&layer.tensor), problem);
        let groups = self.activations.get(&(layer.tensor.clone(), layer.state.clone())).map_or(&[][..], Vec::as_slice);
        let factors = self.model.factors(&layer.tensor);
        if factors.is_some_and(|factors| factors.len() != layer.channels()) {
            return Err(refused(ValidationProblem::SmoothedChannels));
        }
        let (parts, sum) = weights.parts(factors);
        let channels = ChannelWeights { parts: &parts, divisors: factors };
        let losses = Losses::new(&layer.steps, &parts, factors, FINE);
        let (mut powers, mut noises, mut errors_of_output, mut lost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, step) in layer.steps.iter().enumerate() {
            let mut covering = groups.iter().filter(|(timesteps, _)| timesteps.contains(&step.timestep));
            let (Some((_, parameters)), None) = (covering.next(), covering.next()) else {
                let groups = groups.iter().filter(|(timesteps, _)| timesteps.contains(&step.timestep)).count();
                let (timestep, state) = (step.timestep, layer.state.clone());
                return Err(refused(ValidationProblem::TimeGroups { timestep, state, groups }));
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
    QuantError::defect(path, Some(tensor.to_string()), format!("{what}: quantize the model again"))
}

/// A column without NULLs, as another type.
fn column(path: &Path, batch: &RecordBatch, name: &str, wanted: &DataType) -> Result<ArrayRef> {
    let found = batch.column_by_name(name).and_then(|column| cast(column, wanted).ok());
    found.filter(|column| column.null_count() == 0).ok_or_else(|| {
        QuantError::defect(path, None, format!("its column {name} is missing or damaged: quantize the model again"))
    })
}
