//! Quantized model directories: the manifest, and whether the files are those it tells of.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_quant_formats::directory::Missing;
use arrow_quant_formats::manifest::{FileEntry, MANIFEST, Manifest, TensorReport};
use arrow_quant_formats::{ContentHash, StoredType, full_name};
use arrow_quant_stores::{Location, Memory, Residence, Store};
use url::Url;

use super::opened::WeightFile;
use super::{Model, Tensor};
use crate::workers::blocking;
use crate::{QuantError, Result};

/// What is wrong with a file of a quantized model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    /// It is not there.
    #[error("is missing, but the manifest says {expected} bytes: the quantized model is damaged, quantize it again")]
    Missing { expected: u64 },
    /// It has another length.
    #[error(
        "has {found} bytes, but the manifest says {expected} bytes: the quantized model is damaged, quantize it again"
    )]
    Length { found: u64, expected: u64 },
    /// It has another content.
    #[error("is not what was written (its SHA-256 is {found}): quantize the model again")]
    Content { found: String },
}

/// Where the manifest of a quantized model is: in its directory, or beside the file that it is.
pub(crate) fn manifest_path(path: &Path) -> PathBuf {
    if !path.is_file() {
        return path.join(MANIFEST);
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(MANIFEST);
    path.with_file_name(name)
}

/// The manifest of a quantized model, whose files are there with the sizes that it tells.
pub(crate) fn manifest_at(path: &Path) -> Result<Manifest> {
    if !path.is_file() {
        return QuantizedDirectory::open(path).map(|directory| directory.manifest);
    }
    let beside = manifest_path(path);
    if !beside.is_file() {
        return Err(QuantError::missing(path, Missing::NotQuantized));
    }
    let text = std::fs::read_to_string(&beside).map_err(|e| QuantError::io(&beside, e))?;
    let manifest = Manifest::parse(&text).map_err(|error| QuantError::defect(&beside, None, error))?;
    let found = path.metadata().map_err(|e| QuantError::io(path, e))?.len();
    match manifest.files.first() {
        Some(file) if file.bytes != found => {
            Err(QuantError::defect(path, None, Damage::Length { found, expected: file.bytes }))
        }
        _ => Ok(manifest),
    }
}

/// Checks that a file has the content of which the manifest has the hash.
pub(crate) fn verify_file(path: &Path, expected: Option<&str>) -> Result<()> {
    let found = hash_of(path).map_err(|e| QuantError::io(path, e))?;
    if expected == Some(found.as_str()) {
        Ok(())
    } else {
        Err(QuantError::defect(path, None, Damage::Content { found }))
    }
}

/// A quantized model directory.
#[derive(Debug, Clone)]
pub(crate) struct QuantizedDirectory {
    location: Location,
    /// What it says of itself.
    pub manifest: Manifest,
}

impl QuantizedDirectory {
    /// True if there is a manifest at a path: a directory with one is complete.
    pub(crate) fn is_at(path: &Path) -> bool {
        Location::parse(path).is_ok_and(|location| location.has_file(Path::new(MANIFEST)))
    }

    /// Opens a directory that has a manifest, and checks that its files are there with the sizes the manifest tells.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let location = Location::parse(path)?;
        let name = Path::new(MANIFEST);
        if !location.has_file(name) {
            return Err(QuantError::missing(path, Missing::NotQuantized));
        }
        let file = location.path().join(name);
        let text = String::from_utf8(location.read(name)?).map_err(|error| QuantError::defect(&file, None, error))?;
        let manifest = Manifest::parse(&text).map_err(|error| QuantError::defect(&file, None, error))?;
        let directory = Self { location, manifest };
        directory.check_sizes()?;
        Ok(directory)
    }

    /// Checks that all files are there with the sizes the manifest tells.
    pub(crate) fn check_sizes(&self) -> Result<()> {
        for FileEntry { path, bytes, .. } in self.manifest.stored() {
            let expected = *bytes;
            let damage = match self.location.length(Path::new(path))? {
                Some(found) if found == expected => continue,
                Some(found) => Damage::Length { found, expected },
                None => Damage::Missing { expected },
            };
            return Err(QuantError::defect(&self.path().join(path), None, damage));
        }
        Ok(())
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        self.location.path()
    }

    /// The URL by which queries read a file.
    pub(crate) fn url(&self, file: &FileEntry) -> Result<Url> {
        Ok(self.location.url(Path::new(&file.path))?)
    }

    /// The bytes of a file, if they are those that the manifest tells.
    pub(crate) fn read(&self, file: &FileEntry) -> Result<Vec<u8>> {
        let bytes = self.location.read(Path::new(&file.path))?;
        self.check_content(file, ContentHash::of(&bytes))?;
        Ok(bytes)
    }

    /// Checks that every file has the content that the manifest tells. Between files, and within large ones, the caller may
    /// stop waiting.
    pub(crate) async fn verify(&self) -> Result<()> {
        for file in self.manifest.stored() {
            let (location, path) = (self.location.clone(), PathBuf::from(&file.path));
            let store = blocking(move || Ok(location.open(&path, Residence::File)?)).await?;
            self.check_content(file, hash_in_steps(store).await?)?;
        }
        Ok(())
    }

    fn check_content(&self, file: &FileEntry, found: String) -> Result<()> {
        let path = self.path().join(&file.path);
        if found == file.sha256 { Ok(()) } else { Err(QuantError::defect(&path, None, Damage::Content { found })) }
    }
}

