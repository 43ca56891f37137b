//! What there is to know of a plan beside what each tensor becomes.

use super::family::Detected;
use super::tensors::is_matched;
use crate::{DiffusionQuantConfig, Model};

/// What there is to know of a plan beside what each tensor becomes, and what was asked for that has no effect.
pub(crate) fn notes(
    config: &DiffusionQuantConfig,
    model: &Model,
    detected: &Detected,
    is_calibrated: bool,
) -> Vec<String> {
    let has_target_size = config.target_model_size_mb.is_some() || config.target_bpw.is_some();
    let mut notes = Vec::new();
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
    notes
}
