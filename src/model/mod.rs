//! Models as they lie in a store: a safetensors or GGUF file, a directory of them, or a diffusers pipeline. Opening one reads and
//! checks headers only; the weights stay in their stores until they are looked at. Weights that another program quantized are
//! restored when they are read.

mod directory;
mod opened;
mod origins;
mod quantized;
mod restored;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_quant_formats::directory::{
    Component, FoundTensor, LeftOut, Why, check_file, config_files, is_adapter, layout, not_there,
};
use arrow_quant_formats::gguf::Value;
use arrow_quant_formats::schemes::{
    Claim, QuantizedSource, claim_of_config, claim_of_metadata, claiming_files, is_only_claim, without_claims,
};
use arrow_quant_formats::{ContentHash, StoredType, full_name, row_length};
use arrow_quant_kernels::Dtype;
use arrow_quant_stores::{Location, Residence, Store};
use bytes::Bytes;

use crate::error::{QuantError, Result, SettingProblem};
use directory::ModelDirectory;
pub(crate) use opened::gguf_header_at;
use opened::{Header, WeightFile};
use origins::{Origin, State};
pub(crate) use quantized::{QuantizedDirectory, hash_of, manifest_at, manifest_path, verify_file};

/// The tensors of a model, and the files they are in. The files must not be modified while the model is open;
/// [`check`](Self::check) tells whether they were.
#[derive(Debug)]
pub struct Model {
    location: Location,
    tensors: Vec<Tensor>,
    files: Vec<WeightFile>,
    metadata: BTreeMap<String, String>,
    left_out: Vec<LeftOut>,
    is_pipeline: bool,
    origins: Vec<Origin>,
    /// For each tensor the first one that is the same, where that is known without looking at the weights.
    ties: Option<Vec<Option<usize>>>,
}

/// One tensor of a model, its data in a store.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The component of a pipeline it belongs to, empty for a plain model.
    pub component: String,
    /// Its name, unique in the component.
    pub name: String,
    /// The type its elements are stored in.
    pub stored: StoredType,
    /// Its dimensions, none negative.
    pub shape: Vec<i64>,
    /// Bytes of its data.
    pub bytes: u64,
    file: WeightFile,
    offset: u64,
}

