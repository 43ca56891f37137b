//! Whether a local file is still the one that was opened.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use object_store::ObjectMeta;

use crate::guarded::file_path;
use crate::{Change, StoreError};

/// What a local file was when it was opened.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    /// As it was asked for.
    path: PathBuf,
    /// Absolute, because the process may go to another directory.
    found: PathBuf,
    length: u64,
    modified: SystemTime,
    file: Option<FileNumber>,
}

/// What two paths of the same file have in common, where the system tells it: device and inode.
type FileNumber = (u64, u64);

impl Opened {
    /// The file that `metadata` is of.
    ///
    /// # Errors
    /// If the system does not tell when it was modified.
    pub(crate) fn new(path: &Path, metadata: &Metadata) -> Result<Self, StoreError> {
        let io = |error| StoreError::io(path, error);
        let found = std::path::absolute(path).map_err(io)?;
        let modified = metadata.modified().map_err(io)?;
        Ok(Self { path: path.to_path_buf(), found, length: metadata.len(), modified, file: number(metadata) })
    }

    /// When it was last modified.
    pub(crate) fn modified(&self) -> SystemTime {
        self.modified
    }

    /// Checks that nobody has written to the file. What lies at its path may be another file by now: then the one that
    /// was opened has no name any more, and nobody writes to it.
    ///
    /// # Errors
    /// [`Changed`](StoreError::Changed) if somebody has; [`Io`](StoreError::Io) if the file system has lost the file.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match fs::metadata(&self.found) {
            Ok(metadata) if number(&metadata) != self.file => Ok(()),
            Ok(metadata) => self.compare(&metadata),
            // It was moved or removed, or its directory closed: what is open stays as it is.
            Err(error) if is_out_of_reach(&error) => Ok(()),
            Err(error) => Err(StoreError::io(&self.path, error)),
        }
    }

    /// Compares the file with what the system says of it now.
    ///
    /// # Errors
    /// [`Changed`](StoreError::Changed) if they differ.
    pub(crate) fn compare(&self, metadata: &Metadata) -> Result<(), StoreError> {
        let modified = metadata.modified().map_err(|error| StoreError::io(&self.path, error))?;
        compare(&self.path, (self.length, self.modified), (metadata.len(), modified))
    }
}

/// Checks that a file of the file system is still what a listing said of it. One that is gone by now is none of its business: who
/// reads it is told.
///
/// # Errors
/// [`Changed`](StoreError::Changed) if the file was modified or replaced; [`Io`](StoreError::Io) if that cannot be told.
pub fn check_listed(listed: &ObjectMeta) -> Result<(), StoreError> {
    let Ok(path) = file_path(&listed.location) else { return Ok(()) };
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if is_out_of_reach(&error) => return Ok(()),
        Err(error) => return Err(StoreError::io(&path, error)),
    };
    let modified = metadata.modified().map_err(|error| StoreError::io(&path, error))?;
    compare(&path, (listed.size, listed.last_modified.into()), (metadata.len(), modified))
}

fn compare(path: &Path, before: (u64, SystemTime), now: (u64, SystemTime)) -> Result<(), StoreError> {
    let change = match (before, now) {
        ((before, _), (now, _)) if before != now => Change::Length { before, now },
        ((_, before), (_, now)) if before != now => Change::Written,
        _ => return Ok(()),
    };
    Err(StoreError::Changed { path: path.to_path_buf(), change })
}

fn is_out_of_reach(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied)
}

#[cfg(unix)]
fn number(metadata: &Metadata) -> Option<FileNumber> {
    use std::os::unix::fs::MetadataExt;

    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn number(_: &Metadata) -> Option<FileNumber> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_to_has_changed_and_one_that_is_replaced_has_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        let later = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let write = |bytes: &[u8], seconds| {
            fs::write(&path, bytes).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(later(seconds)).unwrap();
        };
        write(b"1234", 1);
        let opened = Opened::new(&path, &fs::metadata(&path).unwrap()).unwrap();
        opened.check().unwrap();
        write(b"5678", 2);
        let message = opened.check().unwrap_err().to_string();
        assert!(message.contains("weights") && message.contains("written to"), "{message}");
        write(b"123", 1);
        let message = opened.check().unwrap_err().to_string();
        assert!(message.contains("had 4 bytes when it was opened and has 3"), "{message}");
        let other = directory.path().join("other");
        fs::write(&other, b"another file").unwrap();
        fs::rename(&other, &path).unwrap();
        #[cfg(unix)]
        opened.check().unwrap();
        fs::remove_file(&path).unwrap();
        opened.check().unwrap();
    }

    #[test]
    fn a_listed_file_is_compared_with_the_listing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a file");
        fs::write(&path, b"1234").unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let listed = ObjectMeta {
            location: object_store::path::Path::from_absolute_path(&path).unwrap(),
            last_modified: metadata.modified().unwrap().into(),
            size: 4,
            e_tag: None,
            version: None,
        };
        check_listed(&listed).unwrap();
        fs::write(&path, b"123").unwrap();
        let message = check_listed(&listed).unwrap_err().to_string();
        assert!(message.contains("a file: it had 4 bytes"), "{message}");
        fs::remove_file(&path).unwrap();
        check_listed(&listed).unwrap();
    }
}
