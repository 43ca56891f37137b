//! A part whose file is what is stored of its tensors, one after the other: targets of one file are assembled from such parts.

use std::io::Write;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, BinaryViewArray, RecordBatch, StructArray};
use arrow_quant_formats::manifest::FileEntry;

use super::PartWriter;
use super::hashed::HashedFile;
use crate::{QuantError, Result};

/// Writes the codes of quantized weights and the elements of those that are kept.
pub(super) struct RawPart {
    relative: String,
    path: PathBuf,
    file: HashedFile,
}

impl RawPart {
    /// Creates a file in a directory, given by its path in it.
    pub(super) fn create(directory: &Path, relative: String) -> Result<Self> {
        let path = directory.join(&relative);
        let file = HashedFile::create(&path)?;
        Ok(Self { relative, path, file })
    }
}

impl PartWriter for RawPart {
    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let column = |name: &str| batch.column_by_name(name).and_then(|column| column.as_struct_opt());
        let (Some(quantized), Some(weights)) = (column("quantized"), column("weights")) else {
            return Err(QuantError::configuration("the batch lacks columns of a quantized model"));
        };
        let (codes, data) = (bytes(quantized, "codes")?, bytes(weights, "data")?);
        for row in 0..batch.num_rows() {
            let stored = if quantized.is_valid(row) { codes.value(row) } else { data.value(row) };
            self.file.write_all(stored).map_err(|e| QuantError::io(&self.path, e))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<FileEntry> {
        self.file.finish(&self.path, self.relative)
    }
}

/// A field of bytes.
fn bytes<'a>(column: &'a StructArray, field: &str) -> Result<&'a BinaryViewArray> {
    let found = column.column_by_name(field).and_then(|field| field.as_binary_view_opt());
    found.ok_or_else(|| QuantError::configuration(format!("the batch lacks the field {field} of a quantized model")))
}
