//! A file of weights, mapped into memory: tensors are slices of it, and only the pages that are looked at are read. Or
//! read into memory at once, where a mapping would be slow.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use memmap2::{Mmap, MmapMut};

use super::safetensors::defect;
use crate::error::{QuantError, Result};

/// A file mapped for reading.
///
/// The file must not be modified or truncated while it is mapped: what is read then is undefined, and a read beyond
/// the new end ends the process. Files that are replaced by renaming, as download tools do, are safe.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
    modified: SystemTime,
    /// Whether the pages are the file's own, to be had again from there.
    backed: bool,
}

impl MappedFile {
    /// Maps the file at `path`, or reads all of it into memory of our own if not `streaming`.
    ///
    /// # Errors
    /// [`QuantError::Io`] if it cannot be opened or is no regular file, [`QuantError::Metadata`] if it is empty.
    pub fn open(path: &Path, streaming: bool) -> Result<Arc<Self>> {
        let io = |e: io::Error| QuantError::io(path, e);
        // Asked before opening, because opening a named pipe would wait for its writer.
        let found = fs::metadata(path).map_err(io)?;
        if found.is_dir() {
            return Err(io(io::ErrorKind::IsADirectory.into()));
        }
        if !found.is_file() {
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let mut file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.len() == 0 {
            // Some platforms cannot map an empty file.
            return Err(defect(path, None, "file has 0 bytes, expected 8 or more of a safetensors file"));
        }
        let modified = metadata.modified().map_err(io)?;
        if !streaming {
            let size = usize::try_from(metadata.len()).map_err(|e| io(io::Error::other(e)))?;
            let mut memory = MmapMut::map_anon(size).map_err(io)?;
            file.read_exact(&mut memory).map_err(io)?;
            let map = memory.make_read_only().map_err(io)?;
            return Ok(Arc::new(Self { path: path.to_path_buf(), map, modified, backed: false }));
        }
        // SAFETY: the map is private to this value, read-only, and handed out only as `&[u8]` that it outlives. What
        // Rust cannot promise is that no other process modifies or truncates the file meanwhile: the bytes would
        // change under a shared reference, or an access raise SIGBUS. No operating system we run on can rule this out;
        // the type's documentation makes it the caller's duty, as every reader of mapped safetensors files does.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Arc::new(Self { path: path.to_path_buf(), map, modified, backed: true }))
    }

    /// Says that some bytes will not be looked at again soon, so that they no longer count as this process's memory.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if self.backed && !range.is_empty() {
            use memmap2::UncheckedAdvice;

            // SAFETY: the pages are those of a file, mapped for reading and never written to, so whoever reads them
            // again, also at this moment in another thread, gets the same bytes from the file. Pages of our own, which
            // would come back as zeros, were ruled out above.
            // It is advice: where the system does not take it, memory is given back when it is short.
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When it was last modified, as of its opening.
    pub fn modified(&self) -> SystemTime {
        self.modified
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_mapped_and_anything_else_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        assert!(matches!(MappedFile::open(&path, true), Err(QuantError::Io { .. })));
        assert!(matches!(MappedFile::open(dir.path(), true), Err(QuantError::Io { .. })));
        fs::write(&path, b"").unwrap();
        let message = MappedFile::open(&path, true).unwrap_err().to_string();
        assert!(message.contains("a.safetensors: file has 0 bytes"), "{message}");
        fs::write(&path, b"weights").unwrap();
        for streaming in [true, false] {
            let file = MappedFile::open(&path, streaming).unwrap();
            assert_eq!((file.bytes(), file.path()), (&b"weights"[..], path.as_path()));
            file.release(0..7);
            assert_eq!(file.bytes(), b"weights");
        }
    }
}
