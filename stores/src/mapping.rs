//! A local file, mapped into memory: what is read of it are views, and only the pages that are looked at are loaded.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, BoxFuture};
use memmap2::Mmap;

use crate::memory::slices;
use crate::{Identity, Store, StoreError};

/// A file mapped for reading.
///
/// The file must not be modified or truncated while it is mapped: what is read then is undefined, and a read beyond
/// the new end ends the process. Files that are replaced by renaming, as download tools do, are safe.
#[derive(Debug)]
pub struct LocalMapping {
    identity: Identity,
    map: Arc<Mmap>,
    /// The whole of it; views share it.
    bytes: Bytes,
}

/// The owner of the bytes of a mapping.
struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl LocalMapping {
    /// Maps `file`, of which `identity` tells.
    ///
    /// # Errors
    /// If the system cannot map it.
    pub(crate) fn new(identity: Identity, file: &File) -> Result<Self, StoreError> {
        // SAFETY: the map is read-only and handed out only as `Bytes` that keep it alive. What Rust cannot promise is
        // that no other process modifies or truncates the file meanwhile: the bytes would change under a shared
        // reference, or an access raise SIGBUS. No operating system we run on can rule this out; the type's
        // documentation makes it the caller's duty, as every reader of mapped safetensors files does.
        let map = unsafe { Mmap::map(file) }.map_err(|e| StoreError::io(&identity.path, e))?;
        let map = Arc::new(map);
        let bytes = Bytes::from_owner(Mapped(Arc::clone(&map)));
        Ok(Self { identity, map, bytes })
    }
}

impl Store for LocalMapping {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read<'a>(&'a self, ranges: &'a [Range<u64>]) -> BoxFuture<'a, Result<Vec<Bytes>, StoreError>> {
        future::ready(slices(&self.identity, &self.bytes, ranges)).boxed()
    }

    fn read_now(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        Ok(self.bytes.slice(self.identity.indexes(&range)?))
    }

    /// Gives the pages of a range back, so that they no longer count as this process's memory.
    fn release(&self, range: Range<u64>) {
        #[cfg(unix)]
        if let Some(range) = self.identity.indexes(&range).ok().filter(|range| !range.is_empty()) {
            use memmap2::UncheckedAdvice;

            // SAFETY: the pages are those of a file, mapped for reading and never written to, so a thread that reads
            // them again, also at this moment, gets the same bytes from the file. It is advice: where the system does
            // not take it, memory is given back when it is short.
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
