//! Models as they lie on disk: a safetensors file, a directory of them, or a diffusers pipeline. Opening one reads and
//! checks headers only; the weights stay in the mapped files until they are looked at.

mod family;
mod layout;
mod mapped;
pub mod safetensors;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arrow_quant_kernels::Dtype;
use sha2::{Digest, Sha256};

pub(crate) use family::{Detected, Evidence, detect};
pub(crate) use layout::MANIFEST;
pub use mapped::MappedFile;

use crate::error::Result;
use safetensors::{defect, header_json, shown};

/// Where the last axis is shorter than this, a row is everything under one index of the first axis.
const SHORT_AXIS: i64 = 32;

/// The tensors of a model, and the files they are in. The files must not be modified while the model is open.
#[derive(Debug)]
pub struct Model {
    path: PathBuf,
    tensors: Vec<Tensor>,
    files: Vec<(Arc<str>, Arc<MappedFile>)>,
    metadata: BTreeMap<String, String>,
}

/// One tensor of a model, its data in a mapped file.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The component of a pipeline it belongs to, empty for a plain model.
    pub component: String,
    /// Its name, unique in the component.
    pub name: String,
    /// The dtype its elements are stored in, as safetensors spells it.
    pub dtype: String,
    /// Its dimensions, none negative.
    pub shape: Vec<i64>,
    /// Bytes of its data.
    pub bytes: u64,
    file: Arc<MappedFile>,
    file_name: Arc<str>,
    offset: usize,
}

impl Model {
    /// Opens the model at `path`:
    ///
    /// - a `.safetensors` file;
    /// - a directory with a `*.safetensors.index.json`: the files that it names, each holding the tensors it says;
    /// - a directory without: all its `*.safetensors`, save variants (`model.fp16.safetensors` beside
    ///   `model.safetensors`);
    /// - a diffusers pipeline, a directory with a `model_index.json`: each subdirectory that it names as a component and
    ///   that has weights, read as above.
    ///
    /// # Errors
    /// [`ModelNotFound`](crate::error::QuantError::ModelNotFound) if there is nothing that can be read,
    /// [`Metadata`](crate::error::QuantError::Metadata) if headers or indexes contradict each other or the files,
    /// [`Io`](crate::error::QuantError::Io) if a file cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::load(path, true)
    }

    /// Opens the model at `path`, with all its files read into memory if not `streaming`.
    pub(crate) fn load(path: &Path, streaming: bool) -> Result<Self> {
        let mut model =
            Self { path: path.to_path_buf(), tensors: Vec::new(), files: Vec::new(), metadata: BTreeMap::new() };
        for component in layout::components(path)? {
            model.read(&component, streaming)?;
        }
        model.tensors.sort_by(|a, b| (&a.component, &a.name).cmp(&(&b.component, &b.name)));
        model.files.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(model)
    }

    /// The file or directory it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor, in the order of component and name, bytewise.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Free text in the headers of the files; of the same key in several, the first file's.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Every file of weights with its name as in [`Tensor::file_name`], in the order of the names.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&str, &Arc<MappedFile>)> {
        self.files.iter().map(|(name, file)| (&**name, file))
    }

    /// The files of the model's directory that are not weights, such as `config.json` and tokenizers, as paths
    /// relative to it, in order; of a pipeline those of its subdirectories too. Hidden files, weights in any format
    /// and their indexes are left out, and so are tables and arrays of data. None for a model that is a single file.
    ///
    /// # Errors
    /// [`Io`](crate::error::QuantError::Io) if a directory cannot be listed.
    pub fn config_files(&self) -> Result<Vec<PathBuf>> {
        if !self.path.is_dir() {
            return Ok(Vec::new());
        }
        layout::other_files(&self.path, self.tensors.iter().any(|tensor| !tensor.component.is_empty()))
    }

    /// A SHA-256 in hexadecimal that changes if the model does: over each weight file's name, size, modification time
    /// and header. The weights themselves are not read, as that takes as long as quantizing them.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (name, file) in &self.files {
            let bytes = file.bytes();
            // A file without a header was never opened.
            let header = header_json(file.path(), bytes).map_or(0, |json| 8 + json.len());
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(nanoseconds(file.modified()).to_le_bytes());
            hash.update(&bytes[..header]);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn read(&mut self, component: &layout::Component, streaming: bool) -> Result<()> {
        let first = self.tensors.len();
        for path in &component.files {
            let file = MappedFile::open(path, streaming)?;
            let own_name = layout::name(path);
            let in_pipeline = !component.name.is_empty();
            let file_name = if in_pipeline { format!("{}/{own_name}", component.name) } else { own_name };
            let file_name: Arc<str> = file_name.into();
            let safetensors::Header { metadata, tensors } = safetensors::parse(path, file.bytes())?;
            for (key, value) in metadata {
                self.metadata.entry(key).or_insert(value);
            }
            for header in tensors {
                self.tensors.push(Tensor {
                    component: component.name.clone(),
                    name: header.name,
                    dtype: header.dtype,
                    shape: header.shape,
                    bytes: header.bytes as u64,
                    file: Arc::clone(&file),
                    file_name: Arc::clone(&file_name),
                    offset: header.offset,
                });
            }
            self.files.push((file_name, file));
        }
        let tensors = &mut self.tensors[first..];
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        check_unique(tensors)?;
        component.index.as_ref().map_or(Ok(()), |index| check_index(index, tensors))
    }
}

