//! Quantization of a slice: cut into blocks, each quantized on its own, their error sums added in order.

use std::error::Error;
use std::sync::OnceLock;

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

use crate::batch::quantize_block;
use crate::compare::PairSums;
use crate::pieces::{BLOCK, slices};
use crate::simd::{Element, for_dtype};
use crate::types::{Bits, ParameterDtype, Scheme, Settings, group_count};
use crate::weights::{Floats, Weights};
use crate::{Encoding, Grouping, Isa, KernelError, Result};

/// Weights must be smaller in magnitude than 2¹²⁵, so that neither a group's range nor any level of its grid, rounded up,
/// leaves the range of f32.
pub(crate) const MAGNITUDE_LIMIT: f32 = f32::from_bits((125 + 127) << 23);

/// A quantized slice.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// The settings it was made with.
    pub settings: Settings,
    /// Weights in all.
    pub length: usize,
    /// Weights of a row.
    pub row_length: usize,
    /// How scales and minima are stored.
    pub parameter_dtype: ParameterDtype,
    /// One code a weight, packed without gaps, first code in the lowest bits.
    pub codes: Vec<u8>,
    /// One scale a group, little-endian.
    pub scales: Vec<u8>,
    /// One minimum a group, little-endian; empty unless the scheme is affine.
    pub minima: Vec<u8>,
    /// One zero point a group, a byte each; empty unless the scheme is asymmetric.
    pub zero_points: Vec<u8>,
    /// What was lost: `a` the weights, `b` the restored ones.
    pub errors: PairSums,
}

/// A quantized slice whose buffers live elsewhere.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "they are the fields of `Quantized`")]
pub struct QuantizedRef<'a> {
    pub bits: Bits,
    pub group_size: crate::GroupSize,
    pub scheme: Scheme,
    pub length: usize,
    pub row_length: usize,
    pub parameter_dtype: ParameterDtype,
    pub codes: &'a [u8],
    pub scales: &'a [u8],
    pub minima: &'a [u8],
    pub zero_points: &'a [u8],
}

impl Quantized {
    /// How the weights are stored.
    pub fn encoding(&self) -> Encoding {
        let Settings { bits, group_size, scheme, method: _ } = self.settings;
        Encoding::Grouped(bits, Grouping { group_size, scheme, parameter_dtype: self.parameter_dtype })
    }

    /// The same, borrowed.
    pub fn as_ref(&self) -> QuantizedRef<'_> {
        QuantizedRef {
            bits: self.settings.bits,
            group_size: self.settings.group_size,
            scheme: self.settings.scheme,
            length: self.length,
            row_length: self.row_length,
            parameter_dtype: self.parameter_dtype,
            codes: &self.codes,
            scales: &self.scales,
            minima: &self.minima,
            zero_points: &self.zero_points,
        }
    }
}

/// Quantizes a slice on this thread.
///
/// `importance` has one finite, non-negative number for each element of a row (each input channel); the `mse` search then
/// minimises the squared errors so weighted. Scales and minima are f16, unless rounding to it would move a level of some
/// group's grid by more than a quarter of a step: then all of the slice's parameters are f32. That is decided by the
/// groups' ranges alone, whatever the method.
///
/// # Errors
/// [`KernelError::NotFinite`], [`KernelError::Range`], and importance of the wrong length or sign.
pub fn quantize(isa: Isa, weights: Weights<'_>, settings: Settings, importance: Option<&[f32]>) -> Result<Quantized> {
    quantize_while(isa, weights, settings, importance, || true)
}

/// [`quantize`] for as long as the result is wanted, which is asked before each block of about 64 Ki weights.
///
/// # Errors
/// As [`quantize`], and [`KernelError::Cancelled`] once it is not wanted.
pub fn quantize_while(
    isa: Isa,
    weights: Weights<'_>,
    settings: Settings,
    importance: Option<&[f32]>,
    wanted: impl Fn() -> bool,
) -> Result<Quantized> {
    with_stored_dtype(weights, settings, importance, |slice, blocks, stored| {
        let quantized = |block| if wanted() { quantize_block(isa, slice, block, stored) } else { Err(Stop::Unwanted) };
        blocks.into_iter().map(quantized).collect()
    })
}

