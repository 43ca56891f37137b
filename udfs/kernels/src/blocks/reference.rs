//! Blocks as ggml's own quantizers fill them, byte for byte: the types with one scale a block, and the codebooks.
//!
//! Sums run in the order of the weights, and nothing is fused: ggml's prebuilt libraries for x86-64 are compiled without
//! multiply-add.

use super::layout::{put_codes, put_half, put_iq4_xs_scales, put_quarters};
use super::reference_k::{Grid, fit_affine, fit_scale, q2_k, q3_k, q4_k_or_q5_k, q6_k};
use super::reference_parts::{NOTHING, extreme, first_extremes, magnitude, reciprocal, spread};
use super::{E2M1, IQ4_VALUES, MOST, decode::e8m0_half, ue4m3};
use crate::BlockType;
use crate::simd::scalar::Scalar;

/// The sum of squares of weights, after that of the weights before them.
pub(super) fn add_squares(before: f32, weights: &[f32]) -> f32 {
    weights.iter().fold(before, |sum, &x| sum + x * x)
}

/// The mean square of a row.
pub(super) fn mean_square(row: &[f32]) -> f32 {
    add_squares(0.0, row) / row.len() as f32
}

/// Fills blocks of one row, with the mean square that importance is spread with in types of one scale.
pub(super) fn row(block_type: BlockType, row: &[f32], importance: Option<&[f32]>, mean: f32, out: &mut [u8]) {
    let length = block_type.length();
    let (row_mean, blocks) = (if importance.is_some() { mean } else { 0.0 }, row.chunks_exact(length));
    for (k, (x, out)) in blocks.zip(out.chunks_exact_mut(block_type.size())).enumerate() {
        let importance = importance.map(|importance| &importance[k * length..][..length]);
        // A block that nothing counts in is filled as if all counted alike; ggml would divide by zero.
        let importance = importance.filter(|importance| importance.iter().any(|&i| i > 0.0));
        let importance = importance.or((row_mean > 0.0).then_some(&super::ONES[..length]));
        block(block_type, x, importance.map(|importance| (importance, row_mean)), out);
    }
}

