//! Why the tensors have the bits that they have.

use std::collections::BTreeMap;

use arrow_quant_formats::manifest::grouping;
use maud::{Markup, html};

use super::figures::{self, grouped, measure, name, plural, tensors as number_of};
use super::{Attempt, ModelReport, TensorReport};

/// Rows of a table that are shown at once; more are folded.
const MAX_ROWS: usize = 24;

/// The section: rules, fallbacks, what was kept, and ties.
pub(super) fn section(report: &ModelReport) -> Markup {
    let is_tied = |tensor: &&TensorReport| tensor.same_as.is_some();
    let (ties, own): (Vec<_>, Vec<_>) = report.tensors.iter().partition(is_tied);
    let (quantized, kept): (Vec<_>, Vec<_>) = own.into_iter().partition(|tensor| tensor.bits.is_some());
    let raised = report.tensors.iter().filter(|tensor| !tensor.fallbacks.is_empty()).collect::<Vec<_>>();
    html! {
        section #decisions {
            h2 { "Decisions" }
            @if report.tensors.is_empty() { p.empty { "There was nothing to decide." } }
            @if !quantized.is_empty() {
                h3 { "How bits were chosen" }
                (reasons("Chosen by", &quantized))
            }
            @if !raised.is_empty() {
                h3 { "Fallbacks" }
                p.lead {
                    (plural(raised.len(), "tensor was", "tensors were"))
                    " below the quality floor at a lower width, and took the next."
                }
                (folded(&raised, "more fallbacks", fallbacks))
            }
            @if !kept.is_empty() {
                h3 { "Kept at their own dtype" }
                (reasons("Reason", &kept))
            }
            @if !ties.is_empty() {
                h3 { "Tied" }
                p.lead { (number_of(ties.len())) " stored once, under another name." }
                (folded(&ties, "more ties", tied))
            }
        }
    }
}

/// Tensors by what decided, most weights first.
fn reasons(heading: &str, tensors: &[&TensorReport]) -> Markup {
    let mut groups: BTreeMap<String, Vec<&TensorReport>> = BTreeMap::new();
    for tensor in tensors {
        groups.entry(reason(tensor)).or_default().push(tensor);
    }
    let weights = |group: &[&TensorReport]| group.iter().map(|tensor| tensor.elements).sum::<u64>();
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(weights(group)));
    html! {
        div.scroll tabindex="0" role="region" aria-label=(heading) {
            table.data {
                thead {
                    tr {
                        th scope="col" { (heading) }
                        th scope="col" { "Width" }
                        @for name in ["Tensors", "Weights", "Stored"] { th.n scope="col" { (name) } }
                        th scope="col" { "For example" }
                    }
                }
                tbody {
                    @for (because, group) in groups {
                        tr {
                            th scope="row" { (because) }
                            td { (widths(&group)) }
                            td.n { (grouped(group.len() as u64)) }
                            td.n { (figures::count(weights(&group))) }
                            td.n { (figures::bytes(group.iter().map(|tensor| tensor.bytes).sum())) }
                            td.name { (name(group[0])) }
                        }
                    }
                }
            }
        }
    }
}

/// `4 bits`, `F32, BF16`, or with counts `2 bits ×30, 4 bits ×3`.
fn widths(tensors: &[&TensorReport]) -> String {
    let mut counts: BTreeMap<(u8, String), usize> = BTreeMap::new();
    for tensor in tensors {
        let unit = if tensor.bits.is_some() { " bits" } else { "" };
        let width = (tensor.bits.unwrap_or(u8::MAX), figures::bits(tensor) + unit);
        *counts.entry(width).or_default() += 1;
    }
    let several = counts.len() > 1;
    let texts = counts.into_iter().map(|((_, text), count)| if several { format!("{text} ×{count}") } else { text });
    texts.collect::<Vec<_>>().join(", ")
}

/// The first rows, and the others behind a fold.
fn folded(tensors: &[&TensorReport], more: &str, table: fn(&[&TensorReport]) -> Markup) -> Markup {
    let (first, others) = tensors.split_at(tensors.len().min(MAX_ROWS));
    html! {
        (table(first))
        @if !others.is_empty() {
            details {
                summary { (grouped(others.len() as u64)) " " (more) }
                (table(others))
            }
        }
    }
}

/// Why a tensor has its bits. The figures of a fallback differ from tensor to tensor, and have a table of their own.
fn reason(tensor: &TensorReport) -> String {
    if tensor.fallbacks.is_empty() { tensor.because.to_string() } else { "below the floor with fewer bits".to_string() }
}

fn fallbacks(tensors: &[&TensorReport]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Fallbacks" {
            table.data {
                thead {
                    tr {
                        th scope="col" { "Tensor" }
                        th scope="col" { "Tried" }
                        th scope="col" { "Taken" }
                        th.n scope="col" { "SQNR dB" }
                        th.n scope="col" { "Cosine" }
                    }
                }
                tbody {
                    @for tensor in tensors {
                        tr {
                            th.name scope="row" { (name(tensor)) }
                            td { @for attempt in &tensor.fallbacks { (tried(attempt)) } }
                            td { (taken(tensor)) }
                            td.n { (figures::sqnr(tensor, 2)) }
                            td.n { (measure(tensor.cosine_similarity, 6)) }
                        }
                    }
                }
            }
        }
    }
}

fn tried(attempt: &Attempt) -> Markup {
    let cosine = measure(attempt.cosine_similarity, 6);
    html! {
        span.tried {
            (attempt.bits) " bits"
            span.muted { " /" (grouping(Some(attempt.bits), attempt.group_size, &attempt.encoding)) }
            " " (measure(attempt.sqnr_db, 2)) " dB"
            span.muted { " cosine " (cosine) }
        }
    }
}

fn taken(tensor: &TensorReport) -> Markup {
    html! {
        @match tensor.bits {
            Some(bits) => {
                strong { (bits) " bits" }
                span.muted { " /" (tensor.grouping()) }
            }
            None => strong { "kept, " (tensor.dtype) },
        }
    }
}

fn tied(tensors: &[&TensorReport]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Tied tensors" {
            table.data {
                thead { tr { th scope="col" { "Tensor" } th scope="col" { "Stored as" } } }
                tbody {
                    @for tensor in tensors {
                        tr {
                            th.name scope="row" { (name(tensor)) }
                            td.name { code { (tensor.same_as.as_deref().unwrap_or_default()) } }
                        }
                    }
                }
            }
        }
    }
}
