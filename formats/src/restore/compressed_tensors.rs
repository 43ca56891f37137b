//! compressed-tensors: packed integers, signed bytes, FP8 and FP4.

use serde_json::Value;

use super::Result;
use super::checkpoint::{Checkpoint, setting};
use super::codes::{Codes, Place};
use super::error::{RestoreError, RestoreProblem};
use super::grid::Grid;
use super::numbers::Number;
use super::parameters::{Order, Parameters, Then, Values};
use super::parts::Parts;
use super::{fp4, fp8};
use crate::StoredType::{self, F8E4M3, F8E8M0, I8, I32, I64, U8};

/// Formats that are read.
const FORMATS: &[&str] = &[
    "pack-quantized",
    "int-quantized",
    "naive-quantized",
    "float-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
    "dense",
];

/// The same, for messages.
const ALLOWED: &str = "pack-quantized, int-quantized, naive-quantized, float-quantized, nvfp4-pack-quantized, \
                       mxfp4-pack-quantized, mxfp8-quantized or mixed-precision";

/// Restores every module.
pub(super) fn restore<P: Parts>(checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
    let first = checkpoint.left().next().map_or("", |index| checkpoint.tensor(index).name);
    let groups: Vec<&Value> = checkpoint
        .config("config_groups")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|groups| groups.values())
        .collect();
    let formats = groups.iter().filter_map(|group| group.get("format")?.as_str()).chain(checkpoint.text("format"));
    for format in formats {
        if !FORMATS.contains(&format) {
            return Err(setting(first, "format", format, ALLOWED));
        }
    }
    let transforms = checkpoint.config("transform_config").and_then(Value::as_object);
    if transforms.is_some_and(|transforms| !transforms.is_empty()) {
        return Err(setting(first, "transform_config", "there", "weights that are not transformed"));
    }
    for (index, module) in checkpoint.ending(".weight_packed") {
        if checkpoint.tensor(index).stored == U8 {
            floats(checkpoint, index, module)?;
        } else {
            packed(checkpoint, index, module)?;
        }
    }
    for (index, module) in checkpoint.ending(".weight") {
        if checkpoint.tensor(index).stored == I8 {
            signed_bytes(checkpoint, index, module)?;
        }
    }
    let block = groups.iter().find_map(|group| sizes(group.get("weights")?.get("block_structure")?));
    fp8::scaled(checkpoint, block, checkpoint.is_configured())?;
    checkpoint.take_attention();
    Ok(())
}

/// Rows and columns of a block.
fn sizes(found: &Value) -> Option<[u64; 2]> {
    match found.as_array()?.as_slice() {
        [rows, columns] => Some([rows.as_u64()?, columns.as_u64()?]),
        _ => None,
    }
}

/// Integers, packed in words of 32 bits along the rows.
fn packed<P: Parts>(checkpoint: &mut Checkpoint<'_, P>, index: usize, module: &str) -> Result<(), P::Error> {
    let name = checkpoint.tensor(index).name;
    let part = |ending: &str| format!("{module}.{ending}");
    checkpoint.expect(name, index, &[I32], "I32, or U8 for floats of four bits")?;
    let [rows, words] = checkpoint.matrix(index)?;
    let [_, columns] = shape(checkpoint, name, &part("weight_shape"), rows)?;
    let bits = (1..=8).find(|bits| columns.saturating_mul(*bits).div_ceil(32) == words);
    let bits = bits.ok_or_else(|| checkpoint.shape(name, index, format!("words of {columns} codes of 1 to 8 bits")))?;
    let scale = checkpoint.need(name, &part("weight_scale"))?;
    let scales = checkpoint.scales(name, scale, [rows, columns], None)?;
    let order = checkpoint.find(&part("weight_g_idx"));
    let groups = match order {
        Some(order) => {
            checkpoint.take(order);
            let found = checkpoint.integers(name, order)?;
            // -1 says that groups are in order.
            if found.iter().all(|group| *group < 0) {
                None
            } else {
                Some(checkpoint.groups(name, order, columns, scales.columns)?)
            }
        }
        None => None,
    };
    let half = 1_u32 << (bits - 1);
    let zeros = match checkpoint.find(&part("weight_zero_point")) {
        Some(zero) => Some(packed_zeros(checkpoint, name, zero, rows, bits, &scales)?),
        None => None,
    };
    let least = if zeros.is_some() { 0.0 } else { half as f32 };
    let levels = (0..2 * half).map(|code| code as f32 - least).collect();
    let codes = checkpoint.row_codes(index, bits)?;
    let grid = Grid { zeros, groups, ..Grid::scaled(columns, codes, levels, Some(scales)) };
    checkpoint.make(part("weight"), vec![rows as i64, columns as i64], index, grid);
    Ok(())
}

