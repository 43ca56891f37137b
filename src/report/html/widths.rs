//! How many weights have how many bits, and how well each width keeps them.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::figures::{self, grouped, measure, percent};
use super::scale::Bins;
use super::{ModelReport, TensorReport};

/// Bars that a small chart has room for.
const MAX_BINS: usize = 30;
/// A chart, in units of its view box.
const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 124.0;
/// Where the bars are: left, right, top and base line.
const PLOT: [f64; 4] = [30.0, 312.0, 12.0, 98.0];
/// Labels below the base line, at most.
const MAX_TICKS: usize = 6;

/// The tensors of one width; without bits those kept.
struct Width<'a> {
    bits: Option<u8>,
    tensors: Vec<&'a TensorReport>,
}

impl Width<'_> {
    fn name(&self) -> String {
        match self.bits {
            Some(1) => "1 bit".to_string(),
            Some(bits) => format!("{bits} bits"),
            None => "Kept".to_string(),
        }
    }

    fn class(&self) -> String {
        self.bits.map_or("kept".to_string(), |bits| format!("w{bits}"))
    }

    fn weights(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.elements).sum()
    }

    fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// In order.
    fn sqnr(&self) -> Vec<f64> {
        let mut values: Vec<f64> = self.tensors.iter().filter_map(|tensor| figures::db(tensor)).collect();
        values.sort_by(f64::total_cmp);
        values
    }
}

/// The section: shares of the weights, then for each width how many tensors have which SQNR.
pub(super) fn section(report: &ModelReport) -> Markup {
    let widths = widths(&report.tensors);
    let weights = widths.iter().map(Width::weights).sum();
    let bytes = widths.iter().map(Width::bytes).sum();
    html! {
        section #widths {
            h2 { "Bit widths" }
            @if widths.is_empty() {
                p.empty { "The model has no tensors." }
            } @else {
                (shares(&widths, weights))
                (table(&widths, weights, bytes))
            }
            @if report.tensors.iter().any(|tensor| figures::db(tensor).is_some()) {
                h3 { "Tensors by SQNR, in dB" }
                div.charts { @for width in &widths { (chart(width)) } }
            }
        }
    }
}

/// From few bits to many, then those kept. Tied tensors are counted under the name that stores them.
fn widths(tensors: &[TensorReport]) -> Vec<Width<'_>> {
    let mut widths: BTreeMap<u8, Width> = BTreeMap::new();
    for tensor in tensors.iter().filter(|tensor| tensor.same_as.is_none()) {
        let width = widths.entry(tensor.bits.unwrap_or(u8::MAX));
        width.or_insert(Width { bits: tensor.bits, tensors: vec![] }).tensors.push(tensor);
    }
    widths.into_values().collect()
}

fn shares(widths: &[Width], weights: u64) -> Markup {
    let text = widths.iter().map(|width| format!("{} {}", width.name(), percent(width.weights(), weights)));
    let label = format!("Share of weights: {}", text.collect::<Vec<_>>().join(", "));
    let share = |width: &Width| format!("flex-grow:{:.4}", 100.0 * width.weights() as f64 / weights.max(1) as f64);
    html! {
        div.shares role="img" aria-label=(label) {
            @for width in widths.iter().filter(|width| width.weights() > 0) {
                span.(width.class()) style=(share(width)) {}
            }
        }
    }
}

fn table(widths: &[Width], weights: u64, bytes: u64) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Bit widths" {
            table.data {
                thead {
                    tr {
                        th scope="col" { "Width" }
                        @for name in [
                            "Tensors", "Weights", "% of weights", "Stored", "% of bytes", "Bits/weight", "Lowest dB",
                            "Median dB",
                        ] {
                            th.n scope="col" { (name) }
                        }
                    }
                }
                tbody {
                    @for width in widths {
                        @let sqnr = width.sqnr();
                        tr {
                            th scope="row" { span.dot.(width.class()) {} (width.name()) }
                            td.n { (grouped(width.tensors.len() as u64)) }
                            td.n { (figures::count(width.weights())) }
                            td.n { (percent(width.weights(), weights)) }
                            td.n { (figures::bytes(width.bytes())) }
                            td.n { (percent(width.bytes(), bytes)) }
                            td.n { (measure(Some(8.0 * width.bytes() as f64 / width.weights() as f64), 2)) }
                            td.n { (measure(sqnr.first().copied(), 2)) }
                            td.n { (measure(sqnr.get(sqnr.len() / 2).copied(), 2)) }
                        }
                    }
                }
            }
        }
    }
}

/// One width's histogram, over its own range: widths are far apart, the tensors of one are not.
fn chart(width: &Width) -> Markup {
    let values = width.sqnr();
    let Some(bins) = Bins::over(&values, MAX_BINS) else { return html! {} };
    let (lowest, highest) = (values[0], values[values.len() - 1]);
    let counts = bins.count(&values);
    let tallest = counts.iter().copied().max().unwrap_or(0).max(1);
    let title = format!("{}: {} from {lowest:.1} to {highest:.1} dB", width.name(), figures::tensors(values.len()));
    let [left, right, top, base] = PLOT;
    let slot = (right - left) / bins.number as f64;
    html! {
        figure.(width.class()) {
            figcaption { strong { (width.name()) } " " span { (figures::tensors(values.len())) } }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(title) {
                title { (title) }
                line.grid x1=(left) x2=(right) y1=(top) y2=(top) {}
                text.end x=(left - 6.0) y=(top + 3.5) { (tallest) }
                text.end x=(left - 6.0) y=(base + 3.5) { "0" }
                @for (bin, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                    @let height = (base - top) * *count as f64 / tallest as f64;
                    rect x=(format!("{:.2}", left + slot * bin as f64 + 0.5)) y=(format!("{:.2}", base - height))
                        width=(format!("{:.2}", slot - 1.0)) height=(format!("{height:.2}")) {
                        @let range = format!("{:.1}–{:.1} dB: ", bins.edge(bin), bins.edge(bin + 1));
                        title { (range) (figures::tensors(*count)) }
                    }
                }
                line.base x1=(left) x2=(right) y1=(base) y2=(base) {}
                (ticks(&bins, slot))
            }
        }
    }
}

/// Labels at round numbers of decibels, which are edges of bins.
fn ticks(bins: &Bins, slot: f64) -> Markup {
    let [left, _, _, base] = PLOT;
    let every = [1, 2, 5, 10, 20].into_iter().find(|every| bins.number / every <= MAX_TICKS).unwrap_or(bins.number);
    let decimals = usize::from(bins.width < 1.0);
    let start = (bins.first / bins.width).round() as i64;
    let round = |bin: &usize| (start + *bin as i64) % every as i64 == 0;
    html! {
        @for bin in (0..=bins.number).filter(round) {
            @let x = format!("{:.2}", left + slot * bin as f64);
            line.base x1=(x) x2=(x) y1=(base) y2=(base + 3.0) {}
            text.middle x=(x) y=(base + 14.0) { (format!("{:.decimals$}", bins.edge(bin))) }
        }
    }
}
