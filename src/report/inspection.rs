//! What the headers of a model say.

use serde::{Deserialize, Serialize};

/// A tensor, from its header alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedTensor {
    /// The sub-model of a pipeline; empty in a plain model.
    #[serde(default)]
    pub component: String,
    /// The tensor's name.
    pub tensor: String,
    /// Its dtype; of a quantized one `INT2`, `INT4` or `INT8`.
    pub dtype: String,
    /// Its shape.
    #[serde(default)]
    pub shape: Vec<i64>,
    /// Its elements.
    pub elements: u64,
    /// Bytes that are stored of it.
    pub bytes: u64,
}

/// A model's tensors and their totals.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The model.
    pub model: String,
    /// Elements of all tensors.
    pub weights: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The files that the weights are in; none of a quantized model.
    pub files: Vec<String>,
    /// What is beside them, and why it is not part of the model.
    pub left_out: Vec<String>,
    /// How another program quantized the weights.
    pub quantized_by: Option<String>,
    /// Every tensor, in the order of the model.
    pub tensors: Vec<InspectedTensor>,
}
