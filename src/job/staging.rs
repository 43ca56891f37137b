//! The directory a job writes to before its output is complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::model::MANIFEST;
use crate::{QuantError, Result};

/// `OUT.partial`, removed when dropped unless it was completed.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    out: PathBuf,
    completed: bool,
}

impl Staging {
    /// Creates the directory beside the output, which must not exist.
    pub fn create(out: &Path) -> Result<Self> {
        let out = absolute(out)?;
        if out.symlink_metadata().is_ok() {
            return Err(QuantError::Configuration(format!(
                "`{}` exists already: remove it, or choose another output",
                out.display()
            )));
        }
        let mut name = out.file_name().map(OsString::from).unwrap_or_default();
        name.push(".partial");
        let path = out.with_file_name(name);
        if path.exists() {
            return Err(QuantError::Configuration(format!(
                "`{}` is left from a run that was killed, or belongs to one still running: remove it, or choose another output",
                path.display()
            )));
        }
        fs::create_dir(&path).map_err(|e| create_error(&path, e))?;
        let staging = Self { path, out, completed: false };
        staging.create_directory(Path::new("weights"))?;
        Ok(staging)
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
    pub fn complete(mut self, manifest: &str) -> Result<()> {
        let path = self.path.join(MANIFEST);
        fs::write(&path, manifest).map_err(|e| QuantError::io(&path, e))?;
        for synced in [path.as_path(), &self.path.join("weights"), &self.path] {
            sync(synced)?;
        }
        // Rename would replace an empty directory that somebody made meanwhile; anything else there makes it fail.
        fs::rename(&self.path, &self.out).map_err(|e| QuantError::io(&self.out, e))?;
        self.completed = true;
        self.out.parent().map_or(Ok(()), sync)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.completed {
            // A worker may still be creating a file; the directory is then empty at the second try.
            let _ = fs::remove_dir_all(&self.path).or_else(|_| fs::remove_dir_all(&self.path));
        }
    }
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
