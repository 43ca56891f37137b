//! Quantized tensors as rows of a table, and back.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::compute::{cast, concat};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow_quant_kernels::{Dtype, QuantizedRef, Settings};
use arrow_quant_udfs::{QuantizedColumn, ValueRef, quantized_type, with_encoding};
use datafusion::error::DataFusionError;

use super::{QuantizedData, summed};
use crate::tables::{shape_type, shapes};
use crate::{QuantError, Result, ShapeProblem};

/// The columns of [`QuantizedData::rows`].
pub fn quantized_row_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("tensor", DataType::Utf8, false),
        Field::new("dtype", DataType::Utf8, false),
        Field::new("shape", shape_type(), false),
        Field::new("chunk", DataType::Int32, false),
        Field::new("start", DataType::Int64, false),
        Field::new("quantized", quantized_type(), false),
    ]))
}

impl QuantizedData {
    /// One row a chunk: `tensor` (the name), `dtype`, `shape`, `chunk`, `start` and `quantized`.
    ///
    /// # Errors
    /// If a tensor has more chunks than can be numbered.
    pub fn rows(&self, name: &str) -> Result<RecordBatch> {
        let rows = self.chunks.len();
        let text = |text: &str| Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, rows))) as ArrayRef;
        let columns = vec![
            text(name),
            text(self.dtype.name()),
            shapes(std::iter::repeat_n(self.shape.as_slice(), rows)),
            Arc::new(Int32Array::from_iter_values(0..i32::try_from(rows).unwrap_or(i32::MAX))),
            Arc::new(Int64Array::from_iter_values(self.chunks.iter().map(|chunk| chunk.start as i64))),
            Arc::new(self.values.clone()),
        ];
        Ok(RecordBatch::try_new(quantized_row_schema(), columns)?)
    }

    /// The tensors in rows as [`rows`](Self::rows) makes them, with their names. The rows of a tensor may be in any order, in
    /// any of the batches, their columns in any encoding.
    ///
    /// # Errors
    /// If a column is missing, or the rows are not all of a tensor's.
    pub fn from_rows(batches: &[RecordBatch]) -> Result<Vec<(String, Self)>> {
        let mut found: Vec<(String, Gathered)> = Vec::new();
        for batch in batches {
            let columns = Columns::of(batch)?;
            let mut row = 0;
            while row < batch.num_rows() {
                let name = columns.tensor.value(row);
                let end =
                    (row..batch.num_rows()).find(|&r| columns.tensor.value(r) != name).unwrap_or(batch.num_rows());
                let at = found.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                    found.push((name.to_string(), Gathered::new(&columns, row)));
                    found.len() - 1
                });
                found[at].1.add(&columns, row, end);
                row = end;
            }
        }
        found.into_iter().map(|(name, gathered)| Ok((name.clone(), gathered.finish(&name)?))).collect()
    }
}

/// The columns of a batch.
struct Columns {
    tensor: StringArray,
    dtype: StringArray,
    shape: ArrayRef,
    start: Int64Array,
    quantized: StructArray,
}

impl Columns {
    fn of(batch: &RecordBatch) -> Result<Self> {
        let column = |name: &str| {
            let found = batch.column_by_name(name);
            found.filter(|column| column.null_count() == 0 || name == "quantized").ok_or_else(|| {
                let expected = quantized_row_schema().fields().iter().map(|f| f.name().clone()).collect();
                QuantError::shape(None, ShapeProblem::NoColumn { name: name.to_string(), expected })
            })
        };
        let quantized = column("quantized")?.as_struct_opt().cloned();
        let quantized = quantized.ok_or_else(|| QuantError::shape(None, ShapeProblem::NotQuantized))?;
        if let Some(row) = (0..quantized.len()).find(|&row| quantized.is_null(row)) {
            let tensor = cast(column("tensor")?, &DataType::Utf8)?.as_string::<i32>().value(row).to_string();
            return Err(QuantError::shape(Some(&tensor), ShapeProblem::NullChunk { row }));
        }
        Ok(Self {
            tensor: cast(column("tensor")?, &DataType::Utf8)?.as_string().clone(),
            dtype: cast(column("dtype")?, &DataType::Utf8)?.as_string().clone(),
            shape: cast(column("shape")?, &shape_type())?,
            start: cast(column("start")?, &DataType::Int64)?.as_primitive().clone(),
            quantized,
        })
    }
}

