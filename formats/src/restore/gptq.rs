//! GPTQ: words of 32 bits down the inputs, a zero point for each group and output, and groups that may be out of order.

use super::Result;
use super::checkpoint::{Checkpoint, setting};
use super::codes::{Codes, Place};
use super::error::{RestoreError, RestoreProblem};
use super::grid::Grid;
use super::parameters::{Parameters, Then, Values};
use super::parts::Parts;
use crate::StoredType::{BF16, F16, F32, I32, U32};

/// Widths that are read.
const BITS: &str = "2, 3, 4 or 8";

/// Layouts that are read: they differ in what a zero point is.
const FORMATS: &str = "gptq or gptq_v2";

/// Restores every matrix.
pub(super) fn restore<P: Parts>(checkpoint: &mut Checkpoint<'_, P>) -> Result<(), P::Error> {
    let found = checkpoint.ending(".qweight");
    let Some(&(first, _)) = found.first() else { return Ok(()) };
    let first = checkpoint.tensor(first).name;
    // Before version 2 the stored zero point was one less.
    let format = checkpoint.text("checkpoint_format").or_else(|| checkpoint.text("quant_method")).unwrap_or("gptq");
    let less = match format {
        "gptq" | "gptqmodel" => 1,
        "gptq_v2" => 0,
        other => return Err(setting(first, "checkpoint_format", other, FORMATS)),
    };
    if checkpoint.is("is_marlin_format") {
        return Err(setting(first, "checkpoint_format", "marlin", FORMATS));
    }
    for (index, module) in found {
        matrix(checkpoint, index, module, less)?;
    }
    Ok(())
}

fn matrix<P: Parts>(
    checkpoint: &mut Checkpoint<'_, P>,
    index: usize,
    module: &str,
    less: usize,
) -> Result<(), P::Error> {
    let name = checkpoint.tensor(index).name;
    checkpoint.expect(name, index, &[I32, U32], "I32")?;
    let [words, outputs] = checkpoint.matrix(index)?;
    let part = |ending: &str| format!("{module}.{ending}");
    let scales = checkpoint.need(name, &part("scales"))?;
    let zeros = checkpoint.need(name, &part("qzeros"))?;
    let order = checkpoint.find(&part("g_idx"));
    let bits = bits(checkpoint, name, words, order)?;
    let inputs = words.saturating_mul(32) / bits;
    checkpoint.expect(name, scales, &[F16, BF16, F32], "floats")?;
    checkpoint.expect(name, zeros, &[I32, U32], "I32")?;
    let [groups, of_outputs] = checkpoint.matrix(scales)?;
    if of_outputs != outputs || !words.saturating_mul(32).is_multiple_of(bits) {
        return Err(checkpoint.shape(name, scales, format!("[groups, {outputs}]")));
    }
    let zero_words = outputs.saturating_mul(bits).div_ceil(32);
    if checkpoint.matrix(zeros)? != [groups, zero_words] {
        return Err(checkpoint.shape(name, zeros, format!("[{groups}, {zero_words}]")));
    }
    let order = match order {
        Some(order) => {
            let of_columns = checkpoint.groups(name, order, inputs, groups)?;
            checkpoint.take(order);
            Some(of_columns)
        }
        None => None,
    };
    let group = inputs.div_ceil(groups);
    if order.is_none() && (group == 0 || inputs.div_ceil(group) != groups) {
        return Err(checkpoint.shape(name, scales, format!("groups of {inputs} inputs")));
    }
    let parameters = |values| Parameters { values, columns: groups, block: [1, group], then: Then::Nothing };
    let count = 1_usize << bits;
    let levels = (0..count).map(|code| ((code + less) & (count - 1)) as f32).collect();
    let zero_codes =
        Codes { part: zeros, bits, place: Place::ColumnsAcross { words: zero_words, is_interleaved: false } };
    let grid = Grid {
        zeros: Some(parameters(Values::Codes { codes: zero_codes, levels })),
        groups: order,
        ..Grid::scaled(
            inputs,
            Codes { part: index, bits, place: Place::Down { words: outputs } },
            (0..count).map(|code| code as f32).collect(),
            Some(parameters(checkpoint.turned(name, scales, outputs)?)),
        )
    };
    let shape = vec![outputs as i64, inputs as i64];
    checkpoint.make(part("weight"), shape, index, grid);
    Ok(())
}

/// The width of a matrix: that of the configuration, or what follows from a group for each input.
fn bits<P: Parts>(
    checkpoint: &Checkpoint<'_, P>,
    name: &str,
    words: u64,
    order: Option<usize>,
) -> Result<u64, P::Error> {
    let Some(configured) = checkpoint.config("bits").or_else(|| checkpoint.config("w_bit")) else {
        return Err(RestoreError::of(name, RestoreProblem::NoSetting { key: "bits", allowed: BITS }));
    };
    let bits = configured.as_u64().filter(|bits| [2, 3, 4, 8].contains(bits));
    let bits = bits.ok_or_else(|| setting(name, "bits", configured, BITS))?;
    // Some layers may have another width.
    let own = order.map(|order| checkpoint.elements(order)).filter(|inputs| *inputs > 0);
    let own = own.filter(|_| checkpoint.config("dynamic").is_some()).map(|inputs| words.saturating_mul(32) / inputs);
    Ok(own.filter(|own| [2, 3, 4, 8].contains(own)).unwrap_or(bits))
}
