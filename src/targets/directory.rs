//! Our own directory: Parquet files of the `quantized` table, and a manifest beside them.

use std::fs::{self, File};
use std::path::Path;

use arrow_quant_formats::manifest::{MANIFEST, Manifest};
use arrow_quant_kernels::{Bits, GroupSize, Scheme};

use super::part::ParquetPart;
use super::{PartWriter, Target};
use crate::plan::Allowed;
use crate::tables::part_schema;
use crate::{QuantError, Result};

/// The folder of parts.
const WEIGHTS: &str = "weights";

/// The quantized model directory, which holds everything that `quantize` makes.
#[derive(Debug)]
pub(super) struct Directory;

impl Target for Directory {
    fn allowed(&self) -> Allowed {
        Allowed {
            target: "arrow-quant",
            bits: Bits::ALL,
            group_sizes: GroupSize::ALL,
            schemes: Scheme::ALL,
            must_stay: |_| false,
            // On five models, from 0.3 million to a billion weights, right to 0.25 % of the size; it is known better once a
            // round was written.
            file_overhead: 5950.0,
            chunk_overhead: 72.0,
        }
    }

    fn parts(&self) -> &'static str {
        WEIGHTS
    }

    fn part_writer(&self, output: &Path, part: usize) -> Result<Box<dyn PartWriter>> {
        let relative = format!("{WEIGHTS}/part-{part:05}.parquet");
        Ok(Box::new(ParquetPart::create(output, relative, part_schema())?))
    }

    fn finish(&self, output: &Path, manifest: &Manifest) -> Result<()> {
        let json = manifest.to_json().map_err(|error| QuantError::Quantization {
            tensor: None,
            message: format!("the manifest cannot be written: {error}"),
        })?;
        let path = output.join(MANIFEST);
        fs::write(&path, json).map_err(|e| QuantError::io(&path, e))?;
        for synced in [path.as_path(), &output.join(WEIGHTS), output] {
            File::open(synced).and_then(|file| file.sync_all()).map_err(|e| QuantError::io(synced, e))?;
        }
        Ok(())
    }
}
