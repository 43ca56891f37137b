//! The column `shape`: dimensions of a tensor as a list.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Builder, ListBuilder};
use arrow::datatypes::{DataType, Field};

/// `List<Int64>`.
pub(crate) fn shape_type() -> DataType {
    DataType::List(Arc::new(shape_item()))
}

fn shape_item() -> Field {
    Field::new_list_field(DataType::Int64, false)
}

/// Shapes as an array.
pub(crate) fn shapes<'a>(shapes: impl Iterator<Item = &'a [i64]>) -> ArrayRef {
    let mut builder = ListBuilder::new(Int64Builder::new()).with_field(shape_item());
    for shape in shapes {
        builder.values().append_slice(shape);
        builder.append(true);
    }
    Arc::new(builder.finish())
}
