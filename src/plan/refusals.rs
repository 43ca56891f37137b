//! Fields of a configuration that contradict a plan.

use arrow_quant_formats::manifest::Reason;

use super::allowed::Allowed;
use super::tensors::TensorPlan;
use crate::config::WeightType;
use crate::{DiffusionQuantConfig, QuantError, Result, SettingProblem};

/// A plan says what each tensor becomes: fields that would say so too have no place beside it.
pub(super) fn refuse_decisions(config: &DiffusionQuantConfig) -> Result<()> {
    let set = [
        ("target_model_size_mb", config.target_model_size_mb.is_some()),
        ("target_bpw", config.target_bpw.is_some()),
        ("tensors", config.tensors.is_some()),
        ("layer_bit_widths", !config.layer_bit_widths.is_empty()),
        ("sensitive_layer_names", !config.sensitive_layer_names.is_empty()),
        ("sensitive_layer_patterns", !config.sensitive_layer_patterns.is_empty()),
        ("skip_sensitive_layers", config.skip_sensitive_layers),
    ];
    match set.iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(QuantError::setting(field, SettingProblem::BesidePlan)),
        None => Ok(()),
    }
}

pub(super) fn refuse_selection_of_nothing(config: &DiffusionQuantConfig, plans: &[TensorPlan]) -> Result<()> {
    match &config.tensors {
        Some(pattern) if plans.iter().all(|plan| plan.choice.is_none()) => {
            let problem = SettingProblem::SelectsNothing { pattern: pattern.clone() };
            Err(QuantError::setting("tensors", problem))
        }
        _ => Ok(()),
    }
}

/// A type that the target does not hold would leave every tensor as it is.
pub(super) fn refuse_type(config: &DiffusionQuantConfig, allowed: &Allowed) -> Result<()> {
    let is_held = match config.weight_type {
        WeightType::Block(block_type) => allowed.block_types.contains(&block_type),
        WeightType::Mix(mix) => allowed.block_types.contains(&mix.base()),
        // With a target size, bits are chosen among those that are held.
        WeightType::Int(bits) if config.target_model_size_mb.is_some() || config.target_bpw.is_some() => {
            allowed.bits.contains(&bits) || !allowed.bits.is_empty()
        }
        WeightType::Int(bits) => allowed.bits.contains(&bits),
        WeightType::Float(dtype) => allowed.floats.contains(&dtype),
    };
    if is_held {
        return Ok(());
    }
    let names = allowed.bits.iter().map(|bits| bits.name());
    let floats = allowed.floats.iter().map(|dtype| WeightType::Float(*dtype).name());
    let held = names.chain(allowed.block_types.iter().map(|block_type| block_type.name())).chain(floats);
    let problem = SettingProblem::TypeNotHeld {
        name: config.weight_type.name(),
        target: allowed.target,
        held: held.collect::<Vec<_>>().join(", "),
    };
    Err(QuantError::setting("type", problem))
}

/// Refuses a plan in which rows gave a tensor another type than was asked for, if that is not wanted.
pub(super) fn refuse_fallbacks(config: &DiffusionQuantConfig, plans: &[TensorPlan]) -> Result<()> {
    let mut fallen = plans.iter().filter(|plan| matches!(plan.reason, Reason::Rows { .. } | Reason::GroupRows { .. }));
    match fallen.next() {
        Some(first) if config.no_fallback => {
            let problem = SettingProblem::FallsBack {
                tensor: first.name(),
                reason: first.reason.clone(),
                others: fallen.count(),
            };
            Err(QuantError::setting("no_fallback", problem))
        }
        Some(_) | None => Ok(()),
    }
}
