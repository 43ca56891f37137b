//! What a model makes and which architecture it is of, found out from its configuration and the names of its tensors.
//! No weights are read.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, OnceLock};

use regex::{RegexSet, RegexSetBuilder};
use serde_json::Value;

use arrow_quant_formats::directory::PIPELINE;
use arrow_quant_formats::manifest::Reason;
use arrow_quant_formats::shown;

use crate::config::Modality;
use crate::error::{QuantError, Result};
pub(crate) use rules::FAMILIES;

/// The configuration beside a model's or a component's weights.
const CONFIG: &str = "config.json";

/// The key of a configuration and of safetensors metadata that names what a model makes.
const MODALITY: &str = "modality";

/// Keys of safetensors metadata that name an architecture: the model specification of Stability AI, GGUF, our own.
const ARCHITECTURE: &[&str] = &["modelspec.architecture", "general.architecture", "architecture"];

/// Components of a pipeline that make what it makes. Its text encoders and autoencoders say nothing of that.
const MAKERS: &[&str] = &["transformer", "unet", "prior"];

fn modality_not_allowed(text: &str) -> String {
    format!("modality is '{}', allowed: text, code, image or audio", shown(text))
}

/// An architecture family.
#[derive(Debug)]
pub(crate) struct Family {
    /// Its name, unique.
    pub name: &'static str,
    /// What its models make.
    pub modality: Modality,
    /// Regexes of class names and model types, each against the whole string, in any case.
    pub classes: &'static [&'static str],
    /// Regexes that must each match the name of some tensor. None: the names do not tell.
    pub tensors: &'static [&'static str],
    /// Regexes of the tensors that are kept at their own dtype when sensitive layers are skipped.
    pub sensitive: &'static [&'static str],
}

/// A family with its regexes, compiled when they are first needed: most models need few of them.
#[derive(Debug)]
struct Rule {
    family: &'static Family,
    classes: OnceLock<RegexSet>,
    sensitive: OnceLock<RegexSet>,
    /// Where its regexes are in [`Rules::tensors`].
    tensors: std::ops::Range<usize>,
}

impl Rule {
    fn classes(&self) -> &RegexSet {
        let whole = |class: &&str| format!("(?i)^(?:{class})$");
        self.classes.get_or_init(|| compiled(RegexSet::new(self.family.classes.iter().map(whole))))
    }

    fn sensitive(&self) -> &RegexSet {
        self.sensitive.get_or_init(|| compiled(ascii(self.family.sensitive)))
    }
}

#[derive(Debug)]
struct Rules {
    each: Vec<Rule>,
    /// Those of all families, so that each name is looked at once.
    tensors: OnceLock<RegexSet>,
}

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let mut first = 0;
    let rule = |family: &'static Family| {
        let tensors = first..first + family.tensors.len();
        first = tensors.end;
        Rule { family, classes: OnceLock::new(), sensitive: OnceLock::new(), tensors }
    };
    Rules { each: FAMILIES.iter().map(rule).collect(), tensors: OnceLock::new() }
});

/// Regexes of the table. They are constant, and a test compiles them all: they cannot fail later.
fn compiled(regexes: Result<RegexSet, regex::Error>) -> RegexSet {
    regexes.expect("regexes of the table of families")
}

impl Rules {
    fn tensors(&self) -> &RegexSet {
        let all = || FAMILIES.iter().flat_map(|family| family.tensors).copied().collect::<Vec<_>>();
        self.tensors.get_or_init(|| compiled(ascii(&all())))
    }

    /// The first family that one of `classes` belongs to, and that class.
    fn by_class<'a>(&'static self, classes: &'a [String]) -> Option<(&'static Rule, &'a str)> {
        self.each.iter().find_map(|rule| {
            let class = classes.iter().find(|class| rule.classes().is_match(class))?;
            Some((rule, class.as_str()))
        })
    }

    /// The first family whose regexes all match some name.
    fn by_names(&'static self, names: &[String]) -> Option<&'static Rule> {
        let mut met = vec![false; self.tensors().len()];
        for name in names {
            for regex in &self.tensors().matches(name) {
                met[regex] = true;
            }
        }
        self.each.iter().find(|rule| !rule.tensors.is_empty() && met[rule.tensors.clone()].iter().all(|met| *met))
    }
}

/// Regexes of names of tensors. That digits and letters are ASCII makes them far smaller.
fn ascii(regexes: &[&str]) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(regexes).unicode(false).build()
}

