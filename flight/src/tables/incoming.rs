//! Rows that come for a table: whether it may be there already, and how their columns become the table's.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow_flight::sql::{TableDefinitionOptions, TableExistsOption, TableNotExistOption};
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use tonic::Code;

/// Why rows are not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestError {
    #[error("the table '{0}' exists")]
    Exists(String),
    #[error("there is no table '{0}'")]
    Missing(String),
    #[error("column '{column}': {reason}")]
    Mismatch { column: String, reason: String },
    #[error("{0}")]
    Unsupported(String),
}

impl IngestError {
    /// The code that clients get.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Exists(_) => Code::AlreadyExists,
            Self::Missing(_) => Code::NotFound,
            Self::Mismatch { .. } | Self::Unsupported(_) => Code::InvalidArgument,
        }
    }

    fn mismatch(column: &str, reason: impl Into<String>) -> Self {
        Self::Mismatch { column: column.to_string(), reason: reason.into() }
    }

    /// The table has other columns than when its rows were checked.
    pub(crate) fn changed(table: &str) -> Self {
        Self::Unsupported(format!("the table '{table}' was replaced by one with other columns meanwhile"))
    }
}

impl From<IngestError> for DataFusionError {
    fn from(error: IngestError) -> Self {
        Self::External(Box::new(error))
    }
}

/// What happens to a table that exists, and to one that does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A new table.
    Create,
    /// Rows added to a table that exists.
    Append,
    /// A new table, whatever was there.
    Replace,
    /// A new table in the place of one that exists.
    ReplaceExisting,
    /// Rows added to a table, which is made if there is none.
    CreateAppend,
}

impl Mode {
    /// The mode of a command.
    ///
    /// # Errors
    /// If an option is not set, or both are to fail.
    pub(crate) fn of(options: Option<&TableDefinitionOptions>) -> Result<Self, IngestError> {
        let options = options.copied().unwrap_or_default();
        match (options.if_not_exist(), options.if_exists()) {
            (TableNotExistOption::Unspecified, _) => Err(unset("if_not_exist", "CREATE or FAIL")),
            (_, TableExistsOption::Unspecified) => Err(unset("if_exists", "FAIL, APPEND or REPLACE")),
            (TableNotExistOption::Create, TableExistsOption::Fail) => Ok(Self::Create),
            (TableNotExistOption::Create, TableExistsOption::Append) => Ok(Self::CreateAppend),
            (TableNotExistOption::Create, TableExistsOption::Replace) => Ok(Self::Replace),
            (TableNotExistOption::Fail, TableExistsOption::Append) => Ok(Self::Append),
            (TableNotExistOption::Fail, TableExistsOption::Replace) => Ok(Self::ReplaceExisting),
            (TableNotExistOption::Fail, TableExistsOption::Fail) => Err(IngestError::Unsupported(
                "table_definition_options: if_not_exist and if_exists are both FAIL, so that no rows can be taken"
                    .into(),
            )),
        }
    }

    /// Whether rows are added to what there is; otherwise they become the table.
    ///
    /// # Errors
    /// If the table exists and must not, or the other way round.
    pub(crate) fn appends(self, table: &str, exists: bool) -> Result<bool, IngestError> {
        match (self, exists) {
            (Self::Create, true) => Err(IngestError::Exists(table.to_string())),
            (Self::Append | Self::ReplaceExisting, false) => Err(IngestError::Missing(table.to_string())),
            (Self::Append | Self::CreateAppend, true) => Ok(true),
            _ => Ok(false),
        }
    }
}

fn unset(option: &str, allowed: &str) -> IngestError {
    IngestError::Unsupported(format!("table_definition_options.{option} is not set: it is {allowed}"))
}

/// How the columns of a stream become those of a table.
#[derive(Debug)]
pub(crate) struct Columns {
    schema: SchemaRef,
    /// For each column of the table, the one of the stream.
    sources: Vec<usize>,
}

impl Columns {
    /// Columns of a new table, or, by name, of one that exists. Types must be the same, or differ in the layout alone
    /// (`Utf8`, `LargeUtf8`, `Utf8View`, dictionaries of them, and so on).
    ///
    /// # Errors
    /// Names a column that is missing, too many, twice there, or of another type.
    pub(crate) fn of(input: &Schema, table: Option<&SchemaRef>) -> Result<Self, IngestError> {
        let mut positions = HashMap::with_capacity(input.fields().len());
        for (position, field) in input.fields().iter().enumerate() {
            if positions.insert(field.name().as_str(), position).is_some() {
                return Err(IngestError::mismatch(field.name(), "there are two of this name"));
            }
        }
        if positions.is_empty() {
            return Err(IngestError::Unsupported("a table needs a column".to_string()));
        }
        let Some(table) = table else {
            // Metadata of the whole, such as an index of pandas, would not hold for what is appended.
            let schema = Arc::new(Schema::new(input.fields().clone()));
            return Ok(Self { schema, sources: (0..input.fields().len()).collect() });
        };
        let mut sources = Vec::with_capacity(table.fields().len());
        for field in table.fields() {
            let Some(source) = positions.remove(field.name().as_str()) else {
                return Err(IngestError::mismatch(field.name(), "the table has it, the rows do not"));
            };
            let given = input.field(source).data_type();
            if content(given) != content(field.data_type()) {
                let reason = format!("the table has {}, the rows have {given}", field.data_type());
                return Err(IngestError::mismatch(field.name(), reason));
            }
            sources.push(source);
        }
        match positions.keys().min() {
            Some(other) => Err(IngestError::mismatch(other, "the rows have it, the table does not")),
            None => Ok(Self { schema: Arc::clone(table), sources }),
        }
    }

    /// The schema of the table.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// A batch of the stream as one of the table.
    pub(crate) fn batch(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let options = CastOptions { safe: false, ..Default::default() };
        let mut columns = Vec::with_capacity(self.sources.len());
        for (&source, field) in self.sources.iter().zip(self.schema.fields()) {
            let Some(column) = batch.columns().get(source) else {
                return Err(IngestError::mismatch(field.name(), "a batch does not have it").into());
            };
            if !field.is_nullable() && column.logical_null_count() > 0 {
                return Err(IngestError::mismatch(field.name(), "it is not nullable, and the rows have a NULL").into());
            }
            columns.push(if column.data_type() == field.data_type() {
                Arc::clone(column)
            } else {
                cast_with_options(column, field.data_type(), &options)?
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

/// A type whatever the layout of its values: types of the same content can be cast to each other.
fn content(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        DataType::Dictionary(_, values) => content(values),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field) => DataType::LargeList(element(field)),
        DataType::FixedSizeList(field, length) => DataType::FixedSizeList(element(field), *length),
        DataType::Struct(fields) => DataType::Struct(
            fields.iter().map(|field| Arc::new(Field::new(field.name(), content(field.data_type()), true))).collect(),
        ),
        other => other.clone(),
    }
}

fn element(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new_list_field(content(field.data_type()), true))
}
