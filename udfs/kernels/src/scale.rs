//! Weights with their input channels scaled.

use crate::dequantize::to_f32;
use crate::weights::Weights;
use crate::{Isa, KernelError, Result};

/// The weights as f32, element j of each row times `factors[j]`, rounded once.
///
/// # Errors
/// Unless there is one factor for each element of a row, each finite and above 0.
pub fn scale_channels(isa: Isa, weights: Weights<'_>, factors: &[f32]) -> Result<Vec<f32>> {
    if factors.len() != weights.row_length() && !weights.is_empty() {
        let what = "factors, one for each weight of a row";
        return Err(KernelError::Mismatch { what, found: factors.len(), expected: weights.row_length() });
    }
    if let Some(index) = factors.iter().position(|&factor| !(factor.is_finite() && factor > 0.0)) {
        return Err(KernelError::Factor { index, value: factors[index] });
    }
    let mut floats = to_f32(isa, weights);
    for row in floats.chunks_exact_mut(factors.len().max(1)) {
        for (weight, factor) in row.iter_mut().zip(factors) {
            *weight *= factor;
        }
    }
    Ok(floats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    #[test]
    fn each_channel_has_its_factor() {
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, -4.0, 5.0, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let weights = Weights::new(Dtype::F32, &bytes, 3).unwrap();
        for isa in Isa::available() {
            let scaled = scale_channels(isa, weights, &[2.0, 0.5, 1.0]).unwrap();
            assert_eq!(scaled, [2.0, 1.0, 3.0, -8.0, 2.5, 0.0]);
        }
    }

    #[test]
    fn wrong_factors_are_refused() {
        let bytes = [0; 8];
        let weights = Weights::new(Dtype::F32, &bytes, 2).unwrap();
        let message =
            |factors: &[f32]| scale_channels(Isa::active().unwrap(), weights, factors).unwrap_err().to_string();
        assert_eq!(message(&[1.0]), "factors, one for each weight of a row: found 1, expected 2");
        for (wrong, shown) in [(0.0, "0"), (-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
            assert_eq!(message(&[1.0, wrong]), format!("factor 1 is {shown}, allowed: finite numbers above 0"));
        }
    }
}
