//! Our own directory: Parquet files of the `quantized` table, and a manifest beside them.

use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::manifest::Manifest;
use arrow_quant_kernels::{Bits, BlockType, GroupSize, Scheme};

use super::part::ParquetPart;
use super::{Layout, PartFiles, PartWriter, Target, write_manifest};
use crate::plan::Allowed;
use crate::tables::part_schema;
use crate::{DiffusionQuantConfig, Model, Result, disk};

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
            floats: &[],
            whole_groups: false,
            smoothing: true,
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
        disk::sync_directory(&output.join(WEIGHTS))?;
        write_manifest(output, manifest)
    }
}
