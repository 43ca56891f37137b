//! From a model and a configuration to a plan: what is decided before the first weight is written.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow_quant_formats::directory::Missing;
use arrow_quant_formats::manifest::Reason;
use arrow_quant_kernels::{Isa, PairSums, Settings};
use arrow_quant_stores::Residence;

use super::JobOptions;
use super::rounds::Floor;
use crate::calibration::{Calibrated, calibrate, expected_bytes};
use crate::plan::{
    Allocation, Choice, Cost, Detected, Evidence, Sampled, Sampling, TensorPlan, all_choices, detect, is_matched,
    kept_unless_smaller, memory, plan_tensors, quantized_bytes, read_plan,
};
use crate::report::{Listener, PlanReport, PlannedTensor, finite, sqnr_db};
use crate::tables::ModelParts;
use crate::{DiffusionQuantConfig, Modality, Model, QuantError, Result, SettingProblem};

/// Bytes of a part's file beside payloads: of the file itself, and of each chunk's row. On five models, from 0.3 million to a
/// billion weights, right to 0.25 % of the size; it is known better once a round was written.
const OVERHEAD: [f64; 2] = [5950.0, 72.0];

/// A target size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// The field that has it.
    pub field: &'static str,
    pub bytes: u64,
}

impl Target {
    /// The target of a configuration for a model of so many weights.
    fn of(config: &DiffusionQuantConfig, weights: u64) -> Option<Self> {
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

/// A model, and what is to become of it.
pub(crate) struct Planned {
    pub source: Arc<Model>,
    pub settings: Settings,
    pub plans: Vec<TensorPlan>,
    pub parts: ModelParts,
    /// Parts under way at once.
    pub in_flight: usize,
    /// With a target size, the choices that are left.
    pub allocation: Option<Allocation>,
    /// What the files of weights may take.
    pub target: Option<Target>,
    pub modality: Option<Modality>,
    pub notes: Vec<String>,
    pub calibrated: Calibrated,
    /// Bytes that the calibration takes in memory.
    held: u64,
    /// Bytes of the tables that the calibration became; before that was done, more or less.
    pub beside: u64,
    sampled: Sampled,
}

impl Planned {
    /// Opens a model and plans what becomes of it.
    pub async fn new(model: &Path, config: &DiffusionQuantConfig, options: &JobOptions) -> Result<Self> {
        config.validate()?;
        let settings = config.settings();
        Isa::active()?;
        let held = options.calibration.as_ref().map_or(0, |calibration| calibration.bytes());
        let (source, in_flight) = open(model, config, held)?;
        if source.tensors().is_empty() {
            return Err(QuantError::missing(source.path(), Missing::NoTensors));
        }
        if let Some(calibration) = &options.calibration {
            calibration.check(&source)?;
        }
        let detected = detect(&Evidence::of(&source)?);
        if config.skip_sensitive_layers && config.modality.is_none() {
            detected.require(source.path())?;
        }
        let plans = match &options.plan {
            Some(path) => {
                refuse_decisions(config)?;
                read_plan(path, &source, settings)?
            }
            None => plan_tensors(&source, config, settings, &detected)?,
        };
        refuse_selection_of_nothing(config, &plans)?;
        let parts = ModelParts::new(&source, |tensor| plans[tensor].same_as.is_none());
        let mut planned = Self {
            notes: notes(config, options, &source, &detected),
            source,
            settings,
            plans,
            parts,
            in_flight,
            allocation: None,
            target: None,
            modality: config.modality.or(detected.modality),
            calibrated: Calibrated::none(),
            held,
            beside: options.calibration.as_ref().map_or(0, |calibration| expected_bytes(calibration, config)),
            sampled: Sampled::default(),
        };
        planned.meet_target(config, options.listener()).await?;
        if let Some(calibration) = &options.calibration {
            let (source, plans) = (&planned.source, &mut planned.plans);
            planned.calibrated = calibrate(calibration, source, plans, settings, config, options.listener()).await?;
            planned.beside = planned.calibrated.bytes();
        }
        Ok(planned)
    }

    /// Chooses bits and group sizes for a target size, if there is one.
    async fn meet_target(&mut self, config: &DiffusionQuantConfig, listener: Listener) -> Result<()> {
        let weights = self.source.tensors().iter().map(|tensor| tensor.elements()).sum();
        let Some(target) = Target::of(config, weights) else { return Ok(()) };
        let floor = Floor::of(config);
        let open = self.plans.iter().enumerate().filter(|(_, plan)| plan.is_open && plan.same_as.is_none());
        let wanted = open.map(|(index, _)| (index, all_choices())).collect();
        self.sampled = self.sampling(wanted, config).run(listener).await?;
        let with_kept = |(index, costs): &(usize, Vec<Cost>)| {
            let above = costs.iter().filter(|cost| floor.allows(&cost.sums)).copied();
            (*index, above.chain([Cost::kept(&self.source.tensors()[*index])]).collect())
        };
        let costs = self.sampled.costs.iter().map(with_kept).collect();
        let mut allocation = Allocation::new(costs, !config.enable_mixed_precision);
        let beside = self.overhead() + self.fixed_bytes();
        let least = beside + allocation.least_bytes();
        // What is beside the tensors is known more or less. Whether the smallest choices fit is seen when they are written.
        if target.bytes + self.overhead() / 8 < least {
            return Err(target.refused(least, weights));
        }
        let budget = target.bytes.saturating_sub(beside).max(allocation.least_bytes());
        allocation.choose(budget).map_err(|_| target.refused(least, weights))?;
        self.target = Some(target);
        self.allocation = Some(allocation);
        self.follow_allocation();
        Ok(())
    }

    fn sampling(&self, wanted: Vec<(usize, Vec<Choice>)>, config: &DiffusionQuantConfig) -> Sampling {
        Sampling { model: Arc::clone(&self.source), wanted, settings: self.settings, threads: config.threads() }
    }

    /// Plans what the allocation has chosen.
    pub fn follow_allocation(&mut self) {
        let (Some(allocation), Some(target)) = (&self.allocation, self.target) else { return };
        for (index, cost) in allocation.chosen() {
            let plan = &mut self.plans[index];
            plan.choice = cost.choice;
            plan.reason = Reason::Target { field: target.field.to_string() };
            *plan = kept_unless_smaller(plan.clone(), &self.source.tensors()[index], self.settings);
        }
        self.follow_ties();
    }

    /// Gives tensors that are the same as another its choice.
    pub fn follow_ties(&mut self) {
        for index in 0..self.plans.len() {
            if let Some(first) = self.plans[index].same_as {
                self.plans[index].choice = self.plans[first].choice;
            }
        }
    }

    /// Bytes of tensors whose size is not up to a target.
    fn fixed_bytes(&self) -> u64 {
        let tensors = self.source.tensors().iter().zip(&self.plans);
        let fixed = tensors.filter(|(_, plan)| !plan.is_open && plan.same_as.is_none());
        fixed.map(|(tensor, plan)| self.bytes(tensor, plan.choice)).sum()
    }

    fn bytes(&self, tensor: &crate::Tensor, choice: Option<Choice>) -> u64 {
        choice.map_or(tensor.bytes, |choice| quantized_bytes(tensor, choice.with(self.settings)))
    }

    /// What files take beside payloads, more or less.
    fn overhead(&self) -> u64 {
        let [of_file, of_chunk] = OVERHEAD;
        let of_part = |part: &std::ops::Range<usize>| of_file + of_chunk * part.len() as f64;
        self.parts.iter().map(of_part).sum::<f64>() as u64 + self.beside
    }

    /// The plan with sizes, and with errors and times estimated from a sample.
    async fn estimate(mut self, config: &DiffusionQuantConfig, listener: Listener) -> Result<PlanReport> {
        if self.allocation.is_none() {
            let stored = self.plans.iter().enumerate().filter(|(_, plan)| plan.same_as.is_none());
            let wanted = stored.filter_map(|(index, plan)| Some((index, vec![plan.choice?]))).collect();
            self.sampled = self.sampling(wanted, config).run(listener).await?;
        }
        let mut chosen: Vec<Option<Cost>> = vec![None; self.plans.len()];
        for (index, costs) in &self.sampled.costs {
            chosen[*index] = costs.iter().find(|cost| cost.choice == self.plans[*index].choice).copied();
        }
        let tensors: Vec<_> = (0..self.plans.len()).map(|index| self.planned_tensor(index, &chosen)).collect();
        let stored_bytes = tensors.iter().map(|tensor| tensor.bytes).sum::<u64>() + self.overhead();
        let weights: u64 = tensors.iter().map(|tensor| tensor.elements).sum();
        let original_bytes: u64 = self.source.tensors().iter().map(|tensor| tensor.bytes).sum();
        // Of all weights, not of the sample: as if each tensor were its sample many times over.
        let of_all = |(cost, tensor): (&Cost, &PlannedTensor)| {
            let times = tensor.elements as f64 / cost.sums.n.max(1) as f64;
            (cost.sums.sum_aa * times, cost.squared_error)
        };
        let costs =
            chosen.iter().flatten().zip(tensors.iter().zip(&chosen).filter(|(_, c)| c.is_some()).map(|(t, _)| t));
        let (squares, squared_error) = costs.map(of_all).fold((0.0, 0.0), |sum, x| (sum.0 + x.0, sum.1 + x.1));
        let quantized: u64 =
            tensors.iter().filter(|t| t.bits.is_some() && t.same_as.is_none()).map(|t| t.elements).sum();
        Ok(PlanReport {
            model: self.source.path().to_path_buf(),
            modality: self.modality,
            weights,
            original_bytes,
            stored_bytes,
            bits_per_weight: 8.0 * stored_bytes as f64 / weights.max(1) as f64,
            compression_ratio: original_bytes as f64 / stored_bytes.max(1) as f64,
            sqnr_db: finite(10.0 * (squares / squared_error).log10()),
            squared_error,
            parts: self.parts.iter().len(),
            estimated_time_s: estimated_time(self.sampled.per_weight, quantized, stored_bytes, config.threads()),
            estimated_memory_mb: memory::estimate_mb(config, original_bytes, self.held)?,
            notes: self.notes,
            layers: self.calibrated.layers,
            tensors,
        })
    }

    fn planned_tensor(&self, index: usize, chosen: &[Option<Cost>]) -> PlannedTensor {
        let (tensor, plan) = (&self.source.tensors()[index], &self.plans[index]);
        let stored = plan.same_as.unwrap_or(index);
        let figures: Option<PairSums> = chosen[stored].filter(|cost| cost.choice.is_some()).map(|cost| cost.sums);
        let bytes = chosen[stored].map_or_else(|| self.bytes(tensor, plan.choice), |cost| cost.bytes);
        PlannedTensor {
            component: plan.component.clone(),
            tensor: plan.tensor.clone(),
            bits: plan.choice.map(|choice| choice.bits.get() as u8),
            group_size: plan.choice.map(|choice| choice.group_size.get() as u32),
            because: plan.reason.clone().into(),
            same_as: plan.same_as.map(|first| self.plans[first].name()),
            dtype: tensor.dtype().to_string(),
            shape: tensor.shape.clone(),
            elements: tensor.elements(),
            bytes: if plan.same_as.is_some() { 0 } else { bytes },
            cosine_similarity: figures.and_then(|sums| sums.cosine_similarity()),
            sqnr_db: figures.as_ref().and_then(sqnr_db).and_then(finite),
        }
    }
}

/// Opens the model, or reads it; and the number of parts that may be under way within the limit of memory, of which so many
/// bytes are held.
fn open(path: &Path, config: &DiffusionQuantConfig, held: u64) -> Result<(Arc<Model>, usize)> {
    let model = Model::open(path)?;
    if config.enable_streaming {
        return Ok((Arc::new(model), memory::in_flight(config, held)?));
    }
    let bytes: u64 = model.files().map(|(_, file)| file.identity().length).sum();
    let in_flight = memory::in_flight(config, bytes + held)?;
    Ok((Arc::new(Model::load(path, Residence::Memory)?), in_flight))
}

/// A plan says what each tensor becomes: fields that would say so too have no place beside it.
fn refuse_decisions(config: &DiffusionQuantConfig) -> Result<()> {
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
        Some((field, _)) => Err(QuantError::Setting { field, problem: SettingProblem::BesidePlan }),
        None => Ok(()),
    }
}

fn refuse_selection_of_nothing(config: &DiffusionQuantConfig, plans: &[TensorPlan]) -> Result<()> {
    match &config.tensors {
        Some(pattern) if plans.iter().all(|plan| plan.choice.is_none()) => {
            let problem = SettingProblem::SelectsNothing { pattern: pattern.clone() };
            Err(QuantError::Setting { field: "tensors", problem })
        }
        _ => Ok(()),
    }
}

/// What there is to know of a plan beside what each tensor becomes, and what was asked for that has no effect.
fn notes(config: &DiffusionQuantConfig, options: &JobOptions, source: &Model, detected: &Detected) -> Vec<String> {
    let mut notes = Vec::new();
    if let (None, Some(modality)) = (config.modality, detected.modality) {
        notes.push(format!("the model makes {modality}, by {}", detected.from));
    }
    if config.skip_sensitive_layers {
        let mut components: Vec<&str> = source.tensors().iter().map(|tensor| tensor.component.as_str()).collect();
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
        if !is_matched(pattern, source) {
            notes.push(format!("sensitive_layer_patterns '{pattern}' matches no tensor"));
        }
    }
    if config.fail_fast && Target::of(config, 0).is_some() {
        notes.push(
            "fail_fast is for tensors whose bits were given: those that the target size chose may fall back"
                .to_string(),
        );
    }
    if options.calibration.is_none() && (config.enable_time_aware || config.enable_spatial) {
        notes.push(
            "weights only: there is no calibration table, so enable_time_aware, num_time_groups, time_group_boundaries, \
             calibration_samples and enable_spatial are recorded but have no effect"
                .to_string(),
        );
    }
    if config.target_model_size_mb.is_some() || config.target_bpw.is_some() {
        notes.push("bits and group sizes follow from the target size, not from bit_width and group_size".to_string());
    }
    notes
}

/// Seconds: the kernels' time as measured, and half as much for reading, hashing and writing.
fn estimated_time(per_weight: Duration, weights: u64, stored_bytes: u64, threads: usize) -> f64 {
    /// Bytes a second of a disk that is waited for.
    const DISK: f64 = 1.5e9;
    1.5 * per_weight.as_secs_f64() * weights as f64 / threads as f64 + stored_bytes as f64 / DISK
}

/// Plans what would become of a model, and writes nothing.
///
/// # Errors
/// As [`quantize_model`](super::quantize_model), save for what concerns the output.
pub async fn plan_model(model: &Path, config: &DiffusionQuantConfig, options: &JobOptions) -> Result<PlanReport> {
    Planned::new(model, config, options).await?.estimate(config, options.listener()).await
}
