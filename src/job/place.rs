//! Places for outputs: what may be where one goes, and what lies beside it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use arrow_quant_formats::directory::is_weights_of_any_format;

use crate::targets::{Target, UNFINISHED};
use crate::{OutputProblem, QuantError, Result};

/// What is in a directory; nothing where it cannot be read.
pub(super) fn files(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Whether a part's file is not complete.
pub(super) fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|found| found == UNFINISHED)
}

/// Removes a file or a directory, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

pub(super) fn partial(out: &Path) -> PathBuf {
    beside(out, ".partial")
}

/// A sibling of an output.
pub(super) fn beside(out: &Path, suffix: &str) -> PathBuf {
    let mut name = out.file_name().map(OsString::from).unwrap_or_default();
    name.push(suffix);
    out.with_file_name(name)
}

/// Refuses whatever is at the place of an output, save for an empty directory.
pub(super) fn refuse_existing(out: &Path) -> Result<()> {
    match out.symlink_metadata() {
        Ok(_) if !is_vacant(out) => Err(in_the_way(out, OutputProblem::Exists)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Refuses the name of a file of weights for a new directory: who gives it wants another kind of output.
pub(super) fn refuse_file_name(out: &Path, target: &str) -> Result<()> {
    let Some(extension) = out.extension().filter(|_| is_weights_of_any_format(out)) else { return Ok(()) };
    let message = format!(
        "`{}` is the name of a .{} file, and what is written is a directory ({target}): choose a name without the extension",
        out.display(),
        extension.display()
    );
    Err(QuantError::configuration(message).at(out))
}

/// Refuses a name by which no program would know what the file is.
pub(super) fn refuse_extension(out: &Path, target: &dyn Target) -> Result<()> {
    let Some(wanted) = target.extension() else { return Ok(()) };
    if out.extension().is_some_and(|found| found.eq_ignore_ascii_case(wanted)) {
        return Ok(());
    }
    let message = format!(
        "`{}` is to be a file of the format {}: choose a name that ends in .{wanted}",
        out.display(),
        target.allowed().target
    );
    Err(QuantError::configuration(message).at(out))
}

/// Whether a path is a directory with nothing in it but what the system or a shell keeps there: the root of a volume has
/// `lost+found`.
pub(super) fn is_vacant(path: &Path) -> bool {
    let is_kept = |name: &OsStr| name == "lost+found" || name.as_encoded_bytes().starts_with(b".");
    let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    entries.is_ok_and(|entries| entries.iter().all(|entry| is_kept(&entry.file_name())))
}

pub(super) fn in_the_way(path: &Path, problem: OutputProblem) -> QuantError {
    QuantError::Output { path: path.to_path_buf(), problem }
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
