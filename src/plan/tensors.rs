//! What each tensor becomes, and why.

use std::sync::Arc;

use arrow_quant_formats::manifest::{Limit, Reason};
use arrow_quant_formats::{full_name, nearest};
use arrow_quant_kernels::{Fill, GroupSize, Isa, Method, Scheme, Settings, Weights, par_quantize, quantize_blocks};
use regex::Regex;

use super::allowed::Allowed;
use super::channels::Channels;
use super::choice::{Choice, JobSettings};
use super::contents::Contents;
use super::family::Detected;
use super::request::Request;
use super::ties::repeated;
use crate::config::{WeightType, Width, regex};
use crate::{DiffusionQuantConfig, Model, QuantError, Result, SettingProblem, Tensor};

/// What becomes of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorPlan {
    pub component: String,
    pub tensor: String,
    /// `None` if it is kept.
    pub choice: Option<Choice>,
    /// Why.
    pub reason: Reason,
    /// Whether bits and group size may still be chosen, by a target size.
    pub is_open: bool,
    /// The index of the tensor that it is the same as, which is stored for both.
    pub same_as: Option<usize>,
    /// What a calibration has to say on its weights.
    pub channels: Option<Arc<Channels>>,
}

impl TensorPlan {
    /// Keeps the tensors that a target wants to stay, and those that it leaves out.
    pub(super) fn settle(tensors: &mut [Self], requests: &[Request], target: &str) {
        for (request, plan) in requests.iter().zip(tensors) {
            let target = || target.to_string();
            let reason = match request {
                Request::Stay if plan.choice.is_some() => Reason::NotHeld { target: target(), limit: Limit::Tensor },
                Request::LeftOut(why) if plan.same_as.is_none() => Reason::LeftOut { target: target(), why: *why },
                Request::Free | Request::Type(_) | Request::Stay | Request::LeftOut(_) => continue,
            };
            (plan.choice, plan.is_open, plan.reason) = (None, false, reason);
        }
    }
}

impl TensorPlan {
    pub(crate) fn key(&self) -> (&str, &str) {
        (&self.component, &self.tensor)
    }

    pub(crate) fn name(&self) -> String {
        full_name(&self.component, &self.tensor)
    }
}

/// The plan for every tensor of a model, in its order, as the configuration has it before a target size is looked at.
///
/// # Errors
/// If a name in the configuration is no tensor's, or two of its patterns contradict each other.
pub(crate) fn plan_tensors(
    model: &Model,
    config: &DiffusionQuantConfig,
    settings: JobSettings,
    detected: &Detected,
    allowed: &Allowed,
    (contents, requests): (&[Contents], &[Request]),
) -> Result<Vec<TensorPlan>> {
    let rules = Rules::new(model, config, settings, detected, allowed)?;
    let tensors = model.tensors().iter().zip(contents).zip(requests);
    let plan =
        |((tensor, contents), request): ((&Tensor, &Contents), &Request)| rules.plan(tensor, *contents, *request);
    let mut plans = tensors.map(plan).collect::<Result<Vec<_>>>()?;
    unite(&mut plans, &repeated(model.tensors())?);
    Ok(plans)
}

/// Gives tensors that are the same the same plan: that of the one which was to keep more of itself.
pub(crate) fn unite(plans: &mut [TensorPlan], same: &[Option<usize>]) {
    for (index, first) in same.iter().enumerate().filter_map(|(index, first)| Some((index, (*first)?))) {
        if precision(&plans[index]) > precision(&plans[first]) {
            let better = plans[index].clone();
            plans[first] = TensorPlan {
                component: plans[first].component.clone(),
                tensor: plans[first].tensor.clone(),
                reason: Reason::ForEqual { tensor: better.name(), reason: Box::new(better.reason) },
                ..better
            };
        }
    }
    for (index, first) in same.iter().enumerate().filter_map(|(index, first)| Some((index, (*first)?))) {
        plans[index].choice = plans[first].choice;
        plans[index].reason = Reason::SameAs { tensor: plans[first].name() };
        plans[index].same_as = Some(first);
    }
}

