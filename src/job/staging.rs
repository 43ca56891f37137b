//! The directory a job writes to before its output is complete.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrow_quant_formats::ContentHash;
use arrow_quant_formats::manifest::{FileEntry, MANIFEST, Manifest};

use super::journal::{self, Journal, LeftJournal, RunIdentity};
use super::place::{
    absolute, beside, create_error, files, in_the_way, is_unfinished, is_vacant, partial, refuse_existing,
    refuse_extension, refuse_file_name, remove,
};
use crate::model::{hash_of, manifest_path};
use crate::plan::ModelPlan;
use crate::targets::{Layout, Target};
use crate::{Model, OutputProblem, QuantError, Result, disk};

/// The journal's name in the staging directory.
const JOURNAL: &str = "journal.jsonl";

/// Where a run writes before its output is complete: `OUT.partial`, or `OUT` itself where that is an empty directory. An empty
/// directory was made for the output, and it may be the place of a volume, which nothing can be renamed to.
///
/// Dropped before it was completed, it leaves the parts that are finished for a later run; if there are none, nothing.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    out: PathBuf,
    journal: Journal,
    target: &'static dyn Target,
    /// Whether a quantized model that is in the way is replaced.
    overwrites: bool,
    /// The entries of the directory that were made by this run.
    made: Mutex<BTreeSet<OsString>>,
    /// Whether nothing is left to be done when it is dropped.
    has_ended: AtomicBool,
}

/// What becomes of what is where an output goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Existing {
    /// Whether to go on with what an interrupted run left.
    pub resume: bool,
    /// Whether to replace a quantized model.
    pub overwrite: bool,
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

/// What is at the place of an output.
pub(super) enum Found {
    /// Nothing, so that a run can begin in this directory.
    Free(PathBuf),
    /// What an earlier run left in this directory.
    Left(PathBuf, LeftJournal),
    /// The output itself, which an earlier run finished.
    Finished,
}

impl Staging {
    /// Makes the directory for an output that does not exist, is an empty directory or may be replaced. With `resume`, a directory
    /// that the same run left before is gone on with, and one of another run replaced.
    ///
    /// # Errors
    /// If the output exists, if another run is at work on it or, without `resume`, has left something, and if the
    /// directory cannot be made.
    pub(super) fn open(
        out: &Path,
        existing: Existing,
        identity: &RunIdentity,
        target: &'static dyn Target,
    ) -> Result<(Self, Earlier)> {
        let found = Self::look(out, existing, target)?;
        let out = absolute(out)?;
        let (path, (journal, earlier)) = match found {
            Found::Left(path, left) => {
                if path == out {
                    gather(&out)?;
                }
                let gone_on = go_on(&path, path == out, left, existing, (identity, target))?;
                (path, gone_on)
            }
            Found::Free(path) => {
                let journal = begin(&path, &out, identity)?;
                (path, (journal, Earlier::Nothing))
            }
            // Another run has come to its end since this one looked.
            Found::Finished => return Err(in_the_way(&out, OutputProblem::Exists)),
        };
        let (made, has_ended) = (Mutex::default(), AtomicBool::new(false));
        let overwrites = existing.overwrite;
        let staging = Self { path, out, journal, target, overwrites, made, has_ended };
        // Another run may have come to its end since; without its directory, the way looked free.
        if staging.path != staging.out && !staging.replaces() {
            refuse_existing(&staging.out)?;
        }
        staging.create_directory(Path::new(target.parts()))?;
        Ok((staging, earlier))
    }

