//! Where a model or one of its files is.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use url::Url;

use crate::change::Opened;
use crate::{Identity, LocalMapping, LocalRanges, Memory, Store, StoreError, Version};

/// A file or directory, which need not exist. Relative paths below are joined to it; the empty path is itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    path: PathBuf,
}

/// Where the bytes of an open file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    /// In the file, which is mapped. Where the system cannot map it, as [`Ranges`](Self::Ranges).
    File,
    /// In the file, and each range is read into memory when it is needed.
    Ranges,
    /// In memory, read at once, which suits network file systems.
    Memory,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name in the directory.
    pub name: PathBuf,
    /// What it is, links followed.
    pub kind: ListedKind,
}

/// What an entry of a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListedKind {
    /// A file, or a link to nothing.
    File,
    /// A directory, with the path it has without links.
    Directory(PathBuf),
    /// A socket, pipe or device.
    Special,
}

impl Location {
    /// What users type: a path of this machine, also as a `file://` URL.
    ///
    /// # Errors
    /// If it is the URL of a store that is not supported.
    pub fn parse(text: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = text.as_ref();
        let Some((text, scheme)) = path.to_str().and_then(|text| Some((text, scheme(text)?))) else {
            return Ok(Self::local(path));
        };
        let local = Url::parse(text).ok().filter(|_| scheme == "file").and_then(|url| url.to_file_path().ok());
        local.map(Self::local).ok_or_else(|| StoreError::NotALocation { text: text.to_string() })
    }

