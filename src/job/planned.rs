//! From a model and a configuration to a plan, step by step: open the model, find out what it is, decide on its tensors,
//! choose for a target size, add what a calibration says.

use std::path::Path;
use std::sync::Arc;

use arrow_quant_kernels::Isa;

use super::JobOptions;
use super::open::open;
use crate::calibration::{Calibrated, Moments, calibrate, expected_bytes, factor_bytes, open_moments, plan_feedback};
use crate::config::WeightType;
use crate::plan::{Detected, Estimate, Evidence, ModelPlan, Sampled, choose_sizes, detect, measured, memory, notes};
use crate::report::PlanReport;
use crate::tables::ModelParts;
use crate::targets::{Layout, Target, TargetName};
use crate::workers::blocking;
use crate::{Calibration, DiffusionQuantConfig, Modality, QuantError, Result, SettingProblem};

/// What is decided before the first weight is written.
pub(super) struct Planned {
    pub plan: ModelPlan,
    /// What an output consists of.
    pub layout: Arc<dyn Layout>,
    pub parts: ModelParts,
    /// Parts under way at once.
    pub in_flight: usize,
    pub modality: Option<Modality>,
    pub notes: Vec<String>,
    pub calibrated: Calibrated,
    /// What was sampled for a target size.
    sampled: Option<Sampled>,
    /// Bytes that the calibration and factors of second moments take in memory.
    held: u64,
}

/// What is decided by headers and names.
struct Decided {
    plan: ModelPlan,
    layout: Arc<dyn Layout>,
    parts: ModelParts,
    in_flight: usize,
    detected: Detected,
    notes: Vec<String>,
    moments: Option<InputMoments>,
    held: u64,
}

/// The second moments of a method with error feedback, and the tensors of each input.
type InputMoments = (Arc<Moments>, Vec<Vec<usize>>);

/// Plans what becomes of a model.
///
/// # Errors
/// If there is no readable model, or what is asked for does not fit it, the limit of memory or the target.
pub(super) async fn plan(
    model: &Path,
    config: &DiffusionQuantConfig,
    options: &JobOptions,
    target: TargetName,
) -> Result<Planned> {
    config.validate()?;
    let (config, adaptations) =
        &adapted(config, target.target(), options.calibration.as_ref().is_some_and(|c| c.has_timesteps()))?;
    let allowed = target.target().allowed_with(config);
    Isa::active()?;
    let Decided { mut plan, layout, parts, in_flight, detected, mut notes, moments, held } = {
        let (model, config, options) = (model.to_path_buf(), config.clone(), options.clone());
        blocking(move || decide(&model, &config, &options, target)).await?
    };
    notes.extend(adaptations.iter().cloned());
    let calibration = options.calibration.as_ref();
    let overhead = allowed.overhead(parts.iter())
        + layout.overhead(&plan.model)
        + calibration.map_or(0, |c| expected_bytes(c, config));
    let mut sampled = None;
    if let Some((sizing, measured)) = choose_sizes(&plan, config, overhead, options.listener()).await? {
        (plan.sizing, sampled) = (Some(sizing), Some(measured));
        plan.follow_sizing();
    }
    layout.check(&plan)?;
    let calibrated = match calibration {
        Some(calibration) => {
            let (model, settings) = (Arc::clone(&plan.model), plan.settings);
            calibrate(calibration, &model, &mut plan.tensors, settings, config, options.listener()).await?
        }
        None => Calibrated::none(),
    };
    notes.extend(calibrated.notes.iter().cloned());
    if let Some((moments, tensors)) = moments {
        notes.extend(plan_feedback(moments, &tensors, &mut plan.tensors, config.threads()).await?);
    }
    // What was decided by the weights is worth nothing if they were written to meanwhile.
    plan.model.check()?;
    Ok(Planned {
        notes,
        modality: config.modality.or(detected.modality),
        plan,
        layout,
        parts,
        in_flight,
        calibrated,
        sampled,
        held,
    })
}

