//! Tensor values: a dtype, a row length and bytes, or a list of floats.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BinaryViewBuilder, FixedSizeListArray, GenericListArray, Int64Array,
    OffsetSizeTrait, StringViewArray, StructArray,
};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Float16Type, Float32Type, Float64Type};
use arrow_quant_kernels::{Dtype, Encoding, KernelError, Weights};
use datafusion::common::{Result, exec_datafusion_err, exec_err, plan_err};
use datafusion::error::DataFusionError;

use crate::cancellation::Cancelled;

/// The type of a tensor value: `Struct<dtype Utf8, row_length Int64, data BinaryView>`. `data` holds little-endian
/// elements of `dtype`, `row_length` of them to a row of the tensor, so that groups can end where rows do; where `dtype` is the
/// name of a block type of ggml, `q4_k` say, its blocks. All fields are nullable, so that the fields of a NULL value are NULL in every engine. A value whose `dtype` or `data` is NULL is read as
/// NULL, one whose `row_length` is NULL as a single row.
pub fn tensor_type() -> DataType {
    DataType::Struct(tensor_fields())
}

fn tensor_fields() -> Fields {
    Fields::from(vec![
        Field::new("dtype", DataType::Utf8, true),
        Field::new("row_length", DataType::Int64, true),
        Field::new("data", DataType::BinaryView, true),
    ])
}

/// Tensor values from their parts; NULL where `nulls` says so, and there the parts are to be NULL too.
pub fn tensor_value(dtype: ArrayRef, row_length: ArrayRef, data: ArrayRef, nulls: Option<NullBuffer>) -> StructArray {
    StructArray::new(tensor_fields(), vec![dtype, row_length, data], nulls)
}

/// Why a function has no value for a row. It is the [`DataFusionError::External`] of a query.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{function}, row {row}: {problem}")]
pub struct RowError {
    /// The name of the function.
    pub function: &'static str,
    /// The row in the batch that the function was called with.
    pub row: usize,
    /// What the kernel refused.
    pub problem: KernelError,
}

/// An error of a function, for a row.
pub(crate) fn kernel_error(function: &'static str, row: usize, problem: KernelError) -> DataFusionError {
    if problem == KernelError::Cancelled {
        return DataFusionError::External(Box::new(Cancelled));
    }
    DataFusionError::External(Box::new(RowError { function, row, problem }))
}

/// A column of tensor values or lists of floats, or a scalar that stands for every row.
#[derive(Debug)]
pub(crate) struct TensorColumn {
    function: &'static str,
    nulls: Option<NullBuffer>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Null,
    Tensors(Box<Tensors>),
    /// Elements of one dtype; row i has those from `offsets[i]` to `offsets[i + 1]`.
    Lists {
        dtype: Dtype,
        offsets: Offsets,
        bytes: Buffer,
        element_nulls: Option<NullBuffer>,
    },
}

/// The fields of tensor values.
#[derive(Debug)]
struct Tensors {
    dtypes: StringViewArray,
    row_lengths: Option<Int64Array>,
    data: BinaryViewArray,
}

#[derive(Debug)]
enum Offsets {
    Each(Vec<usize>),
    Fixed(usize),
}

impl Offsets {
    fn range(&self, row: usize) -> std::ops::Range<usize> {
        match self {
            Self::Each(offsets) => offsets[row]..offsets[row + 1],
            Self::Fixed(size) => row * size..(row + 1) * size,
        }
    }
}

