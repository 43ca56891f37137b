//! Figures as people read them.

use maud::{Markup, html};

use super::TensorReport;
pub(super) use crate::numbers::{bytes, count, grouped};

/// Shown where there is no figure.
pub(super) const NONE: &str = "–";

/// `1 tensor`, `2 tensors`.
pub(super) fn tensors(number: usize) -> String {
    plural(number, "tensor", "tensors")
}

/// A number and what it counts.
pub(super) fn plural(number: usize, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number as u64), if number == 1 { one } else { many })
}

/// A measure with a fixed number of decimals.
pub(super) fn measure(value: Option<f64>, decimals: usize) -> String {
    value.filter(|x| x.is_finite()).map_or(NONE.to_string(), |x| format!("{x:.decimals$}"))
}

/// A part of a whole in per cent.
pub(super) fn percent(part: u64, whole: u64) -> String {
    match 100.0 * part as f64 / whole.max(1) as f64 {
        share if share > 0.0 && share < 0.1 => "< 0.1 %".to_string(),
        share => format!("{share:.1} %"),
    }
}

/// `4096 × 4096`; a scalar has no dimensions to show.
pub(super) fn shape(shape: &[i64]) -> String {
    match shape {
        [] => "scalar".to_string(),
        _ => shape.iter().map(i64::to_string).collect::<Vec<_>>().join(" × "),
    }
}

/// Stored bits per weight, scales included.
pub(super) fn bits_per_weight(tensor: &TensorReport) -> String {
    let stored = tensor.elements > 0 && tensor.same_as.is_none();
    measure(stored.then(|| 8.0 * tensor.bytes as f64 / tensor.elements as f64), 2)
}

/// Decibels, if they are a number: a tensor without error may have infinitely many.
pub(super) fn db(tensor: &TensorReport) -> Option<f64> {
    tensor.sqnr_db.filter(|db| db.is_finite())
}

/// Whether a tensor came back from its codes as it was.
pub(super) fn is_exact(tensor: &TensorReport) -> bool {
    tensor.bits.is_some() && db(tensor).is_none() && tensor.max_abs_error.unwrap_or(0.0) == 0.0
}

/// Decibels with so many decimals.
pub(super) fn sqnr(tensor: &TensorReport, decimals: usize) -> String {
    if is_exact(tensor) { "exact".to_string() } else { measure(db(tensor), decimals) }
}

/// The greatest error of a weight.
pub(super) fn error(value: Option<f64>) -> String {
    match value.filter(|x| x.is_finite()) {
        Some(x) if x != 0.0 && x.abs() < 1e-3 => format!("{x:.1e}"),
        Some(0.0) => "0".to_string(),
        other => measure(other, 4),
    }
}

/// `4 bits`; of a kept tensor its dtype.
pub(super) fn bits(tensor: &TensorReport) -> String {
    match (&tensor.same_as, tensor.bits) {
        (Some(_), _) => "tied".to_string(),
        (None, Some(bits)) => bits.to_string(),
        (None, None) => tensor.dtype.clone(),
    }
}

/// A tensor's name after its component's.
pub(super) fn name(tensor: &TensorReport) -> Markup {
    html! {
        @if !tensor.component.is_empty() { span.component { (tensor.component) } " " }
        code { (tensor.tensor) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!([percent(0, 0), percent(1, 10_000), percent(1, 8)], ["0.0 %", "< 0.1 %", "12.5 %"]);
        assert_eq!([shape(&[]), shape(&[2, 3])], ["scalar", "2 × 3"]);
        assert_eq!([None, Some(0.0), Some(0.01234), Some(1.2e-5)].map(error), ["–", "0", "0.0123", "1.2e-5"]);
        assert_eq!([tensors(1), tensors(1200)], ["1 tensor", "1,200 tensors"]);
    }
}