// Long because: a match with an arm for each type of blocks.
pub(super) fn block(block_type: BlockType, x: &[f32], importance: Option<(&[f32], f32)>, out: &mut [u8]) {
    let weighted = |factor: f32| importance.map(|(importance, row_mean)| spread(importance, x, factor * row_mean));
    match block_type {
        BlockType::Q4_0 | BlockType::Q5_0 => {
            let (bits, half) = if out.len() == BlockType::Q4_0.size() { (4, 8) } else { (5, 16) };
            let mut codes = [0; 32];
            let d = match weighted(1.0) {
                Some(weights) => fit_scale(x, half, Some(&weights[..32]), &mut codes),
                None => {
                    let d = extreme(x) / -(half as f32);
                    let id = reciprocal(d);
                    for (code, &x) in codes.iter_mut().zip(x) {
                        *code = ((x * id + (half as f32 + 0.5)) as i32).min(2 * half - 1) as u8;
                    }
                    d
                }
            };
            put_half(out, 0, d);
            put_codes(Scalar, &mut out[2..], &codes, bits);
        }
        BlockType::Q4_1 | BlockType::Q5_1 => {
            let (bits, top) = if out.len() == BlockType::Q4_1.size() { (4, 15) } else { (5, 31) };
            let mut codes = [0; 32];
            let (d, m) = match weighted(1.0) {
                Some(weights) => {
                    let steps = Grid { top, first: -0.9, step: 0.05, steps: 36, absolute: false };
                    let (d, m) = fit_affine(x, &weights[..32], &steps, &mut codes);
                    (d, -m)
                }
                None => {
                    let (low, high) = first_extremes(x);
                    let d = (high - low) / top as f32;
                    let id = reciprocal(d);
                    for (code, &x) in codes.iter_mut().zip(x) {
                        *code = (((x - low) * id + 0.5) as i32).min(top) as u8;
                    }
                    (d, low)
                }
            };
            put_half(out, 0, d);
            put_half(out, 2, m);
            put_codes(Scalar, &mut out[4..], &codes, bits);
        }
        BlockType::Q8_0 => {
            let d = magnitude(x) / 127.0;
            let id = reciprocal(d);
            put_half(out, 0, d);
            for (out, &x) in out[2..].iter_mut().zip(x) {
                *out = (x * id).round() as i8 as u8;
            }
        }
        BlockType::Q2_0 => {
            let d = magnitude(x);
            let id = reciprocal(d);
            put_half(out, 0, d);
            let codes: [u8; 64] =
                std::array::from_fn(|i| ((x[i] * id).round() as i32).saturating_add(1).clamp(0, 3) as u8);
            put_q2_0(&mut out[2..], &codes);
        }
        BlockType::Q2K => q2_k(x, importance.map(|(importance, _)| importance), out),
        BlockType::Q3K => q3_k(x, importance.map(|(importance, _)| importance), out),
        BlockType::Q4K => q4_k_or_q5_k::<4>(x, importance.map(|(importance, _)| importance), out),
        BlockType::Q5K => q4_k_or_q5_k::<5>(x, importance.map(|(importance, _)| importance), out),
        BlockType::Q6K => q6_k(x, importance.map(|(importance, _)| importance), out),
        BlockType::Iq4Nl => iq4_nl(x, importance.map(|(importance, _)| importance), out),
        BlockType::Iq4Xs => iq4_xs(x, importance.map(|(importance, _)| importance), out),
        BlockType::Tq1_0 => tq1_0(x, out),
        BlockType::Tq2_0 => {
            let d = magnitude(x);
            let id = reciprocal(d);
            put_half(out, 64, d);
            let codes: [u8; MOST] =
                std::array::from_fn(|i| ((x[i] * id).round() as i32).saturating_add(1).clamp(0, 2) as u8);
            put_quarters(Scalar, &mut out[..64], &codes);
        }
        BlockType::Mxfp4 => {
            let largest = magnitude(x);
            let e = if largest > 0.0 { (largest.log2().floor() - 2.0 + 127.0) as u8 } else { 0 };
            let d = e8m0_half(e);
            out[0] = e;
            let codes: [u8; 32] = std::array::from_fn(|i| nearest_e2m1(x[i], d));
            put_codes(Scalar, &mut out[1..], &codes, 4);
        }
        BlockType::Nvfp4 => {
            for run in 0..4 {
                let x = &x[16 * run..][..16];
                let scale = to_ue4m3(magnitude(x) / 6.0);
                let d = ue4m3(scale) * 0.5;
                out[run] = scale;
                for i in 0..8 {
                    out[4 + 8 * run + i] = nearest_e2m1(x[i], d) | nearest_e2m1(x[i + 8], d) << 4;
                }
            }
        }
    }
}

/// Writes codes of two bits, four that follow one another in a byte.
fn put_q2_0(out: &mut [u8], codes: &[u8; 64]) {
    for (out, codes) in out.iter_mut().zip(codes.chunks_exact(4)) {
        *out = codes.iter().rev().fold(0, |byte, code| byte << 2 | code);
    }
}

fn tq1_0(x: &[f32], out: &mut [u8]) {
    let d = magnitude(x);
    let id = reciprocal(d);
    put_half(out, 52, d);
    let mut at = 0;
    for (first, bytes, trits) in [(0, 32, 5), (32, 16, 5), (48, 4, 4)] {
        for byte in 0..bytes {
            let number = (0..trits).fold(0u16, |number, k| {
                number * 3 + ((x[at + k * bytes + byte] * id).round() as i32).saturating_add(1).clamp(0, 2) as u16
            });
            // Four trits are shifted up as if a fifth of 0 followed.
            let number = if trits == 4 { number * 3 } else { number };
            // The trits as digits after the point, in 256ths, rounded up: then multiplying gives them back.
            out[first + byte] = (number * 256).div_ceil(243) as u8;
        }
        at += bytes * trits;
    }
}

fn nearest_e2m1(x: f32, d: f32) -> u8 {
    let error = |code: usize| (f32::from(E2M1[code]) * d - x).abs();
    (1..16).fold(0, |best, code| if error(code) < error(best) { code } else { best }) as u8
}

