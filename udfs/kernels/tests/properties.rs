//! Properties of the kernels, on every instruction set of the machine, against arithmetic written out here.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use arrow_quant_kernels::{
    Bits, Dtype, GroupSize, Isa, KernelError, Method, PairSums, ParameterDtype, Quantized, Scheme, Settings, Stats,
    Weights, cosine_similarity, dequantize, pair_sums, par_quantize, quantize, stats,
};
use proptest::prelude::*;

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The values in a dtype, behind one byte so that nothing is aligned.
fn unaligned(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xaa];
    for &x in values {
        match dtype {
            Dtype::F64 => bytes.extend(f64::from(x).to_le_bytes()),
            Dtype::F32 => bytes.extend(x.to_le_bytes()),
            Dtype::F16 => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
            Dtype::BF16 => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
        }
    }
    bytes
}

/// The values as the dtype holds them.
fn stored(dtype: Dtype, values: &[f32]) -> Vec<f32> {
    values
        .iter()
        .map(|&x| match dtype {
            Dtype::F64 | Dtype::F32 => x,
            Dtype::F16 => half::f16::from_f32(x).to_f32(),
            Dtype::BF16 => half::bf16::from_f32(x).to_f32(),
        })
        .collect()
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

/// Rows of finite weights: ordinary, tiny, huge, subnormal, constant, zero, with outliers; magnitudes differ by group.
fn any_rows() -> impl Strategy<Value = (usize, Vec<f32>)> {
    let value = prop_oneof![
        6 => -1.0f32..1.0,
        1 => Just(0.0f32),
        1 => Just(-0.0f32),
        1 => -100.0f32..100.0,
    ];
    let magnitude = prop_oneof![
        8 => Just(1.0f32),
        2 => Just(1e-3f32),
        1 => Just(1e-7f32),
        1 => Just(1e-20f32),
        1 => Just(1e-42f32),
        1 => Just(1e6f32),
        1 => Just(1e18f32),
        1 => Just(0.0f32),
    ];
    let row = prop_oneof![1usize..40, 32usize..700, Just(256usize), Just(512usize)];
    (row, 1usize..5, magnitude).prop_flat_map(move |(row, rows, magnitude)| {
        (Just(row), prop::collection::vec(value.clone().prop_map(move |x| x * magnitude), row * rows))
    })
}

fn settings(bits: i64, group_size: i64, scheme: Scheme, method: Method) -> Settings {
    Settings {
        bits: Bits::try_from(bits).unwrap(),
        group_size: GroupSize::try_from(group_size).unwrap(),
        scheme,
        method,
    }
}

/// The levels of each group, decoded from the stored bytes by the formula of the scheme, in f64.
fn decode(q: &Quantized) -> Vec<f64> {
    let bits = q.settings.bits.get();
    let parameter = |bytes: &[u8], i: usize| match q.parameter_dtype {
        ParameterDtype::F16 => half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f64(),
        ParameterDtype::F32 => f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap()).into(),
    };
    let groups_per_row = q.row_length.div_ceil(q.settings.group_size.get());
    (0..q.length)
        .map(|i| {
            let group = i / q.row_length * groups_per_row + i % q.row_length / q.settings.group_size.get();
            // Bits one by one: the stream has no gaps.
            let bit = |at: usize| q.codes[at / 8] >> (at % 8) & 1;
            let code = (0..bits).fold(0, |code, k| code | bit(i * bits + k) << k);
            let (scale, code) = (parameter(&q.scales, group), f64::from(code));
            match q.settings.scheme {
                Scheme::Affine => scale * code + parameter(&q.minima, group),
                Scheme::Asymmetric => scale * (code - f64::from(q.zero_points[group])),
                Scheme::Symmetric => scale * (code - f64::from(1u32 << (bits - 1))),
            }
        })
        .collect()
}

