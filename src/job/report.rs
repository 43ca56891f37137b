//! What a job did, tensor by tensor.

use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow_quant_kernels::PairSums;
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::part::WrittenChunk;
use super::plan::TensorPlan;
use crate::{Model, QuantError, Result};

/// What became of one tensor.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// Bits of a code; `None` if the tensor was kept at its own dtype.
    pub bits: Option<u8>,
    /// Weights that share a scale.
    pub group_size: Option<u32>,
    /// Why it was kept.
    pub kept_because: Option<String>,
    /// Of codes, scales and minima or zero points; or of the elements that were kept.
    pub bytes: u64,
    /// Between the weights and what they are restored to; `None` if kept, or all zero.
    pub cosine_similarity: Option<f64>,
    /// Likewise, in dB; infinite where nothing was lost, which JSON shows as null.
    pub sqnr_db: Option<f64>,
    /// The greatest error of a weight.
    pub max_abs_error: Option<f64>,
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

/// The reports of all tensors, in the model's order. Sums are added in the order of the chunks, whoever wrote them.
pub(crate) fn tensor_reports(
    model: &Model,
    plans: &[TensorPlan],
    chunks: &[WrittenChunk],
) -> Result<Vec<TensorReport>> {
    let mut rest = chunks.iter().peekable();
    let mut reports = Vec::with_capacity(plans.len());
    for (tensor, plan) in model.tensors().iter().zip(plans) {
        let (mut bytes, mut sums) = (0, PairSums::default());
        while let Some(chunk) = rest.next_if(|c| (c.component.as_str(), c.tensor.as_str()) == plan.key()) {
            bytes += chunk.bytes;
            sums = sums + chunk.errors.unwrap_or_default();
        }
        let quantized = plan.settings.is_some();
        if bytes != tensor.bytes && !quantized || quantized && sums.n != tensor.elements() {
            return Err(QuantError::Quantization {
                tensor: Some(plan.tensor.clone()),
                message: format!("{}: not all of it was written; this is a defect, please report it", plan.tensor),
            });
        }
        let figures = Some(sums).filter(|sums| sums.n > 0);
        reports.push(TensorReport {
            component: plan.component.clone(),
            tensor: plan.tensor.clone(),
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            elements: tensor.elements(),
            bits: plan.settings.map(|s| s.bits.get() as u8),
            group_size: plan.settings.map(|s| s.group_size.get() as u32),
            kept_because: plan.kept_because.clone(),
            bytes,
            cosine_similarity: figures.and_then(|sums| sums.cosine_similarity()),
            sqnr_db: figures.filter(|sums| sums.sum_aa > 0.0 || sums.sum_ee > 0.0).map(|sums| sums.sqnr_db()),
            max_abs_error: figures.map(|sums| sums.max_abs_error),
        });
    }
    Ok(reports)
}

/// What a job did.
#[derive(Debug, Clone, Serialize)]
pub struct QuantizeReport {
    /// The source.
    pub model: PathBuf,
    /// The quantized model's directory.
    pub output: PathBuf,
    /// Every tensor, in the order of the model.
    pub tensors: Vec<TensorReport>,
    /// Elements of all tensors.
    pub weights: u64,
    /// Bytes of all tensors in the source.
    pub original_bytes: u64,
    /// Bytes of all files that hold weights.
    pub stored_bytes: u64,
    /// 8 × stored bytes ÷ weights, everything included.
    pub bits_per_weight: f64,
    /// Original bytes ÷ stored bytes.
    pub compression_ratio: f64,
    /// Of all quantized tensors as one.
    pub cosine_similarity: Option<f64>,
    /// Of all quantized tensors as one, in dB.
    pub sqnr_db: Option<f64>,
    /// Wall-clock seconds.
    pub quantization_time_s: f64,
}

impl QuantizeReport {
    pub(crate) fn new(source: &Model, output: &Path, manifest: Manifest, pooled: PairSums, elapsed: Duration) -> Self {
        let weights: u64 = manifest.tensors.iter().map(|t| t.elements).sum();
        let original_bytes: u64 = source.tensors().iter().map(|t| t.bytes).sum();
        let stored_bytes: u64 = manifest.files.iter().map(|f| f.bytes).sum();
        let pooled = Some(pooled).filter(|sums| sums.n > 0);
        Self {
            model: source.path().to_path_buf(),
            output: output.to_path_buf(),
            tensors: manifest.tensors,
            weights,
            original_bytes,
            stored_bytes,
            bits_per_weight: 8.0 * stored_bytes as f64 / weights.max(1) as f64,
            compression_ratio: original_bytes as f64 / stored_bytes.max(1) as f64,
            cosine_similarity: pooled.and_then(|sums| sums.cosine_similarity()),
            sqnr_db: pooled.and_then(|sums| finite(sums.sqnr_db())),
            quantization_time_s: elapsed.as_secs_f64(),
        }
    }
}
