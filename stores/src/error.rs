//! Why a store cannot do what it was asked.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why a store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file or directory cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file was modified while it was open.
    #[error("{}: {change}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// How it changed.
        change: Change,
    },
    /// A range is not in the file.
    #[error("{}: bytes {} to {} were asked for, and the file has {length}", path.display(), range.start, range.end)]
    Range {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        range: Range<u64>,
        /// Bytes of the file.
        length: u64,
    },
    /// A path or URL is not among those that are allowed. The message tells nothing that the client did not know.
    #[error("`{}` is outside the directories this server allows", path.display())]
    Outside {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// A directory is too large to be searched for links that lead out.
    #[error("`{}` has too many directories: name one model in it", path.display())]
    TooManyDirectories {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// What an operator wants to allow cannot be allowed.
    #[error(
        "`{text}` {problem}; give a directory or file that exists, or a URL of an object store (s3://bucket/prefix)"
    )]
    Allow {
        /// The path or URL.
        text: String,
        /// What is wrong with it.
        problem: AllowProblem,
    },
    /// A text that names no place models can be read from.
    #[error("`{text}` cannot be read: give a path of this machine")]
    NotALocation {
        /// The text.
        text: String,
    },
    /// There is no such object store here.
    #[error("this server cannot read {store}: it has files alone")]
    NoStore {
        /// The store's scheme, host and port.
        store: String,
    },
}

/// How a file changed while it was in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Change {
    /// It has another length.
    #[error("it had {before} bytes when it was opened and has {now}")]
    Length {
        /// Bytes when it was opened.
        before: u64,
        /// Bytes that it has now.
        now: u64,
    },
    /// It has the same length, and was written to.
    #[error("it was written to after it was opened")]
    Written,
}

/// Why something cannot be allowed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllowProblem {
    /// A file URL of another machine.
    #[error("is not a path of this machine")]
    OtherMachine,
    /// A URL whose path is not a prefix of objects.
    #[error("is not a prefix: {0}")]
    Prefix(object_store::path::Error),
    /// A path that is not there.
    #[error("cannot be found ({0})")]
    NotFound(io::ErrorKind),
}

impl StoreError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn outside(path: &Path) -> Self {
        Self::Outside { path: path.to_path_buf() }
    }
}
