//! What a job would do.

use std::path::PathBuf;

use arrow_quant_formats::manifest::RecordedReason;
use serde::Serialize;

use crate::LayerReport;
use crate::config::Modality;

/// What one tensor is to become.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedTensor {
    /// The sub-model of a pipeline; empty in a plain model.
    pub component: String,
    /// The tensor's name.
    pub tensor: String,
    /// The encoding that it is to have: `int4` and the like, a type of blocks, or its own dtype to keep it.
    pub encoding: String,
    /// Bits of a code; `None` to keep it.
    pub bits: Option<u8>,
    /// Weights that share a scale; `None` to keep it, and of blocks.
    pub group_size: Option<u32>,
    /// Why.
    #[serde(flatten)]
    pub because: RecordedReason,
    /// The name of the tensor that it is the same as, and stored with.
    pub same_as: Option<String>,
    /// Its dtype.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its elements.
    pub elements: u64,
    /// Of codes and parameters, or of kept elements.
    pub bytes: u64,
    /// Of a sample of its weights.
    pub cosine_similarity: Option<f64>,
    /// Likewise, in dB.
    pub sqnr_db: Option<f64>,
}

/// What a job would do.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The model.
    pub model: PathBuf,
    /// What it makes, if that was told or found out.
    pub modality: Option<Modality>,
    /// Every tensor, in the order of the model.
    pub tensors: Vec<PlannedTensor>,
    /// Elements of all tensors.
    pub weights: u64,
    /// Bytes of all tensors in the source.
    pub original_bytes: u64,
    /// Of the files of weights, more or less.
    pub stored_bytes: u64,
    /// 8 × stored bytes ÷ weights.
    pub bits_per_weight: f64,
    /// Original bytes ÷ stored bytes.
    pub compression_ratio: f64,
    /// Of all quantized tensors as one, estimated.
    pub sqnr_db: Option<f64>,
    /// Σ(w − ŵ)², estimated.
    pub squared_error: f64,
    /// Parts that the job consists of.
    pub parts: usize,
    /// Estimated from the kernels' speed on the sample.
    pub estimated_time_s: f64,
    /// What the job may take at most, in 10⁶ bytes.
    pub estimated_memory_mb: u64,
    /// What else there is to know.
    pub notes: Vec<String>,
    /// What becomes of the inputs of layers; empty without a calibration.
    pub layers: Vec<LayerReport>,
}
