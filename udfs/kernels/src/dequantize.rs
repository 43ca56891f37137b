//! Weights from codes.

use crate::quantize::QuantizedRef;
use crate::simd::{Element, Kernel, LANES, Simd, for_dtype};
use crate::types::{Bits, ParameterDtype, Scheme, Weights, group_count};
use crate::{Isa, KernelError, Result};

/// The weights that the codes stand for: `scale * q + min`, or `scale * (q - zero_point)`, each rounded once to f32.
///
/// # Errors
/// If the buffers do not have the lengths that `length`, `row_length` and the settings imply, or a zero point is no code.
pub fn dequantize(isa: Isa, quantized: &QuantizedRef<'_>) -> Result<Vec<f32>> {
    check(quantized)?;
    let mut out = vec![0.0; quantized.length];
    match quantized.bits {
        Bits::Two => isa.run(Dequantize::<2>(quantized, &mut out)),
        Bits::Four => isa.run(Dequantize::<4>(quantized, &mut out)),
        Bits::Eight => isa.run(Dequantize::<8>(quantized, &mut out)),
    }
    Ok(out)
}

/// The elements of a slice as f32: widened, or for F64 rounded.
pub fn to_f32(isa: Isa, weights: Weights<'_>) -> Vec<f32> {
    let mut out = vec![0.0; weights.len()];
    for_dtype!(weights.dtype(), E => {
        isa.run(Widen::<E> { bytes: weights.bytes(), out: &mut out, dtype: std::marker::PhantomData })
    });
    out
}

struct Widen<'a, E> {
    bytes: &'a [u8],
    out: &'a mut [f32],
    dtype: std::marker::PhantomData<E>,
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

fn check(q: &QuantizedRef<'_>) -> Result<()> {
    // First, so that no length below is too large to compute with.
    if q.length > q.codes.len().saturating_mul(8) / q.bits.get() {
        let expected = q.length.saturating_mul(q.bits.get()).div_ceil(8);
        return Err(KernelError::Mismatch { what: "bytes of codes", found: q.codes.len(), expected });
    }
    if q.length > 0 && (q.row_length == 0 || !q.length.is_multiple_of(q.row_length)) {
        return Err(KernelError::Length { what: "quantized weights", found: q.length, multiple_of: q.row_length });
    }
    let groups = group_count(q.length, q.row_length, q.group_size);
    let parameters = groups * q.parameter_dtype.size();
    let minima = if q.scheme == Scheme::Affine { parameters } else { 0 };
    let zero_points = if q.scheme == Scheme::Asymmetric { groups } else { 0 };
    for (what, found, expected) in [
        ("bytes of codes", q.codes.len(), q.bits.packed_len(q.length)),
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

struct Dequantize<'a, const BITS: usize>(&'a QuantizedRef<'a>, &'a mut [f32]);

impl<const BITS: usize> Kernel for Dequantize<'_, BITS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(q, out) = self;
        let group_size = q.group_size.get();
        let (mut group, mut start) = (0, 0);
        for row in out.chunks_exact_mut(q.row_length.max(1)) {
            for weights in row.chunks_mut(group_size) {
                let level = Level::of(q, group);
                if (start * BITS).is_multiple_of(8) {
                    group_of::<S, BITS>(s, &q.codes[start * BITS / 8..], &level, weights);
                } else {
                    for (i, w) in weights.iter_mut().enumerate() {
                        *w = level.at(code::<BITS>(q.codes, start + i));
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

#[inline(always)]
fn code<const BITS: usize>(codes: &[u8], i: usize) -> f32 {
    let bit = i * BITS;
    f32::from(codes[bit / 8] >> (bit % 8) & ((1u16 << BITS) - 1) as u8)
}

/// One group whose first code starts a byte.
#[inline(always)]
fn group_of<S: Simd, const BITS: usize>(s: S, codes: &[u8], level: &Level, out: &mut [f32]) {
    let (scale, min, zero) = (s.splat(level.scale), s.splat(level.min), s.splat(level.zero));
    let mut pairs = out.chunks_exact_mut(2 * LANES);
    let mut done = 0;
    for out in &mut pairs {
        for (out, code) in out.chunks_exact_mut(LANES).zip(s.unpack::<BITS>(&codes[done * BITS / 8..])) {
            out.copy_from_slice(&s.to_array(s.fma(s.sub(code, zero), scale, min)));
        }
        done += 2 * LANES;
    }
    for (i, out) in pairs.into_remainder().iter_mut().enumerate() {
        *out = level.at(code::<BITS>(codes, done + i));
    }
}
