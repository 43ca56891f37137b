//! The kernels of feedback against arithmetic written out here, on every instruction set.

use super::panels::PANEL;
use super::*;
use crate::{Bits, BlockType, Dtype, Fill, GroupSize, Method, Scheme, Settings, dequantize, quantize, quantize_blocks};

/// Numbers of a fixed sequence, about normal.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        let mut uniform = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..6).map(|_| uniform() - 0.5).sum::<f32>() * 1.4
    }

    fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// The upper triangle of Σ x xᵀ over samples whose channels are correlated and differ in size.
fn triangle(size: usize, samples: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    let shared: Vec<f32> = numbers.many(size);
    let scale: Vec<f32> = (0..size).map(|channel| if channel % 13 == 5 { 8.0 } else { 0.5 }).collect();
    let mut sums = vec![0.0; size * (size + 1) / 2];
    for _ in 0..samples {
        let common = numbers.next();
        let x: Vec<f32> = (0..size).map(|k| scale[k] * (numbers.next() + 1.5 * common * shared[k])).collect();
        let mut at = 0;
        for row in 0..size {
            for column in row..size {
                sums[at] += x[row] * x[column];
                at += 1;
            }
        }
    }
    sums
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn settings(bits: Bits, group_size: i64, scheme: Scheme) -> Settings {
    Settings { bits, group_size: GroupSize::try_from(group_size).unwrap(), scheme, method: Method::Mse }
}

/// tr(E H Eᵀ) of rows, H being block diagonal.
fn output_error(blocks: &[MomentBlock<'_>], weights: &[f32], restored: &[f32]) -> f64 {
    let channels: usize = blocks.iter().map(|block| block.size).sum();
    let mut total = 0.0;
    for (w, r) in weights.chunks(channels).zip(restored.chunks(channels)) {
        let e: Vec<f64> = w.iter().zip(r).map(|(w, r)| f64::from(w - r)).collect();
        let mut start = 0;
        for block in blocks {
            for a in 0..block.size {
                for b in 0..block.size {
                    total += e[start + a] * e[start + b] * f64::from(block.at(a, b));
                }
            }
            start += block.size;
        }
    }
    total
}

/// R_kj of a block of a factor.
fn element(block: &BlockFactor, k: usize, j: usize) -> f32 {
    block.panel(j / PANEL)[k * PANEL + j % PANEL]
}

#[test]
fn factor_times_its_transpose_is_the_damped_moments() {
    for size in [1, 3, 16, 37, 100] {
        let triangle = triangle(size, 3 * size, 7);
        let block = MomentBlock { size, triangle: &triangle };
        let mean: f64 = block.diagonal().map(f64::from).sum::<f64>() / size as f64;
        let first = Factor::new(Isa::scalar(), &[block], 0.01).unwrap();
        for isa in Isa::available() {
            assert_eq!(Factor::new(isa, &[block], 0.01).unwrap(), first, "{isa:?}");
        }
        let factor = &first.blocks()[0];
        let order = factor.order();
        let damped = |a: usize, b: usize| {
            let moment = f64::from(block.at(order[a] as usize, order[b] as usize));
            moment + if a == b { 0.01 * mean } else { 0.0 }
        };
        assert!(order.windows(2).all(|pair| damped(pair[0] as usize, 0).is_finite() && pair[0] != pair[1]));
        // D follows from R: from the last place on, d_j is what the later ones leave of H_jj.
        let r = |k: usize, j: usize| if k == j { 1.0 } else { f64::from(element(factor, k, j)) };
        let mut d = vec![0.0; size];
        for j in (0..size).rev() {
            d[j] = damped(j, j) - (j + 1..size).map(|l| r(j, l) * r(j, l) * d[l]).sum::<f64>();
            assert!(d[j] > 0.0);
        }
        for a in 0..size {
            for b in a..size {
                let product: f64 = (b..size).map(|l| r(a, l) * d[l] * r(b, l)).sum();
                let tolerance = 1e-4 * (damped(a, a) * damped(b, b)).sqrt();
                assert!((product - damped(a, b)).abs() < tolerance, "{size}: {a} {b}");
            }
        }
    }
}

/// Codes of one row, as the module's documentation specifies them.
fn specified(factor: &Factor, weights: &[f32], [scale, base]: [&[f32]; 2], run: usize, top: f32) -> Vec<u8> {
    let mut codes = vec![0; weights.len()];
    for block in factor.blocks() {
        let mut errors: Vec<f32> = Vec::new();
        for (j, &channel) in block.order().iter().enumerate() {
            let channel = block.start() + channel as usize;
            let mut v = weights[channel];
            for (k, &error) in errors.iter().enumerate() {
                v = element(block, k, j).mul_add(error, v);
            }
            let (scale, base) = (scale[channel / run], base[channel / run]);
            let slope = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let code = v.mul_add(slope, 0.0 - base * slope).clamp(0.0, top).round_ties_even();
            codes[channel] = code as u8;
            errors.push(weights[channel] - code.mul_add(scale, base));
        }
    }
    codes
}

fn two_blocks() -> (Vec<f32>, Vec<f32>) {
    (triangle(40, 300, 3), triangle(37, 300, 4))
}

#[test]
fn groups_get_the_codes_specified_and_lose_less_output() {
    let (first, second) = two_blocks();
    let blocks = [MomentBlock { size: 40, triangle: &first }, MomentBlock { size: 37, triangle: &second }];
    let factor = Factor::new(Isa::scalar(), &blocks, 0.01).unwrap();
    let importance: Vec<f32> = blocks.iter().flat_map(|block| block.diagonal().collect::<Vec<_>>()).collect();
    let rows = 21;
    let values = Numbers(11).many(77 * rows);
    let stored = bytes(&values);
    let weights = Weights::new(Dtype::F32, &stored, 77).unwrap();
    for &bits in Bits::ALL {
        for &scheme in Scheme::ALL {
            let plain = quantize(Isa::scalar(), weights, settings(bits, 16, scheme), Some(&importance)).unwrap();
            let mut grids = Grids::new(77, 16);
            grids.add_groups(&plain);
            let mut found = None;
            for isa in Isa::available() {
                let mut fed = plain.clone();
                feed_back(isa, &factor, &mut [(weights, &mut fed)], || true).unwrap();
                assert_eq!(
                    (&fed.scales, &fed.minima, &fed.zero_points),
                    (&plain.scales, &plain.minima, &plain.zero_points)
                );
                assert_eq!(found.get_or_insert(fed.clone()), &fed, "{isa:?} {bits} {scheme}");
            }
            let fed = found.unwrap();
            let codes: Vec<u8> = (0..77 * rows).map(|i| bits.code(&fed.codes, i)).collect();
            for (row, codes) in codes.chunks(77).enumerate() {
                let (scale, base): (Vec<f32>, Vec<f32>) =
                    (0..5).map(|k| grids.at(&[row; LANES], k)).map(|(scale, base)| (scale[0], base[0])).unzip();
                let of_row = &values[77 * row..][..77];
                let expected = specified(&factor, of_row, [&scale, &base], 16, bits.max_code().into());
                assert_eq!(codes, expected, "{bits} {scheme} row {row}");
            }
            let restored = dequantize(Isa::scalar(), &fed.as_ref()).unwrap();
            let lost = output_error(&blocks, &values, &restored);
            let before = output_error(&blocks, &values, &dequantize(Isa::scalar(), &plain.as_ref()).unwrap());
            assert!(lost < 0.8 * before, "{bits} {scheme}: {lost} after, {before} before");
            let error: f64 = values.iter().zip(&restored).map(|(w, r)| f64::from(w - r).powi(2)).sum();
            assert!((fed.errors.sum_ee / error - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn blocks_of_every_type_lose_less_output() {
    let triangle = triangle(256, 700, 5);
    // As where rows that are too short for a block were laid end to end: the same moments twice.
    let blocks = [MomentBlock { size: 256, triangle: &triangle }; 2];
    let factor = Factor::new(Isa::scalar(), &blocks, 0.01).unwrap();
    let importance: Vec<f32> = blocks.iter().flat_map(|block| block.diagonal().collect::<Vec<_>>()).collect();
    let values = Numbers(12).many(512 * 5);
    let stored = bytes(&values);
    let weights = Weights::new(Dtype::F32, &stored, 512).unwrap();
    for &block_type in BlockType::FILLED {
        let plain = quantize_blocks(Isa::scalar(), weights, block_type, Fill::Mse, Some(&importance)).unwrap();
        let restored =
            |blocks: &Blocks| crate::to_f32(Isa::scalar(), Weights::blocks(block_type, &blocks.bytes, 512).unwrap());
        let mut found = None;
        for isa in Isa::available() {
            let mut fed = plain.clone();
            feed_back_blocks(isa, &factor, &mut [(weights, &mut fed)], || true).unwrap();
            assert_eq!(found.get_or_insert(fed.clone()), &fed, "{isa:?} {block_type}");
        }
        let fed = found.unwrap();
        let (lost, before) =
            (output_error(&blocks, &values, &restored(&fed)), output_error(&blocks, &values, &restored(&plain)));
        assert!(lost < 0.85 * before, "{block_type}: {lost} after, {before} before");
    }
}

/// With moments that are a diagonal there is nothing to make up for, and codes stay.
#[test]
fn uncorrelated_channels_keep_their_codes() {
    let size = 256;
    let mut triangle = Vec::new();
    for row in 0..size {
        triangle.push(1.0 + row as f32);
        triangle.extend(vec![0.0; size - row - 1]);
    }
    let block = MomentBlock { size, triangle: &triangle };
    let factor = Factor::new(Isa::scalar(), &[block], 0.01).unwrap();
    let stored = bytes(&Numbers(13).many(size * 3));
    let weights = Weights::new(Dtype::F32, &stored, size).unwrap();
    let isa = Isa::active().unwrap();
    for &scheme in Scheme::ALL {
        let plain = quantize(isa, weights, settings(Bits::Four, 32, scheme), None).unwrap();
        let mut fed = plain.clone();
        feed_back(isa, &factor, &mut [(weights, &mut fed)], || true).unwrap();
        assert_eq!(fed.codes, plain.codes, "{scheme}");
    }
    for &block_type in BlockType::FILLED {
        let plain = quantize_blocks(isa, weights, block_type, Fill::Mse, None).unwrap();
        let mut fed = plain.clone();
        feed_back_blocks(isa, &factor, &mut [(weights, &mut fed)], || true).unwrap();
        assert_eq!(fed.bytes, plain.bytes, "{block_type}");
    }
}

#[test]
fn rows_do_not_depend_on_how_they_are_cut() {
    let (first, second) = two_blocks();
    let blocks = [MomentBlock { size: 40, triangle: &first }, MomentBlock { size: 37, triangle: &second }];
    let isa = Isa::active().unwrap();
    let factor = Factor::new(isa, &blocks, 0.01).unwrap();
    let stored = bytes(&Numbers(14).many(77 * 40));
    let whole = Weights::new(Dtype::F32, &stored, 77).unwrap();
    let run = settings(Bits::Three, 32, Scheme::Affine);
    let mut together = quantize(isa, whole, run, None).unwrap();
    feed_back(isa, &factor, &mut [(whole, &mut together)], || true).unwrap();
    let parts = [whole.part(0, 77 * 8).unwrap(), whole.part(77 * 8, 77 * 32).unwrap()];
    let mut apart = parts.map(|part| quantize(isa, part, run, None).unwrap());
    let mut pieces: Vec<_> = parts.into_iter().zip(&mut apart).collect();
    feed_back(isa, &factor, &mut pieces, || true).unwrap();
    assert_eq!([apart[0].codes.clone(), apart[1].codes.clone()].concat(), together.codes);
}

#[test]
fn extreme_weights_stay_the_same_on_every_instruction_set() {
    let (first, second) = two_blocks();
    let blocks = [MomentBlock { size: 40, triangle: &first }, MomentBlock { size: 37, triangle: &second }];
    let factor = Factor::new(Isa::scalar(), &blocks, 0.01).unwrap();
    for magnitude in [0.0, 1e-42, 1e-20, 1e20, 4e37] {
        let values: Vec<f32> = Numbers(15).many(77 * 3).iter().map(|x| x.clamp(-1.0, 1.0) * magnitude).collect();
        let stored = bytes(&values);
        let weights = Weights::new(Dtype::F32, &stored, 77).unwrap();
        let plain = quantize(Isa::scalar(), weights, settings(Bits::Two, 64, Scheme::Affine), None).unwrap();
        let mut found = None;
        for isa in Isa::available() {
            let mut fed = plain.clone();
            feed_back(isa, &factor, &mut [(weights, &mut fed)], || true).unwrap();
            assert_eq!(found.get_or_insert(fed.clone()), &fed, "{isa:?} {magnitude}");
        }
    }
}

#[test]
fn moments_that_cannot_be_factored_are_refused() {
    let isa = Isa::active().unwrap();
    let message = |size, triangle: &[f32], damping| {
        Factor::new(isa, &[MomentBlock { size, triangle }], damping).unwrap_err().to_string()
    };
    assert_eq!(message(2, &[1.0, 0.5], 0.01), "second moments of a block, an upper triangle: found 2, expected 3");
    let not_finite = "the second moments of channel 1 are not finite, or negative on the diagonal";
    assert_eq!(message(2, &[1.0, 0.5, f32::NAN], 0.01), not_finite);
    assert_eq!(message(2, &[1.0, 0.5, -1.0], 0.01), not_finite);
    assert_eq!(message(2, &[0.0; 3], 0.01), "the second moments of channel 0 are zero, and so are those of all others");
    let indefinite = message(2, &[1.0, 2.0, 1.0], 0.01);
    assert_eq!(indefinite, "the second moments of channel 0 are not positive definite, or nearly so");
    assert!(Factor::new(isa, &[MomentBlock { size: 2, triangle: &[1.0, 2.0, 1.0] }], 1.5).is_ok());
    // Of rank one, so that only damping makes it definite.
    assert!(Factor::new(isa, &[MomentBlock { size: 2, triangle: &[1.0, 1.0, 1.0] }], 0.01).is_ok());
}

#[test]
fn blocks_without_channels_change_nothing() {
    let triangle = triangle(40, 80, 3);
    let isa = Isa::active().unwrap();
    let (empty, block) = (MomentBlock { size: 0, triangle: &[] }, MomentBlock { size: 40, triangle: &triangle });
    let stored = bytes(&Numbers(16).many(80));
    let weights = Weights::new(Dtype::F32, &stored, 40).unwrap();
    let plain = quantize(isa, weights, settings(Bits::Four, 32, Scheme::Affine), None).unwrap();
    let fed = |blocks: &[MomentBlock<'_>]| {
        let mut fed = plain.clone();
        feed_back(isa, &Factor::new(isa, blocks, 0.01).unwrap(), &mut [(weights, &mut fed)], || true).unwrap();
        fed
    };
    assert_eq!(fed(&[empty, block, empty]), fed(&[block]));
}

#[test]
fn pieces_that_do_not_fit_are_refused() {
    let triangle = triangle(40, 80, 3);
    let isa = Isa::active().unwrap();
    let factor = Factor::new(isa, &[MomentBlock { size: 40, triangle: &triangle }], 0.01).unwrap();
    let stored = bytes(&Numbers(16).many(64));
    let weights = Weights::new(Dtype::F32, &stored, 32).unwrap();
    let mut plain = quantize(isa, weights, settings(Bits::Four, 32, Scheme::Affine), None).unwrap();
    let error = feed_back(isa, &factor, &mut [(weights, &mut plain)], || true).unwrap_err();
    let expected = "channels of second moments, one for each weight of a row: found 40, expected 32";
    assert_eq!(error.to_string(), expected);
    let stored = bytes(&Numbers(16).many(80));
    let weights = Weights::new(Dtype::F32, &stored, 40).unwrap();
    let mut plain = quantize(isa, weights, settings(Bits::Four, 32, Scheme::Affine), None).unwrap();
    assert_eq!(feed_back(isa, &factor, &mut [(weights, &mut plain)], || false), Err(KernelError::Cancelled));
}
