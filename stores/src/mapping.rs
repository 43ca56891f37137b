//! A local file, mapped into memory: what is read of it are views, and only the pages that are looked at are loaded.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, BoxFuture};
use memmap2::Mmap;

use crate::change::Opened;
use crate::faults::Watched;
use crate::memory::slices;
use crate::{Identity, Store, StoreError};

/// A file mapped for reading.
///
/// The file must not be modified or truncated while it is mapped. Files that are replaced by renaming, as download tools
/// do, are safe. If it is modified nevertheless, views may show the new bytes, and zeros where a part was cut off.
/// [`check`](Store::check) tells that after a view was used. Views that outlive the last check have no protection against wrong
/// values, but the process goes on.
#[derive(Debug)]
pub struct LocalMapping {
    identity: Identity,
    opened: Opened,
    mapping: Arc<Mapping>,
    /// The whole of it; views share it.
    bytes: Bytes,
    /// Whether the last check failed.
    is_told: AtomicBool,
}

/// A mapping, which lives as long as its store or a view of it.
#[derive(Debug)]
struct Mapping {
    // Before the map, which it must not outlive.
    watched: Watched,
    map: Mmap,
}

/// The owner of the bytes of a mapping.
struct Mapped(Arc<Mapping>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

impl Mapping {
    fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only and handed out only as `Bytes` that keep it alive. What Rust cannot promise is
        // that no other process modifies or truncates the file meanwhile: the bytes would change under a shared
        // reference. No operating system we run on can rule this out. Pages that are cut off read as zeros, because the
        // mapping is watched before anything is read of it, and the store's check afterwards finds both.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self { watched: Watched::new(&map)?, map })
    }
}

impl LocalMapping {
    /// Maps `file`, of which `identity` and `opened` tell.
    ///
    /// # Errors
    /// If the system cannot map it, or its faults cannot be caught.
    pub(crate) fn new(identity: Identity, opened: Opened, file: &File) -> io::Result<Self> {
        let mapping = Arc::new(Mapping::new(file)?);
        let bytes = Bytes::from_owner(Mapped(Arc::clone(&mapping)));
        Ok(Self { identity, opened, mapping, bytes, is_told: AtomicBool::new(false) })
    }
}

impl Store for LocalMapping {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read<'a>(&'a self, ranges: &'a [Range<u64>]) -> BoxFuture<'a, Result<Vec<Bytes>, StoreError>> {
        future::ready(self.read_each_now(ranges)).boxed()
    }

    fn read_now(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.check()?;
        Ok(self.bytes.slice(self.identity.indexes(&range)?))
    }

    fn read_each_now(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        self.check()?;
        slices(&self.identity, &self.bytes, ranges)
    }

    /// Gives the pages of a range back, so that they no longer count as this process's memory.
    fn release(&self, range: Range<u64>) {
        #[cfg(unix)]
        if let Some(range) = self.identity.indexes(&range).ok().filter(|range| !range.is_empty()) {
            use memmap2::UncheckedAdvice;

            let (map, length) = (&self.mapping.map, range.len());
            // SAFETY: the pages are those of a file, mapped for reading and never written to, so a thread that reads
            // them again, also at this moment, gets the same bytes from the file, or zeros where they stand in for pages
            // that are missing. It is advice: where the system does not take it, memory is given back when it is short.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, length) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    fn check(&self) -> Result<(), StoreError> {
        let changed = self.opened.check();
        let checked = match self.mapping.watched.fault() {
            // The file is what it was, and yet a page of it was missing: the disk does not give it.
            Some(_) if changed.is_ok() => Err(StoreError::io(&self.identity.path, unreadable())),
            Some(_) | None => changed,
        };
        if checked.is_err() {
            self.is_told.store(true, Ordering::Relaxed);
        }
        checked
    }
}

impl Drop for LocalMapping {
    fn drop(&mut self) {
        if self.mapping.watched.fault().is_some() && !self.is_told.load(Ordering::Relaxed) {
            let path = self.identity.path.display();
            log::warn!("{path}: a part could not be read, and zeros took its place: what was made of it is wrong");
        }
    }
}

/// The error of a page that the disk does not give.
fn unreadable() -> io::Error {
    io::Error::other("a part of it cannot be read: check the disk or the connection that it is on")
}
