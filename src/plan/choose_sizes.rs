//! Bits and group sizes for a target size, from samples of the tensors.

use std::collections::HashMap;

use super::floor::Floor;
use super::model::ModelPlan;
use super::sample::{Cost, Sampled};
use super::size::Allocation;
use super::size_target::{SizeTarget, Sizing};
use crate::report::Listener;
use crate::{DiffusionQuantConfig, QuantError, Result, SettingProblem};

/// Chooses bits and group sizes for the target size of a configuration from samples of the tensors; nothing if it has
/// none. `overhead` is what is stored beside the tensors, more or less.
///
/// # Errors
/// If nothing that the target allows is small enough, or a weight in a sample cannot be quantized.
pub(crate) async fn choose_sizes(
    plan: &ModelPlan,
    config: &DiffusionQuantConfig,
    overhead: u64,
    listener: Listener,
) -> Result<Option<(Sizing, Sampled)>> {
    let weights = plan.model.tensors().iter().map(|tensor| tensor.elements()).sum();
    let Some(target) = SizeTarget::of(config, weights) else { return Ok(None) };
    if weights == 0 {
        return Err(QuantError::setting(target.field, SettingProblem::NoWeights));
    }
    let floor = Floor::of(config);
    let open = plan.tensors.iter().enumerate().filter(|(_, plan)| plan.is_open && plan.same_as.is_none());
    let wanted = open.map(|(index, _)| (index, plan.allowed.choices(config.weight_type))).collect();
    let sampled = plan.sampling(wanted, config.threads()).run(listener).await?;
    let with_kept = |(index, costs): &(usize, Vec<Cost>)| {
        let above = costs.iter().filter(|cost| floor.allows(&cost.sums)).copied();
        (*index, above.chain([Cost::kept(&plan.model.tensors()[*index])]).collect())
    };
    let costs = united(plan, sampled.costs.iter().map(with_kept).collect());
    let mut allocation = Allocation::new(costs, !config.enable_mixed_precision);
    let beside = overhead + plan.fixed_bytes();
    let least = beside + allocation.least_bytes();
    // What is beside the tensors is known more or less. Whether the smallest choices fit is seen when they are written.
    if target.bytes + overhead / 8 < least {
        if weights == 0 {
            return Err(QuantError::setting(target.field, SettingProblem::NothingToChoose));
        }
        return Err(target.refused(least, weights));
    }
    let budget = target.bytes.saturating_sub(beside).max(allocation.least_bytes());
    allocation.choose(budget).map_err(|_| target.refused(least, weights))?;
    Ok(Some((Sizing { target, allocation }, sampled)))
}

/// Costs by tensor, those of tensors that must become the same added up under the first of them, for the choices that all of
/// them have.
fn united(plan: &ModelPlan, costs: Vec<(usize, Vec<Cost>)>) -> Vec<(usize, Vec<Cost>)> {
    let mut united: Vec<(usize, Vec<Cost>)> = Vec::with_capacity(costs.len());
    let mut places: HashMap<usize, usize> = HashMap::new();
    for (index, costs) in costs {
        let first = plan.unit(index)[0];
        let Some(&place) = places.get(&first) else {
            places.insert(first, united.len());
            united.push((first, costs));
            continue;
        };
        united[place].1.retain_mut(|cost| match costs.iter().find(|other| other.choice == cost.choice) {
            Some(other) => {
                cost.bytes += other.bytes;
                cost.sums = cost.sums + other.sums;
                cost.squared_error += other.squared_error;
                true
            }
            None => false,
        });
    }
    united
}
