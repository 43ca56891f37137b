//! What there is to know of a plan beside what each tensor becomes.

use arrow_quant_formats::shown;

use super::contents::Contents;
use super::family::Detected;
use super::model::ModelPlan;
use super::size_target::SizeTarget;
use super::tensors::is_matched;
use crate::{DiffusionQuantConfig, Model, Result};

/// What there is to know of a plan beside what each tensor becomes, and what was asked for that has no effect.
///
/// # Errors
/// If a configuration of the model cannot be read.
pub(crate) fn notes(
    config: &DiffusionQuantConfig,
    plan: &ModelPlan,
    detected: &Detected,
    is_calibrated: bool,
) -> Result<Vec<String>> {
    let model = &plan.model;
    let has_target_size = config.target_model_size_mb.is_some() || config.target_bpw.is_some();
    let mut notes: Vec<String> = model.left_out().iter().map(ToString::to_string).collect();
    notes.extend(claimed(model));
    notes.extend(restored(model));
    notes.extend(zeros(plan));
    if let (None, Some(modality)) = (config.modality, detected.modality) {
        notes.push(format!("the model makes {modality}, by {}", detected.from));
    }
    if config.skip_sensitive_layers {
        let mut components: Vec<&str> = model.tensors().iter().map(|tensor| tensor.component.as_str()).collect();
        components.dedup();
        notes.extend(components.into_iter().map(|component| {
            let of = if component.is_empty() { String::new() } else { format!(" of {component}") };
            match detected.family(component) {
                Some(family) => format!("sensitive layers{of} as in {}", family.name),
                None => format!("sensitive layers{of} are not known: none are skipped but those named"),
            }
        }));
    }
    for pattern in &config.sensitive_layer_patterns {
        if !is_matched(pattern, model) {
            notes.push(format!("sensitive_layer_patterns '{pattern}' matches no tensor"));
        }
    }
    if config.fail_fast && has_target_size {
        notes.push(
            "fail_fast is for tensors whose bits were given: those that the target size chose may fall back"
                .to_string(),
        );
    }
    if !is_calibrated && (config.enable_time_aware || config.enable_spatial) {
        notes.push(
            "weights only: there is no calibration table, so enable_time_aware, num_time_groups, time_group_boundaries, \
             calibration_samples and enable_spatial are recorded but have no effect"
                .to_string(),
        );
    }
    if has_target_size {
        notes.push("bits and group sizes follow from the target size, not from bit_width and group_size".to_string());
    }
    notes.extend(larger_target(config, model));
    Ok(notes)
}

/// That a configuration says of plain weights that they are quantized.
fn claimed(model: &Model) -> Option<String> {
    let claimed = model.quantized_source().filter(|source| !source.is_in_tensors)?;
    Some(format!(
        "the weights are said to be quantized with {claimed}, but are plain numbers: they are taken as they are"
    ))
}

/// That weights are those that another program's codes stand for.
fn restored(model: &Model) -> impl Iterator<Item = String> + '_ {
    model.restored_from().map(|source| {
        format!("the weights were quantized with {source}: what its codes stand for is taken as the original, F32")
    })
}

/// That tensors hold nothing but zeros, as files do that a download made room for and did not fill.
fn zeros(plan: &ModelPlan) -> Option<String> {
    /// The most tensors that are named.
    const MOST: usize = 3;
    let tensors = plan.model.tensors().iter().zip(&plan.contents);
    let zeros: Vec<_> = tensors.filter(|(_, contents)| **contents == Contents::Zeros).collect();
    let named: Vec<String> = zeros.iter().take(MOST).map(|(tensor, _)| shown(&tensor.full_name())).collect();
    let more = match zeros.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let are = if zeros.len() == 1 { "tensor is" } else { "tensors are" };
    (!zeros.is_empty()).then(|| {
        format!(
            "{} {are} all zeros: {}{more}; if they should not be, a download has not ended: get the weights again",
            zeros.len(),
            named.join(", ")
        )
    })
}

/// That a target size is no smaller than the model.
fn larger_target(config: &DiffusionQuantConfig, model: &Model) -> Option<String> {
    let weights = model.tensors().iter().map(|tensor| tensor.elements()).sum();
    let bytes: u64 = model.tensors().iter().map(|tensor| tensor.bytes).sum();
    let target = SizeTarget::of(config, weights).filter(|target| target.bytes >= bytes)?;
    Some(format!(
        "{} asks for {:.6} MB and the model has {:.6} MB: that is no less, so little or nothing is quantized",
        target.field,
        target.bytes as f64 / 1e6,
        bytes as f64 / 1e6
    ))
}
