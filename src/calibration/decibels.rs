//! Ratios in decibels, and what is said of many of them.

/// In dB, from -300 to 300.
pub(crate) fn decibels(ratio: f64) -> f64 {
    let ratio = if ratio.is_nan() { 0.0 } else { ratio };
    10.0 * libm::log10(ratio.clamp(1e-30, 1e30))
}

/// The mean; 0 of no values.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// SQNRs in dB of those timesteps that have a signal, which others cannot lose; 300 if none has.
pub(crate) fn sqnr_db(powers: &[f64], noise: &[f64]) -> Vec<f64> {
    let with_signal = powers.iter().zip(noise).filter(|(power, _)| **power > 0.0);
    let found: Vec<f64> = with_signal.map(|(power, noise)| decibels(power / noise)).collect();
    if found.is_empty() { vec![300.0] } else { found }
}

/// The least value; infinity of no values.
pub(crate) fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
