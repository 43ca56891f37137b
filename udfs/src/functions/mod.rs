//! The scalar functions.

pub(crate) mod dequantize;
pub(crate) mod quantize;
pub(crate) mod scale_channels;
pub(crate) mod similarity;
pub(crate) mod tensor_stats;
pub(crate) mod to_floats;
pub(crate) mod weighted_sum;

use arrow::array::ArrayRef;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, DocSection, ScalarFunctionArgs};

use crate::cancellation::Cancellation;

/// Where the functions stand in a reference page.
pub(crate) const SECTION: DocSection = DocSection { include: true, label: "Model weight functions", description: None };

/// Evaluates on arrays, for as long as the query is wanted; a scalar comes back if all arguments are scalars.
pub(crate) fn on_arrays(
    args: ScalarFunctionArgs,
    f: impl FnOnce(&[ArrayRef], usize, &Cancellation) -> Result<ArrayRef>,
) -> Result<ColumnarValue> {
    let cancellation = Cancellation::of(&args.config_options);
    cancellation.check()?;
    let scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
    let rows = if scalar { 1 } else { args.number_rows };
    let arrays = args.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<Vec<_>>>()?;
    let out = f(&arrays, rows, &cancellation)?;
    if scalar {
        Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&out, 0)?))
    } else {
        Ok(ColumnarValue::Array(out))
    }
}
