//! Weights of other encodings than floats: they are what decoders written out here say, and all kernels treat them as F32
//! weights of those values.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use arrow_quant_kernels::{
    Bits, BlockType, Dtype, Encoding, Fp8, GroupSize, Isa, KernelError, Method, Scales, Scheme, Settings, Weights,
    cosine_similarity, pair_sums, par_quantize, quantize, stats, to_f32,
};
use half::f16;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

/// The value of an FP8 byte by the definition of its fields.
fn fp8_value(fp8: Fp8, byte: u8) -> f32 {
    let (mantissa_bits, bias) = match fp8 {
        Fp8::E4M3 => (3, 7),
        Fp8::E5M2 => (2, 15),
    };
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(byte & 0x7f) >> mantissa_bits;
    let fraction = f32::from(byte & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits) as f32;
    let special = match fp8 {
        Fp8::E4M3 => (byte & 0x7f == 0x7f).then_some(f32::NAN),
        Fp8::E5M2 => (exponent == 31).then_some(if fraction == 0.0 { f32::INFINITY } else { f32::NAN }),
    };
    sign * special.unwrap_or(match exponent {
        0 => fraction * 2f32.powi(1 - bias),
        _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
    })
}

/// The weights of Q8_0 blocks, one by one.
fn q8_0_values(bytes: &[u8]) -> Vec<f32> {
    (0..bytes.len() / 34 * 32)
        .map(|i| {
            let block = &bytes[i / 32 * 34..];
            f16::from_le_bytes([block[0], block[1]]).to_f32() * f32::from(block[2 + i % 32] as i8)
        })
        .collect()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn scale_bytes(dtype: Dtype, scales: &[f32]) -> Vec<u8> {
    let store = |&x: &f32| match dtype {
        Dtype::F64 => f64::from(x).to_le_bytes().to_vec(),
        Dtype::F32 => x.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
    };
    scales.iter().flat_map(store).collect()
}

/// Equal, NaN with NaN and zeros by their sign.
fn assert_same(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(same, "weight {i} is {found}, expected {expected}");
    }
}

/// Asserts that every kernel makes of `weights` what it makes of F32 weights of the `values`.
fn assert_as_f32(weights: Weights<'_>, values: &[f32], settings: Settings) {
    let bytes = f32_bytes(values);
    let floats = Weights::new(Dtype::F32, &bytes, weights.row_length()).unwrap();
    let other: Vec<u8> = f32_bytes(&values.iter().map(|x| x * 0.9 + 0.01).collect::<Vec<_>>());
    let other = Weights::new(Dtype::F32, &other, weights.row_length()).unwrap();
    let importance: Vec<f32> = (0..weights.row_length()).map(|i| (i % 5) as f32).collect();
    for isa in Isa::available() {
        assert_same(&to_f32(isa, weights), values);
        assert_eq!(stats(isa, weights), stats(isa, floats));
        for importance in [None, Some(importance.as_slice())] {
            let found = quantize(isa, weights, settings, importance);
            // As text, since an error may hold a NaN, which is not equal to itself.
            let expected = format!("{:?}", quantize(isa, floats, settings, importance));
            assert_eq!(format!("{found:?}"), expected);
            assert_eq!(format!("{:?}", par_quantize(isa, weights, settings, importance)), expected);
            if let Ok(quantized) = found {
                let buffers = [&quantized.codes, &quantized.scales, &quantized.minima, &quantized.zero_points];
                let bytes = quantized.encoding().stored_bytes(quantized.length, quantized.row_length);
                assert_eq!(bytes, Ok(buffers.map(Vec::len).iter().sum()));
            }
        }
        let of_both = |weights| {
            let sums = [pair_sums(isa, weights, other), pair_sums(isa, other, weights)];
            format!("{sums:?} {:?}", cosine_similarity(isa, weights, other))
        };
        assert_eq!(of_both(weights), of_both(floats));
    }
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let all = (0..Bits::ALL.len(), 0..GroupSize::ALL.len(), 0..Scheme::ALL.len(), 0..Method::ALL.len());
    all.prop_map(|(bits, group_size, scheme, method)| Settings {
        bits: Bits::ALL[bits],
        group_size: GroupSize::ALL[group_size],
        scheme: Scheme::ALL[scheme],
        method: Method::ALL[method],
    })
}

