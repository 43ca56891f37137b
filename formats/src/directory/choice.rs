//! Which files of one directory are the weights, where it holds them more than once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::{
    IndexName, WeightsName, index_name, is_gguf, is_of_other_format, is_pickle, is_unfinished_weights, name,
    shard_like, weights_name,
};
use super::left_out::{LeftOut, Why};
use super::{Component, Directory, DirectoryError, Entry, FileProblem, Index, Missing, Result, sharded};

/// Names of files that hold an adapter.
const ADAPTERS: &[&str] = &["adapter_model", "pytorch_lora_weights"];

/// The weights of Mistral's own programs, beside those of transformers.
const CONSOLIDATED: &str = "consolidated";

/// What weights of transformers are called, which have the same tensors as consolidated ones.
const TRANSFORMERS: &str = "model";

/// Variants that are known as such by their names alone.
const VARIANTS: &[&str] =
    &["fp16", "bf16", "fp32", "f16", "f32", "fp8", "fp64", "half", "full", "ema", "non_ema", "int8", "int4"];

/// The weights of one directory, and what else is in it.
pub(super) struct Chosen {
    pub component: Component,
    pub left_out: Vec<LeftOut>,
    /// Whether the variant that was asked for is there.
    pub has_variant: bool,
    /// The variants that are there.
    pub variants: BTreeSet<String>,
}

/// The files with the same name but for numbers: one copy of some weights.
#[derive(Default)]
struct Copy<'a> {
    index: Option<&'a Path>,
    whole: Option<&'a Path>,
    /// By how many there are, and by number.
    shards: BTreeMap<u32, BTreeMap<u32, &'a Path>>,
}

impl<'a> Copy<'a> {
    fn weights(&self) -> impl Iterator<Item = &'a Path> {
        self.whole.into_iter().chain(self.shards.values().flat_map(|shards| shards.values().copied()))
    }

    fn has_weights(&self) -> bool {
        self.weights().next().is_some()
    }

    fn all(&self) -> Vec<PathBuf> {
        self.index.into_iter().chain(self.weights()).map(Path::to_path_buf).collect()
    }
}

/// The copies of a directory by stem, and then by variant; those without a variant first.
type Copies<'a> = BTreeMap<String, BTreeMap<Option<String>, Copy<'a>>>;

/// The weights among the entries of a directory: those that its index names, else every file of weights that is not a
/// variant or an adapter of another. `None` if there are no weights at all.
pub(super) fn choose<D: Directory>(
    directory: &D,
    path: &Path,
    entries: &[Entry],
    variant: Option<&str>,
) -> Result<Option<Chosen>, D::Error> {
    let files: Vec<&Path> =
        entries.iter().filter(|entry| !entry.is_directory()).map(|entry| entry.path.as_path()).collect();
    let mut copies = copies(&files, variant);
    if copies.is_empty() {
        return none(path, &files);
    }
    let mut left_out = Vec::new();
    leave_out_companions(&mut copies, &mut left_out);
    let variants = copies.values().flat_map(|copies| copies.keys().flatten().cloned()).collect();
    let has_variant = variant.is_some_and(|wanted| copies.values().any(|copies| has(copies, wanted)));
    let chosen = one_variant_each(path, copies, variant, &mut left_out)?;
    let (files_read, index) = of_copies(directory, path, &files, &chosen, &mut left_out)?;
    let others = |is: fn(&Path) -> bool, why| {
        let files: Vec<_> = files.iter().filter(|file| is(file)).map(|file| file.to_path_buf()).collect();
        (!files.is_empty()).then_some(LeftOut { files, why })
    };
    left_out.extend(others(is_gguf, Why::Gguf));
    left_out.extend(others(|file| is_of_other_format(file) && !is_gguf(file), Why::Format));
    left_out.extend(others(is_unfinished_weights, Why::Unfinished));
    let component = Component { name: name(path), files: files_read, index };
    Ok(Some(Chosen { component, left_out, has_variant, variants }))
}

/// Why there are no weights, if something says so.
fn none<D>(path: &Path, files: &[&Path]) -> Result<Option<Chosen>, D> {
    let missing = |missing| Err(DirectoryError::Missing(missing));
    if let Some(file) = files.iter().find(|file| is_unfinished_weights(file)) {
        return missing(Missing::Unfinished { directory: path.to_path_buf(), example: name(file) });
    }
    match files.iter().find(|file| is_pickle(file)) {
        Some(file) => missing(Missing::PicklesOnly { directory: path.to_path_buf(), example: name(file) }),
        None => Ok(None),
    }
}

