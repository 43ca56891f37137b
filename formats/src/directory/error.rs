//! Why a directory is not one of a model.

use std::fmt;
use std::path::{Path, PathBuf};

use super::left_out::listed;
use crate::names::shown;
use crate::schemes::QuantizedSource;

/// Why a directory is not one of a model. `E` is the error of the store that lists and reads it.
#[derive(Debug, Clone, PartialEq)]
pub enum DirectoryError<E> {
    /// The store cannot list or read.
    Store(E),
    /// There is nothing that can be read.
    Missing(Missing),
    /// The weights are there in several variants, or not in the one that was asked for.
    Variant {
        /// The directory, relative to the model's; empty for itself.
        directory: PathBuf,
        /// The variant that was asked for, if one was.
        asked: Option<String>,
        /// The variants that are there.
        there: Vec<String>,
    },
    /// A file contradicts the directory, or is not understood.
    File {
        /// The file, relative to the directory.
        file: PathBuf,
        /// The tensor, where one is wrong.
        tensor: Option<String>,
        /// What is wrong.
        problem: FileProblem,
    },
}

impl<E> DirectoryError<E> {
    pub(super) fn file(file: &Path, tensor: Option<&str>, problem: FileProblem) -> Self {
        Self::File { file: file.to_path_buf(), tensor: tensor.map(str::to_string), problem }
    }
}

/// What is at a path instead of weights that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// Nothing.
    Nothing,
    /// A file that is not one of weights.
    NotWeights,
    /// A Python pickle.
    Pickle,
    /// A directory without weights.
    NoWeights,
    /// A directory whose weights are Python pickles.
    PicklesOnly {
        /// The directory, relative to the model's; empty for itself.
        directory: PathBuf,
        /// One of the pickles.
        example: String,
    },
    /// A directory of several GGUF files, which are other precisions of one model, or parts of it.
    SeveralGguf {
        /// The files, relative to the directory.
        files: Vec<PathBuf>,
    },
    /// A directory without weights of its own, with others below it that have some.
    InDirectories {
        /// Directories with weights, relative to the model's.
        directories: Vec<PathBuf>,
    },
    /// A repository in the cache of the Hugging Face Hub.
    CacheRepository {
        /// The directories of its versions, relative to it, at least one; that of `main` first.
        versions: Vec<PathBuf>,
    },
    /// Nothing, and the path reads like the name of a repository on the Hugging Face Hub.
    HubId,
    /// Nothing, and the path reads like an address.
    Address,
    /// A directory whose weights have not been fetched to their end.
    Unfinished {
        /// The directory, relative to the model's; empty for itself.
        directory: PathBuf,
        /// What is left of a download.
        example: String,
    },
    /// Shards of a model that are not there.
    Shards {
        /// The directory, relative to the model's; empty for itself.
        directory: PathBuf,
        /// The files that are missing, at least one.
        files: Vec<PathBuf>,
        /// How many shards there should be.
        count: u32,
    },
    /// A pipeline none of whose components has weights.
    NoComponent,
    /// A pipeline some of whose components lack their weights.
    Components {
        /// The components, at least one.
        names: Vec<String>,
    },
    /// Weights that another program quantized.
    Quantized(Box<QuantizedSource>),
    /// A quantized model, where one of weights was expected.
    AlreadyQuantized,
    /// A model of weights or something else, where a quantized one was expected.
    NotQuantized,
    /// Weight files that hold no tensors.
    NoTensors,
}

