//! `to_floats(weights)`.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Float32Builder, ListBuilder};
use arrow::datatypes::{DataType, Field};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use super::tensor_stats::read_as;
use super::{SECTION, on_arrays};
use crate::arguments::coerced;
use crate::pairs::active_isa;
use crate::slices::to_f32_of;
use crate::tensor::{TensorColumn, kernel_error};

const NAME: &str = "to_floats";

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "The elements of a tensor value as a list of 32-bit floats, for everything else SQL can do with lists.",
        "to_floats(weights)",
    )
    .with_sql_example("```sql\nSELECT tensor, array_max(to_floats(weights)) FROM weights('model/');\n```")
    .with_argument("weights", "a tensor value or a list of floats")
    .build()
});

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct ToFloats {
    signature: Signature,
}

impl ToFloats {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for ToFloats {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        coerced(types, read_as(NAME, types))
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        read_as(NAME, types)?;
        Ok(DataType::List(Arc::new(item())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        on_arrays(args, |arrays, rows, cancellation| {
            let isa = active_isa()?;
            let column = TensorColumn::try_new(NAME, &arrays[0])?;
            let mut builder = ListBuilder::new(Float32Builder::new()).with_field(item());
            let mut elements = 0;
            for row in 0..rows {
                let Some(weights) = column.complete_row(row)? else {
                    builder.append_null();
                    continue;
                };
                elements += weights.len();
                if elements > i32::MAX as usize {
                    return exec_err!(
                        "{NAME}: a batch of {elements} elements is more than a list column can hold; lower datafusion.execution.batch_size"
                    );
                }
                let floats = to_f32_of(isa, weights, cancellation).map_err(|e| kernel_error(NAME, row, e))?;
                builder.values().append_slice(&floats);
                builder.append(true);
            }
            Ok(Arc::new(builder.finish()) as ArrayRef)
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn item() -> Field {
    Field::new_list_field(DataType::Float32, true)
}
