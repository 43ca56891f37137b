//! Which files of a directory are a model's weights. Directories come in the layouts of transformers and diffusers; no
//! header is read here, and no path from a file's contents is followed out of the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Component as PathPart, Path, PathBuf};

use serde::Deserialize;

use super::safetensors::{defect, shown};
use crate::error::{QuantError, Result};

/// Extensions of checkpoints that are Python pickles.
const PICKLES: &[&str] = &["bin", "pt", "pth", "ckpt", "pkl"];

/// Extensions of weights in formats that are not read either.
const OTHER_WEIGHTS: &[&str] = &["gguf", "onnx", "onnx_data", "msgpack", "h5"];

/// Tables and arrays, such as a calibration: data about a model that a quantized one does not need.
const DATA: &[&str] = &["parquet", "arrow", "ipc", "feather", "npy", "npz"];

/// The file that makes a directory a diffusers pipeline.
pub(super) const PIPELINE: &str = "model_index.json";

/// The file that makes a directory a quantized model.
pub(crate) const MANIFEST: &str = "arrow_quant.json";

/// The weight files of one component.
#[derive(Debug)]
pub(super) struct Component {
    /// The directory's name in a pipeline, empty for a plain model.
    pub name: String,
    /// In the order of their names, at least one.
    pub files: Vec<PathBuf>,
    /// Of a sharded component.
    pub index: Option<Index>,
}

/// Which file each tensor of a sharded component is in.
#[derive(Debug)]
pub(super) struct Index {
    /// The index file.
    pub path: PathBuf,
    /// From tensor to file name.
    pub weight_map: BTreeMap<String, String>,
}

/// The components of the model at `path`.
pub(super) fn components(path: &Path) -> Result<Vec<Component>> {
    let metadata = fs::metadata(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            let why = "no such file or directory; give a .safetensors file or a directory that holds some";
            not_found(path, format!("no model at `{}`: {why}", path.display()))
        }
        _ => QuantError::io(path, e),
    })?;
    if !metadata.is_dir() {
        check_file(path)?;
        return Ok(vec![Component { name: String::new(), files: vec![path.to_path_buf()], index: None }]);
    }
    if path.join(PIPELINE).is_file() {
        return pipeline(path);
    }
    match component(path, String::new())? {
        Some(component) => Ok(vec![component]),
        None if path.join(MANIFEST).is_file() => {
            let why = "is a quantized model already, expected one with *.safetensors files";
            Err(not_found(path, format!("`{}` {why}", path.display())))
        }
        None => {
            let why = format!("looked for *.safetensors, *.safetensors.index.json and {PIPELINE}");
            Err(not_found(path, format!("no weights in `{}`: {why}", path.display())))
        }
    }
}

/// What lies beside the weights in a model directory, as paths relative to it, in order. Below the directory itself
/// only if `recursive`.
pub(super) fn other_files(directory: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(directory, Path::new(""), recursive, &mut Vec::new(), &mut found)?;
    found.sort();
    Ok(found)
}

/// `trail` are the directories from `root` to the one that holds `relative`: links may lead back to one of them.
fn collect(
    root: &Path,
    relative: &Path,
    recursive: bool,
    trail: &mut Vec<PathBuf>,
    found: &mut Vec<PathBuf>,
) -> Result<()> {
    let here = root.join(relative);
    let real = fs::canonicalize(&here).map_err(|e| QuantError::io(&here, e))?;
    if trail.contains(&real) {
        return Ok(());
    }
    trail.push(real);
    for entry in list(&here)? {
        let inner = relative.join(entry.file_name().unwrap_or_default());
        // Sockets and pipes are no configuration, and reading one could wait for ever.
        if !entry.is_dir() {
            if !is_weights(&entry) && !has_extension(&entry, DATA) && (entry.is_file() || !entry.exists()) {
                found.push(inner);
            }
        } else if recursive && !entry.join(MANIFEST).is_file() {
            collect(root, &inner, recursive, trail, found)?;
        }
    }
    trail.pop();
    Ok(())
}

/// True for weights of any format and for the indexes of sharded weights.
fn is_weights(path: &Path) -> bool {
    let name = name(path);
    let index = name.ends_with(".json") && (name.contains(".safetensors.index.") || name.contains(".bin.index."));
    index || has_extension(path, &["safetensors"]) || has_extension(path, PICKLES) || has_extension(path, OTHER_WEIGHTS)
}

fn check_file(path: &Path) -> Result<()> {
    let shown = path.display();
    if has_extension(path, &["safetensors"]) {
        return Ok(());
    }
    if has_extension(path, PICKLES) {
        let why = "can run code when it is loaded and is not read; convert it to safetensors first";
        return Err(not_found(path, format!("`{shown}` is a pickle checkpoint: it {why}")));
    }
    let allowed = "allowed: a .safetensors file, or a directory that holds some";
    Err(not_found(path, format!("`{shown}` is not a file of weights that can be read, {allowed}")))
}

