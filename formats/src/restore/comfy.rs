//! ComfyUI: layers that say their format one by one, in a tensor of JSON or in the metadata of the file.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Result;
use super::checkpoint::{Checkpoint, setting};
use super::codes::{Codes, Place};
use super::error::{RestoreError, RestoreProblem};
use super::fp8;
use super::grid::{Grid, Last};
use super::numbers::{E2M1, Number};
use super::parameters::{Order, Parameters, Then, Values};
use super::parts::Parts;
use super::rotation;
use crate::StoredType::{BF16, F8E4M3, F8E5M2, F8E8M0, F16, F32, I8, U8};

/// The key of metadata that says it of all layers.
pub(crate) const METADATA: &str = "_quantization_metadata";

/// The tensor of a layer that says it.
const DESCRIPTION: &str = ".comfy_quant";

/// Formats that are read.
const FORMATS: &str =
    "float8_e4m3fn, float8_e5m2, int8_tensorwise, awq_w4a16, convrot_w4a4, asym_w4a8_int8, nvfp4 or mxfp8";

/// Columns of a rotation, where a layer does not say it.
const ROTATION: u64 = 256;

/// A layer and what is said of it.
struct Layer {
    module: String,
    about: Map<String, Value>,
}

/// Restores every layer.
pub(super) fn restore<P: Parts>(
    checkpoint: &mut Checkpoint<'_, P>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), P::Error> {
    for layer in layers(checkpoint, metadata)? {
        layer.restore(checkpoint)?;
    }
    fp8::scaled(checkpoint, None, false)?;
    checkpoint.take_named("scaled_fp8");
    Ok(())
}

fn layers<P: Parts>(
    checkpoint: &mut Checkpoint<'_, P>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<Layer>, P::Error> {
    let wrong = |part: &str, error: &dyn ToString| {
        RestoreError::of(part, RestoreProblem::Json { part: part.to_string(), found: error.to_string() })
    };
    let mut layers = Vec::new();
    for (index, module) in checkpoint.ending(DESCRIPTION) {
        let name = checkpoint.tensor(index).name;
        checkpoint.expect(name, index, &[U8, I8], "U8")?;
        let about = serde_json::from_slice(&checkpoint.read(name, index)?).map_err(|error| wrong(name, &error))?;
        checkpoint.take(index);
        layers.push(Layer { module: module.to_string(), about });
    }
    if let Some(text) = metadata.get(METADATA) {
        let all: Value = serde_json::from_str(text).map_err(|error| wrong(METADATA, &error))?;
        for (module, about) in all.get("layers").and_then(Value::as_object).into_iter().flatten() {
            let about = about.as_object().ok_or_else(|| wrong(module, &"not an object"))?;
            // Files have the layers of all components.
            if layers.iter().all(|layer| layer.module != *module)
                && checkpoint.find(&format!("{module}.weight")).is_some()
            {
                layers.push(Layer { module: module.clone(), about: about.clone() });
            }
        }
    }
    Ok(layers)
}

impl Layer {
    fn part(&self, ending: &str) -> String {
        format!("{}.{ending}", self.module)
    }

    fn restore<P: Parts>(&self, checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
        let name = self.part("weight");
        let index = checkpoint.need(&name, &name)?;
        let scale = || self.part("weight_scale");
        match self.about.get("format").and_then(Value::as_str).unwrap_or_default() {
            "float8_e4m3fn" | "float8_e5m2" => {
                checkpoint.expect(&name, index, &[F8E4M3, F8E5M2], "F8_E4M3 or F8_E5M2")?;
                // All FP8 with scales is restored at the end.
                checkpoint.need(&name, &scale()).map(drop)
            }
            "int8_tensorwise" => self.signed_bytes(checkpoint, index),
            "convrot_w4a4" => self.rotated_nibbles(checkpoint, index),
            "asym_w4a8_int8" => self.rotated_products(checkpoint, index),
            "awq_w4a16" => self.affine(checkpoint, index),
            "nvfp4" => self.tiled(checkpoint, index, 4, 16),
            "mxfp8" => self.tiled(checkpoint, index, 8, 32),
            other => Err(setting(&name, "format", other, FORMATS)),
        }
    }

