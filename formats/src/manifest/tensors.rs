//! The figures of a quantized model: of each tensor, of each layer, and of the whole.

use serde::{Deserialize, Serialize};

use super::RecordedReason;

/// What became of one tensor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// The sub-model of a pipeline; empty in a plain model.
    pub component: String,
    /// The tensor's name.
    pub tensor: String,
    /// The dtype it had.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its elements.
    pub elements: u64,
    /// The encoding it has: `int4` and the like, or its own dtype if it was kept. Directories of versions 1 and 2 leave
    /// it empty.
    #[serde(default)]
    pub encoding: String,
    /// Bits of a code; `None` if the tensor was kept at its own dtype.
    pub bits: Option<u8>,
    /// Weights that share a scale; `None` if the tensor was kept, or its encoding is one of blocks.
    pub group_size: Option<u32>,
    /// Why it has these bits, or was kept.
    #[serde(flatten)]
    pub because: RecordedReason,
    /// What was tried before, and found to be below the floor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<Attempt>,
    /// The name of the tensor that it is the same as: what is stored of that one is stored for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
    /// Of codes, scales and minima or zero points; or of the elements that were kept. 0 if stored under another name.
    pub bytes: u64,
    /// Between the weights and what they are restored to; `None` if kept, or all zero.
    pub cosine_similarity: Option<f64>,
    /// Likewise, in dB; infinite where nothing was lost, which JSON shows as null.
    pub sqnr_db: Option<f64>,
    /// The greatest error of a weight.
    pub max_abs_error: Option<f64>,
}

/// A way to quantize a tensor that lost too much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The encoding it had: `int4` and the like, or a type of blocks. Empty in what earlier versions wrote.
    #[serde(default)]
    pub encoding: String,
    /// Bits of a code.
    pub bits: u8,
    /// Weights that share a scale; `None` of blocks.
    pub group_size: Option<u32>,
    /// As it was.
    pub cosine_similarity: Option<f64>,
    /// As it was, in dB.
    pub sqnr_db: Option<f64>,
}

impl TensorReport {
    /// What shares parameters: weights of a group, or the type of blocks. Empty if it was kept.
    pub fn grouping(&self) -> String {
        grouping(self.bits, self.group_size, &self.encoding)
    }

    /// 8 × bytes ÷ elements; 0 without elements.
    pub fn bits_per_weight(&self) -> f64 {
        if self.elements == 0 { 0.0 } else { 8.0 * self.bytes as f64 / self.elements as f64 }
    }
}

/// What shares parameters in an encoding, in a word: weights of a group, or the type of blocks. Empty without bits.
pub fn grouping(bits: Option<u8>, group_size: Option<u32>, encoding: &str) -> String {
    match (bits, group_size) {
        (None, _) => String::new(),
        (Some(_), Some(size)) => size.to_string(),
        (Some(_), None) => encoding.to_string(),
    }
}

/// Figures of a whole model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Elements of all tensors.
    pub weights: u64,
    /// Bytes of all tensors in the source.
    pub original_bytes: u64,
    /// Bytes of all files that hold weights, and of the tables that a calibration became.
    pub stored_bytes: u64,
    /// 8 × stored bytes ÷ weights, everything included.
    pub bits_per_weight: f64,
    /// Original bytes ÷ stored bytes.
    pub compression_ratio: f64,
    /// Of all quantized tensors as one.
    pub cosine_similarity: Option<f64>,
    /// Of all quantized tensors as one, in dB.
    pub sqnr_db: Option<f64>,
    /// Σ(w − ŵ)² over all quantized tensors.
    pub squared_error: f64,
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
