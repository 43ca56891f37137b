//! `tensor_stats_agg(weights)`.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type};
use arrow_quant_kernels::{Isa, Stats};
use datafusion::common::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, Documentation, GroupsAccumulator, Signature, Volatility,
};

use super::bound;
use super::sums::{GroupSums, OneSum, Sums, state_fields};
use crate::arguments::coerced;
use crate::cancellation::Cancellation;
use crate::functions::SECTION;
use crate::functions::tensor_stats::{read_as, stats_array, stats_type};
use crate::pairs::active_isa;
use crate::slices::stats_of;
use crate::tensor::{TensorColumn, kernel_error};

const NAME: &str = "tensor_stats_agg";

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "Counts and moments of a tensor given in chunks: a struct of `n, nans, infinities, zeros, min, max, mean, std, rms`, \
         as `tensor_stats` returns. NULL rows are skipped.",
        "tensor_stats_agg(weights)",
    )
    .with_sql_example(
        "```sql\nSELECT component, tensor, tensor_stats_agg(weights)['max'] FROM weights('model/') GROUP BY component, tensor;\n```",
    )
    .with_argument("weights", "tensor values or lists of floats")
    .with_related_udf("tensor_stats")
    .build()
});

/// The aggregate.
#[derive(Debug, Clone)]
pub(crate) struct TensorStatsAgg {
    signature: Signature,
    /// That of the query, once the function is part of one.
    cancellation: Option<Cancellation>,
}

// Whether a query is wanted does not make another function.
impl PartialEq for TensorStatsAgg {
    fn eq(&self, other: &Self) -> bool {
        self.signature == other.signature
    }
}

impl Eq for TensorStatsAgg {}

impl std::hash::Hash for TensorStatsAgg {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.signature.hash(state);
    }
}

impl TensorStatsAgg {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable), cancellation: None }
    }
}

impl AggregateUDFImpl for TensorStatsAgg {
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

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(state_fields::<StatsSums>(args.name))
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        bound(self, self.cancellation.as_ref(), |unbound, cancellation| Self { cancellation, ..unbound })
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneSum::new(self.sums())))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(GroupSums::new(self.sums())))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

impl TensorStatsAgg {
    fn sums(&self) -> StatsSums {
        StatsSums { cancellation: self.cancellation.clone().unwrap_or_default() }
    }
}

/// Statistics for as long as a query is wanted.
#[derive(Debug, Clone)]
struct StatsSums {
    cancellation: Cancellation,
}

impl Sums for StatsSums {
    type Sum = Stats;

    type Rows = (Isa, TensorColumn);

    fn read(&self, args: &[ArrayRef]) -> Result<Self::Rows> {
        Ok((active_isa()?, TensorColumn::try_new(NAME, &args[0])?))
    }

    fn row(&self, (isa, column): &Self::Rows, row: usize) -> Result<Option<Stats>> {
        match column.complete_row(row)? {
            Some(weights) => {
                stats_of(*isa, weights, &self.cancellation).map(Some).map_err(|e| kernel_error(NAME, row, e))
            }
            None => Ok(None),
        }
    }

    fn state_fields() -> Vec<Field> {
        let int = |name| Field::new(name, DataType::Int64, true);
        let float = |name| Field::new(name, DataType::Float64, true);
        vec![
            int("n"),
            int("nans"),
            int("infinities"),
            int("zeros"),
            float("min"),
            float("max"),
            float("sum"),
            float("sum_squares"),
        ]
    }

    fn to_state(sums: &[Stats]) -> Vec<ArrayRef> {
        let int =
            |f: fn(&Stats) -> u64| Arc::new(Int64Array::from_iter_values(sums.iter().map(|s| f(s) as i64))) as ArrayRef;
        let float = |f: fn(&Stats) -> f64| Arc::new(Float64Array::from_iter_values(sums.iter().map(f))) as ArrayRef;
        vec![
            int(|s| s.n),
            int(|s| s.nans),
            int(|s| s.infinities),
            int(|s| s.zeros),
            float(|s| s.min),
            float(|s| s.max),
            float(|s| s.sum),
            float(|s| s.sum_squares),
        ]
    }

    fn from_state(state: &[ArrayRef]) -> Vec<Stats> {
        let int = |column: usize, i: usize| state[column].as_primitive::<Int64Type>().value(i) as u64;
        let float = |column: usize, i: usize| state[column].as_primitive::<Float64Type>().value(i);
        (0..state[0].len())
            .map(|i| Stats {
                n: int(0, i),
                nans: int(1, i),
                infinities: int(2, i),
                zeros: int(3, i),
                min: float(4, i),
                max: float(5, i),
                sum: float(6, i),
                sum_squares: float(7, i),
            })
            .collect()
    }

    fn evaluate(&self, sums: &[Stats]) -> ArrayRef {
        Arc::new(stats_array(&sums.iter().copied().map(Some).collect::<Vec<_>>()))
    }
}