    /// Looks whether there is a place for an output, and what an earlier run left there for this one to go on with.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn look(out: &Path, existing: Existing, target: &dyn Target) -> Result<Found> {
        refuse_extension(out, target)?;
        let out = absolute(out)?;
        let left = |path: PathBuf| match Journal::find(&path.join(JOURNAL))? {
            Some(journal::Found::Running) => Err(in_the_way(&path, OutputProblem::Running)),
            Some(journal::Found::Left(_)) if !existing.resume && !existing.overwrite => {
                Err(in_the_way(&path, OutputProblem::Interrupted))
            }
            Some(journal::Found::Left(left)) => Ok(Some(Found::Left(path, left))),
            None => Ok(None),
        };
        let is_directory = out.is_dir();
        if manifest_path(&out).is_file() && out.is_file() == target.file().is_some() {
            return match existing {
                Existing { resume: true, .. } => Ok(Found::Finished),
                Existing { overwrite: true, .. } => {
                    Ok(left(partial(&out))?.unwrap_or_else(|| Found::Free(partial(&out))))
                }
                Existing { .. } => Err(in_the_way(&out, OutputProblem::Exists)),
            };
        }
        if is_directory && let Some(left) = left(out.clone())? {
            return Ok(left);
        }
        if is_directory && target.file().is_some() {
            return Err(in_the_way(&out, OutputProblem::Exists));
        }
        refuse_existing(&out)?;
        if let Some(left) = left(partial(&out))? {
            return Ok(left);
        }
        if target.file().is_none() {
            if is_directory {
                return Ok(Found::Free(out));
            }
            refuse_file_name(&out, target.allowed().target)?;
        }
        Ok(Found::Free(partial(&out)))
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
            let _ = self.remove().or_else(|_| self.remove());
        }
        stays
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what the run made: its directory, or of one that is the output's what it made there.
    fn remove(&self) -> io::Result<()> {
        if self.path != self.out {
            return fs::remove_dir_all(&self.path);
        }
        let made = self.made().clone();
        made.iter().try_for_each(|name| remove(&self.path.join(name)))?;
        // The last, because it says whose the directory is.
        remove(&self.path.join(JOURNAL))
    }

    fn made(&self) -> MutexGuard<'_, BTreeSet<OsString>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path of something that is about to be made, given by its path in the directory.
    fn make(&self, relative: &Path) -> PathBuf {
        if let Some(Component::Normal(name)) = relative.components().next() {
            self.made().insert(name.to_os_string());
        }
        self.path.join(relative)
    }

    fn create_directory(&self, relative: &Path) -> Result<()> {
        let path = self.make(relative);
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
        source.copy_file(relative, &self.make(relative))
    }

    /// Writes a file of its own, which is durable when this returns.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<FileEntry> {
        let path = self.make(Path::new(name));
        disk::write_file(&path, bytes)?;
        let sha256 = ContentHash::of(bytes);
        Ok(FileEntry { path: name.to_string(), bytes: bytes.len() as u64, sha256 })
    }

    /// Makes the files of the output from those of its parts, which are in order.
    pub(super) fn assemble(
        &self,
        layout: &dyn Layout,
        parts: Vec<FileEntry>,
        plan: &ModelPlan,
    ) -> Result<Vec<FileEntry>> {
        layout.assemble(&self.path, parts, plan)
    }

    /// Whether the output is a directory, and not a file.
    pub(super) fn is_directory(&self) -> bool {
        self.target.file().is_none()
    }

    /// Ends the output and gives it its name. Both are durable when this returns.
    pub(super) fn complete(&self, manifest: &Manifest) -> Result<()> {
        self.target.finish(&self.path, manifest)?;
        if let Some(file) = self.target.file() {
            return self.complete_file(file);
        }
        // Renaming would replace an empty directory that another program made meanwhile; anything else there makes it fail.
        let replaced = if self.replaces() { self.set_aside()? } else { None };
        let named = self.give_name();
        if let (Err(_), Some(aside)) = (&named, &replaced) {
            // That the output could not get its name is told, whether the other model gets its own back or not.
            let _ = fs::rename(aside, &self.out);
        }
        named?;
        self.has_ended.store(true, Ordering::Relaxed);
        // Not before: without it, what is there would be lost if the directory could not get its name. An output with a journal is as
        // complete as one without.
        let journal = self.out.join(JOURNAL);
        if let Err(error) = fs::remove_file(&journal) {
            log::warn!("`{}` cannot be removed, and is not needed any more: {error}", journal.display());
        }
        if let Some(Err(error)) = replaced.as_deref().map(remove) {
            log::warn!("the model that was replaced cannot be removed: {error}");
        }
        self.out.parent().map_or(Ok(()), disk::sync_directory)
    }

    /// Gives the output its name, which it has where the run wrote in its place.
    fn give_name(&self) -> Result<()> {
        if self.path == self.out || disk::rename_directory(&self.path, &self.out)? { Ok(()) } else { self.move_files() }
    }

    /// Whether there is a quantized model that this run replaces.
    fn replaces(&self) -> bool {
        self.overwrites && self.path != self.out && manifest_path(&self.out).is_file()
    }

    /// Makes way for the output: the model at its place gets another name. Where that cannot be done, it is no model any more
    /// without its manifest, and its parts are removed.
    fn set_aside(&self) -> Result<Option<PathBuf>> {
        let aside = beside(&self.out, ".replaced");
        let io = |e| QuantError::io(&aside, e);
        // What a run left that was killed while it replaced a model.
        if aside.join(MANIFEST).is_file() {
            remove(&aside).map_err(io)?;
        }
        if disk::rename_directory(&self.out, &aside)? {
            return Ok(Some(aside));
        }
        for name in [MANIFEST, self.target.parts()] {
            remove(&self.out.join(name)).map_err(io)?;
        }
        Ok(None)
    }

    /// Removes the journal of a run that was killed when its output was complete.
    pub(super) fn forget(out: &Path) {
        // If it stays, it does no harm.
        let _ = remove(&out.join(JOURNAL));
    }

    /// Moves the files to the output one by one, where the directory cannot be renamed: the journal first, so that a later run goes
    /// on from there if this one is killed, and the manifest last.
    fn move_files(&self) -> Result<()> {
        if !self.overwrites {
            refuse_existing(&self.out)?;
        }
        fs::create_dir_all(&self.out).map_err(|e| QuantError::io(&self.out, e))?;
        disk::rename_file(&self.path.join(JOURNAL), &self.out.join(JOURNAL))?;
        disk::move_files(&self.path, &self.out, MANIFEST)
    }

    /// The same of an output that is a file in the directory; what else is there is not part of it.
    fn complete_file(&self, file: &str) -> Result<()> {
        // Rename would replace a file.
        if !self.replaces() {
            refuse_existing(&self.out)?;
        }
        let manifest = self.path.join(MANIFEST);
        if manifest.is_file() {
            // Before the file, which is complete when it has its name.
            disk::rename_file(&manifest, &beside(&self.out, &format!(".{MANIFEST}")))?;
        }
        disk::rename_file(&self.path.join(file), &self.out)?;
        self.has_ended.store(true, Ordering::Relaxed);
        if let Err(error) = remove(&self.path) {
            log::warn!("`{}` cannot be removed, and is not needed any more: {error}", self.path.display());
        }
        self.out.parent().map_or(Ok(()), disk::sync_directory)
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

/// Makes the directory of a run. One that is there and empty is as good: a run that was killed at once leaves that.
fn begin(path: &Path, out: &Path, identity: &RunIdentity) -> Result<Journal> {
    let is_new = !path.is_dir();
    match fs::create_dir(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            if !is_vacant(path) {
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
            let _ = fs::remove_file(path.join(JOURNAL));
            if is_new {
                let _ = fs::remove_dir(path);
            }
            error
        }
    })
}

