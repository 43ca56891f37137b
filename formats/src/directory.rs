//! Which files of a directory are a model's weights. Directories come in the layouts of transformers and diffusers; no
//! header is read here, and no path from a file's contents is followed out of the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component as PathPart, Path, PathBuf};

use serde::Deserialize;

use crate::manifest::MANIFEST;
use crate::names::shown;

mod error;
#[cfg(test)]
mod tests;

pub use error::{DirectoryError, FileProblem, Missing};

/// Extensions of checkpoints that are Python pickles.
const PICKLES: &[&str] = &["bin", "pt", "pth", "ckpt", "pkl"];

/// Extensions of weights in formats that are not read either.
const OTHER_WEIGHTS: &[&str] = &["gguf", "onnx", "onnx_data", "msgpack", "h5"];

/// Tables and arrays, such as a calibration: data about a model that a quantized one does not need.
const DATA: &[&str] = &["parquet", "arrow", "ipc", "feather", "npy", "npz"];

/// The file that makes a directory a diffusers pipeline.
pub const PIPELINE: &str = "model_index.json";

/// A directory as a store lists it. Paths are relative to it.
pub trait Directory {
    /// Why the store cannot list or read.
    type Error;

    /// What is in a directory below it, the empty path for itself, in the order of the names; hidden entries left out.
    ///
    /// # Errors
    /// If it cannot be listed.
    fn list(&self, directory: &Path) -> std::result::Result<Vec<Entry>, Self::Error>;

    /// Its own identity, to be compared with those of [`EntryKind::Directory`].
    ///
    /// # Errors
    /// If it cannot be told.
    fn identity(&self) -> std::result::Result<PathBuf, Self::Error>;

    /// The bytes of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    fn read(&self, file: &Path) -> std::result::Result<Vec<u8>, Self::Error>;
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, relative to the directory that was opened.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry of a directory is, links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file, or a link to nothing, which fails when it is read.
    File,
    /// A directory. Its identity is equal for two paths that lead to the same one.
    Directory(PathBuf),
    /// A socket or pipe: never read, since reading one could wait for ever.
    Special,
}

impl Entry {
    fn is_directory(&self) -> bool {
        matches!(self.kind, EntryKind::Directory(_))
    }
}

/// The weight files of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// The directory's name in a pipeline, empty for a plain model.
    pub name: String,
    /// In the order of their names, at least one.
    pub files: Vec<PathBuf>,
    /// Of a sharded component.
    pub index: Option<Index>,
}

/// Which file each tensor of a sharded component is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The index file.
    pub path: PathBuf,
    /// From tensor to file name.
    pub weight_map: BTreeMap<String, String>,
}

type Result<T, E> = std::result::Result<T, DirectoryError<E>>;

/// The components of the model in a directory:
///
/// - with a `*.safetensors.index.json`: the files that it names, each holding the tensors it says;
/// - without: all its `*.safetensors`, save variants (`model.fp16.safetensors` beside `model.safetensors`);
/// - a diffusers pipeline, which has a `model_index.json`: each subdirectory that it names as a component and that has
///   weights, read as above.
///
/// # Errors
/// If there are no weights, or an index contradicts the directory.
pub fn components<D: Directory>(directory: &D) -> Result<Vec<Component>, D::Error> {
    let entries = directory.list(Path::new("")).map_err(DirectoryError::Store)?;
    let has = |name: &str| entries.iter().any(|entry| !entry.is_directory() && entry.path == Path::new(name));
    if has(PIPELINE) {
        return pipeline(directory, &entries);
    }
    match component(directory, Path::new(""), &entries)? {
        Some(component) => Ok(vec![component]),
        None if has(MANIFEST) => Err(DirectoryError::Missing(Missing::AlreadyQuantized)),
        None => Err(DirectoryError::Missing(Missing::NoWeights)),
    }
}

/// Refuses a file, by its name alone, that is not one of weights that can be read.
///
/// # Errors
/// What it is instead.
pub fn check_file(path: &Path) -> std::result::Result<(), Missing> {
    if has_extension(path, &["safetensors"]) {
        Ok(())
    } else if has_extension(path, PICKLES) {
        Err(Missing::Pickle)
    } else {
        Err(Missing::NotWeights)
    }
}