impl TensorColumn {
    /// True for a type that a tensor value can be read from.
    pub(crate) fn accepts(data_type: &DataType) -> bool {
        match data_type {
            DataType::Null => true,
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                matches!(item.data_type(), DataType::Float16 | DataType::Float32 | DataType::Float64)
            }
            DataType::Struct(fields) => {
                let has = |name: &str, test: fn(&DataType) -> bool| {
                    fields.iter().any(|f| f.name() == name && test(f.data_type()))
                };
                let row_length = fields.iter().find(|f| f.name() == "row_length");
                has("dtype", is_string)
                    && has("data", is_binary)
                    && row_length.is_none_or(|f| f.data_type().is_integer() || f.data_type().is_null())
            }
            _ => false,
        }
    }

    /// The type to read an argument as: lists of integers and empty lists as floats. Fails at planning for a type that no
    /// tensor value can be read from.
    pub(crate) fn coerce(function: &str, argument: &str, data_type: &DataType) -> Result<DataType> {
        if Self::accepts(data_type) {
            return Ok(data_type.clone());
        }
        if let DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) = data_type
            && (item.data_type().is_integer() || item.data_type().is_null())
        {
            return Ok(DataType::new_list(DataType::Float64, true));
        }
        plan_err!(
            "{function} expects {argument} to be a tensor value (a struct with dtype and data) or a list of floats, found {data_type}"
        )
    }

    pub(crate) fn try_new(function: &'static str, array: &ArrayRef) -> Result<Self> {
        let values = match array.data_type() {
            DataType::Null => Values::Null,
            DataType::Struct(_) => {
                let array = array.as_struct();
                let row_lengths = array.column_by_name("row_length");
                Values::Tensors(Box::new(Tensors {
                    dtypes: column(array, "dtype", &DataType::Utf8View)?.as_string_view().clone(),
                    row_lengths: match row_lengths {
                        Some(lengths) => Some(cast(lengths, &DataType::Int64)?.as_primitive().clone()),
                        None => None,
                    },
                    data: column(array, "data", &DataType::BinaryView)?.as_binary_view().clone(),
                }))
            }
            DataType::List(_) => from_list::<i32>(array.as_list())?,
            DataType::LargeList(_) => from_list::<i64>(array.as_list())?,
            DataType::FixedSizeList(_, _) => from_fixed_size_list(array.as_fixed_size_list())?,
            other => return exec_err!("{function}: {other} is not a tensor value"),
        };
        Ok(Self { function, nulls: array.logical_nulls(), values })
    }

    /// The tensor in a row; `None` if it is NULL.
    pub(crate) fn row(&self, row: usize) -> Result<Option<Row<'_>>> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(None);
        }
        let weights = match &self.values {
            Values::Null => return Ok(None),
            Values::Tensors(tensors) => {
                let Tensors { dtypes, row_lengths, data } = tensors.as_ref();
                if dtypes.is_null(row) || data.is_null(row) {
                    return Ok(None);
                }
                let row_length = row_lengths.as_ref().filter(|lengths| lengths.is_valid(row)).map(|lengths| {
                    // A negative length divides no number of elements, so it is refused as 0 is.
                    usize::try_from(lengths.value(row)).unwrap_or(0)
                });
                let (dtype, bytes) = (dtypes.value(row), data.value(row));
                let Some(weights) = stored_weights(dtype, bytes, row_length) else {
                    return exec_err!(
                        "{}: a tensor of dtype {dtype} has no weights to work on; leave such tensors out: WHERE weights['dtype'] IN ('F64', 'F32', 'F16', 'BF16')",
                        self.function
                    );
                };
                weights.map_err(|e| kernel_error(self.function, row, e))?
            }
            Values::Lists { dtype, offsets, bytes, element_nulls } => {
                let range = offsets.range(row);
                if element_nulls.as_ref().is_some_and(|n| n.slice(range.start, range.len()).null_count() > 0) {
                    return Ok(Some(Row::NullElement));
                }
                Weights::one_row(*dtype, &bytes[range.start * dtype.size()..range.end * dtype.size()])
                    .map_err(|e| kernel_error(self.function, row, e))?
            }
        };
        Ok(Some(Row::Weights(weights)))
    }

    /// The tensor in a row; an error if a list has a NULL in it.
    pub(crate) fn complete_row(&self, row: usize) -> Result<Option<Weights<'_>>> {
        match self.row(row)? {
            None => Ok(None),
            Some(Row::Weights(weights)) => Ok(Some(weights)),
            Some(Row::NullElement) => exec_err!("{}, row {row}: the list has a NULL element", self.function),
        }
    }
}