    /// A path of this machine.
    pub fn local(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its path, to show and to compare.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path, from which it can be opened whatever the working directory is.
    ///
    /// # Errors
    /// If the path is relative, and there is no working directory.
    pub fn absolute(&self) -> Result<PathBuf, StoreError> {
        std::path::absolute(&self.path).map_err(|e| StoreError::io(&self.path, e))
    }

    /// Whether it is a directory; `None` if nothing is there.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn is_directory(&self) -> Result<Option<bool>, StoreError> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(Some(metadata.is_dir())),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(StoreError::io(&self.path, e)),
        }
    }

    /// The path it has without links, which two paths that lead to the same place share.
    ///
    /// # Errors
    /// If nothing is there.
    pub fn identity(&self) -> Result<PathBuf, StoreError> {
        fs::canonicalize(&self.path).map_err(|e| StoreError::io(&self.path, e))
    }

    /// What is in a directory, in the order of the names; hidden entries left out.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub fn list(&self, directory: &Path) -> Result<Vec<Listed>, StoreError> {
        let path = self.join(directory);
        let io = |e| StoreError::io(&path, e);
        let mut listed = Vec::new();
        for entry in fs::read_dir(&path).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = PathBuf::from(entry.file_name());
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            let inner = entry.path();
            let kind = match fs::metadata(&inner) {
                Ok(metadata) if metadata.is_dir() => {
                    ListedKind::Directory(fs::canonicalize(&inner).map_err(|e| StoreError::io(&inner, e))?)
                }
                Ok(metadata) if !metadata.is_file() => ListedKind::Special,
                // What cannot be followed fails when it is read, with the system's own words.
                Ok(_) | Err(_) => ListedKind::File,
            };
            listed.push(Listed { name, kind });
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// Whether there is a file at a path below.
    pub fn has_file(&self, file: &Path) -> bool {
        matches!(Self::local(self.join(file)).is_directory(), Ok(Some(false)))
    }

    /// Bytes of a file; `None` if nothing is there.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn length(&self, file: &Path) -> Result<Option<u64>, StoreError> {
        let path = self.join(file);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(StoreError::io(&path, e)),
        }
    }

    /// The URL by which queries read a file, links followed.
    ///
    /// # Errors
    /// If nothing is there.
    pub fn url(&self, file: &Path) -> Result<Url, StoreError> {
        let path = self.identity()?.join(file);
        let no_url = || StoreError::io(&path, io::Error::new(ErrorKind::InvalidInput, "the path has no URL"));
        Url::from_file_path(&path).map_err(|()| no_url())
    }

    /// Copies a file to a path of this machine.
    ///
    /// # Errors
    /// If it cannot be read, or not be written there.
    pub fn copy(&self, file: &Path, to: &Path) -> Result<(), StoreError> {
        let from = self.join(file);
        let opened = File::open(&from).and_then(|file| Ok((file.metadata()?.permissions(), file)));
        let (permissions, mut source) = opened.map_err(|e| StoreError::io(&from, e))?;
        let mut copy = File::create(to).map_err(|e| StoreError::io(to, e))?;
        io::copy(&mut source, &mut copy).map_err(|e| StoreError::io(to, e))?;
        if let Err(error) = copy.set_permissions(permissions) {
            // File systems without permissions, FAT and SMB for example, refuse.
            log::warn!("`{}` has the permissions of a new file: others cannot be set ({error})", to.display());
        }
        Ok(())
    }

    /// All bytes of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, file: &Path) -> Result<Vec<u8>, StoreError> {
        let path = self.join(file);
        fs::read(&path).map_err(|e| StoreError::io(&path, e))
    }

    /// Opens a file.
    ///
    /// # Errors
    /// If it cannot be opened or is not a regular file.
    pub fn open(&self, file: &Path, residence: Residence) -> Result<Arc<dyn Store>, StoreError> {
        let path = self.join(file);
        let io = |e: io::Error| StoreError::io(&path, e);
        // Asked before opening, because opening a named pipe would wait for its writer.
        let found = fs::metadata(&path).map_err(io)?;
        if found.is_dir() {
            return Err(io(ErrorKind::IsADirectory.into()));
        }
        if !found.is_file() {
            return Err(io(io::Error::new(ErrorKind::InvalidInput, "not a regular file")));
        }
        let mut file = File::open(&path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let opened = Opened::new(&path, &metadata)?;
        let version = Version::Modified(opened.modified());
        let identity = Identity { path: path.clone(), length: metadata.len(), version };
        match residence {
            // Some platforms cannot map an empty file.
            Residence::File if metadata.len() > 0 => {
                match LocalMapping::new(identity.clone(), opened.clone(), &file) {
                    Ok(mapping) => return Ok(Arc::new(mapping)),
                    Err(error) => warn_not_mapped(&path, &error),
                }
                Ok(Arc::new(LocalRanges::new(identity, opened, file)))
            }
            Residence::File | Residence::Ranges => Ok(Arc::new(LocalRanges::new(identity, opened, file))),
            Residence::Memory => {
                let length = usize::try_from(metadata.len()).map_err(|e| io(io::Error::other(e)))?;
                let mut bytes = Vec::new();
                bytes.try_reserve_exact(length).map_err(|_| io(ErrorKind::OutOfMemory.into()))?;
                // Not more than there was when it was opened: it may be growing.
                (&mut file).take(metadata.len()).read_to_end(&mut bytes).map_err(io)?;
                opened.compare(&file.metadata().map_err(io)?)?;
                Ok(Arc::new(Memory::new(identity, Bytes::from(bytes))))
            }
        }
    }

    fn join(&self, relative: &Path) -> PathBuf {
        if relative.as_os_str().is_empty() { self.path.clone() } else { self.path.join(relative) }
    }
}

/// The scheme of a URL; `None` for other text.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let mut letters = scheme.chars();
    let is_scheme = letters.next().is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '+' | '-' | '.'));
    is_scheme.then_some(scheme)
}

