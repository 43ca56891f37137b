//! Tensors as Arrow arrays: floats are a tensor of one dimension, lists of equal length add one each.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, Float16Array, Float32Array, GenericListArray, OffsetSizeTrait,
    make_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type};
use arrow_quant_kernels::Dtype;

use super::{QuantizedData, TensorData};
use crate::{QuantError, Result, ShapeProblem};

impl TensorData {
    /// A tensor of Arrow arrays, one after another along the first dimension. Floats (16, 32, 64) have one dimension; each
    /// `List`, `LargeList` or `FixedSizeList` around them adds one, so its lists must be of equal length. Nothing is copied.
    ///
    /// # Errors
    /// For another type, a NULL, and lists of unequal lengths, naming the row.
    pub fn from_arrow(name: &str, data_type: &DataType, arrays: &[ArrayRef]) -> Result<Self> {
        let dtype = leaf(data_type).ok_or_else(|| QuantError::Quantization {
            tensor: Some(name.to_string()),
            message: format!("{name} is {data_type}, allowed: floats (16, 32 or 64 bits), or lists of them"),
        })?;
        let rows: usize = arrays.iter().map(|array| array.len()).sum();
        let mut shape = vec![i64::try_from(rows).unwrap_or(i64::MAX)];
        let mut level = arrays.to_vec();
        let mut data_type = data_type.clone();
        while let DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) =
            data_type.clone()
        {
            let mut length = None;
            let mut row = 0;
            let mut inner = Vec::with_capacity(level.len());
            for array in &level {
                refuse_nulls(name, array, row)?;
                inner.push(match array.data_type() {
                    DataType::List(_) => equal_lists::<i32>(name, array.as_list(), row, &mut length)?,
                    DataType::LargeList(_) => equal_lists::<i64>(name, array.as_list(), row, &mut length)?,
                    _ => {
                        let lists = array.as_fixed_size_list();
                        length = Some(lists.value_length() as usize);
                        // A slice may start anywhere in the values.
                        lists
                            .values()
                            .slice(lists.value_offset(0) as usize, lists.len() * lists.value_length() as usize)
                    }
                });
                row += array.len();
            }
            shape.push(length.unwrap_or(0) as i64);
            level = inner;
            data_type = item.data_type().clone();
        }
        let mut row = 0;
        let mut buffers = Vec::with_capacity(level.len());
        for array in level {
            refuse_nulls(name, &array, row)?;
            row += array.len();
            let data = array.to_data();
            let bytes = data.buffers()[0].slice_with_length(data.offset() * dtype.size(), array.len() * dtype.size());
            buffers.push(bytes);
        }
        Self::new(dtype, shape, buffers)
    }
}

impl QuantizedData {
    /// The restored weights as one Arrow array of the type that the tensor came in.
    ///
    /// # Errors
    /// If the values contradict themselves, or the type is not one of as many dimensions.
    pub fn to_arrow(&self, data_type: &DataType, threads: usize) -> Result<ArrayRef> {
        let mut floats = vec![0.0f32; self.elements() as usize];
        self.dequantize_into(&mut floats, threads)?;
        nested(Arc::new(Float32Array::from(floats)), data_type, self.shape())
    }
}

/// The dtype of the floats in a type.
fn leaf(data_type: &DataType) -> Option<Dtype> {
    match data_type {
        DataType::Float16 => Some(Dtype::F16),
        DataType::Float32 => Some(Dtype::F32),
        DataType::Float64 => Some(Dtype::F64),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => leaf(item.data_type()),
        _ => None,
    }
}

fn refuse_nulls(name: &str, array: &ArrayRef, first_row: usize) -> Result<()> {
    let Some(row) = array.nulls().and_then(|nulls| (0..nulls.len()).find(|&row| nulls.is_null(row))) else {
        return Ok(());
    };
    Err(QuantError::shape(Some(name), ShapeProblem::Null { at: first_row + row }))
}

/// The values of lists that are all of one length, which is that of the first.
fn equal_lists<O: OffsetSizeTrait>(
    name: &str,
    lists: &GenericListArray<O>,
    first_row: usize,
    length: &mut Option<usize>,
) -> Result<ArrayRef> {
    for (row, found) in lists.offsets().lengths().enumerate() {
        let expected = *length.get_or_insert(found);
        if found != expected {
            let problem = ShapeProblem::UnequalRows { at: first_row + row, found, expected };
            return Err(QuantError::shape(Some(name), problem));
        }
    }
    let offsets = lists.value_offsets();
    let (first, last) = (offsets[0].as_usize(), offsets[lists.len()].as_usize());
    Ok(lists.values().slice(first, last - first))
}

/// Floats as a type, with lists around them as long as the dimensions say.
fn nested(floats: ArrayRef, data_type: &DataType, shape: &[i64]) -> Result<ArrayRef> {
    let wrong = || {
        let problem = ShapeProblem::ArrowType { shape: shape.to_vec(), data_type: data_type.clone() };
        QuantError::shape(None, problem)
    };
    let (item, length) = match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            (item, *shape.get(1).ok_or_else(wrong)? as usize)
        }
        _ if *floats.data_type() == *data_type => return Ok(floats),
        DataType::Float16 => {
            // A level of the grid may lie beyond the greatest weight.
            let greatest = half::f16::MAX.to_f32();
            let floats = floats.as_primitive::<Float32Type>();
            let halves = floats.values().iter().map(|w| half::f16::from_f32(w.clamp(-greatest, greatest)));
            return Ok(Arc::new(Float16Array::from_iter_values(halves)));
        }
        _ => return Ok(cast(&floats, data_type)?),
    };
    let inner = shape[0] as usize * length;
    let inner_shape: Vec<i64> = std::iter::once(inner as i64).chain(shape[2..].iter().copied()).collect();
    let values = nested(floats, item.data_type(), &inner_shape)?;
    let (rows, item) = (shape[0] as usize, Arc::clone(item));
    Ok(match data_type {
        DataType::FixedSizeList(_, size) => {
            Arc::new(FixedSizeListArray::try_new_with_length(item, *size, values, None, rows)?)
        }
        DataType::List(_) => list::<i32>(item, values, rows, length)?,
        _ => list::<i64>(item, values, rows, length)?,
    })
}

fn list<O: OffsetSizeTrait>(
    item: arrow::datatypes::FieldRef,
    values: ArrayRef,
    rows: usize,
    length: usize,
) -> Result<ArrayRef> {
    let offsets = OffsetBuffer::<O>::from_lengths(std::iter::repeat_n(length, rows));
    let list = GenericListArray::<O>::try_new(item, offsets, values, None)?;
    Ok(make_array(list.into()))
}
