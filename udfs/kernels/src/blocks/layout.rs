//! Where the codes and parameters of blocks are in their bytes. Codes come one a byte, in the order of the weights.

use half::f16;

use super::MOST;
use super::lanes::{Parameters, RUNS};
use crate::BlockType;
use crate::simd::{Kernel, LANES, Simd};

pub(super) fn put_half(out: &mut [u8], at: usize, x: f32) {
    out[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// Sixteen codes from `at` on.
#[inline(always)]
fn load<S: Simd>(s: S, codes: &[u8], at: usize) -> S::B {
    s.load_bytes(codes[at..].first_chunk().expect("codes are whole vectors"))
}

#[inline(always)]
fn store<S: Simd>(s: S, a: S::B, out: &mut [u8], at: usize) {
    s.store_bytes(a, out[at..].first_chunk_mut().expect("a block has whole vectors"));
}

/// The low four bits of two codes.
#[inline(always)]
fn two<S: Simd>(s: S, first: S::B, second: S::B) -> S::B {
    s.or(s.and(first, s.splat_byte(15)), s.shl::<4>(second))
}

/// The low two bits of four codes.
#[inline(always)]
fn four<S: Simd>(s: S, codes: [S::B; 4]) -> S::B {
    let [a, b, c, d] = codes;
    let mask = s.splat_byte(3);
    let low = s.or(s.and(a, mask), s.shl::<2>(s.and(b, mask)));
    s.or(low, s.or(s.shl::<4>(s.and(c, mask)), s.shl::<6>(d)))
}

/// Bit `FROM` of eight codes, 32 apart, which is their highest.
#[inline(always)]
fn eight<S: Simd, const FROM: i32>(s: S, codes: &[u8; MOST], at: usize) -> S::B {
    let mut bits = [s.splat_byte(0); 8];
    for (k, bit) in bits.iter_mut().enumerate() {
        *bit = s.shr::<FROM>(load(s, codes, at + 32 * k));
    }
    let [a, b, c, d, e, f, g, h] = bits;
    let low = s.or(s.or(a, s.shl::<1>(b)), s.or(s.shl::<2>(c), s.shl::<3>(d)));
    let high = s.or(s.or(s.shl::<4>(e), s.shl::<5>(f)), s.or(s.shl::<6>(g), s.shl::<7>(h)));
    s.or(low, high)
}

/// Writes 32 codes of four bits, or of five: then the fifth bits come first, in four bytes.
#[inline(always)]
pub(super) fn put_codes<S: Simd>(s: S, out: &mut [u8], codes: &[u8], bits: usize) {
    let mut low = out;
    if bits == 5 {
        // Eight bytes whose fifth bits become the bits of one, by a product that moves each to its own place at the top.
        for (out, codes) in low[..4].iter_mut().zip(codes.chunks_exact(8)) {
            let codes = u64::from_le_bytes(*codes.first_chunk().expect("eight codes"));
            let fifths = codes >> 4 & 0x0101_0101_0101_0101;
            *out = (fifths.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
        }
        low = &mut low[4..];
    }
    put_nibbles(s, low, codes);
}

/// Writes the low four bits of 32 codes.
#[inline(always)]
pub(super) fn put_nibbles<S: Simd>(s: S, out: &mut [u8], codes: &[u8]) {
    store(s, two(s, load(s, codes, 0), load(s, codes, LANES)), out, 0);
}

/// Writes the low two bits of 256 codes, of which each four that are 32 apart share a byte.
#[inline(always)]
pub(super) fn put_quarters<S: Simd>(s: S, out: &mut [u8], codes: &[u8; MOST]) {
    for i in 0..4 {
        let at = i / 2 * 128 + i % 2 * LANES;
        let codes = [load(s, codes, at), load(s, codes, at + 32), load(s, codes, at + 64), load(s, codes, at + 96)];
        store(s, four(s, codes), out, LANES * i);
    }
}

/// The twelve bytes that eight scales and minima of six bits take.
#[inline(always)]
pub(super) fn pack_k_scales(scales: &[u8; 8], minima: &[u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | scales[i + 4] >> 4 << 6,
        4..8 => minima[i - 4] | minima[i] >> 4 << 6,
        _ => scales[i - 4] & 15 | (minima[i - 4] & 15) << 4,
    })
}

/// Writes the codes of `q4_k` or `q5_k`, at the place they have in the block.
#[inline(always)]
pub(super) fn put_q4_k_or_q5_k<S: Simd, const BITS: usize>(s: S, block: &mut [u8], codes: &[u8; MOST]) {
    let low = if BITS == 4 { 16 } else { 48 };
    // 64 weights share 32 bytes: the first 32 their low nibbles, the others their high ones.
    for i in 0..8 {
        let at = i / 2 * 64 + i % 2 * LANES;
        store(s, two(s, load(s, codes, at), load(s, codes, at + 32)), block, low + LANES * i);
    }
    if BITS == 5 {
        for i in 0..2 {
            store(s, eight::<S, 4>(s, codes, LANES * i), block, 16 + LANES * i);
        }
    }
}

/// The sixteen scales of `q3_k`, with 32 added, in the twelve bytes that they take.
#[inline(always)]
pub(super) fn pack_q3_k_scales(codes: &[u8; 16]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..8 => codes[i] & 15 | codes[i + 8] << 4,
        _ => (0..4).fold(0, |bits, k| bits | (codes[i - 8 + 4 * k] >> 4) << (2 * k)),
    })
}

