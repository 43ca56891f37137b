//! `q4_0` and `q8_0` as ggml fills them without importance: sixteen blocks at once, to the bytes of
//! [`reference`](super::reference).

use super::layout::put_nibbles;
use super::measure::load;
use super::reference;
use crate::BlockType;
use crate::simd::{Eight, Kernel, LANES, MAGIC, Simd};

/// Adding it rounds a number of less than 2²² in magnitude to an integer, ties to even, and leaves its two's complement in the
/// low byte.
const SIGNED_MAGIC: f32 = 1.5 * MAGIC;

/// Weights of a block.
const LENGTH: usize = 32;

/// Whether these are the blocks that ggml makes of a type.
pub(super) fn fills(block_type: BlockType, weighted: bool) -> bool {
    match block_type {
        // ggml has no use for importance here.
        BlockType::Q8_0 => true,
        BlockType::Q4_0 => !weighted,
        BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q2_0 | BlockType::Iq4Nl => false,
        BlockType::Q2K | BlockType::Q3K | BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => false,
        BlockType::Iq4Xs | BlockType::Tq1_0 | BlockType::Tq2_0 | BlockType::Mxfp4 | BlockType::Nvfp4 => false,
    }
}

/// Fills whole blocks of `q4_0` or `q8_0`.
pub(super) struct Simple<'a> {
    pub block_type: BlockType,
    pub x: &'a [f32],
    pub out: &'a mut [u8],
}

impl Kernel for Simple<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { block_type, x, out } = self;
        let signed = block_type.size() == BlockType::Q8_0.size();
        let pieces = x.chunks(LANES * LENGTH).zip(out.chunks_mut(LANES * block_type.size()));
        for (x, out) in pieces {
            if signed {
                q8_0(s, x, out);
            } else {
                q4_0(s, x, out);
            }
        }
    }
}

/// Whether `1 / d` is a number that the vectors compute as the scalar code does: d is 0 or not subnormal.
#[inline(always)]
fn plain<S: Simd>(s: S, d: S::F) -> u16 {
    let (zero, d) = (s.splat(0.0), s.abs(d));
    !s.bits(s.lt(zero, d)) | !s.bits(s.lt(d, s.splat(f32::MIN_POSITIVE)))
}

/// 1 / d, and 0 for 0.
#[inline(always)]
fn reciprocals<S: Simd>(s: S, d: S::F) -> [f32; LANES] {
    let zero = s.splat(0.0);
    s.to_array(s.select(s.lt(zero, s.abs(d)), s.div(s.splat(1.0), d), zero))
}

#[inline(always)]
fn q8_0<S: Simd>(s: S, x: &[f32], out: &mut [u8]) {
    let zero = s.splat(0.0);
    let mut most = [zero; LANES];
    for (most, x) in most.iter_mut().zip(x.chunks_exact(LENGTH)) {
        *most = s.max_abs(s.abs(load(s, x)), load(s, &x[LANES..]));
    }
    let d = s.div(s.max_of_each(&most), s.splat(127.0));
    let (plain, halves, inverse) = (plain(s, d), s.to_f16(d), reciprocals(s, d));
    let size = BlockType::Q8_0.size();
    for (k, (x, out)) in x.chunks_exact(LENGTH).zip(out.chunks_exact_mut(size)).enumerate() {
        if plain >> k & 1 == 0 {
            reference::block(BlockType::Q8_0, x, None, out);
            continue;
        }
        out[..2].copy_from_slice(&halves[2 * k..][..2]);
        let id = s.splat(inverse[k]);
        let codes = [rounded(s, s.mul(load(s, x), id)), rounded(s, s.mul(load(s, &x[LANES..]), id))];
        s.pack::<Eight>(codes, &mut out[2..]);
    }
}

