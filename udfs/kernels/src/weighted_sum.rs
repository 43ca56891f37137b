//! The weighted sum of two slices of weights.

use crate::dequantize::to_f32;
use crate::{Dtype, Encoding, Isa, KernelError, Result, Weights};

/// `a · x + b · y`, element by element, in the dtype of `x` or, where its weights are not floats of one, in F32: the
/// dtype, and little-endian bytes of as many elements.
///
/// Both are widened to f32 first, which rounds F64 alone. Then `fma(b, y, a · x)`: the product `a · x` is rounded to f32, the
/// sum with the exact product `b · y` once more, and the result once to the dtype of `x`. All roundings are to nearest, ties
/// to even. What the dtype cannot hold is infinite; NaN stays NaN.
///
/// # Errors
/// If the slices differ in length.
pub fn weighted_sum(isa: Isa, a: f32, x: Weights<'_>, b: f32, y: Weights<'_>) -> Result<(Dtype, Vec<u8>)> {
    if x.len() != y.len() {
        return Err(KernelError::Mismatch { what: "weights of the second tensor", found: y.len(), expected: x.len() });
    }
    let mut sums = to_f32(isa, x);
    for (x, y) in sums.iter_mut().zip(to_f32(isa, y)) {
        *x = b.mul_add(y, a * *x);
    }
    let dtype = match x.encoding() {
        Encoding::Float(dtype) => dtype,
        Encoding::Fp8(_) | Encoding::Grouped(..) | Encoding::Block(_) => Dtype::F32,
    };
    Ok((dtype, narrow(&sums, dtype)))
}

/// Floats as little-endian elements of a dtype.
fn narrow(floats: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F64 => floats.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect(),
        Dtype::F32 => floats.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => floats.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::BF16 => floats.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(a: f32, x: (Dtype, &[u8]), b: f32, y: (Dtype, &[u8])) -> Result<Vec<u8>> {
        let isa = Isa::active()?;
        Ok(weighted_sum(isa, a, Weights::one_row(x.0, x.1)?, b, Weights::one_row(y.0, y.1)?)?.1)
    }

    fn bytes(floats: &[f32]) -> Vec<u8> {
        floats.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn weighted_sum_is_one_product_and_one_fused_sum() {
        let (x, y) = ([1.0, 0.1, -3.5e-20, 3e38], [2.0, 0.3, 7.25, 3e38]);
        let found = sum(0.3, (Dtype::F32, &bytes(&x)), 0.7, (Dtype::F32, &bytes(&y))).unwrap();
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 0.7_f32.mul_add(*y, 0.3 * x)).collect();
        assert_eq!(found, bytes(&expected));
    }

    #[test]
    fn weighted_sum_has_the_first_dtype_rounded_to_nearest_even() {
        // 1 and 1 + 2^-7 are neighbours in bf16: their mean is a tie.
        let neighbours =
            [half::bf16::from_f32(1.0), half::bf16::from_f32(1.007_812_5), half::bf16::from_f32(1.015_625)];
        let element = |index: usize| neighbours[index].to_le_bytes().to_vec();
        let mean = |i: usize, j: usize| sum(0.5, (Dtype::BF16, &element(i)), 0.5, (Dtype::BF16, &element(j))).unwrap();
        assert_eq!((mean(0, 1), mean(1, 2)), (element(0), element(2)));
        // Whatever the dtype of the second.
        let half_one = half::f16::from_f32(1.0).to_le_bytes();
        let found = sum(2.0, (Dtype::F16, &half_one), 1.0, (Dtype::F64, &0.5_f64.to_le_bytes())).unwrap();
        assert_eq!(found, half::f16::from_f32(2.5).to_le_bytes());
        let found = sum(1.0, (Dtype::F64, &0.5_f64.to_le_bytes()), 1.0, (Dtype::F16, &half_one)).unwrap();
        assert_eq!(found, 1.5_f64.to_le_bytes());
        // Beyond what f16 holds.
        let large = half::f16::from_f32(60_000.0).to_le_bytes();
        let found = sum(1.0, (Dtype::F16, &large), 1.0, (Dtype::F16, &large)).unwrap();
        assert_eq!(found, half::f16::INFINITY.to_le_bytes());
    }

    #[test]
    fn weighted_sum_refuses_unequal_lengths() {
        let error = sum(1.0, (Dtype::F32, &bytes(&[1.0, 2.0])), 1.0, (Dtype::F32, &bytes(&[1.0]))).unwrap_err();
        assert_eq!(error.to_string(), "weights of the second tensor: found 1, expected 2");
        assert!(sum(1.0, (Dtype::F32, &[]), 1.0, (Dtype::F16, &[])).unwrap().is_empty());
    }
}