impl Tensor {
    /// Elements in all: the product of the dimensions.
    pub fn elements(&self) -> u64 {
        product(&self.shape)
    }

    /// Its elements as they are stored: little-endian, row-major, at any alignment.
    pub fn data(&self) -> &[u8] {
        &self.file.bytes()[self.offset..self.offset + self.bytes as usize]
    }

    /// Says that some elements will not be looked at again soon.
    pub(crate) fn release(&self, elements: Range<u64>) {
        let byte =
            |element: u64| (u128::from(element) * u128::from(self.bytes) / u128::from(self.elements().max(1))) as usize;
        self.file.release(self.offset + byte(elements.start)..self.offset + byte(elements.end));
    }

    /// The file it is in, relative to the model's directory, with `/` between a component and the file.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }

    /// The file it is in.
    pub fn file(&self) -> &Arc<MappedFile> {
        &self.file
    }

    /// Where its data begin in the file.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Its dtype if that is a floating-point one which can be quantized.
    pub fn float_dtype(&self) -> Option<Dtype> {
        self.dtype.parse().ok()
    }

    /// Elements of a row, which groups never leave: the last axis, or where that is shorter than 32 everything under
    /// one index of the first axis. 1 for a scalar, 0 if a dimension of the row is 0.
    pub fn row_length(&self) -> u64 {
        row_length(&self.shape)
    }
}

/// Elements of a row of a tensor of this shape.
pub(crate) fn row_length(shape: &[i64]) -> u64 {
    match shape {
        [_, rest @ .., last] if *last < SHORT_AXIS => product(rest) * last.unsigned_abs(),
        [.., last] => last.unsigned_abs(),
        [] => 1,
    }
}

/// No overflow: headers with too large a product are refused, whichever of the dimensions are left out.
fn product(shape: &[i64]) -> u64 {
    shape.iter().map(|dimension| dimension.unsigned_abs()).product()
}

fn nanoseconds(time: SystemTime) -> i128 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

/// `tensors` are one component's, in the order of their names.
fn check_unique(tensors: &[Tensor]) -> Result<()> {
    match tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some([first, second]) => {
            let other = &second.file_name;
            let message = format!("is in `{}` and in `{other}`, expected in one: move one file away", first.file_name);
            Err(defect(first.file.path(), Some(&first.name), message))
        }
        _ => Ok(()),
    }
}

/// Checks that each tensor is in the file which the index names, and that neither knows a tensor that the other does
/// not: it would be lost without a word.
fn check_index(index: &layout::Index, tensors: &[Tensor]) -> Result<()> {
    for tensor in tensors {
        let found = layout::name(tensor.file.path());
        match index.weight_map.get(&tensor.name) {
            Some(expected) if *expected == found => {}
            Some(expected) => {
                let message = format!("is in `{found}`, expected in `{}` by the index", shown(expected));
                return Err(defect(&index.path, Some(&tensor.name), message));
            }
            None => {
                let message = format!("is in `{found}`, but the index does not name it; expected every tensor");
                return Err(defect(&index.path, Some(&tensor.name), message));
            }
        }
    }
    let missing = index
        .weight_map
        .iter()
        .find(|(name, _)| tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name.as_str())).is_err());
    match missing {
        Some((name, file)) => {
            let message = format!("is not in `{}`, where the index expects it: get the file again", shown(file));
            Err(defect(&index.path, Some(name), message))
        }
        None => Ok(()),
    }
}
