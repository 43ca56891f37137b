//! What a job wrote, as figures of each tensor and of the whole.

use std::collections::HashMap;

use arrow_quant_formats::manifest::{Attempt, Reason, TensorReport, Totals};
use arrow_quant_kernels::PairSums;

use super::task::PartRecord;
use crate::plan::{Choice, TensorPlan};
use crate::report::{finite, sqnr_db};
use crate::{Model, QuantError, Result};

/// The reports of all tensors, in the model's order.
pub(super) fn tensor_reports(
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
        // Of what is left out, nothing is in the output.
        let is_left_out = matches!(plan.reason, Reason::LeftOut { .. });
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
            dtype: tensor.dtype().to_string(),
            shape: tensor.shape.clone(),
            elements: tensor.elements(),
            encoding: plan.choice.map_or_else(|| tensor.dtype().to_string(), |choice| choice.weight_type().to_string()),
            bits: plan.choice.map(|choice| choice.bits().get() as u8),
            group_size: plan.choice.and_then(Choice::group_size).map(|size| size.get() as u32),
            because: plan.reason.clone().into(),
            fallbacks: fallbacks[stored].clone(),
            same_as: plan.same_as.map(|first| plans[first].name()),
            bytes: if plan.same_as.is_some() || is_left_out { 0 } else { bytes },
            cosine_similarity: figures.and_then(|sums| sums.cosine_similarity()),
            sqnr_db: figures.as_ref().and_then(sqnr_db),
            max_abs_error: figures.map(|sums| sums.max_abs_error),
        });
    }
    Ok(reports)
}

/// Figures of the whole model.
pub(super) fn totals(source: &Model, stored_bytes: u64, sums: &[TensorSums]) -> Totals {
    let weights: u64 = source.tensors().iter().map(|tensor| tensor.elements()).sum();
    let original_bytes: u64 = source.tensors().iter().map(|tensor| tensor.bytes).sum();
    let pooled = sums.iter().fold(PairSums::default(), |sum, tensor| sum + tensor.errors);
    let figures = Some(pooled).filter(|sums| sums.n > 0);
    Totals {
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

/// The sums of all parts of each tensor, in the order of the parts.
pub(super) fn tensor_sums(records: &[PartRecord], plans: &[TensorPlan]) -> Vec<TensorSums> {
    let index: HashMap<_, _> = plans.iter().enumerate().map(|(i, plan)| (plan.key(), i)).collect();
    let mut sums = vec![TensorSums::default(); plans.len()];
    for written in records.iter().flat_map(|record| &record.tensors) {
        if let Some(&i) = index.get(&(written.component.as_str(), written.tensor.as_str())) {
            sums[i].bytes += written.bytes;
            sums[i].errors = sums[i].errors + written.errors.unwrap_or_default();
        }
    }
    sums
}

/// What was written of one tensor.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TensorSums {
    pub bytes: u64,
    pub errors: PairSums,
}
