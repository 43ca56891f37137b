//! Tokenizers, as llama.cpp's converter writes them.

mod bpe;
mod pre;
mod sentencepiece;
mod special;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::config::{Config, object};
use super::{Files, LanguageError};
use crate::gguf::Value;

pub use pre::PRE_TOKENIZERS;

type Result<T, E = LanguageError> = std::result::Result<T, E>;

const JSON: &str = "tokenizer.json";
const MODEL: &str = "tokenizer.model";
const SETTINGS: &str = "tokenizer_config.json";

/// What a token is, by ggml's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// The score of tokens that stand for nothing.
const UNUSED_SCORE: f32 = -10_000.0;

/// The score of tokens that were added to a vocabulary.
const ADDED_SCORE: f32 = -1_000.0;

/// The embedding, whose rows are the tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Embedding<'a> {
    pub tensor: &'a str,
    pub rows: i64,
}

/// `tokenizer.json`.
#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Json,
    #[serde(default)]
    pre_tokenizer: Json,
    #[serde(default)]
    post_processor: Json,
    #[serde(default)]
    decoder: Json,
    model: Model,
}

/// A token that was added to a vocabulary.
#[derive(Deserialize)]
struct AddedToken {
    id: u64,
    content: String,
    #[serde(default)]
    special: bool,
}

/// The model of a `tokenizer.json`, which has its kind here and what depends on it there.
#[derive(Deserialize)]
struct Model {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    vocab: Vocabulary,
    #[serde(default)]
    merges: Vec<Merge>,
}

/// Tokens and their numbers; of kinds that are not written, whatever they have.
#[derive(Deserialize)]
#[serde(untagged)]
enum Vocabulary {
    Numbered(std::collections::HashMap<String, u64>),
    Other(serde::de::IgnoredAny),
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self::Numbered(std::collections::HashMap::new())
    }
}

/// Two tokens that become one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

impl Merge {
    /// The two tokens; of joined ones those before and after the first space that is between two.
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Joined(text) => text.split_once(' '),
            Self::Pair(a, b) => Some((a, b)),
        }
    }
}

/// The tokens of a vocabulary that is being put together.
struct Tokens {
    texts: Vec<String>,
    types: Vec<TokenType>,
    scores: Vec<f32>,
}

impl Tokens {
    /// A place for each row of the embedding.
    fn new(embedding: Embedding<'_>) -> Self {
        let rows = usize::try_from(embedding.rows).unwrap_or(0);
        Self {
            texts: (0..rows).map(|row| format!("[PAD{row}]")).collect(),
            types: vec![TokenType::Unused; rows],
            scores: vec![UNUSED_SCORE; rows],
        }
    }

    fn set(&mut self, token: u64, embedding: Embedding<'_>, text: &str, kind: TokenType, score: f32) -> Result<()> {
        let at = usize::try_from(token).ok().filter(|at| *at < self.texts.len());
        let at = at.ok_or_else(|| LanguageError::TooManyTokens {
            token,
            tensor: embedding.tensor.to_string(),
            rows: embedding.rows,
        })?;
        self.texts[at] = text.to_string();
        self.types[at] = kind;
        self.scores[at] = score;
        Ok(())
    }

    /// A token that was added. Spaces of those that users defined are as in text.
    fn add(&mut self, token: u64, embedding: Embedding<'_>, text: &str, is_special: bool) -> Result<()> {
        if is_special || looks_special(text) {
            self.set(token, embedding, text, TokenType::Control, ADDED_SCORE)
        } else {
            self.set(token, embedding, &text.replace('\u{2581}', " "), TokenType::UserDefined, ADDED_SCORE)
        }
    }

    fn find(&self, text: &str) -> Option<u64> {
        self.texts.iter().position(|found| found == text).map(|at| at as u64)
    }
}

/// Whether a token is a control token by its text, although its file does not say so.
fn looks_special(text: &str) -> bool {
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || text.starts_with("<|") && text.ends_with("|>")
        || text.starts_with("<\u{ff5c}") && text.ends_with("\u{ff5c}>")
        || text.starts_with("<unused") && text.ends_with('>')
}

