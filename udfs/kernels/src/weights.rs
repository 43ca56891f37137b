//! Weights where they are stored. The kernels load floats; weights of other encodings are decoded for them.

use std::marker::PhantomData;

use crate::block_values::{Restored, restore_all};
use crate::encoding::{BlockType, Encoding, Fp8};
use crate::pieces::{BLOCK, slices};
use crate::simd::{Element, Kernel, LANES, Simd, for_dtype};
use crate::types::Dtype;
use crate::{Isa, KernelError, Result};

/// Weights as they are stored: elements or blocks of one encoding, little-endian and at any alignment, in rows of equal
/// length.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    stored: Stored<'a>,
    bytes: &'a [u8],
    row_length: usize,
}

/// The encodings that weights are read from. Grouped integers have several buffers, and are restored by
/// [`dequantize`](crate::dequantize).
#[derive(Debug, Clone, Copy)]
enum Stored<'a> {
    /// The kernels load these where they are.
    Floats(Dtype),
    /// The kernels load what these are decoded to.
    Coded(Coded<'a>),
}

#[derive(Debug, Clone, Copy)]
enum Coded<'a> {
    Fp8(Fp8, Option<Placed<'a>>),
    Blocks(BlockType),
}

/// The scales of FP8 weights: one for each block of `block_rows` by `block_columns` weights, row by row. A weight is its
/// element times the scale of its block. Blocks at the end of a row or column may be cut off; blocks that are larger than
/// the weights are the case of one scale for each row, or for all.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'a> {
    /// How a scale is stored.
    pub dtype: Dtype,
    /// The scales, little-endian.
    pub bytes: &'a [u8],
    /// Rows of a block.
    pub block_rows: usize,
    /// Columns of a block.
    pub block_columns: usize,
}

/// The scales of weights of which a part is looked at.
#[derive(Debug, Clone, Copy)]
struct Placed<'a> {
    scales: Scales<'a>,
    /// Columns of the whole, and where in it the part begins.
    columns: usize,
    start: usize,
}

impl<'a> Weights<'a> {
    /// `bytes` as rows of `row_length` floats. Groups never cross from one row into the next.
    ///
    /// # Errors
    /// If the bytes are no whole number of elements, or the elements no whole number of rows.
    pub fn new(dtype: Dtype, bytes: &'a [u8], row_length: usize) -> Result<Self> {
        Self::checked(Stored::Floats(dtype), bytes, row_length)
    }

    /// `bytes` as a single row of floats.
    ///
    /// # Errors
    /// If the bytes are no whole number of elements.
    pub fn one_row(dtype: Dtype, bytes: &'a [u8]) -> Result<Self> {
        Self::new(dtype, bytes, bytes.len() / dtype.size())
    }

    /// `bytes` as rows of ggml's blocks.
    ///
    /// # Errors
    /// If the bytes are no whole number of blocks, or the weights no whole number of rows, or these not of blocks.
    pub fn blocks(block_type: BlockType, bytes: &'a [u8], row_length: usize) -> Result<Self> {
        Self::checked(Stored::Coded(Coded::Blocks(block_type)), bytes, row_length)
    }

    /// `bytes` as rows of FP8 elements, to be multiplied by `scales` if there are any.
    ///
    /// # Errors
    /// If the elements are no whole number of rows, or the scales not as many as there are blocks.
    pub fn fp8(fp8: Fp8, bytes: &'a [u8], row_length: usize, scales: Option<Scales<'a>>) -> Result<Self> {
        let placed = scales.map(|scales| Placed { scales, columns: row_length, start: 0 });
        let weights = Self::checked(Stored::Coded(Coded::Fp8(fp8, placed)), bytes, row_length)?;
        if let Some(scales) = scales {
            scales.check(bytes.len(), row_length)?;
        }
        Ok(weights)
    }

    fn checked(stored: Stored<'a>, bytes: &'a [u8], row_length: usize) -> Result<Self> {
        let weights = Self { stored, bytes, row_length };
        let block = weights.encoding().block_bytes();
        if !bytes.len().is_multiple_of(block) {
            return Err(KernelError::Length { what: "bytes of weights", found: bytes.len(), multiple_of: block });
        }
        weights.encoding().check_rows(weights.len(), row_length)?;
        Ok(weights)
    }

