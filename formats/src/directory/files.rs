//! What the name of a file says of it.

use std::path::Path;

/// Endings of files of weights that are read, without the dot.
const WEIGHTS: &[&str] = &["safetensors", "sft"];

/// Endings of checkpoints that are Python pickles.
const PICKLES: &[&str] = &["bin", "pt", "pth", "ckpt", "pkl"];

/// Endings of weights in other formats; of these, GGUF is read where there are no others.
const OTHER_WEIGHTS: &[&str] = &["gguf", "onnx", "onnx_data", "msgpack", "h5"];

/// Endings that programs give to a file until it is complete.
const UNFINISHED: &[&str] = &["incomplete", "part", "partial", "aria2", "crdownload", "download", "tmp", "!qb"];

/// What a model needs beside its weights: endings of settings, vocabularies, templates and the code of a model.
const CONFIGURATION: &[&str] =
    &["json", "txt", "model", "jinja", "jinja2", "yaml", "yml", "py", "tiktoken", "bpe", "vocab", "spm"];

/// Beginnings of names of such files, whatever they end with: of licences, which go with the weights.
const LICENCES: &[&str] = &["license", "licence", "notice", "copying", "use_policy"];

/// Beginnings of names of files about a model, which a quantized one must not take over.
const CARDS: &[&str] = &["readme", "model_card", "modelcard", "changelog"];

/// The most shards that a name may speak of.
const MOST_SHARDS: u32 = 100_000;

/// A name that says what of a model's weights a file holds, or lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WeightsName {
    /// What stands before numbers and endings: `model`, and `model.fp16` of a variant.
    pub key: String,
    /// Of a shard, its number and how many there are.
    pub shard: Option<(u32, u32)>,
}

/// A name of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndexName {
    /// As of the files it lists.
    pub key: String,
    /// Whether its name says that the last part of the key is a variant: `model.safetensors.index.fp16.json`.
    pub names_variant: bool,
}

/// The last part of a path, as text.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn is_weights(path: &Path) -> bool {
    has_ending(path, WEIGHTS)
}

/// True for the name of a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    has_ending(path, &["gguf"])
}

pub(super) fn is_pickle(path: &Path) -> bool {
    has_ending(path, PICKLES)
}

/// True for weights in a format that is not read.
pub(super) fn is_of_other_format(path: &Path) -> bool {
    is_pickle(path) || has_ending(path, OTHER_WEIGHTS)
}

/// True for what is left of a download of weights that did not end.
pub(super) fn is_unfinished_weights(path: &Path) -> bool {
    let rest = path.with_extension("");
    has_ending(path, UNFINISHED) && (is_weights(&rest) || has_ending(&rest, OTHER_WEIGHTS) || is_pickle(&rest))
}

/// True for what a model needs beside its weights, and may be copied with it.
pub(super) fn is_configuration(path: &Path) -> bool {
    let name = name(path).to_ascii_lowercase();
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| name.starts_with(beginning));
    let is_index = name.ends_with(".json") && (name.contains(".safetensors.index.") || name.contains(".bin.index."));
    // `tokenizer.model.v3` and the like have numbers for endings.
    let is_kept = begins(LICENCES) && !is_of_other_format(path) && !has_ending(path, UNFINISHED)
        || has_ending(path, CONFIGURATION)
        || begins(&["tokenizer.model."]) && !has_ending(path, UNFINISHED) && !has_ending(path, &["bak", "old", "orig"]);
    is_kept && !is_index && !begins(CARDS) && !is_weights(path)
}

pub(super) fn has_ending(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|found| endings.iter().any(|ending| found.eq_ignore_ascii_case(ending)))
}

/// Reads the name of a file of weights.
pub(super) fn weights_name(name: &str) -> Option<WeightsName> {
    let rest = WEIGHTS.iter().find_map(|ending| strip_ending(name, &format!(".{ending}")))?;
    Some(numbered(rest).unwrap_or_else(|| WeightsName { key: rest.to_string(), shard: None }))
}

/// Reads the name of an index: `model.safetensors.index.json`, `model.safetensors.index.fp16.json` or
/// `model.fp16.safetensors.index.json`.
pub(super) fn index_name(name: &str) -> Option<IndexName> {
    let rest = strip_ending(name, ".json")?;
    if let Some(key) = strip_ending(rest, ".safetensors.index") {
        return Some(IndexName { key: key.to_string(), names_variant: false });
    }
    let (rest, variant) = rest.rsplit_once('.')?;
    let key = strip_ending(rest, ".safetensors.index")?;
    Some(IndexName { key: format!("{key}.{variant}"), names_variant: true })
}