/// The weights of a tensor value in rows, or one row; `None` if its dtype is neither a float nor a block type of ggml.
fn stored_weights<'a>(
    dtype: &str,
    bytes: &'a [u8],
    row_length: Option<usize>,
) -> Option<Result<Weights<'a>, KernelError>> {
    match Encoding::parse(dtype, None).ok()? {
        Encoding::Float(dtype) => {
            Some(row_length.map_or_else(|| Weights::one_row(dtype, bytes), |row| Weights::new(dtype, bytes, row)))
        }
        Encoding::Block(block_type) => {
            let row_length = row_length.unwrap_or(bytes.len() / block_type.size() * block_type.length());
            Some(Weights::blocks(block_type, bytes, row_length))
        }
        // The scales are elsewhere.
        Encoding::Fp8(_) | Encoding::Grouped(..) => None,
    }
}

/// What a row that is not NULL holds.
pub(crate) enum Row<'a> {
    /// A tensor.
    Weights(Weights<'a>),
    /// A list with a NULL element.
    NullElement,
}

pub(crate) fn is_string(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_string(value),
        _ => matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
    }
}

fn is_binary(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_))
}

/// A field of a struct by name, in the encoding wanted.
pub(crate) fn column(array: &StructArray, name: &str, wanted: &DataType) -> Result<ArrayRef> {
    match array.column_by_name(name) {
        Some(column) => Ok(cast(column, wanted)?),
        None => exec_err!("the value has no field {name}"),
    }
}

/// Lists' elements as bytes. The values array of a sliced list is whole; offsets point into it.
fn from_list<O: OffsetSizeTrait>(list: &GenericListArray<O>) -> Result<Values> {
    let offsets = list.value_offsets().iter().map(|offset| offset.as_usize()).collect();
    from_elements(list.values(), Offsets::Each(offsets))
}

fn from_fixed_size_list(list: &FixedSizeListArray) -> Result<Values> {
    let size = list.value_length() as usize;
    // A slice may start anywhere in the values.
    let values = list.values().slice(list.value_offset(0) as usize, list.len() * size);
    from_elements(&values, Offsets::Fixed(size))
}

fn from_elements(values: &ArrayRef, offsets: Offsets) -> Result<Values> {
    let (dtype, bytes) = match values.data_type() {
        DataType::Float16 => (Dtype::F16, values.as_primitive::<Float16Type>().values().inner().clone()),
        DataType::Float32 => (Dtype::F32, values.as_primitive::<Float32Type>().values().inner().clone()),
        DataType::Float64 => (Dtype::F64, values.as_primitive::<Float64Type>().values().inner().clone()),
        other => return exec_err!("a list of {other} is not a list of floats"),
    };
    let element_nulls = values.nulls().filter(|nulls| nulls.null_count() > 0).cloned();
    Ok(Values::Lists { dtype, offsets, bytes, element_nulls })
}

/// Binary views, one whole buffer a row, `None` for NULL.
pub(crate) fn binary_views(buffers: Vec<Option<impl Into<Buffer>>>) -> Result<ArrayRef> {
    let mut builder = BinaryViewBuilder::with_capacity(buffers.len());
    for buffer in buffers {
        let Some(buffer) = buffer.map(Into::into) else {
            builder.append_null();
            continue;
        };
        // Values of at most 12 bytes are stored in the view itself.
        if buffer.len() <= 12 {
            builder.append_value(&buffer);
            continue;
        }
        let length = u32::try_from(buffer.len()).map_err(|_| {
            exec_datafusion_err!("a value of {} bytes is longer than the 4 GiB a row can hold", buffer.len())
        })?;
        let block = builder.append_block(buffer);
        builder.try_append_view(block, 0, length)?;
    }
    Ok(Arc::new(builder.finish()))
}
