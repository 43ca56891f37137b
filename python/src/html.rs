//! Rows as HTML, for notebooks.

use std::fmt::Write;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_quant_v2::readable::{shortened, without_bytes};

/// The most rows that are shown.
pub(crate) const ROWS: usize = 20;

/// The most characters that are shown of a value.
const CHARACTERS: usize = 120;

/// The first rows as a table. `rows` is how many there are, if that is known.
pub(crate) fn table(schema: &Schema, batches: &[RecordBatch], rows: Option<usize>) -> Result<String, ArrowError> {
    let mut html = String::from("<table border=\"1\" class=\"dataframe\"><thead><tr>");
    for field in schema.fields() {
        let title = escaped(&field.data_type().to_string());
        put(&mut html, format_args!("<th title=\"{title}\">{}</th>", escaped(field.name())));
    }
    html.push_str("</tr></thead><tbody>");
    let mut shown = 0;
    for batch in batches {
        let batch = batch.slice(0, batch.num_rows().min(ROWS - shown));
        shown += batch.num_rows();
        write_rows(&batch, &mut html)?;
    }
    html.push_str("</tbody></table>");
    let found = batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    match rows {
        Some(rows) if rows == shown => put(&mut html, format_args!("<p>{rows} rows</p>")),
        Some(rows) => put(&mut html, format_args!("<p>{shown} of {rows} rows</p>")),
        None if found > shown => put(&mut html, format_args!("<p>the first {shown} rows</p>")),
        None => put(&mut html, format_args!("<p>{shown} rows</p>")),
    }
    Ok(html)
}

fn write_rows(batch: &RecordBatch, html: &mut String) -> Result<(), ArrowError> {
    let columns = batch.columns().iter().map(without_bytes).collect::<Result<Vec<_>, _>>()?;
    let options = FormatOptions::default().with_null("NULL");
    let formats = columns
        .iter()
        .map(|column| Ok((ArrayFormatter::try_new(column.as_ref(), &options)?, column.data_type().is_numeric())))
        .collect::<Result<Vec<_>, ArrowError>>()?;
    for row in 0..batch.num_rows() {
        html.push_str("<tr>");
        for (format, is_number) in &formats {
            let side = if *is_number { " style=\"text-align: right\"" } else { "" };
            put(html, format_args!("<td{side}>{}</td>", escaped(&shortened(format, row, CHARACTERS)?)));
        }
        html.push_str("</tr>");
    }
    Ok(())
}

/// Names and values, one a row.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let mut html = String::from("<table class=\"dataframe\"><tbody>");
    for (name, value) in facts {
        put(&mut html, format_args!("<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(value)));
    }
    html.push_str("</tbody></table>");
    html
}

/// Writing to text cannot fail.
fn put(html: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = html.write_fmt(text);
}

/// A text in which nothing is taken for a tag.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#x27;"),
            other => html.push(other),
        }
    }
    html
}
