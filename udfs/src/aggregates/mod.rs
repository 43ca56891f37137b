//! The aggregate functions.

pub(crate) mod similarity;
pub(crate) mod tensor_stats;

mod sums;
