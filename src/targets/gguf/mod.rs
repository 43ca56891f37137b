//! GGUF: one file of a language model, as llama.cpp loads it.
//!
//! Parts hold blocks and kept elements as they come. When all are there, the file is assembled from them: header, then each
//! tensor, its rows in GGUF's order. So a round can change the type of a tensor, and a run can be resumed, as with any target.

mod assemble;
mod restored;
mod types;

use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::full_name;
use arrow_quant_formats::gguf::Value;
use arrow_quant_formats::gguf::language::{Asked, FILES, Files, LanguageModel, SourceTensor, is_computed};
use arrow_quant_formats::manifest::{FileEntry, Manifest};
use arrow_quant_kernels::{BlockType, Dtype};
use datafusion::catalog::TableProvider;

use super::raw::RawPart;
use super::{Layout, PartWriter, Target, WrittenPart, write_manifest};
use crate::config::WeightType;
use crate::plan::{Allowed, ModelPlan, Request, repeated};
use crate::tables::default_name;
use crate::{DiffusionQuantConfig, Model, QuantError, Result};

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
        Ok(Arc::new(LanguageFile::new(model, config)?))
    }

    fn restored(
        &self,
        file: &Path,
        model: &Arc<Model>,
        config: &DiffusionQuantConfig,
    ) -> Result<Arc<dyn TableProvider>> {
        restored::table(&LanguageFile::new(model, config)?, model, file)
    }

    fn part_writer(&self, output: &Path, part: usize) -> Result<Box<dyn PartWriter>> {
        Ok(Box::new(RawPart::create(output, format!("{PARTS}/part-{part:05}.bin"), false)?))
    }

    fn finish(&self, output: &Path, manifest: &Manifest) -> Result<()> {
        write_manifest(output, manifest)
    }
}

/// The file of a language model.
#[derive(Debug)]
struct LanguageFile {
    language: LanguageModel,
    /// What the model is called.
    name: String,
    /// What each tensor of the model may become.
    requests: Vec<Request>,
    /// `general.file_type`, where a mix says it.
    file_type: Option<u32>,
    /// What all weights become that are not quantized, if that was asked for.
    cast: Option<Dtype>,
}

impl LanguageFile {
    fn new(model: &Arc<Model>, config: &DiffusionQuantConfig) -> Result<Self> {
        let wrong = |problem| QuantError::Language { path: model.path().to_path_buf(), problem: Box::new(problem) };
        if let Some(tensor) = model.tensors().iter().find(|tensor| !tensor.component.is_empty()) {
            let message = format!(
                "`{}` is a pipeline of several models, and a GGUF file of a language model holds one: give the directory of one, \
                 such as `{}`",
                model.path().display(),
                model.path().join(&tensor.component).display()
            );
            return Err(QuantError::configuration(message).at(model.path()));
        }
        if let Some(tensor) = model.tensors().iter().find(|t| t.float_dtype().is_none() && !is_computed(&t.name)) {
            let message = format!(
                "{}: {} has no place in a GGUF file, which holds floats and blocks",
                full_name(&tensor.component, &tensor.name),
                tensor.dtype()
            );
            return Err(QuantError::configuration(message).at(model.path()));
        }
        let mut files = Files::new();
        for &name in FILES {
            if let Some(bytes) = model.beside(Path::new(name))? {
                files.insert(name, bytes);
            }
        }
        let same = repeated(model.tensors())?;
        let tensors: Vec<_> = model
            .tensors()
            .iter()
            .zip(&same)
            .map(|(tensor, same_as)| SourceTensor { name: &tensor.name, shape: &tensor.shape, same_as: *same_as })
            .collect();
        let asked =
            Asked { architecture: config.architecture.as_deref(), pre_tokenizer: config.pre_tokenizer.as_deref() };
        let language = LanguageModel::new(&files, &tensors, asked).map_err(wrong)?;
        let requests = types::requests(&language, &same, config.weight_type);
        let file_type = match config.weight_type {
            WeightType::Mix(mix) => Some(mix.file_type()),
            WeightType::Int(_) | WeightType::Block(_) | WeightType::Float(_) => None,
        };
        let cast = match config.weight_type {
            WeightType::Float(dtype) => Some(dtype),
            WeightType::Int(_) | WeightType::Block(_) | WeightType::Mix(_) => None,
        };
        Ok(Self { requests, file_type, cast, language, name: default_name(model.path()) })
    }

    /// The keys of the file.
    fn metadata(&self, file_type: u32) -> Vec<(String, Value)> {
        let mut metadata = self.language.metadata.clone();
        let mut general = |key: &str, value: Value| metadata.push((format!("general.{key}"), value));
        general("name", self.name.as_str().into());
        general("quantized_by", concat!("arrow-quant ", env!("CARGO_PKG_VERSION")).into());
        general("quantization_version", 2_u32.into());
        general("file_type", file_type.into());
        metadata
    }
}

impl Layout for LanguageFile {
    fn requests(&self) -> &[Request] {
        &self.requests
    }

    fn assemble(&self, output: &Path, parts: Vec<WrittenPart>, plan: &ModelPlan) -> Result<Vec<FileEntry>> {
        assemble::write(self, output, parts, plan).map(|file| vec![file])
    }
}