/// [`quantize`] on all threads of the current rayon pool, or on this one where the system refuses threads; the same bytes.
///
/// # Errors
/// As [`quantize`].
pub fn par_quantize(
    isa: Isa,
    weights: Weights<'_>,
    settings: Settings,
    importance: Option<&[f32]>,
) -> Result<Quantized> {
    if !has_pool() {
        return quantize(isa, weights, settings, importance);
    }
    with_stored_dtype(weights, settings, importance, |slice, blocks, stored| {
        blocks.into_par_iter().map(|block| quantize_block(isa, slice, block, stored)).collect()
    })
}

/// Whether there is a pool: that of this thread, or the global one, which rayon starts when it is needed, and panics where it cannot.
fn has_pool() -> bool {
    static IS_GLOBAL: OnceLock<bool> = OnceLock::new();
    let start = || match ThreadPoolBuilder::new().build_global() {
        Ok(()) => true,
        // Without a source, the error says that there is one already.
        Err(error) => error.source().is_none(),
    };
    rayon::current_thread_index().is_some() || *IS_GLOBAL.get_or_init(start)
}

/// Runs the blocks with f16 parameters, and again with f32 if f16 does not hold them.
fn with_stored_dtype(
    weights: Weights<'_>,
    settings: Settings,
    importance: Option<&[f32]>,
    run: impl Fn(&Slice<'_>, Vec<Block<'_>>, ParameterDtype) -> std::result::Result<Vec<PairSums>, Stop>,
) -> Result<Quantized> {
    check_importance(&weights, importance)?;
    let slice = Slice { weights, settings, importance };
    for stored in [ParameterDtype::F16, ParameterDtype::F32] {
        let mut out = slice.empty(stored);
        match run(&slice, slice.blocks(&mut out), stored) {
            Ok(errors) => {
                out.errors = errors.iter().fold(PairSums::default(), |sum, part| sum + *part);
                if slice.unaligned() {
                    out.codes = pack_bytes(&out.codes, settings.bits);
                }
                return Ok(out);
            }
            Err(Stop::F16) => {}
            Err(Stop::Invalid) => return Err(slice.first_invalid()),
            Err(Stop::Unwanted) => return Err(KernelError::Cancelled),
        }
    }
    unreachable!("f32 parameters hold every finite range")
}

pub(crate) fn check_importance(weights: &Weights<'_>, importance: Option<&[f32]>) -> Result<()> {
    let Some(importance) = importance else { return Ok(()) };
    if importance.len() != weights.row_length() && !weights.is_empty() {
        return Err(KernelError::Mismatch {
            what: "importance, one for each weight of a row",
            found: importance.len(),
            expected: weights.row_length(),
        });
    }
    match importance.iter().position(|&i| !(i.is_finite() && i >= 0.0)) {
        Some(index) => Err(KernelError::Importance { index, value: importance[index] }),
        None => Ok(()),
    }
}

/// Why a block was given up.
pub(crate) enum Stop {
    /// Some group's parameters need f32.
    F16,
    /// Some weight is not finite, or some group's range is not.
    Invalid,
    /// Nobody wants the result.
    Unwanted,
}

/// What is to be quantized.
pub(crate) struct Slice<'a> {
    pub weights: Weights<'a>,
    pub settings: Settings,
    pub importance: Option<&'a [f32]>,
}

/// Some rows of the slice, or a piece of one, and the buffers their results go to.
pub(crate) struct Block<'a> {
    pub weights: Weights<'a>,
    /// Where in its row the first weight is.
    pub channel: usize,
    pub codes: &'a mut [u8],
    pub scales: &'a mut [u8],
    pub minima: &'a mut [u8],
    pub zero_points: &'a mut [u8],
}

impl<'a> Slice<'a> {
    /// True if rows do not end on a byte of packed codes; these are then packed in a second step.
    pub(crate) fn unaligned(&self) -> bool {
        !self.settings.bits.ends_on_byte(self.weights.row_length())
    }

    /// The width that codes of a block are written with.
    pub(crate) fn code_width(&self) -> Bits {
        if self.unaligned() { Bits::Eight } else { self.settings.bits }
    }

