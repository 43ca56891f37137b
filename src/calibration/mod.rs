//! Calibration: what the inputs of a model's layers were at each timestep, measured by the user on their model.
//!
//! Weights have one set of codes, whatever the timestep. Time has its part in how the inputs of a layer are quantized, and
//! in which input channels matter most.

mod activations;
mod calibrated;
mod decibels;
mod feedback;
mod functions;
mod groups;
mod imatrix;
mod inputs;
mod layers;
#[cfg(test)]
pub(crate) mod moment_tests;
mod moments;
mod quality;
mod read;
mod smoothing;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use calibrated::{Calibrated, calibrate, expected_bytes};
pub(crate) use feedback::{factor_bytes, open_moments, plan_feedback};
pub(crate) use functions::table_functions;
pub(crate) use inputs::Grouping;
pub(crate) use moments::Moments;
pub(crate) use quality::StoredCalibration;
pub(crate) use smoothing::LayerWeights;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_quant_formats::gguf::imatrix::ChannelPower;
use arrow_quant_formats::nearest;

use crate::tables::LIMIT;
use crate::{Model, QuantError, Result, Tensor};

/// What the inputs of layers were, by layer, state and timestep.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// Where it came from, for messages.
    name: String,
    /// The file, if it came from one.
    path: Option<PathBuf>,
    /// In the order of their names and states.
    layers: Vec<LayerStatistics>,
    /// Of an importance matrix, which has no layers: the powers of input channels.
    powers: Vec<ChannelPower>,
}

/// A layer's weight, and a state of the model.
type LayerState = (String, String);

/// The inputs of one layer in one state of the model.
#[derive(Debug, Clone)]
pub(crate) struct LayerStatistics {
    /// The weight that they are multiplied with: `component/tensor` in a pipeline.
    pub tensor: String,
    /// A state of the model that has statistics of its own, such as masked or not; empty where there is none.
    pub state: String,
    /// By timestep, ascending.
    pub steps: Vec<StepStatistics>,
}

/// The inputs of a layer at one timestep.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepStatistics {
    /// The timestep.
    pub timestep: i64,
    /// Samples that were measured.
    pub samples: i64,
    /// The least value of each input channel.
    pub min: Vec<f32>,
    /// The greatest.
    pub max: Vec<f32>,
    /// The mean of the squares.
    pub mean_square: Vec<f32>,
    /// How often values of any channel were where, if that was measured.
    pub histogram: Option<Histogram>,
}

/// Counts of values in bins of one width.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Histogram {
    /// Where the first bin begins.
    pub min: f32,
    /// Where the last bin ends.
    pub max: f32,
    /// Values in each bin.
    pub counts: Vec<f64>,
}

impl LayerStatistics {
    /// Input channels.
    pub(crate) fn channels(&self) -> usize {
        self.steps.first().map_or(0, |step| step.min.len())
    }
}

impl Calibration {
    /// Reads a calibration table from a Parquet or Arrow file, of which at most `samples` of each layer and timestep are used, or
    /// an importance matrix of llama.cpp.
    ///
    /// # Errors
    /// If the file cannot be read, a column is missing, or the statistics contradict themselves: naming tensor and timestep.
    pub fn open(path: impl AsRef<Path>, samples: i64) -> Result<Self> {
        Ok(Self { path: Some(path.as_ref().to_path_buf()), ..read::open(path.as_ref(), samples)? })
    }

    /// The file that it was read from, if it was one.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Checks that the layers are the model's, with as many channels as their weights have.
    ///
    /// # Errors
    /// For the first that is not, naming it.
    pub fn check(&self, model: &Model) -> Result<()> {
        self.powers_of(model)?;
        self.tensors(model).map(drop)
    }

    /// The layers, those of all states together, as a range for [`states`](Self::states), each with the index of its weights in
    /// the model.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn tensors(&self, model: &Model) -> Result<Vec<(usize, Range<usize>)>> {
        let names: Vec<String> = model.tensors().iter().map(Tensor::full_name).collect();
        let index: HashMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let (mut tensors, mut first) = (Vec::new(), 0);
        for states in self.by_tensor() {
            let range = first..first + states.len();
            first = range.end;
            let layer = &states[0];
            let Some(&tensor) = index.get(layer.tensor.as_str()) else {
                return Err(self.refused(&layer.tensor, &unknown_tensor(&layer.tensor, &names)));
            };
            let found = layer.channels();
            match input_channels(&model.tensors()[tensor]) {
                None => {
                    let what = format!(
                        "with {found} channels; it is no weight of a linear or convolutional layer, leave it out"
                    );
                    return Err(self.refused(&layer.tensor, &what));
                }
                Some(expected) if expected != found => {
                    let what = format!("with {found} channels; its weights have {expected}");
                    return Err(self.refused(&layer.tensor, &what));
                }
                Some(_) => tensors.push((tensor, range)),
            }
        }
        Ok(tensors)
    }

    /// Bytes that it takes in memory.
    pub(crate) fn bytes(&self) -> u64 {
        let of_step = |step: &StepStatistics| {
            let counts = step.histogram.as_ref().map_or(0, |histogram| size_of_val(histogram.counts.as_slice()));
            size_of::<StepStatistics>() + 3 * size_of_val(step.min.as_slice()) + counts
        };
        let of_layers: u64 = self.layers.iter().flat_map(|layer| &layer.steps).map(|step| of_step(step) as u64).sum();
        let of_power = |power: &ChannelPower| size_of_val(power.mean_squares.as_slice()) as u64;
        of_layers + self.powers.iter().map(of_power).sum::<u64>()
    }

    /// Whether more than one timestep was measured, as of diffusion models.
    pub(crate) fn has_timesteps(&self) -> bool {
        self.layers.iter().any(|layer| layer.steps.len() > 1)
    }

    /// Layers and states, and the input channels of all layers.
    pub(crate) fn size(&self) -> (u64, u64) {
        let channels: usize = self.by_tensor().map(|states| states[0].channels()).sum();
        (self.layers.len() as u64, channels as u64)
    }

    /// A layer in all its states.
    pub(crate) fn states(&self, range: &Range<usize>) -> &[LayerStatistics] {
        &self.layers[range.clone()]
    }

    /// The layers, those of all states together.
    fn by_tensor(&self) -> impl Iterator<Item = &[LayerStatistics]> {
        self.layers.chunk_by(|a, b| a.tensor == b.tensor)
    }

    fn refused(&self, tensor: &str, what: &str) -> QuantError {
        QuantError::defect(Path::new(&self.name), Some(tensor.to_string()), format!("the calibration has it, {what}"))
    }
}

/// That what was measured is of a tensor that the model does not have.
fn unknown_tensor(name: &str, names: &[String]) -> String {
    let near = nearest(name, names.iter().map(String::as_str));
    let other = || "it was measured on another model".to_string();
    let advice = near.map_or_else(other, |near| format!("did you mean '{near}'?"));
    format!("which is not a tensor of the model; {advice}")
}

/// Input channels of a layer's weights: the second dimension. `None` for what is no weight of a layer, and for what is cut
/// into rows that are not all the weights of an output channel.
fn input_channels(tensor: &Tensor) -> Option<usize> {
    let [_, channels, ..] = tensor.shape.as_slice() else { return None };
    let of_output: u64 = tensor.shape[1..].iter().map(|n| n.unsigned_abs()).product();
    let is_layer = tensor.float_dtype().is_some() && tensor.elements() > 0;
    let is_row = tensor.row_length() == of_output && of_output <= LIMIT;
    usize::try_from(*channels).ok().filter(|_| is_layer && is_row)
}