/// Goes on with what a run left, or begins again in its place.
fn go_on(
    path: &Path,
    is_output: bool,
    left: LeftJournal,
    existing: Existing,
    (identity, target): (&RunIdentity, &dyn Target),
) -> Result<(Journal, Earlier)> {
    let is_intact = |file: &FileEntry| hash_of(&path.join(&file.path)).is_ok_and(|found| found == *file.sha256);
    let resumed = if existing.resume {
        left.resume(identity, is_intact)?
    } else {
        Err((left, "the output is made anew".to_string()))
    };
    let (journal, earlier, kept) = match resumed {
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
    // are copied again, for they may be others by now. In the output's own directory there may also be somebody else's.
    if is_output {
        if kept[1] != target.parts() {
            remove(&path.join(target.parts())).map_err(|e| QuantError::io(path, e))?;
        }
        return Ok((journal, earlier));
    }
    let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    for entry in entries.map_err(|e| QuantError::io(path, e))? {
        if !kept.iter().any(|name| entry.file_name() == *name) {
            remove(&entry.path()).map_err(|e| QuantError::io(&entry.path(), e))?;
        }
    }
    Ok((journal, earlier))
}

/// Brings together the files of a run that was killed while it moved them to the output.
fn gather(out: &Path) -> Result<()> {
    let rest = partial(out);
    if !rest.is_dir() || rest.join(JOURNAL).exists() {
        return Ok(());
    }
    // The output is complete with a manifest, and the run may be about to write other files.
    remove(&rest.join(MANIFEST)).map_err(|e| QuantError::io(&rest, e))?;
    disk::move_files(&rest, out, MANIFEST)
}

/// Where a run that is to write `out` keeps what is unfinished, if it, or a run before it, left something there.
pub fn unfinished_run(out: &Path) -> Option<PathBuf> {
    let is_left = out.join(JOURNAL).is_file() && !out.join(MANIFEST).is_file();
    let path = if is_left { out.to_path_buf() } else { partial(out) };
    path.is_dir().then_some(path)
}