/// Rows of one tensor.
struct Gathered {
    dtype: String,
    shape: Vec<i64>,
    starts: Vec<i64>,
    values: Vec<StructArray>,
}

impl Gathered {
    fn new(columns: &Columns, row: usize) -> Self {
        let shape = columns.shape.as_list::<i32>().value(row).as_primitive::<Int64Type>().values().to_vec();
        Self { dtype: columns.dtype.value(row).to_string(), shape, starts: Vec::new(), values: Vec::new() }
    }

    fn add(&mut self, columns: &Columns, row: usize, end: usize) {
        self.starts.extend_from_slice(&columns.start.values()[row..end]);
        self.values.push(columns.quantized.slice(row, end - row));
    }

    fn finish(self, name: &str) -> Result<QuantizedData> {
        let wrong = |problem: String| QuantError::shape(Some(name), ShapeProblem::Chunks { problem });
        let values = self.values.iter().map(|values| values as &dyn Array).collect::<Vec<_>>();
        let values = concat(&values)?;
        let mut order: Vec<usize> = (0..self.starts.len()).collect();
        order.sort_by_key(|&row| self.starts[row]);
        let values = if order.is_sorted() {
            values
        } else {
            let order = Int64Array::from_iter_values(order.iter().map(|&row| row as i64));
            arrow::compute::take(&values, &order, None)?
        };
        // Whatever their Arrow types, they must be quantized values before anything is made of them.
        let unreadable = |error: DataFusionError| wrong(QuantError::from(error).to_string());
        let values = with_encoding("dequantize", values.as_struct()).map_err(unreadable)?;
        let column = QuantizedColumn::try_new("dequantize", &values).map_err(unreadable)?;
        let mut chunks = Vec::with_capacity(order.len());
        let mut end = 0u64;
        for (at, &row) in order.iter().enumerate() {
            let Some(value) = column.row(at).map_err(unreadable)? else {
                return Err(wrong("a chunk is NULL".to_string()));
            };
            if self.starts[row] as u64 != end {
                return Err(wrong(format!("a chunk starts at {}, expected one at {end}", self.starts[row])));
            }
            let length = value.length();
            let next = end.checked_add(length as u64);
            let next = next.ok_or_else(|| wrong(format!("a chunk has {length} elements")))?;
            chunks.push(end..next);
            end = next;
        }
        let elements = self.shape.iter().try_fold(1u64, |all, &n| all.checked_mul(u64::try_from(n).ok()?));
        if elements != Some(end) {
            return Err(wrong(format!(
                "its chunks have {end} elements, which are not those of its shape {:?}",
                self.shape
            )));
        }
        let settings = match column.row(0).map_err(unreadable)? {
            Some(ValueRef::Groups(first)) => settings(&values, &first)?,
            Some(ValueRef::Blocks(_)) => {
                return Err(wrong(
                    "its values are blocks, expected grouped integers: dequantize them in SQL".to_string(),
                ));
            }
            None => None,
        };
        let settings = settings.ok_or_else(|| wrong("its values do not say how they were quantized".to_string()))?;
        let errors = summed(&values).map_err(|error| wrong(error.to_string()))?;
        Ok(QuantizedData { dtype: self.dtype.parse::<Dtype>()?, shape: self.shape, settings, chunks, values, errors })
    }
}

/// What the first value was quantized with; `None` if its method is not known.
fn settings(values: &StructArray, first: &QuantizedRef<'_>) -> Result<Option<Settings>> {
    let methods = values.column_by_name("method").map(|methods| methods.as_string::<i32>());
    let Some(method) = methods.filter(|methods| methods.is_valid(0)).map(|methods| methods.value(0)) else {
        return Ok(None);
    };
    let QuantizedRef { bits, group_size, scheme, .. } = *first;
    Ok(Some(Settings { bits, group_size, scheme, method: method.parse()? }))
}