/// The files beside the weights in a model directory, such as `config.json` and tokenizers, in order; of a pipeline those
/// of its subdirectories too. Hidden files, weights in any format and their indexes are left out, and so are tables and
/// arrays of data and what is below another quantized model.
///
/// # Errors
/// If a directory cannot be listed.
pub fn config_files<D: Directory>(directory: &D, is_pipeline: bool) -> std::result::Result<Vec<PathBuf>, D::Error> {
    let mut found = Vec::new();
    collect(directory, Path::new(""), is_pipeline, &mut vec![directory.identity()?], &mut found)?;
    found.sort();
    Ok(found)
}

/// `trail` are the identities of the directories from the root to the one listed: links may lead back to one of them.
fn collect<D: Directory>(
    directory: &D,
    below: &Path,
    recursive: bool,
    trail: &mut Vec<PathBuf>,
    found: &mut Vec<PathBuf>,
) -> std::result::Result<(), D::Error> {
    let entries = directory.list(below)?;
    if !below.as_os_str().is_empty() && entries.iter().any(|entry| entry.path.file_name() == Some(MANIFEST.as_ref())) {
        return Ok(());
    }
    for entry in entries {
        match entry.kind {
            EntryKind::File if !is_weights(&entry.path) && !has_extension(&entry.path, DATA) => found.push(entry.path),
            EntryKind::Directory(identity) if recursive && !trail.contains(&identity) => {
                trail.push(identity);
                collect(directory, &entry.path, recursive, trail, found)?;
                trail.pop();
            }
            EntryKind::File | EntryKind::Directory(_) | EntryKind::Special => {}
        }
    }
    Ok(())
}

/// True for weights of any format and for the indexes of sharded weights.
pub fn is_weights(path: &Path) -> bool {
    let name = name(path);
    let index = name.ends_with(".json") && (name.contains(".safetensors.index.") || name.contains(".bin.index."));
    index || has_extension(path, &["safetensors"]) || has_extension(path, PICKLES) || has_extension(path, OTHER_WEIGHTS)
}

/// The components that `model_index.json` names and that have weights. Schedulers and tokenizers have none. Weights in
/// the pipeline's own directory are the same again in one file, and are left alone.
fn pipeline<D: Directory>(directory: &D, entries: &[Entry]) -> Result<Vec<Component>, D::Error> {
    let members: BTreeMap<String, serde_json::Value> =
        read_json(directory, Path::new(PIPELINE), "a JSON object of components")?;
    let mut components = Vec::new();
    for (key, value) in members {
        // [library, class]; the class is null for an optional component that is not there.
        if !matches!(value.as_array().map(Vec::as_slice), Some([_, class]) if !class.is_null()) {
            continue;
        }
        if !is_plain(&key) {
            return Err(DirectoryError::file(Path::new(PIPELINE), None, FileProblem::ComponentName(key)));
        }
        let path = PathBuf::from(&key);
        if entries.iter().any(|entry| entry.path == path && entry.is_directory()) {
            let inner = directory.list(&path).map_err(DirectoryError::Store)?;
            components.extend(component(directory, &path, &inner)?);
        }
    }
    if components.is_empty() {
        return Err(DirectoryError::Missing(Missing::NoComponent));
    }
    Ok(components)
}

/// The weights among the entries of a directory: those that its index names, else every safetensors file that is not a
/// variant of another. `None` if there are no weights at all.
fn component<D: Directory>(directory: &D, path: &Path, entries: &[Entry]) -> Result<Option<Component>, D::Error> {
    let files: Vec<&Path> =
        entries.iter().filter(|entry| !entry.is_directory()).map(|entry| entry.path.as_path()).collect();
    let component = name(path);
    let indexes = without_variants(&files, ".safetensors.index.json");
    if let [index] = indexes.as_slice() {
        let (index, files) = sharded(directory, path, index, &files)?;
        return Ok(Some(Component { name: component, files, index: Some(index) }));
    }
    if let [first, second, ..] = indexes.as_slice() {
        return Err(DirectoryError::file(first, None, FileProblem::SecondIndex(name(second))));
    }
    let weights = without_variants(&files, ".safetensors");
    if !weights.is_empty() {
        let files = weights.into_iter().map(Path::to_path_buf).collect();
        return Ok(Some(Component { name: component, files, index: None }));
    }
    match files.iter().find(|file| has_extension(file, PICKLES)) {
        Some(pickle) => {
            let missing = Missing::PicklesOnly { directory: path.to_path_buf(), example: name(pickle) };
            Err(DirectoryError::Missing(missing))
        }
        None => Ok(None),
    }
}

