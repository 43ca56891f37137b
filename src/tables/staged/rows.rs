//! The columns of a relation that is to be a model, and its rows, whatever the types a query gave them.

use arrow::array::{Array, ArrayRef, AsArray, BinaryViewArray, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::buffer::Buffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type, Float64Type, Int64Type};
use datafusion::common::{Column, DFSchema};
use datafusion::prelude::Expr;

use super::RelationError;
use crate::Result;
use crate::tables::shape_type;

/// What `component`, `tensor` and a dtype must be.
const TEXT: &str = "text";

/// What `weights` must be.
const WEIGHTS: &str = "a tensor value (a struct with dtype and data) or a list of 16, 32 or 64-bit floats";

/// Where the columns are in a relation. Columns of other names are ignored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    has_component: bool,
    float: Option<Float>,
    /// Of `tensor`, `shape`, `start`, `weights` and, if there is one, `component`.
    indexes: [usize; 5],
}

/// The type of the floats in a list.
#[derive(Debug, Clone, Copy)]
enum Float {
    F16,
    F32,
    F64,
}

impl Float {
    fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Float16 => Some(Self::F16),
            DataType::Float32 => Some(Self::F32),
            DataType::Float64 => Some(Self::F64),
            _ => None,
        }
    }

    /// The name of the dtype in safetensors.
    fn dtype(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::F32 => "F32",
            Self::F64 => "F64",
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Self::F16 => DataType::Float16,
            Self::F32 => DataType::Float32,
            Self::F64 => DataType::Float64,
        }
    }
}

impl Columns {
    /// Finds the columns in a schema and checks their types.
    pub(super) fn of(schema: &DFSchema) -> Result<Self, RelationError> {
        let tensor = required(schema, "tensor", TEXT, is_text)?;
        let shape =
            required(schema, "shape", "a list of integers", |found| item(found).is_some_and(DataType::is_integer))?;
        let start = required(schema, "start", "an integer", DataType::is_integer)?;
        let weights = required(schema, "weights", WEIGHTS, is_weights)?;
        let component = find(schema, "component", TEXT, is_text)?;
        let float = item(schema.field(weights).data_type()).and_then(Float::of);
        let indexes = [tensor, shape, start, weights, component.unwrap_or(tensor)];
        Ok(Self { has_component: component.is_some(), float, indexes })
    }

    /// The columns as a query selects them.
    pub(super) fn expressions(self, schema: &DFSchema) -> Vec<Expr> {
        let count = if self.has_component { 5 } else { 4 };
        let column = |&index: &usize| Expr::Column(Column::from(schema.qualified_field(index)));
        self.indexes[..count].iter().map(column).collect()
    }
}

fn required(
    schema: &DFSchema,
    column: &'static str,
    expected: &'static str,
    accepts: impl Fn(&DataType) -> bool,
) -> Result<usize, RelationError> {
    find(schema, column, expected, accepts)?.ok_or(RelationError::NoColumn(column))
}

/// The only column of a name, if there is one.
fn find(
    schema: &DFSchema,
    column: &'static str,
    expected: &'static str,
    accepts: impl Fn(&DataType) -> bool,
) -> Result<Option<usize>, RelationError> {
    let mut found = schema.fields().iter().enumerate().filter(|(_, field)| field.name() == column);
    let Some((index, field)) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(RelationError::TwoColumns(column));
    }
    if !accepts(field.data_type()) {
        return Err(RelationError::ColumnType { column, found: field.data_type().to_string(), expected });
    }
    Ok(Some(index))
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_text(value),
        other => other.is_string(),
    }
}

/// The type of what is in a list.
fn item(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item.data_type()),
        _ => None,
    }
}

fn is_weights(data_type: &DataType) -> bool {
    let DataType::Struct(fields) = data_type else { return item(data_type).and_then(Float::of).is_some() };
    let has = |name: &str, test: fn(&DataType) -> bool| {
        fields.iter().any(|field| field.name() == name && test(field.data_type()))
    };
    has("dtype", is_text) && has("data", DataType::is_binary)
}

/// The rows of a batch.
pub(super) struct Rows {
    tensors: StringArray,
    shapes: ListArray,
    starts: Int64Array,
    weights: Weights,
    components: Option<StringArray>,
}

/// The column `weights`.
enum Weights {
    Tensors { values: ArrayRef, dtypes: StringArray, data: BinaryViewArray },
    Lists { float: Float, lists: ListArray },
}

/// One row: some elements of a tensor.
pub(super) struct Row<'a> {
    pub component: &'a str,
    pub tensor: &'a str,
    pub shape: Vec<i64>,
    /// Index in the tensor of the first element.
    pub start: i64,
    pub dtype: &'a str,
    pub data: Data<'a>,
}

