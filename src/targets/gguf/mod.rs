//! GGUF: one file, of a language model as llama.cpp loads it, or of a diffusion model as ComfyUI-GGUF does.
//!
//! Parts hold blocks and kept elements as they come. When all are there, the file is assembled from them: header, then each
//! tensor, its rows in GGUF's order. So a round can change the type of a tensor, and a run can be resumed, as with any target.

mod assemble;
mod restored;
mod types;

use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::full_name;
use arrow_quant_formats::gguf::diffusion::{DiffusionModel, names as diffusion_names};
use arrow_quant_formats::gguf::language::{Asked, CONFIG, FILES, Files, LanguageModel, Mix};
use arrow_quant_formats::gguf::{Extra, Holds, Place, SourceTensor, Value, write_header};
use arrow_quant_formats::manifest::{FileEntry, Manifest, Omission};
use arrow_quant_kernels::{BlockType, Dtype};
use datafusion::catalog::TableProvider;

use super::raw::RawPart;
use super::{Layout, PartWriter, Target, write_manifest};
use crate::config::WeightType;
use crate::plan::{Allowed, ModelPlan, Request, repeated};
use crate::tables::default_name;
use crate::{DiffusionQuantConfig, Model, QuantError, Result, SettingProblem};

/// The folder of parts.
const PARTS: &str = "parts";

/// The name of the file while it is made.
const FILE: &str = "model.gguf";

/// One GGUF file.
#[derive(Debug)]
pub(super) struct Gguf;

impl Target for Gguf {
    fn allowed(&self) -> Allowed {
        Allowed {
            target: "gguf",
            bits: &[],
            group_sizes: &[],
            schemes: &[],
            block_types: BlockType::FILLED,
            floats: WeightType::FLOATS,
            whole_groups: false,
            smoothing: false,
            // Blocks are along the last axis.
            must_stay: |tensor| tensor.shape.last().is_some_and(|last| last.unsigned_abs() != tensor.row_length()),
            file_overhead: 0.0,
            chunk_overhead: 0.0,
        }
    }

    fn weight_type(&self, asked: WeightType) -> WeightType {
        types::of_bits(asked)
    }

    fn parts(&self) -> &'static str {
        PARTS
    }

    fn file(&self) -> Option<&'static str> {
        Some(FILE)
    }

    fn layout(&self, model: &Arc<Model>, config: &DiffusionQuantConfig) -> Result<Arc<dyn Layout>> {
        Ok(Arc::new(GgufFile::new(model, config)?))
    }

    fn restored(
        &self,
        file: &Path,
        model: &Arc<Model>,
        config: &DiffusionQuantConfig,
    ) -> Result<Arc<dyn TableProvider>> {
        restored::table(&GgufFile::new(model, config)?, model, file)
    }

    fn part_writer(&self, output: &Path, part: usize) -> Result<Box<dyn PartWriter>> {
        Ok(Box::new(RawPart::create(output, format!("{PARTS}/part-{part:05}.bin"), false)?))
    }

    fn finish(&self, output: &Path, manifest: &Manifest) -> Result<()> {
        write_manifest(output, manifest)
    }
}

/// What the file of a model has.
#[derive(Debug)]
struct GgufFile {
    kind: Kind,
    places: Vec<Place>,
    /// Tensors that the model does not have.
    extra: Vec<Extra>,
    /// Tensors that are not written, by index, and why.
    left_out: Vec<(usize, Omission)>,
    /// What the model is called.
    name: String,
    /// What each tensor of the model may become.
    requests: Vec<Request>,
    /// `general.file_type`, where a mix says it.
    file_type: Option<u32>,
    /// What all weights become that are not quantized, if that was asked for.
    cast: Option<Dtype>,
}

/// What a model is.
#[derive(Debug)]
enum Kind {
    Language(Box<LanguageModel>),
    Diffusion(DiffusionModel),
}

impl GgufFile {
    fn new(model: &Arc<Model>, config: &DiffusionQuantConfig) -> Result<Self> {
        refuse_pipeline(model)?;
        let same = match model.ties() {
            Some(ties) => ties.to_vec(),
            None => repeated(model.tensors())?,
        };
        let tensors: Vec<_> = model
            .tensors()
            .iter()
            .zip(&same)
            .map(|(tensor, same_as)| SourceTensor { name: &tensor.name, shape: &tensor.shape, same_as: *same_as })
            .collect();
        let (kind, places, extra, left_out) = match diffusion(model, &tensors, config)? {
            Some(diffusion) => {
                let (places, left_out) = (diffusion.places.clone(), diffusion.left_out.clone());
                (Kind::Diffusion(diffusion), places, Vec::new(), left_out)
            }
            None => {
                let language = language(model, &tensors, config)?;
                let (places, extra, left_out) =
                    (language.places.clone(), language.extra.clone(), language.left_out.clone());
                (Kind::Language(Box::new(language)), places, extra, left_out)
            }
        };
        refuse_integers(model, &places)?;
        let file_type = match config.weight_type {
            WeightType::Mix(mix) => Some(mix.file_type()),
            WeightType::Int(_) | WeightType::Block(_) | WeightType::Float(_) => None,
        };
        let cast = match config.weight_type {
            WeightType::Float(dtype) => Some(dtype),
            WeightType::Int(_) | WeightType::Block(_) | WeightType::Mix(_) => None,
        };
        let mut file = Self {
            kind,
            places,
            extra,
            left_out,
            name: default_name(model.path()),
            requests: Vec::new(),
            file_type,
            cast,
        };
        file.requests = types::requests(&file, &same, config.weight_type);
        Ok(file)
    }

