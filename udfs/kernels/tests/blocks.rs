//! ggml's blocks: the bytes that ggml makes, and the weights that it restores.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::cell::Cell;

use arrow_quant_kernels::{
    BlockType, Dtype, Fill, Isa, KernelError, Weights, quantize_blocks, quantize_blocks_while, to_f32, to_f32_while,
};
use sha2::{Digest, Sha256};

/// 64 rows of 1024 nearly Gaussian weights, which integer arithmetic defines.
fn golden_input() -> Vec<u8> {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as i32
    };
    let weights = (0..64 * 1024).map(|_| ((next() + next() + next() + next()) - (1 << 25)) as f32 * 2f32.powi(-25));
    weights.flat_map(f32::to_le_bytes).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What ggml 0.25.1 and 0.26.0 make of the golden input on x86-64: plain, with the importance 1 + column mod 7, and decoded.
const GOLDEN: &[(&str, &str, &str, &str)] = &[
    ("q4_0", "221229de41e5e65b", "8062d7e409c0b033", "f45e99d73a6e59de"),
    ("q4_1", "71b802bc4559b4b3", "dc0116e2cea5b0cf", "3e87c7443938b87c"),
    ("q5_0", "42e5eec3ed50f8fc", "f0edb699c0d54f69", "b3cf5bdbdbd47875"),
    ("q5_1", "c576e8f13600480a", "612bba6e6f720a6f", "b142a486a65f4e7d"),
    ("q8_0", "036357173e15aa49", "036357173e15aa49", "f3d18a0689fa266b"),
    ("q2_k", "1f978df532051c07", "a1022c388778b0da", "5dfeb92afb3a48de"),
    ("q3_k", "286be0f02ad96005", "50a26c6e3029d417", "c56515e0d3dfb5b9"),
    ("q4_k", "0be9b0d48e20d29f", "f7caeec49587c516", "47bd3e0275efe768"),
    ("q5_k", "57d7cd089bc50c9e", "55fa1d5df23eb154", "1883efd232cb41eb"),
    ("q6_k", "c3c52e7959dcb5a0", "ef28636c81d6fe90", "cd46167180e152d8"),
    ("iq4_nl", "0bf0a9b3e6cfdf6a", "cc0fe1d8135a14e6", "54a19a3b5e0767a0"),
    ("iq4_xs", "38922ca6b01fc2d1", "8d71d7af4445ab78", "b34f71ea30b89b70"),
    ("tq1_0", "47ea564b7bc612c2", "47ea564b7bc612c2", "7f54b3527306ea18"),
    ("tq2_0", "702ef8d8d5e9cf50", "702ef8d8d5e9cf50", "7f54b3527306ea18"),
    ("mxfp4", "dea6a9d839037c2f", "dea6a9d839037c2f", "fff5c2de5e3563d7"),
    ("nvfp4", "4d199033c7b68a26", "4d199033c7b68a26", "64737af1905cd1d9"),
    ("q2_0", "0fd52dc2f1495674", "0fd52dc2f1495674", "131eaff67321aac5"),
];

