//! One Parquet file of a quantized model.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, BinaryViewArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow_quant_formats::ContentHash;
use arrow_quant_formats::manifest::FileEntry;
use arrow_quant_kernels::PairSums;
use arrow_quant_udfs::error_sums;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use serde::{Deserialize, Serialize};

use crate::{QuantError, Result};

/// Bytes of a row group, more or less: what a writer holds in memory.
const ROW_GROUP_BYTES: usize = 32 << 20;

/// The columns that hold codes, parameters and kept weights.
const PAYLOADS: [[&str; 2]; 5] = [
    ["quantized", "codes"],
    ["quantized", "scales"],
    ["quantized", "minima"],
    ["quantized", "zero_points"],
    ["weights", "data"],
];

/// Writes one part. Its file has another name until it is complete and durable, so that a part of the same number which
/// is there already stays whole until then.
pub(crate) struct PartWriter {
    relative: String,
    path: PathBuf,
    writer: ArrowWriter<HashedFile>,
    tensors: Vec<WrittenTensor>,
}

/// What a batch added.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written {
    /// Weights that were quantized.
    pub weights: u64,
    /// The last tensor.
    pub tensor: String,
}

impl PartWriter {
    /// Creates the file of a part in a directory.
    pub fn create(directory: &Path, part: usize, schema: SchemaRef) -> Result<Self> {
        let relative = format!("weights/part-{part:05}.parquet");
        let path = directory.join(&relative);
        let unfinished = unfinished(&path);
        let file = File::create(&unfinished).map_err(|e| QuantError::io(&path, e))?;
        let writer = ArrowWriter::try_new(HashedFile::new(file), schema, Some(properties()))
            .map_err(|e| write_error(&path, e))?;
        Ok(Self { relative, path, writer, tensors: Vec::new() })
    }

    /// Writes a batch, and says what was in it.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<Written> {
        let written = add_written(batch, &mut self.tensors)?;
        // The writer checks nullability, not names.
        self.writer.write(batch).map_err(|e| write_error(&self.path, e))?;
        if self.writer.in_progress_size() >= ROW_GROUP_BYTES {
            self.writer.flush().map_err(|e| write_error(&self.path, e))?;
        }
        Ok(written)
    }

    /// Ends the file, makes it durable and gives it its name. Waits for the disk: not for a thread of the runtime.
    pub fn finish(mut self) -> Result<(FileEntry, Vec<WrittenTensor>)> {
        self.writer.finish().map_err(|e| write_error(&self.path, e))?;
        let file = self.writer.inner();
        file.file.sync_data().map_err(|e| QuantError::io(&self.path, e))?;
        fs::rename(unfinished(&self.path), &self.path).map_err(|e| QuantError::io(&self.path, e))?;
        Ok((FileEntry { path: self.relative, bytes: file.bytes, sha256: file.hash.clone().finish() }, self.tensors))
    }
}

/// What was written of one tensor in one part.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WrittenTensor {
    pub component: String,
    pub tensor: String,
    /// Of codes and parameters, or of kept elements.
    pub bytes: u64,
    /// `None` if it was kept.
    #[serde(with = "sums")]
    pub errors: Option<PairSums>,
}

/// Error sums as a list of their fields.
mod sums {
    use arrow_quant_kernels::PairSums;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Fields = (u64, f64, f64, f64, f64, f64);

