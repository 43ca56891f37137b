//! One Parquet file of a quantized model.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, BinaryViewArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow_quant_kernels::PairSums;
use arrow_quant_udfs::error_sums;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use sha2::{Digest, Sha256};

use super::manifest::FileEntry;
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

/// What was written of one chunk.
#[derive(Debug, Clone)]
pub(crate) struct WrittenChunk {
    pub component: String,
    pub tensor: String,
    pub elements: u64,
    /// Of codes and parameters, or of kept elements.
    pub bytes: u64,
    /// `None` if it was kept.
    pub errors: Option<PairSums>,
}

/// Writes batches of one partition.
pub(crate) struct PartWriter {
    relative: String,
    path: PathBuf,
    writer: ArrowWriter<HashedFile>,
    chunks: Vec<WrittenChunk>,
}

impl PartWriter {
    /// Creates `weights/part-NNNNN.parquet` in a directory.
    pub fn create(directory: &Path, part: usize, schema: SchemaRef) -> Result<Self> {
        let relative = format!("weights/part-{part:05}.parquet");
        let path = directory.join(&relative);
        let file = File::create_new(&path).map_err(|e| QuantError::io(&path, e))?;
        let writer = ArrowWriter::try_new(HashedFile::new(file), schema, Some(properties()))
            .map_err(|e| write_error(&path, e))?;
        Ok(Self { relative, path, writer, chunks: Vec::new() })
    }

    /// Writes a batch, and says what was in it.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<&[WrittenChunk]> {
        let first = self.chunks.len();
        self.chunks.extend(written_chunks(batch)?);
        // The writer checks nullability, not names.
        self.writer.write(batch).map_err(|e| write_error(&self.path, e))?;
        if self.writer.in_progress_size() >= ROW_GROUP_BYTES {
            self.writer.flush().map_err(|e| write_error(&self.path, e))?;
        }
        Ok(&self.chunks[first..])
    }

    /// Ends the file and makes it durable, without holding up the thread meanwhile.
    pub async fn finish(mut self) -> Result<(FileEntry, Vec<WrittenChunk>)> {
        self.writer.finish().map_err(|e| write_error(&self.path, e))?;
        let file = self.writer.inner();
        let handle = file.file.try_clone().map_err(|e| QuantError::io(&self.path, e))?;
        let synced = tokio::task::spawn_blocking(move || handle.sync_data()).await;
        synced.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(|e| QuantError::io(&self.path, e))?;
        let sha256 = file.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((FileEntry { path: self.relative, bytes: file.bytes, sha256 }, self.chunks))
    }
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

fn written_chunks(batch: &RecordBatch) -> Result<Vec<WrittenChunk>> {
    let column = |name: &str| batch.column_by_name(name).map(|c| c.as_ref());
    let (Some(components), Some(tensors), Some(quantized), Some(weights)) =
        (column("component"), column("tensor"), column("quantized"), column("weights"))
    else {
        return Err(QuantError::Configuration("the batch lacks columns of a quantized model".to_string()));
    };
    let (components, tensors) = (components.as_string::<i32>(), tensors.as_string::<i32>());
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
    let lengths = quantized.column_by_name("length").map(|c| c.as_primitive::<Int64Type>());
    Ok((0..batch.num_rows())
        .map(|row| {
            let is_quantized = quantized.is_valid(row);
            let bytes = payloads
                .iter()
                .filter(|(column, of_quantized)| *of_quantized == is_quantized && column.is_valid(row))
                .map(|(column, _)| column.value(row).len() as u64);
            let elements = match (is_quantized, lengths) {
                (true, Some(lengths)) => lengths.value(row) as u64,
                _ => 0,
            };
            WrittenChunk {
                component: components.value(row).to_string(),
                tensor: tensors.value(row).to_string(),
                elements,
                bytes: bytes.sum(),
                errors: sums[row],
            }
        })
        .collect())
}

/// A file that hashes what is written to it.
struct HashedFile {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl HashedFile {
    fn new(file: File) -> Self {
        Self { file, hash: Sha256::new(), bytes: 0 }
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
