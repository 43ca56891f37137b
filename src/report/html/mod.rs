//! The report as one page of HTML: no network, no fonts, no script but the one that sorts tables, and the same bytes for the
//! same report.

mod decisions;
mod figures;
mod goals;
mod heat_map;
mod layers;
mod scale;
mod stacks;
mod tensors;
#[cfg(test)]
mod tests;
mod widths;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::ModelReport;
use crate::{Attempt, LayerReport, TensorReport};
use figures::{NONE, grouped, measure, plural};

/// Sorts tables. The page is the same without it.
const SORT: &str = include_str!("sort.js");

/// Forbids the page whatever it does not need, should a name ever find a way around the escaping. The one script is allowed by
/// its hash, which a test compares.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-WzDlEKOez0Sys78TDerTHYBrJy9PHt2ipPcYCXEebzM='";

/// The report as one page of HTML that needs nothing else.
pub(super) fn html(report: &ModelReport) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (report.name) " – quantization report" }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                main {
                    (header(report))
                    (heat_map::section(report))
                    (widths::section(report))
                    (tensors::worst(report))
                    (layers::section(report))
                    (decisions::section(report))
                    (notes(&report.notes))
                    (settings(report))
                    (tensors::all(report))
                }
                script { (PreEscaped(SORT)) }
            }
        }
    };
    page.into_string()
}

fn header(report: &ModelReport) -> Markup {
    let sections = [
        ("blocks", "Quality by block"),
        ("widths", "Bit widths"),
        ("worst", "Lowest SQNR"),
        ("layers", "Layers"),
        ("decisions", "Decisions"),
        ("notes", "Notes"),
        ("settings", "Settings"),
        ("tensors", "All tensors"),
    ];
    let is_there = |id| match id {
        "layers" => !report.layers.is_empty(),
        "notes" => !report.notes.is_empty(),
        _ => true,
    };
    html! {
        header {
            p.kind {
                "Quantization report"
                @if let Some(modality) = &report.modality { " · " (modality) }
            }
            h1 { (report.name) }
            (totals(report))
            (goals::goals(report))
            (time_aware(report))
            nav aria-label="Sections" {
                @for (id, name) in sections { @if is_there(id) { a href={ "#" (id) } { (name) } } }
            }
        }
    }
}

/// The model in six figures.
fn totals(report: &ModelReport) -> Markup {
    let totals = &report.totals;
    let ties = report.tensors.iter().filter(|tensor| tensor.same_as.is_some()).count();
    let quantized = report.tensors.iter().filter(|tensor| tensor.same_as.is_none() && tensor.bits.is_some()).count();
    let kept = report.tensors.len() - ties - quantized;
    let size = html! {
        (figures::bytes(totals.original_bytes)) span.arrow { " → " } (figures::bytes(totals.stored_bytes))
    };
    let sqnr = html! { (measure(totals.sqnr_db, 2)) @if totals.sqnr_db.is_some() { small { " dB" } } };
    let bits_per_weight = measure(Some(totals.bits_per_weight), 2);
    let ratio = match totals.stored_bytes {
        0 => NONE.to_string(),
        _ => measure(Some(totals.compression_ratio), 2) + "×",
    };
    let tensors = html! { (grouped(quantized as u64)) small { " quantized" } };
    let tied = if ties > 0 { format!(", {} tied", grouped(ties as u64)) } else { String::new() };
    let others = format!("{} kept{tied}", grouped(kept as u64));
    let figure = |class: &str, name: &str, value: Markup, about: &str| {
        html! { div.(class) { dt { (name) } dd { span.value { (value) } span.about { (about) } } } }
    };
    html! {
        dl.totals {
            (figure("size", "Size", size, &format!("{} weights", figures::count(totals.weights))))
            (figure("one", "Compression", html! { (ratio) }, "original ÷ stored"))
            (figure("one", "Bits per weight", html! { (bits_per_weight) }, "everything included"))
            (figure("one", "SQNR", sqnr, "of all quantized weights"))
            (figure("one", "Cosine", html! { (measure(totals.cosine_similarity, 6)) }, "of all quantized weights"))
            (figure("one", "Tensors", tensors, &others))
        }
    }
}

/// Whether timesteps had a part in it, and how much or why not. Earlier versions said nothing of it.
fn time_aware(report: &ModelReport) -> Markup {
    let groups = report.layers.iter().map(|layer| layer.time_groups).sum();
    html! {
        @if report.time_aware {
            p.aware {
                "Time-aware: " (plural(groups, "time group", "time groups")) " in "
                (plural(report.layers.len(), "layer", "layers"))
            }
        } @else if let Some(reason) = &report.reason {
            p.aware { "Not time-aware: " (reason) }
        }
    }
}

fn notes(notes: &[String]) -> Markup {
    html! {
        @if !notes.is_empty() {
            section #notes {
                h2 { "Notes" }
                ul.notes { @for note in notes { li { (note) } } }
            }
        }
    }
}

fn settings(report: &ModelReport) -> Markup {
    html! {
        section #settings {
            h2 { "Settings" }
            dl.settings {
                div { dt { "created by" } dd { (report.created_by) } }
                @for (name, value) in &report.settings { div { dt { (name) } dd { (setting(value)) } } }
            }
        }
    }
}

/// A value as it would be typed.
fn setting(value: &Value) -> Markup {
    html! {
        @match value {
            Value::Null => (NONE),
            Value::Bool(value) => (value),
            Value::String(text) => (text),
            Value::Number(number) => (number.to_string()),
            Value::Array(values) if values.is_empty() => (NONE),
            Value::Object(fields) if fields.is_empty() => (NONE),
            Value::Array(values) => @for (index, value) in values.iter().enumerate() {
                @if index > 0 { ", " }
                (setting(value))
            },
            Value::Object(fields) => ul {
                @for (name, value) in fields { li { code { (name) } ": " (setting(value)) } }
            },
        }
    }
}