fn close(found: f64, expected: f64, relative: f64) -> bool {
    (found - expected).abs() <= relative * expected.abs().max(f64::MIN_POSITIVE) || found == expected
}

/// The sums over pairs, one by one in f64.
fn naive(a: &[f64], b: &[f64]) -> PairSums {
    a.iter().zip(b).fold(PairSums::default(), |sums, (&a, &b)| {
        sums + PairSums {
            n: 1,
            sum_aa: a * a,
            sum_bb: b * b,
            sum_ab: a * b,
            sum_ee: (a - b) * (a - b),
            max_abs_error: (a - b).abs(),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// All instruction sets and all thread counts give the bytes that scalar code gives, error sums included.
    #[test]
    fn every_instruction_set_gives_the_same_bytes(
        (row, values) in any_rows(), run in any_settings(), dtype in 0..4usize, weighted in any::<bool>(),
    ) {
        let dtype = Dtype::ALL[dtype];
        let bytes = unaligned(dtype, &values);
        let weights = Weights::new(dtype, &bytes[1..], row).unwrap();
        let importance: Vec<f32> = (0..row).map(|i| (i % 7) as f32 * 0.5).collect();
        let importance = weighted.then_some(importance.as_slice());
        let mut expected: Option<Result<Quantized, KernelError>> = None;
        for isa in Isa::available().into_iter().rev() {
            let found = quantize(isa, weights, run, importance);
            prop_assert_eq!(&found, &par_quantize(isa, weights, run, importance));
            if let Some(expected) = &expected {
                prop_assert_eq!(&found, expected, "{:?}", isa);
            }
            expected = Some(found);
        }
    }

    /// Restored weights are what the formula says, on every instruction set, and the error sums are theirs.
    #[test]
    fn restored_weights_and_error_sums_follow_the_formula((row, values) in any_rows(), run in any_settings()) {
        let bytes = f32_bytes(&values);
        let weights = Weights::new(Dtype::F32, &bytes, row).unwrap();
        let q = quantize(Isa::available()[0], weights, run, None).unwrap();
        let levels = decode(&q);
        for isa in Isa::available() {
            let restored = dequantize(isa, &q.as_ref()).unwrap();
            for (i, (&found, &level)) in restored.iter().zip(&levels).enumerate() {
                prop_assert!(close(found.into(), level, 1e-6) || (f64::from(found) - level).abs() < 1e-44, "{i}: {found} {level}");
            }
            let restored: Vec<f64> = restored.iter().map(|&x| x.into()).collect();
            let values: Vec<f64> = values.iter().map(|&x| x.into()).collect();
            let expected = naive(&values, &restored);
            prop_assert_eq!(q.errors.n, expected.n);
            // f32 lanes over at most 256 elements of a batch: relative error below 256 half units in the last place.
            prop_assert!(close(q.errors.sum_aa, expected.sum_aa, 2e-5), "{:?} {expected:?}", q.errors);
            prop_assert!((q.errors.sum_bb - expected.sum_bb).abs() <= 4e-5 * (expected.sum_aa + expected.sum_bb), "{:?} {expected:?}", q.errors);
            prop_assert!((q.errors.sum_ab - expected.sum_ab).abs() <= 2e-5 * (expected.sum_aa * expected.sum_bb).sqrt(), "{:?} {expected:?}", q.errors);
            prop_assert!((q.errors.sum_ee - expected.sum_ee).abs() <= 2e-5 * expected.sum_ee + 1e-12 * expected.sum_aa, "{:?} {expected:?}", q.errors);
            prop_assert!(close(q.errors.max_abs_error, expected.max_abs_error, 1e-5) || expected.max_abs_error < 1e-6 * expected.sum_aa.sqrt(), "{:?} {expected:?}", q.errors);
        }
    }

    /// On no group is `mse` worse than `minmax`, and every code is the nearest one in its grid.
    #[test]
    fn mse_is_never_worse_than_minmax_on_any_group((row, values) in any_rows(), run in any_settings()) {
        let isa = Isa::available()[0];
        let bytes = f32_bytes(&values);
        let weights = Weights::new(Dtype::F32, &bytes, row).unwrap();
        let by = |method| decode(&quantize(isa, weights, Settings { method, ..run }, None).unwrap());
        let (mse, minmax) = (by(Method::Mse), by(Method::MinMax));
        let group = run.group_size.get();
        for start in (0..values.len()).step_by(row) {
            for first in (start..start + row).step_by(group) {
                let end = (first + group).min(start + row);
                let error = |levels: &[f64]| -> f64 {
                    (first..end).map(|i| (levels[i] - f64::from(values[i])).powi(2)).sum()
                };
                let (found, limit) = (error(&mse), error(&minmax));
                prop_assert!(found <= limit, "group at {first}: {found} > {limit}");
            }
        }
    }

    /// Cosine similarity and error sums of any two dtypes agree with sums in f64, on every instruction set.
    #[test]
    fn comparisons_agree_with_sums_in_f64(
        a in prop::collection::vec(-3.0f32..3.0, 0..200), shift in -1.0f32..1.0, da in 0..4usize, db in 0..4usize,
    ) {
        let b: Vec<f32> = a.iter().map(|x| x * 0.9 + shift).collect();
        let (da, db) = (Dtype::ALL[da], Dtype::ALL[db]);
        let (bytes_a, bytes_b) = (unaligned(da, &a), unaligned(db, &b));
        let (wa, wb) = (Weights::one_row(da, &bytes_a[1..]).unwrap(), Weights::one_row(db, &bytes_b[1..]).unwrap());
        let widen = |dtype, values: &[f32]| stored(dtype, values).into_iter().map(f64::from).collect::<Vec<_>>();
        let expected = naive(&widen(da, &a), &widen(db, &b));
        for isa in Isa::available() {
            let sums = pair_sums(isa, wa, wb).unwrap();
            prop_assert_eq!(sums.n, expected.n);
            for (found, expected) in [
                (sums.sum_aa, expected.sum_aa), (sums.sum_bb, expected.sum_bb), (sums.sum_ab, expected.sum_ab),
            ] {
                prop_assert!((found - expected).abs() <= 1e-12 * (1.0 + expected.abs()), "{found} {expected}");
            }
            // The difference is taken in f32.
            prop_assert!(close(sums.sum_ee, expected.sum_ee, 1e-6), "{sums:?} {expected:?}");
            prop_assert!(close(sums.max_abs_error, expected.max_abs_error, 1e-6), "{sums:?} {expected:?}");
            match (cosine_similarity(isa, wa, wb).unwrap(), expected.cosine_similarity()) {
                (Some(found), Some(expected)) => prop_assert!((found - expected).abs() < 1e-12),
                (found, expected) => prop_assert_eq!(found, expected),
            }
        }
    }

    /// Statistics agree with counting, non-finite elements included.
    #[test]
    fn statistics_agree_with_counting(
        values in prop::collection::vec(
            prop_oneof![4 => -5.0f32..5.0, 1 => Just(f32::NAN), 1 => Just(f32::INFINITY), 1 => Just(f32::NEG_INFINITY), 1 => Just(0.0f32)],
            0..150,
        ),
    ) {
        let finite: Vec<f64> = values.iter().filter(|x| x.is_finite()).map(|&x| x.into()).collect();
        let bytes = f32_bytes(&values);
        for isa in Isa::available() {
            let found = stats(isa, Weights::one_row(Dtype::F32, &bytes).unwrap());
            let expected = Stats {
                n: values.len() as u64,
                nans: values.iter().filter(|x| x.is_nan()).count() as u64,
                infinities: values.iter().filter(|x| x.is_infinite()).count() as u64,
                zeros: finite.iter().filter(|&&x| x == 0.0).count() as u64,
                min: finite.iter().copied().fold(f64::INFINITY, f64::min),
                max: finite.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                sum: found.sum,
                sum_squares: found.sum_squares,
            };
            prop_assert_eq!(found, expected);
            prop_assert!((found.sum - finite.iter().sum::<f64>()).abs() < 1e-9);
            prop_assert!((found.sum_squares - finite.iter().map(|x| x * x).sum::<f64>()).abs() < 1e-9);
        }
    }
}

/// The least squared error that any affine grid with four levels reaches: all partitions of the sorted weights into four
/// runs, each fitted in closed form.
fn exhaustive_affine_2bit(x: &[f64]) -> f64 {
    let mut sorted = x.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let mut prefix = vec![0.0];
    for x in &sorted {
        prefix.push(prefix.last().unwrap() + x);
    }
    let (count, total, squares) = (n as f64, prefix[n], sorted.iter().map(|x| x * x).sum::<f64>());
    let mut best = f64::INFINITY;
    for i in 0..=n {
        for j in i..=n {
            for k in j..=n {
                let counts = [j - i, k - j, n - k].map(|c| c as f64);
                let sums = [prefix[j] - prefix[i], prefix[k] - prefix[j], prefix[n] - prefix[k]];
                let q = counts[0] + 2.0 * counts[1] + 3.0 * counts[2];
                let qq = counts[0] + 4.0 * counts[1] + 9.0 * counts[2];
                let qx = sums[0] + 2.0 * sums[1] + 3.0 * sums[2];
                let d = count * qq - q * q;
                if d > 0.0 {
                    let scale = (count * qx - q * total) / d;
                    let min = (total - scale * q) / count;
                    best = best.min(squares - scale * qx - min * total);
                }
            }
        }
    }
    best
}

/// A fixed sequence of standard normal numbers.
fn gaussian(n: usize, mut seed: u64) -> Vec<f32> {
    let mut uniform = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..n).map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32).collect()
}

#[test]
fn the_search_comes_close_to_the_exhaustive_optimum_at_2_bits() {
    let values = gaussian(64 * 32, 7);
    let bytes = f32_bytes(&values);
    let weights = Weights::new(Dtype::F32, &bytes, 64).unwrap();
    let q = quantize(Isa::available()[0], weights, settings(2, 64, Scheme::Affine, Method::Mse), None).unwrap();
    let optimum: f64 = values
        .chunks(64)
        .map(|group| exhaustive_affine_2bit(&group.iter().map(|&x| x.into()).collect::<Vec<_>>()))
        .sum();
    let gap_db = 10.0 * (q.errors.sum_ee / optimum).log10();
    assert!((0.0..0.05).contains(&gap_db), "{gap_db} dB above the optimum");
}

#[test]
fn quality_on_gaussian_weights_does_not_fall() {
    let values = gaussian(1 << 17, 3);
    let bytes = f32_bytes(&values);
    let weights = Weights::new(Dtype::F32, &bytes, 4096).unwrap();
    for (bits, group_size, scheme, least) in [
        (2, 64, Scheme::Affine, 9.8),
        (4, 64, Scheme::Affine, 21.7),
        (4, 128, Scheme::Affine, 20.7),
        (8, 64, Scheme::Affine, 46.0),
        (2, 64, Scheme::Asymmetric, 9.0),
        (4, 64, Scheme::Asymmetric, 21.1),
        (2, 64, Scheme::Symmetric, 8.95),
        (4, 64, Scheme::Symmetric, 20.75),
    ] {
        let run = settings(bits, group_size, scheme, Method::Mse);
        let sqnr = quantize(Isa::available()[0], weights, run, None).unwrap().errors.sqnr_db();
        assert!(sqnr >= least, "INT{bits} g{group_size} {scheme}: {sqnr} dB, expected {least}");
    }
}

#[test]
fn importance_lowers_the_error_where_it_is_great() {
    let values = gaussian(64 * 256, 11);
    let importance: Vec<f32> = (0..256).map(|i| if i % 4 == 0 { 10.0 } else { 0.1 }).collect();
    let bytes = f32_bytes(&values);
    let weights = Weights::new(Dtype::F32, &bytes, 256).unwrap();
    let run = settings(2, 64, Scheme::Affine, Method::Mse);
    let weighted_error = |importance_used: Option<&[f32]>| -> f64 {
        let levels = decode(&quantize(Isa::available()[0], weights, run, importance_used).unwrap());
        let error = |i: usize| (levels[i] - f64::from(values[i])).powi(2) * f64::from(importance[i % 256]);
        (0..values.len()).map(error).sum()
    };
    let (with, without) = (weighted_error(Some(&importance)), weighted_error(None));
    assert!(with < 0.9 * without, "{with} against {without}");
}

#[test]
fn weights_without_importance_do_not_stretch_the_grid() {
    let values = [0.0, 1.0, 2.0, 3.0, 100.0];
    let bytes = f32_bytes(&values);
    let weights = Weights::one_row(Dtype::F32, &bytes).unwrap();
    for isa in Isa::available() {
        let q = quantize(isa, weights, settings(2, 32, Scheme::Affine, Method::Mse), Some(&[1.0, 1.0, 1.0, 1.0, 0.0]))
            .unwrap();
        let restored = dequantize(isa, &q.as_ref()).unwrap();
        let error: f32 = restored[..4].iter().zip(values).map(|(a, b)| (a - b).powi(2)).sum();
        assert!(error < 1e-4, "{restored:?}");
    }
}

#[test]
fn odd_groups_have_the_defined_results() {
    for isa in Isa::available() {
        for &method in Method::ALL {
            let run = settings(4, 32, Scheme::Affine, method);
            let q =
                |values: &[f32]| quantize(isa, Weights::one_row(Dtype::F32, &f32_bytes(values)).unwrap(), run, None);

            let zeros = q(&[0.0; 40]).unwrap();
            assert_eq!((decode(&zeros), zeros.errors.sqnr_db()), (vec![0.0; 40], f64::INFINITY));
            assert!(zeros.codes.iter().all(|&b| b == 0) && zeros.scales.iter().all(|&b| b == 0));

            let constant = q(&[0.1; 40]).unwrap();
            assert_eq!(constant.parameter_dtype, ParameterDtype::F32, "0.1 is no f16");
            assert_eq!(dequantize(isa, &constant.as_ref()).unwrap(), vec![0.1; 40]);
            assert_eq!(q(&[0.25; 40]).unwrap().parameter_dtype, ParameterDtype::F16);

            let empty = q(&[]).unwrap();
            assert_eq!((empty.codes.len(), empty.scales.len(), empty.errors), (0, 0, PairSums::default()));
            assert!(dequantize(isa, &empty.as_ref()).unwrap().is_empty());

            // Too small, and too large, for f16.
            for magnitude in [1e-9, 1e7] {
                let values: Vec<f32> = gaussian(64, 5).iter().map(|x| x * magnitude).collect();
                let quantized = q(&values).unwrap();
                assert_eq!(quantized.parameter_dtype, ParameterDtype::F32);
                assert!(quantized.errors.sqnr_db() > 20.0, "{}", quantized.errors.sqnr_db());
            }
            let large: Vec<f32> = gaussian(64, 5).iter().map(|x| x * 1e30).collect();
            assert!(q(&large).unwrap().errors.sqnr_db() > 20.0);
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for isa in Isa::available() {
        for &method in Method::ALL {
            let run = settings(4, 32, Scheme::Affine, method);
            for (bad, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
                for index in [0, 31, 32, 66, 600] {
                    for magnitude in [1.0, 1e-20, 1e16] {
                        let mut values: Vec<f32> = gaussian(601, 9).iter().map(|x| x * magnitude).collect();
                        values[index] = bad;
                        let bytes = f32_bytes(&values);
                        let error =
                            quantize(isa, Weights::one_row(Dtype::F32, &bytes).unwrap(), run, None).unwrap_err();
                        let expected = format!(
                            "weight {index} is {name}: only finite weights, in the range of f32, can be quantized"
                        );
                        assert_eq!(error.to_string(), expected);
                    }
                }
            }
            let mut wide = vec![0.0; 64];
            (wide[40], wide[50]) = (f32::MAX, f32::MIN);
            let error = quantize(isa, Weights::one_row(Dtype::F32, &f32_bytes(&wide)).unwrap(), run, None).unwrap_err();
            assert!(matches!(error, KernelError::Range { index: 32, .. }), "{error}");
        }
    }
}

#[test]
fn the_largest_weights_are_restored_or_refused_but_never_infinite() {
    for isa in Isa::available() {
        for &scheme in Scheme::ALL {
            for &bits in Bits::ALL {
                for &method in Method::ALL {
                    for magnitude in [f32::MAX, 4.3e37, 4.2e37, 1e37] {
                        let values = [magnitude, 0.0, magnitude / 3.0, -magnitude];
                        let run = Settings { bits, group_size: GroupSize::ALL[0], scheme, method };
                        match quantize(isa, Weights::one_row(Dtype::F32, &f32_bytes(&values)).unwrap(), run, None) {
                            Ok(q) => {
                                let restored = dequantize(isa, &q.as_ref()).unwrap();
                                assert!(restored.iter().all(|x| x.is_finite()), "{restored:?}");
                                assert!(q.errors.sum_ee.is_finite());
                            }
                            Err(error) => assert!(matches!(error, KernelError::Range { .. }) && magnitude > 4.25e37),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn subnormal_weights_are_not_made_worse_than_zeros() {
    let values: Vec<f32> = gaussian(64, 13).iter().map(|x| x * 1e-42).collect();
    let bytes = f32_bytes(&values);
    let run = settings(4, 32, Scheme::Affine, Method::Mse);
    let q = quantize(Isa::available()[0], Weights::one_row(Dtype::F32, &bytes).unwrap(), run, None).unwrap();
    assert!(q.errors.sqnr_db() >= 0.0, "{}", q.errors.sqnr_db());
}

#[test]
fn a_binary64_is_compared_as_such() {
    let bytes = |values: &[f64]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (a, b) = (bytes(&[1e200, 1.0]), bytes(&[1e200, 1.000000001]));
    let of = |bytes| Weights::one_row(Dtype::F64, bytes).unwrap();
    for isa in Isa::available() {
        let sums = pair_sums(isa, of(&a), of(&b)).unwrap();
        assert!((sums.max_abs_error - 1e-9).abs() < 1e-15);
        assert_eq!(stats(isa, of(&a)).max, 1e200);
        let run = settings(4, 32, Scheme::Affine, Method::Mse);
        let error = quantize(isa, of(&a), run, None).unwrap_err().to_string();
        assert!(error.starts_with("weight 0 is 1e200:"), "{error}");
    }
}

#[test]
fn a_length_beyond_the_codes_is_refused() {
    let bytes = f32_bytes(&gaussian(32, 1));
    let run = settings(4, 32, Scheme::Symmetric, Method::MinMax);
    let isa = Isa::available()[0];
    let q = quantize(isa, Weights::one_row(Dtype::F32, &bytes).unwrap(), run, None).unwrap();
    for length in [1 << 62, usize::MAX, 1 << 40] {
        let hostile = arrow_quant_kernels::QuantizedRef { length, row_length: 1, ..q.as_ref() };
        assert!(dequantize(isa, &hostile).unwrap_err().to_string().starts_with("bytes of codes: found 16"));
    }
}

#[test]
fn a_long_row_is_cut_without_a_trace() {
    // Longer than a block, and no multiple of a group.
    let values = gaussian((1 << 17) + 1000, 17);
    let bytes = f32_bytes(&values);
    let importance: Vec<f32> = (0..values.len()).map(|i| (i % 5) as f32).collect();
    let whole = Weights::one_row(Dtype::F32, &bytes).unwrap();
    for run in [settings(4, 64, Scheme::Affine, Method::Mse), settings(2, 256, Scheme::Asymmetric, Method::Mse)] {
        let isa = Isa::available()[0];
        let q = quantize(isa, whole, run, Some(&importance)).unwrap();
        assert_eq!(q, par_quantize(isa, whole, run, Some(&importance)).unwrap());
        // The part behind the second block alone, with its part of the importance.
        let tail = Weights::one_row(Dtype::F32, &bytes[4 << 17..]).unwrap();
        let alone = quantize(isa, tail, run, Some(&importance[1 << 17..])).unwrap();
        assert!(q.codes.ends_with(&alone.codes) && q.scales.ends_with(&alone.scales));
    }
}

#[test]
fn groups_end_with_their_row() {
    // Two rows of 40: the second row's weights are a thousand times larger, and must not share a scale with the first's.
    let mut values = gaussian(80, 1);
    values[40..].iter_mut().for_each(|x| *x *= 1000.0);
    let bytes = f32_bytes(&values);
    let run = settings(4, 64, Scheme::Affine, Method::Mse);
    let q = quantize(Isa::available()[0], Weights::new(Dtype::F32, &bytes, 40).unwrap(), run, None).unwrap();
    assert_eq!(q.scales.len(), 2 * q.parameter_dtype.size());
    let levels = decode(&q);
    let first: f64 = (0..40).map(|i| (levels[i] - f64::from(values[i])).powi(2)).sum();
    assert!(first < 0.4, "the first row's error is {first}");
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    let isa = Isa::available()[0];
    let bytes = f32_bytes(&gaussian(64, 1));
    assert!(Weights::new(Dtype::F32, &bytes[1..], 64).unwrap_err().to_string().contains("255 bytes of weights"));
    assert!(Weights::new(Dtype::F32, &bytes, 48).unwrap_err().to_string().contains("runs of 48"));
    let weights = Weights::one_row(Dtype::F32, &bytes).unwrap();
    let run = settings(4, 32, Scheme::Asymmetric, Method::MinMax);
    let error = quantize(isa, weights, run, Some(&[1.0; 3])).unwrap_err();
    assert!(error.to_string().contains("found 3, expected 64"), "{error}");
    let mut importance = [1.0; 64];
    importance[9] = -1.0;
    let error = quantize(isa, weights, run, Some(&importance)).unwrap_err();
    assert!(error.to_string().contains("importance 9 is -1"), "{error}");
    let mut q = quantize(isa, weights, run, None).unwrap();
    q.zero_points[1] = 16;
    assert!(dequantize(isa, &q.as_ref()).unwrap_err().to_string().contains("zero point"));
    q.codes.pop();
    assert!(dequantize(isa, &q.as_ref()).unwrap_err().to_string().contains("bytes of codes: found 31, expected 32"));
}

/// One hash over results in many settings: the same on every architecture, since all give the bytes of scalar code.
#[test]
fn results_are_the_same_on_every_architecture() {
    let mut values = gaussian(4 * 300, 21);
    values[7] *= 40.0;
    let bytes = unaligned(Dtype::BF16, &values);
    let weights = Weights::new(Dtype::BF16, &bytes[1..], 300).unwrap();
    let hash = |widths: &[i64], methods: &[Method]| {
        let mut hash = 0xcbf2_9ce4_8422_2325u64; // FNV-1a
        for (&bits, &scheme) in widths.iter().flat_map(|bits| Scheme::ALL.iter().map(move |scheme| (bits, scheme))) {
            for &method in methods {
                let run = settings(bits, 64, scheme, method);
                let q = quantize(Isa::available()[0], weights, run, None).unwrap();
                let sums = [q.errors.sum_aa, q.errors.sum_ab, q.errors.sum_ee, q.errors.max_abs_error];
                let sums = sums.map(f64::to_le_bytes);
                for byte in
                    q.codes.iter().chain(&q.scales).chain(&q.minima).chain(&q.zero_points).chain(sums.as_flattened())
                {
                    hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
                }
            }
        }
        format!("{hash:016x}")
    };
    assert_eq!(hash(&[2, 4, 8], &[Method::MinMax, Method::Mse]), "f343496bd119f01a");
    assert_eq!(hash(&[2, 4, 8], &[Method::Unbiased]), "9b0d6d5d9f14e2cc");
}

/// What `unbiased` restores is as large as the weights, along them; its codes are those of `mse`, and its error is little more.
#[test]
fn unbiased_weights_are_not_shrunk() {
    let values = gaussian(64 * 256, 5);
    let bytes = f32_bytes(&values);
    let weights = Weights::new(Dtype::F32, &bytes, 256).unwrap();
    let importance: Vec<f32> = (0..256).map(|i| 0.1 + (i % 7) as f32).collect();
    for (bits, tolerance) in [(2, 2e-3), (4, 1e-3), (8, 1e-3)] {
        for &scheme in Scheme::ALL {
            let by = |method| {
                quantize(Isa::available()[0], weights, settings(bits, 64, scheme, method), Some(&importance)).unwrap()
            };
            let (mse, unbiased) = (by(Method::Mse), by(Method::Unbiased));
            assert_eq!(mse.codes, unbiased.codes);
            assert!(unbiased.errors.sum_ee < 1.3 * mse.errors.sum_ee, "{bits} {scheme}");
            let restored = decode(&unbiased);
            for group in 0..values.len() / 64 {
                let along = |other: &dyn Fn(usize) -> f64| -> f64 {
                    let at = group * 64..(group + 1) * 64;
                    at.map(|i| f64::from(importance[i % 256]) * f64::from(values[i]) * other(i)).sum()
                };
                let (squares, products) = (along(&|i| f64::from(values[i])), along(&|i| restored[i]));
                assert!((products / squares - 1.0).abs() < tolerance, "{bits} {scheme}: {products} {squares}");
            }
        }
    }
}

/// Codes of golden groups, so that the packing and the rounding of the formats stay what they are.
#[test]
fn golden_bytes() {
    let isa = Isa::available()[0];
    let ramp: Vec<f32> = (0..32).map(|i| (i % 16) as f32 - 4.0).collect();
    let bytes = f32_bytes(&ramp);
    let q = |bits, scheme| {
        quantize(isa, Weights::one_row(Dtype::F32, &bytes).unwrap(), settings(bits, 32, scheme, Method::MinMax), None)
            .unwrap()
    };
    let affine = q(4, Scheme::Affine);
    assert_eq!(affine.codes[..8], [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe]);
    assert_eq!((&affine.scales[..], &affine.minima[..]), (&[0x00, 0x3c][..], &[0x00, 0xc4][..])); // 1, -4
    let asymmetric = q(4, Scheme::Asymmetric);
    assert_eq!((asymmetric.codes[0], asymmetric.zero_points[0]), (0x10, 4));
    // The greatest magnitude, 11, falls on code 0, so the scale is -11/8.
    let symmetric = q(4, Scheme::Symmetric);
    assert_eq!((symmetric.scales[..].to_vec(), symmetric.codes[7] >> 4), (vec![0x80, 0xbd], 0));
    let two = q(2, Scheme::Affine);
    // 0, .2, .4 ... of the range: codes 0 0 0 1, 1 1 1 1, 2 2 2 2, 2 3 3 3.
    assert_eq!(two.codes[..4], [0x40, 0x55, 0xaa, 0xfe]);
    assert_eq!(q(8, Scheme::Affine).codes[..3], [0, 17, 34]);
}
