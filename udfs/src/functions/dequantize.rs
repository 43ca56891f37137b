//! `dequantize(quantized)`.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use super::{SECTION, on_arrays};
use crate::cancellation::Cancellation;
use crate::pairs::active_isa;
use crate::quantized::QuantizedColumn;
use crate::tensor::{binary_views, kernel_error, tensor_type, tensor_value};

const NAME: &str = "dequantize";

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "The weights that a quantized value stands for, as a tensor value of dtype F32.",
        "dequantize(quantized)",
    )
    .with_sql_example(
        "```sql\nSELECT tensor, sqnr(weights, dequantize(quantize(weights, 2, 64))) FROM weights('model/');\n```",
    )
    .with_argument("quantized", "a quantized value, as `quantize` returns and quantized models hold")
    .with_related_udf("quantize")
    .with_related_udf("to_floats")
    .build()
});

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Dequantize {
    signature: Signature,
}

impl Dequantize {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Dequantize {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        // As they are, also if `return_type` refuses them.
        Ok(types.to_vec())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let [quantized] = types else { return plan_err!("{NAME} expects 1 argument, found {}", types.len()) };
        QuantizedColumn::check(NAME, quantized)?;
        Ok(tensor_type())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        on_arrays(args, dequantize_rows)
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn dequantize_rows(arrays: &[ArrayRef], rows: usize, cancellation: &Cancellation) -> Result<ArrayRef> {
    let isa = active_isa()?;
    let quantized = QuantizedColumn::read(NAME, &arrays[0])?;
    let (mut data, mut row_lengths, mut valid) = (Vec::with_capacity(rows), Vec::with_capacity(rows), Vec::new());
    for row in 0..rows {
        let value = quantized.row(row)?;
        valid.push(value.is_some());
        row_lengths.push(value.map(|value| value.row_length() as i64));
        data.push(match value {
            Some(value) => {
                let floats = value.dequantize(isa, cancellation).map_err(|e| kernel_error(NAME, row, e))?;
                Some(arrow::buffer::Buffer::from_vec(floats))
            }
            None => None,
        });
    }
    let dtypes: StringArray = valid.iter().map(|valid| valid.then_some("F32")).collect();
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    let (dtypes, row_lengths) = (Arc::new(dtypes), Arc::new(Int64Array::from(row_lengths)));
    Ok(Arc::new(tensor_value(dtypes, row_lengths, binary_views(data)?, nulls)))
}