/// The little-endian bytes of elements.
pub(super) enum Data<'a> {
    Borrowed(&'a [u8]),
    Buffer(Buffer),
}

impl Data<'_> {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Buffer(buffer) => buffer.as_slice(),
        }
    }
}

impl Row<'_> {
    /// The product of the dimensions; `None` if one is negative, or the product of those that are not zero is 2^63 or more.
    pub(super) fn elements(&self) -> Option<u64> {
        let mut product = 1_i64;
        for &dimension in self.shape.iter().filter(|&&dimension| dimension != 0) {
            product = product.checked_mul(dimension).filter(|_| dimension > 0)?;
        }
        Some(if self.shape.contains(&0) { 0 } else { product.unsigned_abs() })
    }
}

impl Rows {
    /// Reads a batch that has the columns in the order of [`Columns::expressions`].
    pub(super) fn try_new(batch: &RecordBatch, columns: Columns) -> Result<Self> {
        let text = |array: &ArrayRef| Ok::<_, crate::QuantError>(cast(array, &DataType::Utf8)?.as_string().clone());
        let values = batch.column(3);
        let weights = match columns.float {
            Some(float) => {
                let list = DataType::List(Field::new_list_field(float.data_type(), true).into());
                Weights::Lists { float, lists: cast(values, &list)?.as_list().clone() }
            }
            None => {
                let parts = values.as_struct();
                let part =
                    |name| parts.column_by_name(name).ok_or_else(|| RelationError::NoColumn("weights").of_query());
                Weights::Tensors {
                    values: values.clone(),
                    dtypes: text(part("dtype")?)?,
                    data: cast(part("data")?, &DataType::BinaryView)?.as_binary_view().clone(),
                }
            }
        };
        Ok(Self {
            tensors: text(batch.column(0))?,
            // A NULL dimension is refused below, not by the cast.
            shapes: cast(batch.column(1), &nullable_shape())?.as_list().clone(),
            starts: cast(batch.column(2), &DataType::Int64)?.as_primitive::<Int64Type>().clone(),
            weights,
            components: if columns.has_component { Some(text(batch.column(4))?) } else { None },
        })
    }

    /// A row, no part of which is NULL.
    pub(super) fn row(&self, index: usize) -> Result<Row<'_>> {
        if self.tensors.is_null(index) {
            return Err(RelationError::NullTensor.of_query());
        }
        let tensor = self.tensors.value(index);
        let components = self.components.as_ref();
        let component = components.filter(|names| names.is_valid(index)).map_or("", |names| names.value(index));
        let null = |column| RelationError::Null { column }.of_tensor(component, tensor);
        if components.is_some_and(|names| names.is_null(index)) {
            return Err(null("component"));
        }
        if self.starts.is_null(index) {
            return Err(null("start"));
        }
        let dimensions = if self.shapes.is_null(index) { return Err(null("shape")) } else { self.shapes.value(index) };
        if dimensions.null_count() > 0 {
            return Err(null("shape"));
        }
        let (dtype, data) = self.weights.row(index).ok_or_else(|| null("weights"))?;
        let shape = dimensions.as_primitive::<Int64Type>().values().to_vec();
        Ok(Row { component, tensor, shape, start: self.starts.value(index), dtype, data })
    }
}

fn nullable_shape() -> DataType {
    match shape_type() {
        DataType::List(item) => DataType::List(item.as_ref().clone().with_nullable(true).into()),
        other => other,
    }
}

impl Weights {
    /// The dtype and the bytes of a row; `None` if one is NULL, or an element is.
    fn row(&self, index: usize) -> Option<(&str, Data<'_>)> {
        match self {
            Self::Tensors { values, dtypes, data } => {
                let is_valid = values.is_valid(index) && dtypes.is_valid(index) && data.is_valid(index);
                is_valid.then(|| (dtypes.value(index), Data::Borrowed(data.value(index))))
            }
            Self::Lists { float, lists } => {
                let elements = Some(index).filter(|&index| lists.is_valid(index)).map(|index| lists.value(index))?;
                let buffer = match float {
                    Float::F16 => elements.as_primitive::<Float16Type>().values().inner().clone(),
                    Float::F32 => elements.as_primitive::<Float32Type>().values().inner().clone(),
                    Float::F64 => elements.as_primitive::<Float64Type>().values().inner().clone(),
                };
                (elements.null_count() == 0).then(|| (float.dtype(), Data::Buffer(buffer)))
            }
        }
    }
}
