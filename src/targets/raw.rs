//! A part whose file is what is stored of its tensors, one chunk after the other: targets whose files are assembled from parts
//! have such parts.

use std::io::Write;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, BinaryViewArray, RecordBatch, StructArray};
use arrow_quant_formats::manifest::FileEntry;
use arrow_quant_kernels::{Dtype, Isa, ParameterDtype, Weights, to_f32};

use super::PartWriter;
use super::hashed::HashedFile;
use crate::{QuantError, Result};

/// Writes the elements of weights that are kept, the blocks of those that became blocks, and of grouped integers what
/// [`stored`](super::stored) reads: one byte for the type of the parameters, codes, scales, minima and zero points.
pub(super) struct RawPart {
    relative: String,
    path: PathBuf,
    file: HashedFile,
    /// Whether parameters are written as F32, whatever they are.
    widens: bool,
}

impl RawPart {
    /// Creates a file in a directory, given by its path in it. Parameters stay as they are, or become F32.
    pub(super) fn create(directory: &Path, relative: String, widens: bool) -> Result<Self> {
        let path = directory.join(&relative);
        let file = HashedFile::create(&path)?;
        Ok(Self { relative, path, file, widens })
    }
}

/// The byte that stands for a type of parameters.
pub(super) fn tag(dtype: ParameterDtype) -> u8 {
    match dtype {
        ParameterDtype::F16 => 0,
        ParameterDtype::F32 => 1,
    }
}

impl PartWriter for RawPart {
    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let column = |name: &str| batch.column_by_name(name).and_then(|column| column.as_struct_opt());
        let (Some(quantized), Some(weights)) = (column("quantized"), column("weights")) else {
            return Err(QuantError::configuration("the batch lacks columns of a quantized model"));
        };
        let [codes, scales, minima, zero_points] =
            ["codes", "scales", "minima", "zero_points"].map(|field| bytes(quantized, field));
        let (codes, scales, minima, zero_points) = (codes?, scales?, minima?, zero_points?);
        let data = bytes(weights, "data")?;
        let dtypes = quantized.column_by_name("parameter_dtype").and_then(|field| field.as_string_opt::<i32>());
        let dtypes = dtypes.ok_or_else(|| lacks("parameter_dtype"))?;
        let path = self.path.clone();
        let io = |e| QuantError::io(&path, e);
        for row in 0..batch.num_rows() {
            if quantized.is_null(row) {
                self.file.write_all(data.value(row)).map_err(io)?;
                continue;
            }
            if dtypes.is_null(row) {
                self.file.write_all(codes.value(row)).map_err(io)?;
                continue;
            }
            let dtype: ParameterDtype = dtypes.value(row).parse()?;
            let written = if self.widens { ParameterDtype::F32 } else { dtype };
            self.file.write_all(&[tag(written)]).map_err(io)?;
            self.file.write_all(codes.value(row)).map_err(io)?;
            for parameters in [scales, minima] {
                if parameters.is_valid(row) {
                    self.write_parameters(parameters.value(row), dtype, written)?;
                }
            }
            if zero_points.is_valid(row) {
                self.file.write_all(zero_points.value(row)).map_err(io)?;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<FileEntry> {
        self.file.finish_later(&self.path, self.relative)
    }
}

impl RawPart {
    fn write_parameters(&mut self, bytes: &[u8], dtype: ParameterDtype, written: ParameterDtype) -> Result<()> {
        let result = match (dtype, written) {
            (ParameterDtype::F16, ParameterDtype::F32) => {
                let values = to_f32(Isa::active()?, Weights::one_row(Dtype::F16, bytes)?);
                let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
                self.file.write_all(&bytes)
            }
            (ParameterDtype::F16 | ParameterDtype::F32, _) => self.file.write_all(bytes),
        };
        result.map_err(|e| QuantError::io(&self.path, e))
    }
}

/// A field of bytes.
fn bytes<'a>(column: &'a StructArray, field: &str) -> Result<&'a BinaryViewArray> {
    let found = column.column_by_name(field).and_then(|field| field.as_binary_view_opt());
    found.ok_or_else(|| lacks(field))
}

fn lacks(field: &str) -> QuantError {
    QuantError::configuration(format!("the batch lacks the field {field} of a quantized model"))
}
