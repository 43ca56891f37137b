//! Arguments whose types a function does not take.

use arrow::datatypes::DataType;
use datafusion::common::Result;

/// The types that `coerce_types` gives DataFusion: those that arguments of `types` are read as, or `types` if the function
/// refuses them.
///
/// DataFusion makes text of an error of `coerce_types` and surrounds it with candidates that say nothing. The error of
/// `return_type` it passes on as it is, and that is where the functions refuse arguments.
pub(crate) fn coerced(types: &[DataType], accepted: Result<Vec<DataType>>) -> Result<Vec<DataType>> {
    Ok(accepted.unwrap_or_else(|_| types.to_vec()))
}
