//! Files of safetensors with what a runtime needs beside them. A dialect says which tensors stand for a quantized one, and what
//! `config.json` tells of them; all else is the same for all.

mod assemble;
mod comfyui;
mod compressed_tensors;
mod mlx;
mod restored;
mod sdnq;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_quant_formats::StoredType;
use arrow_quant_formats::manifest::{FileEntry, Manifest};
use arrow_quant_kernels::{Bits, Dtype, GroupSize, ParameterDtype, Scheme};
use datafusion::catalog::TableProvider;
use serde_json::{Map, Value};

use super::raw::RawPart;
use super::{Layout, PartWriter, Target, write_manifest};
use crate::config::WeightType;
use crate::plan::{Allowed, Choice, ModelPlan, Request};
use crate::tables::WeightsTable;
use crate::{DiffusionQuantConfig, Model, QuantError, Result, Tensor};

/// For diffusers, InvokeAI and SD.Next.
pub(super) static SDNQ: Safetensors = Safetensors { dialect: &sdnq::Sdnq, is_file: false };

/// For vLLM, SGLang and transformers.
pub(super) static COMPRESSED_TENSORS: Safetensors =
    Safetensors { dialect: &compressed_tensors::CompressedTensors, is_file: false };

/// For mlx-lm.
pub(super) static MLX: Safetensors = Safetensors { dialect: &mlx::Mlx, is_file: false };

/// For ComfyUI.
pub(super) static COMFYUI: Safetensors = Safetensors { dialect: &comfyui::ComfyUi, is_file: true };

/// Floats, in a directory.
pub(super) static RESTORED: Safetensors = Safetensors { dialect: &restored::Restored, is_file: false };

/// Floats, in one file.
pub(super) static RESTORED_FILE: Safetensors = Safetensors { dialect: &restored::Restored, is_file: true };

/// Models whose linear layers are stored the other way round, by the type in their configuration.
const TRANSPOSED: &[&str] = &["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];

/// The folder of parts, which does not stay.
const PARTS: &str = "parts";

/// The name of an output that is one file, while it is made.
const FILE: &str = "model.safetensors";

/// The configuration beside the weights of a component.
const CONFIG: &str = "config.json";

/// A runtime's way to store quantized weights in safetensors files.
trait Dialect: fmt::Debug + Send + Sync {
    /// What it can hold.
    fn allowed(&self) -> Allowed;

    /// Whether all groups of a model must be of one size.
    fn has_one_group_size(&self) -> bool {
        false
    }

    /// The type of the scales and minima of a tensor. `F16` if all of them are F16, and `F32` if some cannot be.
    fn parameters(&self, needed: ParameterDtype) -> ParameterDtype {
        needed
    }

    /// The tensors that stand for a quantized one, in the order in which they are stored.
    fn tensors(&self, tensor: &GroupedTensor<'_>) -> Vec<NewTensor>;

    /// The `format` in the metadata of a file.
    fn format(&self) -> &'static str {
        "pt"
    }

    /// Whether a model without `config.json` has no use in this dialect.
    fn needs_config(&self) -> bool {
        true
    }

    /// Puts into `config.json` what a runtime needs to know of the tensors of a component.
    fn configure(&self, config: &mut Map<String, Value>, layers: &[Layer]);

    /// Layers that runtimes make one of, by the last part of their names.
    fn fused(&self) -> &'static [&'static [&'static str]] {
        &[]
    }
}

/// A tensor that became grouped integers: rows of whole groups.
struct GroupedTensor<'a> {
    name: &'a str,
    rows: i64,
    columns: i64,
    bits: Bits,
    group_size: GroupSize,
    parameters: ParameterDtype,
}

impl GroupedTensor<'_> {
    /// The name of the module that the weights are of.
    fn module(&self) -> &str {
        module(self.name)
    }

    /// Groups of a row.
    fn groups(&self) -> i64 {
        self.columns / self.group_size.get() as i64
    }

    /// The type of scales and minima in a file.
    fn parameter_type(&self) -> StoredType {
        match self.parameters {
            ParameterDtype::F16 => StoredType::F16,
            ParameterDtype::F32 => StoredType::F32,
        }
    }
}