    /// A rotation of rows of so many columns, as the last step.
    fn rotation<P: Parts>(&self, columns: u64, bytes: Option<Parameters>) -> Result<Last, P::Error> {
        let size = self.about.get("convrot_groupsize").map_or(Some(ROTATION), Value::as_u64).unwrap_or(0);
        if rotation::is_size(size) && columns.is_multiple_of(size) {
            return Ok(Last::Rotated { size, bytes });
        }
        Err(setting(&self.part("weight"), "convrot_groupsize", size, "a power of 4 that divides the columns"))
    }

    /// Rows and columns of a matrix of signed bytes that hold two codes each.
    fn nibbles<P: Parts>(&self, checkpoint: &Checkpoint<'_, P>, index: usize) -> Result<[u64; 2], P::Error> {
        checkpoint.expect(&self.part("weight"), index, &[I8, U8], "I8")?;
        let [rows, bytes] = checkpoint.matrix(index)?;
        Ok([rows, bytes.saturating_mul(2)])
    }

    fn signed_bytes<P: Parts>(&self, checkpoint: &mut Checkpoint<'_, P>, index: usize) -> Result<(), P::Error> {
        let name = self.part("weight");
        checkpoint.expect(&name, index, &[I8], "I8")?;
        let matrix = checkpoint.matrix(index)?;
        let scale = checkpoint.need(&name, &self.part("weight_scale"))?;
        let scales = checkpoint.scales(&name, scale, matrix, None)?;
        let levels = Number::I8.of_bytes().to_vec();
        let mut grid = Grid::scaled(matrix[1], checkpoint.row_codes(index, 8)?, levels, Some(scales));
        if self.about.get("convrot").and_then(Value::as_bool).unwrap_or(false) {
            grid.last = self.rotation::<P>(matrix[1], None)?;
        }
        checkpoint.make(name, checkpoint.tensor(index).shape.to_vec(), index, grid);
        Ok(())
    }

    fn rotated_nibbles<P: Parts>(&self, checkpoint: &mut Checkpoint<'_, P>, index: usize) -> Result<(), P::Error> {
        let name = self.part("weight");
        let [rows, columns] = self.nibbles(checkpoint, index)?;
        let scale = checkpoint.need(&name, &self.part("weight_scale"))?;
        let scales = checkpoint.scales(&name, scale, [rows, columns], None)?;
        let levels = (0..16).map(|code| if code > 7 { code - 16 } else { code }).map(|code: i32| code as f32).collect();
        let last = self.rotation::<P>(columns, None)?;
        let grid = Grid { last, ..Grid::scaled(columns, checkpoint.row_codes(index, 4)?, levels, Some(scales)) };
        checkpoint.make(name, vec![rows as i64, columns as i64], index, grid);
        Ok(())
    }

    fn rotated_products<P: Parts>(&self, checkpoint: &mut Checkpoint<'_, P>, index: usize) -> Result<(), P::Error> {
        let name = self.part("weight");
        let [rows, columns] = self.nibbles(checkpoint, index)?;
        let relative = checkpoint.need(&name, &self.part("weight_s_rel"))?;
        let channel = checkpoint.need(&name, &self.part("weight_s_channel"))?;
        let scales = checkpoint.scales(&name, relative, [rows, columns], None)?;
        let of_rows = checkpoint.scales(&name, channel, [rows, columns], None)?;
        let levels = match checkpoint.find(&self.part("weight_codebook")) {
            Some(codebook) => {
                let levels = checkpoint.values(&name, codebook)?;
                if levels.len() != 16 {
                    return Err(checkpoint.shape(&name, codebook, "[16]"));
                }
                checkpoint.take(codebook);
                levels
            }
            None => (0..16_i32).map(|code| (code - 8) as f32).collect(),
        };
        let last = self.rotation::<P>(columns, Some(of_rows))?;
        let grid = Grid { last, ..Grid::scaled(columns, checkpoint.row_codes(index, 4)?, levels, Some(scales)) };
        checkpoint.make(name, vec![rows as i64, columns as i64], index, grid);
        Ok(())
    }

