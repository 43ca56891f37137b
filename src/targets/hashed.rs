//! A file whose content is hashed while it is written.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arrow_quant_formats::ContentHash;
use arrow_quant_formats::manifest::FileEntry;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::UNFINISHED;
use crate::{QuantError, Result, disk};

/// A file that hashes what is written to it.
pub(super) struct HashedFile {
    file: File,
    hash: ContentHash,
    bytes: u64,
    /// The thread that hashes pieces.
    hashing: Option<ThreadPool>,
}

impl HashedFile {
    pub(super) fn new(file: File) -> Self {
        Self { file, hash: ContentHash::new(), bytes: 0, hashing: None }
    }

    /// Creates a file that has another name until it is complete, so that one of its name that is there stays until then.
    pub(super) fn create(path: &Path) -> Result<Self> {
        File::create(unfinished(path)).map(Self::new).map_err(|e| QuantError::io(path, e))
    }

    /// Makes a file that was created so durable, and gives it its name.
    pub(super) fn finish(&self, path: &Path, relative: String) -> Result<FileEntry> {
        disk::sync_file(&self.file, path).map_err(|e| QuantError::io(path, e))?;
        self.finish_later(path, relative)
    }

    /// Gives such a file its name, and leaves it to the system when it is on the disk: for files that the output is made of,
    /// whose hashes a later run checks before it goes on from them.
    pub(super) fn finish_later(&self, path: &Path, relative: String) -> Result<FileEntry> {
        disk::rename_file(&unfinished(path), path)?;
        Ok(FileEntry { path: relative, bytes: self.bytes, sha256: self.hash.clone().finish() })
    }

    /// Creates such a file that hashes on another thread what [`write_piece`](Self::write_piece) gets, if the system starts one:
    /// for files that are written when all else is done.
    pub(super) fn create_alone(path: &Path) -> Result<Self> {
        let hashing = ThreadPoolBuilder::new().num_threads(1).build().ok();
        Ok(Self { hashing, ..Self::create(path)? })
    }

    /// Writes a piece, and hashes it meanwhile.
    pub(super) fn write_piece(&mut self, piece: &[u8]) -> io::Result<()> {
        let Some(hashing) = &self.hashing else { return self.write_all(piece) };
        let (file, hash) = (&mut self.file, &mut self.hash);
        hashing.in_place_scope(|scope| {
            scope.spawn(|_| hash.update(piece));
            file.write_all(piece)
        })?;
        self.bytes += piece.len() as u64;
        Ok(())
    }

    /// Bytes that were written.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Write for HashedFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The name of a file until it is complete.
fn unfinished(path: &Path) -> PathBuf {
    path.with_extension(UNFINISHED)
}
