//! `scale_channels(weights, factors)`.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use super::{SECTION, on_arrays};
use crate::arguments::coerced;
use crate::cancellation::Cancellation;
use crate::pairs::active_isa;
use crate::slices::{scale_channels_of, to_f32_of};
use crate::tensor::{TensorColumn, binary_views, kernel_error, tensor_type, tensor_value};

const NAME: &str = "scale_channels";

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "Weights whose input channels are scaled: element j of each row times `factors[j]`, as a tensor value of dtype F32. \
         This is how smoothing is folded into weights.",
        "scale_channels(weights, factors)",
    )
    .with_sql_example("```sql\nSELECT scale_channels([1.0, 2.0, 3.0], [2.0, 1.0, 0.5]);\n```")
    .with_argument("weights", "a tensor value or a list of floats")
    .with_argument("factors", "a list of finite numbers above 0, one for each element of a row")
    .with_related_udf("quantize")
    .build()
});

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct ScaleChannels {
    signature: Signature,
}

impl ScaleChannels {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for ScaleChannels {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        coerced(types, read_as(types))
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        read_as(types)?;
        Ok(tensor_type())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        on_arrays(args, scale_rows)
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

/// The types to read the arguments as. Fails unless they are two, and can be read as tensor values.
fn read_as(types: &[DataType]) -> Result<Vec<DataType>> {
    let [weights, factors] = types else { return plan_err!("{NAME} expects 2 arguments, found {}", types.len()) };
    Ok(vec![TensorColumn::coerce(NAME, "weights", weights)?, TensorColumn::coerce(NAME, "factors", factors)?])
}

fn scale_rows(arrays: &[ArrayRef], rows: usize, cancellation: &Cancellation) -> Result<ArrayRef> {
    let isa = active_isa()?;
    let (weights, factors) = (TensorColumn::try_new(NAME, &arrays[0])?, TensorColumn::try_new(NAME, &arrays[1])?);
    let (mut data, mut row_lengths, mut valid) = (Vec::with_capacity(rows), Vec::with_capacity(rows), Vec::new());
    for row in 0..rows {
        let (weights, factors) = (weights.complete_row(row)?, factors.complete_row(row)?);
        let scaled = match (weights, factors) {
            (Some(weights), Some(factors)) => {
                let scaled = to_f32_of(isa, factors, cancellation)
                    .and_then(|factors| scale_channels_of(isa, weights, &factors, cancellation));
                Some((weights.row_length(), scaled.map_err(|e| kernel_error(NAME, row, e))?))
            }
            _ => None,
        };
        valid.push(scaled.is_some());
        let (row_length, floats) = scaled.unzip();
        row_lengths.push(row_length.map(|row_length| row_length as i64));
        data.push(floats.map(Buffer::from_vec));
    }
    let dtypes: Arc<StringArray> = Arc::new(valid.iter().map(|valid| valid.then_some("F32")).collect());
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    Ok(Arc::new(tensor_value(dtypes, Arc::new(Int64Array::from(row_lengths)), binary_views(data)?, nulls)))
}