/// Zero points, packed like the weights but down the rows.
fn packed_zeros<P: Parts>(
    checkpoint: &Checkpoint<'_, P>,
    name: &str,
    zero: usize,
    rows: u64,
    bits: u64,
    scales: &Parameters,
) -> Result<Parameters, P::Error> {
    checkpoint.expect(name, zero, &[I32], "I32")?;
    let (groups, words) = (scales.columns, rows.saturating_mul(bits).div_ceil(32));
    if checkpoint.matrix(zero)? != [words, groups] || scales.block[0] != 1 && rows > 1 {
        return Err(checkpoint.shape(name, zero, format!("[{words}, {groups}]")));
    }
    let codes = Codes { part: zero, bits, place: Place::ColumnsDown { words: groups } };
    let levels = (0..1_u32 << bits).map(|code| code as f32).collect();
    Ok(Parameters { values: Values::Codes { codes, levels }, ..*scales })
}

/// The shape of packed weights, from a tensor of its own.
fn shape<P: Parts>(checkpoint: &Checkpoint<'_, P>, name: &str, part: &str, rows: u64) -> Result<[u64; 2], P::Error> {
    let index = checkpoint.need(name, part)?;
    checkpoint.expect(name, index, &[I64, I32], "I64")?;
    let size = if checkpoint.tensor(index).stored == I64 { 8 } else { 4 };
    let bytes = checkpoint.read(name, index)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let found: Vec<u64> = bytes.chunks(size).map(number).collect();
    match found.as_slice() {
        // Two numbers of 2^40 do not overflow in what is computed of them.
        &[of_rows, columns] if of_rows == rows && (1..1 << 40).contains(&columns) => Ok([of_rows, columns]),
        _ => Err(RestoreError::of(
            name,
            RestoreProblem::Shape {
                part: part.to_string(),
                found: found.iter().map(|number| *number as i64).collect(),
                expected: format!("values [{rows}, columns]"),
            },
        )),
    }
}

/// Signed bytes, whose zero points are signed bytes too.
fn signed_bytes<P: Parts>(checkpoint: &mut Checkpoint<'_, P>, index: usize, module: &str) -> Result<(), P::Error> {
    let name = checkpoint.tensor(index).name;
    let scale = checkpoint.need(name, &format!("{module}.weight_scale"))?;
    let matrix = checkpoint.matrix(index)?;
    let scales = checkpoint.scales(name, scale, matrix, None)?;
    let zeros = match checkpoint.find(&format!("{module}.weight_zero_point")) {
        Some(zero) => {
            checkpoint.expect(name, zero, &[I8], "I8")?;
            if checkpoint.elements(zero) != checkpoint.elements(scale) {
                return Err(checkpoint.shape(name, zero, "that of the scales"));
            }
            let values = Values::Numbers { part: zero, number: Number::I8, order: Order::Rows };
            Some(Parameters { values, ..scales })
        }
        None => None,
    };
    let levels = Number::I8.of_bytes().to_vec();
    let grid = Grid { zeros, ..Grid::scaled(matrix[1], checkpoint.row_codes(index, 8)?, levels, Some(scales)) };
    checkpoint.make(name.to_string(), checkpoint.tensor(index).shape.to_vec(), index, grid);
    Ok(())
}

/// Floats of four bits, with powers of two for each 32 or with FP8 scales for each 16 and a divisor of all.
fn floats<P: Parts>(checkpoint: &mut Checkpoint<'_, P>, index: usize, module: &str) -> Result<(), P::Error> {
    /// Scales of blocks.
    const SCALES: &[StoredType] = &[F8E4M3, F8E8M0, U8];
    let name = checkpoint.tensor(index).name;
    let scale = checkpoint.need(name, &format!("{module}.weight_scale"))?;
    checkpoint.expect(name, scale, SCALES, "F8_E4M3, or U8 for powers of two")?;
    let then = if checkpoint.tensor(scale).stored == F8E4M3 {
        let whole = checkpoint.need(name, &format!("{module}.weight_global_scale"))?;
        checkpoint.take(whole);
        Then::DividedBy(checkpoint.number(name, whole)?)
    } else {
        Then::Nothing
    };
    fp4::pairs(checkpoint, index, scale, then, format!("{module}.weight"))
}
