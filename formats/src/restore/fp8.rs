//! FP8 with a scale of the whole, of each row, or of each block; and FP8 without scales.

use serde_json::Value;

use super::Result;
use super::checkpoint::Checkpoint;
use super::codes::{Codes, Place};
use super::error::{RestoreError, RestoreProblem};
use super::grid::Grid;
use super::numbers::Number;
use super::parts::Parts;
use crate::StoredType::{self, F8E4M3, F8E5M2};
use crate::schemes::SchemeTensor;

/// What the scales of a weight are called, after the name of its module. All of them multiply.
const SCALES: &[&str] = &["weight_scale_inv", "weight_scale", "scale_weight", "qscale_weight"];

/// The same after the name of a parameter that is not called a weight, such as those of experts.
const SCALES_OF_PARAMETERS: &[&str] = &["_scale_inv", "_scale", "_weight_scale"];

/// The tensor by which files of ComfyUI say that they have scales.
const MARKER: &str = "scaled_fp8";

/// FP8 types that are read.
const FP8: &[StoredType] = &[F8E4M3, F8E5M2];

/// Restores every FP8 tensor that has scales. If a configuration says that there are some, none may lack them.
pub(super) fn restore<P: Parts>(checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
    let block = block(checkpoint)?;
    let must_scale = checkpoint.is_configured();
    scaled(checkpoint, block, must_scale)?;
    checkpoint.take_named(MARKER);
    checkpoint.take_attention();
    Ok(())
}

/// Restores the FP8 tensors that have scales.
pub(super) fn scaled<P: Parts>(
    checkpoint: &mut Checkpoint<'_, P>,
    block: Option<[u64; 2]>,
    must_scale: bool,
) -> Result<(), P::Error> {
    for index in left(checkpoint) {
        let SchemeTensor { name, shape, .. } = checkpoint.tensor(index);
        let (module, endings) = match name.strip_suffix("weight") {
            Some(module) => (module, SCALES),
            None => (name, SCALES_OF_PARAMETERS),
        };
        let found = endings.iter().find_map(|ending| checkpoint.find(&format!("{module}{ending}")));
        let found = found.filter(|scale| !FP8.contains(&checkpoint.tensor(*scale).stored));
        match found {
            Some(scale) => {
                let grid = grid(checkpoint, index, Some((scale, block)))?;
                checkpoint.make(name.to_string(), shape.to_vec(), index, grid);
            }
            None if must_scale && shape.len() > 1 => {
                let part = format!("{module}{}", endings[usize::from(block.is_none())]);
                return Err(RestoreError::of(name, RestoreProblem::Missing { part }));
            }
            None => {}
        }
    }
    Ok(())
}

/// Restores FP8 matrices without scales. Lists and numbers stay as they are: nothing is quantized in them.
pub(super) fn plain<P: Parts>(checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
    for index in left(checkpoint) {
        let SchemeTensor { name, shape, .. } = checkpoint.tensor(index);
        if checkpoint.elements(index) == 0 || shape.len() < 2 {
            continue;
        }
        let grid = grid(checkpoint, index, None)?;
        checkpoint.make(name.to_string(), shape.to_vec(), index, grid);
    }
    Ok(())
}

/// The FP8 tensors that nothing was made of yet.
fn left<P: Parts>(checkpoint: &Checkpoint<'_, P>) -> Vec<usize> {
    checkpoint.left().filter(|index| FP8.contains(&checkpoint.tensor(*index).stored)).collect()
}

/// The weights of an FP8 tensor, with its scales and the size of their blocks if they are known.
fn grid<P: Parts>(
    checkpoint: &Checkpoint<'_, P>,
    index: usize,
    scale: Option<(usize, Option<[u64; 2]>)>,
) -> Result<Grid, P::Error> {
    let SchemeTensor { name, stored, shape } = checkpoint.tensor(index);
    let number = Number::of(stored).ok_or_else(|| checkpoint.stored_type(name, index, "F8_E4M3 or F8_E5M2"))?;
    // A list or a number is one row.
    let columns = shape.last().map_or(1, |columns| columns.unsigned_abs().max(1));
    let rows = checkpoint.elements(index) / columns;
    let scales = match scale {
        Some((scale, block)) => {
            let scales = checkpoint.scales(name, scale, [rows, columns], block)?;
            // Blocks of rows do not go on from one matrix into the next.
            let of_matrix = shape.iter().rev().nth(1).map_or(1, |rows| rows.unsigned_abs());
            if shape.len() > 2 && scales.block[0] <= rows && !of_matrix.is_multiple_of(scales.block[0]) {
                return Err(checkpoint.shape(name, scale, format!("blocks that divide {of_matrix} rows")));
            }
            Some(scales)
        }
        None => None,
    };
    let codes = Codes { part: index, bits: 8, place: Place::Rows { row_bytes: columns } };
    Ok(Grid::scaled(columns, codes, number.of_bytes().to_vec(), scales))
}

/// The size of blocks that the configuration says, or `None` if it does not.
fn block<P: Parts>(checkpoint: &Checkpoint<'_, P>) -> Result<Option<[u64; 2]>, P::Error> {
    let Some(found) = checkpoint.config("weight_block_size") else { return Ok(None) };
    let sizes: Option<Vec<u64>> = found.as_array().and_then(|sizes| sizes.iter().map(Value::as_u64).collect());
    match sizes.as_deref() {
        Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok(Some([rows, columns])),
        _ => {
            let found = found.to_string();
            let key = "weight_block_size".to_string();
            let problem = RestoreProblem::Setting { key, found, allowed: "two numbers above 0" };
            let first = left(checkpoint).first().map_or("", |index| checkpoint.tensor(*index).name);
            Err(RestoreError::of(first, problem))
        }
    }
}
