//! The `tensors` table: one row a tensor, from headers alone.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;

use super::QuantizedModel;
use super::shapes::{shape_type, shapes};
use crate::{Model, Result};

fn schema() -> SchemaRef {
    let text = |name| Field::new(name, DataType::Utf8, false);
    let int = |name| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        text("model"),
        text("component"),
        text("tensor"),
        text("dtype"),
        Field::new("shape", shape_type(), false),
        int("elements"),
        int("bytes"),
        text("file"),
    ]))
}

/// One tensor's row, the model's name aside.
struct Row<'a> {
    component: &'a str,
    tensor: &'a str,
    dtype: String,
    shape: &'a [i64],
    elements: u64,
    bytes: u64,
    file: String,
}

fn table(name: &str, rows: &[Row<'_>]) -> Result<Arc<dyn TableProvider>> {
    let text =
        |f: for<'a> fn(&'a Row<'_>) -> &'a str| Arc::new(StringArray::from_iter_values(rows.iter().map(f))) as ArrayRef;
    let int = |f: fn(&Row<'_>) -> u64| {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| f(row) as i64))) as ArrayRef
    };
    let columns = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|_| name))) as ArrayRef,
        text(|row| row.component),
        text(|row| row.tensor),
        text(|row| row.dtype.as_str()),
        shapes(rows.iter().map(|row| row.shape)),
        int(|row| row.elements),
        int(|row| row.bytes),
        text(|row| row.file.as_str()),
    ];
    let batch = RecordBatch::try_new(schema(), columns)?;
    Ok(Arc::new(MemTable::try_new(schema(), vec![vec![batch]])?))
}

/// The tensors of a model.
pub(super) fn of_model(name: &str, model: &Model) -> Result<Arc<dyn TableProvider>> {
    let rows: Vec<_> = model
        .tensors()
        .iter()
        .map(|t| Row {
            component: &t.component,
            tensor: &t.name,
            dtype: t.dtype().to_string(),
            shape: &t.shape,
            elements: t.elements(),
            bytes: t.bytes,
            file: t.file_name().to_string(),
        })
        .collect();
    table(name, &rows)
}

/// The tensors of a quantized model; their dtype is `INT4`, `Q4_K` and the like, or their own where they were kept.
pub(super) fn of_quantized(name: &str, model: &QuantizedModel) -> Result<Arc<dyn TableProvider>> {
    let rows: Vec<_> = model
        .manifest()
        .tensors
        .iter()
        .map(|t| Row {
            component: &t.component,
            tensor: &t.tensor,
            dtype: match t.bits {
                // Of versions that name no encodings, all are grouped integers.
                Some(bits) if t.encoding.is_empty() => format!("INT{bits}"),
                Some(_) => t.encoding.to_uppercase(),
                None => t.dtype.clone(),
            },
            shape: &t.shape,
            elements: t.elements,
            bytes: t.bytes,
            file: "weights".to_string(),
        })
        .collect();
    table(name, &rows)
}