/// The name of the module that a tensor of weights is of.
fn module(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

/// A tensor of a file.
struct NewTensor {
    name: String,
    stored: StoredType,
    shape: Vec<i64>,
    content: Content,
}

/// What a tensor of a file is made of.
enum Content {
    /// The elements of a tensor that is kept.
    Elements,
    /// The same as floats of another type.
    Cast(Dtype),
    /// Packed codes.
    Codes,
    /// A scale a group.
    Scales,
    /// A minimum a group.
    Minima,
    /// A scale a group, the groups of all rows one after the other.
    TurnedScales,
    /// In the same order, what a code of 8 stands for.
    TurnedMiddles,
    /// These bytes.
    Bytes(Vec<u8>),
}

/// A tensor of weights as a configuration tells of it.
struct Layer {
    /// The tensor's module.
    module: String,
    /// `None` if it is kept.
    grouped: Option<(Bits, GroupSize)>,
    /// Whether the layer is one that a runtime would take for quantized unless it is told otherwise.
    is_linear: bool,
}

/// Tensors of layers that runtimes make one of.
fn fused(model: &Model, layers: &[&[&str]]) -> Vec<Vec<usize>> {
    let mut units: BTreeMap<(&str, &str, usize), Vec<usize>> = BTreeMap::new();
    for (index, tensor) in model.tensors().iter().enumerate().filter(|(_, tensor)| is_linear(tensor)) {
        let Some((parent, last)) = module(&tensor.name).rsplit_once('.') else { continue };
        if let Some(at) = layers.iter().position(|layers| layers.contains(&last)) {
            units.entry((&tensor.component, parent, at)).or_default().push(index);
        }
    }
    units.into_values().filter(|unit| unit.len() > 1).collect()
}

/// The head of a language model, where it has no tensor of this name: it is the embedding, or has another name in the file than in
/// the runtime.
fn absent_head(layers: &[Layer]) -> Option<&'static str> {
    (!layers.iter().any(|layer| layer.module == HEAD)).then_some(HEAD)
}

/// The head of a language model.
const HEAD: &str = "lm_head";

/// What most layers have.
fn most_frequent<T: PartialEq + Copy>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: Vec<(T, usize)> = Vec::new();
    for item in items {
        match counts.iter_mut().find(|(known, _)| *known == item) {
            Some((_, count)) => *count += 1,
            None => counts.push((item, 1)),
        }
    }
    // The first of those that are as frequent.
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(item, _)| item)
}

/// Whether a tensor is the matrix of a layer that multiplies with it, by its shape and name; that of an embedding is not.
fn is_linear(tensor: &Tensor) -> bool {
    tensor.shape.len() == 2 && tensor.name.ends_with(".weight") && !is_embedding(&tensor.name)
}

/// Whether a tensor is a table in which rows are looked up, by the names that libraries use.
fn is_embedding(name: &str) -> bool {
    const MODULES: &[&str] = &["wte", "wpe", "shared", "relative_attention_bias", "class_embedding", "codebook"];
    let last = module(name).rsplit('.').next().unwrap_or_default();
    MODULES.contains(&last)
        || last.starts_with("embed_")
        || last.ends_with("_embedding")
        || last.ends_with("_embeddings")
        || matches!(last, "embedding" | "embeddings" | "embed" | "emb")
}

/// What all targets of this kind allow, of a name.
fn allowed(target: &'static str, must_stay: fn(&Tensor) -> bool) -> Allowed {
    Allowed {
        target,
        bits: &[],
        group_sizes: &[],
        schemes: &[],
        block_types: &[],
        floats: &[],
        whole_groups: true,
        smoothing: false,
        must_stay,
        file_overhead: 0.0,
        chunk_overhead: 0.0,
    }
}

/// A target whose outputs are files of safetensors.
#[derive(Debug)]
pub(super) struct Safetensors {
    dialect: &'static dyn Dialect,
    /// Whether an output is one file, and not a directory.
    is_file: bool,
}

impl Target for Safetensors {
    fn allowed(&self) -> Allowed {
        self.dialect.allowed()
    }

    fn allowed_with(&self, config: &DiffusionQuantConfig) -> Allowed {
        let allowed = self.allowed();
        let at = allowed.group_sizes.iter().position(|size| *size == config.group_size);
        match at.filter(|_| self.dialect.has_one_group_size()) {
            Some(at) => Allowed { group_sizes: &allowed.group_sizes[at..=at], ..allowed },
            None => allowed,
        }
    }

    fn layout(&self, model: &Arc<Model>, config: &DiffusionQuantConfig) -> Result<Arc<dyn Layout>> {
        Ok(Arc::new(SafetensorsLayout::new(self, model, config)?))
    }

    fn restored(&self, path: &Path, _: &Arc<Model>, _: &DiffusionQuantConfig) -> Result<Arc<dyn TableProvider>> {
        Ok(Arc::new(WeightsTable::new("", Arc::new(Model::open(path)?))))
    }

    fn parts(&self) -> &'static str {
        PARTS
    }

    fn file(&self) -> Option<&'static str> {
        self.is_file.then_some(FILE)
    }

    fn extension(&self) -> Option<&'static str> {
        self.is_file.then_some("safetensors")
    }

    fn part_writer(&self, output: &Path, part: usize) -> Result<Box<dyn PartWriter>> {
        let widens = self.dialect.parameters(ParameterDtype::F16) == ParameterDtype::F32;
        Ok(Box::new(RawPart::create(output, format!("{PARTS}/part-{part:05}.bin"), widens)?))
    }

    fn finish(&self, output: &Path, manifest: &Manifest) -> Result<()> {
        if !self.is_file {
            super::remove_parts(&output.join(PARTS))?;
        }
        write_manifest(output, manifest)
    }
}

