//! How text is cut before BPE. GGUF has a name for each way, and llama.cpp the expressions; tokenizer.json has the expressions,
//! by which the name is recognized.

use serde_json::Value as Json;

use super::{LanguageError, Result};

/// The names that llama.cpp knows, as far as they are of ways that are in use.
pub const PRE_TOKENIZERS: &[&str] = &[
    "default",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "smollm",
    "gpt-2",
    "tekken",
    "gpt-4o",
    "dbrx",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "deepseek-r1-qwen",
    "falcon",
    "falcon3",
    "llama4",
    "glm4",
    "chatglm-bpe",
    "command-r",
    "starcoder",
    "refact",
    "phi-2",
    "stablelm2",
    "olmo",
    "smaug-bpe",
    "minicpm5",
    "gemma4",
];

/// What comes after the words in the expressions of many models.
macro_rules! rest {
    ($digits:literal, $after:literal) => {
        concat!("|", $digits, "| ?[^\\s\\p{L}\\p{N}]+", $after, "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
    };
}

const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";
const CONTRACTIONS_AND_MARKS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+";
const THREE_DIGITS: &str = rest!("\\p{N}{1,3}", "[\\r\\n]*");
const ONE_DIGIT: &str = rest!("\\p{N}", "[\\r\\n]*");
const ONE_DIGIT_AND_MARKS: &str = "|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const UPPER: &str = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+";
const LOWER: &str = "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*";
const ENDINGS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?";

/// The step that cuts text as GPT-2 does and turns it to bytes.
const GPT2: &str = "bytes by GPT-2's expression";
/// The step that turns text to bytes.
const BYTES: &str = "bytes";
/// The step that cuts off each digit.
const DIGITS: &str = "digits";

/// The name of a way to cut text.
pub(super) fn recognize(pre_tokenizer: &Json, ignores_merges: bool) -> Result<&'static str> {
    let steps = steps(pre_tokenizer);
    let split = |parts: &[&str]| vec![format!("split by {}", parts.concat()), BYTES.to_string()];
    let plain = |parts: &[&str]| parts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let known = [
        // Of the same expression. The name decides too whether whole words of the vocabulary come before merges.
        (split(&[CONTRACTIONS, THREE_DIGITS]), if ignores_merges { "llama-bpe" } else { "dbrx" }),
        (split(&[CONTRACTIONS, ONE_DIGIT]), "qwen2"),
        (split(&[CONTRACTIONS_AND_MARKS, ONE_DIGIT_AND_MARKS]), "qwen35"),
        (split(&[UPPER, LOWER, rest!("\\p{N}", "[\\r\\n/]*")]), "tekken"),
        (split(&[UPPER, ENDINGS, LOWER, ENDINGS, rest!("\\p{N}{1,3}", "[\\r\\n/]*")]), "gpt-4o"),
        (plain(&[DIGITS, GPT2]), "smollm"),
        (plain(&[GPT2]), "gpt-2"),
    ];
    let found = known.iter().find(|(way, _)| *way == steps).map(|(_, name)| *name);
    found.ok_or_else(|| LanguageError::UnknownPre(steps.join(", then ")))
}

/// The steps in order, each in words.
fn steps(step: &Json) -> Vec<String> {
    let is = |key: &str| step.get(key).and_then(Json::as_bool);
    match step.get("type").and_then(Json::as_str) {
        None => Vec::new(),
        Some("Sequence") => {
            step.get("pretokenizers").and_then(Json::as_array).into_iter().flatten().flat_map(steps).collect()
        }
        // A space before the text is a step of its own, which none of the known ways has.
        Some("ByteLevel") if is("add_prefix_space") == Some(true) => vec!["bytes after a space".to_string()],
        Some("ByteLevel") if is("use_regex") == Some(false) => vec![BYTES.to_string()],
        Some("ByteLevel") => vec![GPT2.to_string()],
        Some("Digits") if is("individual_digits") == Some(true) => vec![DIGITS.to_string()],
        Some("Split") => {
            let pattern = step.get("pattern");
            let text =
                pattern.and_then(|pattern| pattern.get("Regex").or(pattern.get("String"))).and_then(Json::as_str);
            let is_isolated = step.get("behavior").and_then(Json::as_str) == Some("Isolated");
            // To keep what matches and to remove what does not is the same, as the expressions match everything.
            let is_removed =
                step.get("behavior").and_then(Json::as_str) == Some("Removed") && is("invert") == Some(true);
            let way = if is_isolated || is_removed { "split by" } else { "split in another way by" };
            vec![format!("{way} {}", text.unwrap_or_default())]
        }
        Some(other) => vec![other.to_string()],
    }
}
