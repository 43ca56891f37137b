//! Where the codes and parameters of blocks are in their bytes. Codes come one a byte, in the order of the weights.

use half::f16;

use super::MOST;

pub(super) fn put_half(out: &mut [u8], at: usize, x: f32) {
    out[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// Writes 32 codes of four bits, or of five: then the fifth bits come first, in four bytes.
pub(super) fn put_codes(out: &mut [u8], codes: &[u8], bits: usize) {
    let mut low = out;
    if bits == 5 {
        let high = codes.iter().enumerate().fold(0u32, |high, (i, &code)| high | u32::from(code >> 4 & 1) << i);
        low[..4].copy_from_slice(&high.to_le_bytes());
        low = &mut low[4..];
    }
    let (first, second) = codes[..32].split_at(16);
    for ((out, &first), &second) in low[..16].iter_mut().zip(first).zip(second) {
        *out = first & 15 | second << 4;
    }
}

/// Writes codes of two bits, of which each four that are `stride` apart share a byte.
pub(super) fn put_quarters(out: &mut [u8], codes: &[u8], stride: usize) {
    for (out, codes) in out.chunks_exact_mut(stride).zip(codes.chunks_exact(4 * stride)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = (0..4).fold(0, |byte, k| byte | (codes[k * stride + l] & 3) << (2 * k));
        }
    }
}

/// The twelve bytes that eight scales and minima of six bits take.
pub(super) fn pack_k_scales(scales: &[u8; 8], minima: &[u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | scales[i + 4] >> 4 << 6,
        4..8 => minima[i - 4] | minima[i] >> 4 << 6,
        _ => scales[i - 4] & 15 | (minima[i - 4] & 15) << 4,
    })
}

/// Writes the codes of `q4_k` or `q5_k`, at the place they have in the block.
pub(super) fn put_q4_k_or_q5_k<const BITS: usize>(block: &mut [u8], codes: &[u8; MOST]) {
    let low = if BITS == 4 { 16 } else { 48 };
    // 64 weights share 32 bytes: the first 32 their low nibbles, the others their high ones.
    for (out, codes) in block[low..].chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
        let (first, second) = codes.split_at(32);
        for ((out, &first), &second) in out.iter_mut().zip(first).zip(second) {
            *out = first & 15 | second << 4;
        }
    }
    if BITS == 5 {
        for (l, out) in block[16..48].iter_mut().enumerate() {
            *out = (0..8).fold(0, |bits, j| bits | (codes[32 * j + l] >> 4) << j);
        }
    }
}

/// The sixteen scales of `q3_k`, with 32 added, in the twelve bytes that they take.
pub(super) fn pack_q3_k_scales(codes: &[u8; 16]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..8 => codes[i] & 15 | codes[i + 8] << 4,
        _ => (0..4).fold(0, |bits, k| bits | (codes[i - 8 + 4 * k] >> 4) << (2 * k)),
    })
}

/// Writes the codes of `q3_k`: the third bits, then the others.
pub(super) fn put_q3_k(block: &mut [u8], codes: &[u8; MOST]) {
    for (l, out) in block[..32].iter_mut().enumerate() {
        *out = (0..8).fold(0, |bits, k| bits | (codes[32 * k + l] >> 2) << k);
    }
    put_quarters(&mut block[32..96], codes, 32);
}

/// Writes the codes of `q6_k`: the low four bits, then the others.
pub(super) fn put_q6_k(block: &mut [u8], codes: &[u8; MOST]) {
    for half in 0..2 {
        let codes = &codes[128 * half..][..128];
        let (first, second) = codes.split_at(64);
        for ((out, &first), &second) in block[64 * half..][..64].iter_mut().zip(first).zip(second) {
            *out = first & 15 | second << 4;
        }
        for (l, out) in block[128 + 32 * half..][..32].iter_mut().enumerate() {
            *out = (0..4).fold(0, |bits, k| bits | (codes[32 * k + l] >> 4) << (2 * k));
        }
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