const SETTINGS: Settings =
    Settings { bits: Bits::Four, group_size: GroupSize::ALL[1], scheme: Scheme::Affine, method: Method::MinMax };

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn q8_0_weights_are_treated_as_their_values(
        blocks in 1usize..12, rows in 1usize..4, seed in any::<u64>(), run in any_settings(),
    ) {
        let bytes = q8_0_blocks(blocks * rows, seed);
        let weights = Weights::blocks(BlockType::Q8_0, &bytes, blocks * 32).unwrap();
        assert_as_f32(weights, &q8_0_values(&bytes), run);
    }

    #[test]
    fn fp8_weights_are_treated_as_their_values(
        (row, rows) in (1usize..300, 1usize..5), (block_rows, block_columns) in (1usize..7, 1usize..350),
        fp8 in 0..Fp8::ALL.len(), dtype in 0..Dtype::ALL.len(), scaled in any::<bool>(), special in any::<bool>(),
        seed in any::<u64>(), run in any_settings(),
    ) {
        let (fp8, dtype) = (Fp8::ALL[fp8], Dtype::ALL[dtype]);
        let mut bytes: Vec<u8> = pseudo_random(seed).take(row * rows).collect();
        if !special {
            // Without the greater half of the exponents there is neither NaN nor infinity.
            bytes.iter_mut().for_each(|byte| *byte &= 0xbf);
        }
        let blocks_in_row = row.div_ceil(block_columns);
        let scales: Vec<f32> = (0..blocks_in_row * rows.div_ceil(block_rows)).map(|i| 0.25 + (i % 13) as f32 * 0.5).collect();
        let scales_bytes = scale_bytes(dtype, &scales);
        let view = Scales { dtype, bytes: &scales_bytes, block_rows, block_columns };
        let weights = Weights::fp8(fp8, &bytes, row, scaled.then_some(view)).unwrap();
        let values: Vec<f32> = bytes.iter().enumerate().map(|(i, &byte)| {
            let scale = scales[i / row / block_rows * blocks_in_row + i % row / block_columns];
            fp8_value(fp8, byte) * if scaled { scale } else { 1.0 }
        }).collect();
        assert_as_f32(weights, &values, run);
    }
}

fn pseudo_random(mut seed: u64) -> impl Iterator<Item = u8> {
    std::iter::repeat_with(move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    })
}

/// Blocks with any codes, and scales of either sign from subnormal to about 30.
fn q8_0_blocks(blocks: usize, seed: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = pseudo_random(seed).take(blocks * 34).collect();
    for block in bytes.chunks_exact_mut(34) {
        block[1] &= 0xcf;
    }
    bytes
}

#[test]
fn q8_0_decodes_every_byte_as_a_signed_code() {
    let mut bytes = Vec::new();
    for (block, scale) in [1.0f32, -0.5, 6e-8, 65504.0, 0.0, 3.0, 1e-3, -7.5].into_iter().enumerate() {
        bytes.extend(f16::from_f32(scale).to_le_bytes());
        bytes.extend((0..32).map(|i| (block * 32 + i) as u8));
    }
    let weights = Weights::blocks(BlockType::Q8_0, &bytes, 256).unwrap();
    assert_eq!((weights.len(), weights.encoding().name()), (256, "q8_0"));
    for isa in Isa::available() {
        let found = to_f32(isa, weights);
        assert_same(&found, &q8_0_values(&bytes));
        assert_eq!((found[1], found[33], found[7 * 32]), (1.0, -16.5, 240.0));
    }
}

#[test]
fn fp8_decodes_every_byte() {
    let bytes: Vec<u8> = (0..=255).collect();
    for &fp8 in Fp8::ALL {
        let expected: Vec<f32> = bytes.iter().map(|&byte| fp8_value(fp8, byte)).collect();
        let weights = Weights::fp8(fp8, &bytes, 256, None).unwrap();
        assert_eq!(weights.encoding().name(), fp8.name());
        for isa in Isa::available() {
            assert_same(&to_f32(isa, weights), &expected);
        }
    }
}

