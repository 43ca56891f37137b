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
        if laplace { a.ln() * if b < 0.5 { -1.0 } else { 1.0 } } else { (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos() }
    });
    weights.flat_map(|w| (w as f32).to_le_bytes()).collect()
}

/// What the search gains over ggml's own fill, in dB, at least.
const GAINS: &[(&str, f64)] = &[
    ("q4_0", 0.35),
    ("q4_1", 0.5),
    ("q5_0", 0.1),
    ("q5_1", 0.5),
    ("q8_0", 0.0),
    ("q2_k", 0.0),
    ("q3_k", 0.0),
    ("q4_k", 0.0),
    ("q5_k", 0.0),
    ("q6_k", 0.0),
];

#[test]
fn the_search_fills_blocks_better_than_ggml() {
    let isa = Isa::available()[0];
    let ones = vec![1.0; 1024];
    let mut worse = Vec::new();
    for laplace in [false, true] {
        let bytes = random(1 << 18, laplace);
        let weights = Weights::new(Dtype::F32, &bytes, 1024).unwrap();
        for &(name, least) in GAINS {
            let block_type = name.parse().unwrap();
            let sqnr = |fill, importance| {
                quantize_blocks(isa, weights, block_type, fill, importance).unwrap().errors.sqnr_db()
            };
            let plain = sqnr(Fill::Reference, None);
            let reference = sqnr(Fill::Reference, Some(&ones[..]));
            let found = sqnr(Fill::Mse, None);
            println!("{name} laplace {laplace}: plain {plain:.2} ones {reference:.2} search {found:.2}");
            if found < plain + least {
                worse.push(format!("{name}, Laplace {laplace}: {found:.2} dB after {plain:.2}"));
            }
        }
    }
    assert!(worse.is_empty(), "{worse:?}");
}

#[test]
fn blocks_stop_between_slices_once_they_are_not_wanted() {
    let isa = Isa::available()[0];
    let bytes = random(5 << 16, false);
    // Rows of 1 Ki weights, and one row that is five slices.
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
            let made = quantize_blocks_while(isa, weights, BlockType::Q4_0, fill, Some(&importance), wanted(5)).unwrap();
            assert_eq!((asked.replace(0), &made), (5, &whole));
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