    fn empty(&self, stored: ParameterDtype) -> Quantized {
        let (length, row_length) = (self.weights.len(), self.weights.row_length());
        let groups = group_count(length, row_length, self.settings.group_size);
        let sized = |wanted: bool, size: usize| vec![0; if wanted { groups * size } else { 0 }];
        Quantized {
            settings: self.settings,
            length,
            row_length,
            parameter_dtype: stored,
            codes: vec![0; self.code_width().packed_len(length)],
            scales: sized(true, stored.size()),
            minima: sized(self.settings.scheme.has_minima(), stored.size()),
            zero_points: sized(self.settings.scheme.has_zero_points(), 1),
            errors: PairSums::default(),
        }
    }

    /// Where blocks are, as [`slices`] says.
    fn places(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        slices(self.weights.len(), self.weights.row_length(), BLOCK)
    }

    /// The slice in blocks.
    fn blocks<'b>(&self, out: &'b mut Quantized) -> Vec<Block<'b>>
    where
        'a: 'b,
    {
        let (row_length, width) = (out.row_length, self.code_width());
        let size = out.parameter_dtype.size();
        let (mut codes, mut scales) = (out.codes.as_mut_slice(), out.scales.as_mut_slice());
        let (mut minima, mut zero_points) = (out.minima.as_mut_slice(), out.zero_points.as_mut_slice());
        let mut blocks = Vec::new();
        for (start, length, channel) in self.places() {
            let groups = group_count(length, row_length.min(length), self.settings.group_size);
            blocks.push(Block {
                weights: self.weights.rows(start, length),
                channel,
                codes: take(&mut codes, width.packed_len(length)),
                scales: take(&mut scales, groups * size),
                minima: take(&mut minima, groups * size),
                zero_points: take(&mut zero_points, groups),
            });
        }
        blocks
    }

    /// The error for the first weight, or else group, that cannot be quantized.
    fn first_invalid(&self) -> KernelError {
        let mut scratch = Vec::new();
        let mut range = None;
        for (start, length, _) in self.places() {
            let floats = self.weights.rows(start, length).floats(Isa::scalar(), &mut scratch);
            if let Some(error) = first_not_finite(floats) {
                return error.within(start);
            }
            range = range.or_else(|| Some(first_beyond_range(floats, self.settings)?.within(start)));
        }
        range.expect("a block was given up for a weight or range that is not finite")
    }
}

/// The error for the first weight that f32 holds no finite value for.
pub(crate) fn first_not_finite(floats: Floats<'_>) -> Option<KernelError> {
    for_dtype!(floats.dtype, E => {
        let mut elements = floats.bytes.chunks_exact(E::SIZE);
        let index = elements.clone().position(|element| !E::one(element).is_finite())?;
        Some(KernelError::NotFinite { index, value: E::wide(elements.nth(index)?) })
    })
}

fn first_beyond_range(floats: Floats<'_>, settings: Settings) -> Option<KernelError> {
    let (row, group_size) = (floats.row_length, settings.group_size.get());
    for_dtype!(floats.dtype, E => {
        let element = |i: usize| E::one(&floats.bytes[i * E::SIZE..]);
        for start in (0..floats.len()).step_by(row) {
            for index in (start..start + row).step_by(group_size) {
                let end = (index + group_size).min(start + row);
                let min = (index..end).map(element).fold(f32::INFINITY, f32::min);
                let max = (index..end).map(element).fold(f32::NEG_INFINITY, f32::max);
                if max.abs().max(min.abs()) >= MAGNITUDE_LIMIT {
                    return Some(KernelError::Range { index, min, max });
                }
            }
        }
    });
    None
}

/// Cuts off the first `length` bytes, or what there is: buffers a scheme does not need are empty.
fn take<'a>(rest: &mut &'a mut [u8], length: usize) -> &'a mut [u8] {
    let length = length.min(rest.len());
    rest.split_off_mut(..length).unwrap_or_default()
}

/// Codes of a byte each, packed.
pub(crate) fn pack_bytes(codes: &[u8], bits: Bits) -> Vec<u8> {
    let mut packed = vec![0; bits.packed_len(codes.len())];
    for (i, &code) in codes.iter().enumerate() {
        bits.put(&mut packed, i, code);
    }
    packed
}