/// Says once that files are read more slowly, for all of a file system are.
fn warn_not_mapped(path: &Path, error: &io::Error) {
    static IS_SAID: AtomicBool = AtomicBool::new(false);
    if !IS_SAID.swap(true, Ordering::Relaxed) {
        let path = path.display();
        log::warn!(
            "`{path}` cannot be mapped into memory ({error}): such files are read piece by piece, which is slower"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_stores_wherever_their_bytes_are() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::local(directory.path());
        let file = Path::new("a.safetensors");
        assert!(matches!(location.open(file, Residence::File), Err(StoreError::Io { .. })));
        assert!(matches!(location.open(Path::new(""), Residence::File), Err(StoreError::Io { .. })));
        fs::write(directory.path().join(file), b"").unwrap();
        assert_eq!(location.open(file, Residence::File).unwrap().identity().length, 0);
        fs::write(directory.path().join(file), b"weights").unwrap();
        for residence in [Residence::File, Residence::Ranges, Residence::Memory] {
            let store = location.open(file, residence).unwrap();
            assert_eq!(store.identity().path, directory.path().join(file));
            assert_eq!(store.read_now(2..5).unwrap(), &b"igh"[..]);
            let both = futures::executor::block_on(store.read(&[0..2, 5..7])).unwrap();
            assert_eq!(both, [&b"we"[..], &b"ts"[..]]);
            store.check().unwrap();
            store.release(0..7);
            assert_eq!(store.read_now(0..7).unwrap(), &b"weights"[..]);
            let message = store.read_now(3..8).unwrap_err().to_string();
            assert!(message.ends_with("bytes 3 to 8 were asked for, and the file has 7"), "{message}");
            let view = store.read_now(1..3).unwrap();
            drop(store);
            assert_eq!(view, &b"ei"[..], "a view outlives its store");
        }
    }

    #[test]
    fn what_users_type_is_a_path_or_a_url() {
        for (text, path) in [("a/b", "a/b"), ("file:///a%20b/c", "/a b/c"), ("a b://c", "a b://c"), ("", "")] {
            assert_eq!(Location::parse(text).unwrap().path(), Path::new(path));
        }
        for text in ["s3://bucket/model", "hf://org/name", "file://other.machine/model"] {
            let message = Location::parse(text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("`{text}` ")), "{message}");
        }
    }

    #[test]
    fn files_below_are_found_measured_and_copied() {
        let directory = tempfile::tempdir().unwrap();
        let (location, file) = (Location::local(directory.path()), Path::new("a b"));
        let copy = directory.path().join("copy");
        assert_eq!((location.has_file(file), location.length(file).unwrap()), (false, None));
        let Err(StoreError::Io { path, .. }) = location.copy(file, &copy) else { panic!("a missing file was copied") };
        assert!(path.ends_with(file));
        fs::write(directory.path().join(file), b"weights").unwrap();
        assert_eq!((location.has_file(file), location.length(file).unwrap()), (true, Some(7)));
        assert!(!location.has_file(Path::new("")), "a directory");
        location.copy(file, &copy).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"weights");
        let url = location.url(file).unwrap();
        assert!(url.as_str().ends_with("/a%20b"), "{url}");
        assert_eq!(Location::parse(url.as_str()).unwrap().length(Path::new("")).unwrap(), Some(7));
    }

    #[test]
    fn a_file_that_is_cut_or_written_to_is_told_after_it_was_read() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::local(directory.path());
        let file = Path::new("a.safetensors");
        let path = directory.path().join(file);
        for residence in [Residence::File, Residence::Ranges] {
            fs::write(&path, vec![7; 1 << 20]).unwrap();
            let store = location.open(file, residence).unwrap();
            let view = store.read_now(0..1 << 20).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(5).unwrap();
            assert!(view.len() == 1 << 20 && view.iter().all(|&byte| byte == 7 || byte == 0));
            let message = store.check().unwrap_err().to_string();
            assert!(message.contains("a.safetensors: it had 1048576 bytes") && message.ends_with("has 5"), "{message}");
            assert!(matches!(store.read_now(0..4), Err(StoreError::Changed { .. })));
            assert!(futures::executor::block_on(store.read(std::slice::from_ref(&(0..4)))).is_err());
        }
    }

    #[test]
    fn a_file_that_is_replaced_by_renaming_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::local(directory.path());
        let [path, other] = ["a", "b"].map(|name| directory.path().join(name));
        for residence in [Residence::File, Residence::Ranges] {
            fs::write(&path, b"old").unwrap();
            let store = location.open(Path::new("a"), residence).unwrap();
            fs::write(&other, b"another").unwrap();
            fs::rename(&other, &path).unwrap();
            assert_eq!(store.read_now(0..3).unwrap(), &b"old"[..]);
            store.check().unwrap();
        }
    }

    #[test]
    fn a_directory_is_listed_in_order_without_hidden_entries() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b", "a", ".hidden"] {
            fs::write(directory.path().join(name), b"").unwrap();
        }
        fs::create_dir(directory.path().join("c")).unwrap();
        let location = Location::local(directory.path());
        let listed = location.list(Path::new("")).unwrap();
        let names: Vec<_> = listed.iter().map(|entry| entry.name.to_str().unwrap()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(matches!(listed[2].kind, ListedKind::Directory(_)));
        assert_eq!(location.is_directory().unwrap(), Some(true));
        assert_eq!(Location::local(directory.path().join("gone")).is_directory().unwrap(), None);
    }
}
