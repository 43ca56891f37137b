//! What a quantized model can be written as, one file a target: what it allows when the plan is made, and the files it
//! consists of. A target is a file here and a line in [`TARGETS`].

mod directory;
mod part;
mod written;

use std::fmt;
use std::path::Path;

use arrow::array::RecordBatch;
use arrow_quant_formats::manifest::{FileEntry, Manifest};

pub(crate) use written::{Written, WrittenTensor, add_written};

use crate::Result;
use crate::plan::Allowed;

/// Every target; the first is the one that jobs write.
static TARGETS: &[&dyn Target] = &[&directory::Directory];

/// The extension of a part's file until it is complete, whatever the target: what a run that was cut short leaves of it
/// is removed.
pub(crate) const UNFINISHED: &str = "unfinished";

/// Something that a quantized model can be written as.
pub(crate) trait Target: fmt::Debug + Send + Sync {
    /// What it can hold: asked when the plan is made, so that what does not fit is a reason in the plan.
    fn allowed(&self) -> Allowed;

    /// The folder of an output that holds the files of its parts, and nothing else.
    fn parts(&self) -> &'static str;

    /// Creates the file of a part in an output. Parts are written at the same time and in any order.
    ///
    /// # Errors
    /// If the file cannot be created.
    fn part_writer(&self, output: &Path, part: usize) -> Result<Box<dyn PartWriter>>;

    /// Ends an output in which all parts are finished: writes what makes it a whole, and makes all of it durable.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn finish(&self, output: &Path, manifest: &Manifest) -> Result<()>;
}

/// Writes one part. It waits for the disk, so its place is not a thread of the runtime.
pub(crate) trait PartWriter: Send {
    /// Adds rows of the query of a job.
    ///
    /// # Errors
    /// If the file cannot be written.
    fn write(&mut self, batch: &RecordBatch) -> Result<()>;

    /// Ends the file, makes it durable and gives it its name, in place of an earlier one of the same part.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn finish(self: Box<Self>) -> Result<FileEntry>;
}

/// The target that jobs write.
pub(crate) fn default_target() -> &'static dyn Target {
    TARGETS[0]
}

/// The names of all targets, to be listed.
pub(crate) fn target_names() -> String {
    TARGETS.iter().map(|target| target.allowed().target).collect::<Vec<_>>().join(", ")
}

/// The target of a name.
pub(crate) fn target_named(name: &str) -> Option<&'static dyn Target> {
    TARGETS.iter().copied().find(|target| target.allowed().target == name)
}
