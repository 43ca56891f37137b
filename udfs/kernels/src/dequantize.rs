//! Weights from codes.

use crate::quantize::QuantizedRef;
use std::marker::PhantomData;

use crate::simd::{Kernel, LANES, Simd, Width, for_width};
use crate::types::{ParameterDtype, Scheme, group_count};
use crate::weights::Weights;
use crate::{Isa, KernelError, Result};

/// The weights that the codes stand for: `scale * q + min`, or `scale * (q - zero_point)`, each rounded once to f32.
///
/// # Errors
/// If the buffers do not have the lengths that `length`, `row_length` and the settings imply, or a zero point is no code.
pub fn dequantize(isa: Isa, quantized: &QuantizedRef<'_>) -> Result<Vec<f32>> {
    dequantize_while(isa, quantized, || true)
}

/// Weights restored between two questions whether they are wanted. A multiple of every group size.
const PIECE: usize = 1 << 18;

/// [`dequantize`] for as long as the result is wanted, which is asked every 256 Ki weights.
///
/// # Errors
/// As [`dequantize`], and [`KernelError::Cancelled`] once it is not wanted.
pub fn dequantize_while(isa: Isa, quantized: &QuantizedRef<'_>, wanted: impl Fn() -> bool) -> Result<Vec<f32>> {
    check(quantized)?;
    let row_length = quantized.row_length.max(1);
    let rows = (PIECE / row_length).max(1) * row_length;
    let piece = if row_length > PIECE { PIECE } else { rows };
    let mut out = vec![0.0; quantized.length];
    let (mut start, mut group) = (0, 0);
    // Whole rows, and longer rows in pieces.
    for run in out.chunks_mut(rows) {
        for out in run.chunks_mut(piece) {
            if !wanted() {
                return Err(KernelError::Cancelled);
            }
            let length = out.len();
            for_width!(quantized.bits, W => {
                isa.run(Dequantize::<W> { quantized, start, group, out, width: PhantomData })
            });
            start += length;
            group += group_count(length, row_length.min(length), quantized.group_size);
        }
    }
    Ok(out)
}

/// The weights of a slice as f32: widened or decoded, or for F64 rounded.
pub fn to_f32(isa: Isa, weights: Weights<'_>) -> Vec<f32> {
    weights.to_f32(isa)
}

/// [`to_f32`] into a buffer that has room for the weights.
///
/// # Errors
/// If the buffer is not as long as the weights.
pub fn to_f32_into(isa: Isa, weights: Weights<'_>, out: &mut [f32]) -> Result<()> {
    if out.len() != weights.len() {
        return Err(KernelError::Mismatch { what: "weights of a buffer", found: out.len(), expected: weights.len() });
    }
    weights.write_f32(isa, out);
    Ok(())
}

/// [`to_f32`] for as long as the result is wanted, which is asked before each slice of about 64 Ki weights.
///
/// # Errors
/// [`KernelError::Cancelled`] once it is not wanted.
pub fn to_f32_while(isa: Isa, weights: Weights<'_>, wanted: impl Fn() -> bool) -> Result<Vec<f32>> {
    weights.to_f32_while(isa, wanted)
}

fn check(q: &QuantizedRef<'_>) -> Result<()> {
    // First, so that no length below is too large to compute with.
    let codes = q.bits.packed_len(q.length);
    if q.codes.len() != codes {
        return Err(KernelError::Mismatch { what: "bytes of codes", found: q.codes.len(), expected: codes });
    }
    if q.length > 0 && (q.row_length == 0 || !q.length.is_multiple_of(q.row_length)) {
        return Err(KernelError::Length { what: "quantized weights", found: q.length, multiple_of: q.row_length });
    }
    let groups = group_count(q.length, q.row_length, q.group_size);
    let parameters = groups * q.parameter_dtype.size();
    let minima = if q.scheme.has_minima() { parameters } else { 0 };
    let zero_points = if q.scheme.has_zero_points() { groups } else { 0 };
    for (what, found, expected) in [
        ("bytes of scales", q.scales.len(), parameters),
        ("bytes of minima", q.minima.len(), minima),
        ("zero points", q.zero_points.len(), zero_points),
    ] {
        if found != expected {
            return Err(KernelError::Mismatch { what, found, expected });
        }
    }
    match q.zero_points.iter().find(|&&z| z > q.bits.max_code()) {
        Some(zero_point) => Err(KernelError::Argument {
            name: "a zero point",
            value: zero_point.to_string(),
            allowed: "a code, at most 2^bits - 1",
        }),
        None => Ok(()),
    }
}