impl Missing {
    /// The sentence for a path.
    // Long because: it has a sentence for each case.
    pub fn at(&self, path: &Path) -> impl fmt::Display {
        let shown = path.display();
        match self {
            Self::Nothing => format!(
                "no model at `{shown}`: no such file or directory; give a .safetensors file or a directory that holds some"
            ),
            Self::NotWeights => format!(
                "`{shown}` is not a file of weights that can be read, allowed: a .safetensors or .gguf file, or a directory \
                 that holds some"
            ),
            Self::Pickle => format!(
                "`{shown}` is a pickle checkpoint: it can run code when it is loaded and is not read; convert it to \
                 safetensors first"
            ),
            Self::NoWeights => format!(
                "no weights in `{shown}`: looked for *.safetensors, *.sft, *.gguf, *.safetensors.index.json and {}",
                super::PIPELINE
            ),
            Self::PicklesOnly { directory, example } => format!(
                "`{}` has pickle checkpoints only (`{example}`): they can run code when they are loaded and are not read; \
                 convert them to safetensors first",
                joined(path, directory).display()
            ),
            Self::SeveralGguf { files } => {
                format!("`{shown}` has several GGUF files ({}): give one of them", listed(files))
            }
            Self::InDirectories { directories } => format!(
                "`{shown}` has no weights itself, but there are some in {}: give one of these directories",
                listed(&joined_all(path, directories))
            ),
            Self::CacheRepository { versions } => format!(
                "`{shown}` is a repository of the Hugging Face cache: give the directory of one version, {}",
                listed(&joined_all(path, versions))
            ),
            Self::HubId => format!(
                "no model at `{shown}`: no such file or directory; if this is the name of one on the Hugging Face Hub, fetch \
                 it with `hf download {shown}` and give the directory that this prints"
            ),
            Self::Address => format!(
                "`{shown}` is not a path: models are read from disks; fetch the model first and give its file or directory"
            ),
            Self::Unfinished { directory, example } => format!(
                "`{}` has no whole file of weights, but `{example}`, a download that has not ended: continue it, or get the \
                 weights again",
                joined(path, directory).display()
            ),
            Self::Shards { directory, files, count } => format!(
                "`{}` is incomplete: of its {count} files of weights {} {} missing: get the missing files",
                joined(path, directory).display(),
                listed(files),
                if files.len() == 1 { "is" } else { "are" },
            ),
            Self::Components { names } => {
                let names: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
                format!(
                    "`{shown}` is incomplete: {0} names {1}, and there are no *.safetensors files of it: get the missing \
                     files, or if it is to be left out, give it [null, null] in {0}",
                    super::PIPELINE,
                    listed(&names)
                )
            }
            Self::Quantized(source) => format!("`{shown}` is quantized already: {source}; get the original weights"),
            Self::NoComponent => {
                format!("no weights in `{shown}`: no component that {} names has *.safetensors files", super::PIPELINE)
            }
            Self::AlreadyQuantized => {
                format!("`{shown}` is a quantized model already, expected one with *.safetensors files")
            }
            Self::NotQuantized => format!(
                "no quantized model at `{shown}`: it has no {}; give a directory that arrow-quant quantize wrote",
                crate::manifest::MANIFEST
            ),
            Self::NoTensors => format!("`{shown}` has no tensors"),
        }
    }
}

/// `path/relative`, without a slash at the end where there is nothing to join.
fn joined(path: &Path, relative: &Path) -> PathBuf {
    if relative.as_os_str().is_empty() { path.to_path_buf() } else { path.join(relative) }
}

fn joined_all(path: &Path, relative: &[PathBuf]) -> Vec<PathBuf> {
    relative.iter().map(|relative| joined(path, relative)).collect()
}

/// What is wrong with a file that describes a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileProblem {
    /// It is not the JSON that was expected.
    #[error("{error}; expected {expected}")]
    NotJson {
        /// What the parser says.
        error: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// There is another index beside it.
    #[error("is an index beside `{0}`, expected one: make a directory with links to the files of one of them")]
    SecondIndex(String),
    /// A component is not the name of a directory.
    #[error("component '{}' is not the name of a directory in it", shown(.0))]
    ComponentName(String),
    /// A shard is not the name of a file beside the index.
    #[error("is in '{}', expected the name of a .safetensors file beside the index", shown(.0))]
    ShardName(String),
    /// A shard is not there.
    #[error("is in `{}`, which is not there{}", shown(file), instead(whole))]
    ShardMissing {
        /// The file.
        file: String,
        /// Whether no file that the index names is there.
        none: bool,
        /// A file beside the index that is named like the whole model.
        whole: Option<String>,
    },
    /// The index names no file.
    #[error("weight_map is empty, expected the file of each tensor")]
    EmptyIndex,
    /// A tensor is in two files.
    #[error("is in `{first}` and in `{second}`, expected in one: move one file away")]
    TwoFiles {
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// A tensor is in another file than the index says.
    #[error("is in `{found}`, expected in `{}` by the index", shown(expected))]
    OtherShard {
        /// The file it is in.
        found: String,
        /// The file that the index names.
        expected: String,
    },
    /// A tensor is in a file, but not in the index.
    #[error("is in `{found}`, but the index does not name it; expected every tensor")]
    NotInIndex {
        /// The file it is in.
        found: String,
    },
    /// A tensor is in the index, but not in the file.
    #[error("is not in `{}`, where the index expects it: get the file again", shown(file))]
    NotInShard {
        /// The file that the index names.
        file: String,
    },
}

/// What to do without a shard, and that the whole may be there.
fn instead(whole: &Option<String>) -> String {
    let missing = ": get the missing file";
    whole.as_ref().map_or_else(
        || missing.to_string(),
        |whole| format!("{missing}, or if the index is stale, give `{}`, which is there", shown(whole)),
    )
}
