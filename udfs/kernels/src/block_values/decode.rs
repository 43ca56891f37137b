//! What the blocks of each type stand for, weight by weight: the specification.
//!
//! The layouts are those of ggml (`ggml-common.h`, `ggml-quants.c`). Every product is rounded on its own, in the order that
//! ggml computes it, so that restored weights are the same to the bit.

use half::f16;

use super::{E2M1, IQ4_VALUES, MOST, k_scale_min, q3_k_scales, ue4m3};
use crate::BlockType;

pub(crate) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Bit `i` of a little-endian stream.
fn bit(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 8] >> (i % 8) & 1
}

/// Code `i` of nibbles of which the low ones are the first half and the high ones the second.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    if i < bytes.len() { bytes[i] & 15 } else { bytes[i - bytes.len()] >> 4 }
}

/// Restores one block to the first weights of `out`.
// Long because: a match with an arm for each type of blocks.
pub(crate) fn decode(block_type: BlockType, block: &[u8], out: &mut [f32; MOST]) {
    let out = &mut out[..block_type.length()];
    match block_type {
        BlockType::Q4_0 => {
            let d = half_at(block, 0);
            each(out, |i| (f32::from(nibble(&block[2..], i)) - 8.0) * d);
        }
        BlockType::Q4_1 => {
            let (d, m) = (half_at(block, 0), half_at(block, 2));
            each(out, |i| f32::from(nibble(&block[4..], i)) * d + m);
        }
        BlockType::Q5_0 => {
            let d = half_at(block, 0);
            each(out, |i| (f32::from(nibble(&block[6..], i) | bit(&block[2..6], i) << 4) - 16.0) * d);
        }
        BlockType::Q5_1 => {
            let (d, m) = (half_at(block, 0), half_at(block, 2));
            each(out, |i| f32::from(nibble(&block[8..], i) | bit(&block[4..8], i) << 4) * d + m);
        }
        BlockType::Q8_0 => {
            let d = half_at(block, 0);
            each(out, |i| f32::from(block[2 + i] as i8) * d);
        }
        BlockType::Q2_0 => {
            let d = half_at(block, 0);
            each(out, |i| (f32::from(block[2 + i / 4] >> (2 * (i % 4)) & 3) - 1.0) * d);
        }
        BlockType::Q2K => q2_k(block, out),
        BlockType::Q3K => q3_k(block, out),
        BlockType::Q4K => {
            let (d, dmin) = (half_at(block, 0), half_at(block, 2));
            // 64 weights share 32 bytes: the first 32 their low nibbles, the others their high ones.
            each(out, |i| {
                let (scale, min) = k_scale_min(&block[4..16], i / 32);
                let code = block[16 + i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15;
                d * f32::from(scale) * f32::from(code) - dmin * f32::from(min)
            });
        }
        BlockType::Q5K => {
            let (d, dmin) = (half_at(block, 0), half_at(block, 2));
            each(out, |i| {
                let (scale, min) = k_scale_min(&block[4..16], i / 32);
                let low = block[48 + i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15;
                let code = low | (block[16 + i % 32] >> (i / 32) & 1) << 4;
                d * f32::from(scale) * f32::from(code) - dmin * f32::from(min)
            });
        }
        BlockType::Q6K => {
            let d = half_at(block, 208);
            each(out, |i| {
                let (half, k, l) = (i / 128, i % 128 / 32, i % 32);
                let low = block[64 * half + 32 * (k % 2) + l] >> (4 * (k / 2)) & 15;
                let high = block[128 + 32 * half + l] >> (2 * k) & 3;
                let scale = block[192 + i / 16] as i8;
                d * f32::from(scale) * (f32::from(low | high << 4) - 32.0)
            });
        }
        BlockType::Iq4Nl => {
            let d = half_at(block, 0);
            each(out, |i| d * f32::from(IQ4_VALUES[usize::from(nibble(&block[2..], i))]));
        }
        BlockType::Iq4Xs => {
            let d = half_at(block, 0);
            let high = u16::from_le_bytes([block[2], block[3]]);
            each(out, |i| {
                let k = i / 32;
                let low = block[4 + k / 2] >> (4 * (k % 2)) & 15;
                let scale = f32::from(low | ((high >> (2 * k) & 3) as u8) << 4) - 32.0;
                d * scale * f32::from(IQ4_VALUES[usize::from(nibble(&block[8 + 16 * k..][..16], i % 32))])
            });
        }
        BlockType::Tq1_0 => tq1_0(block, out),
        BlockType::Tq2_0 => {
            let d = half_at(block, 64);
            each(out, |i| {
                let code = block[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
                (f32::from(code) - 1.0) * d
            });
        }
        BlockType::Mxfp4 => {
            let d = e8m0_half(block[0]);
            each(out, |i| f32::from(E2M1[usize::from(nibble(&block[1..], i))]) * d);
        }
        BlockType::Nvfp4 => each(out, |i| {
            let run = i / 16;
            let code = nibble(&block[4 + 8 * run..][..8], i % 16);
            // The table has twice the values of E2M1, so that they are integers.
            f32::from(E2M1[usize::from(code)]) * (ue4m3(block[run]) * 0.5)
        }),
    }
}

fn each(out: &mut [f32], weight: impl Fn(usize) -> f32) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = weight(i);
    }
}

fn q2_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    each(out, |i| {
        let parameters = block[i / 16];
        let (scale, min) = (d * f32::from(parameters & 15), dmin * f32::from(parameters >> 4));
        let code = block[16 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
        scale * f32::from(code) - min
    });
}

fn q3_k(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 108);
    let scales = q3_k_scales(&block[96..108]);
    each(out, |i| {
        let low = block[32 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
        let high = block[i % 32] >> (i / 32) & 1;
        d * f32::from(scales[i / 16]) * (f32::from(low | high << 2) - 4.0)
    });
}

/// Five trits a byte, and at the end four: trit k of byte b is the integer part of 3·((b·3^k mod 256) / 256).
fn tq1_0(block: &[u8], out: &mut [f32]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let d = half_at(block, 52);
    let mut at = 0;
    for (bytes, trits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        for power in &POWERS[..trits] {
            for byte in bytes {
                let trit = (u16::from(byte.wrapping_mul(*power)) * 3) >> 8;
                out[at] = (f32::from(trit) - 1.0) * d;
                at += 1;
            }
        }
    }
}

/// Half of 2^(e - 127), exact for every byte.
pub(crate) fn e8m0_half(e: u8) -> f32 {
    match e {
        // 2^(e - 128) is subnormal.
        0..2 => f32::from_bits(0x0020_0000 << e),
        2.. => f32::from_bits(u32::from(e - 1) << 23),
    }
}
