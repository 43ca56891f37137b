//! MLX: codes of two to eight bits along the rows, with scales and offsets of groups; and its modes of small floats.

use serde_json::Value;

use super::Result;
use super::checkpoint::{Checkpoint, setting};
use super::error::{RestoreError, RestoreProblem};
use super::grid::Grid;
use super::numbers::{E2M1, Number};
use super::parameters::{Order, Parameters, Then, Values};
use super::parts::Parts;
use crate::StoredType::{self, BF16, F16, F32, U8, U32};
use arrow_quant_kernels::Fp8;

const BITS: &str = "2, 3, 4, 5, 6 or 8";

/// Restores every module.
pub(super) fn restore<P: Parts>(checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
    for (index, module) in checkpoint.ending(".weight") {
        let scale = checkpoint.find(&format!("{module}.scales"));
        if checkpoint.tensor(index).stored == U32 && scale.is_some() {
            matrix(checkpoint, index, module)?;
        }
    }
    Ok(())
}

/// A setting of a module, or else of all.
fn of_module<'a, P: Parts>(checkpoint: &Checkpoint<'a, P>, module: &str, key: &str) -> Option<&'a Value> {
    let own = checkpoint.config(module).and_then(|own| own.get(key));
    own.or_else(|| checkpoint.config(key))
}

fn matrix<P: Parts>(checkpoint: &mut Checkpoint<'_, P>, index: usize, module: &str) -> Result<(), P::Error> {
    const FLOATS: &[StoredType] = &[F16, BF16, F32];
    let name = checkpoint.tensor(index).name;
    let [rows, words] = checkpoint.matrix(index)?;
    let Some(found) = of_module(checkpoint, module, "bits") else {
        return Err(RestoreError::of(name, RestoreProblem::NoSetting { key: "bits", allowed: BITS }));
    };
    let bits = found.as_u64().filter(|bits| [2, 3, 4, 5, 6, 8].contains(bits));
    let bits = bits.ok_or_else(|| setting(name, "bits", found, BITS))?;
    let columns = words.saturating_mul(32) / bits;
    let scale = checkpoint.need(name, &format!("{module}.scales"))?;
    let [of_rows, groups] = checkpoint.matrix(scale)?;
    let group = columns / groups;
    let asked = of_module(checkpoint, module, "group_size").and_then(Value::as_u64).unwrap_or(group);
    if of_rows != rows || group != asked || group * groups != columns || columns * bits != words * 32 {
        return Err(checkpoint.shape(name, scale, format!("[{rows}, groups of {asked} of {columns} columns]")));
    }
    let parameters = |values| Parameters { values, columns: groups, block: [1, group], then: Then::Nothing };
    let numbers = |part, number| parameters(Values::Numbers { part, number, order: Order::Rows });
    let mode = of_module(checkpoint, module, "mode").and_then(Value::as_str).unwrap_or("affine");
    let codes = checkpoint.row_codes(index, bits)?;
    let count = 1_u32 << bits;
    let grid = match (mode, bits) {
        ("affine", _) => {
            let low = checkpoint.need(name, &format!("{module}.biases"))?;
            if checkpoint.matrix(low)? != [rows, groups] {
                return Err(checkpoint.shape(name, low, format!("[{rows}, {groups}]")));
            }
            checkpoint.expect(name, scale, FLOATS, "floats")?;
            checkpoint.expect(name, low, FLOATS, "floats")?;
            let of = |index: usize| Number::of(checkpoint.tensor(index).stored).unwrap_or(Number::U8);
            let levels = (0..count).map(|code| code as f32).collect();
            let scales = numbers(scale, of(scale));
            Grid { minima: Some(numbers(low, of(low))), ..Grid::scaled(columns, codes, levels, Some(scales)) }
        }
        ("mxfp4" | "nvfp4", 4) | ("mxfp8", 8) => {
            checkpoint.expect(name, scale, &[U8], "U8")?;
            let number = if mode == "nvfp4" { Number::Fp8(Fp8::E4M3) } else { Number::Exponent };
            let levels = if bits == 4 { E2M1.to_vec() } else { Number::Fp8(Fp8::E4M3).of_bytes().to_vec() };
            Grid::scaled(columns, codes, levels, Some(numbers(scale, number)))
        }
        _ => return Err(setting(name, "mode", mode, "affine, mxfp4 and nvfp4 of 4 bits, or mxfp8 of 8 bits")),
    };
    let mut shape = checkpoint.tensor(index).shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = columns as i64;
    }
    checkpoint.make(name.to_string(), shape, index, grid);
    Ok(())
}
