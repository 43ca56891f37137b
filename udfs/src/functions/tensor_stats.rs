//! `tensor_stats(weights)`.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Float64Array, Int64Array, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use arrow_quant_kernels::Stats;
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use super::{SECTION, on_arrays};
use crate::arguments::coerced;
use crate::pairs::active_isa;
use crate::slices::stats_of;
use crate::tensor::{TensorColumn, kernel_error};

const NAME: &str = "tensor_stats";

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "Counts and moments of a tensor's elements: a struct of `n, nans, infinities, zeros, min, max, mean, std, rms`. NaN \
         and infinities are counted and take no part in the rest.",
        "tensor_stats(weights)",
    )
    .with_sql_example("```sql\nSELECT tensor, tensor_stats(weights)['std'] FROM weights('model/');\n```")
    .with_argument("weights", "a tensor value or a list of floats")
    .with_related_udf("tensor_stats_agg")
    .build()
});

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct TensorStats {
    signature: Signature,
}

impl TensorStats {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for TensorStats {
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
        Ok(stats_type())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        on_arrays(args, |arrays, rows, cancellation| {
            let isa = active_isa()?;
            let column = TensorColumn::try_new(NAME, &arrays[0])?;
            let of_row = |row| match column.complete_row(row)? {
                Some(weights) => stats_of(isa, weights, cancellation).map(Some).map_err(|e| kernel_error(NAME, row, e)),
                None => Ok(None),
            };
            Ok(Arc::new(stats_array(&(0..rows).map(of_row).collect::<Result<Vec<_>>>()?)) as ArrayRef)
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

/// The type to read the one argument as. Fails at planning unless there is one, and it can be read as a tensor value.
pub(crate) fn read_as(function: &str, types: &[DataType]) -> Result<Vec<DataType>> {
    let [weights] = types else { return plan_err!("{function} expects 1 argument, found {}", types.len()) };
    Ok(vec![TensorColumn::coerce(function, "weights", weights)?])
}

fn stats_fields() -> Fields {
    let int = |name| Field::new(name, DataType::Int64, true);
    let float = |name| Field::new(name, DataType::Float64, true);
    Fields::from(vec![
        int("n"),
        int("nans"),
        int("infinities"),
        int("zeros"),
        float("min"),
        float("max"),
        float("mean"),
        float("std"),
        float("rms"),
    ])
}

/// The struct that the function and its aggregate return.
pub(crate) fn stats_type() -> DataType {
    DataType::Struct(stats_fields())
}

/// Statistics as an array, `None` being NULL; what finite elements would be needed for is NULL without any.
pub(crate) fn stats_array(values: &[Option<Stats>]) -> StructArray {
    let int = |f: fn(&Stats) -> u64| {
        Arc::new(values.iter().map(|v| v.as_ref().map(|v| f(v) as i64)).collect::<Int64Array>()) as ArrayRef
    };
    let float = |f: fn(&Stats) -> Option<f64>| {
        Arc::new(values.iter().map(|v| v.as_ref().and_then(f)).collect::<Float64Array>()) as ArrayRef
    };
    StructArray::new(
        stats_fields(),
        vec![
            int(|s| s.n),
            int(|s| s.nans),
            int(|s| s.infinities),
            int(|s| s.zeros),
            float(|s| (s.finite() > 0).then_some(s.min)),
            float(|s| (s.finite() > 0).then_some(s.max)),
            float(Stats::mean),
            float(Stats::std),
            float(Stats::rms),
        ],
        Some(NullBuffer::from_iter(values.iter().map(Option::is_some))).filter(|nulls| nulls.null_count() > 0),
    )
}