    /// How they are stored.
    pub fn encoding(&self) -> Encoding {
        match self.stored {
            Stored::Floats(dtype) => Encoding::Float(dtype),
            Stored::Coded(Coded::Fp8(fp8, _)) => Encoding::Fp8(fp8),
            Stored::Coded(Coded::Blocks(block_type)) => Encoding::Block(block_type),
        }
    }

    /// The stored bytes, without the scales of FP8 elements.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Weights in all.
    pub fn len(&self) -> usize {
        let encoding = self.encoding();
        self.bytes.len() / encoding.block_bytes() * encoding.block_length()
    }

    /// True without any weight.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Weights of a row.
    pub fn row_length(&self) -> usize {
        self.row_length
    }

    /// The weights from `start` on, `length` of them: whole rows, or a piece of one row, which is then a row. FP8 elements
    /// keep the scales they have in the whole.
    ///
    /// # Errors
    /// If the part is neither, begins or ends inside a block, or beyond the weights.
    pub fn part(&self, start: usize, length: usize) -> Result<Self> {
        let end = start.checked_add(length).filter(|&end| end <= self.len()).ok_or(KernelError::Mismatch {
            what: "weights before the end of a part",
            found: self.len(),
            expected: start.saturating_add(length),
        })?;
        if length == 0 {
            return Ok(self.rows(0, 0));
        }
        let one_row = start / self.row_length == (end - 1) / self.row_length;
        let unit = if one_row { self.encoding().block_length() } else { self.row_length };
        for (what, found) in [("weights before a part", start), ("weights of a part", length)] {
            if !found.is_multiple_of(unit) {
                return Err(KernelError::Length { what, found, multiple_of: unit });
            }
        }
        Ok(self.rows(start, length))
    }

    /// As [`part`](Self::part), which it must be.
    pub(crate) fn rows(&self, start: usize, length: usize) -> Self {
        let encoding = self.encoding();
        let byte = |weight: usize| weight / encoding.block_length() * encoding.block_bytes();
        let stored = match self.stored {
            Stored::Floats(_) | Stored::Coded(Coded::Blocks(_)) => self.stored,
            Stored::Coded(Coded::Fp8(fp8, placed)) => {
                let placed = placed.map(|placed| Placed { start: placed.start + start, ..placed });
                Stored::Coded(Coded::Fp8(fp8, placed))
            }
        };
        let bytes = &self.bytes[byte(start)..byte(start + length)];
        Self { stored, bytes, row_length: self.row_length.min(length) }
    }

    /// The weights as the kernels load them: where they are, or else decoded into `scratch`.
    pub(crate) fn floats<'s>(&self, isa: Isa, scratch: &'s mut Vec<[u8; 4]>) -> Floats<'s>
    where
        'a: 's,
    {
        match self.stored {
            Stored::Floats(dtype) => Floats { dtype, bytes: self.bytes, row_length: self.row_length },
            Stored::Coded(coded) => {
                scratch.resize(self.len(), [0; 4]);
                coded.decode(isa, self.bytes, scratch);
                Floats { dtype: Dtype::F32, bytes: scratch.as_flattened(), row_length: self.row_length }
            }
        }
    }

    /// The weights where they are, if they are F32 that can be read there.
    pub(crate) fn as_f32(&self) -> Option<&'a [f32]> {
        match self.stored {
            Stored::Floats(Dtype::F32) if cfg!(target_endian = "little") => {
                // SAFETY: any four bytes are an f32, and `align_to` takes those that lie where an f32 may.
                let (before, values, after) = unsafe { self.bytes.align_to::<f32>() };
                (before.is_empty() && after.is_empty()).then_some(values)
            }
            Stored::Floats(_) | Stored::Coded(_) => None,
        }
    }

    /// The weights as f32, F64 rounded.
    pub(crate) fn to_f32(self, isa: Isa) -> Vec<f32> {
        let mut out = Vec::new();
        self.to_f32_in(isa, &mut out);
        out
    }

    /// The same, in place of what `out` has.
    pub(crate) fn to_f32_in(self, isa: Isa, out: &mut Vec<f32>) {
        out.resize(self.len(), 0.0);
        self.write_f32(isa, out);
    }

    /// The same, into as many.
    pub(crate) fn write_f32(self, isa: Isa, out: &mut [f32]) {
        match self.stored {
            Stored::Floats(dtype) => for_dtype!(dtype, E => {
                isa.run(Widen::<E> { bytes: self.bytes, out, dtype: PhantomData })
            }),
            Stored::Coded(coded) => coded.decode(isa, self.bytes, out),
        }
    }

    /// As [`to_f32`](Self::to_f32), for as long as `wanted` says that the result is.
    pub(crate) fn to_f32_while(self, isa: Isa, wanted: impl Fn() -> bool) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.len()];
        let mut rest = out.as_mut_slice();
        for (start, length, _) in slices(self.len(), self.row_length, BLOCK) {
            if !wanted() {
                return Err(KernelError::Cancelled);
            }
            let out = rest.split_off_mut(..length).unwrap_or_default();
            self.rows(start, length).write_f32(isa, out);
        }
        Ok(out)
    }
}