/// One scale for all weights, and one for each row, are blocks as large as those.
#[test]
fn scales_of_a_tensor_and_of_rows_are_scales_of_blocks() {
    let bytes = [0x38, 0x40, 0x30, 0xb8]; // 1, 2, 0.5, -1
    let weights = |scales: &[f32], block_rows, block_columns| {
        let bytes_of_scales = scale_bytes(Dtype::BF16, scales);
        let view = Scales { dtype: Dtype::BF16, bytes: &bytes_of_scales, block_rows, block_columns };
        to_f32(Isa::available()[0], Weights::fp8(Fp8::E4M3, &bytes, 2, Some(view)).unwrap())
    };
    assert_eq!(weights(&[3.0], usize::MAX, usize::MAX), [3.0, 6.0, 1.5, -3.0]);
    assert_eq!(weights(&[3.0, 8.0], 1, usize::MAX), [3.0, 6.0, 4.0, -8.0]);
    assert_eq!(weights(&[3.0, 8.0], usize::MAX, 1), [3.0, 16.0, 1.5, -8.0]);
}

/// Rows that are longer than the 64 Ki weights which are decoded at a time, and many rows beyond that.
#[test]
fn long_slices_are_decoded_in_blocks_without_a_trace() {
    let blocks = 2 * (1 << 16) / 32 + 3;
    for (row_blocks, rows) in [(blocks, 2), (3, blocks)] {
        let bytes = q8_0_blocks(row_blocks * rows, 3);
        let weights = Weights::blocks(BlockType::Q8_0, &bytes, row_blocks * 32).unwrap();
        assert_as_f32(weights, &q8_0_values(&bytes), SETTINGS);

        let bytes: Vec<u8> = pseudo_random(5).take(row_blocks * 32 * rows).map(|byte| byte & 0xbf).collect();
        let row = row_blocks * 32;
        let scales: Vec<f32> = (0..rows.div_ceil(128) * row.div_ceil(100)).map(|i| 1.0 + (i % 9) as f32).collect();
        let scales_bytes = f32_bytes(&scales);
        let view = Scales { dtype: Dtype::F32, bytes: &scales_bytes, block_rows: 128, block_columns: 100 };
        let weights = Weights::fp8(Fp8::E4M3, &bytes, row, Some(view)).unwrap();
        let value =
            |i: usize| fp8_value(Fp8::E4M3, bytes[i]) * scales[i / row / 128 * row.div_ceil(100) + i % row / 100];
        assert_as_f32(weights, &(0..bytes.len()).map(value).collect::<Vec<_>>(), SETTINGS);
    }
}

#[test]
fn a_part_has_the_values_it_has_in_the_whole() {
    let isa = Isa::available()[0];
    let bytes = q8_0_blocks(12, 9);
    let q8_0 = Weights::blocks(BlockType::Q8_0, &bytes, 96).unwrap();
    let elements: Vec<u8> = pseudo_random(9).take(384).collect();
    let scales = f32_bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let view = Scales { dtype: Dtype::F32, bytes: &scales, block_rows: 3, block_columns: 40 };
    let fp8 = Weights::fp8(Fp8::E5M2, &elements, 96, Some(view)).unwrap();
    let floats = f32_bytes(&to_f32(isa, q8_0));
    let floats = Weights::new(Dtype::F32, &floats, 96).unwrap();
    for whole in [q8_0, fp8, floats] {
        let values = to_f32(isa, whole);
        for (start, length, row) in
            [(0, 384, 96), (96, 192, 96), (288, 96, 96), (128, 32, 32), (224, 64, 64), (96, 0, 0)]
        {
            let part = whole.part(start, length).unwrap();
            assert_eq!(part.row_length(), row);
            assert_same(&to_f32(isa, part), &values[start..start + length]);
        }
        let piece = whole.part(192, 96).unwrap().part(32, 64).unwrap();
        assert_same(&to_f32(isa, piece), &values[224..288]);
        let message = |start, length| whole.part(start, length).unwrap_err().to_string();
        assert_eq!(message(64, 64), "64 weights before a part do not divide into runs of 96");
        assert_eq!(message(0, 128), "128 weights of a part do not divide into runs of 96");
        assert_eq!(message(288, 128), "weights before the end of a part: found 384, expected 416");
        assert!(whole.part(usize::MAX, 2).is_err());
    }
    assert_eq!(fp8.part(33, 5).unwrap().len(), 5);
    assert_eq!(q8_0.part(33, 32).unwrap_err().to_string(), "33 weights before a part do not divide into runs of 32");
}

