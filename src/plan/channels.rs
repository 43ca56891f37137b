//! What the input channels of a layer have to say on its weights.

use std::path::PathBuf;

use arrow_quant_formats::ContentHash;
use serde::{Deserialize, Serialize};

/// What the input channels of a layer have to say on its weights: one number a weight of a row, or none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Channels {
    pub importance: Vec<f32>,
    pub smoothing: Vec<f32>,
    /// The second moments of the input, if weights are rounded with error feedback.
    #[serde(default)]
    pub feedback: Option<Feedback>,
    /// Of all.
    pub hash: String,
}

/// The second moments of a tensor's input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Feedback {
    /// The file of second moments, whatever the working directory is.
    pub path: PathBuf,
    /// The name of the input in it.
    pub input: String,
    /// What is added to their diagonal, as a part of its mean.
    pub damping: f32,
    /// A hash of the moments, which tells whether the file has changed.
    pub hash: String,
}

impl Feedback {
    /// A name that only equal factors have.
    pub(crate) fn factor_name(&self) -> String {
        format!("{}, damping {}", self.hash, self.damping)
    }
}

impl Channels {
    pub(crate) fn new(importance: Vec<f32>, smoothing: Vec<f32>) -> Self {
        let mut hash = ContentHash::new();
        for list in [&importance, &smoothing] {
            hash.update(list.len().to_le_bytes());
            list.iter().for_each(|x| hash.update(x.to_le_bytes()));
        }
        Self { importance, smoothing, feedback: None, hash: hash.finish()[..16].to_string() }
    }

    /// The same, with error feedback.
    pub(crate) fn with_feedback(self, feedback: Feedback) -> Self {
        let mut hash = ContentHash::new();
        hash.update(&self.hash);
        hash.update(feedback.factor_name());
        Self { feedback: Some(feedback), hash: hash.finish()[..16].to_string(), ..self }
    }
}