/// What is known of a model beside its weights.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// The file or directory of the model, for messages.
    pub path: PathBuf,
    /// The safetensors `__metadata__` of all files.
    pub metadata: BTreeMap<String, String>,
    /// `_class_name` of the pipeline's `model_index.json`.
    pub pipeline_class: Option<String>,
    /// One for a plain model, with an empty name.
    pub components: Vec<ComponentEvidence>,
}

/// What is known of a component.
#[derive(Debug, Default)]
pub(crate) struct ComponentEvidence {
    /// Its directory in a pipeline, empty for a plain model.
    pub name: String,
    /// `_class_name`, `architectures`, `model_type` and `_name_or_path` of its `config.json`.
    pub classes: Vec<String>,
    /// `modality` of its `config.json`.
    pub modality: Option<String>,
    /// The names of its tensors.
    pub tensors: Vec<String>,
}

impl Evidence {
    /// Reads the configuration beside a model's weights, which need not be there.
    ///
    /// # Errors
    /// [`Metadata`](QuantError::Metadata) if a configuration is not a JSON object, [`Io`](QuantError::Io) if it cannot
    /// be read.
    pub(crate) fn of(model: &crate::Model) -> Result<Self> {
        let path = model.path();
        let mut components: Vec<ComponentEvidence> = Vec::new();
        // Tensors come in the order of their components.
        for tensor in model.tensors() {
            match components.last_mut().filter(|last| last.name == tensor.component) {
                Some(last) => last.tensors.push(tensor.name.clone()),
                None => components.push(ComponentEvidence::read(model, &tensor.component, &tensor.name)?),
            }
        }
        let pipeline = read_config(model, Path::new(PIPELINE))?;
        Ok(Self {
            path: path.to_path_buf(),
            metadata: model.metadata().clone(),
            pipeline_class: pipeline.and_then(|index| text(index.get("_class_name"))),
            components,
        })
    }
}

impl ComponentEvidence {
    /// `name` is the component's, in the model at `model`; `first` is its first tensor.
    fn read(model: &crate::Model, name: &str, first: &str) -> Result<Self> {
        let config = read_config(model, &Path::new(name).join(CONFIG))?.unwrap_or_default();
        let architectures = config.get("architectures").and_then(Value::as_array).into_iter().flatten();
        let single = ["_class_name", "model_type", "_name_or_path"].into_iter().map(|key| config.get(key));
        Ok(Self {
            name: name.to_string(),
            classes: architectures.map(Some).chain(single).filter_map(text).collect(),
            modality: text(config.get(MODALITY)),
            tensors: vec![first.to_string()],
        })
    }
}

/// The JSON object in a file of a model.
fn read_config(model: &crate::Model, file: &Path) -> Result<Option<BTreeMap<String, Value>>> {
    model.json(file, "a JSON object")
}

fn text(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).map(str::to_string)
}

