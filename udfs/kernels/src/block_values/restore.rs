//! Blocks restored sixteen weights at a time: each follows by the operations of [`decode`](super::decode), in their order, to
//! the same bits.

use super::decode::{e8m0_half, half_at};
use super::{E2M1, IQ4_VALUES, MOST, k_scale_min, q3_k_scales, ue4m3};
use crate::BlockType;
use crate::simd::{Kernel, LANES, Simd};

/// What weights are restored to.
pub(crate) trait Restored: Copy {
    fn of(weight: f32) -> Self;
}

impl Restored for f32 {
    #[inline(always)]
    fn of(weight: f32) -> Self {
        weight
    }
}

/// Little-endian.
impl Restored for [u8; 4] {
    #[inline(always)]
    fn of(weight: f32) -> Self {
        weight.to_le_bytes()
    }
}

/// Restores whole blocks.
pub(crate) struct Restore<'a, T> {
    pub block_type: BlockType,
    pub bytes: &'a [u8],
    pub out: &'a mut [T],
}

impl<T: Restored> Kernel for Restore<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { block_type, bytes, out } = self;
        for (block, out) in bytes.chunks_exact(block_type.size()).zip(out.chunks_exact_mut(block_type.length())) {
            restore(s, block_type, block, out);
        }
    }
}

/// Sixteen bytes from `at` on.
#[inline(always)]
fn bytes<S: Simd>(s: S, block: &[u8], at: usize) -> S::B {
    s.load_bytes(block[at..].first_chunk().expect("a block has whole vectors"))
}

/// Sixteen weights, the `k`th such of a block.
#[inline(always)]
fn put<S: Simd, T: Restored>(s: S, weights: S::F, k: usize, out: &mut [T]) {
    let out: &mut [T; LANES] = out[LANES * k..].first_chunk_mut().expect("a block has whole vectors");
    for (out, weight) in out.iter_mut().zip(s.to_array(weights)) {
        *out = T::of(weight);
    }
}

/// The lower and the upper four bits of bytes.
#[inline(always)]
fn nibbles<S: Simd>(s: S, a: S::B) -> [S::B; 2] {
    [s.and(a, s.splat_byte(15)), s.shr::<4>(a)]
}

/// The four codes of two bits of each byte.
#[inline(always)]
fn quarters<S: Simd>(s: S, a: S::B) -> [S::B; 4] {
    let mask = s.splat_byte(3);
    [s.and(a, mask), s.and(s.shr::<2>(a), mask), s.and(s.shr::<4>(a), mask), s.shr::<6>(a)]
}

/// Bit `k` of each byte, as bit `TO`.
#[inline(always)]
fn bit<S: Simd, const TO: i32>(s: S, a: S::B, k: usize) -> S::B {
    let one = s.splat_byte(1);
    let bit = match k {
        0 => s.and(a, one),
        1 => s.and(s.shr::<1>(a), one),
        2 => s.and(s.shr::<2>(a), one),
        3 => s.and(s.shr::<3>(a), one),
        4 => s.and(s.shr::<4>(a), one),
        5 => s.and(s.shr::<5>(a), one),
        6 => s.and(s.shr::<6>(a), one),
        _ => s.shr::<7>(a),
    };
    s.shl::<TO>(bit)
}

