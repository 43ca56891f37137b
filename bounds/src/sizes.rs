//! The bytes of values.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait};
use arrow::datatypes::{BinaryViewType, ByteViewType, DataType, StringViewType};

/// The bytes of each value of an array, about, without those of other values that share its buffers.
pub fn value_bytes(array: &ArrayRef) -> Vec<usize> {
    let mut sizes = vec![0; array.len()];
    add_sizes(array, &mut sizes);
    sizes
}

/// Adds the bytes of each value on the wire, about.
fn add_sizes(array: &ArrayRef, sizes: &mut [usize]) {
    match array.data_type() {
        DataType::Utf8 => add_lengths(array.as_string::<i32>().value_offsets(), sizes),
        DataType::LargeUtf8 => add_lengths(array.as_string::<i64>().value_offsets(), sizes),
        DataType::Binary => add_lengths(array.as_binary::<i32>().value_offsets(), sizes),
        DataType::LargeBinary => add_lengths(array.as_binary::<i64>().value_offsets(), sizes),
        DataType::Utf8View => add_view_lengths::<StringViewType>(array, sizes),
        DataType::BinaryView => add_view_lengths::<BinaryViewType>(array, sizes),
        DataType::Struct(_) => array.as_struct().columns().iter().for_each(|column| add_sizes(column, sizes)),
        DataType::List(_) => {
            add_children(array.as_list::<i32>().values(), array.as_list::<i32>().value_offsets(), sizes)
        }
        DataType::LargeList(_) => {
            add_children(array.as_list::<i64>().values(), array.as_list::<i64>().value_offsets(), sizes);
        }
        DataType::Map(_, _) => {
            let entries: ArrayRef = Arc::new(array.as_map().entries().clone());
            add_children(&entries, array.as_map().value_offsets(), sizes);
        }
        other => {
            // Of the same width, or rare enough that a mean does.
            let width = other.primitive_width().unwrap_or_else(|| {
                let bytes = array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size());
                bytes.div_ceil(array.len().max(1))
            });
            sizes.iter_mut().for_each(|size| *size += width);
        }
    }
}

fn add_lengths<O: OffsetSizeTrait>(offsets: &[O], sizes: &mut [usize]) {
    for (size, pair) in sizes.iter_mut().zip(offsets.windows(2)) {
        *size += (pair[1] - pair[0]).as_usize() + size_of::<O>();
    }
}

fn add_view_lengths<T: ByteViewType>(array: &ArrayRef, sizes: &mut [usize]) {
    for (size, view) in sizes.iter_mut().zip(array.as_byte_view::<T>().views()) {
        // The low half of the low half of a view is its length.
        *size += *view as u32 as usize + size_of::<i32>();
    }
}

fn add_children<O: OffsetSizeTrait>(values: &ArrayRef, offsets: &[O], sizes: &mut [usize]) {
    if let Some(width) = values.data_type().primitive_width() {
        for (size, pair) in sizes.iter_mut().zip(offsets.windows(2)) {
            *size += (pair[1] - pair[0]).as_usize() * width + size_of::<O>();
        }
        return;
    }
    let (first, last) = (offsets[0].as_usize(), offsets[offsets.len() - 1].as_usize());
    let mut children = vec![0; last - first];
    add_sizes(&values.slice(first, last - first), &mut children);
    for (size, pair) in sizes.iter_mut().zip(offsets.windows(2)) {
        let range = pair[0].as_usize() - first..pair[1].as_usize() - first;
        *size += children[range].iter().sum::<usize>() + size_of::<O>();
    }
}
