//! The directory a job writes to before its output is complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::journal::{Found, Journal, RunIdentity};
use super::manifest::FileEntry;
use super::part::hash_of;
use crate::model::MANIFEST;
use crate::{QuantError, Result};

/// The journal's name in the staging directory.
const JOURNAL: &str = "journal.jsonl";

/// Where a run writes before its output is complete: `OUT.partial`.
///
/// Dropped before it was completed, it leaves the parts that are finished for a later run; if there are none, nothing.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    out: PathBuf,
    journal: Journal,
    /// Whether a later run has a use for what is there.
    is_of_use: bool,
}

/// What an earlier run left for this one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// There was none, or nobody asked for it.
    Nothing,
    /// Parts that are finished.
    Parts(usize),
    /// Nothing that this run can use, for this reason.
    Unlike(String),
}

impl Staging {
    /// Makes the directory beside the output, which must not exist. With `resume`, a directory that the same run left
    /// before is gone on with, and one of another run replaced.
    ///
    /// # Errors
    /// If the output exists, if another run is at work on it or, without `resume`, has left something, and if the
    /// directory cannot be made.
    pub fn open(out: &Path, resume: bool, identity: &RunIdentity) -> Result<(Self, Earlier)> {
        let out = absolute(out)?;
        if out.symlink_metadata().is_ok() {
            return Err(QuantError::Configuration(format!(
                "`{}` exists already: remove it, or choose another output",
                out.display()
            )));
        }
        let path = partial(&out);
        let mut earlier = Earlier::Nothing;
        if path.symlink_metadata().is_ok() {
            let is_intact = |file: &FileEntry| hash_of(&path.join(&file.path)).is_ok_and(|found| found == *file.sha256);
            match Journal::open(&path.join(JOURNAL), identity, is_intact)? {
                Found::Running => {
                    return Err(in_the_way(&path, "belongs to a run that is still going on: wait for it"));
                }
                _ if !resume => {
                    let why = "is left from a run that was interrupted: continue it with --resume, remove it";
                    return Err(in_the_way(&path, why));
                }
                Found::Same(journal) => {
                    let earlier = Earlier::Parts(journal.parts());
                    return Ok((Self { path, out, journal, is_of_use: true }, earlier));
                }
                Found::Other(reason) => {
                    fs::remove_dir_all(&path).map_err(|e| QuantError::io(&path, e))?;
                    earlier = Earlier::Unlike(reason);
                }
            }
        }
        fs::create_dir(&path).map_err(|e| create_error(&path, e))?;
        let journal = Journal::create(&path.join(JOURNAL), identity).inspect_err(|_| {
            // The error that is about to be told says more than that this one failed too.
            let _ = fs::remove_dir_all(&path);
        })?;
        let staging = Self { path, out, journal, is_of_use: true };
        staging.create_directory(Path::new("weights"))?;
        Ok((staging, earlier))
    }

    /// Says that no later run could go on from here.
    pub fn discard(&mut self) {
        self.is_of_use = false;
    }

    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Whether the directory stays for a later run, should this one end now.
    pub fn stays(&self) -> bool {
        self.is_of_use && self.journal.parts() > 0
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn create_directory(&self, relative: &Path) -> Result<()> {
        let path = self.path.join(relative);
        fs::create_dir_all(&path).map_err(|e| QuantError::io(&path, e))
    }

    /// Copies a file of the source, given by its path in it.
    pub fn copy(&self, source: &Path, relative: &Path) -> Result<()> {
        if relative == Path::new(MANIFEST) {
            return Ok(());
        }
        if let Some(parent) = relative.parent() {
            self.create_directory(parent)?;
        }
        let (from, to) = (source.join(relative), self.path.join(relative));
        File::open(&from).map_err(|e| QuantError::io(&from, e))?;
        fs::copy(&from, &to).map(drop).map_err(|e| QuantError::io(&to, e))
    }

    /// Writes the manifest and gives the directory its name. Both are durable when this returns.
    pub fn complete(self, manifest: &str) -> Result<()> {
        let path = self.path.join(MANIFEST);
        fs::write(&path, manifest).map_err(|e| QuantError::io(&path, e))?;
        let journal = self.path.join(JOURNAL);
        fs::remove_file(&journal).map_err(|e| QuantError::io(&journal, e))?;
        for synced in [path.as_path(), &self.path.join("weights"), &self.path] {
            sync(synced)?;
        }
        // Rename would replace an empty directory that somebody made meanwhile; anything else there makes it fail.
        fs::rename(&self.path, &self.out).map_err(|e| QuantError::io(&self.out, e))?;
        self.out.parent().map_or(Ok(()), sync)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Of a completed run the directory has another name by now.
        if !self.stays() && self.path.exists() {
            // A worker may still be creating a file; the directory is then empty at the second try.
            let _ = fs::remove_dir_all(&self.path).or_else(|_| fs::remove_dir_all(&self.path));
        }
    }
}

/// Where a run that is to write `out` keeps what is unfinished, if it, or a run before it, left something there.
pub fn unfinished_run(out: &Path) -> Option<PathBuf> {
    let path = partial(out);
    path.is_dir().then_some(path)
}

fn partial(out: &Path) -> PathBuf {
    let mut name = out.file_name().map(OsString::from).unwrap_or_default();
    name.push(".partial");
    out.with_file_name(name)
}

fn in_the_way(path: &Path, why: &str) -> QuantError {
    QuantError::Configuration(format!("`{}` {why}, or choose another output", path.display()))
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| QuantError::io(path, e))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().is_empty() || path.file_name().is_none() {
        return Err(QuantError::Configuration(format!("`{}` cannot be an output directory", path.display())));
    }
    std::path::absolute(path).map_err(|e| QuantError::io(path, e))
}

/// Says what is in the way of creating the output.
fn create_error(path: &Path, error: io::Error) -> QuantError {
    let parent = path.parent().unwrap_or(path).display();
    let advice = match error.kind() {
        io::ErrorKind::NotFound => format!("the directory `{parent}` does not exist: create it first"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("the directory `{parent}` is not writable: choose another output")
        }
        _ => return QuantError::io(path, error),
    };
    QuantError::Io { path: path.to_path_buf(), source: io::Error::new(error.kind(), advice) }
}
