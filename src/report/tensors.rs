//! What a job did, tensor by tensor; what one would do; and how like its original a quantized model is.

use std::path::{Path, PathBuf};

use arrow_quant_formats::manifest::Manifest;
use arrow_quant_kernels::PairSums;
use serde::Serialize;
use serde_json::{Map, Value};

use super::html::html;
use crate::{LayerReport, TensorReport, Totals};

/// Quality figures that JSON can hold.
pub(crate) fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// The SQNR, where there were weights to lose.
pub(crate) fn sqnr_db(sums: &PairSums) -> Option<f64> {
    (sums.sum_aa > 0.0 || sums.sum_ee > 0.0).then(|| sums.sqnr_db())
}

/// What a quantized model says of itself: the account of every decision.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// The source's name.
    pub name: String,
    /// The files that its weights were read from, relative to its directory; empty if a version of ours wrote it that did not
    /// tell.
    pub source_files: Vec<String>,
    /// The program that wrote it.
    pub created_by: String,
    /// The configuration, by its field names.
    pub settings: Map<String, Value>,
    /// What the model makes, if that was told or found out.
    pub modality: Option<String>,
    /// What else there is to know.
    pub notes: Vec<String>,
    /// Every tensor, in the order of the model.
    pub tensors: Vec<TensorReport>,
    /// Whether the timesteps of a calibration had a part in how inputs and weights were quantized.
    pub time_aware: bool,
    /// Why it had not.
    pub reason: Option<String>,
    /// What became of the inputs of layers; empty without a calibration.
    pub layers: Vec<LayerReport>,
    /// Of the whole model.
    #[serde(flatten)]
    pub totals: Totals,
}

impl ModelReport {
    pub(crate) fn new(manifest: Manifest) -> Self {
        Self {
            name: manifest.source.name,
            source_files: manifest.source.files,
            created_by: manifest.created_by,
            settings: manifest.settings,
            modality: manifest.modality,
            notes: manifest.notes,
            tensors: manifest.tensors,
            time_aware: manifest.time_aware,
            reason: manifest.reason,
            layers: manifest.layers,
            totals: manifest.totals,
        }
    }

    /// The report as one page of HTML that needs nothing else.
    pub fn to_html(&self) -> String {
        html(self)
    }
}

/// A path as text; what is no UTF-8 of it is replaced.
fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// What a job did.
#[derive(Debug, Clone, Serialize)]
pub struct QuantizeReport {
    /// The source.
    #[serde(serialize_with = "lossy")]
    pub model: PathBuf,
    /// The quantized model's directory.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// What it says of itself.
    #[serde(flatten)]
    pub report: ModelReport,
    /// Parts that the job consists of.
    pub parts: usize,
    /// Parts that an interrupted run had finished.
    pub resumed_parts: usize,
    /// Whether an earlier run had finished the output, so that nothing was left to do.
    pub was_finished: bool,
    /// Why an interrupted run was not gone on with, if there was one.
    pub started_afresh: Option<String>,
    /// Wall-clock seconds.
    pub quantization_time_s: f64,
}