#[test]
fn reference_blocks_are_those_of_ggml() {
    let input = golden_input();
    assert_eq!(digest(&input), "7b8bd05818d70784");
    let weights = Weights::new(Dtype::F32, &input, 1024).unwrap();
    let importance: Vec<f32> = (0..1024).map(|column| (1 + column % 7) as f32).collect();
    assert_eq!(GOLDEN.len(), BlockType::ALL.len());
    for isa in Isa::available() {
        let mut wrong = Vec::new();
        for &(name, plain, weighted, decoded) in GOLDEN {
            let block_type: BlockType = name.parse().unwrap();
            let blocks = quantize_blocks(isa, weights, block_type, Fill::Reference, None).unwrap();
            let with = quantize_blocks(isa, weights, block_type, Fill::Reference, Some(&importance)).unwrap();
            let restored = to_f32(isa, Weights::blocks(block_type, &blocks.bytes, 1024).unwrap());
            let restored: Vec<u8> = restored.into_iter().flat_map(f32::to_le_bytes).collect();
            for (what, found, expected) in [
                ("plain", digest(&blocks.bytes), plain),
                ("weighted", digest(&with.bytes), weighted),
                ("decoded", digest(&restored), decoded),
            ] {
                if found != expected {
                    wrong.push(format!("{name} {what}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{isa:?}: {wrong:?}");
    }
}

/// Gaussian or Laplace weights, from a fixed seed.
fn random(n: usize, laplace: bool) -> Vec<u8> {
    let mut state = 7u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let weights = (0..n).map(|_| {
        let (a, b) = (uniform(), uniform());
        if laplace {
            a.ln() * if b < 0.5 { -1.0 } else { 1.0 }
        } else {
            (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
        }
    });
    weights.flat_map(|w| (w as f32).to_le_bytes()).collect()
}

/// What the search gains over ggml's own fill, and over that with an importance of one everywhere, in dB, at least.
const GAINS: &[(&str, f64, f64)] = &[
    ("q4_0", 0.35, 0.0),
    ("q4_1", 0.5, -0.05),
    ("q5_0", 0.3, 0.0),
    ("q5_1", 0.5, -0.05),
    ("q8_0", 0.15, 0.15),
    ("q2_k", 0.9, 0.1),
    ("q3_k", 0.3, 0.0),
    ("q4_k", 0.02, -0.02),
    ("q5_k", 0.1, -0.02),
    ("q6_k", 0.2, 0.02),
    ("iq4_nl", 0.15, 0.02),
    ("iq4_xs", 0.15, 0.02),
    ("mxfp4", 0.2, 0.2),
    ("nvfp4", 1.0, 1.0),
];

#[test]
fn the_search_fills_blocks_better_than_ggml() {
    let isa = Isa::available()[0];
    let ones = vec![1.0; 1024];
    let mut worse = Vec::new();
    for laplace in [false, true] {
        let bytes = random(1 << 18, laplace);
        let weights = Weights::new(Dtype::F32, &bytes, 1024).unwrap();
        for &(name, over_plain, over_ones) in GAINS {
            let block_type = name.parse().unwrap();
            let sqnr = |fill, importance| {
                quantize_blocks(isa, weights, block_type, fill, importance).unwrap().errors.sqnr_db()
            };
            let plain = sqnr(Fill::Reference, None);
            let reference = sqnr(Fill::Reference, Some(&ones[..]));
            let found = sqnr(Fill::Mse, None);
            println!("{name} laplace {laplace}: plain {plain:.2} ones {reference:.2} search {found:.2}");
            let floor = match (name, laplace) {
                ("mxfp4", false) => 19.0,
                ("nvfp4", _) => 21.65,
                _ => 0.0,
            };
            if found < (plain + over_plain).max(reference + over_ones).max(floor) {
                worse.push(format!("{name}, Laplace {laplace}: {found:.2} dB after {plain:.2} and {reference:.2}"));
            }
        }
    }
    assert!(worse.is_empty(), "{worse:?}");
}

/// Squared errors times the importance, over squared weights times the importance.
fn weighted_error(isa: Isa, block_type: BlockType, bytes: &[u8], x: &[u8], importance: &[f32]) -> f64 {
    let restored = to_f32(isa, Weights::blocks(block_type, bytes, importance.len()).unwrap());
    let x = to_f32(isa, Weights::new(Dtype::F32, x, importance.len()).unwrap());
    let (mut noise, mut signal) = (0.0, 0.0);
    for (i, (&x, &y)) in x.iter().zip(&restored).enumerate() {
        let (x, y, w) = (f64::from(x), f64::from(y), f64::from(importance[i % importance.len()]));
        noise += w * (x - y) * (x - y);
        signal += w * x * x;
    }
    noise / signal
}

#[test]
fn importance_lessens_the_errors_that_it_weights() {
    let isa = Isa::available()[0];
    let bytes = random(1 << 17, false);
    let weights = Weights::new(Dtype::F32, &bytes, 1024).unwrap();
    let spread = to_f32(isa, Weights::one_row(Dtype::F32, &random(1024, false)).unwrap());
    let importance: Vec<f32> = spread.iter().map(|x| x.exp()).collect();
    for &(name, ..) in GAINS {
        let block_type = name.parse().unwrap();
        let error = |fill, given| {
            let made = quantize_blocks(isa, weights, block_type, fill, given).unwrap();
            weighted_error(isa, block_type, &made.bytes, &bytes, &importance)
        };
        let (with, without) = (error(Fill::Mse, Some(&importance[..])), error(Fill::Mse, None));
        let reference = error(Fill::Reference, Some(&importance[..]));
        assert!(with < without, "{name}: {with:e} is not below {without:e}");
        assert!(with < 1.06 * reference, "{name}: {with:e} after ggml's {reference:e}");
    }
}

/// Weights that are hard on scales and minima, two blocks of 256 of each kind.
fn hard_weights() -> Vec<f32> {
    let isa = Isa::available()[0];
    let noise = to_f32(isa, Weights::one_row(Dtype::F32, &random(512, false)).unwrap());
    let mut all = Vec::new();
    let mut add = |make: &dyn Fn(usize, f32) -> f32| all.extend(noise.iter().enumerate().map(|(i, &x)| make(i, x)));
    add(&|_, _| 0.0);
    add(&|i, _| if i % 2 == 0 { 0.0 } else { -0.0 });
    add(&|_, _| 0.75);
    add(&|_, _| -0.3);
    add(&|_, x| x);
    add(&|_, x| x.abs());
    add(&|_, x| -x.abs() - 2.0);
    add(&|_, x| 5.0 + 0.01 * x);
    add(&|_, x| 1e-3 * x);
    add(&|_, x| 1e-8 * x);
    add(&|_, x| 1e-20 * x);
    add(&|_, x| 1e-37 * x);
    // Subnormal.
    add(&|_, x| 1e-40 * x);
    add(&|i, _| f32::from_bits(i as u32 % 5));
    add(&|_, x| 1e4 * x);
    // One weight far beyond the others; one that is not zero.
    add(&|i, x| if i % 256 == 77 { 3e4 } else { x });
    add(&|i, _| if i == 300 { -1.5 } else { 0.0 });
    // Equal magnitudes and ties.
    add(&|i, _| if i % 3 == 0 { 1.0 } else { -1.0 });
    add(&|i, _| (i % 17) as f32 - 8.0);
    add(&|i, _| ((i % 33) as f32 - 16.0) / 32.0);
    // Runs of very different size in one block.
    add(&|i, x| x * 10f32.powi(i as i32 / 16 % 9 - 6));
    // A batch that is not full follows.
    all.extend_from_slice(&noise[..256]);
    all
}

fn hard_importances(row: usize) -> Vec<Option<Vec<f32>>> {
    let column = |make: &dyn Fn(usize) -> f32| Some((0..row).map(make).collect());
    vec![
        None,
        column(&|_| 1.0),
        column(&|i| (1 + i % 7) as f32),
        column(&|_| 0.0),
        column(&|i| if i % 32 < 20 { 0.0 } else { 1e-3 * (i % 5) as f32 }),
        column(&|i| if i % 256 == 3 { 1e30 } else { 1e-30 }),
        column(&|i| f32::from_bits(i as u32 % 3)),
    ]
}

#[test]
fn every_instruction_set_fills_hard_blocks_alike() {
    let x = hard_weights();
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let weights = Weights::new(Dtype::F32, &bytes, 256).unwrap();
    let isas = Isa::available();
    let scalar = isas[isas.len() - 1];
    for &block_type in BlockType::ALL {
        for importance in hard_importances(256) {
            for &fill in Fill::ALL {
                let run = |isa| quantize_blocks(isa, weights, block_type, fill, importance.as_deref());
                let expected = run(scalar);
                for &isa in &isas {
                    let found = run(isa);
                    if let (Ok(found), Ok(expected)) = (&found, &expected) {
                        let different = found.bytes.iter().zip(&expected.bytes).position(|(a, b)| a != b);
                        let block = different.map(|byte| byte / block_type.size());
                        assert_eq!(block, None, "{block_type} {fill} {isa:?} {importance:?}");
                    }
                    assert_eq!(found, expected, "{block_type} {fill} {isa:?}");
                }
                let Ok(made) = expected else { continue };
                assert!(made.errors.sum_ee.is_finite() && made.errors.max_abs_error.is_finite());
                let restored = Weights::blocks(block_type, &made.bytes, 256).unwrap();
                let sums = arrow_quant_kernels::pair_sums(scalar, weights, restored).unwrap();
                for (found, expected) in [
                    (made.errors.sum_aa, sums.sum_aa),
                    (made.errors.sum_bb, sums.sum_bb),
                    (made.errors.sum_ab, sums.sum_ab),
                    (made.errors.sum_ee, sums.sum_ee),
                ] {
                    let off = (found - expected).abs();
                    assert!(off <= 1e-6 * expected.abs(), "{block_type} {fill}: {found} is not {expected}");
                }
                assert_eq!(made.errors.max_abs_error, sums.max_abs_error, "{block_type} {fill}");
                let zeros = to_f32(scalar, restored);
                assert!(zeros[..1024].iter().all(|&w| w == 0.0), "{block_type} {fill}: zeros are not kept");
            }
        }
    }
}

#[test]
fn no_kind_of_hard_weights_is_filled_much_worse_than_by_ggml() {
    let isa = Isa::available()[0];
    let mut worse = Vec::new();
    for (kind, x) in hard_weights().chunks_exact(512).enumerate() {
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let weights = Weights::new(Dtype::F32, &bytes, 256).unwrap();
        for &(name, ..) in GAINS {
            let block_type: BlockType = name.parse().unwrap();
            let error = |fill| quantize_blocks(isa, weights, block_type, fill, None).map(|made| made.errors);
            let Ok(reference) = error(Fill::Reference) else { continue };
            let found = error(Fill::Mse).unwrap();
            // Errors of 60 dB below the weights are none.
            if found.sum_ee > 3.0 * reference.sum_ee + 1e-6 * reference.sum_aa {
                worse.push(format!("{name}, kind {kind}: {:e} after {:e}", found.sum_ee, reference.sum_ee));
            }
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
}

#[test]
fn weights_that_no_block_holds_are_refused() {
    for isa in Isa::available() {
        for &block_type in BlockType::ALL {
            let fills = [Fill::Reference, Fill::Mse];
            let length = block_type.length();
            let mut x = vec![0.5f32; 2 * length];
            let quantize = |x: &[f32], row: usize, fill| {
                let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
                quantize_blocks(isa, Weights::new(Dtype::F32, &bytes, row).unwrap(), block_type, fill, None)
            };
            let has_search = quantize(&x, length, Fill::Mse).is_ok();
            assert_eq!(has_search, GAINS.iter().any(|&(name, ..)| name == block_type.name()), "{block_type}");
            for fill in fills.into_iter().take(1 + usize::from(has_search)) {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    x[length + 3] = bad;
                    let error = quantize(&x, length, fill).unwrap_err();
                    let as_expected = matches!(error, KernelError::NotFinite { index, .. } if index == length + 3);
                    assert!(as_expected, "{block_type} {fill}: {error}");
                }
                x[length + 3] = f32::MAX;
                let huge = quantize(&x, length, fill);
                match huge {
                    // Powers of two reach everywhere, and E4M3 stops at its greatest.
                    Ok(_) => assert!(matches!(block_type, BlockType::Mxfp4 | BlockType::Nvfp4), "{block_type}"),
                    Err(error) => {
                        let as_expected = matches!(error, KernelError::BlockRange { index, .. } if index == length);
                        assert!(as_expected, "{block_type} {fill}: {error}");
                    }
                }
                x[length + 3] = 0.5;
                let short = quantize(&x[..length + length / 2], length + length / 2, fill).unwrap_err();
                assert!(matches!(short, KernelError::Length { .. }), "{block_type} {fill}: {short}");
                assert_eq!(quantize(&[], length, fill).unwrap().bytes, [0u8; 0]);
            }
        }
    }
}

#[test]
fn narrow_floats_are_filled_as_what_they_stand_for() {
    let isa = Isa::available()[0];
    let bf16: Vec<u8> = random(4096, false).chunks_exact(4).flat_map(|b| [b[2], b[3]]).collect();
    let narrow = Weights::new(Dtype::BF16, &bf16, 1024).unwrap();
    let wide: Vec<u8> = to_f32(isa, narrow).into_iter().flat_map(f32::to_le_bytes).collect();
    let wide = Weights::new(Dtype::F32, &wide, 1024).unwrap();
    let double: Vec<u8> = to_f32(isa, narrow).into_iter().flat_map(|x| f64::from(x).to_le_bytes()).collect();
    let double = Weights::new(Dtype::F64, &double, 1024).unwrap();
    for &(name, ..) in GAINS {
        let run = |weights| quantize_blocks(isa, weights, name.parse().unwrap(), Fill::Mse, None).unwrap();
        assert_eq!(run(narrow), run(wide), "{name}");
        assert_eq!(run(double).bytes, run(wide).bytes, "{name}");
    }
}

#[test]
fn blocks_stop_between_slices_once_they_are_not_wanted() {
    let isa = Isa::available()[0];
    let bytes = random(5 << 16, false);
    // Rows of 1 Ki weights, and one row that is forty slices.
    for row_length in [1024, 5 << 16] {
        let weights = Weights::new(Dtype::F32, &bytes, row_length).unwrap();
        let importance: Vec<f32> = (0..row_length).map(|column| (1 + column % 7) as f32).collect();
        for fill in [Fill::Reference, Fill::Mse] {
            let whole = quantize_blocks(isa, weights, BlockType::Q4_0, fill, Some(&importance)).unwrap();
            let asked = Cell::new(0);
            let wanted = |times: usize| {
                let asked = &asked;
                move || asked.replace(asked.get() + 1) < times
            };
            // ggml's fill needs the mean square of a row before its first slice.
            let times = if fill == Fill::Reference && row_length > 1024 { 80 } else { 40 };
            let made =
                quantize_blocks_while(isa, weights, BlockType::Q4_0, fill, Some(&importance), wanted(times)).unwrap();
            assert_eq!((asked.replace(0), &made), (times, &whole));
            let stopped = quantize_blocks_while(isa, weights, BlockType::Q4_0, fill, Some(&importance), wanted(2));
            assert_eq!((asked.replace(0), stopped), (3, Err(KernelError::Cancelled)));
            let blocks = Weights::blocks(BlockType::Q4_0, &whole.bytes, row_length).unwrap();
            assert_eq!(to_f32_while(isa, blocks, wanted(5)).unwrap(), to_f32(isa, blocks));
            asked.set(0);
            assert_eq!((to_f32_while(isa, blocks, wanted(2)), asked.replace(0)), (Err(KernelError::Cancelled), 3));
        }
    }
}

#[test]
fn errors_of_later_slices_name_the_weight() {
    let isa = Isa::available()[0];
    let mut bytes = random(3 << 16, false);
    let at = 2 * (1 << 16) + 77;
    bytes[4 * at..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    for row_length in [1024, 3 << 16] {
        let weights = Weights::new(Dtype::F32, &bytes, row_length).unwrap();
        let error = quantize_blocks(isa, weights, BlockType::Q6K, Fill::Mse, None).unwrap_err();
        assert!(matches!(error, KernelError::NotFinite { index, .. } if index == at), "{error}");
    }
    bytes[4 * at..][..4].copy_from_slice(&1e30f32.to_le_bytes());
    let weights = Weights::new(Dtype::F32, &bytes, 1024).unwrap();
    let error = quantize_blocks(isa, weights, BlockType::Q6K, Fill::Mse, None).unwrap_err();
    assert!(matches!(error, KernelError::BlockRange { index, .. } if index == at / 256 * 256), "{error}");
}

#[test]
fn long_rows_are_filled_as_short_ones() {
    let isa = Isa::available()[0];
    // Quarters up to 1: sums of their squares are exact, so that a row and its repetition have the same mean square.
    let short: Vec<u8> = (0..1024).flat_map(|i| (((i * i + 3 * i) % 9 - 4) as f32 / 4.0).to_le_bytes()).collect();
    let long = short.repeat(200);
    let importance: Vec<f32> = (0..1024).map(|column| (column % 5) as f32).collect();
    for &block_type in BlockType::ALL {
        for fill in [Fill::Reference, Fill::Mse] {
            for importance in [None, Some(&importance)] {
                let blocks = |bytes: &[u8], row: usize, importance: Option<Vec<f32>>| {
                    let weights = Weights::new(Dtype::F32, bytes, row).unwrap();
                    quantize_blocks(isa, weights, block_type, fill, importance.as_deref())
                };
                let of_short = match blocks(&short, 1024, importance.cloned()) {
                    Ok(blocks) => blocks,
                    // Not all types have a search.
                    Err(error) => {
                        assert!(matches!(error, KernelError::Argument { name: "method", .. }), "{error}");
                        continue;
                    }
                };
                let of_long = blocks(&long, 200 * 1024, importance.map(|i| i.repeat(200))).unwrap();
                assert!(of_long.bytes == of_short.bytes.repeat(200), "{block_type} {fill} {}", importance.is_some());
                let of_many = blocks(&long, 1024, importance.cloned()).unwrap();
                assert!(of_many.bytes == of_long.bytes, "{block_type} {fill} {}", importance.is_some());
                assert_eq!((of_long.length, of_long.row_length), (200 * 1024, 200 * 1024));
                assert_eq!((of_long.errors.n, of_many.errors.n), (200 * 1024, 200 * 1024));
            }
        }
    }
}

#[test]
fn blocks_that_are_not_wanted_end_within_a_row() {
    let isa = Isa::available()[0];
    let bytes = vec![0; 4 << 20];
    let weights = Weights::one_row(Dtype::F32, &bytes).unwrap();
    for (fill, importance) in [(Fill::Mse, None), (Fill::Reference, None), (Fill::Reference, Some(vec![1.0; 1 << 20]))]
    {
        let asked = Cell::new(0);
        let wanted = || {
            asked.set(asked.get() + 1);
            asked.get() < 3
        };
        let ended = quantize_blocks_while(isa, weights, BlockType::Q8_0, fill, importance.as_deref(), wanted);
        assert_eq!((ended, asked.get()), (Err(KernelError::Cancelled), 3));
    }
}

#[test]
fn weights_that_no_block_holds_are_named_by_their_index_in_the_row() {
    let isa = Isa::available()[0];
    for (value, expected) in [
        (f32::NAN, "weight 150000 is NaN: only finite weights, in the range of f32, can be quantized"),
        (1e9, "the q4_0 block from weight 149984 on spans 0e0 to 1e9: its scale does not fit in f16"),
    ] {
        let mut bytes = vec![0; 800_000];
        bytes[600_000..600_004].copy_from_slice(&value.to_le_bytes());
        for row in [200_000, 160] {
            let weights = Weights::new(Dtype::F32, &bytes, row).unwrap();
            for fill in [Fill::Mse, Fill::Reference] {
                let error = quantize_blocks(isa, weights, BlockType::Q4_0, fill, None).unwrap_err();
                assert_eq!(error.to_string(), expected);
            }
        }
    }
}
