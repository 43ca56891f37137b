//! What ggml's fills of all types have in common.

use super::MOST;

/// Where magnitudes are smaller, a group is taken for zeros.
pub(super) const NOTHING: f32 = 1e-15;

/// 1 / d, and 0 for 0.
pub(super) fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The first weight of the greatest magnitude.
pub(super) fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |most, &x| if x.abs() > most.abs() { x } else { most })
}

pub(super) fn magnitude(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most, &x| if x.abs() > most { x.abs() } else { most })
}

/// The least and the greatest weight; of the two zeros, the first.
pub(super) fn first_extremes(x: &[f32]) -> (f32, f32) {
    x.iter()
        .fold((f32::MAX, -f32::MAX), |(low, high), &x| (if x < low { x } else { low }, if x > high { x } else { high }))
}

/// Importance times the square root of a mean square and the weight's own, so that large weights are not given up.
pub(super) fn spread(importance: &[f32], x: &[f32], mean: f32) -> [f32; MOST] {
    let mut weights = [0.0; MOST];
    for ((weight, &i), &x) in weights.iter_mut().zip(importance).zip(x) {
        *weight = i * (mean + x * x).sqrt();
    }
    weights
}