/// `model-00001-of-00002`, `model.fp16-00001-of-00002` and `model-00001-of-00002.fp16`.
fn numbered(rest: &str) -> Option<WeightsName> {
    let (before, _, after) = split_of(rest)?;
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, variant) = after.split_at(digits(after));
    let variant = if variant.is_empty() { "" } else { variant.strip_prefix('.')? };
    let stem = before.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = &before[stem.len()..];
    let stem = stem.strip_suffix(['-', '_', '.'])?;
    let (number, count): (u32, u32) = (number.parse().ok()?, count.parse().ok()?);
    let is_shard = number <= count && (1..=MOST_SHARDS).contains(&count) && !stem.is_empty();
    let key = if variant.is_empty() { stem.to_string() } else { format!("{stem}.{variant}") };
    is_shard.then_some(WeightsName { key, shard: Some((number, count)) })
}

/// The name that a shard of another number has beside an example.
pub(super) fn shard_like(example: &str, number: u32) -> String {
    let Some((before, of, after)) = split_of(example) else { return example.to_string() };
    let stem = before.trim_end_matches(|c: char| c.is_ascii_digit());
    let width = before.len() - stem.len();
    format!("{stem}{number:0width$}{of}{after}")
}

/// What stands before and after `-of-`, or `_of_`.
fn split_of(name: &str) -> Option<(&str, &'static str, &str)> {
    ["-of-", "_of_"].into_iter().find_map(|of| name.rsplit_once(of).map(|(before, after)| (before, of, after)))
}

/// What stands before an ending, in any case.
fn strip_ending<'a>(name: &'a str, ending: &str) -> Option<&'a str> {
    let at = name.len().checked_sub(ending.len())?;
    let found = name.get(at..)?;
    found.eq_ignore_ascii_case(ending).then(|| &name[..at]).filter(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_weights_are_read() {
        let read = |name: &str| weights_name(name).map(|name| (name.key, name.shard));
        let some = |key: &str, shard| Some((key.to_string(), shard));
        assert_eq!(read("model.safetensors"), some("model", None));
        assert_eq!(read("MODEL.SAFETENSORS"), some("MODEL", None));
        assert_eq!(read("flux1-dev.sft"), some("flux1-dev", None));
        assert_eq!(read("model-00001-of-00003.safetensors"), some("model", Some((1, 3))));
        assert_eq!(read("model.fp16-00002-of-00003.safetensors"), some("model.fp16", Some((2, 3))));
        assert_eq!(read("model-00002-of-00003.fp16.safetensors"), some("model.fp16", Some((2, 3))));
        assert_eq!(read("model_1-of-2.safetensors"), some("model", Some((1, 2))));
        assert_eq!(read("model_00001_of_00003.safetensors"), some("model", Some((1, 3))));
        assert_eq!(read("best-of-both.safetensors"), some("best-of-both", None));
        assert_eq!(read("model-00004-of-00003.safetensors"), some("model-00004-of-00003", None));
        assert_eq!(read("model.safetensors.bak"), None);
        assert_eq!(read(".safetensors"), None);
    }

    #[test]
    fn names_of_indexes_are_read() {
        let read = |name: &str| index_name(name).map(|name| (name.key, name.names_variant));
        assert_eq!(read("model.safetensors.index.json"), Some(("model".to_string(), false)));
        assert_eq!(read("model.safetensors.index.bf16.json"), Some(("model.bf16".to_string(), true)));
        assert_eq!(read("model.fp16.safetensors.index.json"), Some(("model.fp16".to_string(), false)));
        assert_eq!(read("pytorch_model.bin.index.json"), None);
        assert_eq!(read("config.json"), None);
    }

    #[test]
    fn configuration_is_what_a_model_needs_beside_its_weights() {
        let kept = |name: &str| is_configuration(Path::new(name));
        for name in [
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer.model.v3",
            "vocab.txt",
            "merges.txt",
            "chat_template.jinja",
            "LICENSE",
            "LICENSE.md",
            "Notice",
            "USE_POLICY.md",
            "modeling_dream.py",
            "qwen.tiktoken",
        ] {
            assert!(kept(name), "{name}");
        }
        for name in [
            "README.md",
            "readme.txt",
            "MODEL_CARD.md",
            "model.safetensors.bak",
            "config.json.bak",
            "config.json.old",
            "tokenizer.json.part",
            "model.safetensors.aria2",
            "x.crdownload",
            "model.onnx",
            "a.png",
            "sample.wav",
            "m.gguf",
            "pytorch_model.bin",
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "model.safetensors.index.fp16.json",
            "LICENSE.tmp",
            "calibration.parquet",
            "tokenizer.model.bak",
        ] {
            assert!(!kept(name), "{name}");
        }
        assert!(is_unfinished_weights(Path::new("model.safetensors.incomplete")));
        assert!(!is_unfinished_weights(Path::new("config.json.tmp")));
    }
}