#[test]
fn bytes_and_scales_of_wrong_lengths_are_refused() {
    let message = |weights: Result<Weights<'_>, KernelError>| weights.unwrap_err().to_string();
    let blocks = |length, row| message(Weights::blocks(BlockType::Q8_0, &[0; 68][..length], row));
    assert_eq!(blocks(67, 64), "67 bytes of weights do not divide into runs of 34");
    assert_eq!(blocks(68, 96), "64 weights do not divide into runs of 96");
    assert_eq!(blocks(68, 16), "16 weights of a row do not divide into runs of 32");
    assert_eq!(blocks(68, 0), "64 weights do not divide into runs of 0");
    assert!(Weights::blocks(BlockType::Q8_0, &[], 0).unwrap().is_empty());
    let fp8 = |row, scales: &[u8], block_rows, block_columns| {
        let view = Scales { dtype: Dtype::F32, bytes: scales, block_rows, block_columns };
        message(Weights::fp8(Fp8::E4M3, &[0; 64], row, Some(view)))
    };
    assert_eq!(fp8(24, &[0; 4], 1, 1), "64 weights do not divide into runs of 24");
    assert_eq!(fp8(16, &[0; 15], 2, 9), "bytes of FP8 scales: found 15, expected 16");
    assert_eq!(fp8(16, &[0; 20], 2, 9), "bytes of FP8 scales: found 20, expected 16");
    assert_eq!(fp8(16, &[0; 16], 0, 9), "a scale's rows is 0, allowed: 1 or more");
    assert_eq!(fp8(16, &[0; 16], 2, 0), "a scale's columns is 0, allowed: 1 or more");
}

#[test]
fn fp8_weights_that_are_not_finite_are_named() {
    let mut bytes = vec![0x38; 3 << 16];
    for index in [0, 70_000, bytes.len() - 1] {
        bytes[index] = 0x7f;
        for row in [1 << 16, 3 << 16] {
            let weights = Weights::fp8(Fp8::E4M3, &bytes, row, None).unwrap();
            let error = quantize(Isa::available()[0], weights, SETTINGS, None).unwrap_err();
            assert!(
                matches!(error, KernelError::NotFinite { index: found, value } if found == index && value.is_nan())
            );
        }
        bytes[index] = 0x38;
    }
}

/// The blocks that ggml makes of a fixed sequence, by its rule, and what it restores them to: digests of ggml 0.25.
#[test]
fn q8_0_is_decoded_as_by_ggml() {
    let digest =
        |bytes: &[u8]| -> String { Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect() };
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        i64::from(state >> 8)
    };
    let values: Vec<f32> =
        (0..64 * 1024).map(|_| ((0..4).map(|_| next()).sum::<i64>() - (1 << 25)) as f32 * 2f32.powi(-25)).collect();
    assert_eq!(digest(&f32_bytes(&values)), "7b8bd05818d70784");
    let mut blocks = Vec::new();
    for values in values.chunks_exact(32) {
        let scale = values.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
        blocks.extend(f16::from_f32(scale).to_le_bytes());
        blocks.extend(values.iter().map(|x| (x * (1.0 / scale)).round() as i8 as u8));
    }
    assert_eq!(digest(&blocks), "036357173e15aa49");
    let weights = Weights::blocks(BlockType::Q8_0, &blocks, 1024).unwrap();
    assert_eq!(Encoding::Block(BlockType::Q8_0).stored_bytes(weights.len(), 1024), Ok(blocks.len()));
    for isa in Isa::available() {
        assert_eq!(digest(&f32_bytes(&to_f32(isa, weights))), "f3d18a0689fa266b");
    }
}
