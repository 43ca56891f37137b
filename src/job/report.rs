//! What a job did, tensor by tensor.

use std::path::{Path, PathBuf};

use arrow_quant_kernels::PairSums;
use arrow_quant_udfs::encoding_name;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::manifest::Manifest;
use super::plan::TensorPlan;
use super::run::TensorSums;
use crate::tables::QuantizedModel;
use crate::{LayerReport, Model, QuantError, Result};

/// What became of one tensor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// How it is stored: `int4` and the like, or its own dtype if it was kept. `None` in directories of format versions 1
    /// and 2, which do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Bits of a code; `None` if the tensor was kept at its own dtype.
    pub bits: Option<u8>,
    /// Weights that share a scale.
    pub group_size: Option<u32>,
    /// Why it has these bits, or was kept.
    pub because: String,
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
    /// Bits of a code.
    pub bits: u8,
    /// Weights that share a scale.
    pub group_size: u32,
    /// As it was.
    pub cosine_similarity: Option<f64>,
    /// As it was, in dB.
    pub sqnr_db: Option<f64>,
}

impl TensorReport {
    /// 8 × bytes ÷ elements; 0 without elements.
    pub fn bits_per_weight(&self) -> f64 {
        if self.elements == 0 { 0.0 } else { 8.0 * self.bytes as f64 / self.elements as f64 }
    }
}

/// Quality figures that JSON can hold.
pub(crate) fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// The SQNR, where there were weights to lose.
pub(crate) fn sqnr_db(sums: &PairSums) -> Option<f64> {
    (sums.sum_aa > 0.0 || sums.sum_ee > 0.0).then(|| sums.sqnr_db())
}

/// The reports of all tensors, in the model's order.
pub(crate) fn tensor_reports(
    model: &Model,
    plans: &[TensorPlan],
    sums: &[TensorSums],
    fallbacks: &[Vec<Attempt>],
) -> Result<Vec<TensorReport>> {
    let mut reports = Vec::with_capacity(plans.len());
    for (index, (tensor, plan)) in model.tensors().iter().zip(plans).enumerate() {
        let stored = plan.same_as.unwrap_or(index);
        let TensorSums { bytes, errors } = sums[stored];
        let is_quantized = plan.choice.is_some();
        if bytes != tensor.bytes && !is_quantized || is_quantized && errors.n != tensor.elements() {
            return Err(QuantError::Quantization {
                tensor: Some(plan.tensor.clone()),
                message: format!("{}: not all of it was written; this is a defect, please report it", plan.tensor),
            });
        }
        let figures = Some(errors).filter(|errors| errors.n > 0);
        reports.push(TensorReport {
            component: plan.component.clone(),
            tensor: plan.tensor.clone(),
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            elements: tensor.elements(),
            encoding: Some(plan.choice.map_or(&*tensor.dtype, |choice| encoding_name(choice.bits)).to_string()),
            bits: plan.choice.map(|choice| choice.bits.get() as u8),
            group_size: plan.choice.map(|choice| choice.group_size.get() as u32),
            because: plan.because.clone(),
            fallbacks: fallbacks[stored].clone(),
            same_as: plan.same_as.map(|first| plans[first].name()),
            bytes: if plan.same_as.is_some() { 0 } else { bytes },
            cosine_similarity: figures.and_then(|sums| sums.cosine_similarity()),
            sqnr_db: figures.as_ref().and_then(sqnr_db),
            max_abs_error: figures.map(|sums| sums.max_abs_error),
        });
    }
    Ok(reports)
}

/// Figures of a whole model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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

impl Totals {
    pub(crate) fn new(source: &Model, stored_bytes: u64, sums: &[TensorSums]) -> Self {
        let weights: u64 = source.tensors().iter().map(|tensor| tensor.elements()).sum();
        let original_bytes: u64 = source.tensors().iter().map(|tensor| tensor.bytes).sum();
        let pooled = sums.iter().fold(PairSums::default(), |sum, tensor| sum + tensor.errors);
        let figures = Some(pooled).filter(|sums| sums.n > 0);
        Self {
            weights,
            original_bytes,
            stored_bytes,
            bits_per_weight: 8.0 * stored_bytes as f64 / weights.max(1) as f64,
            compression_ratio: original_bytes as f64 / stored_bytes.max(1) as f64,
            cosine_similarity: figures.and_then(|sums| sums.cosine_similarity()),
            sqnr_db: figures.and_then(|sums| finite(sums.sqnr_db())),
            squared_error: pooled.sum_ee,
        }
    }
}

/// What a quantized model says of itself: the account of every decision.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// The source's name.
    pub name: String,
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
    /// Reads the report of a quantized model directory.
    ///
    /// # Errors
    /// If there is none at the path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::new(QuantizedModel::open(path.as_ref())?.manifest))
    }

    pub(crate) fn new(manifest: Manifest) -> Self {
        Self {
            name: manifest.source.name,
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
        super::html::html(self)
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
    /// Why an interrupted run was not gone on with, if there was one.
    pub started_afresh: Option<String>,
    /// Wall-clock seconds.
    pub quantization_time_s: f64,
}
