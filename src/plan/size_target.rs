//! A target size: what it is, and the choices of bits and group sizes that meet it.

use arrow_quant_formats::manifest::Reason;

use super::floor::Floor;
use super::model::ModelPlan;
use super::sample::{Cost, Sampled};
use super::size::Allocation;
use crate::report::Listener;
use crate::{DiffusionQuantConfig, QuantError, Result, SettingProblem};

/// A target size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SizeTarget {
    /// The field that has it.
    pub field: &'static str,
    pub bytes: u64,
}

impl SizeTarget {
    /// The target size of a configuration for a model of so many weights.
    pub fn of(config: &DiffusionQuantConfig, weights: u64) -> Option<Self> {
        let of_size = |size: f64| Self { field: "target_model_size_mb", bytes: (size * 1e6) as u64 };
        let of_bits = |bits: f64| Self { field: "target_bpw", bytes: (bits * weights as f64 / 8.0) as u64 };
        config.target_model_size_mb.map(of_size).or(config.target_bpw.map(of_bits))
    }

    /// That it cannot be met with fewer bytes than so many, in the unit of its field.
    fn refused(self, least: u64, weights: u64) -> QuantError {
        let unit = if self.field == "target_bpw" { weights as f64 / 8.0 } else { 1e6 };
        let least = (least as f64 / unit * 1e3).ceil() / 1e3;
        let asked = self.bytes as f64 / unit;
        QuantError::Setting { field: self.field, problem: SettingProblem::TooSmall { asked, least } }
    }
}

/// A target size, and the choices of tensors that meet it.
#[derive(Debug, Clone)]
pub(crate) struct Sizing {
    pub target: SizeTarget,
    /// The choices that are left, and those that are made.
    pub allocation: Allocation,
}

impl Sizing {
    /// Chooses bits and group sizes for the target size of a configuration from samples of the tensors; nothing if it has
    /// none. `overhead` is what is stored beside the tensors, more or less.
    ///
    /// # Errors
    /// If nothing that the target allows is small enough, or a weight in a sample cannot be quantized.
    pub async fn new(
        plan: &ModelPlan,
        config: &DiffusionQuantConfig,
        overhead: u64,
        listener: Listener,
    ) -> Result<Option<(Self, Sampled)>> {
        let weights = plan.model.tensors().iter().map(|tensor| tensor.elements()).sum();
        let Some(target) = SizeTarget::of(config, weights) else { return Ok(None) };
        let floor = Floor::of(config);
        let open = plan.tensors.iter().enumerate().filter(|(_, plan)| plan.is_open && plan.same_as.is_none());
        let wanted = open.map(|(index, _)| (index, plan.allowed.choices())).collect();
        let sampled = plan.sampling(wanted, config.threads()).run(listener).await?;
        let with_kept = |(index, costs): &(usize, Vec<Cost>)| {
            let above = costs.iter().filter(|cost| floor.allows(&cost.sums)).copied();
            (*index, above.chain([Cost::kept(&plan.model.tensors()[*index])]).collect())
        };
        let costs = sampled.costs.iter().map(with_kept).collect();
        let mut allocation = Allocation::new(costs, !config.enable_mixed_precision);
        let beside = overhead + plan.fixed_bytes();
        let least = beside + allocation.least_bytes();
        // What is beside the tensors is known more or less. Whether the smallest choices fit is seen when they are written.
        if target.bytes + overhead / 8 < least {
            return Err(target.refused(least, weights));
        }
        let budget = target.bytes.saturating_sub(beside).max(allocation.least_bytes());
        allocation.choose(budget).map_err(|_| target.refused(least, weights))?;
        Ok(Some((Self { target, allocation }, sampled)))
    }

    /// Why a tensor is what the target size chose.
    pub fn reason(&self) -> Reason {
        Reason::Target { field: self.target.field.to_string() }
    }
}