fn copies<'a>(files: &[&'a Path], wanted: Option<&str>) -> Copies<'a> {
    let mut weights: Vec<(WeightsName, &Path)> = Vec::new();
    let mut indexes: Vec<(IndexName, &Path)> = Vec::new();
    for file in files {
        let name = name(file);
        weights.extend(weights_name(&name).map(|name| (name, *file)));
        indexes.extend(index_name(&name).map(|name| (name, *file)));
    }
    let keys: BTreeSet<&str> = weights
        .iter()
        .map(|(name, _)| name.key.as_str())
        .chain(indexes.iter().map(|(name, _)| name.key.as_str()))
        .collect();
    let named: BTreeSet<&str> =
        indexes.iter().filter(|(name, _)| name.names_variant).map(|(name, _)| name.key.as_str()).collect();
    // `llama-3.1` is not a variant of `llama-3`.
    let split = |key: &str| -> (String, Option<String>) {
        let parts = key.rsplit_once('.').filter(|(stem, variant)| {
            let is_word = variant.starts_with(|c: char| c.is_ascii_alphabetic());
            let is_known = VARIANTS.contains(variant) || wanted == Some(variant);
            named.contains(key) || is_word && (is_known || keys.contains(stem))
        });
        parts.map_or_else(|| (key.to_string(), None), |(stem, variant)| (stem.to_string(), Some(variant.to_string())))
    };
    let mut copies = Copies::new();
    for (WeightsName { key, shard }, file) in &weights {
        let (stem, variant) = split(key);
        let copy = copies.entry(stem).or_default().entry(variant).or_default();
        let before = match shard {
            Some((number, count)) => copy.shards.entry(*count).or_default().insert(*number, file),
            None => copy.whole.replace(file),
        };
        // `a.sft` beside `a.safetensors` is read too: whether they hold the same is known by their headers.
        if let Some(before) = before {
            copies.entry(name(before)).or_default().entry(None).or_default().whole = Some(before);
        }
    }
    for (IndexName { key, .. }, file) in &indexes {
        let (stem, variant) = split(key);
        copies.entry(stem).or_default().entry(variant).or_default().index.get_or_insert(file);
    }
    copies
}

/// Takes away adapters beside a model, and consolidated weights beside the same in the names of transformers.
fn leave_out_companions(copies: &mut Copies<'_>, left_out: &mut Vec<LeftOut>) {
    let is_consolidated =
        |stem: &str| stem == CONSOLIDATED || stem.starts_with("consolidated.") || stem.starts_with("consolidated-");
    let has_model = copies.iter().any(|(stem, copies)| {
        stem.starts_with(TRANSFORMERS) && copies.values().any(|copy| copy.has_weights() || copy.index.is_some())
    });
    let is_adapter = |stem: &str| ADAPTERS.contains(&stem);
    let has_others = copies.keys().any(|stem| !is_adapter(stem));
    let mut take = |is: &dyn Fn(&str) -> bool, why: Why| {
        let stems: Vec<String> = copies.keys().filter(|stem| is(stem)).cloned().collect();
        let taken = stems.iter().filter_map(|stem| copies.remove(stem));
        let files: Vec<_> = taken.flat_map(|copies| copies.into_values().flat_map(|copy| copy.all())).collect();
        if !files.is_empty() {
            left_out.push(LeftOut { files, why });
        }
    };
    if has_others {
        take(&is_adapter, Why::Adapter);
    }
    if has_model {
        take(&is_consolidated, Why::Consolidated);
    }
}

fn has(copies: &BTreeMap<Option<String>, Copy<'_>>, variant: &str) -> bool {
    copies.keys().any(|found| found.as_deref() == Some(variant))
}

