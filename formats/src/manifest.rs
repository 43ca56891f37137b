//! `arrow_quant.json`: what a quantized model directory says of itself. `docs/format.md` specifies it.

use std::ops::RangeInclusive;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

mod reason;
mod tensors;

pub use reason::{Limit, Omission, Reason, RecordedReason, Shortfall};
pub use tensors::{Attempt, LayerReport, TensorReport, Totals, grouping};

/// The file that makes a directory a quantized model.
pub const MANIFEST: &str = "arrow_quant.json";

/// The table of the parameters of activations.
pub const ACTIVATIONS: &str = "activations.parquet";

/// The table of the factors that codes are to be divided by.
pub const SMOOTHING: &str = "smoothing.parquet";

/// The version of the directory's format that is written: 1 has no smoothing, 2 has; from 3 on smoothing needs no
/// version of its own, every value names its encoding, and fields of NULL values are NULL.
pub const FORMAT_VERSION: u32 = 3;

/// The versions that are read.
const READABLE: RangeInclusive<u32> = 1..=FORMAT_VERSION;

/// The first version whose quantized values name their encoding.
const ENCODINGS_NAMED: u32 = 3;

/// The manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the directory's format.
    pub format_version: u32,
    /// The program that wrote it.
    pub created_by: String,
    /// The configuration, by its field names.
    pub settings: Map<String, Value>,
    /// What was quantized.
    pub source: Source,
    /// What the model makes, if that was told or found out.
    pub modality: Option<String>,
    /// What else there is to know.
    pub notes: Vec<String>,
    /// Figures of the whole model.
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
pub struct Source {
    /// The last part of its path.
    pub name: String,
    /// A hash over the files' names, sizes, versions and headers.
    pub fingerprint: String,
    /// The files that its weights are in, relative to its directory.
    #[serde(default)]
    pub files: Vec<String>,
}

/// A file of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the directory.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

/// Why a text is not a manifest that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It is not JSON, or lacks what a manifest has.
    #[error("not a manifest: {0}")]
    NotUnderstood(String),
    /// Its version is newer than this program, or unknown.
    #[error(
        "format version {0} was written by another version of arrow-quant, this one reads versions 1 to {FORMAT_VERSION}: \
         upgrade arrow-quant, or quantize the model again"
    )]
    Version(u32),
    /// A file that it names is outside the directory.
    #[error("`{0}` is not a file of the directory")]
    Outside(String),
}

impl Manifest {
    /// The manifest of a directory in which nothing is stored yet.
    pub fn new(created_by: &str, source: Source, settings: Map<String, Value>) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            created_by: created_by.to_string(),
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

    /// True if the quantized values in the files name their encoding.
    pub fn encodings_are_named(&self) -> bool {
        self.format_version >= ENCODINGS_NAMED
    }

    /// True if what was written is for another program: its files of weights are not the Parquet files of a quantized model
    /// directory.
    pub fn is_export(&self) -> bool {
        self.files.iter().any(|file| !file.path.ends_with(".parquet"))
    }

    /// Every file that is part of what was stored.
    pub fn stored(&self) -> impl Iterator<Item = &FileEntry> {
        self.files.iter().chain(&self.tables)
    }

    /// The text of the file.
    ///
    /// # Errors
    /// If a figure cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, ManifestError> {
        let json = serde_json::to_string_pretty(self);
        json.map(|json| json + "\n").map_err(|error| ManifestError::NotUnderstood(error.to_string()))
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// If it is not a manifest, its version is not read here, or it names a file outside the directory.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let wrong = |error: serde_json::Error| ManifestError::NotUnderstood(error.to_string());
        let Version { format_version } = serde_json::from_str(text).map_err(wrong)?;
        if !READABLE.contains(&format_version) {
            return Err(ManifestError::Version(format_version));
        }
        let manifest: Self = serde_json::from_str(text).map_err(wrong)?;
        let outside = manifest.stored().find(|file| !is_inside(&file.path)).map(|file| file.path.clone());
        outside.map_or(Ok(manifest), |path| Err(ManifestError::Outside(path)))
    }
}

