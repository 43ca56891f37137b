//! A local file that is read range by range, where it cannot be mapped or shall not be.

use std::fs::File;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, BoxFuture};

use crate::change::Opened;
use crate::{Identity, Store, StoreError};

/// An open file. Each range that is read of it is copied into memory.
#[derive(Debug)]
pub struct LocalRanges {
    identity: Identity,
    opened: Opened,
    file: File,
}

impl LocalRanges {
    /// Reads from `file`, of which `identity` and `opened` tell.
    pub(crate) fn new(identity: Identity, opened: Opened, file: File) -> Self {
        Self { identity, opened, file }
    }

    fn range(&self, range: &Range<u64>) -> Result<Bytes, StoreError> {
        let indexes = self.identity.indexes(range)?;
        let mut bytes = vec![0; indexes.len()];
        match read_exact_at(&self.file, &mut bytes, range.start) {
            Ok(()) => Ok(Bytes::from(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.check()?;
                Err(StoreError::io(&self.identity.path, error))
            }
            Err(error) => Err(StoreError::io(&self.identity.path, error)),
        }
    }
}

impl Store for LocalRanges {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read<'a>(&'a self, ranges: &'a [Range<u64>]) -> BoxFuture<'a, Result<Vec<Bytes>, StoreError>> {
        future::ready(self.read_each_now(ranges)).boxed()
    }

    fn read_now(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.check()?;
        self.range(&range)
    }

    fn read_each_now(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        self.check()?;
        ranges.iter().map(|range| self.range(range)).collect()
    }

    /// Nothing: what was read belongs to its reader.
    fn release(&self, _: Range<u64>) {}

    fn check(&self) -> Result<(), StoreError> {
        let metadata = self.file.metadata().map_err(|error| StoreError::io(&self.identity.path, error))?;
        self.opened.compare(&metadata)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
