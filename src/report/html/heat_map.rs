//! SQNR by block and projection, in colours.

use maud::{Markup, html};

use super::figures::{self, tensors as number_of};
use super::scale::Scale;
use super::stacks::{Grid, Row, Stack, blocks, split_column};
use super::{ModelReport, TensorReport};

/// More tensors outside of blocks than this are a list to scroll through, not a picture.
const MAX_LISTED: usize = 120;
/// More columns than this take smaller print on paper.
const WIDE: usize = 11;

/// The section: for every component its grids and what is outside of them.
pub(super) fn section(report: &ModelReport) -> Markup {
    let components = components(&report.tensors);
    let scale = Scale::of(report.tensors.iter().filter_map(figures::db).collect());
    let hidden = report.tensors.iter().filter(|tensor| !is_shown(tensor)).count();
    html! {
        section #blocks {
            h2 { "Quality by block" }
            @if report.tensors.is_empty() {
                p.empty { "The model has no tensors." }
            } @else {
                p.lead {
                    "Signal to quantization noise (SQNR) in dB; the higher, the closer to the original. "
                    "Colours span this model’s range, the darkest being its lowest."
                    @if hidden > 0 {
                        " Not shown: " (number_of(hidden)) " of fewer than two dimensions, kept (norms, biases)."
                    }
                }
                (legend(scale.as_ref(), &report.tensors))
                @for (component, tensors) in &components {
                    @if components.len() > 1 || !component.is_empty() {
                        h3 { (if component.is_empty() { "Top level" } else { component }) }
                    }
                    (map(component, tensors, scale.as_ref()))
                }
            }
        }
    }
}

/// Kept vectors would add columns that have nothing to tell.
fn is_shown(tensor: &TensorReport) -> bool {
    tensor.bits.is_some() || tensor.shape.len() > 1
}

/// The components and their tensors, in the model's order.
fn components(tensors: &[TensorReport]) -> Vec<(&str, Vec<&TensorReport>)> {
    let mut components: Vec<(&str, Vec<&TensorReport>)> = vec![];
    for tensor in tensors.iter().filter(|tensor| is_shown(tensor)) {
        match components.iter_mut().find(|(name, _)| *name == tensor.component) {
            Some((_, members)) => members.push(tensor),
            None => components.push((&tensor.component, vec![tensor])),
        }
    }
    components
}

fn legend(scale: Option<&Scale>, tensors: &[TensorReport]) -> Markup {
    let any = |is: fn(&TensorReport) -> bool| tensors.iter().any(is);
    html! {
        div.legend {
            @if let Some(scale) = scale {
                span.ramp { (scale.legend()) span.unit { "dB" } }
                span.key { span.swatch.sample { "20.6" small { "4b" } } " SQNR and bits" }
            }
            @if any(figures::is_exact) {
                span.key { span.swatch.exact { "exact" } " no error" }
            }
            @if any(|t| t.bits.is_none() && t.same_as.is_none()) {
                span.key { span.swatch.kept { "BF16" } " kept, at its own dtype" }
            }
            @if any(|t| t.same_as.is_some()) {
                span.key { span.swatch.tied { "tied" } " stored under another name" }
            }
        }
    }
}

fn map(component: &str, tensors: &[&TensorReport], scale: Option<&Scale>) -> Markup {
    let blocks = blocks(tensors);
    html! {
        @for grid in &blocks.grids { (table(component, grid, scale)) }
        @if !blocks.rest.is_empty() {
            @if !blocks.grids.is_empty() { p.label { "Outside these blocks" } }
            (list(blocks.rest, scale))
        }
    }
}

fn table(component: &str, grid: &Grid, scale: Option<&Scale>) -> Markup {
    let patterns: Vec<&str> = grid.stacks.iter().map(|stack| stack.pattern.as_str()).collect();
    let label = ["SQNR by block:", component, &patterns.join(", ")].join(" ");
    let groups: Vec<&str> = grid.columns.iter().map(|column| split_column(column).0).collect();
    // Where a new group of columns begins, a line sets it off.
    let begins = |column: usize| column > 0 && groups[column] != groups[column - 1];
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table.map.wide[grid.columns.len() > WIDE] {
                thead {
                    tr {
                        th.row scope="col" rowspan="2" { "Block" }
                        @for group in groups.chunk_by(|a, b| a == b) {
                            th.group scope="colgroup" colspan=(group.len()) { (group[0]) }
                        }
                    }
                    tr {
                        @for (index, column) in grid.columns.iter().enumerate() {
                            th.begins[begins(index)] scope="col" { (split_column(column).1) }
                        }
                    }
                }
                @for stack in &grid.stacks { (rows(stack, grid.columns.len(), &begins, scale)) }
            }
        }
    }
}