impl Model {
    /// Opens the model at `path`:
    ///
    /// - a `.safetensors` or `.gguf` file;
    /// - a directory with a `*.safetensors.index.json`: the files that it names, each holding the tensors it says;
    /// - a directory without: all its `*.safetensors`, of which no shard may be missing;
    /// - a diffusers pipeline, a directory with a `model_index.json`: each subdirectory that it names as a component, read as
    ///   above;
    /// - a directory without any of them: its only `*.gguf`.
    ///
    /// Tensors that another program quantized are those of the original model, restored to F32, where the scheme is one that is
    /// read; else they are what is stored, and [`quantized_source`](Self::quantized_source) tells how.
    ///
    /// Of weights that are there more than once one copy is read, and [`left_out`](Self::left_out) tells of the others: those
    /// without a variant (`model.safetensors` beside `model.fp16.safetensors`), the names of transformers (`model.safetensors`
    /// beside `consolidated.safetensors`), what an index names, and a whole file before shards without an index.
    ///
    /// # Errors
    /// [`ModelNotFound`](QuantError::ModelNotFound) if there is nothing that can be read, or weights are missing,
    /// [`Metadata`](QuantError::Metadata) if headers or indexes contradict each other or the files,
    /// [`Io`](QuantError::Io) if a file cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::load(path, Residence::File, None)
    }

    /// Opens the model at `path` as [`open`](Self::open) does, and of weights with variants the one that is asked for, such as
    /// `fp16` of `model.fp16.safetensors`. Components that do not have it are read without.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Setting`](QuantError::Setting) if there is no such variant.
    pub fn open_variant(path: &Path, variant: Option<&str>) -> Result<Self> {
        Self::load(path, Residence::File, variant)
    }

    /// Opens the model at `path`, the bytes of its files where `residence` says.
    pub(crate) fn load(path: &Path, residence: Residence, variant: Option<&str>) -> Result<Self> {
        let location = Location::parse(path)?;
        let directory = ModelDirectory(&location);
        let (components, left_out) = match location.is_directory()? {
            None => return Err(QuantError::missing(path, not_there(path))),
            Some(true) => {
                let found = layout(&directory, variant).map_err(|error| directory.explain(error))?;
                (found.components, found.left_out)
            }
            Some(false) => {
                check_file(path).map_err(|missing| QuantError::missing(path, missing))?;
                if let Some(asked) = variant {
                    let (path, asked) = (path.to_path_buf(), Some(asked.to_string()));
                    return Err(QuantError::setting(
                        "variant",
                        SettingProblem::Variant { path, asked, there: Vec::new() },
                    ));
                }
                (vec![Component { name: String::new(), files: vec![PathBuf::new()], index: None }], Vec::new())
            }
        };
        let is_pipeline = components.iter().any(|component| !component.name.is_empty());
        let (tensors, files, metadata) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut model =
            Self { location, tensors, files, metadata, left_out, is_pipeline, origins: Vec::new(), ties: None };
        for component in components {
            model.read(&component, residence)?;
        }
        model.tensors.sort_by(|a, b| (&a.component, &a.name).cmp(&(&b.component, &b.name)));
        model.files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(model)
    }

    /// For each tensor the first one that is the same, where that is known without looking at the weights.
    pub(crate) fn ties(&self) -> Option<&[Option<usize>]> {
        self.ties.as_deref()
    }

    /// The file or directory it was opened at.
    pub fn path(&self) -> &Path {
        self.location.path()
    }

    /// The same, from which it can be opened whatever the working directory is.
    pub(crate) fn absolute_path(&self) -> Result<PathBuf> {
        Ok(self.location.absolute()?)
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
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&str, &Arc<dyn Store>)> {
        self.files.iter().map(|file| (&*file.name, &file.store))
    }

    /// What was found beside the weights and is no part of the model.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// What another program made of the weights, if they are stored as it quantized them: of the first component that cannot be
    /// restored. Of a claim that the tensors do not bear out, that is told, too.
    pub fn quantized_source(&self) -> Option<&QuantizedSource> {
        let of = |is: fn(&State) -> bool| self.origins.iter().find(|origin| is(&origin.state));
        let found =
            of(|state| matches!(state, State::Refused(_))).or_else(|| of(|state| matches!(state, State::Claimed)));
        found.map(|origin| &origin.source)
    }

    /// What another program made of the weights, of each component whose tensors are restored.
    pub fn restored_from(&self) -> impl Iterator<Item = &QuantizedSource> {
        self.origins.iter().filter(|origin| matches!(origin.state, State::Restored)).map(|origin| &origin.source)
    }

    /// Refuses a model with weights that are quantized and cannot be restored.
    ///
    /// # Errors
    /// Naming the scheme, or the tensor that is not understood.
    pub(crate) fn refuse_quantized(&self) -> Result<()> {
        self.origins.iter().find_map(|origin| origin.refusal(self.path())).map_or(Ok(()), Err)
    }

    /// Whether a file of the directory says how weights are quantized that are restored.
    fn is_outdated(&self, file: &Path) -> bool {
        let restored = self.origins.iter().filter(|origin| matches!(origin.state, State::Restored));
        let mut claiming = restored.flat_map(|origin| claiming_files(&origin.component));
        claiming.any(|claiming| claiming == file)
    }

    /// What configurations and metadata say of the quantization of a component.
    fn claims(&self, component: &str) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        for file in claiming_files(component).filter(|file| self.location.has_file(file)) {
            claims.extend(claim_of_config(&file, &self.location.read(&file)?));
        }
        claims.extend(claim_of_metadata(&self.metadata));
        Ok(claims)
    }

    /// The files of the model's directory that it needs beside its weights, such as `config.json`, tokenizers and licences, as
    /// paths relative to it, in order; of a pipeline those of its subdirectories too. Empty for a model that is a single
    /// file. Files that say how restored weights were quantized are left out.
    ///
    /// # Errors
    /// [`Io`](QuantError::Io) if a directory cannot be listed.
    pub fn config_files(&self) -> Result<Vec<PathBuf>> {
        match self.location.is_directory()? {
            Some(true) => {
                let mut files = config_files(&ModelDirectory(&self.location), self.is_pipeline)?;
                files.retain(|file| !(is_only_claim(file) && self.is_outdated(file)));
                Ok(files)
            }
            Some(false) | None => Ok(Vec::new()),
        }
    }

    /// The bytes of a file of the model's directory. `None` without the file, or for a model that is a single file.
    ///
    /// # Errors
    /// [`Io`](QuantError::Io) if it cannot be read.
    pub(crate) fn beside(&self, file: &Path) -> Result<Option<Vec<u8>>> {
        if self.location.has_file(file) { Ok(Some(self.location.read(file)?)) } else { Ok(None) }
    }

    /// Copies a file of the model's directory to a path of this machine, without what it says of the quantization of weights that
    /// are restored.
    ///
    /// # Errors
    /// [`Io`](QuantError::Io) if it cannot be read, or not be written there.
    pub(crate) fn copy_file(&self, file: &Path, to: &Path) -> Result<()> {
        if self.is_outdated(file)
            && let Some(text) = without_claims(file, &self.location.read(file)?)
        {
            return std::fs::write(to, text).map_err(|error| QuantError::io(to, error));
        }
        Ok(self.location.copy(file, to)?)
    }

    /// The JSON in a file of the model's directory. `None` without the file, or for a model that is a single file.
    ///
    /// # Errors
    /// If it cannot be read, or is not what was `expected`.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        file: &Path,
        expected: &'static str,
    ) -> Result<Option<T>> {
        if !self.location.has_file(file) {
            return Ok(None);
        }
        let directory = ModelDirectory(&self.location);
        let read = arrow_quant_formats::directory::read_json(&directory, file, expected);
        read.map(Some).map_err(|error| directory.explain(error))
    }

    /// A SHA-256 in hexadecimal that changes if the model does: over each weight file's name, size, version and header.
    /// The weights themselves are not read, as that takes as long as quantizing them.
    ///
    /// # Errors
    /// If a header cannot be read again.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = ContentHash::new();
        for WeightFile { name, store, header } in &self.files {
            let identity = store.identity();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(identity.length.to_le_bytes());
            hash.update(identity.version.to_bytes());
            hash.update(store.read_now(0..*header)?);
        }
        Ok(hash.finish())
    }

    /// Checks that every file of weights is still the one that was opened, so that what was made of its weights up to now is
    /// right. Files that were replaced by renaming are as good: the model goes on with those it has.
    ///
    /// # Errors
    /// [`Changed`](QuantError::Changed) if one was modified, [`Io`](QuantError::Io) if a part of one could not be read.
    pub fn check(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| Ok(file.store.check()?))
    }

    fn read(&mut self, component: &Component, residence: Residence) -> Result<()> {
        let first = self.tensors.len();
        let mut opened = Vec::with_capacity(component.files.len());
        for path in &component.files {
            opened.push((path.clone(), opened::open(&self.location, &component.name, path, residence)?));
        }
        if component.index.is_none() {
            self.leave_out_adapters(&mut opened);
        }
        for (_, (file, header)) in opened {
            match header {
                Header::Safetensors(header) => {
                    for (key, value) in header.metadata {
                        self.metadata.entry(key).or_insert(value);
                    }
                    self.tensors.extend(header.tensors.into_iter().map(|entry| Tensor {
                        component: component.name.clone(),
                        bytes: entry.range.end - entry.range.start,
                        offset: entry.range.start,
                        name: entry.name,
                        stored: entry.stored,
                        shape: entry.shape,
                        file: file.clone(),
                    }));
                }
                Header::Gguf(header) => {
                    let (tensors, origin) = origins::of_gguf(&component.name, &file, &header)?;
                    self.tensors.extend(tensors);
                    self.origins.extend(origin);
                    self.metadata.extend(header.metadata.into_iter().filter_map(|(key, value)| match value {
                        Value::Text(text) => Some((key, text)),
                        _ => None,
                    }));
                }
            }
            self.files.push(file);
        }
        let tensors = &mut self.tensors[first..];
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let found: Vec<_> = tensors
            .iter()
            .map(|tensor| {
                let path = &tensor.file.store.identity().path;
                FoundTensor { name: &tensor.name, file: path.strip_prefix(self.location.path()).unwrap_or(path) }
            })
            .collect();
        component.check(&found).map_err(|error| ModelDirectory(&self.location).explain(error))?;
        let is_gguf = self.origins.iter().any(|origin| origin.component == component.name);
        if !is_gguf {
            let claims = self.claims(&component.name)?;
            let stored = self.tensors.split_off(first);
            let (tensors, origin) = origins::restored(&component.name, &claims, &self.metadata, stored)?;
            self.tensors.extend(tensors);
            self.origins.extend(origin);
        }
        Ok(())
    }

    /// Takes away files of adapters beside those of a model.
    fn leave_out_adapters(&mut self, opened: &mut Vec<(PathBuf, (WeightFile, Header))>) {
        let is_one = |header: &Header| match header {
            Header::Safetensors(header) => is_adapter(header.tensors.iter().map(|tensor| tensor.name.as_str())),
            Header::Gguf(_) => false,
        };
        if opened.iter().all(|(_, (_, header))| is_one(header)) {
            return;
        }
        let adapters = opened.extract_if(.., |(_, (_, header))| is_one(header));
        let files: Vec<PathBuf> = adapters.map(|(path, _)| path).collect();
        if !files.is_empty() {
            self.left_out.push(LeftOut { files, why: Why::Adapter });
        }
    }
}