    pub fn serialize<S: Serializer>(sums: &Option<PairSums>, serializer: S) -> Result<S::Ok, S::Error> {
        let fields: Option<Fields> = sums.map(|s| (s.n, s.sum_aa, s.sum_bb, s.sum_ab, s.sum_ee, s.max_abs_error));
        fields.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PairSums>, D::Error> {
        let fields = Option::<Fields>::deserialize(deserializer)?;
        Ok(fields.map(|(n, sum_aa, sum_bb, sum_ab, sum_ee, max_abs_error)| PairSums {
            n,
            sum_aa,
            sum_bb,
            sum_ab,
            sum_ee,
            max_abs_error,
        }))
    }
}

/// The extension of a part that is being written.
pub(crate) const UNFINISHED: &str = "unfinished";

fn unfinished(path: &Path) -> PathBuf {
    path.with_extension(UNFINISHED)
}

/// Payloads have neither dictionary nor statistics, and pages of about a megabyte; statistics only where filters look.
fn properties() -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("arrow-quant ", env!("CARGO_PKG_VERSION")).to_string())
        .set_statistics_enabled(EnabledStatistics::None)
        .set_write_batch_size(16)
        .set_max_row_group_row_count(None);
    for column in ["component", "tensor", "chunk"] {
        properties = properties.set_column_statistics_enabled(ColumnPath::from(column), EnabledStatistics::Chunk);
    }
    for path in PAYLOADS {
        let path = ColumnPath::new(path.map(str::to_string).to_vec());
        properties = properties.set_column_dictionary_enabled(path, false);
    }
    properties.build()
}

/// The error of a Parquet writer; those of the file come out as such.
fn write_error(path: &Path, error: parquet::errors::ParquetError) -> QuantError {
    match error {
        parquet::errors::ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(source) => QuantError::io(path, *source),
            Err(source) => QuantError::Quantization { tensor: None, message: format!("{}: {source}", path.display()) },
        },
        other => QuantError::Quantization { tensor: None, message: format!("{}: {other}", path.display()) },
    }
}

/// Adds what a batch holds to what was written of each tensor: rows of one tensor follow each other, and their sums are
/// added in the order of its chunks.
fn add_written(batch: &RecordBatch, tensors: &mut Vec<WrittenTensor>) -> Result<Written> {
    let column = |name: &str| batch.column_by_name(name).map(|c| c.as_ref());
    let (Some(components), Some(names), Some(quantized), Some(weights)) =
        (column("component"), column("tensor"), column("quantized"), column("weights"))
    else {
        return Err(QuantError::configuration("the batch lacks columns of a quantized model"));
    };
    let (components, names) = (components.as_string::<i32>(), names.as_string::<i32>());
    let (quantized, weights) = (quantized.as_struct(), weights.as_struct());
    let sums = error_sums(quantized)?;
    let payloads: Vec<(&BinaryViewArray, bool)> = PAYLOADS
        .iter()
        .filter_map(|[parent, field]| {
            let is_quantized = *parent == "quantized";
            let parent = if is_quantized { quantized } else { weights };
            Some((parent.column_by_name(field)?.as_binary_view(), is_quantized))
        })
        .collect();
    let mut written = Written::default();
    for (row, errors) in sums.into_iter().enumerate() {
        let is_quantized = quantized.is_valid(row);
        let bytes = payloads
            .iter()
            .filter(|(column, of_quantized)| *of_quantized == is_quantized && column.is_valid(row))
            .map(|(column, _)| column.value(row).len() as u64);
        let (component, tensor) = (components.value(row), names.value(row));
        match tensors.last_mut().filter(|last| last.component == component && last.tensor == tensor) {
            Some(last) => {
                last.bytes += bytes.sum::<u64>();
                last.errors = match (last.errors, errors) {
                    (Some(a), Some(b)) => Some(a + b),
                    (a, b) => a.or(b),
                };
            }
            None => tensors.push(WrittenTensor {
                component: component.to_string(),
                tensor: tensor.to_string(),
                bytes: bytes.sum(),
                errors,
            }),
        }
        written.weights += errors.map_or(0, |errors| errors.n);
        written.tensor = tensor.to_string();
    }
    Ok(written)
}

/// A file that hashes what is written to it.
struct HashedFile {
    file: File,
    hash: ContentHash,
    bytes: u64,
}

impl HashedFile {
    fn new(file: File) -> Self {
        Self { file, hash: ContentHash::new(), bytes: 0 }
    }
}

impl Write for HashedFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
