//! A file that was read into memory at once, where a mapping would be slow or cannot be had.

use std::ops::Range;
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, BoxFuture};

use crate::{Identity, Store, StoreError, Version};

/// A file in memory.
#[derive(Debug)]
pub struct Memory {
    identity: Identity,
    bytes: Bytes,
}

impl Memory {
    /// The bytes of the file that `identity` tells of.
    pub fn new(identity: Identity, bytes: Bytes) -> Self {
        Self { identity, bytes }
    }

    /// A file without bytes: of tensors of which only names and shapes are looked at.
    pub fn without_bytes(path: PathBuf) -> Self {
        let version = Version::Modified(SystemTime::UNIX_EPOCH);
        Self { identity: Identity { path, length: 0, version }, bytes: Bytes::new() }
    }
}

impl Store for Memory {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read<'a>(&'a self, ranges: &'a [Range<u64>]) -> BoxFuture<'a, Result<Vec<Bytes>, StoreError>> {
        future::ready(slices(&self.identity, &self.bytes, ranges)).boxed()
    }

    fn read_now(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        Ok(self.bytes.slice(self.identity.indexes(&range)?))
    }

    /// Does nothing, because the bytes cannot be read again from anywhere else.
    fn release(&self, _: Range<u64>) {}

    /// Always right: the bytes are this process's own.
    fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Views of a file that is in memory.
pub(crate) fn slices(identity: &Identity, bytes: &Bytes, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
    ranges.iter().map(|range| Ok(bytes.slice(identity.indexes(range)?))).collect()
}
