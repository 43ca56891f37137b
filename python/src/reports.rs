//! Reports of tensors as an Arrow table.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int64Array, Int64Builder, ListBuilder, RecordBatch, StringArray, UInt64Array,
};
use arrow_quant_v2::TensorReport;
use pyo3::prelude::*;

use crate::arrow_objects::Table;
use crate::errors::{Result, argument};
use crate::values::value_of;

/// The reports of tensors, as dicts, as a table: one row a tensor. `tried` has the bits that were found too few.
#[pyfunction]
fn to_table(rows: &Bound<'_, PyAny>) -> Result<Table> {
    let refused = |error: String| argument("rows", format!("rows are not reports of tensors: {error}"));
    let value = value_of(rows)?.ok_or_else(|| refused(rows.to_string()))?;
    let reports: Vec<TensorReport> = serde_json::from_value(value).map_err(|error| refused(error.to_string()))?;
    let text =
        |of: fn(&TensorReport) -> Option<&str>| Arc::new(reports.iter().map(of).collect::<StringArray>()) as ArrayRef;
    let count =
        |of: fn(&TensorReport) -> Option<i64>| Arc::new(reports.iter().map(of).collect::<Int64Array>()) as ArrayRef;
    let bytes =
        |of: fn(&TensorReport) -> u64| Arc::new(UInt64Array::from_iter_values(reports.iter().map(of))) as ArrayRef;
    let figure =
        |of: fn(&TensorReport) -> Option<f64>| Arc::new(reports.iter().map(of).collect::<Float64Array>()) as ArrayRef;
    let columns = [
        ("component", text(|report| Some(&report.component))),
        ("tensor", text(|report| Some(&report.tensor))),
        ("dtype", text(|report| Some(&report.dtype))),
        ("shape", lists(&reports, |report| report.shape.clone())),
        ("elements", bytes(|report| report.elements)),
        ("encoding", text(|report| Some(&report.encoding))),
        ("bits", count(|report| report.bits.map(i64::from))),
        ("group_size", count(|report| report.group_size.map(i64::from))),
        ("because", Arc::new(StringArray::from_iter_values(reports.iter().map(|report| report.because.to_string())))),
        ("tried", lists(&reports, |report| report.fallbacks.iter().map(|attempt| i64::from(attempt.bits)).collect())),
        ("same_as", text(|report| report.same_as.as_deref())),
        ("bytes", bytes(|report| report.bytes)),
        ("bits_per_weight", figure(|report| Some(report.bits_per_weight()))),
        ("cosine_similarity", figure(|report| report.cosine_similarity)),
        ("sqnr_db", figure(sqnr_db)),
        ("max_abs_error", figure(|report| report.max_abs_error)),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))?;
    Ok(Table { schema: batch.schema(), batches: vec![batch] })
}

/// Infinite where nothing was lost, for which JSON has no number.
fn sqnr_db(report: &TensorReport) -> Option<f64> {
    let is_lossless = report.bits.is_some() && report.max_abs_error == Some(0.0);
    report.sqnr_db.or(is_lossless.then_some(f64::INFINITY))
}

fn lists(reports: &[TensorReport], of: impl Fn(&TensorReport) -> Vec<i64>) -> ArrayRef {
    let mut lists = ListBuilder::new(Int64Builder::new());
    for report in reports {
        lists.append_value(of(report).into_iter().map(Some));
    }
    Arc::new(lists.finish())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(to_table, module)?)
}