/// Of each stem the variant that was asked for, else the weights without a variant, else the only variant.
fn one_variant_each<'a, D>(
    path: &Path,
    copies: Copies<'a>,
    wanted: Option<&str>,
    left_out: &mut Vec<LeftOut>,
) -> Result<Vec<Copy<'a>>, D> {
    let mut chosen = Vec::new();
    for mut copies in copies.into_values() {
        // An index alone, which came with the configuration, does not speak for its variant.
        let is_alone = |copy: &Copy<'_>| !copy.has_weights();
        if copies.len() > 1 && copies.get(&None).is_some_and(is_alone) && copies.values().any(Copy::has_weights) {
            left_out.extend(copies.remove(&None).map(|copy| LeftOut { files: copy.all(), why: Why::IndexAlone }));
        }
        let taken = match wanted {
            Some(wanted) if has(&copies, wanted) => Some(wanted.to_string()),
            _ if copies.contains_key(&None) => None,
            _ if copies.len() > 1 => {
                let there = copies.into_keys().flatten().collect();
                let asked = wanted.map(str::to_string);
                return Err(DirectoryError::Variant { directory: path.to_path_buf(), asked, there });
            }
            _ => copies.keys().next().cloned().flatten(),
        };
        chosen.extend(copies.remove(&taken));
        let files: Vec<_> = copies.values().flat_map(Copy::all).collect();
        if !files.is_empty() {
            left_out.push(LeftOut { files, why: Why::Variant { taken } });
        }
    }
    Ok(chosen)
}

/// The files of the copies of a directory, by its index if it has one.
fn of_copies<D: Directory>(
    directory: &D,
    path: &Path,
    there: &[&Path],
    copies: &[Copy<'_>],
    left_out: &mut Vec<LeftOut>,
) -> Result<(Vec<PathBuf>, Option<Index>), D::Error> {
    let indexed: Vec<(&Copy<'_>, &Path)> = copies.iter().filter_map(|copy| Some((copy, copy.index?))).collect();
    if let [(_, first), (_, second), ..] = indexed.as_slice() {
        return Err(DirectoryError::file(first, None, FileProblem::SecondIndex(name(second))));
    }
    if let [(copy, index)] = indexed.as_slice() {
        match sharded(directory, path, index, there) {
            Ok((index, files)) => {
                let others =
                    copies.iter().flat_map(Copy::weights).filter(|file| !files.iter().any(|read| read == file));
                let others: Vec<_> = others.map(Path::to_path_buf).collect();
                if !others.is_empty() {
                    left_out.push(LeftOut { files: others, why: Why::NotInIndex { index: name(&index.path) } });
                }
                return Ok((files, Some(index)));
            }
            Err(DirectoryError::File {
                file,
                tensor,
                problem: FileProblem::ShardMissing { file: shard, none, .. },
            }) => {
                let whole = copy.whole.map(name);
                match whole.filter(|_| none) {
                    Some(whole) => {
                        left_out.push(LeftOut { files: vec![index.to_path_buf()], why: Why::StaleIndex { whole } });
                    }
                    None => {
                        let problem = FileProblem::ShardMissing { file: shard, none, whole: copy.whole.map(name) };
                        return Err(DirectoryError::File { file, tensor, problem });
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    let mut files = Vec::new();
    for copy in copies {
        files.extend(without_index(path, copy, left_out)?);
    }
    if files.is_empty() {
        return Err(DirectoryError::Missing(Missing::NoWeights));
    }
    files.sort();
    Ok((files, None))
}

/// The files of a copy that has no index: the whole in one file, or shards, none of which may be missing.
fn without_index<D>(path: &Path, copy: &Copy<'_>, left_out: &mut Vec<LeftOut>) -> Result<Vec<PathBuf>, D> {
    if let Some(whole) = copy.whole {
        let shards: Vec<_> = copy.weights().filter(|file| *file != whole).map(Path::to_path_buf).collect();
        if !shards.is_empty() {
            left_out.push(LeftOut { files: shards, why: Why::WholeFile { whole: name(whole) } });
        }
        return Ok(vec![whole.to_path_buf()]);
    }
    for (&count, shards) in &copy.shards {
        // Some programs count from 0.
        let first = u32::from(!shards.contains_key(&0));
        let missing: Vec<u32> = (first..first + count).filter(|number| !shards.contains_key(number)).collect();
        if let (false, Some(example)) = (missing.is_empty(), shards.values().next()) {
            let example = name(example);
            let files = missing.iter().map(|number| PathBuf::from(shard_like(&example, *number))).collect();
            return Err(DirectoryError::Missing(Missing::Shards { directory: path.to_path_buf(), files, count }));
        }
    }
    Ok(copy.weights().map(Path::to_path_buf).collect())
}
