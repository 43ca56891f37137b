//! One Parquet file of a quantized model.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_quant_formats::ContentHash;
use arrow_quant_formats::manifest::FileEntry;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::written::PAYLOADS;
use super::{PartWriter, UNFINISHED};
use crate::{QuantError, Result, disk};

/// Bytes of a row group, more or less: what a writer holds in memory.
const ROW_GROUP_BYTES: usize = 32 << 20;

/// Writes one part. Its file has another name until it is complete and durable, so that a part of the same number which
/// is there already stays whole until then.
pub(super) struct ParquetPart {
    relative: String,
    path: PathBuf,
    writer: ArrowWriter<HashedFile>,
}

impl ParquetPart {
    /// Creates a file in a directory, given by its path in it.
    pub(super) fn create(directory: &Path, relative: String, schema: SchemaRef) -> Result<Self> {
        let path = directory.join(&relative);
        let unfinished = unfinished(&path);
        let file = File::create(&unfinished).map_err(|e| QuantError::io(&path, e))?;
        let writer = ArrowWriter::try_new(HashedFile::new(file), schema, Some(properties()))
            .map_err(|e| write_error(&path, e))?;
        Ok(Self { relative, path, writer })
    }
}

impl PartWriter for ParquetPart {
    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        // The writer checks nullability, not names.
        self.writer.write(batch).map_err(|e| write_error(&self.path, e))?;
        if self.writer.in_progress_size() >= ROW_GROUP_BYTES {
            self.writer.flush().map_err(|e| write_error(&self.path, e))?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<FileEntry> {
        self.writer.finish().map_err(|e| write_error(&self.path, e))?;
        let file = self.writer.inner();
        disk::sync_file(&file.file, &self.path).map_err(|e| QuantError::io(&self.path, e))?;
        disk::rename_file(&unfinished(&self.path), &self.path)?;
        Ok(FileEntry { path: self.relative, bytes: file.bytes, sha256: file.hash.clone().finish() })
    }
}

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
