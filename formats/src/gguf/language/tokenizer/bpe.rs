//! BPE over bytes, from `tokenizer.json`.

use serde_json::Value as Json;

use super::{Embedding, LanguageError, Merge, Result, TokenType, TokenizerJson, Tokens, Vocabulary, pre, put};
use crate::gguf::Value;

/// Whether a tokenizer merges bytes.
pub(super) fn is_of_bytes(json: &TokenizerJson) -> bool {
    let is_bpe = json.model.kind.as_deref().is_none_or(|kind| kind == "BPE");
    is_bpe && (has(&json.decoder, "ByteLevel") || has(&json.pre_tokenizer, "ByteLevel"))
}

/// Whether a tokenizer merges pieces of text, as SentencePiece does.
pub(super) fn is_of_pieces(json: &TokenizerJson) -> bool {
    json.model.kind.as_deref() == Some("BPE") && json.model.byte_fallback
}

/// Whether a step of a tokenizer, or one of several, is of a kind.
fn has(step: &Json, kind: &str) -> bool {
    find(step, kind).is_some()
}

/// A step of a kind, or the first of several.
pub(super) fn find<'a>(step: &'a Json, kind: &str) -> Option<&'a Json> {
    if step.get("type").and_then(Json::as_str) == Some(kind) {
        return Some(step);
    }
    let lists = ["pretokenizers", "decoders", "normalizers"].iter().filter_map(|list| step.get(list)?.as_array());
    lists.flatten().find_map(|step| find(step, kind))
}

/// Adds the keys of the tokenizer, and gives its tokens.
pub(super) fn write(
    json: &TokenizerJson,
    embedding: Embedding<'_>,
    asked: Option<&str>,
    keys: &mut Vec<(String, Value)>,
) -> Result<Tokens> {
    let mut tokens = Tokens::new(embedding);
    let Vocabulary::Numbered(vocabulary) = &json.model.vocab else {
        return Err(LanguageError::TokenizerKind("BPE without numbers of tokens".to_string()));
    };
    for (text, &token) in vocabulary {
        tokens.set(token, embedding, text, TokenType::Normal, 0.0)?;
    }
    for added in &json.added_tokens {
        tokens.add(added.id, embedding, &added.content, added.special)?;
    }
    let pre = match asked {
        Some(asked) => asked,
        None => pre::recognize(&json.pre_tokenizer, json.model.ignore_merges)?,
    };
    put(keys, "model", "gpt2".into());
    put(keys, "pre", pre.into());
    put(keys, "merges", json.model.merges.iter().map(merge).collect::<Vec<_>>().into());
    Ok(tokens)
}

/// A merge as ggml has it: two tokens with a space between them. Spaces inside are written as another letter.
fn merge(merge: &Merge) -> String {
    match merge {
        Merge::Joined(text) => text.clone(),
        Merge::Pair(a, b) => format!("{} {}", a.replace(' ', "\u{120}"), b.replace(' ', "\u{120}")),
    }
}
