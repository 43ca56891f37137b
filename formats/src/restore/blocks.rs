//! Weights in ggml's blocks or as floats of a GGUF file, rows in the order of the original model.

use std::ops::Range;

use arrow_quant_kernels::{Encoding, Weights, to_f32};

use super::numbers::isa;
use super::parts::Parts;

/// A tensor, or a part of one that holds several.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    /// The stored tensor.
    pub part: usize,
    /// How its weights are stored: floats, or blocks.
    pub encoding: Encoding,
    /// Where its bytes begin in the stored tensor.
    pub start: u64,
    /// Weights of a row, whole blocks.
    pub row: u64,
    /// Rows of a head, if the rows of each head are in another order: a row of the first half before the one as far into the
    /// second half.
    pub head: Option<u64>,
    /// Whether 1 was added to the weights.
    pub adds_one: bool,
    /// What weights are multiplied by, unless that is 1.
    pub factor: Option<f32>,
}

impl Blocks {
    /// Bytes of whole blocks of weights.
    fn bytes(&self, weights: u64) -> u64 {
        weights / self.encoding.block_length() as u64 * self.encoding.block_bytes() as u64
    }

    pub(super) fn bytes_of(&self, elements: Range<u64>) -> Option<(usize, Range<u64>)> {
        let unit = self.head.map_or(self.row, |head| head * self.row);
        let whole = elements.start.div_ceil(unit) * unit..elements.end / unit * unit;
        let bytes = self.start + self.bytes(whole.start)..self.start + self.bytes(whole.end.max(whole.start));
        (!bytes.is_empty()).then_some((self.part, bytes))
    }

    pub(super) fn restore<P: Parts>(&self, parts: &P, elements: Range<u64>) -> Result<Vec<f32>, P::Error> {
        let block = self.encoding.block_length() as u64;
        let wide = elements.start / block * block..elements.end.next_multiple_of(block);
        let mut values = Vec::with_capacity((wide.end - wide.start) as usize);
        match self.head {
            None => self.append(parts, wide.clone(), &mut values)?,
            Some(head) => {
                for row in wide.start / self.row..wide.end.div_ceil(self.row) {
                    let (first, within) = (row / head * head, row % head);
                    let at = if within < head / 2 { 2 * within } else { 2 * (within - head / 2) + 1 };
                    // Of the first and the last row, a piece.
                    let start = wide.start.max(row * self.row) - row * self.row;
                    let end = wide.end.min((row + 1) * self.row) - row * self.row;
                    let moved = (first + at) * self.row;
                    self.append(parts, moved + start..moved + end, &mut values)?;
                }
            }
        }
        values.resize((wide.end - wide.start) as usize, 0.0);
        values.truncate((elements.end - wide.start) as usize);
        values.drain(..(elements.start - wide.start) as usize);
        if self.adds_one {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        if let Some(factor) = self.factor {
            values.iter_mut().for_each(|value| *value *= factor);
        }
        Ok(values)
    }

    /// Appends weights, whole blocks of them, in the order of the file.
    fn append<P: Parts>(&self, parts: &P, weights: Range<u64>, out: &mut Vec<f32>) -> Result<(), P::Error> {
        let bytes = self.start + self.bytes(weights.start)..self.start + self.bytes(weights.end);
        let read = parts.read(self.part, std::slice::from_ref(&bytes))?;
        let stored = read.first().map_or(&[][..], |bytes| bytes.as_ref());
        let count = (weights.end - weights.start) as usize;
        let weights = match self.encoding {
            Encoding::Float(dtype) => Weights::new(dtype, stored, count),
            Encoding::Block(block_type) => Weights::blocks(block_type, stored, count),
            Encoding::Fp8(fp8) => Weights::fp8(fp8, stored, count, None),
            // Not in GGUF files.
            Encoding::Grouped(..) => return Ok(()),
        };
        if let Ok(weights) = weights {
            out.extend(to_f32(isa(), weights));
        }
        Ok(())
    }
}
