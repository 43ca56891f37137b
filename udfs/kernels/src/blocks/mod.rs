//! ggml's blocks: consecutive weights of a row and their parameters, stored together.
//!
//! `decode` is what blocks stand for; `reference` fills them as ggml does, byte for byte.

mod decode;
mod fill;
mod layout;
mod reference;
mod reference_k;

use crate::compare::PairSums;
use crate::encoding::BlockType;
use crate::quantize::{first_not_finite, places};
use crate::types::named;
use crate::weights::Weights;
use crate::{Encoding, Isa, KernelError, Result, pair_sums};

/// Weights of the longest block.
pub(crate) const MOST: usize = 256;

/// An importance that is the same for every weight of a block.
static ONES: [f32; MOST] = [1.0; MOST];

/// Twice the values of a float of two bits of exponent and one of mantissa, by code: the fourth bit is the sign.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The levels of `iq4_nl` and `iq4_xs`.
const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The unsigned float of four bits of exponent and three of mantissa that scales of `nvfp4` are; 0 for the code of NaN.
fn ue4m3(byte: u8) -> f32 {
    match byte & 0x7f {
        0x7f => 0.0,
        magnitude => crate::encoding::e4m3(magnitude),
    }
}

/// Scale and minimum `j` of the eight, of six bits each, in the twelve bytes of `q4_k` and `q5_k`.
fn k_scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// The sixteen signed scales of `q3_k`, stored with 32 added.
fn q3_k_scales(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

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

/// [`quantize_blocks`] for as long as the result is wanted, which is asked before each piece of about 64 Ki weights.
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
    let (length, row_length) = (weights.len(), weights.row_length());
    let encoding = Encoding::Block(block_type);
    let mut bytes = vec![0; encoding.stored_bytes(length, row_length)?];
    let mut errors = PairSums::default();
    let mut filling = Filling { isa, block_type, fill, importance, row_mean: 0.0 };
    let mut rest = bytes.as_mut_slice();
    for (start, length, channel) in places(length, row_length) {
        if !wanted() {
            return Err(KernelError::Cancelled);
        }
        let out;
        (out, rest) = rest.split_at_mut(length / block_type.length() * block_type.size());
        if length < row_length && channel == 0 {
            filling.begin_row(weights.rows(start, row_length), &wanted)?;
        }
        let piece = weights.rows(start, length);
        errors = errors + filling.piece(piece, row_length, channel, out).map_err(|error| error.within(start))?;
    }
    Ok(Blocks { block_type, fill, length, row_length, bytes, errors })
}

/// How blocks are filled, piece by piece.
struct Filling<'a> {
    isa: Isa,
    block_type: BlockType,
    fill: Fill,
    importance: Option<&'a [f32]>,
    /// The mean square of a row that is longer than a piece, as far as the fill asks for it.
    row_mean: f32,
}

impl Filling<'_> {
    /// Looks at the whole of a row whose pieces come next.
    fn begin_row(&mut self, row: Weights<'_>, wanted: impl Fn() -> bool) -> Result<()> {
        match (self.fill, self.importance) {
            (Fill::Mse, _) | (Fill::Reference, None) => return Ok(()),
            (Fill::Reference, Some(_)) => {}
        }
        let mut sum = 0.0;
        for (start, length, _) in places(row.len(), row.len()) {
            if !wanted() {
                return Err(KernelError::Cancelled);
            }
            sum = reference::add_squares(sum, &row.rows(start, length).to_f32(self.isa));
        }
        self.row_mean = sum / row.len() as f32;
        Ok(())
    }

    /// Fills the blocks of whole rows, or of a piece of one from weight `channel` on. Returns what was lost.
    fn piece(&self, weights: Weights<'_>, row_length: usize, channel: usize, out: &mut [u8]) -> Result<PairSums> {
        let block_type = self.block_type;
        let values = weights.to_f32(self.isa);
        if values.iter().any(|w| !w.is_finite()) {
            let error = first_not_finite(weights.floats(&mut Vec::new()));
            return Err(error.expect("a weight is not finite as f32"));
        }
        match self.fill {
            Fill::Reference => {
                let length = row_length.min(values.len());
                let row_bytes = length / block_type.length() * block_type.size();
                let importance = self.importance.map(|importance| &importance[channel..channel + length]);
                for (row, out) in values.chunks_exact(length).zip(out.chunks_exact_mut(row_bytes)) {
                    let mean = || reference::add_squares(0.0, row) / length as f32;
                    let importance = importance
                        .map(|importance| (importance, if length < row_length { self.row_mean } else { mean() }));
                    reference::row(block_type, row, importance, out);
                }
            }
            Fill::Mse => {
                let form = fill::Form::of(block_type).ok_or_else(|| KernelError::Argument {
                    name: "method",
                    value: format!("'{}' for {block_type}", self.fill),
                    allowed: "'reference'",
                })?;
                let importance = self.importance;
                self.isa.run(fill::Piece { form, block_type, x: &values, importance, channel, out: &mut *out });
            }
        }
        let errors = pair_sums(self.isa, weights, Weights::blocks(block_type, out, weights.row_length())?)?;
        if errors.sum_ee.is_finite() { Ok(errors) } else { Err(beyond_half(block_type, &values, out)) }
    }
}

/// The error for the first block whose scales f16 does not hold.
fn beyond_half(block_type: BlockType, values: &[f32], bytes: &[u8]) -> KernelError {
    let mut blocks = values.chunks(block_type.length());
    let mut index = 0;
    let mut found = None;
    decode_all(block_type, bytes, |restored| {
        let block = blocks.next().unwrap_or_default();
        if found.is_none() && restored.iter().any(|w| !w.is_finite()) {
            let min = block.iter().copied().fold(f32::INFINITY, f32::min);
            let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            found = Some((index, min, max));
        }
        index += block.len();
    });
    let (index, min, max) = found.unwrap_or((0, f32::NEG_INFINITY, f32::INFINITY));
    KernelError::BlockRange { block_type, index, min, max }
}

/// Calls `each` with the weights of every block, in order, where `bytes` are whole blocks.
pub(crate) fn decode_all(block_type: BlockType, bytes: &[u8], mut each: impl FnMut(&[f32])) {
    let mut weights = [0.0; MOST];
    for block in bytes.chunks_exact(block_type.size()) {
        decode::decode(block_type, block, &mut weights);
        each(&weights[..block_type.length()]);
    }
}
