//! The directory a job writes to before its output is complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_quant_formats::ContentHash;
use arrow_quant_formats::manifest::{FileEntry, MANIFEST, Manifest};

use super::journal::{Found, Journal, LeftJournal, RunIdentity};
use crate::model::hash_of;
use crate::targets::{Target, UNFINISHED};
use crate::{Model, OutputProblem, QuantError, Result};

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
    target: &'static dyn Target,
    /// Whether nothing is left to be done when it is dropped.
    has_ended: AtomicBool,
}

/// What an earlier run left for this one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// There was none, or the job was not asked to resume.
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
    pub(super) fn open(
        out: &Path,
        resume: bool,
        identity: &RunIdentity,
        target: &'static dyn Target,
    ) -> Result<(Self, Earlier)> {
        let left = Self::look(out, resume)?;
        let out = absolute(out)?;
        let path = partial(&out);
        let (journal, earlier) = match left {
            Some(left) => go_on(&path, left, identity, target)?,
            None => (begin(&path, &out, identity)?, Earlier::Nothing),
        };
        let staging = Self { path, out, journal, target, has_ended: AtomicBool::new(false) };
        // Another run may have come to its end since; without its directory, the way looked free.
        refuse_existing(&staging.out)?;
        staging.create_directory(Path::new(target.parts()))?;
        Ok((staging, earlier))
    }

    /// Looks whether there is a place for an output: what an earlier run left there, for this one to go on with.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn look(out: &Path, resume: bool) -> Result<Option<LeftJournal>> {
        let out = absolute(out)?;
        refuse_existing(&out)?;
        let path = partial(&out);
        let found = match Journal::find(&path.join(JOURNAL)) {
            // Whatever is there is no directory.
            Err(QuantError::Io { source, .. }) if source.kind() == ErrorKind::NotADirectory => None,
            found => found?,
        };
        match found {
            Some(Found::Running) => Err(in_the_way(&path, OutputProblem::Running)),
            Some(Found::Left(_)) if !resume => Err(in_the_way(&path, OutputProblem::Interrupted)),
            Some(Found::Left(left)) => Ok(Some(left)),
            None => Ok(None),
        }
    }

    /// Ends a run that failed, when no part is being written any more. Finished parts stay for a later run if they are of use
    /// to one; otherwise the directory is removed. True if they stay.
    pub(super) fn end(&self, is_of_use: bool) -> bool {
        self.has_ended.store(true, Ordering::Relaxed);
        let stays = is_of_use && self.journal.parts() > 0;
        if stays {
            // They only take room. What cannot be removed, the next run writes over.
            for unfinished in files(&self.path.join(self.target.parts())).filter(|path| is_unfinished(path)) {
                let _ = fs::remove_file(unfinished);
            }
        } else {
            // Of a cancelled run, a task may still be creating a file; the directory is then empty at the second try.
            let _ = fs::remove_dir_all(&self.path).or_else(|_| fs::remove_dir_all(&self.path));
        }
        stays
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn create_directory(&self, relative: &Path) -> Result<()> {
        let path = self.path.join(relative);
        fs::create_dir_all(&path).map_err(|e| QuantError::io(&path, e))
    }

    /// Copies a file of the source, given by its path in it.
    pub(super) fn copy(&self, source: &Model, relative: &Path) -> Result<()> {
        if relative == Path::new(MANIFEST) {
            return Ok(());
        }
        if let Some(parent) = relative.parent() {
            self.create_directory(parent)?;
        }
        source.copy_file(relative, &self.path.join(relative))
    }

    /// Writes a file of its own, which is durable when this returns.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<FileEntry> {
        let path = self.path.join(name);
        let written = File::create(&path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_data()));
        written.map_err(|e| QuantError::io(&path, e))?;
        let sha256 = ContentHash::of(bytes);
        Ok(FileEntry { path: name.to_string(), bytes: bytes.len() as u64, sha256 })
    }

    /// Makes the files of the output from those of its parts, which are in order.
    pub(super) fn assemble(&self, parts: Vec<FileEntry>) -> Result<Vec<FileEntry>> {
        self.target.assemble(&self.path, parts)
    }

    /// Ends the output and gives it its name. Both are durable when this returns.
    pub(super) fn complete(&self, manifest: &Manifest) -> Result<()> {
        self.target.finish(&self.path, manifest)?;
        if let Some(file) = self.target.file() {
            return self.complete_file(file);
        }
        // Rename would replace an empty directory that another program made meanwhile; anything else there makes it fail.
        fs::rename(&self.path, &self.out).map_err(|e| QuantError::io(&self.out, e))?;
        self.has_ended.store(true, Ordering::Relaxed);
        // Not before: without it, what is there would be lost if the directory could not get its name.
        let journal = self.out.join(JOURNAL);
        fs::remove_file(&journal).map_err(|e| QuantError::io(&journal, e))?;
        self.out.parent().map_or(Ok(()), sync)
    }

    /// The same of an output that is a file in the directory; what else is there is not part of it.
    fn complete_file(&self, file: &str) -> Result<()> {
        // Rename would replace a file.
        refuse_existing(&self.out)?;
        fs::rename(self.path.join(file), &self.out).map_err(|e| QuantError::io(&self.out, e))?;
        self.has_ended.store(true, Ordering::Relaxed);
        fs::remove_dir_all(&self.path).map_err(|e| QuantError::io(&self.path, e))?;
        self.out.parent().map_or(Ok(()), sync)
    }
}

