//! Runs the SQL logic tests, `tests/sql/*.slt`: the readable specification of functions and tables.
//!
//! Each file has a session of its own, with the example model as `digits` and its quantized copy (profile `local`) as
//! `digits_int4`; after `control substitution on`, `$DIGITS_INT4` is the copy's path. Column types are `I`, `R`, `T` and
//! `B` (boolean), `?` for all others. Cells: numbers rounded to six decimals without the zeros after them, `NULL`,
//! `(empty)` for the empty string, `<n bytes>` for binary values.

use std::path::{Path, PathBuf};

use crate::common::DIGITS;
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_quant_v2::{
    DeploymentProfile, DiffusionQuantConfig, JobOptions, QuantError, Result, quantize_model, register_model, session,
};
use async_trait::async_trait;
use datafusion::prelude::SessionContext;
use sqllogictest::{AsyncDB, ColumnType, DBOutput, Runner, strict_column_validator};

#[tokio::test(flavor = "multi_thread")]
async fn functions_and_tables_do_what_the_files_say() {
    let directory = tempfile::tempdir().unwrap();
    let int4 = directory.path().join("digits-int4");
    let config = DiffusionQuantConfig::from_profile(DeploymentProfile::Local);
    quantize_model(Path::new(DIGITS), &int4, &config, &JobOptions::default()).await.unwrap();
    let int4 = int4.to_str().unwrap();
    let mut failures = String::new();
    for file in files() {
        let mut runner = Runner::new(|| Database::open(int4.to_string()));
        runner.with_column_validator(strict_column_validator);
        runner.set_var("DIGITS_INT4".to_string(), int4.to_string());
        // The error tells file and line.
        if let Err(error) = runner.run_file_async(&file).await {
            failures += &format!("\n{error}");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// The files, in the order of their names.
fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql");
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "slt"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "there are no tests in {}", directory.display());
    files
}

/// A session as a database to test.
struct Database(SessionContext);

impl Database {
    async fn open(int4: String) -> Result<Self> {
        let ctx = session(2)?;
        register_model(&ctx, "digits", DIGITS).await?;
        register_model(&ctx, "digits_int4", &int4).await?;
        Ok(Self(ctx))
    }
}

#[async_trait]
impl AsyncDB for Database {
    type Error = QuantError;
    type ColumnType = Column;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<Column>> {
        let frame = self.0.sql(sql).await?;
        let types: Vec<_> = frame.schema().fields().iter().map(|field| Column::of(field.data_type())).collect();
        let batches = frame.collect().await?;
        if types.is_empty() {
            return Ok(DBOutput::StatementComplete(0));
        }
        let rows = batches.iter().flat_map(|batch| {
            (0..batch.num_rows()).map(move |row| batch.columns().iter().map(|column| shown(column, row)).collect())
        });
        Ok(DBOutput::Rows { types, rows: rows.collect() })
    }

    async fn shutdown(&mut self) {}
}

/// The type of a column, as a file declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Column {
    Boolean,
    Integer,
    Real,
    Text,
    Other,
}

impl Column {
    fn of(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Boolean,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text,
            other if other.is_integer() => Self::Integer,
            other if other.is_floating() => Self::Real,
            _ => Self::Other,
        }
    }
}

impl ColumnType for Column {
    fn from_char(value: char) -> Option<Self> {
        match value {
            'B' => Some(Self::Boolean),
            'I' => Some(Self::Integer),
            'R' => Some(Self::Real),
            'T' => Some(Self::Text),
            '?' => Some(Self::Other),
            _ => None,
        }
    }

    fn to_char(&self) -> char {
        match self {
            Self::Boolean => 'B',
            Self::Integer => 'I',
            Self::Real => 'R',
            Self::Text => 'T',
            Self::Other => '?',
        }
    }
}

/// A cell as the files have it.
fn shown(array: &dyn Array, row: usize) -> String {
    if array.is_null(row) {
        return "NULL".to_string();
    }
    let list = |values: &dyn Array| {
        let items: Vec<_> = (0..values.len()).map(|item| shown(values, item)).collect();
        format!("[{}]", items.join(", "))
    };
    let bytes = |value: &[u8]| format!("<{} bytes>", value.len());
    match array.data_type() {
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            let fields: Vec<_> = columns.map(|(f, column)| format!("{}: {}", f.name(), shown(column, row))).collect();
            format!("{{{}}}", fields.join(", "))
        }
        DataType::List(_) => list(&array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(_, _) => list(&array.as_fixed_size_list().value(row)),
        DataType::Binary => bytes(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => bytes(array.as_binary::<i64>().value(row)),
        DataType::BinaryView => bytes(array.as_binary_view().value(row)),
        DataType::FixedSizeBinary(_) => bytes(array.as_fixed_size_binary().value(row)),
        float if float.is_floating() => {
            let value = cast(&array.slice(row, 1), &DataType::Float64).unwrap();
            number(value.as_primitive::<Float64Type>().value(0))
        }
        _ => {
            let options = FormatOptions::default().with_null("NULL");
            let text = ArrayFormatter::try_new(array, &options).unwrap().value(row).to_string();
            if text.is_empty() { "(empty)".to_string() } else { text }
        }
    }
}

/// `0.5`, `2.0`, `0.333333`, `inf`, `NaN`.
fn number(x: f64) -> String {
    if !x.is_finite() {
        return x.to_string();
    }
    // Rounding may leave a zero with a sign.
    let rounded = format!("{x:.6}").trim_start_matches("-0.000000").to_string();
    match rounded.trim_end_matches('0') {
        "" => "0.0".to_string(),
        whole if whole.ends_with('.') => format!("{whole}0"),
        digits => digits.to_string(),
    }
}
