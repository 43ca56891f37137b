//! What was asked for, and what was reached: the command, the target size and the floor.

use maud::{Markup, html};
use serde_json::Value;

use super::figures::{self, bytes, measure};
use super::{ModelReport, TensorReport};
use crate::config::Shape;
use crate::numbers::DECIBELS;
use crate::{DeploymentProfile, DiffusionQuantConfig, FIELDS};

/// The command, the goals and what a dB is.
pub(super) fn goals(report: &ModelReport) -> Markup {
    html! {
        dl.goals {
            div { dt { "Command" } dd { code { (command(report)) } @if !report.layers.is_empty() { ", with a calibration" } } }
            @if let Some((asked, reached)) = target(report) {
                div { dt { "Target" } dd { (asked) ", reached " (reached) } }
            }
            @if let Some((asked, reached)) = floor(report) {
                div { dt { "Floor" } dd { (asked) ", " (reached) } }
            }
        }
        p.aware { (DECIBELS) "." }
    }
}

/// The command that makes the model again. The fields that are not those of the profile have their flags.
fn command(report: &ModelReport) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let profile = report.settings.get("deployment_profile").and_then(Value::as_str);
    let profile = DeploymentProfile::ALL.into_iter().find(|(_, name)| *name == profile.unwrap_or_default());
    let mut defaults =
        profile.map_or_else(DiffusionQuantConfig::default, |(profile, _)| DiffusionQuantConfig::from_profile(profile));
    let mut words = vec!["arrow-quant".to_string(), "quantize".to_string(), quoted(&report.name), "OUT".to_string()];
    for field in FIELDS {
        let Some(value) = report.settings.get(field.name) else { continue };
        let default = match field.name {
            // The profile is a flag where it is not the default one.
            "deployment_profile" => field.get(&DiffusionQuantConfig::default()),
            _ => field.get(&defaults),
        };
        if *value == default || value.is_null() {
            continue;
        }
        // What follows from a field needs no flag of its own, as the type does from its bits.
        let _ = field.set(&mut defaults, value);
        let flag = format!("--{}", field.flag());
        let values: Vec<String> = match (field.shape, value) {
            (Shape::Names, Value::Array(names)) => vec![names.iter().map(text).collect::<Vec<_>>().join(",")],
            (Shape::Texts, Value::Array(texts)) => texts.iter().map(text).collect(),
            (Shape::Mapping, Value::Object(entries)) => {
                entries.iter().map(|(name, value)| format!("{name}={}", text(value))).collect()
            }
            (_, value) => vec![text(value)],
        };
        match field.shape {
            Shape::Switch => words.extend(values.iter().map(|value| format!("{flag}={value}"))),
            _ => words.extend(values.iter().flat_map(|value| [flag.clone(), quoted(value)])),
        }
    }
    words.join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// The target size and what was reached, in the unit of the target.
fn target(report: &ModelReport) -> Option<(String, String)> {
    let asked = |name: &str| report.settings.get(name).and_then(Value::as_f64);
    let totals = &report.totals;
    if let Some(bits) = asked("target_bpw") {
        return Some((format!("{bits} bits per weight"), format!("{:.3}", totals.bits_per_weight)));
    }
    let size = asked("target_model_size_mb")?;
    Some((bytes((size * 1e6) as u64), bytes(totals.stored_bytes)))
}

/// The floor, and the tensor that is nearest to it.
fn floor(report: &ModelReport) -> Option<(String, Markup)> {
    let floor = report.settings.get("min_accuracy").and_then(Value::as_f64)?;
    let quantized = report.tensors.iter().filter(|tensor| tensor.bits.is_some());
    let measured = quantized.filter_map(|tensor| Some((tensor.cosine_similarity?, tensor)));
    let lowest: Option<(f64, &TensorReport)> = measured.min_by(|(a, _), (b, _)| a.total_cmp(b));
    let fell_back = report.tensors.iter().filter(|tensor| !tensor.fallbacks.is_empty()).count();
    let reached = html! {
        @match lowest {
            Some((cosine, tensor)) => { "lowest " (measure(Some(cosine), 6)) " of " (figures::name(tensor)) },
            None => "no tensor was quantized",
        }
        @if fell_back > 0 { "; " (figures::tensors(fell_back)) " fell back to more bits" }
    };
    Some((format!("cosine similarity {floor}"), reached))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell() {
        assert_eq!(quoted("dream-7b"), "dream-7b");
        assert_eq!(quoted("it's a (model)"), "'it'\\''s a (model)'");
        assert_eq!(quoted(""), "''");
    }
}
