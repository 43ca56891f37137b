//! The blocks of 256 weights as ggml's own quantizers fill them, and the searches that they share with the smaller types.

use half::f16;

use super::layout::{pack_k_scales, pack_q3_k_scales, put_half, put_q3_k, put_q4_k_or_q5_k, put_q6_k, put_quarters};
use super::reference_parts::{NOTHING, extreme, reciprocal, spread};
use super::{MOST, k_scale_min, q3_k_scales};
use crate::simd::scalar::Scalar;

/// Rounds as ggml's `nearest_int`: ties to even.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

fn as_stored(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, &x| sum + x * x)
}

fn sum(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, &x| sum + x)
}

/// The grids that [`fit_affine`] tries: `top + first`, and so on in steps, levels over the range.
pub(super) struct Grid {
    /// The greatest code.
    pub top: i32,
    pub first: f32,
    pub step: f32,
    pub steps: i32,
    /// Whether errors count by their magnitude, not by their square.
    pub absolute: bool,
}

/// ggml's `make_qkx2_quants` and `make_qkx3_quants`: scale and negated minimum, which is not negative, of levels
/// `scale · code + minimum`.
pub(super) fn fit_affine(x: &[f32], weights: &[f32], grid: &Grid, codes: &mut [u8]) -> (f32, f32) {
    let codes = &mut codes[..x.len()];
    let low = x.iter().fold(x[0], |low, &x| if x < low { x } else { low });
    let high = x.iter().fold(x[0], |high, &x| if x > high { x } else { high });
    let mut min = if low > 0.0 { 0.0 } else { low };
    if high <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let sum_w = sum(weights);
    let sum_x = weights.iter().zip(x).fold(0.0, |sum, (&w, &x)| sum + w * x);
    let top = grid.top as f32;
    let code = |iscale: f32, min: f32, x: f32| nearest(iscale * (x - min)).clamp(0, grid.top) as u8;
    let error = |scale: f32, min: f32, codes: &[u8]| {
        let each = codes.iter().zip(x).zip(weights);
        each.fold(0.0, |sum, ((&code, &x), &w)| {
            let off = scale * f32::from(code) + min - x;
            sum + w * if grid.absolute { off.abs() } else { off * off }
        })
    };
    let iscale = top / (high - min);
    let mut scale = 1.0 / iscale;
    for (out, &x) in codes.iter_mut().zip(x) {
        *out = code(iscale, min, x);
    }
    let mut best = error(scale, min, codes);
    let mut tried = [0; MOST];
    let tried = &mut tried[..x.len()];
    for step in 0..=grid.steps {
        let iscale = (grid.first + grid.step * step as f32 + top) / (high - min);
        let (mut l, mut ll, mut xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((out, &x), &w) in tried.iter_mut().zip(x).zip(weights) {
            *out = code(iscale, min, x);
            let code = f32::from(*out);
            l += w * code;
            ll += w * code * code;
            xl += w * code * x;
        }
        let determinant = sum_w * ll - l * l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * xl - sum_x * l) / determinant;
            let mut this_min = (ll * sum_x - l * xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = xl / ll;
            }
            let this = error(this_scale, this_min, tried);
            if this < best {
                codes.copy_from_slice(tried);
                (best, scale, min) = (this, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// ggml's `make_qx_quants`: the scale of levels from `-half` to `half - 1`; codes have `half` added. Without weights, errors
/// count by the square of what they are errors of.
pub(super) fn fit_scale(x: &[f32], half: i32, weights: Option<&[f32]>, codes: &mut [u8]) -> f32 {
    let codes = &mut codes[..x.len()];
    let max = extreme(x);
    if max.abs() < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let level = |iscale: f32, x: f32| nearest(iscale * x).clamp(-half, half - 1);
    let sums = |iscale: f32| {
        x.iter().enumerate().fold((0.0f32, 0.0f32), |(lx, ll), (i, &x)| {
            let (level, w) = (level(iscale, x) as f32, weights.map_or(x * x, |weights| weights[i]));
            (lx + w * x * level, ll + w * level * level)
        })
    };
    let mut taken = -(half as f32) / max;
    let (lx, ll) = sums(taken);
    let mut scale = if ll == 0.0 { 0.0 } else { lx / ll };
    let mut best = scale * lx;
    for step in (-9..=9).filter(|&step| step != 0) {
        let iscale = -(half as f32 + 0.1 * step as f32) / max;
        let (lx, ll) = sums(iscale);
        if ll > 0.0 && lx * lx > best * ll {
            taken = iscale;
            scale = lx / ll;
            best = scale * lx;
        }
    }
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = (level(taken, x) + half) as u8;
    }
    scale
}

/// ggml's `make_qp_quants`: the scale of levels from 0 to `top` for numbers that are not negative.
fn fit_positive(x: &[f32], top: i32, weights: &[f32], codes: &mut [u8]) -> f32 {
    let max = x.iter().fold(0.0f32, |max, &x| if x > max { x } else { max });
    if max < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let error = |iscale: f32, bounded: bool| {
        let scale = 1.0 / iscale;
        x.iter().zip(weights).fold(0.0, |sum, (&x, &w)| {
            let level = nearest(iscale * x);
            let off = x - scale * (if bounded { level.min(top) } else { level }) as f32;
            sum + w * off * off
        })
    };
    let mut iscale = top as f32 / max;
    let mut best = error(iscale, false);
    for step in (-4..=4).filter(|&step| step != 0) {
        let this = (0.1 * step as f32 + top as f32) / max;
        let error = error(this, true);
        if error < best {
            (best, iscale) = (error, this);
        }
    }
    let (mut lx, mut ll) = (0.0f32, 0.0f32);
    for ((code, &x), &w) in codes.iter_mut().zip(x).zip(weights) {
        let level = nearest(iscale * x).min(top);
        *code = level as u8;
        lx += w * x * level as f32;
        ll += w * level as f32 * level as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((code, &x), &w) in codes.iter_mut().zip(x).zip(weights) {
            let old = f32::from(*code);
            let (mut this_lx, mut this_ll) = (lx - w * x * old, ll - w * old * old);
            if this_lx > 0.0 && this_ll > 0.0 {
                let new = nearest(x * this_ll / this_lx).min(top);
                if new != i32::from(*code) {
                    this_lx += w * x * new as f32;
                    this_ll += w * new as f32 * new as f32;
                    if this_lx * this_lx * ll > lx * lx * this_ll {
                        *code = new as u8;
                        (lx, ll) = (this_lx, this_ll);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if ll > 0.0 { lx / ll } else { 0.0 }
}

/// Scales and minima in steps of one scale each, as the types without an importance do it.
fn round_positive(values: &[f32], top: f32, codes: &mut [u8]) -> f32 {
    let max = values.iter().fold(0.0f32, |max, &x| if x > max { x } else { max });
    let inverse = if max > 0.0 { top / max } else { 0.0 };
    for (code, &x) in codes.iter_mut().zip(values) {
        *code = nearest(inverse * x).min(top as i32) as u8;
    }
    max / top
}

pub(super) fn q4_k_or_q5_k<const BITS: usize>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let top = (1 << BITS) - 1;
    let (mut scales, mut minima, mut sums, mut codes) = ([0.0; 8], [0.0; 8], [0.0; 8], [0; MOST]);
    let block_mean = 2.0 * sum_of_squares(x) / MOST as f32;
    for j in 0..8 {
        let run = &x[32 * j..][..32];
        let (weights, grid) = match importance {
            Some(importance) => (
                spread(&importance[32 * j..][..32], run, block_mean),
                Grid { top, first: -0.9, step: 0.05, steps: 36, absolute: false },
            ),
            None => {
                let average = (sum_of_squares(run) / 32.0).sqrt();
                let mut weights = [0.0; MOST];
                for (weight, &x) in weights.iter_mut().zip(run) {
                    *weight = average + x.abs();
                }
                let (first, steps) = if BITS == 4 { (-1.0, 20) } else { (-0.5, 15) };
                (weights, Grid { top, first, step: 0.1, steps, absolute: false })
            }
        };
        sums[j] = sum(&weights[..32]);
        (scales[j], minima[j]) = fit_affine(run, &weights[..32], &grid, &mut codes[32 * j..][..32]);
    }
    let (mut scale_codes, mut min_codes) = ([0; 8], [0; 8]);
    let [d, dmin] = [(&scales, &mut scale_codes), (&minima, &mut min_codes)].map(|(values, codes)| match importance {
        Some(_) => fit_positive(values, 63, &sums, codes),
        None => round_positive(values, 63.0, codes),
    });
    put_half(out, 0, d);
    put_half(out, 2, dmin);
    out[4..16].copy_from_slice(&pack_k_scales(&scale_codes, &min_codes));
    let (d, dmin) = (as_stored(d), as_stored(dmin));
    for j in 0..8 {
        let (scale, min) = k_scale_min(&out[4..16], j);
        let scale = d * f32::from(scale);
        if scale == 0.0 {
            continue;
        }
        let min = dmin * f32::from(min);
        for (code, &x) in codes[32 * j..].iter_mut().zip(&x[32 * j..][..32]) {
            *code = nearest((x + min) / scale).clamp(0, top) as u8;
        }
    }
    put_q4_k_or_q5_k::<Scalar, BITS>(Scalar, out, &codes);
}

pub(super) fn q2_k(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let (mut scales, mut minima, mut sums, mut codes) = ([0.0; 16], [0.0; 16], [0.0; 16], [0u8; MOST]);
    let block_mean = sum_of_squares(x) / MOST as f32;
    for j in 0..16 {
        let run = &x[16 * j..][..16];
        let (weights, grid) = match importance {
            Some(importance) => (
                spread(&importance[16 * j..][..16], run, block_mean),
                Grid { top: 3, first: -0.9, step: 0.05, steps: 36, absolute: false },
            ),
            None => {
                let mut weights = [0.0; MOST];
                for (weight, &x) in weights.iter_mut().zip(run) {
                    *weight = x.abs();
                }
                (weights, Grid { top: 3, first: -0.5, step: 0.1, steps: 15, absolute: true })
            }
        };
        sums[j] = sum(&weights[..16]);
        (scales[j], minima[j]) = fit_affine(run, &weights[..16], &grid, &mut codes[16 * j..][..16]);
    }
    let (mut scale_codes, mut min_codes) = ([0; 16], [0; 16]);
    let [d, dmin] = [(&scales, &mut scale_codes), (&minima, &mut min_codes)].map(|(values, codes)| match importance {
        Some(_) => fit_positive(values, 15, &sums, codes),
        None => round_positive(values, 15.0, codes),
    });
    put_half(out, 80, d);
    put_half(out, 82, dmin);
    let (d, dmin) = (as_stored(d), as_stored(dmin));
    for j in 0..16 {
        out[j] = scale_codes[j] | min_codes[j] << 4;
        let scale = d * f32::from(scale_codes[j]);
        if scale == 0.0 {
            continue;
        }
        let min = dmin * f32::from(min_codes[j]);
        for (code, &x) in codes[16 * j..].iter_mut().zip(&x[16 * j..][..16]) {
            *code = nearest((x + min) / scale).clamp(0, 3) as u8;
        }
    }
    put_quarters(Scalar, &mut out[16..80], &codes);
}

/// The scale of sixteen weights of `q3_k` without an importance: codes are moved one by one while that helps.
fn fit_scale_by_moves(x: &[f32], codes: &mut [u8]) -> f32 {
    const HALF: i32 = 4;
    let max = extreme(x);
    if max.abs() < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let iscale = -(HALF as f32) / max;
    let mut levels = [0i32; 16];
    let (mut lx, mut ll) = (0.0f32, 0.0f32);
    for (level, &x) in levels.iter_mut().zip(x) {
        *level = nearest(iscale * x).clamp(-HALF, HALF - 1);
        let (l, w) = (*level as f32, x * x);
        lx += w * x * l;
        ll += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (level, &x) in levels.iter_mut().zip(x) {
            let (l, w) = (*level as f32, x * x);
            let mut this_lx = lx - w * x * l;
            if this_lx > 0.0 {
                let mut this_ll = ll - w * l * l;
                let new = nearest(x * this_ll / this_lx).clamp(-HALF, HALF - 1);
                if new != *level {
                    let l = new as f32;
                    this_lx += w * x * l;
                    this_ll += w * l * l;
                    if this_ll > 0.0 && this_lx * this_lx * ll > lx * lx * this_ll {
                        *level = new;
                        (lx, ll) = (this_lx, this_ll);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    for (code, level) in codes.iter_mut().zip(levels) {
        *code = (level + HALF) as u8;
    }
    if ll > 0.0 { lx / ll } else { 0.0 }
}

pub(super) fn q3_k(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let (mut scales, mut sums, mut codes) = ([0.0; 16], [0.0; 16], [0u8; MOST]);
    let block_mean = 2.0 * sum_of_squares(x) / MOST as f32;
    for j in 0..16 {
        let (run, codes) = (&x[16 * j..][..16], &mut codes[16 * j..][..16]);
        scales[j] = match importance {
            Some(importance) => {
                let weights = spread(&importance[16 * j..][..16], run, block_mean);
                sums[j] = sum(&weights[..16]);
                fit_scale(run, 4, Some(&weights[..16]), codes)
            }
            None => fit_scale_by_moves(run, codes),
        };
    }
    let mut scale_codes = [0; 16];
    let d = match importance {
        Some(_) => fit_scale(&scales, 32, Some(&sums), &mut scale_codes),
        None => {
            let max = extreme(&scales);
            let iscale = if max == 0.0 { 0.0 } else { -32.0 / max };
            for (code, &scale) in scale_codes.iter_mut().zip(&scales) {
                *code = (nearest(iscale * scale).clamp(-32, 31) + 32) as u8;
            }
            reciprocal(iscale)
        }
    };
    out[96..108].copy_from_slice(&if d == 0.0 && importance.is_none() {
        [0; 12]
    } else {
        pack_q3_k_scales(&scale_codes)
    });
    put_half(out, 108, d);
    let (d, stored) = (as_stored(d), q3_k_scales(&out[96..108]));
    for j in 0..16 {
        let scale = d * f32::from(stored[j]);
        if scale == 0.0 {
            continue;
        }
        for (code, &x) in codes[16 * j..].iter_mut().zip(&x[16 * j..][..16]) {
            *code = (nearest(x / scale).clamp(-4, 3) + 4) as u8;
        }
    }
    put_q3_k(Scalar, out, &codes);
}

pub(super) fn q6_k(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let (mut scales, mut codes) = ([0.0; 16], [0u8; MOST]);
    for j in 0..16 {
        let weights = importance.map(|importance| &importance[16 * j..][..16]);
        scales[j] = fit_scale(&x[16 * j..][..16], 32, weights, &mut codes[16 * j..][..16]);
    }
    out.fill(0);
    let max = extreme(&scales);
    if max.abs() < NOTHING {
        return;
    }
    let iscale = -128.0 / max;
    put_half(out, 208, 1.0 / iscale);
    let d = as_stored(1.0 / iscale);
    for j in 0..16 {
        let stored = nearest(iscale * scales[j]).min(127);
        out[192 + j] = stored as i8 as u8;
        let scale = d * stored as f32;
        if scale == 0.0 {
            continue;
        }
        for (code, &x) in codes[16 * j..].iter_mut().zip(&x[16 * j..][..16]) {
            *code = (nearest(x / scale).clamp(-32, 31) + 32) as u8;
        }
    }
    put_q6_k(Scalar, out, &codes);
}