/// What an output of a model consists of.
#[derive(Debug)]
struct SafetensorsLayout {
    dialect: &'static dyn Dialect,
    requests: Vec<Request>,
    components: Vec<Component>,
    /// Tensors that must become the same.
    units: Vec<Vec<usize>>,
    /// The type that all floats become.
    cast: Option<Dtype>,
    is_file: bool,
}

/// A component of a model, or all of it.
#[derive(Debug)]
struct Component {
    /// Empty for a plain model.
    name: String,
    /// The file of its weights, relative to the output.
    file: PathBuf,
    config: Option<Map<String, Value>>,
}

impl SafetensorsLayout {
    fn new(target: &Safetensors, model: &Arc<Model>, config: &DiffusionQuantConfig) -> Result<Self> {
        let dialect = target.dialect;
        let mut components = Vec::new();
        for tensors in model.tensors().chunk_by(|a, b| a.component == b.component) {
            let name = tensors[0].component.clone();
            if target.is_file && !name.is_empty() {
                let message = format!(
                    "`{}` is a pipeline of several models, and a file of {} holds one: give the directory of one, such as `{}`",
                    model.path().display(),
                    dialect.allowed().target,
                    model.path().join(&name).display()
                );
                return Err(QuantError::configuration(message).at(model.path()));
            }
            let config: Option<Map<String, Value>> = model.json(&Path::new(&name).join(CONFIG), "a JSON object")?;
            if config.is_none() && dialect.needs_config() {
                let message = format!(
                    "`{}` has no {CONFIG}, which a model in the format {} needs: give the directory of the whole model",
                    model.path().join(&name).display(),
                    dialect.allowed().target
                );
                return Err(QuantError::configuration(message).at(model.path()));
            }
            if let Some(kind) = config.as_ref().and_then(|config| config.get("model_type")?.as_str())
                && dialect.needs_config()
                && TRANSPOSED.contains(&kind)
            {
                let message = format!(
                    "`{}` is a {kind}, whose layers are stored with inputs as rows, which {} does not read: choose another format",
                    model.path().join(&name).display(),
                    dialect.allowed().target
                );
                return Err(QuantError::configuration(message).at(model.path()));
            }
            let is_of_diffusers = config.as_ref().is_some_and(|config| config.contains_key("_class_name"));
            let file = if is_of_diffusers { "diffusion_pytorch_model.safetensors" } else { FILE };
            components.push(Component { file: Path::new(&name).join(file), name, config });
        }
        let requests = vec![Request::Free; model.tensors().len()];
        let cast = match config.weight_type {
            WeightType::Float(dtype) => Some(dtype),
            WeightType::Int(_) | WeightType::Block(_) | WeightType::Mix(_) => None,
        };
        let units = fused(model, dialect.fused());
        Ok(Self { dialect, requests, components, units, cast, is_file: target.is_file })
    }

    /// Refuses a model in which a tensor has the name of one that stands for another.
    fn refuse_names(&self, plan: &ModelPlan) -> Result<()> {
        let tensors = || plan.tensors.iter().zip(plan.model.tensors());
        let names: HashSet<_> = tensors().map(|(plan, _)| plan.key()).collect();
        for (planned, tensor) in tensors() {
            let Some(Choice::Grouped { bits, group_size }) = planned.choice else { continue };
            let columns = tensor.row_length() as i64;
            let grouped = GroupedTensor {
                name: &tensor.name,
                rows: tensor.elements() as i64 / columns.max(1),
                columns,
                bits,
                group_size,
                parameters: ParameterDtype::F32,
            };
            let new = self.dialect.tensors(&grouped);
            let taken =
                new.iter().find(|new| new.name != tensor.name && names.contains(&(&*tensor.component, &*new.name)));
            if let Some(taken) = taken {
                let message = format!(
                    "a parameter of {} would be called {}, which is another tensor of the model: keep the first, or choose \
                     another format",
                    planned.name(),
                    taken.name
                );
                return Err(QuantError::configuration(message).at(plan.model.path()));
            }
        }
        Ok(())
    }
}

impl Layout for SafetensorsLayout {
    fn requests(&self) -> &[Request] {
        &self.requests
    }

    fn overhead(&self, model: &Model) -> u64 {
        /// Of a tensor in the header beside its name; each may become as many as four.
        const OF_TENSOR: usize = 110;
        let of_quantized = |tensor: &Tensor| if tensor.shape.len() > 1 { 4 } else { 1 };
        model.tensors().iter().map(|tensor| (of_quantized(tensor) * (tensor.name.len() + OF_TENSOR)) as u64).sum()
    }

    fn units(&self) -> Vec<Vec<usize>> {
        self.units.clone()
    }

    fn check(&self, plan: &ModelPlan) -> Result<()> {
        self.refuse_names(plan)
    }

    fn assemble(&self, output: &Path, parts: Vec<FileEntry>, plan: &ModelPlan) -> Result<Vec<FileEntry>> {
        assemble::write(self, output, &parts, plan)
    }
}

/// The scheme of grouped integers that have minima.
const AFFINE: &[Scheme] = &[Scheme::Affine];
