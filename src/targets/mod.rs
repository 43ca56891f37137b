//! What a quantized model can be written as, one file a target: what it allows when the plan is made, and the files it
//! consists of. A target is a file here and a line in [`TARGETS`].

mod directory;
mod gguf;
mod hashed;
mod part;
mod raw;
#[cfg(test)]
mod tests;
mod written;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_quant_formats::directory::Missing;
use arrow_quant_formats::manifest::{FileEntry, Manifest};
use datafusion::catalog::TableProvider;

pub(crate) use written::{Written, WrittenPart, WrittenTensor, add_written};

use crate::config::{Format, WeightType};
use crate::plan::{Allowed, ModelPlan, Request};
use crate::{DiffusionQuantConfig, Model, QuantError, Result};

/// Every target; the first is the one that jobs write unless they are asked for another.
static TARGETS: &[&dyn Target] = &[
    &directory::Directory,
    &gguf::Gguf,
    #[cfg(test)]
    &tests::OneFile,
];

/// The extension of a part's file until it is complete, whatever the target: what a run that was cut short leaves of it
/// is removed.
pub(crate) const UNFINISHED: &str = "unfinished";

/// Something that a quantized model can be written as.
pub(crate) trait Target: fmt::Debug + Send + Sync {
    /// What it can hold: asked when the plan is made, so that what does not fit is a reason in the plan.
    fn allowed(&self) -> Allowed;

    /// What weights become where a type is asked for that the target may not hold, but has its own of as many bits.
    fn weight_type(&self, asked: WeightType) -> WeightType {
        asked
    }

    /// Looks at a model that is about to be planned: what an output of it consists of. It waits for the disk.
    ///
    /// # Errors
    /// If the target has no place for such a model.
    fn layout(&self, model: &Arc<Model>, config: &DiffusionQuantConfig) -> Result<Arc<dyn Layout>>;

    /// The weights of an output that is a file and was made of a model with a configuration, as the model has them: the columns
    /// `component`, `tensor`, `chunk` and `weights`. It waits for the disk.
    ///
    /// # Errors
    /// If the file is not of the model.
    fn restored(&self, file: &Path, _: &Arc<Model>, _: &DiffusionQuantConfig) -> Result<Arc<dyn TableProvider>> {
        Err(QuantError::missing(file, Missing::NotQuantized))
    }

    /// The folder of an output that holds the files of its parts, and nothing else.
    fn parts(&self) -> &'static str;

    /// The name of the file, below the folder that is written to, if an output is one file. `None` if it is the folder.
    fn file(&self) -> Option<&'static str> {
        None
    }

    /// Creates the file of a part in an output. Parts are written at the same time and in any order, and some of them again
    /// when their tensors become something else.
    ///
    /// # Errors
    /// If the file cannot be created.
    fn part_writer(&self, output: &Path, part: usize) -> Result<Box<dyn PartWriter>>;

    /// Ends an output whose files are there: writes what makes it a whole, and makes all of it durable.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn finish(&self, output: &Path, manifest: &Manifest) -> Result<()>;
}

/// What an output of one model consists of.
pub(crate) trait Layout: fmt::Debug + Send + Sync {
    /// What the plan of each tensor of the model must follow.
    fn requests(&self) -> &[Request];

    /// Makes the files of an output from those of its parts, which are finished and in order. The files of the parts must
    /// stay, for another run to go on from if this one ends now.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn assemble(&self, output: &Path, parts: Vec<WrittenPart>, plan: &ModelPlan) -> Result<Vec<FileEntry>>;
}

/// A layout whose files are those of the parts, of any model.
#[derive(Debug)]
struct PartFiles {
    requests: Vec<Request>,
}

impl PartFiles {
    fn of(model: &Model) -> Arc<dyn Layout> {
        Arc::new(Self { requests: vec![Request::Free; model.tensors().len()] })
    }
}

impl Layout for PartFiles {
    fn requests(&self) -> &[Request] {
        &self.requests
    }

    fn assemble(&self, _output: &Path, parts: Vec<WrittenPart>, _plan: &ModelPlan) -> Result<Vec<FileEntry>> {
        Ok(parts.into_iter().map(|part| part.file).collect())
    }
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

/// A target, by its name.
#[derive(Clone, Copy)]
pub struct TargetName(&'static dyn Target);

impl TargetName {
    /// The names of all targets.
    pub fn all() -> impl Iterator<Item = &'static str> {
        TARGETS.iter().map(|target| target.allowed().target)
    }

    /// The names of the targets whose outputs are directories.
    pub(crate) fn directories() -> impl Iterator<Item = &'static str> {
        TARGETS.iter().filter(|target| target.file().is_none()).map(|target| target.allowed().target)
    }

    pub(crate) fn target(self) -> &'static dyn Target {
        self.0
    }

    /// The target that a configuration asks for, or else that the name of an output implies.
    pub fn of(config: &DiffusionQuantConfig, output: Option<&Path>) -> Self {
        let implied = || {
            let extension = output?.extension()?.to_str()?.to_ascii_lowercase();
            Format::ALL.iter().map(|(format, _)| *format).find(|format| format.name() == extension)
        };
        match config.format.or_else(implied) {
            Some(Format::Gguf) => Self(&gguf::Gguf),
            Some(Format::ArrowQuant) | None => Self::default(),
        }
    }
}

/// The quantized model directory.
impl Default for TargetName {
    fn default() -> Self {
        Self(TARGETS[0])
    }
}

impl PartialEq for TargetName {
    fn eq(&self, other: &Self) -> bool {
        self.0.allowed().target == other.0.allowed().target
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.allowed().target)
    }
}

impl fmt::Debug for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TargetName({self})")
    }
}

impl FromStr for TargetName {
    type Err = QuantError;

    fn from_str(name: &str) -> Result<Self> {
        TARGETS.iter().find(|target| target.allowed().target == name).map(|target| Self(*target)).ok_or_else(|| {
            let names: Vec<_> = Self::all().collect();
            QuantError::field("target", format!("the target is '{name}', allowed: {}", names.join(", ")))
        })
    }
}