/// True for a relative path without `..`.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTALS: &str = r#"{"weights":0,"original_bytes":0,"stored_bytes":0,"bits_per_weight":0,"compression_ratio":0,
        "cosine_similarity":null,"sqnr_db":null,"squared_error":0}"#;

    fn text(version: u32, tensors: &str, files: &str) -> String {
        format!(
            r#"{{"format_version":{version},"created_by":"x","settings":{{}},"source":{{"name":"","fingerprint":""}},
            "modality":null,"notes":[],"totals":{TOTALS},"tensors":[{tensors}],"files":[{files}]}}"#
        )
    }

    #[test]
    fn manifests_that_are_not_ours_are_refused() {
        let message = |text: &str| Manifest::parse(text).unwrap_err().to_string();
        assert!(message("{").starts_with("not a manifest"));
        for version in [0, 4] {
            let expected = format!(
                "format version {version} was written by another version of arrow-quant, this one reads versions 1 to 3: \
                 upgrade arrow-quant, or quantize the model again"
            );
            assert_eq!(message(&format!(r#"{{"format_version": {version}}}"#)), expected);
        }
        let escape = text(1, "", r#"{"path":"../x","bytes":1,"sha256":""}"#);
        assert_eq!(message(&escape), "`../x` is not a file of the directory");
    }

    #[test]
    fn reasons_of_every_version_are_read() {
        let tensor = |reason: &str| {
            format!(
                r#"{{"component":"","tensor":"w","dtype":"F32","shape":[2,3],"elements":6,"bits":4,"group_size":32,
                {reason},"bytes":7,"cosine_similarity":null,"sqnr_db":null,"max_abs_error":null}}"#
            )
        };
        let old = Manifest::parse(&text(1, &tensor(r#""because":"layer_bit_widths 'w'""#), "")).unwrap();
        let because = &old.tensors[0].because;
        assert_eq!(because.reason(), &Reason::Recorded { sentence: "layer_bit_widths 'w'".to_string() });

        let reason = Reason::LayerBitWidths { layer: "w".to_string() };
        let mut new = old.clone();
        new.format_version = 3;
        new.tensors[0].because = reason.clone().into();
        let read = Manifest::parse(&new.to_json().unwrap()).unwrap();
        assert_eq!(read.tensors[0].because.reason(), &reason);
        let json: Value = serde_json::from_str(&new.to_json().unwrap()).unwrap();
        assert_eq!(json["tensors"][0]["because"], "layer_bit_widths 'w'");
        assert_eq!(json["tensors"][0]["reason"]["kind"], "layer_bit_widths");
    }

    /// A later program may know reasons, limits and measures that this one does not.
    #[test]
    fn reasons_of_unknown_kinds_are_read_as_their_sentences() {
        let read = |reason: &str| {
            let tensor = format!(
                r#"{{"component":"","tensor":"w","dtype":"F32","shape":[2,3],"elements":6,"bits":4,"group_size":32,
                "because":"as it says","reason":{reason},"bytes":7,"cosine_similarity":null,"sqnr_db":null,
                "max_abs_error":null}}"#
            );
            Manifest::parse(&text(3, &tensor, "")).unwrap().tensors.remove(0).because
        };
        for unknown in [
            r#"{"kind":"outlier_rows"}"#,
            r#"{"kind":"outlier_rows","rows":[1,2]}"#,
            r#"{"kind":"not_held","target":"gguf","limit":{"kind":"alignment"}}"#,
            r#"{"kind":"fallback","bits":2,"shortfall":{"measure":"perplexity","found":1,"floor":2}}"#,
            r#"{"kind":"for_equal","reason":{"kind":"outlier_rows"},"tensor":"v"}"#,
            r#""outlier_rows""#,
            "7",
        ] {
            let because = read(unknown);
            assert_eq!(because.reason(), &Reason::Recorded { sentence: "as it says".to_string() }, "{unknown}");
            assert_eq!(because.to_string(), "as it says");
        }
        let more = read(r#"{"kind":"plan","line":3}"#);
        assert_eq!(more.reason(), &Reason::Plan, "a field that is not known is passed over");
    }
}
