//! How like its original a quantized model is.

use serde::Serialize;

/// How like its original one tensor is.
#[derive(Debug, Clone, Serialize)]
pub struct TensorQuality {
    /// The sub-model of a pipeline; empty in a plain model.
    pub component: String,
    /// The tensor's name.
    pub tensor: String,
    /// Bits of a code; `None` if the tensor was kept.
    pub bits: Option<u8>,
    /// Its elements.
    pub elements: u64,
    /// `None` if either is all zero.
    pub cosine_similarity: Option<f64>,
    /// In dB, infinite where nothing was lost; `None` if both are all zero.
    pub sqnr_db: Option<f64>,
    /// The greatest difference of a weight.
    pub max_abs_error: Option<f64>,
}

/// How like its original a quantized model is.
#[derive(Debug, Clone, Serialize)]
pub struct ValidationReport {
    /// Every floating-point tensor, in the order of the model.
    pub tensors: Vec<TensorQuality>,
    /// Of all quantized tensors as one.
    pub cosine_similarity: Option<f64>,
    /// Of all quantized tensors as one, in dB.
    pub sqnr_db: Option<f64>,
    /// Original bytes ÷ bytes of the files that hold weights.
    pub compression_ratio: f64,
    /// Of the files that hold weights, in 10⁶ bytes.
    pub model_size_mb: f64,
    /// How good the parameters of layers' inputs are; empty without a calibration.
    pub layers: Vec<LayerQuality>,
}

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
