//! Runs the SQL logic tests, `tests/sql/*.slt`: the readable specification of functions and tables. In process, and over
//! Flight SQL from `arrow-quant serve`.
//!
//! Each file has a session of its own, with the example model as `digits` and its quantized copy (profile `local`) as
//! `digits_int4`; after `control substitution on`, `$DIGITS_INT4` is the copy's path. Column types are `I`, `R`, `T` and
//! `B` (boolean), `?` for all others. Cells: numbers rounded to six decimals without the zeros after them, `NULL`,
//! `(empty)` for the empty string, `<n bytes>` for binary values.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Schema};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_quant_v2::{
    DeploymentProfile, DiffusionQuantConfig, JobOptions, QuantError, quantize_model, register_model, session,
};
use async_trait::async_trait;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use sqllogictest::{AsyncDB, ColumnType, DBOutput, Runner, strict_column_validator};
use tonic::transport::Channel;

use crate::common::DIGITS;
use crate::service::Service;

#[tokio::test(flavor = "multi_thread")]
async fn functions_and_tables_do_what_the_files_say() {
    enter_root();
    let directory = tempfile::tempdir().unwrap();
    let int4 = quantized_copy(directory.path()).await;
    check_files(&int4, || Database::open(int4.clone())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn they_do_the_same_over_flight_sql() {
    enter_root();
    let directory = tempfile::tempdir().unwrap();
    let int4 = quantized_copy(directory.path()).await;
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
    let allowed = [&tests, directory.path()].map(|path| path.to_str().unwrap());
    let mut flags = vec!["--read-write".to_string(), format!("--model=digits={DIGITS}")];
    flags.push(format!("--model=digits_int4={int4}"));
    flags.extend(allowed.map(|path| format!("--allow={path}")));
    let service = Service::start(&flags);
    // A handshake begins a session of its own.
    check_files(&int4, || async {
        let mut client = service.connect().await;
        client.handshake("anyone", "").await.map_err(|error| ServedError(error.to_string()))?;
        Ok(Served(client))
    })
    .await;
    service.stop();
}

/// The example model, quantized; its path.
async fn quantized_copy(directory: &Path) -> String {
    let int4 = directory.join("digits-int4");
    let config = DiffusionQuantConfig::from_profile(DeploymentProfile::Local);
    quantize_model(Path::new(DIGITS), &int4, &config, &JobOptions::default()).await.unwrap();
    int4.to_str().unwrap().to_string()
}

/// Runs every file on a database of its own.
async fn check_files<D, F>(int4: &str, open: impl Fn() -> F)
where
    D: AsyncDB<ColumnType = Column>,
    F: Future<Output = Result<D, D::Error>>,
{
    let mut failures = String::new();
    for file in files() {
        let mut runner = Runner::new(&open);
        runner.with_column_validator(strict_column_validator);
        runner.set_var("DIGITS_INT4".to_string(), int4.to_string());
        // The error tells file and line.
        if let Err(error) = runner.run_file_async(&file).await {
            failures += &format!("\n{error}");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// Statements name files of the project relative to its root. No other test looks at the current directory.
fn enter_root() {
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).unwrap();
}

/// The files, in the order of their names.
fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/sql");
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
    async fn open(int4: String) -> Result<Self, QuantError> {
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

    async fn run(&mut self, sql: &str) -> Result<DBOutput<Column>, QuantError> {
        let frame = self.0.sql(sql).await?;
        let schema = frame.schema().inner().clone();
        Ok(output(&schema, &frame.collect().await?))
    }

    async fn shutdown(&mut self) {}
}

/// A session of a server as a database to test.
struct Served(FlightSqlServiceClient<Channel>);

/// What the server said.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ServedError(String);

impl From<ArrowError> for ServedError {
    fn from(error: ArrowError) -> Self {
        Self(error.to_string())
    }
}

impl From<FlightError> for ServedError {
    fn from(error: FlightError) -> Self {
        match error {
            FlightError::Tonic(status) => Self(status.message().to_string()),
            other => Self(other.to_string()),
        }
    }
}

#[async_trait]
impl AsyncDB for Served {
    type Error = ServedError;
    type ColumnType = Column;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<Column>, ServedError> {
        let info = self.0.execute(sql.to_string(), None).await?;
        let schema = info.clone().try_decode_schema()?;
        let mut batches = Vec::new();
        for endpoint in info.endpoint {
            let ticket = endpoint.ticket.ok_or_else(|| ServedError("an endpoint without a ticket".to_string()))?;
            let rows = self.0.do_get(ticket).await?;
            batches.extend(rows.try_collect::<Vec<_>>().await?);
        }
        assert!(batches.iter().all(|batch| *batch.schema() == schema), "what was announced is what is sent: {sql}");
        Ok(output(&schema, &batches))
    }

    async fn shutdown(&mut self) {}
}

/// A result as the files have it.
fn output(schema: &Schema, batches: &[RecordBatch]) -> DBOutput<Column> {
    let types: Vec<_> = schema.fields().iter().map(|field| Column::of(field.data_type())).collect();
    if types.is_empty() {
        return DBOutput::StatementComplete(0);
    }
    let rows = batches.iter().flat_map(|batch| {
        (0..batch.num_rows()).map(move |row| batch.columns().iter().map(|column| shown(column, row)).collect())
    });
    DBOutput::Rows { types, rows: rows.collect() }
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
