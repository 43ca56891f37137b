//! ggml's blocks: consecutive weights of a row and their parameters, stored together.
//!
//! `reference` fills blocks as ggml does, byte for byte; `fill` fills them with a search. What blocks stand for is in
//! `block_values`.

mod affine;
mod codebook;
mod fill;
mod lanes;
mod layout;
mod measure;
mod reference;
mod reference_k;
mod reference_parts;
mod scales;
mod simple;
mod steps;
mod write;

pub(crate) use codebook::{E2m1, Iq4};
pub(crate) use scales::{Even, Levels};

use crate::block_values::{E2M1, IQ4_VALUES, MOST, decode, k_scale_min, q3_k_scales, restore, ue4m3};
use crate::compare::PairSums;
use crate::encoding::BlockType;
use crate::pieces::slices;
use crate::quantize::first_not_finite;
use crate::types::named;
use crate::weights::Weights;
use crate::{Dtype, Encoding, Isa, KernelError, Result, pair_sums};

/// Weights of a slice that is filled and measured while it is in the cache; a multiple of sixteen blocks.
const SLICE: usize = 1 << 13;

/// An importance that is the same for every weight of a block.
static ONES: [f32; MOST] = [1.0; MOST];

named! {
    /// How the blocks of ggml's types are filled.
    Fill, "method",
    /// The least squared error that a search finds.
    Mse = "mse",
    /// The bytes that ggml's own quantizers make.
    Reference = "reference",
}

/// Weights in ggml's blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocks {
    /// What the blocks are.
    pub block_type: BlockType,
    /// How they were filled.
    pub fill: Fill,
    /// Weights in all.
    pub length: usize,
    /// Weights of a row.
    pub row_length: usize,
    /// The blocks, row by row, as a GGUF file has them.
    pub bytes: Vec<u8>,
    /// What was lost: `a` the weights, `b` the restored ones.
    pub errors: PairSums,
}

/// Quantizes rows of weights to blocks. F64 weights are rounded to f32 first.
///
/// `importance` has one finite, non-negative number for each weight of a row; squared errors are weighted by it, in ggml's
/// own way where the fill is [`Fill::Reference`]. Blocks whose importance is zero throughout are filled as if it were one.
///
/// # Errors
/// If rows are no whole number of blocks, a weight is not finite or too large, the importance does not fit, or ggml fills no
/// blocks of this type.
pub fn quantize_blocks(
    isa: Isa,
    weights: Weights<'_>,
    block_type: BlockType,
    fill: Fill,
    importance: Option<&[f32]>,
) -> Result<Blocks> {
    quantize_blocks_while(isa, weights, block_type, fill, importance, || true)
}

/// [`quantize_blocks`] for as long as the result is wanted, which is asked before each slice of about 8 Ki weights.
///
/// # Errors
/// As [`quantize_blocks`], and [`KernelError::Cancelled`] once it is not wanted.
pub fn quantize_blocks_while(
    isa: Isa,
    weights: Weights<'_>,
    block_type: BlockType,
    fill: Fill,
    importance: Option<&[f32]>,
    wanted: impl Fn() -> bool,
) -> Result<Blocks> {
    crate::quantize::check_importance(&weights, importance)?;
    if fill == Fill::Mse && !fill::searches(block_type) {
        return Err(KernelError::Argument {
            name: "method",
            value: format!("'{fill}' for {block_type}"),
            allowed: "'reference'",
        });
    }
    let row_length = weights.row_length();
    let mut bytes = vec![0; Encoding::Block(block_type).stored_bytes(weights.len(), row_length)?];
    let mut filler = Filler { isa, block_type, fill, importance, row_length, row_mean: 0.0, values: Vec::new() };
    let mut errors = PairSums::default();
    let mut rest = bytes.as_mut_slice();
    for (start, length, channel) in slices(weights.len(), row_length, SLICE) {
        if !wanted() {
            return Err(KernelError::Cancelled);
        }
        let out = rest.split_off_mut(..length / block_type.length() * block_type.size()).unwrap_or_default();
        if channel == 0 && row_length > length && fill == Fill::Reference && importance.is_some() {
            filler.begin_row(weights.rows(start, row_length), &wanted)?;
        }
        errors =
            errors + filler.slice(weights.rows(start, length), channel, out).map_err(|error| error.within(start))?;
    }
    Ok(Blocks { block_type, fill, length: weights.len(), row_length, bytes, errors })
}

