//! What a file of weights is to the engine, wherever it lies.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::StoreError;

/// A file whose ranges of bytes can be read.
///
/// Bytes that were read stay as they are for as long as they are held, save for those of a
/// [`LocalMapping`](crate::LocalMapping), which are the file itself. Code that used bytes therefore calls
/// [`check`](Self::check) before the result counts: a store of a file that changed fails then, instead of mixing two versions.
pub trait Store: fmt::Debug + Send + Sync {
    /// Where it lies, its length and its version, as of its opening.
    fn identity(&self) -> &Identity;

    /// Ranges of bytes, in the order asked for. A store that has the bytes in memory gives views and is ready at once.
    ///
    /// # Errors
    /// If a range is not in the file, or it cannot be read.
    fn read<'a>(&'a self, ranges: &'a [Range<u64>]) -> BoxFuture<'a, Result<Vec<Bytes>, StoreError>>;

    /// A range of bytes, for threads that compute: it waits where [`read`](Self::read) would.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_now(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        let ranges = [range];
        let mut read = futures::executor::block_on(self.read(&ranges))?;
        Ok(read.pop().unwrap_or_default())
    }

    /// Ranges of bytes, for threads that compute, in the order asked for.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_each_now(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        ranges.iter().map(|range| self.read_now(range.clone())).collect()
    }

    /// Says that a range will not be looked at again soon, so that it need not stay in memory.
    fn release(&self, range: Range<u64>);

    /// Checks that the file is still the one that was opened, so that what was made of its bytes up to now is right. A file that
    /// was replaced by renaming is as good: the store goes on with the one it has.
    ///
    /// # Errors
    /// [`Changed`](StoreError::Changed) if the file was modified, [`Io`](StoreError::Io) if a part of it could not be read.
    fn check(&self) -> Result<(), StoreError>;
}

/// Who a store is. Two of equal identity hold the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Where it lies.
    pub path: PathBuf,
    /// Its length in bytes.
    pub length: u64,
    /// Which version of the file it is.
    pub version: Version,
}

/// Which version of a file was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Version {
    /// The time a local file was last modified.
    Modified(SystemTime),
}

/// The time that files which are known by their content have: 1980-01-01, the first that every file system can tell.
const OF_CONTENT: Duration = Duration::from_secs(315_532_800);

impl Version {
    /// Gives a local file a version that does not depend on when it was written. Such files are known by their content: they
    /// hold a hash of it in their header, so that equal files have equal headers and versions.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn make_independent_of_time(file: &File) -> io::Result<()> {
        file.set_modified(SystemTime::UNIX_EPOCH + OF_CONTENT)
    }

    /// Bytes that are equal for equal versions, to be hashed.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Modified(time) => nanoseconds(*time).to_le_bytes().to_vec(),
        }
    }
}

impl Identity {
    /// A range of the file as indexes of its bytes.
    pub(crate) fn indexes(&self, range: &Range<u64>) -> Result<Range<usize>, StoreError> {
        let inside = range.start <= range.end && range.end <= self.length;
        match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) if inside => Ok(start..end),
            _ => Err(StoreError::Range { path: self.path.clone(), range: range.clone(), length: self.length }),
        }
    }
}

fn nanoseconds(time: SystemTime) -> i128 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}
