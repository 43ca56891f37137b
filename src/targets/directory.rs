//! Our own directory: Parquet files of the `quantized` table, and a manifest beside them.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::manifest::{MANIFEST, Manifest};
use arrow_quant_kernels::{Bits, BlockType, GroupSize, Scheme};

use super::part::ParquetPart;
use super::{Layout, PartFiles, PartWriter, Target, UNFINISHED};
use crate::plan::Allowed;
use crate::tables::part_schema;
use crate::{DiffusionQuantConfig, Model, QuantError, Result, disk};

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
            block_types: BlockType::FILLED,
            must_stay: |_| false,
            // On five models, from 0.3 million to a billion weights, right to 0.25 % of the size; it is known better once a
            // round was written.
            file_overhead: 5950.0,
            chunk_overhead: 72.0,
        }
    }

    fn layout(&self, model: &Arc<Model>, _: &DiffusionQuantConfig) -> Result<Arc<dyn Layout>> {
        Ok(PartFiles::of(model))
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
        // The output may have its name already, and with the manifest it is complete: it must get it as a whole, and last.
        let unfinished = path.with_extension(UNFINISHED);
        let written = File::create(&unfinished).and_then(|mut file| {
            file.write_all(json.as_bytes())?;
            disk::sync_file(&file, &path)
        });
        written.map_err(|e| QuantError::io(&path, e))?;
        disk::sync_directory(&output.join(WEIGHTS))?;
        disk::rename_file(&unfinished, &path)?;
        disk::sync_directory(output)
    }
}