fn rows(stack: &Stack, columns: usize, begins: &impl Fn(usize) -> bool, scale: Option<&Scale>) -> Markup {
    let row = |row: &Row| {
        html! {
            tr {
                th.row scope="row" title=(row.name) { (row.label) }
                @for (index, tensors) in row.cells.iter().enumerate() {
                    @match Cell::new(tensors, scale) {
                        Some(cell) => td.(cell.class).begins[begins(index)] title=(cell.title) { (cell.text) },
                        None => td.begins[begins(index)] {},
                    }
                }
            }
        }
    };
    html! {
        tbody {
            tr.stack { th scope="rowgroup" colspan=(columns + 1) { span { (stack.pattern) } } }
            @for block in &stack.rows { (row(block)) }
        }
    }
}

/// Tensors outside of blocks; of very many those with the lowest SQNR.
fn list(mut tensors: Vec<&TensorReport>, scale: Option<&Scale>) -> Markup {
    let more = tensors.len().saturating_sub(MAX_LISTED);
    if more > 0 {
        let rank = |tensor: &TensorReport| figures::db(tensor).unwrap_or(f64::INFINITY);
        tensors.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
        tensors.truncate(MAX_LISTED);
    }
    html! {
        ul.list {
            @for tensor in tensors {
                @if let Some(cell) = Cell::new(&[tensor], scale) {
                    li { code { (tensor.tensor) } span.cell.(cell.class) title=(cell.title) { (cell.text) } }
                }
            }
        }
        @if more > 0 { p.note { "And " (number_of(more)) " with a higher SQNR, or kept." } }
    }
}

/// What one or several tensors show in one place.
struct Cell {
    class: String,
    text: Markup,
    title: String,
}

impl Cell {
    fn new(tensors: &[&TensorReport], scale: Option<&Scale>) -> Option<Self> {
        let lowest = |tensor: &&&TensorReport| figures::db(tensor).unwrap_or(f64::INFINITY);
        let quantized = tensors.iter().filter(|tensor| tensor.bits.is_some() && tensor.same_as.is_none());
        let shown = quantized.min_by(|a, b| lowest(a).total_cmp(&lowest(b))).or(tensors.first())?;
        let class = match (&shown.same_as, shown.bits, figures::db(shown), scale) {
            (Some(_), ..) => "tied".to_string(),
            (_, None, ..) => "kept".to_string(),
            (_, Some(_), Some(db), Some(scale)) => scale.class(db),
            _ => "exact".to_string(),
        };
        let text = html! {
            @match (&shown.same_as, shown.bits) {
                (None, Some(bits)) => { (figures::sqnr(shown, 1)) small { (bits) "b" } },
                _ => (figures::bits(shown)),
            }
            @if tensors.len() > 1 { small.many { "×" (tensors.len()) } }
        };
        Some(Self { class, text, title: title(shown, tensors.len()) })
    }
}

/// Everything about a cell, for those who point at it.
fn title(tensor: &TensorReport, of: usize) -> String {
    let mut title = match of {
        1 => tensor.tensor.clone(),
        _ => format!("{}, the lowest of {of} tensors", tensor.tensor),
    };
    title.push_str(&format!("\n{} {}", figures::shape(&tensor.shape), tensor.dtype));
    match (&tensor.same_as, tensor.bits) {
        (Some(name), _) => title.push_str(&format!("\nstored as {name}")),
        (None, None) => title.push_str(&format!("\nkept: {}", tensor.because)),
        (None, Some(bits)) => {
            let cosine = figures::measure(tensor.cosine_similarity, 6);
            let grouping = match tensor.group_size {
                Some(size) => format!("group size {size}"),
                None => tensor.encoding.clone(),
            };
            title.push_str(&format!("\n{bits} bits, {grouping}: {}", tensor.because));
            title.push_str(&format!("\nSQNR {} dB, cosine {cosine}", figures::sqnr(tensor, 2)));
        }
    }
    title
}
