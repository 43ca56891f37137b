//! SentencePiece: from `tokenizer.model`, or from a `tokenizer.json` that was made of one.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};

use super::bpe::find;
use super::{ADDED_SCORE, Embedding, LanguageError, MODEL, Result, TokenType, TokenizerJson, Tokens, Vocabulary, put};
use crate::gguf::Value;

/// The other files that have something to say on the tokens.
#[derive(Clone, Copy)]
pub(super) struct Others<'a> {
    pub json: Option<&'a TokenizerJson>,
    pub settings: &'a Map<String, Json>,
    pub added: Option<&'a Map<String, Json>>,
}

/// A token of a vocabulary, its kind by ggml's number, which is SentencePiece's.
struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// What is read of a `tokenizer.model`.
#[derive(Default)]
struct Pieces {
    pieces: Vec<Piece>,
    /// Whether a space is put before a text.
    adds_space: bool,
}

/// Adds the keys of the tokenizer, and gives its tokens.
pub(super) fn write(
    model: &[u8],
    others: Others<'_>,
    embedding: Embedding<'_>,
    keys: &mut Vec<(String, Value)>,
) -> Result<Tokens> {
    let read = pieces(model)
        .ok_or_else(|| LanguageError::File { file: MODEL, problem: "not a model of SentencePiece".to_string() })?;
    let mut types = Vec::new();
    let mut tokens = Tokens::new(embedding);
    for (token, piece) in read.pieces.iter().enumerate() {
        // More pieces than rows are left out, as llama.cpp's converter does.
        if (token as i64) < embedding.rows {
            tokens.set(token as u64, embedding, &piece.text, TokenType::Normal, piece.score)?;
            types.push(piece.kind as i32);
        }
    }
    add(&mut tokens, others, embedding)?;
    finish(tokens, types, others.settings, read.adds_space, keys)
}

/// The same from a vocabulary and its merges. The score of a piece is the order in which merges make it.
pub(super) fn write_merges(
    json: &TokenizerJson,
    settings: &Map<String, Json>,
    embedding: Embedding<'_>,
    keys: &mut Vec<(String, Value)>,
) -> Result<Tokens> {
    let Vocabulary::Numbered(vocabulary) = &json.model.vocab else {
        return Err(LanguageError::TokenizerKind("BPE without numbers of tokens".to_string()));
    };
    let mut made: HashMap<String, usize> = HashMap::new();
    for (order, merge) in json.model.merges.iter().enumerate() {
        if let Some((a, b)) = merge.pair() {
            made.entry(format!("{a}{b}")).or_insert(order);
        }
    }
    let mut tokens = Tokens::new(embedding);
    let mut types = vec![0; tokens.texts.len()];
    for (text, &token) in vocabulary {
        // What no merge makes is a letter, and letters are never chosen between.
        let score = made.get(text).map_or(-(made.len() as f32), |order| -(*order as f32));
        tokens.set(token, embedding, text, TokenType::Normal, score)?;
        types[token as usize] = match text.as_str() {
            "<unk>" => UNKNOWN,
            text if is_byte(text) => TokenType::Byte as i32,
            _ => TokenType::Normal as i32,
        };
    }
    add(&mut tokens, Others { json: Some(json), settings, added: None }, embedding)?;
    finish(tokens, types, settings, adds_space(json), keys)
}

/// Whether a space is put before a text.
fn adds_space(json: &TokenizerJson) -> bool {
    let scheme = |step: &Json| match step.get("prepend_scheme").and_then(Json::as_str) {
        Some(scheme) => scheme != "never",
        None => step.get("add_prefix_space").and_then(Json::as_bool).unwrap_or(true),
    };
    find(&json.normalizer, "Prepend").is_some() || find(&json.pre_tokenizer, "Metaspace").is_some_and(scheme)
}

/// The number of the token for what is not known.
const UNKNOWN: i32 = 2;

/// `<0x0A>`.
fn is_byte(text: &str) -> bool {
    text.len() == 6
        && text
            .strip_prefix("<0x")
            .and_then(|rest| rest.strip_suffix('>'))
            .is_some_and(|digits| u8::from_str_radix(digits, 16).is_ok())
}

/// Tokens that were added to those of the model, from the files that have some.
fn add(tokens: &mut Tokens, others: Others<'_>, embedding: Embedding<'_>) -> Result<()> {
    for (text, token) in others.added.into_iter().flatten() {
        if let Some(token) = token.as_u64() {
            tokens.set(token, embedding, text, TokenType::UserDefined, ADDED_SCORE)?;
        }
    }
    let decoder = others.settings.get("added_tokens_decoder").and_then(Json::as_object);
    for (token, entry) in decoder.into_iter().flatten() {
        let text = entry.get("content").and_then(Json::as_str);
        if let (Ok(token), Some(text)) = (token.parse(), text) {
            tokens.add(token, embedding, text, entry.get("special").and_then(Json::as_bool) == Some(true))?;
        }
    }
    for added in others.json.into_iter().flat_map(|json| &json.added_tokens) {
        tokens.add(added.id, embedding, &added.content, added.special)?;
    }
    Ok(())
}

/// Adds the keys of a tokenizer whose tokens are there. `types` are those of the tokens of the model itself.
fn finish(
    mut tokens: Tokens,
    types: Vec<i32>,
    settings: &Map<String, Json>,
    adds_space: bool,
    keys: &mut Vec<(String, Value)>,
) -> Result<Tokens> {
    for (kind, own) in tokens.types.iter_mut().zip(types).filter(|(kind, _)| **kind == TokenType::Normal) {
        *kind = match own {
            UNKNOWN => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            _ => TokenType::Normal,
        };
    }
    put(keys, "model", "llama".into());
    put(keys, "pre", "default".into());
    put(keys, "scores", std::mem::take(&mut tokens.scores).into());
    let asked = settings.get("add_prefix_space").and_then(Json::as_bool);
    put(keys, "add_space_prefix", asked.unwrap_or(adds_space).into());
    Ok(tokens)
}

/// The pieces of a `ModelProto`. `None` if the bytes are not one.
fn pieces(model: &[u8]) -> Option<Pieces> {
    let mut read = Pieces { adds_space: true, ..Pieces::default() };
    for field in Fields(model) {
        match field? {
            (1, Field::Bytes(piece)) => read.pieces.push(self::piece(piece)?),
            // How text is normalized.
            (3, Field::Bytes(normalizer)) => {
                for field in Fields(normalizer) {
                    if let (3, Field::Number(adds)) = field? {
                        read.adds_space = adds != 0;
                    }
                }
            }
            _ => {}
        }
    }
    (!read.pieces.is_empty()).then_some(read)
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: TokenType::Normal as u64 };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).ok()?,
            (2, Field::Word(bits)) => piece.score = f32::from_bits(bits),
            (3, Field::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    Some(piece)
}

/// The value of a field of a protocol buffer.
enum Field<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a protocol buffer, with their numbers; `None` where the bytes are not of one, which ends them.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => {
                self.take(8)?;
                Field::Other
            }
            2 => {
                let length = self.number()?;
                Field::Bytes(self.take(usize::try_from(length).ok()?)?)
            }
            5 => Field::Word(u32::from_le_bytes(*self.take(4)?.first_chunk()?)),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// Seven bits a byte, the last byte without its eighth.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for place in 0..10 {
            let byte = *self.take(1)?.first()?;
            number |= u64::from(byte & 0x7f).checked_shl(7 * place)?;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}
