//! Writing on file systems that lack something: locks (Lustre), syncing of directories (SMB, FUSE), permissions (FAT), renaming of
//! directories (overlays, object stores).
//!
//! What is missing is said once, and the work goes on without it. That a disk is full, broken or gone stays an error.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::{QuantError, Result};

/// What a file system may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lacking {
    Locks,
    FileSync,
    DirectorySync,
    Permissions,
    FileRename,
    DirectoryRename,
}

impl Lacking {
    /// Says once for a process what is done without.
    fn warn(self, path: &Path, error: &io::Error) {
        static SAID: Mutex<BTreeSet<Lacking>> = Mutex::new(BTreeSet::new());
        if !SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(self) {
            return;
        }
        let path = path.display();
        match self {
            Self::Locks => log::warn!(
                "`{path}` cannot be locked ({error}): make sure that no other run writes the same output at the same time"
            ),
            Self::FileSync => log::warn!(
                "`{path}` cannot be synced ({error}): what is written may be lost if the machine stops soon afterwards"
            ),
            Self::DirectorySync => log::warn!(
                "the directory `{path}` cannot be synced ({error}): files may lose their names if the machine stops soon afterwards"
            ),
            Self::Permissions => {
                log::warn!("`{path}` has the permissions of a new file: others cannot be set ({error})")
            }
            Self::FileRename => log::warn!("`{path}` cannot be renamed ({error}): such files are copied"),
            Self::DirectoryRename => {
                log::warn!("the directory `{path}` cannot be renamed ({error}): its files are moved one by one");
            }
        }
    }
}

/// Locks a file for as long as it is open. False if another process has locked it.
pub(crate) fn lock(file: &File, path: &Path) -> bool {
    loop {
        match file.try_lock() {
            Ok(()) => return true,
            Err(TryLockError::WouldBlock) => return false,
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Interrupted => {}
            // Whatever a lock server has to say: the file can be written nevertheless, or that fails by itself.
            Err(TryLockError::Error(error)) => {
                Lacking::Locks.warn(path, &error);
                return true;
            }
        }
    }
}

/// Waits until the content of a file is durable.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn sync_file(file: &File, path: &Path) -> io::Result<()> {
    without(Lacking::FileSync, path, file.sync_data())
}

/// Writes a file and makes it durable, in place of one that is there.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create(path).and_then(|mut file| {
        io::Write::write_all(&mut file, bytes)?;
        sync_file(&file, path)
    });
    written.map_err(|e| QuantError::io(path, e))
}

/// Waits until the names in a directory are durable.
///
/// # Errors
/// If they cannot be written.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    without(Lacking::DirectorySync, path, synced).map_err(|e| QuantError::io(path, e))
}

/// Copies a file with its permissions, where there are some.
///
/// # Errors
/// If the one cannot be read, or the other not be written.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).and_then(|file| Ok((file.metadata()?.permissions(), file)));
    let (permissions, mut source) = source.map_err(|e| QuantError::io(from, e))?;
    let mut copy = File::create(to).map_err(|e| QuantError::io(to, e))?;
    io::copy(&mut source, &mut copy).map_err(|e| QuantError::io(to, e))?;
    without(Lacking::Permissions, to, copy.set_permissions(permissions)).map_err(|e| QuantError::io(to, e))
}

/// Renames a file, in place of one that has the name. Where that cannot be done it is copied, and durable before the old name
/// goes.
///
/// # Errors
/// If it can be neither renamed nor copied.
pub(crate) fn rename_file(from: &Path, to: &Path) -> Result<()> {
    let error = match fs::rename(from, to) {
        Ok(()) => return Ok(()),
        Err(error) if is_serious(&error) || error.kind() == ErrorKind::NotFound => {
            return Err(QuantError::io(to, error));
        }
        Err(error) => error,
    };
    Lacking::FileRename.warn(from, &error);
    copy(from, to)?;
    File::open(to).and_then(|file| sync_file(&file, to)).map_err(|e| QuantError::io(to, e))?;
    fs::remove_file(from).map_err(|e| QuantError::io(from, e))
}

/// Renames a directory. False where that cannot be done, and its files must be moved one by one.
///
/// # Errors
/// If the disk is full, broken or gone.
pub(crate) fn rename_directory(from: &Path, to: &Path) -> Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if is_serious(&error) => Err(QuantError::io(to, error)),
        Err(error) => {
            Lacking::DirectoryRename.warn(from, &error);
            Ok(false)
        }
    }
}

/// Moves the files of a directory to another one by one, those in its directories too, and removes what is empty then. A file of the
/// name `last` in it comes after all others.
///
/// # Errors
/// If a file cannot be moved.
pub(crate) fn move_files(from: &Path, to: &Path, last: &str) -> Result<()> {
    fs::create_dir_all(to).map_err(|e| QuantError::io(to, e))?;
    let entries = fs::read_dir(from).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let mut entries = entries.map_err(|e| QuantError::io(from, e))?;
    entries.sort_by_key(|entry| (entry.file_name() == last, entry.file_name()));
    for entry in entries {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() { move_files(&path, &target, last)? } else { rename_file(&path, &target)? }
    }
    // That an empty directory stays does no harm.
    let _ = fs::remove_dir(from);
    sync_directory(to)
}

/// Goes on without what a file system lacks.
fn without(lacking: Lacking, path: &Path, done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if is_serious(&error) => Err(error),
        Err(error) => {
            lacking.warn(path, &error);
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Whether an error says that bytes are lost or cannot be written, not that an operation is not known here.
fn is_serious(error: &io::Error) -> bool {
    /// The number that all Unix systems give to an error of the device.
    const EIO: i32 = 5;
    matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::FileTooLarge
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StaleNetworkFileHandle
            | ErrorKind::OutOfMemory
    ) || cfg!(unix) && error.raw_os_error() == Some(EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_moved_one_by_one_with_one_as_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        fs::create_dir_all(from.join("weights")).unwrap();
        for name in ["manifest.json", "z.json", "weights/part-0"] {
            fs::write(from.join(name), name).unwrap();
        }
        fs::create_dir(&to).unwrap();
        move_files(&from, &to, "manifest.json").unwrap();
        assert!(!from.exists());
        for name in ["manifest.json", "z.json", "weights/part-0"] {
            assert_eq!(fs::read_to_string(to.join(name)).unwrap(), name);
        }
    }

    #[test]
    fn a_full_disk_is_an_error_and_a_missing_operation_is_not() {
        let done = |kind: ErrorKind| without(Lacking::DirectorySync, Path::new("x"), Err(kind.into()));
        for kind in [ErrorKind::InvalidInput, ErrorKind::Unsupported, ErrorKind::PermissionDenied] {
            done(kind).unwrap();
        }
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::ReadOnlyFilesystem] {
            assert_eq!(done(kind).unwrap_err().kind(), kind);
        }
    }

    #[test]
    fn a_copy_has_the_permissions_of_its_source() {
        let directory = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        fs::write(&from, b"{}").unwrap();
        let mut permissions = fs::metadata(&from).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&from, permissions.clone()).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"{}");
        assert_eq!(fs::metadata(&to).unwrap().permissions(), permissions);
    }

    #[test]
    fn a_lock_is_held_until_its_file_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = File::create(&path).unwrap();
        let second = File::open(&path).unwrap();
        assert!(lock(&first, &path) && !lock(&second, &path));
        drop(first);
        assert!(lock(&second, &path));
    }
}
