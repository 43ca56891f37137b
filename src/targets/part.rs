//! One Parquet file of a quantized model.

use std::io;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_quant_formats::manifest::FileEntry;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::PartWriter;
use super::hashed::HashedFile;
use super::written::PAYLOADS;
use crate::{QuantError, Result};

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
        let writer = ArrowWriter::try_new(HashedFile::create(&path)?, schema, Some(properties()))
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
        self.writer.inner().finish(&self.path, self.relative)
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