/// Fills the blocks of one slice after another.
struct Filler<'a> {
    isa: Isa,
    block_type: BlockType,
    fill: Fill,
    importance: Option<&'a [f32]>,
    /// Weights of a whole row.
    row_length: usize,
    /// The mean square of the row that the slice is a piece of, where it is one.
    row_mean: f32,
    /// The slice's weights.
    values: Vec<f32>,
}

impl Filler<'_> {
    /// Takes the mean square of a row whose pieces come next, in slices, so that no copy of the row is made.
    fn begin_row(&mut self, row: Weights<'_>, wanted: impl Fn() -> bool) -> Result<()> {
        let mut sum = 0.0;
        for (start, length, _) in slices(row.len(), row.len(), SLICE) {
            if !wanted() {
                return Err(KernelError::Cancelled);
            }
            row.rows(start, length).to_f32_in(self.isa, &mut self.values);
            sum = reference::add_squares(sum, &self.values);
        }
        self.row_mean = sum / row.len() as f32;
        Ok(())
    }

    /// Fills the blocks of `weights`, whole rows or a piece of one from weight `channel` on.
    fn slice(&mut self, weights: Weights<'_>, channel: usize, out: &mut [u8]) -> Result<PairSums> {
        let Self { isa, block_type, fill, importance, row_length, .. } = *self;
        let values = match weights.as_f32() {
            Some(values) => values,
            None => {
                weights.to_f32_in(isa, &mut self.values);
                &self.values
            }
        };
        let greatest = isa.run(measure::Greatest(values));
        if greatest.is_nan() {
            // As they were before they were rounded.
            let not_finite = first_not_finite(weights.floats(isa, &mut Vec::new()));
            return Err(not_finite.unwrap_or(KernelError::NotFinite { index: 0, value: f64::NAN }));
        }
        let limit = block_type.greatest();
        if greatest > limit {
            let block = values.chunks_exact(block_type.length()).position(|x| x.iter().any(|w| w.abs() > limit));
            return Err(beyond_half(block_type, values, block.unwrap_or_default()));
        }
        match fill {
            Fill::Reference if simple::fills(block_type, importance.is_some()) => {
                isa.run(simple::Simple { block_type, x: values, out })
            }
            Fill::Reference => {
                let row_bytes = row_length / block_type.length() * block_type.size();
                for (row, out) in values.chunks(row_length).zip(out.chunks_mut(row_bytes)) {
                    let row_mean = if row.len() < row_length { self.row_mean } else { reference::mean_square(row) };
                    let importance = importance.map(|importance| &importance[channel..][..row.len()]);
                    reference::row(block_type, row, importance, row_mean, out);
                }
            }
            Fill::Mse => isa.run(fill::Piece { block_type, x: values, importance, channel, out }),
        }
        let errors = match weights.encoding() {
            // Errors of binary64 are those of the weights before they were rounded.
            Encoding::Float(Dtype::F64) => {
                pair_sums(isa, weights, Weights::blocks(block_type, out, weights.row_length())?)?
            }
            Encoding::Float(_) | Encoding::Fp8(_) | Encoding::Grouped(..) | Encoding::Block(_) => {
                isa.run(measure::Measure { block_type, x: values, bytes: out })
            }
        };
        if errors.sum_ee.is_finite() {
            Ok(errors)
        } else {
            Err(beyond_half(block_type, values, first_infinite(block_type, out)))
        }
    }
}

/// Writes the codes of whole blocks of a type that is searched for, and leaves their parameters. `codes` has one a byte.
pub(crate) fn put_codes(isa: Isa, block_type: BlockType, codes: &[u8], out: &mut [u8]) {
    isa.run(layout::PutCodes { block_type, codes, out });
}

/// The error for a block whose scales f16 does not hold.
fn beyond_half(block_type: BlockType, values: &[f32], block: usize) -> KernelError {
    let index = block * block_type.length();
    let x = &values[index..][..block_type.length()];
    let min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    KernelError::BlockRange { block_type: block_type.name(), index, min, max }
}

/// The first block that does not stand for numbers.
fn first_infinite(block_type: BlockType, bytes: &[u8]) -> usize {
    let mut restored = [0.0; MOST];
    let infinite = |block| {
        decode::decode(block_type, block, &mut restored);
        restored[..block_type.length()].iter().any(|w| !w.is_finite())
    };
    bytes.chunks_exact(block_type.size()).position(infinite).unwrap_or_default()
}
