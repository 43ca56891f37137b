//! What a calibration made of the inputs of layers.

use maud::{Markup, html};

use super::figures::{NONE, measure};
use super::{LayerReport, ModelReport};

/// The section: the layers, the worst inputs first. There is none without a calibration.
pub(super) fn section(report: &ModelReport) -> Markup {
    let mut layers: Vec<&LayerReport> = report.layers.iter().collect();
    layers.sort_by(|a, b| a.worst_activation_sqnr_db.total_cmp(&b.worst_activation_sqnr_db));
    html! {
        @if !layers.is_empty() {
            section #layers {
                h2 { "Layers" }
                p.lead {
                    "How the inputs of the layers are quantized, those with the lowest SQNR at their worst timestep first, and \
                     what each step gained in dB, estimated from the calibration."
                }
                (table(&layers))
            }
        }
    }
}

fn table(layers: &[&LayerReport]) -> Markup {
    let has_states = layers.iter().any(|layer| !layer.state.is_empty());
    html! {
        div.scroll tabindex="0" role="region" aria-label="Layers" {
            table.data {
                thead {
                    tr {
                        td colspan=(if has_states { 6 } else { 5 }) {}
                        th.n scope="colgroup" colspan="2" { "SQNR in dB" }
                        th.n scope="colgroup" colspan="5" { "gained in dB by" }
                    }
                    tr {
                        th scope="col" { "Inputs of" }
                        @if has_states { th scope="col" { "State" } }
                        @for name in [
                            "Channels", "Timesteps", "Groups", "Alpha", "mean", "worst", "clipping", "groups", "at worst",
                            "smoothing", "importance",
                        ] {
                            th.n scope="col" { (name) }
                        }
                    }
                }
                tbody { @for layer in layers { (row(layer, has_states)) } }
            }
        }
    }
}

fn row(layer: &LayerReport, has_states: bool) -> Markup {
    let alpha = layer.smoothing_alpha;
    let figures = [
        layer.activation_sqnr_db,
        layer.worst_activation_sqnr_db,
        layer.clipping_gain_db,
        layer.time_groups_gain_db,
        layer.worst_time_groups_gain_db,
    ];
    html! {
        tr {
            th.name scope="row" { code { (layer.tensor) } }
            @if has_states { td { @if layer.state.is_empty() { (NONE) } @else { (layer.state) } } }
            @for number in [layer.channels, layer.timesteps, layer.time_groups] { td.n { (number) } }
            td.n { (measure(alpha, 2)) }
            @for db in figures { td.n { (measure(Some(db), 2)) } }
            td.n { (measure(alpha.map(|_| layer.smoothing_gain_db), 2)) }
            td.n { (measure(layer.importance_gain_db, 2)) }
        }
    }
}
