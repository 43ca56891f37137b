//! Tokens with a meaning: begin, end and the like, and whether a text gets them.

use serde_json::{Map, Value as Json};

use super::{TokenizerJson, Tokens, put};
use crate::gguf::Value;
use crate::gguf::language::config::Config;

/// What special tokens are called in configurations and in GGUF.
const KINDS: &[(&str, &str)] = &[
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("unk", "unknown_token_id"),
    // ggml's spelling.
    ("sep", "seperator_token_id"),
    ("pad", "padding_token_id"),
    ("cls", "cls_token_id"),
    ("mask", "mask_token_id"),
];

/// Those that a text may get.
const ADDED: [&str; 3] = ["bos", "eos", "sep"];

/// Adds the keys of special tokens: by their texts where the tokenizer's settings have them, else by the numbers of
/// `config.json`.
pub(super) fn write(
    json: Option<&TokenizerJson>,
    settings: &Map<String, Json>,
    config: &Config<'_>,
    tokens: &Tokens,
    keys: &mut Vec<(String, Value)>,
) {
    for (kind, key) in KINDS {
        let text = text(settings, kind);
        let added = json.zip(text).and_then(|(json, text)| {
            json.added_tokens.iter().find(|added| added.content == text).map(|added| added.id)
        });
        let in_config = || config.get(&format!("{kind}_token_id")).and_then(Json::as_u64);
        let token = added.or_else(in_config).or_else(|| tokens.find(text?));
        if let Some(token) =
            token.and_then(|token| u32::try_from(token).ok()).filter(|t| (*t as usize) < tokens.texts.len())
        {
            put(keys, key, token.into());
        }
    }
    for kind in ADDED {
        let asked = settings.get(&format!("add_{kind}_token")).and_then(Json::as_bool);
        let by_template = || json.and_then(|json| by_template(&json.post_processor, settings, kind));
        if let Some(is_added) = asked.or_else(by_template) {
            put(keys, &format!("add_{kind}_token"), is_added.into());
        }
    }
}

/// The text of a special token.
fn text<'a>(settings: &'a Map<String, Json>, kind: &str) -> Option<&'a str> {
    let token = settings.get(&format!("{kind}_token"))?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// Whether the template of a text begins with the token that begins one, or ends with the one that ends it.
fn by_template(post_processor: &Json, settings: &Map<String, Json>, kind: &str) -> Option<bool> {
    let several = post_processor.get("processors").and_then(Json::as_array);
    let mut steps = several.map_or_else(|| vec![post_processor], |steps| steps.iter().collect()).into_iter();
    let template = steps.find(|step| step.get("type").and_then(Json::as_str) == Some("TemplateProcessing"))?;
    let single = template.get("single").and_then(Json::as_array).filter(|single| single.len() > 1)?;
    let place = match kind {
        "bos" => single.first(),
        "eos" => single.last(),
        _ => None,
    };
    let found = place?.get("SpecialToken")?.get("id")?.as_str()?;
    Some(text(settings, kind).is_none_or(|expected| expected == found))
}
