//! `weighted_sum(a, x, b, y)`.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type};
use arrow_quant_kernels::Dtype;
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use super::{SECTION, on_arrays};
use crate::arguments::coerced;
use crate::cancellation::Cancellation;
use crate::pairs::active_isa;
use crate::slices::weighted_sum_of;
use crate::tensor::{TensorColumn, binary_views, kernel_error, tensor_type, tensor_value};

const NAME: &str = "weighted_sum";

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "The sum a·x + b·y of two tensors, element by element, as a tensor value in the dtype of `x`, or F32 where `x` is \
         blocks: with 0.5 and 0.5 their mean. Elements and factors are taken as f32. The product a·x is rounded to f32; to it the exact product b·y is added, \
         and rounded to f32; the sum is rounded to the dtype of `x`; all to nearest, ties to even. What the dtype cannot hold is \
         infinite. An error if the lengths differ.",
        "weighted_sum(a, x, b, y)",
    )
    .with_sql_example(
        "```sql\nSELECT m.component, m.tensor, m.shape, m.start, weighted_sum(0.5, m.weights, 0.5, n.weights) AS weights\n\
         FROM weights('model/') m JOIN weights('other/') n\n\
         \u{20}   ON m.component = n.component AND m.tensor = n.tensor AND m.chunk = n.chunk;\n```",
    )
    .with_argument("a", "a finite number, the factor of `x`")
    .with_argument("x", "a tensor value or a list of floats")
    .with_argument("b", "a finite number, the factor of `y`")
    .with_argument("y", "a tensor value or a list of floats, with as many elements as `x`")
    .with_related_udf("scale_channels")
    .build()
});

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct WeightedSum {
    signature: Signature,
}

impl WeightedSum {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for WeightedSum {
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
        on_arrays(args, sum_rows)
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

/// The types that the arguments are read as.
fn read_as(types: &[DataType]) -> Result<Vec<DataType>> {
    let [a, x, b, y] = types else { return plan_err!("{NAME} expects 4 arguments, found {}", types.len()) };
    Ok(vec![
        factor_type("a", a)?,
        TensorColumn::coerce(NAME, "x", x)?,
        factor_type("b", b)?,
        TensorColumn::coerce(NAME, "y", y)?,
    ])
}

/// The type to read a factor as. Fails at planning for what is not a number.
fn factor_type(argument: &str, data_type: &DataType) -> Result<DataType> {
    if data_type.is_numeric() || data_type.is_null() {
        return Ok(DataType::Float32);
    }
    plan_err!("{NAME} expects {argument} to be a number, found {data_type}")
}

/// The factor in a row; `None` if it is NULL.
fn factor(argument: &str, column: &ArrayRef, row: usize) -> Result<Option<f32>> {
    if column.is_null(row) {
        return Ok(None);
    }
    let factor = column.as_primitive::<Float32Type>().value(row);
    if factor.is_finite() {
        Ok(Some(factor))
    } else {
        exec_err!("{NAME}, row {row}: {argument} is {factor}, allowed: finite numbers")
    }
}

fn sum_rows(arrays: &[ArrayRef], rows: usize, cancellation: &Cancellation) -> Result<ArrayRef> {
    let isa = active_isa()?;
    let (a, b) = (cast(&arrays[0], &DataType::Float32)?, cast(&arrays[2], &DataType::Float32)?);
    let (x, y) = (TensorColumn::try_new(NAME, &arrays[1])?, TensorColumn::try_new(NAME, &arrays[3])?);
    let (mut dtypes, mut row_lengths) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    let (mut data, mut valid) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for row in 0..rows {
        let factors = (factor("a", &a, row)?, factor("b", &b, row)?);
        let sum = match (factors, x.complete_row(row)?, y.complete_row(row)?) {
            ((Some(a), Some(b)), Some(x), Some(y)) => {
                let sum = weighted_sum_of(isa, (a, x), (b, y), cancellation);
                let (dtype, sum) = sum.map_err(|e| kernel_error(NAME, row, e))?;
                Some((dtype, x.row_length(), sum))
            }
            _ => None,
        };
        valid.push(sum.is_some());
        let (dtype, row_length, bytes) = sum.unwrap_or((Dtype::F32, 0, Vec::new()));
        dtypes.push(dtype.name());
        row_lengths.push(row_length as i64);
        data.push(Some(Buffer::from_vec(bytes)));
    }
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    let row_lengths = Arc::new(Int64Array::from(row_lengths));
    Ok(Arc::new(tensor_value(Arc::new(StringArray::from(dtypes)), row_lengths, binary_views(data)?, nulls)))
}