/// Writes the codes of `q3_k`: the third bits, then the others.
#[inline(always)]
pub(super) fn put_q3_k<S: Simd>(s: S, block: &mut [u8], codes: &[u8; MOST]) {
    for i in 0..2 {
        store(s, eight::<S, 2>(s, codes, LANES * i), block, LANES * i);
    }
    put_quarters(s, &mut block[32..96], codes);
}

/// Writes the codes of `q6_k`: the low four bits, then the others.
#[inline(always)]
pub(super) fn put_q6_k<S: Simd>(s: S, block: &mut [u8], codes: &[u8; MOST]) {
    for i in 0..8 {
        let at = i / 4 * 128 + i % 4 * LANES;
        store(s, two(s, load(s, codes, at), load(s, codes, at + 64)), block, LANES * i);
    }
    for i in 0..4 {
        let at = i / 2 * 128 + i % 2 * LANES;
        let mut high = [s.splat_byte(0); 4];
        for (k, high) in high.iter_mut().enumerate() {
            *high = s.shr::<4>(load(s, codes, at + 32 * k));
        }
        store(s, four(s, high), block, 128 + LANES * i);
    }
}

/// Writes the signed scales of `iq4_xs`, from -32 to 31.
pub(super) fn put_iq4_xs_scales(block: &mut [u8], scales: &[i8; 8]) {
    let mut high = 0u16;
    for (k, pair) in scales.chunks_exact(2).enumerate() {
        let [first, second] = [pair[0], pair[1]].map(|scale| (scale + 32) as u8);
        block[4 + k] = first & 15 | second << 4;
        high |= u16::from(first >> 4) << (4 * k) | u16::from(second >> 4) << (4 * k + 2);
    }
    block[2..4].copy_from_slice(&high.to_le_bytes());
}

/// Writes block `k` of sixteen, whose codes come one a byte.
#[inline(always)]
pub(super) fn lay_out<S: Simd>(
    s: S,
    block_type: BlockType,
    parameters: &Parameters,
    k: usize,
    codes: &[u8; MOST],
    out: &mut [u8],
) {
    put_parameters(block_type, parameters, k, out);
    put_block_codes(s, block_type, codes, out);
}

