//! How the rows of a query are shown: as a table, as lines of JSON, as CSV, as Markdown, as Parquet.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::Path;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::csv::WriterBuilder as CsvWriterBuilder;
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;
use arrow::json::WriterBuilder as JsonWriterBuilder;
use arrow::json::writer::LineDelimited;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_quant_v2::readable::{flat, shortened, without_bytes};
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::TryStreamExt;

use crate::failure::Failure;
use crate::table::Table;
use crate::{markdown, numbers, parquet_rows};

/// The most rows a table shows: it is held in memory to be aligned.
const TABLE_ROWS: usize = 1_000;

/// The most characters a table shows of a list or struct.
const CELL_CHARACTERS: usize = 120;

/// Rows made into CSV at a time: one may be a list of many thousand numbers.
const CSV_ROWS: usize = 16;

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns, at most 1,000 rows
    #[default]
    Table,
    /// One object a line, every row
    Json,
    /// A header and every row
    Csv,
    /// A table of Markdown, every row
    Markdown,
    /// A Parquet file, every row; for a file or a pipe
    Parquet,
}

impl Format {
    /// The format that a file's name tells, if it tells one.
    pub(crate) fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "txt" => Some(Self::Table),
            "json" | "jsonl" | "ndjson" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            "md" | "markdown" => Some(Self::Markdown),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// How the rows of a query are shown.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Style {
    pub format: Format,
    /// Each row as lines of names and values, where a table would be shown.
    pub is_expanded: bool,
    /// Characters of a line, if it has an end.
    pub width: Option<usize>,
}

/// How a command shows its result.
#[derive(clap::Args)]
pub(crate) struct Shown {
    /// Print nothing but errors
    #[arg(long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl Shown {
    /// Prints a result: as JSON, as `write` has it, or not at all.
    pub(crate) fn print<T: serde::Serialize>(
        &self,
        result: &T,
        write: impl FnOnce(&T, &mut BufWriter<StdoutLock<'static>>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        if self.quiet {
            return Ok(());
        }
        if self.json {
            return write_json(result);
        }
        let mut out = stdout();
        write(result, &mut out)?;
        out.flush()?;
        Ok(())
    }
}

/// Standard output, buffered and locked. The caller flushes it, and so learns whether the other end still reads.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// Prints `value` as JSON, and nothing else.
pub(crate) fn write_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

/// Prints every row as it comes; a statement without columns prints nothing.
pub(crate) async fn write_rows(
    mut rows: SendableRecordBatchStream,
    style: Style,
    out: &mut (impl Write + Send),
) -> Result<(), Failure> {
    if rows.schema().fields().is_empty() {
        while rows.try_next().await?.is_some() {}
        return Ok(());
    }
    match style.format {
        Format::Table => write_table(rows, style, out).await?,
        Format::Json => write_lines(rows, out).await?,
        Format::Csv => write_csv(rows, out).await?,
        Format::Markdown => write_markdown(rows, out).await?,
        Format::Parquet => parquet_rows::write(rows, out).await?,
    }
    out.flush()?;
    Ok(())
}

async fn write_table(mut rows: SendableRecordBatchStream, style: Style, out: &mut impl Write) -> Result<(), Failure> {
    let schema = rows.schema();
    let mut table = Table::new();
    for field in schema.fields() {
        table = table.column(field.name(), field.data_type().is_numeric());
    }
    let (mut shown, mut total) = (0, 0);
    while let Some(batch) = rows.try_next().await? {
        let batch_rows = batch.num_rows().min(TABLE_ROWS - shown);
        add_rows(&mut table, &batch.slice(0, batch_rows))?;
        shown += batch_rows;
        total += batch.num_rows();
    }
    match style.is_expanded {
        true => table.write_expanded(1, out)?,
        false => table.write_within(style.width, out)?,
    }
    match total - shown {
        0 if total == 1 => writeln!(out, "1 row")?,
        0 => writeln!(out, "{total} rows")?,
        more => {
            let more = numbers::grouped(more as u64);
            writeln!(out, "… {more} more rows; add LIMIT, or see them all with --format csv or json")?;
        }
    }
    Ok(())
}

fn add_rows(table: &mut Table, batch: &RecordBatch) -> Result<(), ArrowError> {
    let columns = batch.columns().iter().map(without_bytes).collect::<Result<Vec<_>, _>>()?;
    let options = FormatOptions::default().with_null("NULL");
    let formats = columns
        .iter()
        .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
        .collect::<Result<Vec<_>, _>>()?;
    for row in 0..batch.num_rows() {
        let cells = formats.iter().zip(&columns).map(|(format, column)| match column.data_type().is_nested() {
            true => shortened(format, row, CELL_CHARACTERS),
            false => Ok(format.value(row).to_string()),
        });
        table.row(cells.collect::<Result<Vec<_>, _>>()?);
    }
    Ok(())
}

