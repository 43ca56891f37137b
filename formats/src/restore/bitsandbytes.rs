//! bitsandbytes: codebooks of 16 values with a scale for each block of a flat list, and signed bytes with a scale for each row.

use serde::Deserialize;

use super::Result;
use super::checkpoint::{Checkpoint, setting};
use super::codes::{Codes, Place};
use super::error::{RestoreError, RestoreProblem};
use super::grid::Grid;
use super::numbers::Number;
use super::parameters::{Order, Parameters, Then, Values};
use super::parts::Parts;
use crate::StoredType::{self, BF16, F16, F32, I8, U8};

/// What stands between the name of a weight and the name of its kind of codes.
const STATE: &str = ".quant_state.bitsandbytes__";

/// What a scale of a row is of: codes are at most 127.
const MOST: f32 = 127.0;

/// The most weights of a block; the library has 4,096 at most.
const MOST_OF_BLOCK: u64 = 65_536;

/// The state of a weight of four bits.
#[derive(Deserialize)]
struct State {
    blocksize: u64,
    shape: Vec<u64>,
    nested_blocksize: Option<u64>,
    nested_offset: Option<f64>,
}

/// Restores every weight.
pub(super) fn restore<P: Parts>(checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
    let states: Vec<(usize, &str)> = checkpoint
        .left()
        .filter_map(|index| Some((index, checkpoint.tensor(index).name.split_once(STATE)?.0)))
        .collect();
    for (index, name) in states {
        four_bits(checkpoint, index, name)?;
    }
    for (index, module) in checkpoint.ending(".SCB") {
        eight_bits(checkpoint, index, module)?;
    }
    Ok(())
}

fn four_bits<P: Parts>(checkpoint: &mut Checkpoint<'_, P>, state_index: usize, name: &str) -> Result<(), P::Error> {
    let index = checkpoint.need(name, name)?;
    let bytes = checkpoint.bytes(index);
    let State { blocksize, shape, nested_blocksize, nested_offset } = state(checkpoint, state_index, name)?;
    let elements = shape.iter().try_fold(1_u64, |product, size| product.checked_mul(*size));
    let elements = elements.filter(|elements| *elements > 0 && elements.div_ceil(2) == bytes);
    let Some(elements) = elements else {
        return Err(checkpoint.shape(name, index, format!("half as many bytes as {shape:?} has elements")));
    };
    if !(1..=MOST_OF_BLOCK).contains(&blocksize) {
        return Err(setting(name, "blocksize", blocksize, "1 to 65536"));
    }
    let blocks = elements.div_ceil(blocksize);
    let map = checkpoint.need(name, &format!("{name}.quant_map"))?;
    let levels = checkpoint.values(name, map)?;
    if levels.len() != 16 {
        return Err(checkpoint.shape(name, map, "[16]"));
    }
    let scale = checkpoint.need(name, &format!("{name}.absmax"))?;
    if checkpoint.elements(scale) != blocks {
        return Err(checkpoint.shape(name, scale, format!("[{blocks}]")));
    }
    let values = match (nested_blocksize, nested_offset) {
        (Some(block), Some(offset)) => nested(checkpoint, name, scale, block, offset as f32)?,
        (None, None) => {
            checkpoint.expect(name, scale, &[F32, F16, BF16], "floats")?;
            let number = Number::of(checkpoint.tensor(scale).stored).unwrap_or(Number::U8);
            Values::Numbers { part: scale, number, order: Order::Rows }
        }
        _ => return Err(setting(name, "nested_blocksize", "without its offset", "both or neither")),
    };
    let scales = Parameters { values, columns: 1, block: [1, blocksize], then: Then::Nothing };
    let place = Place::Flat { columns: blocksize, is_high_first: true, bytes };
    let grid = Grid::scaled(blocksize, Codes { part: index, bits: 4, place }, levels, Some(scales));
    checkpoint.take(state_index);
    checkpoint.take(map);
    let shape = shape.iter().map(|size| *size as i64).collect();
    checkpoint.make(name.to_string(), shape, index, grid);
    Ok(())
}

/// The state of a weight: JSON in bytes.
fn state<P: Parts>(checkpoint: &Checkpoint<'_, P>, index: usize, name: &str) -> Result<State, P::Error> {
    let part = checkpoint.tensor(index).name;
    checkpoint.expect(name, index, &[U8, I8], "U8")?;
    let json = checkpoint.read(name, index)?;
    serde_json::from_slice(&json).map_err(|error| {
        RestoreError::of(name, RestoreProblem::Json { part: part.to_string(), found: error.to_string() })
    })
}

/// Scales of blocks that are quantized themselves.
fn nested<P: Parts>(
    checkpoint: &mut Checkpoint<'_, P>,
    name: &str,
    scale: usize,
    block: u64,
    offset: f32,
) -> Result<Values, P::Error> {
    checkpoint.expect(name, scale, &[U8], "U8")?;
    let part = |ending: &str| format!("{name}.{ending}");
    let map_index = checkpoint.need(name, &part("nested_quant_map"))?;
    let map = checkpoint.values(name, map_index)?;
    if map.len() != 256 {
        return Err(checkpoint.shape(name, map_index, "[256]"));
    }
    let scales_index = checkpoint.need(name, &part("nested_absmax"))?;
    let scales = checkpoint.values(name, scales_index)?;
    let count = checkpoint.elements(scale).div_ceil(block.max(1));
    if block == 0 || scales.len() as u64 != count {
        return Err(checkpoint.shape(name, scales_index, format!("[{count}]")));
    }
    checkpoint.take(map_index);
    checkpoint.take(scales_index);
    Ok(Values::Nested { part: scale, map, scales, block, offset })
}

fn eight_bits<P: Parts>(checkpoint: &mut Checkpoint<'_, P>, scale: usize, module: &str) -> Result<(), P::Error> {
    const FLOATS: &[StoredType] = &[F32, F16, BF16];
    let scale_name = checkpoint.tensor(scale).name;
    let name = format!("{module}.weight");
    let index = checkpoint.need(scale_name, &name)?;
    checkpoint.expect(&name, index, &[I8], "I8")?;
    checkpoint.expect(&name, scale, FLOATS, "floats")?;
    let [rows, columns] = checkpoint.matrix(index)?;
    if checkpoint.elements(scale) != rows {
        return Err(checkpoint.shape(&name, scale, format!("[{rows}]")));
    }
    if let Some(format) = checkpoint.find(&format!("{module}.weight_format")) {
        // Other numbers are orders of tiles for GPUs.
        if checkpoint.values(&name, format)?.iter().any(|format| *format != 0.0) {
            return Err(setting(&name, "weight_format", "one of tiles", "0, row by row"));
        }
        checkpoint.take(format);
    }
    let scales = checkpoint.scales(&name, scale, [rows, columns], None)?;
    let scales = Parameters { then: Then::DividedBy(MOST), ..scales };
    let codes = checkpoint.row_codes(index, 8)?;
    let grid = Grid::scaled(columns, codes, Number::I8.of_bytes().to_vec(), Some(scales));
    checkpoint.make(name, checkpoint.tensor(index).shape.to_vec(), index, grid);
    Ok(())
}