struct Widen<'a, E> {
    bytes: &'a [u8],
    out: &'a mut [f32],
    dtype: PhantomData<E>,
}

impl<E: Element> Kernel for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let vectors = self.bytes.chunks_exact(LANES * E::SIZE);
        let tail = vectors.remainder();
        let mut outs = self.out.chunks_exact_mut(LANES);
        for (vector, out) in vectors.zip(&mut outs) {
            out.copy_from_slice(&s.to_array(E::load(s, vector)));
        }
        for (element, out) in tail.chunks_exact(E::SIZE).zip(outs.into_remainder()) {
            *out = E::one(element);
        }
    }
}

impl Coded<'_> {
    fn decode<T: Restored>(&self, isa: Isa, bytes: &[u8], out: &mut [T]) {
        match *self {
            Self::Fp8(fp8, placed) => {
                let values = fp8.values();
                let mut done = 0;
                while done < out.len() {
                    let (scale, run) = placed.map_or((1.0, out.len()), |placed| placed.run(done));
                    let end = out.len().min(done.saturating_add(run));
                    for (out, &byte) in out[done..end].iter_mut().zip(&bytes[done..end]) {
                        *out = T::of(values[usize::from(byte)] * scale);
                    }
                    done = end;
                }
            }
            Self::Blocks(block_type) => restore_all(isa, block_type, bytes, out),
        }
    }
}

impl Scales<'_> {
    fn check(&self, length: usize, row_length: usize) -> Result<()> {
        for (name, size) in [("a scale's rows", self.block_rows), ("a scale's columns", self.block_columns)] {
            if size == 0 {
                return Err(KernelError::Argument { name, value: size.to_string(), allowed: "1 or more" });
            }
        }
        let rows = length.checked_div(row_length).unwrap_or(0);
        let scales = rows.div_ceil(self.block_rows) * row_length.div_ceil(self.block_columns);
        let expected = scales.saturating_mul(self.dtype.size());
        if self.bytes.len() == expected {
            return Ok(());
        }
        Err(KernelError::Mismatch { what: "bytes of FP8 scales", found: self.bytes.len(), expected })
    }
}

impl Placed<'_> {
    /// The scale of weight `i` of the part, and how many weights from it on share that scale in its row.
    fn run(&self, i: usize) -> (f32, usize) {
        let Scales { dtype, bytes, block_rows, block_columns } = self.scales;
        let (row, column) = ((self.start + i) / self.columns, (self.start + i) % self.columns);
        let scale = row / block_rows * self.columns.div_ceil(block_columns) + column / block_columns;
        let left = (block_columns - column % block_columns).min(self.columns - column);
        (for_dtype!(dtype, E => E::one(&bytes[scale * E::SIZE..])), left)
    }
}

/// Weights that the kernels load: floats of one dtype.
#[derive(Clone, Copy)]
pub(crate) struct Floats<'a> {
    pub dtype: Dtype,
    pub bytes: &'a [u8],
    pub row_length: usize,
}

impl Floats<'_> {
    /// Elements in all.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }
}
