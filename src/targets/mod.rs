//! What a quantized model can be written as, one file a target: what it allows when the plan is made, and the files it
//! consists of. A target is a file here and a line in [`TARGETS`].

mod directory;
mod gguf;
mod hashed;
mod part;
mod raw;
mod runtimes;
mod safetensors;
mod stored;
#[cfg(test)]
mod tests;
mod written;

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_quant_formats::directory::{Missing, check_file};
use arrow_quant_formats::manifest::{FileEntry, MANIFEST, Manifest};
use arrow_quant_kernels::GroupSize;
use datafusion::catalog::TableProvider;

pub use runtimes::{FormatReport, Runtime, formats};
pub(crate) use written::{Written, WrittenTensor, add_written};

use crate::config::{Format, WeightType};
use crate::plan::{Allowed, ModelPlan, Request};
use crate::{DiffusionQuantConfig, Model, QuantError, Result, disk};

/// Every target; the first is the one that jobs write unless they are asked for another.
static TARGETS: &[&dyn Target] = &[
    &directory::Directory,
    &gguf::Gguf,
    &safetensors::SDNQ,
    &safetensors::COMPRESSED_TENSORS,
    &safetensors::MLX,
    &safetensors::COMFYUI,
    &safetensors::RESTORED,
    &safetensors::RESTORED_FILE,
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

    /// The same for a configuration, whose settings may leave it less.
    fn allowed_with(&self, _config: &DiffusionQuantConfig) -> Allowed {
        self.allowed()
    }

    /// What weights become where a type is asked for that the target may not hold, but has its own of as many bits.
    fn weight_type(&self, asked: WeightType) -> WeightType {
        asked
    }

    /// Looks at a model that is about to be planned: what an output of it consists of. It waits for the disk.
    ///
    /// # Errors
    /// If the target has no place for such a model.
    fn layout(&self, model: &Arc<Model>, config: &DiffusionQuantConfig) -> Result<Arc<dyn Layout>>;

    /// The weights of an output that was made of a model with a configuration, as the model has them: the columns
    /// `component`, `tensor`, `chunk` and `weights`. Our own directory has tables of its own instead. It waits for the disk.
    ///
    /// # Errors
    /// If the output is not of the model.
    fn restored(&self, file: &Path, _: &Arc<Model>, _: &DiffusionQuantConfig) -> Result<Arc<dyn TableProvider>> {
        Err(QuantError::missing(file, Missing::NotQuantized))
    }

    /// The folder of an output that holds the files of its parts, and nothing else.
    fn parts(&self) -> &'static str;

    /// The name of the file, below the folder that is written to, if an output is one file. `None` if it is the folder.
    fn file(&self) -> Option<&'static str> {
        None
    }

    /// How the name of an output that is one file must end, for programs to know it. `None` if that does not matter.
    fn extension(&self) -> Option<&'static str> {
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

    /// Tensors of the model, by index, that must become the same, because they are one in the output or to those who load it.
    fn units(&self) -> Vec<Vec<usize>> {
        Vec::new()
    }

    /// Bytes of an output of a model beyond those of its parts, more or less, and not fewer: headers, and floats that become
    /// longer.
    fn overhead(&self, _model: &Model) -> u64 {
        0
    }

    /// Looks at a plan before any work.
    ///
    /// # Errors
    /// If what it would make of the model is of no use.
    fn check(&self, _plan: &ModelPlan) -> Result<()> {
        Ok(())
    }

    /// Makes the files of an output from those of its parts, which are given in order. The files of the parts must
    /// stay, for another run to go on from if this one ends now.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn assemble(&self, output: &Path, parts: Vec<FileEntry>, plan: &ModelPlan) -> Result<Vec<FileEntry>>;
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

    fn assemble(&self, _output: &Path, parts: Vec<FileEntry>, _plan: &ModelPlan) -> Result<Vec<FileEntry>> {
        Ok(parts)
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

    pub(crate) fn target(self) -> &'static dyn Target {
        self.0
    }

    /// The target that a configuration asks for, or else that the name of an output implies.
    pub fn of(config: &DiffusionQuantConfig, output: Option<&Path>) -> Self {
        let implied = || {
            let extension = output?.extension()?.to_str()?.to_ascii_lowercase();
            Format::ALL.iter().map(|(format, _)| *format).find(|format| format.name() == extension)
        };
        let is_file_of_weights = output.is_some_and(|output| check_file(output).is_ok());
        match config.format.or_else(implied) {
            Some(Format::Gguf) => Self(&gguf::Gguf),
            Some(Format::Sdnq) => Self(&safetensors::SDNQ),
            Some(Format::CompressedTensors) => Self(&safetensors::COMPRESSED_TENSORS),
            Some(Format::Mlx) => Self(&safetensors::MLX),
            Some(Format::ComfyUi) => Self(&safetensors::COMFYUI),
            Some(Format::Safetensors) if is_file_of_weights => Self(&safetensors::RESTORED_FILE),
            Some(Format::Safetensors) => Self(&safetensors::RESTORED),
            Some(Format::ArrowQuant) | None => Self::default(),
        }
    }
}

/// Writes the manifest of an output, and makes it and the names of all files durable. It has its name last, as a whole: with it,
/// the output is complete.
fn write_manifest(output: &Path, manifest: &Manifest) -> Result<()> {
    let json = manifest.to_json().map_err(|error| QuantError::Quantization {
        tensor: None,
        message: format!("the manifest cannot be written: {error}"),
    })?;
    let path = output.join(MANIFEST);
    let unfinished = path.with_extension(UNFINISHED);
    disk::write_file(&unfinished, json.as_bytes())?;
    disk::rename_file(&unfinished, &path)?;
    disk::sync_directory(output)
}

/// Removes the files of parts that an output was assembled from.
fn remove_parts(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(QuantError::io(path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// An error that no input should cause.
fn defect(what: &str) -> QuantError {
    QuantError::Quantization { tensor: None, message: format!("{what}; this is a defect, please report it") }
}

/// Group sizes of so many weights, for tables of what targets hold: in a constant, one that there is not does not compile.
const fn sizes<const N: usize>(weights: [usize; N]) -> [GroupSize; N] {
    let mut sizes = [GroupSize::ALL[0]; N];
    let mut at = 0;
    while at < N {
        let mut index = 0;
        while GroupSize::ALL[index].get() != weights[at] {
            index += 1;
        }
        sizes[at] = GroupSize::ALL[index];
        at += 1;
    }
    sizes
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