    fn affine<P: Parts>(&self, checkpoint: &mut Checkpoint<'_, P>, index: usize) -> Result<(), P::Error> {
        let name = self.part("weight");
        let [rows, columns] = self.nibbles(checkpoint, index)?;
        let scale = checkpoint.need(&name, &self.part("weight_scale"))?;
        let zero = checkpoint.need(&name, &self.part("weight_zeros"))?;
        let [groups, of_rows] = checkpoint.matrix(scale)?;
        if of_rows != rows || !columns.is_multiple_of(groups) {
            return Err(checkpoint.shape(&name, scale, format!("[groups of {columns} columns, {rows}]")));
        }
        if checkpoint.matrix(zero)? != [groups, rows] {
            return Err(checkpoint.shape(&name, zero, format!("[{groups}, {rows}]")));
        }
        for part in [scale, zero] {
            checkpoint.expect(&name, part, &[F32, F16, BF16], "floats")?;
        }
        let block = [1, columns / groups];
        let parameters = |values| Parameters { values, columns: groups, block, then: Then::Nothing };
        let levels = (0..16_i32).map(|code| (code - 8) as f32).collect();
        let scales = parameters(checkpoint.turned(&name, scale, rows)?);
        let minima = Some(parameters(checkpoint.turned(&name, zero, rows)?));
        let grid = Grid { minima, ..Grid::scaled(columns, checkpoint.row_codes(index, 4)?, levels, Some(scales)) };
        checkpoint.make(name, vec![rows as i64, columns as i64], index, grid);
        Ok(())
    }

    /// Small floats whose scales are in tiles: two in a byte, the high one first, with a scale of all; or bytes.
    fn tiled<P: Parts>(
        &self,
        checkpoint: &mut Checkpoint<'_, P>,
        index: usize,
        bits: u64,
        group: u64,
    ) -> Result<(), P::Error> {
        let name = self.part("weight");
        let [rows, of_row] = checkpoint.matrix(index)?;
        let columns = of_row.saturating_mul(8) / bits;
        let scale = checkpoint.need(&name, &self.part("weight_scale"))?;
        if !columns.is_multiple_of(group) {
            return Err(checkpoint.shape(&name, index, format!("rows of whole groups of {group}")));
        }
        let padded = [rows.next_multiple_of(128), (columns / group).next_multiple_of(4)];
        if checkpoint.matrix(scale)? != padded {
            return Err(checkpoint.shape(&name, scale, format!("{padded:?}")));
        }
        let (number, levels, then) = if bits == 4 {
            checkpoint.expect(&name, index, &[U8, I8], "U8")?;
            checkpoint.expect(&name, scale, &[F8E4M3], "F8_E4M3")?;
            let whole = checkpoint.need(&name, &self.part("weight_scale_2"))?;
            checkpoint.take(whole);
            let then = Then::Times(checkpoint.number(&name, whole)?);
            (Number::Fp8(arrow_quant_kernels::Fp8::E4M3), E2M1.to_vec(), then)
        } else {
            checkpoint.expect(&name, index, &[F8E4M3, F8E5M2], "F8_E4M3 or F8_E5M2")?;
            checkpoint.expect(&name, scale, &[F8E8M0, U8], "F8_E8M0")?;
            let number = Number::of(checkpoint.tensor(index).stored).unwrap_or(Number::U8);
            (Number::Exponent, number.of_bytes().to_vec(), Then::Nothing)
        };
        let values = Values::Numbers { part: scale, number, order: Order::Tiles { columns: padded[1] } };
        let scales = Parameters { values, columns: columns / group, block: [1, group], then };
        let bytes = checkpoint.bytes(index);
        let place = Place::Flat { columns, is_high_first: bits == 4, bytes };
        let grid = Grid::scaled(columns, Codes { part: index, bits, place }, levels, Some(scales));
        checkpoint.make(name, vec![rows as i64, columns as i64], index, grid);
        Ok(())
    }
}