/// What a model makes, how that is known, and the family of each component.
#[derive(Debug)]
pub(crate) struct Detected {
    /// What it makes, if anything tells.
    pub modality: Option<Modality>,
    /// What told, such as "`_class_name` StableDiffusionPipeline in model_index.json". Empty if nothing did.
    pub from: String,
    families: Vec<(String, Option<&'static Rule>)>,
    /// What is wrong with a `modality` that is written down, and the file or directory it is written in.
    problem: Option<(PathBuf, String)>,
}

/// Finds out what a model makes. In this order: `modality` in a `config.json`, then in the safetensors metadata;
/// classes in `model_index.json`, then in `config.json`; the architecture in the metadata; the names of the tensors.
pub(crate) fn detect(evidence: &Evidence) -> Detected {
    let families = evidence.components.iter().map(|component| (component.name.clone(), family_of(evidence, component)));
    let families = families.collect();
    let (found, problem) = match named(evidence) {
        Ok(Some(named)) => (Some(named), None),
        Ok(None) => (inferred(evidence), None),
        // What somebody wrote down wrongly is not guessed.
        Err(problem) => (None, Some(problem)),
    };
    let (modality, from) = found.map_or((None, String::new()), |(modality, from)| (Some(modality), from));
    Detected { modality, from, families, problem }
}

/// The modality that someone wrote down.
fn named(evidence: &Evidence) -> Result<Option<(Modality, String)>, (PathBuf, String)> {
    let parse = |text: &str, path: &Path| text.parse().map_err(|_| (path.to_path_buf(), modality_not_allowed(text)));
    let mut all = BTreeSet::new();
    let mut first = None;
    for component in &evidence.components {
        if let Some(text) = &component.modality {
            let path = evidence.path.join(&component.name).join(CONFIG);
            let modality: Modality = parse(text, &path)?;
            all.insert(text);
            first.get_or_insert((modality, format!("`{MODALITY}` in {}", config_of(component))));
        }
    }
    // Components of a pipeline may each make something else: then none of them speaks for all.
    if all.len() == 1 {
        return Ok(first);
    }
    let Some(text) = evidence.metadata.get(MODALITY) else { return Ok(None) };
    Ok(Some((parse(text, &evidence.path)?, format!("`{MODALITY}` in the safetensors metadata"))))
}

/// The modality of the family that the evidence points to.
fn inferred(evidence: &Evidence) -> Option<(Modality, String)> {
    if let Some((rule, class)) = RULES.by_class(evidence.pipeline_class.as_slice()) {
        return Some((rule.family.modality, format!("`_class_name` {} in {PIPELINE}", shown(class))));
    }
    let makers = || evidence.components.iter().filter(|component| is_maker(&component.name));
    let by_class = makers().find_map(|component| {
        let (rule, class) = RULES.by_class(&component.classes)?;
        Some((rule.family.modality, format!("{} in {}", shown(class), config_of(component))))
    });
    let by_metadata = || {
        let (rule, key, value) = architecture(&evidence.metadata)?;
        Some((rule.family.modality, format!("`{key}` {} in the safetensors metadata", shown(value))))
    };
    let by_names = || {
        let rule = makers().find_map(|component| RULES.by_names(&component.tensors))?;
        Some((rule.family.modality, format!("tensor names ({})", rule.family.name)))
    };
    by_class.or_else(by_metadata).or_else(by_names)
}

fn family_of(evidence: &Evidence, component: &ComponentEvidence) -> Option<&'static Rule> {
    let by_class = RULES.by_class(&component.classes).map(|(rule, _)| rule);
    // The metadata of a pipeline's files are merged, and do not say which component they speak of.
    let by_metadata = || architecture(&evidence.metadata).filter(|_| component.name.is_empty()).map(|(rule, ..)| rule);
    by_class.or_else(by_metadata).or_else(|| RULES.by_names(&component.tensors))
}

/// The family that the metadata name, with key and value.
fn architecture(metadata: &BTreeMap<String, String>) -> Option<(&'static Rule, &'static str, &str)> {
    ARCHITECTURE.iter().find_map(|key| {
        let value = metadata.get(*key)?;
        let (rule, _) = RULES.by_class(std::slice::from_ref(value))?;
        Some((rule, *key, value.as_str()))
    })
}

fn is_maker(component: &str) -> bool {
    component.is_empty() || MAKERS.iter().any(|maker| component.starts_with(maker))
}

/// The name of a component's configuration in the model's directory.
fn config_of(component: &ComponentEvidence) -> String {
    if component.name.is_empty() { CONFIG.to_string() } else { format!("{}/{CONFIG}", component.name) }
}

impl Detected {
    /// The rule by which a tensor is sensitive, such as `sensitive in Llama: (^|\.)lm_head\.`.
    pub(crate) fn sensitive(&self, component: &str, tensor: &str) -> Option<Reason> {
        let rule = self.rule(component)?;
        let regex = rule.sensitive().matches(tensor).iter().next()?;
        Some(Reason::SensitiveInFamily {
            family: rule.family.name.to_string(),
            pattern: rule.family.sensitive[regex].to_string(),
        })
    }

    /// The family of a component, whose name is empty in a plain model.
    pub(crate) fn family(&self, component: &str) -> Option<&'static Family> {
        self.rule(component).map(|rule| rule.family)
    }

    /// What the model at `path` makes.
    ///
    /// # Errors
    /// [`Metadata`](QuantError::Metadata) if what is written down is not one of those allowed,
    /// [`UnknownModality`](QuantError::UnknownModality) if nothing tells.
    pub(crate) fn require(&self, path: &Path) -> Result<Modality> {
        if let Some((path, problem)) = &self.problem {
            return Err(QuantError::defect(path, None, problem.as_str()));
        }
        self.modality.ok_or_else(|| QuantError::UnknownModality { path: path.to_path_buf() })
    }

    fn rule(&self, component: &str) -> Option<&'static Rule> {
        self.families.iter().find(|(name, _)| name == component).and_then(|(_, rule)| *rule)
    }
}
