//! What the input channels of a layer have to say on its weights.

use arrow_quant_formats::ContentHash;
use serde::{Deserialize, Serialize};

/// What the input channels of a layer have to say on its weights: one number a weight of a row, or none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Channels {
    pub importance: Vec<f32>,
    pub smoothing: Vec<f32>,
    /// Of both.
    pub hash: String,
}

impl Channels {
    pub(crate) fn new(importance: Vec<f32>, smoothing: Vec<f32>) -> Self {
        let mut hash = ContentHash::new();
        for list in [&importance, &smoothing] {
            hash.update(list.len().to_le_bytes());
            list.iter().for_each(|x| hash.update(x.to_le_bytes()));
        }
        Self { importance, smoothing, hash: hash.finish()[..16].to_string() }
    }
}