/// How much of itself a tensor keeps, for comparison.
pub(super) fn precision(plan: &TensorPlan) -> (u8, usize) {
    match plan.choice {
        None if plan.reason == Reason::NotSelected => (0, 0),
        None => (u8::MAX, 0),
        // Of blocks of as many bits, those of more bytes.
        Some(choice) => (choice.bits().get() as u8, bytes_of_a_million(choice)),
    }
}

/// Bytes of so many weights in symmetric groups, or in blocks.
fn bytes_of_a_million(choice: Choice) -> usize {
    let encoding = choice.encoding(Scheme::Symmetric);
    1_000_000 * encoding.block_bytes() / encoding.block_length()
}

/// What the configuration says of tensors, ready to be asked.
struct Rules<'a> {
    /// What tensors become of which nothing else is said.
    weight_type: WeightType,
    group_size: GroupSize,
    settings: JobSettings,
    selected: Option<Regex>,
    sensitive_names: &'a [String],
    sensitive_patterns: Vec<Regex>,
    /// Bits by exact name, and by pattern.
    named_widths: Vec<(&'a str, Width)>,
    width_patterns: Vec<(&'a str, Regex, Width)>,
    /// Of the architecture, if they are asked for.
    defaults: Option<&'a Detected>,
    has_target: bool,
    allowed: &'a Allowed,
}

impl<'a> Rules<'a> {
    fn new(
        model: &Model,
        config: &'a DiffusionQuantConfig,
        settings: JobSettings,
        detected: &'a Detected,
        allowed: &'a Allowed,
    ) -> Result<Self> {
        let is_there = |name: &str| model.tensors().iter().any(|tensor| is_named(tensor, name));
        if let Some(unknown) = config.sensitive_layer_names.iter().find(|name| !is_there(name)) {
            return Err(unknown_name(model, "sensitive_layer_names", unknown));
        }
        let patterns = |field, patterns: &[String]| patterns.iter().map(|p| regex(field, p)).collect::<Result<_>>();
        let (mut named_widths, mut width_patterns) = (Vec::new(), Vec::new());
        for (layer, width) in &config.layer_bit_widths {
            if is_there(layer) {
                refuse_unfit(model, layer, *width)?;
                named_widths.push((layer.as_str(), *width));
                continue;
            }
            let pattern = regex("layer_bit_widths", layer)?;
            if !model.tensors().iter().any(|tensor| is_match(&pattern, tensor)) {
                return Err(unknown_name(model, "layer_bit_widths", layer));
            }
            width_patterns.push((layer.as_str(), pattern, *width));
        }
        Ok(Self {
            weight_type: config.weight_type,
            group_size: config.group_size,
            settings,
            selected: config.tensors.as_deref().map(|pattern| regex("tensors", pattern)).transpose()?,
            sensitive_names: &config.sensitive_layer_names,
            sensitive_patterns: patterns("sensitive_layer_patterns", &config.sensitive_layer_patterns)?,
            named_widths,
            width_patterns,
            defaults: config.skip_sensitive_layers.then_some(detected),
            has_target: config.target_model_size_mb.is_some() || config.target_bpw.is_some(),
            allowed,
        })
    }

    fn plan(&self, tensor: &Tensor, contents: Contents, request: Request) -> Result<TensorPlan> {
        let unfit = unfit(tensor);
        let width = if unfit.is_none() { self.width(tensor)? } else { None };
        let reason = unfit.or_else(|| self.reason_to_keep(tensor, contents).filter(|_| width.is_none()));
        let (choice, reason) = if let Some(reason) = reason {
            (None, reason)
        } else if let Some((layer, width)) = width {
            let choice = width.weight_type().and_then(|weight_type| Choice::new(weight_type, self.group_size));
            (choice, Reason::LayerBitWidths { layer: layer.to_string() })
        } else {
            let weight_type = request.weight_type().unwrap_or(self.weight_type);
            let reason = match weight_type {
                WeightType::Int(_) => Reason::BitWidth,
                WeightType::Block(_) | WeightType::Mix(_) | WeightType::Float(_) => Reason::Type,
            };
            (Choice::new(weight_type, self.group_size), reason)
        };
        let plan = TensorPlan {
            component: tensor.component.clone(),
            tensor: tensor.name.clone(),
            is_open: choice.is_some() && width.is_none(),
            choice,
            reason,
            same_as: None,
            channels: None,
        };
        if self.has_target && plan.is_open {
            // A target size looks at all choices, of which some may be smaller.
            let refusal = self.allowed.refusal_of_any(tensor, self.weight_type, self.settings.scheme);
            return Ok(kept_for(plan, refusal));
        }
        Ok(settled(plan, tensor, self.settings, self.allowed))
    }

    /// The bits that `layer_bit_widths` has for a tensor: by a name of it, the longest if there are several, or by
    /// patterns, which must agree.
    fn width(&self, tensor: &Tensor) -> Result<Option<(&'a str, Width)>> {
        let named = self.named_widths.iter().filter(|(name, _)| is_named(tensor, name));
        if let Some(found) = named.max_by_key(|(name, _)| name.len()) {
            return Ok(Some(*found));
        }
        let mut matching = self.width_patterns.iter().filter(|(_, pattern, _)| is_match(pattern, tensor));
        let Some((first, _, bits)) = matching.next() else { return Ok(None) };
        match matching.find(|(_, _, other)| other != bits) {
            Some((second, _, other)) => {
                let patterns = [(first, bits), (second, other)];
                let problem = SettingProblem::Disagreement {
                    patterns: patterns.map(|(pattern, width)| (pattern.to_string(), width.to_string())),
                    tensor: full_name(&tensor.component, &tensor.name),
                };
                Err(QuantError::setting("layer_bit_widths", problem))
            }
            None => Ok(Some((first, *bits))),
        }
    }

    /// Why a tensor is kept that could be quantized.
    fn reason_to_keep(&self, tensor: &Tensor, contents: Contents) -> Option<Reason> {
        if let Some(name) = self.sensitive_names.iter().find(|name| is_named(tensor, name)) {
            return Some(Reason::SensitiveLayerNames { name: name.clone() });
        }
        if let Some(pattern) = self.sensitive_patterns.iter().find(|pattern| is_match(pattern, tensor)) {
            return Some(Reason::SensitiveLayerPatterns { pattern: pattern.to_string() });
        }
        if self.selected.as_ref().is_some_and(|pattern| !is_match(pattern, tensor)) {
            return Some(Reason::NotSelected);
        }
        match contents {
            Contents::Mask => return Some(Reason::Mask),
            Contents::BelowF32 => return Some(Reason::BelowF32),
            Contents::Weights | Contents::Zeros => {}
        }
        self.defaults.and_then(|detected| detected.sensitive(&tensor.component, &tensor.name))
    }
}

/// Why a tensor cannot be quantized.
fn unfit(tensor: &Tensor) -> Option<Reason> {
    if tensor.float_dtype().is_none() {
        return Some(Reason::NotQuantized { dtype: tensor.dtype().to_string() });
    }
    (tensor.shape.len() < 2).then_some(Reason::Dimensions { dimensions: tensor.shape.len() })
}

/// A plan as the target can hold it: with shorter blocks where those of its type do not divide the rows, or to keep the
/// tensor where the target cannot hold it otherwise, or it would be no smaller: short rows, as of a patch embedding, may take
/// more for parameters than their codes save.
pub(crate) fn settled(plan: TensorPlan, tensor: &Tensor, settings: JobSettings, allowed: &Allowed) -> TensorPlan {
    let Some(choice) = plan.choice else { return plan };
    let (choice, reason) = match allowed.refusal(tensor, choice, settings.scheme) {
        Some(Reason::Rows { .. } | Reason::GroupRows { .. }) => allowed.for_rows(tensor, choice),
        Some(reason) => return kept_for(plan, Some(reason)),
        None => (Some(choice), None),
    };
    let plan =
        TensorPlan { choice, reason: reason.unwrap_or(plan.reason), is_open: plan.is_open && choice.is_some(), ..plan };
    let is_no_smaller = choice.is_some_and(|choice| quantized_bytes(tensor, choice, settings.scheme) >= tensor.bytes);
    kept_for(plan, is_no_smaller.then_some(Reason::NoSmaller))
}

/// Keeps a tensor if there is a reason to.
fn kept_for(plan: TensorPlan, reason: Option<Reason>) -> TensorPlan {
    match reason {
        Some(reason) => TensorPlan { choice: None, is_open: false, reason, ..plan },
        None => plan,
    }
}

/// A width for a tensor that can have none; for a module it is that of those that can.
fn refuse_unfit(model: &Model, name: &str, width: Width) -> Result<()> {
    let tensor = model.tensors().iter().find(|t| t.name == name || full_name(&t.component, &t.name) == name);
    match tensor.and_then(unfit) {
        Some(reason) if width != Width::Keep => {
            let problem =
                SettingProblem::CannotBeQuantized { name: name.to_string(), width: width.to_string(), reason };
            Err(QuantError::setting("layer_bit_widths", problem))
        }
        _ => Ok(()),
    }
}

/// Whether a pattern matches some tensor of a model; one that is no pattern matches none.
pub(crate) fn is_matched(pattern: &str, model: &Model) -> bool {
    Regex::new(pattern).is_ok_and(|pattern| model.tensors().iter().any(|tensor| is_match(&pattern, tensor)))
}

/// True if a pattern matches the tensor's name, with or without its component.
fn is_match(pattern: &Regex, tensor: &Tensor) -> bool {
    let full = || full_name(&tensor.component, &tensor.name);
    pattern.is_match(&tensor.name) || !tensor.component.is_empty() && pattern.is_match(&full())
}

/// True for the tensor's name, with or without its component, and for that of a module or component it belongs to.
fn is_named(tensor: &Tensor, name: &str) -> bool {
    let is_module_of =
        |full: &str| full.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let full = || full_name(&tensor.component, &tensor.name);
    is_module_of(&tensor.name) || !tensor.component.is_empty() && (tensor.component == name || is_module_of(&full()))
}

fn unknown_name<'a>(model: &'a Model, field: &'static str, name: &str) -> QuantError {
    // Tensors, and the modules that they are of.
    let modules = |tensor: &'a str| tensor.match_indices('.').map(move |(end, _)| &tensor[..end]).chain([tensor]);
    let near = nearest(name, model.tensors().iter().flat_map(|tensor| modules(&tensor.name)));
    let problem = SettingProblem::UnknownName { name: name.to_string(), nearest: near.map(str::to_string) };
    QuantError::setting(field, problem)
}

