//! What a directory holds beside the model that is read from it.

use std::fmt;
use std::path::PathBuf;

use crate::names::shown;

/// Files that were found beside a model's weights and are no part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The files, relative to the model's directory, at least one.
    pub files: Vec<PathBuf>,
    /// Why.
    pub why: Why,
}

/// Why files are no part of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// They are the same weights in another precision, or from another stage of training.
    Variant {
        /// The variant that is read; `None` for the weights without one.
        taken: Option<String>,
    },
    /// They are the same weights with the names of their makers' program.
    Consolidated,
    /// They change the weights of a model.
    Adapter,
    /// The index does not name them.
    NotInIndex {
        /// The index.
        index: String,
    },
    /// An index names files of which none is there, and the whole is there in one file.
    StaleIndex {
        /// The file that is read.
        whole: String,
    },
    /// An index whose files are not there, beside weights of another variant.
    IndexAlone,
    /// They are shards, and the whole is there in one file.
    WholeFile {
        /// The file that is read.
        whole: String,
    },
    /// The pipeline does not name them.
    NotInPipeline,
    /// Their format is not read.
    Format,
    /// They are GGUF files beside safetensors.
    Gguf,
    /// Their download did not end.
    Unfinished,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "left out: {}: {}", listed(&self.files), self.why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variant { taken: None } => f.write_str("a variant of the weights that are read"),
            Self::Variant { taken: Some(variant) } => {
                write!(f, "the same weights as those of the variant {} that are read", shown(variant))
            }
            Self::Consolidated => f.write_str("the same weights as those that are read, with other names"),
            Self::Adapter => f.write_str("an adapter, which is not merged into the weights"),
            Self::NotInIndex { index } => write!(f, "weights that `{}` does not name", shown(index)),
            Self::StaleIndex { whole } => {
                write!(f, "an index of files that are not there, probably stale; `{}` is read", shown(whole))
            }
            Self::IndexAlone => f.write_str("an index of files that are not there"),
            Self::WholeFile { whole } => write!(f, "shards beside the whole file; `{}` is read", shown(whole)),
            Self::NotInPipeline => write!(f, "weights that {} does not name", super::PIPELINE),
            Self::Gguf => f.write_str("GGUF beside safetensors; give the file to read it"),
            Self::Format => f.write_str("weights in a format that is not read"),
            Self::Unfinished => f.write_str("a download that has not ended"),
        }
    }
}

/// `a`, `b`, `c` and 4 more.
pub(super) fn listed(files: &[PathBuf]) -> String {
    const MOST: usize = 3;
    let named: Vec<String> =
        files.iter().take(MOST).map(|file| format!("`{}`", shown(&file.to_string_lossy()))).collect();
    match files.len().saturating_sub(MOST) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}