/// `SIGNED_MAGIC` + the nearest integer, ties away from zero.
#[inline(always)]
fn rounded<S: Simd>(s: S, v: S::F) -> S::F {
    let (zero, magic) = (s.splat(0.0), s.splat(SIGNED_MAGIC));
    let magnitude = s.abs(v);
    let even = s.sub(s.add(magnitude, magic), magic);
    // The greatest number below 1/2: what is left of a number is more only on a tie that went down.
    let tie = s.lt(s.splat(0.499_999_97), s.sub(magnitude, even));
    let away = s.select(tie, s.add(even, s.splat(1.0)), even);
    s.add(s.select(s.lt(v, zero), s.sub(zero, away), away), magic)
}

#[inline(always)]
fn q4_0<S: Simd>(s: S, x: &[f32], out: &mut [u8]) {
    let zero = s.splat(0.0);
    let (mut low, mut high) = ([zero; LANES], [zero; LANES]);
    for ((low, high), x) in low.iter_mut().zip(&mut high).zip(x.chunks_exact(LENGTH)) {
        let (first, second) = (load(s, x), load(s, &x[LANES..]));
        (*low, *high) = (s.min(first, second), s.max(first, second));
    }
    let (low, high) = (s.min_of_each(&low), s.max_of_each(&high));
    let below = s.sub(zero, low);
    let extreme = s.select(s.lt(below, high), high, low);
    let d = s.div(extreme, s.splat(-8.0));
    // Where both signs reach the greatest magnitude, the first weight that does decides.
    let one = s.bits(s.lt(below, high)) | s.bits(s.lt(high, below));
    let (plain, halves, inverse) = (plain(s, d) & one, s.to_f16(d), reciprocals(s, d));
    let (middle, top) = (s.splat(8.5), s.splat(15.0));
    let size = BlockType::Q4_0.size();
    for (k, (x, out)) in x.chunks_exact(LENGTH).zip(out.chunks_exact_mut(size)).enumerate() {
        if plain >> k & 1 == 0 {
            reference::block(BlockType::Q4_0, x, None, out);
            continue;
        }
        out[..2].copy_from_slice(&halves[2 * k..][..2]);
        let id = s.splat(inverse[k]);
        let first = s.add(s.mul(load(s, x), id), middle);
        let second = s.add(s.mul(load(s, &x[LANES..]), id), middle);
        let mut codes = [0; LENGTH];
        s.pack::<Eight>([truncated(s, first, top), truncated(s, second, top)], &mut codes);
        put_nibbles(s, &mut out[2..], &codes);
    }
}

/// `MAGIC` + the integer part of a number that is not negative, at most `top`.
#[inline(always)]
fn truncated<S: Simd>(s: S, v: S::F, top: S::F) -> S::F {
    let magic = s.splat(MAGIC);
    let even = s.sub(s.add(v, magic), magic);
    let down = s.select(s.lt(v, even), s.sub(even, s.splat(1.0)), even);
    s.add(s.min(down, top), magic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn blocks_are_those_of_the_reference() {
        let mut state = 5u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let mut x: Vec<f32> = Vec::new();
        for block in 0..1000 {
            // Weights of few digits, so that ties and equal magnitudes are common; subnormals; large ones.
            let unit = [1.0, 1.0, 0.03, 127.0 / 8.0, 1e-30, 1e-39, 1e-44, 1e4, 0.0][block % 9];
            x.extend((0..LENGTH).map(|_| (next() % 257) as f32 - 128.0).map(|w| w * unit));
        }
        for block_type in [BlockType::Q4_0, BlockType::Q8_0] {
            let mut expected = vec![0; 1000 * block_type.size()];
            for (x, out) in x.chunks_exact(LENGTH).zip(expected.chunks_exact_mut(block_type.size())) {
                reference::block(block_type, x, None, out);
            }
            for isa in Isa::available() {
                let mut out = vec![0; expected.len()];
                isa.run(Simple { block_type, x: &x, out: &mut out });
                let wrong =
                    out.chunks(block_type.size()).zip(expected.chunks(block_type.size())).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{block_type} {isa:?}");
            }
        }
    }
}