impl Drop for Staging {
    /// A run that was cancelled ends here, when the last of its tasks has.
    fn drop(&mut self) {
        if !self.has_ended.load(Ordering::Relaxed) {
            self.end(true);
        }
    }
}

/// What is in a directory; nothing where it cannot be read.
fn files(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Whether a part's file is not complete.
fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|found| found == UNFINISHED)
}

/// Makes the directory of a run. One that is there and empty is as good: a run that was killed at once leaves that.
fn begin(path: &Path, out: &Path, identity: &RunIdentity) -> Result<Journal> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let is_empty = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
            if !is_empty {
                return Err(in_the_way(path, OutputProblem::Foreign));
            }
        }
        // Of the output, which is what was asked for.
        made => made.map_err(|e| create_error(out, e))?,
    }
    Journal::create(&path.join(JOURNAL), identity).map_err(|error| match error {
        // Another run was faster.
        QuantError::Io { source, .. } if matches!(source.kind(), ErrorKind::AlreadyExists | ErrorKind::WouldBlock) => {
            in_the_way(path, OutputProblem::Running)
        }
        error => {
            // Of the directory only what is ours. The error that is about to be told says more than that this failed too.
            let _ = fs::remove_file(path.join(JOURNAL)).and_then(|()| fs::remove_dir(path));
            error
        }
    })
}

/// Goes on with what a run left, or begins again in its place.
fn go_on(path: &Path, left: LeftJournal, identity: &RunIdentity, target: &dyn Target) -> Result<(Journal, Earlier)> {
    let is_intact = |file: &FileEntry| hash_of(&path.join(&file.path)).is_ok_and(|found| found == *file.sha256);
    let (journal, earlier, kept) = match left.resume(identity, is_intact)? {
        Ok(journal) => {
            let earlier = Earlier::Parts(journal.parts());
            (journal, earlier, [JOURNAL, target.parts()])
        }
        Err((left, reason)) => {
            let parts = files(&path.join(target.parts())).filter(|path| !is_unfinished(path)).count();
            let earlier = if parts == 0 { Earlier::Nothing } else { Earlier::Unlike(reason.clone()) };
            if parts > 0 {
                log::warn!("`{}` is begun anew: {reason}", path.display());
            }
            (left.restart(identity)?, earlier, [JOURNAL, JOURNAL])
        }
    };
    // The journal stays, and stays locked, so that no other run takes the directory meanwhile. Files beside the weights
    // are copied again, for they may be others by now.
    let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    for entry in entries.map_err(|e| QuantError::io(path, e))? {
        let inner = entry.path();
        if !kept.iter().any(|name| entry.file_name() == *name) {
            let removed = if inner.is_dir() { fs::remove_dir_all(&inner) } else { fs::remove_file(&inner) };
            removed.map_err(|e| QuantError::io(&inner, e))?;
        }
    }
    Ok((journal, earlier))
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

fn refuse_existing(out: &Path) -> Result<()> {
    match out.symlink_metadata() {
        Ok(_) => Err(in_the_way(out, OutputProblem::Exists)),
        Err(_) => Ok(()),
    }
}

pub(super) fn in_the_way(path: &Path, problem: OutputProblem) -> QuantError {
    QuantError::Output { path: path.to_path_buf(), problem }
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| QuantError::io(path, e))
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().is_empty() || path.file_name().is_none() {
        return Err(QuantError::configuration(format!("`{}` cannot be an output directory", path.display())).at(path));
    }
    if path.to_str().is_none() {
        let message = format!("`{}` cannot be an output directory: its name is no UTF-8", path.display());
        return Err(QuantError::configuration(message).at(path));
    }
    std::path::absolute(path).map_err(|e| QuantError::io(path, e))
}

/// Says what is in the way of creating the output.
pub(super) fn create_error(path: &Path, error: io::Error) -> QuantError {
    let parent = path.parent().unwrap_or(path).display();
    let advice = match error.kind() {
        ErrorKind::NotFound => format!("the directory `{parent}` does not exist: create it first"),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            format!("the directory `{parent}` is not writable: choose another output")
        }
        _ => return QuantError::io(path, error),
    };
    QuantError::Io { path: path.to_path_buf(), source: io::Error::new(error.kind(), advice) }
}