async fn write_lines(mut rows: SendableRecordBatchStream, out: &mut impl Write) -> Result<(), Failure> {
    let mut writer = JsonWriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(out);
    while let Some(batch) = rows.try_next().await? {
        writer.write(&batch)?;
    }
    Ok(())
}

async fn write_markdown(mut rows: SendableRecordBatchStream, out: &mut impl Write) -> Result<(), Failure> {
    markdown::write_header(&rows.schema(), out)?;
    while let Some(batch) = rows.try_next().await? {
        markdown::write_batch(&batch, out)?;
    }
    Ok(())
}

async fn write_csv(mut rows: SendableRecordBatchStream, out: &mut impl Write) -> Result<(), Failure> {
    out.write_all(&csv(&RecordBatch::new_empty(rows.schema()), true)?)?;
    while let Some(batch) = rows.try_next().await? {
        for start in (0..batch.num_rows()).step_by(CSV_ROWS) {
            let part = batch.slice(start, CSV_ROWS.min(batch.num_rows() - start));
            out.write_all(&csv(&part, false)?)?;
        }
    }
    Ok(())
}

/// A batch as CSV. Arrow's writer hides why its output failed, so it writes to memory.
fn csv(batch: &RecordBatch, header: bool) -> Result<Vec<u8>, ArrowError> {
    let columns: Vec<ArrayRef> =
        batch.columns().iter().map(|column| flat(&without_bytes(column)?)).collect::<Result<_, _>>()?;
    let schema = batch.schema();
    let fields = schema.fields().iter().zip(&columns);
    let fields: Vec<Field> =
        fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let batch = RecordBatch::try_new_with_options(Schema::new(fields).into(), columns, &options)?;
    let mut text = Vec::new();
    CsvWriterBuilder::new().with_header(header).build(&mut text).write(&batch)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BinaryArray, Int32Array, ListArray};
    use arrow::datatypes::Int32Type;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

    use super::*;

    /// Rows of a number, bytes and a list: `repeat` times the same two.
    fn rows(repeat: usize) -> SendableRecordBatchStream {
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None]));
        let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&b"abc"[..], &b""[..]]));
        let lists: ArrayRef =
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), Some(2)]), None]));
        let batch = RecordBatch::try_from_iter([("n", numbers), ("data", bytes), ("shape", lists)]).unwrap();
        let schema = batch.schema();
        let batches = futures::stream::iter((0..repeat).map(move |_| Ok(batch.clone())));
        Box::pin(RecordBatchStreamAdapter::new(schema, batches))
    }

    fn printed(rows: SendableRecordBatchStream, format: Format) -> String {
        let mut out = Vec::new();
        futures::executor::block_on(write_rows(rows, Style { format, ..Style::default() }, &mut out)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn rows_in_every_format() {
        assert_eq!(printed(rows(1), Format::Csv), "n,data,shape\n1,<3 bytes>,\"[1, 2]\"\n,<0 bytes>,\n");
        assert_eq!(
            printed(rows(1), Format::Json),
            "{\"n\":1,\"data\":\"616263\",\"shape\":[1,2]}\n{\"n\":null,\"data\":\"\",\"shape\":null}\n"
        );
        assert_eq!(
            printed(rows(1), Format::Markdown),
            "| n | data | shape |\n| ---: | --- | --- |\n| 1 | &lt;3 bytes> | [1, 2] |\n| NULL | &lt;0 bytes> | NULL |\n"
        );
        let table = printed(rows(1), Format::Table);
        assert!(table.contains("   1  <3 bytes>  [1, 2]\nNULL  <0 bytes>  NULL\n2 rows\n"), "{table}");
    }

    #[test]
    fn a_name_tells_the_format() {
        for (name, format) in [("a.CSV", Format::Csv), ("a.b.jsonl", Format::Json), ("a.md", Format::Markdown)] {
            assert_eq!(Format::of_name(Path::new(name)), Some(format));
        }
        assert_eq!(Format::of_name(Path::new("parquet")), None);
    }

    #[test]
    fn no_rows_have_a_header() {
        assert_eq!(printed(rows(0), Format::Csv), "n,data,shape\n");
        assert!(printed(rows(0), Format::Table).ends_with("0 rows\n"));
        assert_eq!(printed(rows(0), Format::Json), "");
    }

    #[test]
    fn a_table_says_how_many_rows_it_leaves_out() {
        let table = printed(rows(1_200), Format::Table);
        assert_eq!(table.lines().count(), 2 + TABLE_ROWS + 1);
        assert!(table.contains("… 1,400 more rows; add LIMIT"), "{}", table.lines().last().unwrap());
        assert_eq!(printed(rows(1_200), Format::Csv).lines().count(), 2_401);
    }
}