/// The files whose names end with `suffix`. `NAME.VARIANT` + suffix holds the tensors of `NAME` + suffix again, in
/// another precision (`fp16`) or from another stage of training (`non_ema`): it counts only where `NAME` is not there.
fn without_variants<'a>(files: &[&'a Path], suffix: &str) -> Vec<&'a Path> {
    let stems: BTreeMap<String, &Path> =
        files.iter().filter_map(|file| name(file).strip_suffix(suffix).map(|stem| (stem.to_string(), *file))).collect();
    let is_variant = |stem: &str| {
        // `llama-3.1` is not a variant of `llama-3`.
        stem.rsplit_once('.').is_some_and(|(base, variant)| {
            variant.starts_with(|c: char| c.is_ascii_alphabetic()) && stems.contains_key(base)
        })
    };
    stems.iter().filter(|(stem, _)| !is_variant(stem)).map(|(_, file)| *file).collect()
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Reads an index, and finds the files it names.
fn sharded<D: Directory>(
    directory: &D,
    component: &Path,
    index: &Path,
    there: &[&Path],
) -> Result<(Index, Vec<PathBuf>), D::Error> {
    let ShardIndex { weight_map } = read_json(directory, index, "a JSON object with weight_map, from tensor to file")?;
    let mut files = BTreeSet::new();
    for (tensor, file) in &weight_map {
        if files.contains(file.as_str()) {
            continue;
        }
        let wrong = |problem: FileProblem| Err(DirectoryError::file(index, Some(tensor), problem));
        if !is_plain(file) || !has_extension(Path::new(file), &["safetensors"]) {
            return wrong(FileProblem::ShardName(file.clone()));
        }
        let path = component.join(file);
        if !there.iter().any(|found| *found == path) {
            return wrong(FileProblem::ShardMissing(file.clone()));
        }
        files.insert(file.as_str());
    }
    if files.is_empty() {
        return Err(DirectoryError::file(index, None, FileProblem::EmptyIndex));
    }
    let files = files.into_iter().map(|file| component.join(file)).collect();
    Ok((Index { path: index.to_path_buf(), weight_map }, files))
}

/// A tensor that was found in a file of a component.
#[derive(Debug, Clone, Copy)]
pub struct FoundTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// The file it is in.
    pub file: &'a Path,
}

impl Component {
    /// Checks that no tensor is in two files, that each is in the file which the index names, and that neither knows a
    /// tensor that the other does not: it would be lost in silence. `tensors` are in the order of their names.
    ///
    /// # Errors
    /// Naming the file and the tensor.
    pub fn check<E>(&self, tensors: &[FoundTensor<'_>]) -> Result<(), E> {
        if let Some([first, second]) = tensors.array_windows().find(|[first, second]| first.name == second.name) {
            let problem = FileProblem::TwoFiles { first: self.shown(first.file), second: self.shown(second.file) };
            return Err(DirectoryError::file(first.file, Some(first.name), problem));
        }
        let Some(index) = &self.index else { return Ok(()) };
        for tensor in tensors {
            let found = name(tensor.file);
            let problem = match index.weight_map.get(tensor.name) {
                Some(expected) if *expected == found => continue,
                Some(expected) => FileProblem::OtherShard { found, expected: expected.clone() },
                None => FileProblem::NotInIndex { found },
            };
            return Err(DirectoryError::file(&index.path, Some(tensor.name), problem));
        }
        let is_there = |name: &str| tensors.binary_search_by(|tensor| tensor.name.cmp(name)).is_ok();
        match index.weight_map.iter().find(|(name, _)| !is_there(name)) {
            Some((name, file)) => {
                Err(DirectoryError::file(&index.path, Some(name), FileProblem::NotInShard { file: file.clone() }))
            }
            None => Ok(()),
        }
    }

    /// A file of the component as users see it.
    fn shown(&self, file: &Path) -> String {
        if self.name.is_empty() { name(file) } else { format!("{}/{}", self.name, name(file)) }
    }
}

/// Reads a JSON file; `expected` says what it should hold.
///
/// # Errors
/// If it cannot be read or holds something else.
pub fn read_json<D: Directory, T: serde::de::DeserializeOwned>(
    directory: &D,
    path: &Path,
    expected: &'static str,
) -> Result<T, D::Error> {
    let bytes = directory.read(path).map_err(DirectoryError::Store)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        DirectoryError::file(path, None, FileProblem::NotJson { error: shown(&error.to_string()), expected })
    })
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
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