/// Bytes of codes and f16 parameters, or of blocks; those of the tensor where blocks do not divide its rows.
pub(crate) fn quantized_bytes(tensor: &Tensor, choice: Choice, scheme: Scheme) -> u64 {
    let (elements, row) = (tensor.elements() as usize, tensor.row_length() as usize);
    choice.encoding(scheme).stored_bytes(elements, row.max(1)).map_or(tensor.bytes, |bytes| bytes as u64)
}

/// Why a tensor cannot be quantized: its first weight that is not finite, or too large. `None` if it can.
pub(super) fn refusal(tensor: &Tensor, choice: Choice, settings: JobSettings) -> Option<QuantError> {
    let (isa, dtype) = (Isa::active().ok()?, tensor.float_dtype()?);
    let data = tensor.data().ok()?;
    let weights = Weights::new(dtype, &data, tensor.row_length() as usize).ok()?;
    // What is refused is the same whatever the method: the fastest is enough.
    let problem = match choice {
        Choice::Grouped { bits, group_size } => {
            let settings = Settings { bits, group_size, scheme: settings.scheme, method: Method::MinMax };
            par_quantize(isa, weights, settings, None).err()?
        }
        Choice::Block(block_type) => quantize_blocks(isa, weights, block_type, Fill::Reference, None).err()?,
    };
    Some(QuantError::Weights { tensor: full_name(&tensor.component, &tensor.name), problem })
}
