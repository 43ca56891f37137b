//! Which files of a directory are a model's weights. Directories come in the layouts of transformers and diffusers; no
//! header is read here, and no path from a file's contents is followed out of the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component as PathPart, Path, PathBuf};

use serde::Deserialize;

use crate::manifest::MANIFEST;
use crate::names::shown;

mod adapters;
mod choice;
mod elsewhere;
mod error;
mod files;
mod left_out;
mod pipeline;
#[cfg(test)]
mod tests;

pub use adapters::is_adapter;
pub use elsewhere::not_there;
pub use error::{DirectoryError, FileProblem, Missing};
pub use files::is_gguf;
use files::{is_configuration, is_of_other_format, is_pickle, is_weights, name};
pub use left_out::{LeftOut, Why};

/// What some programs begin a text with, which is no part of it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

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

/// What a directory holds of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The weights, by component.
    pub components: Vec<Component>,
    /// What was found beside them.
    pub left_out: Vec<LeftOut>,
}

/// What a directory holds of a model. Its components are:
///
/// - with a `*.safetensors.index.json`: the files that it names, each holding the tensors it says;
/// - without: all its `*.safetensors`, of which no shard may be missing;
/// - a diffusers pipeline, which has a `model_index.json`: each subdirectory that it names as a component, read as above.
///   None with weights may be missing;
/// - without any of them: its only GGUF file.
///
/// Of weights that are there more than once, one copy is read: the `variant` that is asked for (`fp16` of
/// `model.fp16.safetensors`), else the one without a variant; the names of transformers before `consolidated`; a whole file
/// before shards without an index.
///
/// # Errors
/// If there are no weights, some are missing, or an index contradicts the directory.
pub fn layout<D: Directory>(directory: &D, variant: Option<&str>) -> Result<Layout, D::Error> {
    let entries = directory.list(Path::new("")).map_err(DirectoryError::Store)?;
    let has = |name: &str| entries.iter().any(|entry| !entry.is_directory() && entry.path == Path::new(name));
    if has(PIPELINE) {
        return pipeline::pipeline(directory, &entries, variant);
    }
    match choice::choose(directory, Path::new(""), &entries, variant)? {
        Some(chosen) => {
            pipeline::refuse_unknown_variant(std::slice::from_ref(&chosen), variant)?;
            Ok(Layout { components: vec![chosen.component], left_out: chosen.left_out })
        }
        None if has(MANIFEST) => Err(DirectoryError::Missing(Missing::AlreadyQuantized)),
        None if entries.iter().any(|entry| !entry.is_directory() && is_gguf(&entry.path)) => only_gguf(&entries),
        None => Err(DirectoryError::Missing(elsewhere::without_weights(directory, &entries)?)),
    }
}

/// The only GGUF file of a directory that has no other weights.
fn only_gguf<E>(entries: &[Entry]) -> Result<Layout, E> {
    let files: Vec<_> = entries.iter().filter(|entry| !entry.is_directory() && is_gguf(&entry.path)).collect();
    match files.as_slice() {
        [file] => {
            let component = Component { name: String::new(), files: vec![file.path.clone()], index: None };
            Ok(Layout { components: vec![component], left_out: Vec::new() })
        }
        _ => {
            let files = files.into_iter().map(|file| file.path.clone()).collect();
            Err(DirectoryError::Missing(Missing::SeveralGguf { files }))
        }
    }
}

/// Refuses a file, by its name alone, that is not one of weights that can be read.
///
/// # Errors
/// What it is instead.
pub fn check_file(path: &Path) -> std::result::Result<(), Missing> {
    if is_weights(path) || is_gguf(path) {
        Ok(())
    } else if is_pickle(path) {
        Err(Missing::Pickle)
    } else {
        Err(Missing::NotWeights)
    }
}

/// The files beside the weights that a model needs, in order: settings, tokenizers, templates, its code and licences; of a
/// pipeline those of its subdirectories too. What is below another quantized model is left out.
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
            EntryKind::File if is_configuration(&entry.path) => found.push(entry.path),
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

/// True for the names of files of weights, in any format.
pub fn is_weights_of_any_format(path: &Path) -> bool {
    is_weights(path) || is_of_other_format(path)
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
    let weight_map: BTreeMap<String, String> = weight_map
        .into_iter()
        .map(|(tensor, file)| (tensor, file.strip_prefix("./").map_or(file.clone(), str::to_string)))
        .collect();
    let is_there = |file: &str| there.iter().any(|found| *found == component.join(file));
    let (mut files, mut missing) = (BTreeSet::new(), None);
    for (tensor, file) in &weight_map {
        if !is_plain(file) || !is_weights(Path::new(file)) {
            return Err(DirectoryError::file(index, Some(tensor), FileProblem::ShardName(file.clone())));
        }
        if !files.contains(file.as_str()) && !is_there(file) {
            missing.get_or_insert((tensor, file));
        }
        files.insert(file.as_str());
    }
    if files.is_empty() {
        return Err(DirectoryError::file(index, None, FileProblem::EmptyIndex));
    }
    if let Some((tensor, file)) = missing {
        let none = !files.iter().any(|file| is_there(file));
        let problem = FileProblem::ShardMissing { file: file.clone(), none, whole: None };
        return Err(DirectoryError::file(index, Some(tensor), problem));
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
    serde_json::from_slice(bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes)).map_err(|error| {
        DirectoryError::file(path, None, FileProblem::NotJson { error: shown(&error.to_string()), expected })
    })
}

/// True for the name of a file or directory that stays where it is joined to, on any platform.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(PathPart::Normal(_)), None)) && !name.contains(['/', '\\', ':', '\0'])
}
