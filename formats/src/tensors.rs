//! What a format says of a tensor.

use std::ops::Range;

use crate::StoredType;

/// Where the last axis is shorter than this, a row is everything under one index of the first axis.
const SHORT_AXIS: i64 = 32;

/// One tensor of a file. Its range lies within the file and is as long as type and shape ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name, unique in the file.
    pub name: String,
    /// The type of its elements.
    pub stored: StoredType,
    /// Its dimensions, none negative. The product of those that are not zero fits an i64.
    pub shape: Vec<i64>,
    /// Its bytes, counted from the start of the file.
    pub range: Range<u64>,
}

impl TensorEntry {
    /// Elements in all: the product of the dimensions.
    pub fn elements(&self) -> u64 {
        elements(&self.shape)
    }
}

/// The product of the dimensions. It does not overflow for a shape that a format accepted.
pub fn elements(shape: &[i64]) -> u64 {
    shape.iter().map(|dimension| dimension.unsigned_abs()).product()
}

/// Elements of a row of a tensor of this shape, which groups never leave: the last axis, or where that is shorter than
/// 32 everything under one index of the first axis. 1 for a scalar, 0 if a dimension of the row is 0.
pub fn row_length(shape: &[i64]) -> u64 {
    match shape {
        [_, rest @ .., last] if *last < SHORT_AXIS => elements(rest) * last.unsigned_abs(),
        [.., last] => last.unsigned_abs(),
        [] => 1,
    }
}