/// Writes the parameters of block `k` of sixteen.
#[inline(always)]
fn put_parameters(block_type: BlockType, parameters: &Parameters, k: usize, out: &mut [u8]) {
    let step = |values: &[[f32; LANES]; RUNS], j: usize| values[j][k] as i32 as u8;
    let (scale, min) = (parameters.scale[0][k], parameters.min[0][k]);
    let (block_scale, block_min) = (parameters.block_scale[k], parameters.block_min[k]);
    match block_type {
        BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 | BlockType::Iq4Nl => put_half(out, 0, scale),
        BlockType::Q4_1 | BlockType::Q5_1 => {
            put_half(out, 0, scale);
            put_half(out, 2, min);
        }
        BlockType::Q2K => {
            for (j, out) in out[..16].iter_mut().enumerate() {
                *out = step(&parameters.scale, j) | step(&parameters.min, j) << 4;
            }
            put_half(out, 80, block_scale);
            put_half(out, 82, block_min);
        }
        BlockType::Q3K => {
            let scales = std::array::from_fn(|j| step(&parameters.scale, j).wrapping_add(32));
            out[96..108].copy_from_slice(&pack_q3_k_scales(&scales));
            put_half(out, 108, block_scale);
        }
        BlockType::Q4K | BlockType::Q5K => {
            put_half(out, 0, block_scale);
            put_half(out, 2, block_min);
            let [scales, minima] =
                [&parameters.scale, &parameters.min].map(|values| std::array::from_fn(|j| step(values, j)));
            out[4..16].copy_from_slice(&pack_k_scales(&scales, &minima));
        }
        BlockType::Q6K => {
            for (j, out) in out[192..208].iter_mut().enumerate() {
                *out = step(&parameters.scale, j);
            }
            put_half(out, 208, block_scale);
        }
        BlockType::Iq4Xs => {
            put_half(out, 0, block_scale);
            let scales = std::array::from_fn(|j| step(&parameters.scale, j) as i8);
            put_iq4_xs_scales(out, &scales);
        }
        BlockType::Mxfp4 => out[0] = step(&parameters.scale, 0),
        BlockType::Nvfp4 => {
            for (j, out) in out[..4].iter_mut().enumerate() {
                *out = step(&parameters.scale, j);
            }
        }
        BlockType::Q2_0 | BlockType::Tq1_0 | BlockType::Tq2_0 => unreachable!("the search has no such blocks"),
    }
}

/// Writes the codes of a block, which come one a byte, and leaves its parameters.
#[inline(always)]
fn put_block_codes<S: Simd>(s: S, block_type: BlockType, codes: &[u8; MOST], out: &mut [u8]) {
    match block_type {
        BlockType::Q4_0 => put_codes(s, &mut out[2..], &codes[..32], 4),
        BlockType::Q5_0 => put_codes(s, &mut out[2..], &codes[..32], 5),
        BlockType::Q4_1 => put_codes(s, &mut out[4..], &codes[..32], 4),
        BlockType::Q5_1 => put_codes(s, &mut out[4..], &codes[..32], 5),
        BlockType::Q8_0 => {
            for (out, code) in out[2..].iter_mut().zip(codes) {
                *out = code.wrapping_sub(127);
            }
        }
        BlockType::Q2K => put_quarters(s, &mut out[16..80], codes),
        BlockType::Q3K => put_q3_k(s, out, codes),
        BlockType::Q4K => put_q4_k_or_q5_k::<S, 4>(s, out, codes),
        BlockType::Q5K => put_q4_k_or_q5_k::<S, 5>(s, out, codes),
        BlockType::Q6K => put_q6_k(s, out, codes),
        BlockType::Iq4Nl => put_nibbles(s, &mut out[2..], codes),
        BlockType::Iq4Xs => {
            for (out, codes) in out[8..].chunks_exact_mut(16).zip(codes.chunks_exact(32)) {
                put_nibbles(s, out, codes);
            }
        }
        BlockType::Mxfp4 => put_nibbles(s, &mut out[1..], codes),
        BlockType::Nvfp4 => {
            for (out, codes) in out[4..].chunks_exact_mut(8).zip(codes.chunks_exact(16)) {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = codes[i] | codes[8 + i] << 4;
                }
            }
        }
        BlockType::Q2_0 | BlockType::Tq1_0 | BlockType::Tq2_0 => unreachable!("the search has no such blocks"),
    }
}

/// Writes the codes of whole blocks, and leaves their parameters.
pub(super) struct PutCodes<'a> {
    pub block_type: BlockType,
    /// One a byte, as many as there are weights.
    pub codes: &'a [u8],
    pub out: &'a mut [u8],
}

impl Kernel for PutCodes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { block_type, codes, out } = self;
        let mut of_block = [0; MOST];
        let blocks = codes.chunks_exact(block_type.length()).zip(out.chunks_exact_mut(block_type.size()));
        for (codes, out) in blocks {
            of_block[..codes.len()].copy_from_slice(codes);
            put_block_codes(s, block_type, &of_block, out);
        }
    }
}
