//! Language models in GGUF, as llama.cpp reads them: what their tensors are called and how their rows are ordered, the keys
//! that say what they compute, and their tokenizers.
//!
//! Everything is known before a weight is read: [`LanguageModel::new`] takes the files beside the weights and the names and
//! shapes of the tensors, and refuses what would not load.

mod architectures;
mod config;
mod error;
mod keys;
mod layout;
mod mixes;
mod originals;
mod sizes;
mod tokenizer;

use std::collections::BTreeMap;

use super::{Extra, Place, SourceTensor, Value};
use crate::manifest::Omission;
use config::{Config, object};

pub use architectures::Architecture;
pub use error::LanguageError;
pub use layout::{is_computed, runtime_names};
pub use mixes::Mix;
pub use originals::{Original, Originals};
pub use tokenizer::PRE_TOKENIZERS;

/// The file that says what a model is.
pub const CONFIG: &str = "config.json";

/// The files beside the weights that are looked at, where they are there.
pub const FILES: &[&str] = &[
    CONFIG,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Files beside the weights, by their names.
pub type Files = BTreeMap<&'static str, Vec<u8>>;

/// What may be asked for, where files do not tell it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// The architecture, as GGUF calls it.
    pub architecture: Option<&'a str>,
    /// How text is cut before BPE, as llama.cpp calls it.
    pub pre_tokenizer: Option<&'a str>,
}

/// What a GGUF file of a language model has.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    /// What the model is.
    pub architecture: &'static Architecture,
    /// Keys and values.
    pub metadata: Vec<(String, Value)>,
    /// The tensors, in the order of the file.
    pub places: Vec<Place>,
    /// Tensors that are not written, by index, and why.
    pub left_out: Vec<(usize, Omission)>,
    /// Tensors that the model does not have, in the order of the file, before the blocks.
    pub extra: Vec<Extra>,
    /// Blocks of the model.
    pub blocks: u32,
    /// Query heads that share a key and a value.
    pub heads_of_key: u32,
    /// Experts, if the model chooses among some.
    pub experts: Option<u32>,
}

impl LanguageModel {
    /// What the file of a model has, whose tensors are given in their order.
    ///
    /// # Errors
    /// [`LanguageError`] if the model is not known, or llama.cpp would not load the file.
    pub fn new(files: &Files, tensors: &[SourceTensor<'_>], asked: Asked<'_>) -> Result<Self, LanguageError> {
        let bytes = files.get(CONFIG).ok_or(LanguageError::NoConfig)?;
        let keys = object(CONFIG, bytes)?;
        let config = Config::new(&keys);
        let architecture = Architecture::find(&config, asked.architecture)?;
        let (places, left_out) = layout::places(architecture, &config, tensors)?;
        let (embedding, rows) = layout::embedding(architecture, &places, tensors)?;
        let vocabulary = u32::try_from(rows).unwrap_or(u32::MAX);
        let (mut metadata, extra) = sizes::keys(architecture, &config, vocabulary)?;
        let embedding = tokenizer::Embedding { tensor: &embedding, rows };
        metadata.extend(tokenizer::metadata(files, &config, embedding, asked.pre_tokenizer)?);
        Ok(Self {
            architecture,
            metadata,
            places,
            left_out,
            extra,
            blocks: config.blocks()?,
            heads_of_key: config.heads()? / config.kv_heads()?.max(1),
            experts: config.whole_if(&["num_local_experts", "num_experts"])?,
        })
    }

    /// Whether the head is the embedding, which then has no tensor of its own.
    pub fn is_tied(&self) -> bool {
        !self.places.iter().any(|place| place.name == layout::HEAD)
    }
}

#[cfg(test)]
mod tests;
