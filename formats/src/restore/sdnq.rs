//! SDNQ: integers with a scale and perhaps an offset for each group; widths below 8 bits are packed without regard to rows.

use serde_json::Value;

use super::Result;
use super::checkpoint::{Checkpoint, setting};
use super::codes::{Codes, Place};
use super::error::{RestoreError, RestoreProblem};
use super::grid::Grid;
use super::numbers::Number;
use super::parameters::{Order, Parameters, Then, Values};
use super::parts::Parts;
use crate::StoredType::{self, BF16, F16, F32, I8, U8};

/// Types that are read.
const TYPES: &str = "uint8, uint4, uint2, int8, int4 or int2";

/// What parts of layouts are called that are not read.
const OTHERS: &[&str] = &["svd_up", "svd_down"];

const FLOATS: &[StoredType] = &[F16, BF16, F32];

/// Restores every module.
pub(super) fn restore<P: Parts>(checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
    for (index, module) in checkpoint.ending(".weight") {
        let is_small = [U8, I8].contains(&checkpoint.tensor(index).stored);
        if is_small && checkpoint.find(&format!("{module}.scale")).is_some() {
            matrix(checkpoint, index, module)?;
        }
    }
    Ok(())
}

/// Whether codes are signed, and their bits.
fn width<P: Parts>(checkpoint: &Checkpoint<'_, P>, index: usize, module: &str) -> Result<(bool, u64), P::Error> {
    let name = checkpoint.tensor(index).name;
    let types = checkpoint.config("modules_dtype_dict").and_then(Value::as_object);
    let is_of = |names: &Value| {
        let mut names = names.as_array().into_iter().flatten().filter_map(Value::as_str);
        names.any(|listed| listed == name || listed == module)
    };
    let own = types.and_then(|types| types.iter().find(|(_, names)| is_of(names)).map(|(dtype, _)| dtype.as_str()));
    let Some(dtype) = own.or_else(|| checkpoint.text("weights_dtype")) else {
        return Err(RestoreError::of(name, RestoreProblem::NoSetting { key: "weights_dtype", allowed: TYPES }));
    };
    match dtype {
        "uint8" => Ok((false, 8)),
        "uint4" => Ok((false, 4)),
        "uint2" => Ok((false, 2)),
        "int8" => Ok((true, 8)),
        "int4" => Ok((true, 4)),
        "int2" => Ok((true, 2)),
        other => Err(setting(name, "weights_dtype", other, TYPES)),
    }
}

fn matrix<P: Parts>(checkpoint: &mut Checkpoint<'_, P>, index: usize, module: &str) -> Result<(), P::Error> {
    let name = checkpoint.tensor(index).name;
    let part = |ending: &str| format!("{module}.{ending}");
    if let Some(other) = OTHERS.iter().map(|other| part(other)).find(|other| checkpoint.find(other).is_some()) {
        return Err(RestoreError::of(name, RestoreProblem::Part { part: other }));
    }
    if checkpoint.is("use_hadamard") {
        return Err(setting(name, "use_hadamard", true, "false"));
    }
    let (is_signed, bits) = width(checkpoint, index, module)?;
    let scale = checkpoint.need(name, &part("scale"))?;
    checkpoint.expect(name, scale, FLOATS, "floats")?;
    let [rows, groups, group] = sizes(checkpoint, index, scale, bits)?;
    let (columns, bytes) = (group * groups, checkpoint.bytes(index));
    let parameters = |part: usize| {
        let number = Number::of(checkpoint.tensor(part).stored).unwrap_or(Number::U8);
        let values = Values::Numbers { part, number, order: Order::Rows };
        Parameters { values, columns: groups, block: [1, group], then: Then::Nothing }
    };
    let minima = match checkpoint.find(&part("zero_point")) {
        Some(low) => {
            checkpoint.expect(name, low, FLOATS, "floats")?;
            if checkpoint.elements(low) != rows * groups {
                return Err(checkpoint.shape(name, low, format!("[{rows}, {groups}, 1]")));
            }
            Some(parameters(low))
        }
        None if is_signed => None,
        None => return Err(RestoreError::of(name, RestoreProblem::Missing { part: part("zero_point") })),
    };
    let levels = match (is_signed, bits) {
        (true, 8) if checkpoint.tensor(index).stored == I8 => Number::I8.of_bytes().to_vec(),
        (true, _) => (0..1_i32 << bits).map(|code| (code - (1 << (bits - 1))) as f32).collect(),
        (false, _) => (0..1_i32 << bits).map(|code| code as f32).collect(),
    };
    let place = Place::Flat { columns, is_high_first: false, bytes };
    let codes = Codes { part: index, bits, place };
    let grid = Grid { minima, ..Grid::scaled(columns, codes, levels, Some(parameters(scale))) };
    checkpoint.make(part("weight"), vec![rows as i64, columns as i64], index, grid);
    Ok(())
}

/// Rows, groups of a row, and columns of a group, as the shapes of scales and codes tell them.
fn sizes<P: Parts>(
    checkpoint: &Checkpoint<'_, P>,
    index: usize,
    scale: usize,
    bits: u64,
) -> Result<[u64; 3], P::Error> {
    let name = checkpoint.tensor(index).name;
    // [rows, groups, 1], or [rows, 1] where a row is one group.
    let [rows, groups] = match *checkpoint.tensor(scale).shape {
        [rows, groups, 1] => [rows.unsigned_abs(), groups.unsigned_abs()],
        [rows, 1] => [rows.unsigned_abs(), 1],
        _ => return Err(checkpoint.shape(name, scale, "[rows, groups, 1] or [rows, 1]")),
    };
    let bytes = checkpoint.bytes(index);
    let elements = bytes.saturating_mul(8) / bits;
    let group = elements.checked_div(rows.saturating_mul(groups)).unwrap_or(0);
    let columns = group.saturating_mul(groups);
    if group == 0 || rows.saturating_mul(columns) != elements {
        return Err(checkpoint.shape(name, index, format!("whole groups, {groups} for each of {rows} rows")));
    }
    // Widths of less than a byte are flat; bytes are rows, or groups of rows.
    let of_rows: Option<u64> = match checkpoint.tensor(index).shape {
        [_] => (bits < 8).then_some(rows),
        [of_rows, ..] => (bits == 8).then_some(of_rows.unsigned_abs()),
        [] => None,
    };
    if of_rows != Some(rows) {
        return Err(checkpoint.shape(name, index, format!("{rows} rows of {columns} codes of {bits} bits")));
    }
    Ok([rows, groups, group])
}