/// Sixteen bits as bytes, each 0 or 16.
#[inline(always)]
fn fifth_bits<S: Simd>(s: S, bits: u16) -> S::B {
    // Eight bits become eight bytes by a product: bit i of each copy is kept where it is.
    let spread = |byte: u64| {
        let copies = byte.wrapping_mul(0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        // A byte that is not 0 becomes 128, and then 16.
        ((copies.wrapping_add(0x7f7f_7f7f_7f7f_7f7f) | copies) & 0x8080_8080_8080_8080) >> 3
    };
    let both = [spread(u64::from(bits & 0xff)).to_le_bytes(), spread(u64::from(bits >> 8)).to_le_bytes()];
    s.load_bytes(both.as_flattened().first_chunk().expect("twice eight bytes"))
}

/// One block. Inlined into each kernel, so that it is compiled for its instruction set.
// Long because: a match with an arm for each type of blocks.
#[inline(always)]
pub(crate) fn restore<S: Simd, T: Restored>(s: S, block_type: BlockType, block: &[u8], out: &mut [T]) {
    match block_type {
        BlockType::Q4_0 => {
            let (d, zero) = (s.splat(half_at(block, 0)), s.splat(8.0));
            for (k, codes) in nibbles(s, bytes(s, block, 2)).into_iter().enumerate() {
                put(s, s.mul(s.sub(s.widen_bytes(codes), zero), d), k, out);
            }
        }
        BlockType::Q4_1 => {
            let (d, m) = (s.splat(half_at(block, 0)), s.splat(half_at(block, 2)));
            for (k, codes) in nibbles(s, bytes(s, block, 4)).into_iter().enumerate() {
                put(s, s.add(s.mul(s.widen_bytes(codes), d), m), k, out);
            }
        }
        BlockType::Q5_0 => {
            let (d, zero) = (s.splat(half_at(block, 0)), s.splat(16.0));
            for (k, codes) in nibbles(s, bytes(s, block, 6)).into_iter().enumerate() {
                let high = fifth_bits(s, u16::from_le_bytes([block[2 + 2 * k], block[3 + 2 * k]]));
                put(s, s.mul(s.sub(s.widen_bytes(s.or(codes, high)), zero), d), k, out);
            }
        }
        BlockType::Q5_1 => {
            let (d, m) = (s.splat(half_at(block, 0)), s.splat(half_at(block, 2)));
            for (k, codes) in nibbles(s, bytes(s, block, 8)).into_iter().enumerate() {
                let high = fifth_bits(s, u16::from_le_bytes([block[4 + 2 * k], block[5 + 2 * k]]));
                put(s, s.add(s.mul(s.widen_bytes(s.or(codes, high)), d), m), k, out);
            }
        }
        BlockType::Q8_0 => {
            let d = s.splat(half_at(block, 0));
            for k in 0..2 {
                put(s, s.mul(s.widen_signed(bytes(s, block, 2 + LANES * k)), d), k, out);
            }
        }
        BlockType::Q2_0 => {
            let d = s.splat(half_at(block, 0));
            for k in 0..4 {
                let mut codes = [0; LANES];
                for (i, code) in codes.iter_mut().enumerate() {
                    *code = block[2 + 4 * k + i / 4] >> (2 * (i % 4)) & 3;
                }
                put(s, s.mul(s.sub(s.widen_bytes(s.load_bytes(&codes)), s.splat(1.0)), d), k, out);
            }
        }
        BlockType::Q2K => {
            let (d, dmin) = (half_at(block, 80), half_at(block, 82));
            for i in 0..4 {
                for (k, codes) in quarters(s, bytes(s, block, 16 + LANES * i)).into_iter().enumerate() {
                    let j = i / 2 * 8 + 2 * k + i % 2;
                    let scale = s.splat(d * f32::from(block[j] & 15));
                    let min = s.splat(dmin * f32::from(block[j] >> 4));
                    put(s, s.sub(s.mul(scale, s.widen_bytes(codes)), min), j, out);
                }
            }
        }
        BlockType::Q3K => {
            let (d, scales) = (half_at(block, 108), q3_k_scales(&block[96..108]));
            let zero = s.splat(4.0);
            for i in 0..4 {
                let high = bytes(s, block, LANES * (i % 2));
                for (k, codes) in quarters(s, bytes(s, block, 32 + LANES * i)).into_iter().enumerate() {
                    let j = i / 2 * 8 + 2 * k + i % 2;
                    let codes = s.or(codes, bit::<S, 2>(s, high, i / 2 * 4 + k));
                    let scale = s.splat(d * f32::from(scales[j]));
                    put(s, s.mul(scale, s.sub(s.widen_bytes(codes), zero)), j, out);
                }
            }
        }
        BlockType::Q4K => {
            let levels = k_levels(s, block);
            for i in 0..8 {
                for (k, codes) in nibbles(s, bytes(s, block, 16 + LANES * i)).into_iter().enumerate() {
                    let (scale, min) = levels[i / 2 * 2 + k];
                    put(s, s.sub(s.mul(scale, s.widen_bytes(codes)), min), i / 2 * 4 + 2 * k + i % 2, out);
                }
            }
        }
        BlockType::Q5K => {
            let levels = k_levels(s, block);
            for i in 0..8 {
                let high = bytes(s, block, 16 + LANES * (i % 2));
                for (k, codes) in nibbles(s, bytes(s, block, 48 + LANES * i)).into_iter().enumerate() {
                    let j = i / 2 * 2 + k;
                    let codes = s.or(codes, bit::<S, 4>(s, high, j));
                    let (scale, min) = levels[j];
                    put(s, s.sub(s.mul(scale, s.widen_bytes(codes)), min), 2 * j + i % 2, out);
                }
            }
        }
        BlockType::Q6K => {
            let (d, zero) = (half_at(block, 208), s.splat(32.0));
            for i in 0..4 {
                let (half, l) = (i / 2, i % 2);
                let high = quarters(s, bytes(s, block, 128 + LANES * i));
                let [a, c] = nibbles(s, bytes(s, block, 64 * half + LANES * l));
                let [b, e] = nibbles(s, bytes(s, block, 64 * half + LANES * (2 + l)));
                for (k, low) in [a, b, c, e].into_iter().enumerate() {
                    let j = 8 * half + 2 * k + l;
                    let codes = s.or(low, s.shl::<4>(high[k]));
                    let scale = s.splat(d * f32::from(block[192 + j] as i8));
                    put(s, s.mul(scale, s.sub(s.widen_bytes(codes), zero)), j, out);
                }
            }
        }
        BlockType::Iq4Nl => chosen(s, half_at(block, 0), &IQ4_VALUES, &block[2..], out),
        BlockType::Iq4Xs => {
            let (d, high) = (half_at(block, 0), u16::from_le_bytes([block[2], block[3]]));
            for (k, out) in out.chunks_exact_mut(32).enumerate() {
                let low = block[4 + k / 2] >> (4 * (k % 2)) & 15;
                let scale = f32::from(low | ((high >> (2 * k) & 3) as u8) << 4) - 32.0;
                chosen(s, d * scale, &IQ4_VALUES, &block[8 + 16 * k..], out);
            }
        }
        BlockType::Tq1_0 => {
            let mut codes = [0; MOST];
            let mut at = 0;
            for (bytes, trits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
                for power in &[1, 3, 9, 27, 81u8][..trits] {
                    for (code, byte) in codes[at..].iter_mut().zip(bytes) {
                        *code = ((u16::from(byte.wrapping_mul(*power)) * 3) >> 8) as u8;
                    }
                    at += bytes.len();
                }
            }
            let (d, one) = (s.splat(half_at(block, 52)), s.splat(1.0));
            for k in 0..MOST / LANES {
                put(s, s.mul(s.sub(s.widen_bytes(bytes(s, &codes, LANES * k)), one), d), k, out);
            }
        }
        BlockType::Tq2_0 => {
            let (d, one) = (s.splat(half_at(block, 64)), s.splat(1.0));
            for i in 0..4 {
                for (k, codes) in quarters(s, bytes(s, block, LANES * i)).into_iter().enumerate() {
                    put(s, s.mul(s.sub(s.widen_bytes(codes), one), d), i / 2 * 8 + 2 * k + i % 2, out);
                }
            }
        }
        BlockType::Mxfp4 => chosen(s, e8m0_half(block[0]), &E2M1, &block[1..], out),
        BlockType::Nvfp4 => {
            for pair in 0..2 {
                // Eight bytes are a run of sixteen weights, whose first half is the lower bits.
                let [low, high] = nibbles(s, bytes(s, block, 4 + LANES * pair));
                let (mut lows, mut highs) = ([0; LANES], [0; LANES]);
                s.store_bytes(s.choose(&E2M1, low), &mut lows);
                s.store_bytes(s.choose(&E2M1, high), &mut highs);
                for i in 0..2 {
                    let mut run = [0; LANES];
                    run[..8].copy_from_slice(&lows[8 * i..][..8]);
                    run[8..].copy_from_slice(&highs[8 * i..][..8]);
                    let j = 2 * pair + i;
                    let d = s.splat(ue4m3(block[j]) * 0.5);
                    put(s, s.mul(s.widen_signed(s.load_bytes(&run)), d), j, out);
                }
            }
        }
    }
}

/// 32 weights, `d * table[q]`.
#[inline(always)]
fn chosen<S: Simd, T: Restored>(s: S, d: f32, table: &[i8; 16], codes: &[u8], out: &mut [T]) {
    let d = s.splat(d);
    for (k, codes) in nibbles(s, bytes(s, codes, 0)).into_iter().enumerate() {
        put(s, s.mul(s.widen_signed(s.choose(table, codes)), d), k, out);
    }
}

/// The scales and minima of the runs of `q4_k` and `q5_k`.
#[inline(always)]
fn k_levels<S: Simd>(s: S, block: &[u8]) -> [(S::F, S::F); 8] {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let mut levels = [(s.splat(0.0), s.splat(0.0)); 8];
    for (j, level) in levels.iter_mut().enumerate() {
        let (scale, min) = k_scale_min(&block[4..16], j);
        *level = (s.splat(d * f32::from(scale)), s.splat(dmin * f32::from(min)));
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::block_values::decode::decode;

    /// Every byte of blocks may be anything: the weights are those of the specification, NaN and infinities where it has them.
    #[test]
    fn hostile_blocks_are_restored_as_specified() {
        let mut state = 99u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        for &block_type in BlockType::ALL {
            let (size, length) = (block_type.size(), block_type.length());
            let mut bytes: Vec<u8> = (0..size * 600).map(|_| byte()).collect();
            bytes[..size].fill(0);
            bytes[size..2 * size].fill(0xff);
            for isa in Isa::available() {
                let mut found = vec![0.0f32; 600 * length];
                isa.run(Restore { block_type, bytes: &bytes, out: &mut found });
                let mut expected = [0.0; MOST];
                for (k, (block, found)) in bytes.chunks_exact(size).zip(found.chunks_exact(length)).enumerate() {
                    decode(block_type, block, &mut expected);
                    for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                        assert!(same, "{block_type} {isa:?} block {k} weight {i}: {found} is not {expected}");
                    }
                }
            }
        }
    }
}
