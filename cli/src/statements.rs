//! Statements, one after the other, and their rows.

use std::io::Write;

use crate::failure::Failure;
use crate::output::{self, Format, Style};
use crate::queries::Queries;

/// Runs every statement of `text` and prints its rows. None is run if one cannot be parsed.
pub(crate) async fn execute(
    queries: &Queries,
    text: &str,
    style: Style,
    out: &mut (impl Write + Send),
) -> Result<(), Failure> {
    let statements = queries.parse(text).await?;
    if statements.is_empty() {
        return Err(Failure::Message("there is no statement to run".to_string()));
    }
    let mut results = 0;
    for (index, statement) in statements.into_iter().enumerate() {
        if index > 0 && style.format == Format::Table {
            writeln!(out)?;
        }
        let rows = queries.rows(statement).await?;
        results += usize::from(!rows.schema().fields().is_empty());
        if style.format == Format::Parquet && results > 1 {
            let message = "--format parquet takes one result, and this is another: run its statement alone";
            return Err(Failure::Message(message.to_string()));
        }
        output::write_rows(rows, style, out).await?;
    }
    if style.format == Format::Parquet && results == 0 {
        return Err(Failure::Message("--format parquet takes one result, and the statements gave none".to_string()));
    }
    out.flush()?;
    Ok(())
}