/// The nearest scale of `nvfp4`: E4M3 without a sign, ties to even, at most 448.
pub(super) fn to_ue4m3(x: f32) -> u8 {
    if x <= 0.0 || x.is_nan() {
        return 0;
    }
    let x = x.min(448.0);
    if x < 2f32.powi(-6) {
        // Subnormal: multiples of 2⁻⁹.
        return (x * 512.0 + 0.5) as u8;
    }
    let bits = x.to_bits();
    let (exponent, mantissa) = ((bits >> 23) as i32 - 127, bits >> 20 & 7);
    let up = bits >> 19 & 1;
    let code = ((exponent + 7) << 3) as u32 + mantissa + up;
    code.min(0x7e) as u8
}

/// The code of the level nearest to x; halfway, the greater.
fn nearest_iq4(x: f32) -> u8 {
    let level = |code: usize| f32::from(IQ4_VALUES[code]);
    if x <= level(0) {
        return 0;
    }
    if x >= level(15) {
        return 15;
    }
    let above = (1..16).find(|&code| x < level(code)).unwrap_or(15);
    (if x - level(above - 1) < level(above) - x { above - 1 } else { above }) as u8
}

/// The scale of 32 weights whose codes are levels of the codebook: least squares from fifteen starts.
fn fit_iq4(x: &[f32], weights: &[f32]) -> f32 {
    let max = extreme(x);
    if max.abs() < NOTHING {
        return 0.0;
    }
    let sums = |id: f32| {
        x.iter().zip(weights).fold((0.0f32, 0.0f32), |(qx, qq), (&x, &w)| {
            let q = f32::from(IQ4_VALUES[usize::from(nearest_iq4(id * x))]);
            (qx + w * q * x, qq + w * q * q)
        })
    };
    let first = f32::from(IQ4_VALUES[0]);
    let (qx, qq) = sums(1.0 / (-max / first));
    let mut d = qx / qq;
    let mut best = d * qx;
    for attempt in -7..=7 {
        let (qx, qq) = sums((attempt as f32 + first) / max);
        if qq > 0.0 && qx * qx > best * qq {
            d = qx / qq;
            best = d * qx;
        }
    }
    d
}

/// The weights of errors in a block of a codebook: the squares where there is no importance.
fn iq4_weights(x: &[f32], importance: Option<&[f32]>, mean: f32) -> [f32; MOST] {
    match importance {
        Some(importance) => spread(importance, x, mean),
        None => {
            let mut weights = [0.0; MOST];
            for (weight, &x) in weights.iter_mut().zip(x) {
                *weight = x * x;
            }
            weights
        }
    }
}

fn twice_mean_square(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, &x| sum + x * x) * (2.0 / x.len() as f32)
}

fn iq4_nl(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let d = fit_iq4(x, &iq4_weights(x, importance, twice_mean_square(x)));
    put_half(out, 0, d);
    let id = reciprocal(d);
    let codes: [u8; 32] = std::array::from_fn(|i| nearest_iq4(id * x[i]));
    put_codes(Scalar, &mut out[2..], &codes, 4);
}

fn iq4_xs(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    out.fill(0);
    let mean = twice_mean_square(x);
    let weights = iq4_weights(x, importance, mean);
    let scales: [f32; 8] = std::array::from_fn(|k| fit_iq4(&x[32 * k..][..32], &weights[32 * k..][..32]));
    let d = -extreme(&scales) / 32.0;
    put_half(out, 0, d);
    let id = reciprocal(d);
    let mut stored = [0; 8];
    for (k, (stored, &scale)) in stored.iter_mut().zip(&scales).enumerate() {
        let step = (id * scale).round_ties_even().clamp(-32.0, 31.0);
        let inverse = reciprocal(d * step);
        let codes: [u8; 32] = std::array::from_fn(|i| nearest_iq4(inverse * x[32 * k + i]));
        put_codes(Scalar, &mut out[8 + 16 * k..][..16], &codes, 4);
        *stored = step as i8;
    }
    put_iq4_xs_scales(out, &stored);
}
