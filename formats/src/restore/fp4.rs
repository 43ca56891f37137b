//! Floats of four bits: NVFP4 of ModelOpt, and MXFP4 of gpt-oss.

use super::Result;
use super::checkpoint::{Checkpoint, setting};
use super::codes::{Codes, Place};
use super::error::{RestoreError, RestoreProblem};
use super::fp8;
use super::grid::{Grid, Last};
use super::numbers::{E2M1, Number};
use super::parameters::{Order, Parameters, Then, Values};
use super::parts::Parts;
use crate::StoredType::{F8E4M3, F8E8M0, I8, U8};

/// What a scale of inputs before their weights is called, which is not undone here.
const BEFORE: &str = "pre_quant_scale";

/// Weights of a block of gpt-oss, and bytes of its codes.
const BLOCK: [u64; 2] = [32, 16];

/// Restores a matrix of pairs of codes, the low one first, with a scale for each run of columns.
pub(super) fn pairs<P: Parts>(
    checkpoint: &mut Checkpoint<'_, P>,
    index: usize,
    scale: usize,
    then: Then,
    name: String,
) -> Result<(), P::Error> {
    let own = checkpoint.tensor(index).name;
    let [rows, bytes] = checkpoint.matrix(index)?;
    let columns = bytes.saturating_mul(2);
    let scales = checkpoint.scales(own, scale, [rows, columns], None)?;
    if scales.block[0] != 1 && rows > 1 {
        return Err(checkpoint.shape(own, scale, format!("[{rows}, runs of {columns} columns]")));
    }
    let codes = checkpoint.row_codes(index, 4)?;
    let grid = Grid::scaled(columns, codes, E2M1.to_vec(), Some(Parameters { then, ..scales }));
    let mut shape = checkpoint.tensor(index).shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = columns as i64;
    }
    checkpoint.make(name, shape, index, grid);
    Ok(())
}

/// ModelOpt: FP8 with one scale, and NVFP4, whose scales are multiplied by one of all.
pub(super) fn modelopt<P: Parts>(checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
    if let Some((index, _)) = checkpoint.ending(BEFORE).first() {
        let part = checkpoint.tensor(*index).name.to_string();
        return Err(RestoreError::of(&part.clone(), RestoreProblem::Part { part }));
    }
    for (index, module) in checkpoint.ending(".weight") {
        if checkpoint.tensor(index).stored != U8 {
            continue;
        }
        let name = checkpoint.tensor(index).name;
        let scale = checkpoint.need(name, &format!("{module}.weight_scale"))?;
        checkpoint.expect(name, scale, &[F8E4M3], "F8_E4M3")?;
        let whole = checkpoint.need(name, &format!("{module}.weight_scale_2"))?;
        let then = Then::Times(checkpoint.number(name, whole)?);
        checkpoint.take(whole);
        pairs(checkpoint, index, scale, then, name.to_string())?;
    }
    fp8::scaled(checkpoint, None, checkpoint.is_configured())?;
    checkpoint.take_attention();
    Ok(())
}

/// gpt-oss: experts as rows of outputs in blocks of 32 inputs, where the original has their transposes.
pub(super) fn gpt_oss<P: Parts>(checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
    for (index, name) in checkpoint.ending("_blocks") {
        let own = checkpoint.tensor(index).name;
        checkpoint.expect(own, index, &[U8, I8], "U8")?;
        let scale = checkpoint.need(own, &format!("{name}_scales"))?;
        checkpoint.expect(own, scale, &[U8, I8, F8E8M0], "U8")?;
        let shape = checkpoint.tensor(index).shape;
        let &[experts, rows, groups, bytes] = shape else {
            return Err(checkpoint.shape(own, index, "[experts, outputs, blocks, 16]"));
        };
        if bytes.unsigned_abs() != BLOCK[1] || shape.contains(&0) {
            return Err(checkpoint.shape(own, index, "[experts, outputs, blocks, 16]"));
        }
        if checkpoint.tensor(scale).shape != [experts, rows, groups] {
            return Err(checkpoint.shape(own, scale, format!("[{experts}, {rows}, {groups}]")));
        }
        let groups = groups.unsigned_abs();
        let columns = groups.saturating_mul(BLOCK[0]);
        let place = Place::Rows { row_bytes: groups * BLOCK[1] };
        let scales = Parameters {
            values: Values::Numbers { part: scale, number: Number::Exponent, order: Order::Rows },
            columns: groups,
            block: [1, BLOCK[0]],
            then: Then::Nothing,
        };
        let codes = Codes { part: index, bits: 4, place };
        let mut grid = Grid::scaled(columns, codes, E2M1.to_vec(), Some(scales));
        grid.last = Last::Transposed { rows: rows.unsigned_abs() };
        checkpoint.make(name.to_string(), vec![experts, columns as i64, rows], index, grid);
    }
    if let Some((index, _)) = checkpoint.ending(".blocks").first() {
        let name = checkpoint.tensor(*index).name;
        return Err(setting(name, "the layout", "blocks and scales as modules", "*_blocks and *_scales"));
    }
    Ok(())
}