impl Tensor {
    /// Elements in all: the product of the dimensions.
    pub fn elements(&self) -> u64 {
        arrow_quant_formats::elements(&self.shape)
    }

    /// Elements as they are stored: little-endian, row-major, at any alignment. Elements may have less than a byte, but
    /// the range must start and end between bytes.
    ///
    /// # Errors
    /// If they are not among the tensor's, or cannot be read.
    pub fn read(&self, elements: Range<u64>) -> Result<Bytes> {
        Ok(self.file.store.read_now(self.byte_range(&elements))?)
    }

    /// All elements as they are stored.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn data(&self) -> Result<Bytes> {
        self.read(0..self.elements())
    }

    /// Says that some elements will not be looked at again soon.
    pub(crate) fn release(&self, elements: Range<u64>) {
        self.file.store.release(self.byte_range(&elements));
    }

    /// Where some elements are in the tensor's file.
    pub(crate) fn byte_range(&self, elements: &Range<u64>) -> Range<u64> {
        self.offset + self.stored_bytes(elements.start)..self.offset + self.stored_bytes(elements.end)
    }

    /// Bytes that the first `elements` elements take.
    pub(crate) fn stored_bytes(&self, elements: u64) -> u64 {
        // Of a tensor of many gigabytes, the product exceeds 64 bits.
        (u128::from(elements) * u128::from(self.stored.bits()) / 8) as u64
    }

    /// The file it is in, relative to the model's directory, with `/` between a component and the file.
    pub fn file_name(&self) -> &str {
        &self.file.name
    }

    /// The store of the file it is in.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.file.store
    }

    /// `component/name`, or the name alone in a plain model.
    pub fn full_name(&self) -> String {
        full_name(&self.component, &self.name)
    }

    /// The name of the type its elements are stored in, as safetensors spells it.
    pub fn dtype(&self) -> &'static str {
        self.stored.name()
    }

    /// Its dtype if that is a floating-point one which can be quantized.
    pub fn float_dtype(&self) -> Option<Dtype> {
        self.stored.float()
    }

    /// Elements of a row, which groups never leave: the last axis, or where that is shorter than 32 everything under
    /// one index of the first axis. 1 for a scalar, 0 if a dimension of the row is 0.
    pub fn row_length(&self) -> u64 {
        row_length(&self.shape)
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full_name())
    }
}