/// The components that `model_index.json` names and that have weights. Schedulers and tokenizers have none. Weights in
/// the pipeline's own directory are the same again in one file, and are left alone.
fn pipeline(directory: &Path) -> Result<Vec<Component>> {
    let path = directory.join(PIPELINE);
    let members: BTreeMap<String, serde_json::Value> = read_json(&path, "a JSON object of components")?;
    let mut components = Vec::new();
    for (key, value) in members {
        // [library, class]; the class is null for an optional component that is not there.
        if !matches!(value.as_array().map(Vec::as_slice), Some([_, class]) if !class.is_null()) {
            continue;
        }
        if !is_plain(&key) {
            let message = format!("component '{}' is not the name of a directory in it", shown(&key));
            return Err(defect(&path, None, message));
        }
        let member = directory.join(&key);
        if member.is_dir() {
            components.extend(component(&member, key)?);
        }
    }
    if components.is_empty() {
        let why = format!("no component that {PIPELINE} names has *.safetensors files");
        return Err(not_found(directory, format!("no weights in `{}`: {why}", directory.display())));
    }
    Ok(components)
}

/// The weights in `directory`: those that its index names, else every safetensors file that is not a variant of
/// another. `None` if there are no weights at all.
fn component(directory: &Path, component: String) -> Result<Option<Component>> {
    let entries: Vec<PathBuf> = list(directory)?.into_iter().filter(|entry| !entry.is_dir()).collect();
    let indexes = without_variants(&entries, ".safetensors.index.json");
    if let [index] = indexes.as_slice() {
        let (index, files) = sharded(directory, index)?;
        return Ok(Some(Component { name: component, files, index: Some(index) }));
    }
    if let [first, second, ..] = indexes.as_slice() {
        let message = format!("is an index beside `{}`, expected one: remove the others", name(second));
        return Err(defect(first, None, message));
    }
    let files = without_variants(&entries, ".safetensors");
    if !files.is_empty() {
        return Ok(Some(Component { name: component, files, index: None }));
    }
    match entries.iter().find(|entry| has_extension(entry, PICKLES)) {
        Some(pickle) => {
            let why = "they can run code when they are loaded and are not read; convert them to safetensors first";
            let message = format!("`{}` has pickle checkpoints only (`{}`): {why}", directory.display(), name(pickle));
            Err(not_found(directory, message))
        }
        None => Ok(None),
    }
}

/// The files whose names end with `suffix`. `NAME.VARIANT` + suffix holds the tensors of `NAME` + suffix again, in
/// another precision (`fp16`) or from another stage of training (`non_ema`): it counts only where `NAME` is not there.
fn without_variants(entries: &[PathBuf], suffix: &str) -> Vec<PathBuf> {
    let stems: BTreeMap<String, &PathBuf> = entries
        .iter()
        .filter_map(|entry| name(entry).strip_suffix(suffix).map(|stem| (stem.to_string(), entry)))
        .collect();
    let is_variant = |stem: &str| {
        // `llama-3.1` is no variant of `llama-3`.
        stem.rsplit_once('.').is_some_and(|(base, variant)| {
            variant.starts_with(|c: char| c.is_ascii_alphabetic()) && stems.contains_key(base)
        })
    };
    stems.iter().filter(|(stem, _)| !is_variant(stem)).map(|(_, entry)| entry.to_path_buf()).collect()
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Reads an index, and finds the files it names.
fn sharded(directory: &Path, path: &Path) -> Result<(Index, Vec<PathBuf>)> {
    let ShardIndex { weight_map } = read_json(path, "a JSON object with weight_map, from tensor to file")?;
    let mut files = BTreeSet::new();
    for (tensor, file) in &weight_map {
        if files.contains(file.as_str()) {
            continue;
        }
        if !is_plain(file) || !has_extension(Path::new(file), &["safetensors"]) {
            let message = format!("is in '{}', expected the name of a .safetensors file beside the index", shown(file));
            return Err(defect(path, Some(tensor), message));
        }
        if !directory.join(file).is_file() {
            let message = format!("is in `{}`, which is not there: get the missing file", shown(file));
            return Err(defect(path, Some(tensor), message));
        }
        files.insert(file.as_str());
    }
    if files.is_empty() {
        return Err(defect(path, None, "weight_map is empty, expected the file of each tensor"));
    }
    let files = files.into_iter().map(|file| directory.join(file)).collect();
    Ok((Index { path: path.to_path_buf(), weight_map }, files))
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path, expected: &str) -> Result<T> {
    let bytes = fs::read(path).map_err(|e| QuantError::io(path, e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| defect(path, None, format_args!("{}; expected {expected}", shown(&e.to_string()))))
}

/// The entries of a directory in the order of their names, hidden ones left out.
fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let entries = entries.map_err(|e| QuantError::io(directory, e))?;
    let mut paths: Vec<PathBuf> =
        entries.iter().map(fs::DirEntry::path).filter(|path| !name(path).starts_with('.')).collect();
    paths.sort();
    Ok(paths)
}

/// True for the name of a file or directory that stays where it is joined to, on any platform.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(PathPart::Normal(_)), None)) && !name.contains(['/', '\\', ':', '\0'])
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|found| extensions.iter().any(|extension| found.eq_ignore_ascii_case(extension)))
}

/// The last part of a path, as text.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn not_found(path: &Path, message: String) -> QuantError {
    QuantError::ModelNotFound { path: path.to_path_buf(), message }
}
