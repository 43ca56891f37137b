//! Where models are: ranges of bytes of local files and of memory, and what of a file system and of object stores the
//! clients of a server may reach.
//!
//! A [`Location`] names a file or directory; opened, a file is a [`Store`]: it says who it is ([`Identity`]), gives ranges
//! of bytes, takes back what is not needed any more, and tells whether its file has changed. Mappings, advice to the kernel and modification times are
//! known here and nowhere else.

mod allowed;
mod change;
mod error;
#[cfg(unix)]
mod faults;
mod guarded;
mod location;
mod mapping;
mod memory;
#[cfg(not(unix))]
mod no_faults;
mod ranges;
mod store;

#[cfg(not(unix))]
use no_faults as faults;

pub use allowed::AllowedPaths;
pub use change::check_listed;
pub use error::{AllowProblem, Change, StoreError};
pub use guarded::GuardedStores;
pub use location::{Listed, ListedKind, Location, Residence};
pub use mapping::LocalMapping;
pub use memory::Memory;
pub use ranges::LocalRanges;
pub use store::{Identity, Store, Version};
