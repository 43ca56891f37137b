//! `arrow_quant.json`: what a quantized model says of itself.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::report::{TensorReport, Totals};
use crate::{LayerReport, QuantError, Result};

/// The version of the directory's format that this crate writes. It reads all versions up to this one: 1 has no smoothing, 2
/// has; from 3 on smoothing needs no version of its own, every value names its encoding, and fields of NULL values are NULL.
const FORMAT_VERSION: u32 = 3;

/// The first version whose quantized values name their encoding.
const ENCODINGS_NAMED: u32 = 3;

/// The program that writes it.
const PROGRAM: &str = concat!("arrow-quant ", env!("CARGO_PKG_VERSION"));

/// The manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format_version: u32,
    /// The program that wrote it.
    pub created_by: String,
    /// The configuration, by its field names.
    pub settings: Map<String, Value>,
    pub source: Source,
    /// What the model makes, if that was told or found out.
    pub modality: Option<String>,
    /// What else there is to know.
    pub notes: Vec<String>,
    pub totals: Totals,
    /// Every tensor: what it became, and at what loss.
    pub tensors: Vec<TensorReport>,
    /// Every Parquet file of weights.
    pub files: Vec<FileEntry>,
    /// Whether a calibration's timesteps had a part in it.
    #[serde(default)]
    pub time_aware: bool,
    /// Why not.
    #[serde(default)]
    pub reason: Option<String>,
    /// What became of the inputs of layers.
    #[serde(default)]
    pub layers: Vec<LayerReport>,
    /// Every Parquet file of what a calibration became.
    #[serde(default)]
    pub tables: Vec<FileEntry>,
}

/// What was quantized.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Source {
    pub name: String,
    /// Over the files' names, sizes, times and headers.
    pub fingerprint: String,
}

/// A file of the directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Relative to the directory.
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
}

impl Manifest {
    pub fn new(source: Source, settings: Map<String, Value>) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            created_by: PROGRAM.to_string(),
            settings,
            source,
            modality: None,
            notes: Vec::new(),
            totals: Totals::default(),
            tensors: Vec::new(),
            files: Vec::new(),
            time_aware: false,
            reason: None,
            layers: Vec::new(),
            tables: Vec::new(),
        }
    }

    /// Adds a file of what a calibration became.
    pub fn add_table(&mut self, file: FileEntry) {
        self.tables.push(file);
    }

    /// True if the quantized values in the files name their encoding.
    pub fn encodings_are_named(&self) -> bool {
        self.format_version >= ENCODINGS_NAMED
    }

    /// The program and the version of what it writes: parts of another writer must not get into the same directory.
    pub fn writer() -> String {
        format!("{PROGRAM}, format version {FORMAT_VERSION}")
    }

    /// Every file that is part of what was stored.
    pub fn stored(&self) -> impl Iterator<Item = &FileEntry> {
        self.files.iter().chain(&self.tables)
    }

    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map(|json| json + "\n").map_err(unwritable)
    }

    /// Reads a manifest; file names that lead out of the directory are refused.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let error = |message: String| QuantError::Metadata {
            path: path.to_path_buf(),
            tensor: None,
            message: format!("{}: {message}", path.display()),
        };
        let version = serde_json::from_str::<Version>(text).map_err(|e| error(format!("no manifest: {e}")))?;
        if !(1..=FORMAT_VERSION).contains(&version.format_version) {
            return Err(error(format!(
                "format version {} was written by another version of arrow-quant, this one reads versions 1 to \
                 {FORMAT_VERSION}: upgrade arrow-quant, or quantize the model again",
                version.format_version
            )));
        }
        let manifest: Self = serde_json::from_str(text).map_err(|e| error(format!("no manifest: {e}")))?;
        let outside = manifest.stored().find(|file| !is_inside(&file.path)).map(|file| file.path.clone());
        match outside {
            Some(path) => Err(error(format!("`{path}` is no file of the directory"))),
            None => Ok(manifest),
        }
    }
}

fn unwritable(error: serde_json::Error) -> QuantError {
    QuantError::Quantization { tensor: None, message: format!("the manifest cannot be written: {error}") }
}

#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

/// True for a relative path without `..`.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_that_are_not_ours_are_refused() {
        let message = |text: &str| Manifest::parse(Path::new("m.json"), text).unwrap_err().to_string();
        assert!(message("{").starts_with("m.json: no manifest"));
        for version in [0, 4] {
            let expected = format!(
                "m.json: format version {version} was written by another version of arrow-quant, this one reads versions 1 to 3: \
                 upgrade arrow-quant, or quantize the model again"
            );
            assert_eq!(message(&format!(r#"{{"format_version": {version}}}"#)), expected);
        }
        let escape = r#"{"format_version":1,"created_by":"x","settings":{},"source":{"name":"","fingerprint":""},
            "modality":null,"notes":[],"totals":{"weights":0,"original_bytes":0,"stored_bytes":0,"bits_per_weight":0,
            "compression_ratio":0,"cosine_similarity":null,"sqnr_db":null,"squared_error":0},"tensors":[],"files":[{"path":"../x","bytes":1,"sha256":""}]}"#;
        assert_eq!(message(escape), "m.json: `../x` is no file of the directory");
    }
}