    /// The type that a tensor of the file gets in a mix.
    fn block_type(&self, mix: Mix, place: &Place) -> BlockType {
        match &self.kind {
            Kind::Language(language) => mix.block_type(language, place),
            Kind::Diffusion(diffusion) => diffusion.block_type(mix, place),
        }
    }

    /// The keys of the file.
    fn metadata(&self, file_type: u32) -> Vec<(String, Value)> {
        let mut metadata = match &self.kind {
            Kind::Language(language) => language.metadata.clone(),
            Kind::Diffusion(diffusion) => {
                vec![("general.architecture".to_string(), diffusion.architecture.name.into())]
            }
        };
        let mut general = |key: &str, value: Value| metadata.push((format!("general.{key}"), value));
        general("name", self.name.as_str().into());
        general("quantized_by", concat!("arrow-quant ", env!("CARGO_PKG_VERSION")).into());
        general("quantization_version", 2_u32.into());
        general("file_type", file_type.into());
        metadata
    }
}

fn refuse_pipeline(model: &Model) -> Result<()> {
    let Some(tensor) = model.tensors().iter().find(|tensor| !tensor.component.is_empty()) else { return Ok(()) };
    let message = format!(
        "`{}` is a pipeline of several models, and a GGUF file holds one: give the directory of one, such as `{}`",
        model.path().display(),
        model.path().join(&tensor.component).display()
    );
    Err(QuantError::configuration(message).at(model.path()))
}

fn refuse_integers(model: &Model, places: &[Place]) -> Result<()> {
    let mut sources = places.iter().flat_map(|place| &place.sources).map(|index| &model.tensors()[*index]);
    let Some(tensor) = sources.find(|tensor| tensor.float_dtype().is_none()) else { return Ok(()) };
    let message = format!(
        "{}: {} has no place in a GGUF file, which holds floats and blocks",
        full_name(&tensor.component, &tensor.name),
        tensor.dtype()
    );
    Err(QuantError::configuration(message).at(model.path()))
}

/// The file of a model, if it is a diffusion model that is known.
fn diffusion(
    model: &Arc<Model>,
    tensors: &[SourceTensor<'_>],
    config: &DiffusionQuantConfig,
) -> Result<Option<DiffusionModel>> {
    let beside: Option<serde_json::Map<String, serde_json::Value>> = model.json(Path::new(CONFIG), "a JSON object")?;
    let class = beside.as_ref().and_then(|config| config.get("_class_name")?.as_str());
    let found = DiffusionModel::new(tensors, class, config.architecture.as_deref());
    let found = found.map_err(|error| QuantError::configuration(error.to_string()).at(model.path()))?;
    // A class of diffusers is no language model, whatever it is.
    match (found, class) {
        (None, Some(class)) => {
            let problem =
                SettingProblem::UnknownClass { class: class.to_string(), known: diffusion_names().join(", ") };
            Err(QuantError::setting("architecture", problem))
        }
        (found, _) => Ok(found),
    }
}

/// The file of a language model.
fn language(model: &Arc<Model>, tensors: &[SourceTensor<'_>], config: &DiffusionQuantConfig) -> Result<LanguageModel> {
    let wrong = |problem| QuantError::Language { path: model.path().to_path_buf(), problem: Box::new(problem) };
    let mut files = Files::new();
    for &name in FILES {
        if let Some(bytes) = model.beside(Path::new(name))? {
            files.insert(name, bytes);
        }
    }
    let asked = Asked { architecture: config.architecture.as_deref(), pre_tokenizer: config.pre_tokenizer.as_deref() };
    LanguageModel::new(&files, tensors, asked).map_err(wrong)
}

impl Layout for GgufFile {
    fn requests(&self) -> &[Request] {
        &self.requests
    }

    fn overhead(&self, model: &Model) -> u64 {
        /// Of a tensor in the header beside its name, and what its data are padded with.
        const OF_TENSOR: u64 = 64 + 32;
        let metadata = write_header(&self.metadata(0), &[]).map_or(0, |written| written.length);
        let names = self.places.iter().map(|place| place.name.len() as u64 + OF_TENSOR);
        let extra = self.extra.iter().map(|extra| extra.name.len() as u64 + 4 * extra.values.len() as u64 + OF_TENSOR);
        let is_f32 = |place: &&Place| matches!(place.holds, Holds::F32 | Holds::F16OrF32);
        let sources =
            self.places.iter().filter(is_f32).flat_map(|place| &place.sources).map(|index| &model.tensors()[*index]);
        let longer = sources.map(|tensor| (4 * tensor.elements()).saturating_sub(tensor.bytes));
        metadata + names.sum::<u64>() + extra.sum::<u64>() + longer.sum::<u64>()
    }

    fn units(&self) -> Vec<Vec<usize>> {
        let joined = self.places.iter().filter(|place| place.sources.len() > 1 && place.holds == Holds::Blocks);
        joined.map(|place| place.sources.clone()).collect()
    }

    fn assemble(&self, output: &Path, parts: Vec<FileEntry>, plan: &ModelPlan) -> Result<Vec<FileEntry>> {
        assemble::write(self, output, parts, plan).map(|file| vec![file])
    }
}
