//! The rows of a query as a table of Markdown.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_quant_v2::readable::without_bytes;

/// Prints the names of columns, and on which side they are.
pub(crate) fn write_header(schema: &Schema, out: &mut impl Write) -> std::io::Result<()> {
    let names: Vec<String> = schema.fields().iter().map(|field| cell(field.name())).collect();
    let sides = schema.fields().iter().map(|field| if field.data_type().is_numeric() { "---:" } else { "---" });
    writeln!(out, "| {} |", names.join(" | "))?;
    writeln!(out, "| {} |", sides.collect::<Vec<_>>().join(" | "))
}

/// Prints rows.
pub(crate) fn write_batch(batch: &RecordBatch, out: &mut impl Write) -> Result<(), ArrowError> {
    let columns = batch.columns().iter().map(without_bytes).collect::<Result<Vec<_>, _>>()?;
    let options = FormatOptions::default().with_null("NULL");
    let formats: Vec<ArrayFormatter<'_>> =
        columns.iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options)).collect::<Result<_, _>>()?;
    for row in 0..batch.num_rows() {
        let cells: Vec<String> = formats.iter().map(|format| cell(&format.value(row).to_string())).collect();
        writeln!(out, "| {} |", cells.join(" | "))?;
    }
    Ok(())
}

/// A text in a cell: nothing in it ends the cell, the row, or becomes a tag.
fn cell(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        match character {
            '|' => shown.push_str("\\|"),
            '\\' => shown.push_str("\\\\"),
            '<' => shown.push_str("&lt;"),
            '&' => shown.push_str("&amp;"),
            '\n' => shown.push_str("<br>"),
            other if other.is_control() => shown.extend(other.escape_default()),
            other => shown.push(other),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_stays_a_cell() {
        assert_eq!(cell("a|b\nc <b>&\u{1b}"), "a\\|b<br>c &lt;b>&amp;\\u{1b}");
    }
}
