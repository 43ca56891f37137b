//! What a plan comes to: sizes, and errors estimated from samples.

use std::time::Duration;

use arrow_quant_kernels::PairSums;

use super::choice::Choice;
use super::model::ModelPlan;
use super::sample::{Cost, Sampled};
use crate::Result;
use crate::report::{Listener, PlannedTensor, finite, sqnr_db};

/// What a plan comes to.
pub(crate) struct Estimate {
    /// Every tensor, in the order of the model.
    pub tensors: Vec<PlannedTensor>,
    /// Elements of all tensors.
    pub weights: u64,
    /// Bytes of all tensors in the source.
    pub original_bytes: u64,
    /// Of the files, more or less.
    pub stored_bytes: u64,
    /// Of all quantized tensors as one.
    pub sqnr_db: Option<f64>,
    /// Σ(w − ŵ)².
    pub squared_error: f64,
    /// Of the job, on so many threads as were asked for.
    pub time_s: f64,
}

/// The samples of tensors as they are planned: of a plan for a target size those that it was made by.
///
/// # Errors
/// If a weight in a sample cannot be quantized.
pub(crate) async fn measured(
    plan: &ModelPlan,
    sampled: Option<Sampled>,
    threads: usize,
    listener: Listener,
) -> Result<Sampled> {
    if let Some(sampled) = sampled {
        return Ok(sampled);
    }
    let stored = plan.tensors.iter().enumerate().filter(|(_, plan)| plan.same_as.is_none());
    let wanted = stored.filter_map(|(index, plan)| Some((index, vec![plan.choice?]))).collect();
    plan.sampling(wanted, threads).run(listener).await
}

impl Estimate {
    /// `overhead` is what files take beside the tensors.
    pub(crate) fn new(plan: &ModelPlan, sampled: &Sampled, overhead: u64, threads: usize) -> Self {
        let mut chosen: Vec<Option<Cost>> = vec![None; plan.tensors.len()];
        for (index, costs) in &sampled.costs {
            chosen[*index] = costs.iter().find(|cost| cost.choice == plan.tensors[*index].choice).copied();
        }
        let tensors: Vec<_> = (0..chosen.len()).map(|index| planned_tensor(plan, index, &chosen)).collect();
        let stored_bytes = tensors.iter().map(|tensor| tensor.bytes).sum::<u64>() + overhead;
        // Of all weights, not of the sample: as if each tensor were its sample many times over.
        let of_all = |(tensor, cost): (&PlannedTensor, &Option<Cost>)| {
            let cost = cost.as_ref()?;
            let times = tensor.elements as f64 / cost.sums.n.max(1) as f64;
            Some((cost.sums.sum_aa * times, cost.squared_error))
        };
        let sums = tensors.iter().zip(&chosen).filter_map(of_all);
        let (squares, squared_error) = sums.fold((0.0, 0.0), |sum, x| (sum.0 + x.0, sum.1 + x.1));
        let is_quantized = |tensor: &&PlannedTensor| tensor.bits.is_some() && tensor.same_as.is_none();
        let quantized: u64 = tensors.iter().filter(is_quantized).map(|tensor| tensor.elements).sum();
        Self {
            weights: tensors.iter().map(|tensor| tensor.elements).sum(),
            original_bytes: plan.model.tensors().iter().map(|tensor| tensor.bytes).sum(),
            stored_bytes,
            sqnr_db: finite(10.0 * (squares / squared_error).log10()),
            squared_error,
            time_s: time(sampled.per_weight, quantized, stored_bytes, threads),
            tensors,
        }
    }
}

fn planned_tensor(plan: &ModelPlan, index: usize, chosen: &[Option<Cost>]) -> PlannedTensor {
    let (tensor, planned) = (&plan.model.tensors()[index], &plan.tensors[index]);
    let stored = planned.same_as.unwrap_or(index);
    let figures: Option<PairSums> = chosen[stored].filter(|cost| cost.choice.is_some()).map(|cost| cost.sums);
    let bytes = chosen[stored].map_or_else(|| plan.bytes(index), |cost| cost.bytes);
    PlannedTensor {
        component: planned.component.clone(),
        tensor: planned.tensor.clone(),
        encoding: planned.choice.map_or_else(|| tensor.dtype().to_string(), |choice| choice.weight_type().to_string()),
        bits: planned.choice.map(|choice| choice.bits().get() as u8),
        group_size: planned.choice.and_then(Choice::group_size).map(|size| size.get() as u32),
        because: planned.reason.clone().into(),
        same_as: planned.same_as.map(|first| plan.tensors[first].name()),
        dtype: tensor.dtype().to_string(),
        shape: tensor.shape.clone(),
        elements: tensor.elements(),
        bytes: if planned.same_as.is_some() { 0 } else { bytes },
        cosine_similarity: figures.and_then(|sums| sums.cosine_similarity()),
        sqnr_db: figures.as_ref().and_then(sqnr_db).and_then(finite),
    }
}

/// Seconds: the kernels' time as measured, and half as much for reading, hashing and writing.
fn time(per_weight: Duration, weights: u64, stored_bytes: u64, threads: usize) -> f64 {
    /// Bytes a second of a disk that is waited for.
    const DISK: f64 = 1.5e9;
    1.5 * per_weight.as_secs_f64() * weights as f64 / threads as f64 + stored_bytes as f64 / DISK
}