/// A configuration as a target can follow it, and notes of what that changed: types become the target's own, and what
/// profiles give everybody becomes what it can hold.
///
/// # Errors
/// If the target does not have the scheme that was chosen.
fn adapted(
    config: &DiffusionQuantConfig,
    target: &dyn Target,
    has_timesteps: bool,
) -> Result<(DiffusionQuantConfig, Vec<String>)> {
    let (allowed, mut notes) = (target.allowed(), Vec::new());
    let mut config = DiffusionQuantConfig { weight_type: target.weight_type(config.weight_type), ..config.clone() };
    if !matches!(config.weight_type, WeightType::Int(_)) || allowed.schemes.contains(&config.scheme) {
        // Nothing else has schemes.
    } else if let (&[first, ..], true) = (allowed.schemes, config.scheme == DiffusionQuantConfig::default().scheme) {
        notes.push(format!("{} has no {} scheme: scheme is {first}", allowed.target, config.scheme));
        config.scheme = first;
    } else if !allowed.schemes.is_empty() {
        let names: Vec<_> = allowed.schemes.iter().map(|scheme| scheme.name()).collect();
        let problem =
            SettingProblem::TypeNotHeld { name: config.scheme.name(), target: allowed.target, held: names.join(", ") };
        return Err(QuantError::setting("scheme", problem));
    }
    if matches!(config.weight_type, WeightType::Int(_)) && !allowed.group_sizes.contains(&config.group_size) {
        let smaller = allowed.group_sizes.iter().rev().find(|size| **size < config.group_size);
        if let Some(&size) = smaller.or(allowed.group_sizes.first()) {
            let (target, asked) = (allowed.target, config.group_size.get());
            notes.push(format!("{target} has no groups of {asked}: group_size is {}", size.get()));
            config.group_size = size;
        }
    }
    if config.enable_spatial && !allowed.smoothing {
        if has_timesteps && config.smooths() {
            notes.push(format!(
                "{} has no place for the factors of smoothed channels: enable_spatial is false",
                allowed.target
            ));
        }
        config.enable_spatial = false;
    }
    Ok((config, notes))
}

/// Opens the model, and decides what needs no weight to be measured. It waits for the disk.
fn decide(path: &Path, config: &DiffusionQuantConfig, options: &JobOptions, target: TargetName) -> Result<Decided> {
    let moments = config.method.feeds_back().then(|| open_moments(options.calibration.as_deref())).transpose()?;
    let factors = moments.as_ref().map_or(0, |moments| factor_bytes(moments, config.threads() + 1));
    let held = held(options) + factors;
    let (model, in_flight) = open(path, config, held)?;
    if let Some(calibration) = &options.calibration {
        calibration.check(&model)?;
    }
    let moments = moments.map(|moments| Ok::<_, QuantError>((moments.tensors(&model)?, Arc::new(moments))));
    let moments = moments.transpose()?.map(|(tensors, moments)| (moments, tensors));
    let detected = detect(&Evidence::of(&model)?);
    if config.skip_sensitive_layers && config.modality.is_none() {
        detected.require(model.path())?;
    }
    let layout = target.target().layout(&model, config)?;
    let allowed = (target.target().allowed_with(config), layout.requests());
    let plan = ModelPlan::new(model, config, options.plan.as_deref(), &detected, allowed)?.with_units(layout.units());
    let parts = ModelParts::new(&plan.model, |tensor| plan.tensors[tensor].same_as.is_none());
    let notes = notes(config, &plan, &detected, options.calibration.is_some())?;
    Ok(Decided { plan, layout, parts, in_flight, detected, notes, moments, held })
}

/// Bytes that the calibration takes in memory.
fn held(options: &JobOptions) -> u64 {
    options.calibration.as_deref().map_or(0, Calibration::bytes)
}

/// Plans what would become of a model, and writes nothing.
///
/// # Errors
/// As [`quantize_model`](super::quantize_model), save for what concerns the output.
pub async fn plan_model(model: &Path, config: &DiffusionQuantConfig, options: &JobOptions) -> Result<PlanReport> {
    let Planned { plan, layout, parts, modality, notes, calibrated, sampled, held, .. } =
        self::plan(model, config, options, options.target(config, None)).await?;
    let sampled = measured(&plan, sampled, config.threads(), options.listener()).await?;
    plan.model.check()?;
    let overhead = plan.allowed.overhead(parts.iter()) + layout.overhead(&plan.model) + calibrated.bytes();
    let Estimate { tensors, weights, original_bytes, stored_bytes, sqnr_db, squared_error, time_s } =
        Estimate::new(&plan, &sampled, overhead, config.threads());
    Ok(PlanReport {
        model: plan.model.path().to_path_buf(),
        modality,
        weights,
        original_bytes,
        stored_bytes,
        bits_per_weight: 8.0 * stored_bytes as f64 / weights.max(1) as f64,
        compression_ratio: original_bytes as f64 / stored_bytes.max(1) as f64,
        sqnr_db,
        squared_error,
        parts: parts.iter().len(),
        estimated_time_s: time_s,
        estimated_memory_mb: memory::estimate_mb(config, original_bytes, held)?,
        notes,
        layers: calibrated.layers,
        tensors,
    })
}
