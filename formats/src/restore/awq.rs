//! AWQ: words of 32 bits across the outputs, eight codes each in an order of their own, and zero points alike.

use super::Result;
use super::checkpoint::{Checkpoint, setting};
use super::codes::{Codes, Place};
use super::error::{RestoreError, RestoreProblem};
use super::grid::Grid;
use super::parameters::{Parameters, Then, Values};
use super::parts::Parts;
use crate::StoredType::{BF16, F16, F32, I32, U32};

/// Codes of a word.
const CODES: u64 = 8;

/// Restores every matrix.
pub(super) fn restore<P: Parts>(checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
    let found = checkpoint.ending(".qweight");
    let Some(&(first, _)) = found.first() else { return Ok(()) };
    let first = checkpoint.tensor(first).name;
    let Some(bits) = checkpoint.config("bits").or_else(|| checkpoint.config("w_bit")) else {
        return Err(RestoreError::of(first, RestoreProblem::NoSetting { key: "bits", allowed: "4" }));
    };
    if bits.as_u64() != Some(4) {
        return Err(setting(first, "bits", bits, "4"));
    }
    let version = checkpoint.text("version").unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(setting(first, "version", version, "gemm"));
    }
    for (index, module) in found {
        matrix(checkpoint, index, module)?;
    }
    Ok(())
}

fn matrix<P: Parts>(checkpoint: &mut Checkpoint<'_, P>, index: usize, module: &str) -> Result<(), P::Error> {
    let name = checkpoint.tensor(index).name;
    checkpoint.expect(name, index, &[I32, U32], "I32")?;
    let [inputs, words] = checkpoint.matrix(index)?;
    let outputs = words.saturating_mul(CODES);
    let part = |ending: &str| format!("{module}.{ending}");
    let scales = checkpoint.need(name, &part("scales"))?;
    let zeros = checkpoint.need(name, &part("qzeros"))?;
    checkpoint.expect(name, scales, &[F16, BF16, F32], "floats")?;
    checkpoint.expect(name, zeros, &[I32, U32], "I32")?;
    let [groups, of_outputs] = checkpoint.matrix(scales)?;
    if of_outputs != outputs || !inputs.is_multiple_of(groups) {
        return Err(checkpoint.shape(name, scales, format!("[groups of {inputs} inputs, {outputs}]")));
    }
    if checkpoint.matrix(zeros)? != [groups, words] {
        return Err(checkpoint.shape(name, zeros, format!("[{groups}, {words}]")));
    }
    let block = [1, inputs / groups];
    let parameters = |values| Parameters { values, columns: groups, block, then: Then::Nothing };
    let codes = |part| Codes { part, bits: 4, place: Place::ColumnsAcross { words, is_interleaved: true } };
    let levels: Vec<f32> = (0..16_u8).map(f32::from).collect();
    let grid = Grid {
        zeros: Some(parameters(Values::Codes { codes: codes(zeros), levels: levels.clone() })),
        ..Grid::scaled(inputs, codes(index), levels, Some(parameters(checkpoint.turned(name, scales, outputs)?)))
    };
    checkpoint.make(part("weight"), vec![outputs as i64, inputs as i64], index, grid);
    Ok(())
}