struct Dequantize<'a, W> {
    quantized: &'a QuantizedRef<'a>,
    /// The first weight to restore, and its group.
    start: usize,
    group: usize,
    /// Whole rows, or a piece of one.
    out: &'a mut [f32],
    width: PhantomData<W>,
}

impl<W: Width> Kernel for Dequantize<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { quantized: q, mut start, mut group, out, width: _ } = self;
        let group_size = q.group_size.get();
        for row in out.chunks_mut(q.row_length.max(1)) {
            for weights in row.chunks_mut(group_size) {
                let level = Level::of(q, group);
                if W::BITS.ends_on_byte(start) {
                    group_of::<S, W>(s, &q.codes[W::packed_len(start)..], &level, weights);
                } else {
                    for (i, w) in weights.iter_mut().enumerate() {
                        *w = level.at(W::code(q.codes, start + i));
                    }
                }
                start += weights.len();
                group += 1;
            }
        }
    }
}

/// One group's parameters.
struct Level {
    scale: f32,
    min: f32,
    zero: f32,
}

impl Level {
    #[inline(always)]
    fn of(q: &QuantizedRef<'_>, group: usize) -> Self {
        let parameter = |bytes: &[u8]| match q.parameter_dtype {
            ParameterDtype::F16 => half::f16::from_le_bytes([bytes[2 * group], bytes[2 * group + 1]]).to_f32(),
            ParameterDtype::F32 => f32::from_le_bytes(std::array::from_fn(|i| bytes[4 * group + i])),
        };
        let scale = parameter(q.scales);
        match q.scheme {
            Scheme::Affine => Self { scale, min: parameter(q.minima), zero: 0.0 },
            Scheme::Asymmetric => Self { scale, min: 0.0, zero: q.zero_points[group].into() },
            Scheme::Symmetric => Self { scale, min: 0.0, zero: (f32::from(q.bits.max_code()) + 1.0) / 2.0 },
        }
    }

    #[inline(always)]
    fn at(&self, code: f32) -> f32 {
        (code - self.zero).mul_add(self.scale, self.min)
    }
}

/// One group whose first code starts a byte.
#[inline(always)]
fn group_of<S: Simd, W: Width>(s: S, codes: &[u8], level: &Level, out: &mut [f32]) {
    let (scale, min, zero) = (s.splat(level.scale), s.splat(level.min), s.splat(level.zero));
    let mut pairs = out.chunks_exact_mut(2 * LANES);
    let mut done = 0;
    for out in &mut pairs {
        for (out, code) in out.chunks_exact_mut(LANES).zip(s.unpack::<W>(&codes[W::packed_len(done)..])) {
            out.copy_from_slice(&s.to_array(s.fma(s.sub(code, zero), scale, min)));
        }
        done += 2 * LANES;
    }
    let mut rest = pairs.into_remainder();
    if let Some(out) = rest.split_off_mut(..LANES) {
        // Half of a pair, as groups of sixteen are: the other half is padding.
        let mut padded = [0; 2 * LANES];
        let half = W::packed_len(LANES);
        padded[..half].copy_from_slice(&codes[W::packed_len(done)..][..half]);
        let [code, _] = s.unpack::<W>(&padded);
        out.copy_from_slice(&s.to_array(s.fma(s.sub(code, zero), scale, min)));
        done += LANES;
    }
    for (i, out) in rest.iter_mut().enumerate() {
        *out = level.at(W::code(codes, done + i));
    }
}