/// The SHA-256 of a file of this machine, in hexadecimal.
pub(crate) fn hash_of(path: &Path) -> io::Result<String> {
    let mut hash = ContentHash::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finish())
}

/// The SHA-256 of a file in a store, in steps between which the caller may stop waiting.
async fn hash_in_steps(store: Arc<dyn Store>) -> Result<String> {
    /// Bytes of a step: a few milliseconds.
    const STEP: u64 = 8 << 20;
    let length = store.identity().length;
    let (mut hash, mut start) = (ContentHash::new(), 0);
    while start < length {
        let (store, range) = (Arc::clone(&store), start..length.min(start + STEP));
        start = range.end;
        hash = blocking(move || {
            hash.update(store.read_now(range.clone())?);
            store.release(range);
            Ok(hash)
        })
        .await?;
    }
    Ok(hash.finish())
}

impl Model {
    /// The tensors of a quantized model directory as those of the model that it was made of, with the files beside them. There are
    /// no weights to read.
    ///
    /// # Errors
    /// If the manifest contradicts itself.
    pub(crate) fn of_quantized(directory: &QuantizedDirectory) -> Result<Arc<Self>> {
        let wrong = |report: &TensorReport, problem: &str| {
            QuantError::defect(
                directory.path(),
                Some(full_name(&report.component, &report.tensor)),
                problem.to_string(),
            )
        };
        let store: Arc<dyn Store> = Arc::new(Memory::without_bytes(directory.path().to_path_buf()));
        let file = WeightFile { name: "".into(), store, header: 0 };
        let reports = &directory.manifest.tensors;
        let names: HashMap<_, _> =
            reports.iter().enumerate().map(|(at, report)| (full_name(&report.component, &report.tensor), at)).collect();
        let (mut tensors, mut ties) = (Vec::with_capacity(reports.len()), Vec::with_capacity(reports.len()));
        for report in reports {
            let stored: StoredType = report.dtype.parse().map_err(|_| wrong(report, "its dtype is not known"))?;
            let bytes = report
                .shape
                .iter()
                .try_fold(1_u64, |product, axis| u64::try_from(*axis).ok().and_then(|axis| product.checked_mul(axis)));
            let bytes = bytes.and_then(|elements| stored.bytes(elements));
            let bytes = bytes.ok_or_else(|| wrong(report, "it has no shape that can be"))?;
            let tie = report.same_as.as_ref().map(|name| names.get(name).copied());
            if tie == Some(None) {
                return Err(wrong(report, "what it is stored as is not there"));
            }
            ties.push(tie.flatten());
            tensors.push(Tensor {
                component: report.component.clone(),
                name: report.tensor.clone(),
                stored,
                shape: report.shape.clone(),
                bytes,
                file: file.clone(),
                offset: 0,
            });
        }
        if !tensors.is_sorted_by(|a, b| (&a.component, &a.name) < (&b.component, &b.name)) {
            return Err(QuantError::defect(directory.path(), None, "its tensors are in no order".to_string()));
        }
        Ok(Arc::new(Self {
            location: directory.location.clone(),
            is_pipeline: tensors.iter().any(|tensor| !tensor.component.is_empty()),
            tensors,
            files: Vec::new(),
            metadata: BTreeMap::new(),
            left_out: Vec::new(),
            origins: Vec::new(),
            ties: Some(ties),
        }))
    }
}
