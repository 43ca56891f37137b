//! Tables of tensors: the worst, and all.

use maud::{Markup, html};

use super::figures::{self, NONE, measure, name, tensors as number_of};
use super::{ModelReport, TensorReport};

/// Tensors among the worst.
const WORST: usize = 20;

/// The section: the tensors with the lowest SQNR.
pub(super) fn worst(report: &ModelReport) -> Markup {
    let measured = report.tensors.iter().filter_map(|tensor| figures::db(tensor).map(|db| (db, tensor)));
    let mut measured: Vec<(f64, &TensorReport)> = measured.collect();
    measured.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all = measured.len();
    measured.truncate(WORST);
    html! {
        section #worst {
            h2 { "Lowest SQNR" }
            @if measured.is_empty() {
                p.empty { "No tensor lost anything." }
            } @else {
                @if all > WORST { p.lead { "The " (WORST) " lowest of " (number_of(all)) " that lost something." } }
                (table("Tensors with the lowest SQNR", measured.into_iter().map(|(_, tensor)| tensor), false))
            }
        }
    }
}

/// The section: every tensor in the model's order, folded.
pub(super) fn all(report: &ModelReport) -> Markup {
    html! {
        section.all #tensors {
            h2 { "All tensors" }
            details {
                summary { (number_of(report.tensors.len())) ", in the model’s order" }
                (table("All tensors", report.tensors.iter(), true))
            }
        }
    }
}

fn table<'a>(label: &str, tensors: impl Iterator<Item = &'a TensorReport>, because: bool) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table.data {
                thead {
                    tr {
                        th scope="col" { "Tensor" }
                        @for name in [
                            "SQNR dB", "Cosine", "Max error", "Bits", "Group size", "Bits/weight", "Shape",
                        ] {
                            th.n scope="col" { (name) }
                        }
                        @if because { th scope="col" { "Because" } }
                    }
                }
                tbody { @for tensor in tensors { (row(tensor, because)) } }
            }
        }
    }
}

fn row(tensor: &TensorReport, because: bool) -> Markup {
    html! {
        tr {
            th.name scope="row" { (name(tensor)) }
            td.n { (figures::sqnr(tensor, 2)) }
            td.n { (measure(tensor.cosine_similarity, 6)) }
            td.n { (figures::error(tensor.max_abs_error)) }
            td.n { (figures::bits(tensor)) }
            td.n { (if tensor.bits.is_some() { tensor.grouping() } else { NONE.to_string() }) }
            td.n { (figures::bits_per_weight(tensor)) }
            td.n { (figures::shape(&tensor.shape)) }
            @if because {
                td.why {
                    @match &tensor.same_as {
                        Some(name) => { "same as " code { (name) } },
                        None => (tensor.because),
                    }
                }
            }
        }
    }
}
