//! Why a model cannot become a GGUF file of a language model.

use crate::names::shown;

/// Why a model cannot become a GGUF file of a language model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LanguageError {
    /// There is no configuration beside the weights.
    #[error("there is no config.json beside the weights, which says what model they are of: get it with the weights")]
    NoConfig,
    /// A file is not JSON, or has another structure.
    #[error("{file}: {problem}")]
    File {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The configuration's architecture is not one that is known.
    #[error("config.json has the architecture {}, known for GGUF: {known}", shown(found))]
    UnknownArchitecture {
        /// What the configuration says.
        found: String,
        /// The names of those that are known.
        known: String,
    },
    /// An architecture of this name was asked for, and is not known.
    #[error("there is no architecture '{}', allowed: {known}", shown(asked))]
    NoArchitecture {
        /// The name.
        asked: String,
        /// The names of those that are known.
        known: String,
    },
    /// The configuration lacks a key, or its value is of another type.
    #[error("config.json: `{key}` is {}, expected {expected}", found.as_deref().map_or_else(|| "not there".to_string(), shown))]
    Key {
        /// The key.
        key: String,
        /// Its value as JSON.
        found: Option<String>,
        /// What its value should be.
        expected: &'static str,
    },
    /// Positions are scaled in a way that the architecture does not have in GGUF.
    #[error(
        "config.json: rotary positions are scaled by '{}', which GGUF does not have for {architecture}",
        shown(kind)
    )]
    Rope {
        /// The way.
        kind: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor has no name in GGUF.
    #[error("tensor '{}' has no place in a GGUF file of {architecture}", shown(tensor))]
    Tensor {
        /// The tensor.
        tensor: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor that the architecture has is not there.
    #[error("a GGUF file of {architecture} needs {tensor}, which no tensor of the model becomes")]
    Missing {
        /// Its name in GGUF.
        tensor: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor '{}' has the shape {shape:?}, expected {expected} by config.json", shown(tensor))]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<i64>,
        /// What was expected.
        expected: String,
    },
    /// Two tensors would have one name.
    #[error("tensors '{}' and '{}' both become {name}", shown(&tensors[0]), shown(&tensors[1]))]
    Twice {
        /// The name in GGUF.
        name: String,
        /// The tensors.
        tensors: [String; 2],
    },
    /// The name of a tensor is longer than ggml allows.
    #[error("the name {name} has {} bytes, ggml allows {}", name.len(), super::super::NAME_BYTES)]
    LongName {
        /// The name in GGUF.
        name: String,
    },
    /// There is no tokenizer beside the weights.
    #[error(
        "there is no tokenizer.json or tokenizer.model beside the weights, which a GGUF file holds: get it with the weights"
    )]
    NoTokenizer,
    /// The tokenizer is of a kind that is not written.
    #[error("tokenizer.json is of the kind '{}', which is not written to GGUF: BPE is, and SentencePiece's tokenizer.model", shown(.0))]
    TokenizerKind(String),
    /// The tokenizer has tokens that the embedding has no row for.
    #[error("the tokenizer has the token {token}, and {tensor} has {rows} rows")]
    TooManyTokens {
        /// The number of the token.
        token: u64,
        /// The embedding.
        tensor: String,
        /// Its rows.
        rows: i64,
    },
    /// The expressions that cut text before BPE are not known.
    #[error("tokenizer.json cuts text in a way that is not known: {}", shown(.0))]
    UnknownPre(String),
    /// A way to cut text was asked for that is not known.
    #[error("there is no pre-tokenizer '{}', allowed: {known}", shown(asked))]
    NoPre {
        /// The name.
        asked: String,
        /// The names of those that are known.
        known: String,
    },
}

impl LanguageError {
    /// The setting that helps, or is wrong.
    pub fn setting(&self) -> Option<&'static str> {
        match self {
            Self::UnknownArchitecture { .. } | Self::NoArchitecture { .. } => Some("architecture"),
            Self::UnknownPre(_) | Self::NoPre { .. } => Some("pre_tokenizer"),
            _ => None,
        }
    }

    /// Whether that setting was given, and is wrong.
    pub fn is_of_setting(&self) -> bool {
        matches!(self, Self::NoArchitecture { .. } | Self::NoPre { .. })
    }
}