/// The keys of the tokenizer of a model.
pub(super) fn metadata(
    files: &Files,
    config: &Config<'_>,
    embedding: Embedding<'_>,
    pre: Option<&str>,
) -> Result<Vec<(String, Value)>> {
    if let Some(asked) = pre.filter(|pre| !PRE_TOKENIZERS.contains(pre)) {
        return Err(LanguageError::NoPre { asked: asked.to_string(), known: PRE_TOKENIZERS.join(", ") });
    }
    let settings = files.get(SETTINGS).map(|bytes| object(SETTINGS, bytes)).transpose()?.unwrap_or_default();
    let json = files.get(JSON).map(|bytes| tokenizer_json(bytes)).transpose()?;
    let mut keys = Vec::new();
    let tokens = match (&json, files.get(MODEL)) {
        (Some(json), _) if bpe::is_of_bytes(json) => bpe::write(json, embedding, pre, &mut keys)?,
        (_, Some(model)) => {
            let added = files.get("added_tokens.json").map(|bytes| object("added_tokens.json", bytes)).transpose()?;
            let others = sentencepiece::Others { json: json.as_ref(), settings: &settings, added: added.as_ref() };
            sentencepiece::write(model, others, embedding, &mut keys)?
        }
        (Some(json), None) if bpe::is_of_pieces(json) => {
            sentencepiece::write_merges(json, &settings, embedding, &mut keys)?
        }
        (Some(json), None) => {
            let kind = json.model.kind.clone().unwrap_or_else(|| "BPE without bytes".to_string());
            return Err(LanguageError::TokenizerKind(kind));
        }
        (None, None) => return Err(LanguageError::NoTokenizer),
    };
    special::write(json.as_ref(), &settings, config, &tokens, &mut keys);
    keys.extend(chat_template(files, &settings)?);
    put(&mut keys, "tokens", tokens.texts.into());
    put(&mut keys, "token_type", tokens.types.iter().map(|kind| *kind as i32).collect::<Vec<_>>().into());
    Ok(keys)
}

fn tokenizer_json(bytes: &[u8]) -> Result<TokenizerJson> {
    serde_json::from_slice(bytes)
        .map_err(|error| LanguageError::File { file: JSON, problem: crate::shown(&error.to_string()) })
}

/// Adds a key of the tokenizer.
fn put(keys: &mut Vec<(String, Value)>, key: &str, value: Value) {
    keys.push((format!("tokenizer.ggml.{key}"), value));
}

/// How messages become text: one template, or several with names.
fn chat_template(files: &Files, settings: &Map<String, Json>) -> Result<Vec<(String, Value)>> {
    const KEY: &str = "tokenizer.chat_template";
    const FILE: &str = "chat_template.json";
    let beside = match (files.get("chat_template.jinja"), files.get(FILE)) {
        (Some(text), _) => Some(Json::String(String::from_utf8_lossy(text).into_owned())),
        (None, Some(bytes)) => object(FILE, bytes)?.remove("chat_template"),
        (None, None) => None,
    };
    let named = match settings.get("chat_template").or(beside.as_ref()) {
        Some(Json::String(template)) => return Ok(vec![(KEY.to_string(), template.as_str().into())]),
        Some(Json::Array(named)) => named,
        _ => return Ok(Vec::new()),
    };
    let (mut keys, mut names) = (Vec::new(), Vec::new());
    for entry in named {
        let text = |key: &str| entry.get(key).and_then(Json::as_str);
        let (Some(name), Some(template)) = (text("name"), text("template")) else { continue };
        if name == "default" {
            keys.push((KEY.to_string(), template.into()));
        } else {
            names.push(name.to_string());
            keys.push((format!("{KEY}.{name}"), template.into()));
        }
    }
    if !names.is_empty() {
        keys.push(("tokenizer.chat_templates".to_string(), names.into()));
    }
    Ok(keys)
}
