//! `cosine_similarity_agg`, `sqnr_agg`, `max_abs_error_agg`: the figures of all chunks together.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type};
use arrow_quant_kernels::PairSums;
use datafusion::common::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, GroupsAccumulator, Signature, Volatility,
};

use super::bound;
use super::sums::{GroupSums, OneSum, Sums, state_fields};
use crate::arguments::coerced;
use crate::cancellation::Cancellation;
use crate::functions::SECTION;
use crate::pairs::{Figure, Pairs, read_as};

/// `cosine_similarity_agg(a, b)`, `cosine_similarity_agg(quantized)`.
pub(crate) fn cosine_similarity_agg() -> AggregateUDF {
    SimilarityAgg::udaf(
        "cosine_similarity_agg",
        Figure::CosineSimilarity,
        "The cosine similarity of two tensors given in chunks: of all rows of a group together, exactly, by adding up their \
         sums in f64. NULL rows are skipped.",
        "SELECT component, tensor, cosine_similarity_agg(weights, dequantize(quantize(weights, 4, 128))) FROM weights('model/') GROUP BY component, tensor;",
    )
}

/// `sqnr_agg(a, b)`, `sqnr_agg(quantized)`.
pub(crate) fn sqnr_agg() -> AggregateUDF {
    SimilarityAgg::udaf(
        "sqnr_agg",
        Figure::Sqnr,
        "The signal-to-quantization-noise ratio in dB of two tensors given in chunks. NULL rows are skipped.",
        "SELECT component, tensor, sqnr_agg(quantized) AS db FROM quantized('model-int4/') GROUP BY component, tensor ORDER BY db;",
    )
}

/// `max_abs_error_agg(a, b)`, `max_abs_error_agg(quantized)`.
pub(crate) fn max_abs_error_agg() -> AggregateUDF {
    SimilarityAgg::udaf(
        "max_abs_error_agg",
        Figure::MaxAbsError,
        "The greatest |a - b| over the elements of two tensors given in chunks. NULL rows are skipped.",
        "SELECT component, tensor, max_abs_error_agg(quantized) FROM quantized('model-int4/') GROUP BY component, tensor;",
    )
}

/// One of the aggregates.
#[derive(Debug, Clone)]
struct SimilarityAgg {
    measure: Measure,
    signature: Signature,
    documentation: Documentation,
    /// That of the query, once the function is part of one.
    cancellation: Option<Cancellation>,
}

// The documentation follows from the name, and whether a query is wanted does not make another function.
impl PartialEq for SimilarityAgg {
    fn eq(&self, other: &Self) -> bool {
        self.measure == other.measure
    }
}

impl Eq for SimilarityAgg {}

impl std::hash::Hash for SimilarityAgg {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.measure.hash(state);
    }
}

impl SimilarityAgg {
    fn udaf(name: &'static str, figure: Figure, description: &str, example: &str) -> AggregateUDF {
        let documentation =
            Documentation::builder(SECTION, description, format!("{name}(a, b)` or `{name}(quantized)"))
                .with_sql_example(format!("```sql\n{example}\n```"))
                .with_argument("a", "tensor values or lists of floats")
                .with_argument("b", "others, each of as many elements as its neighbour")
                .with_argument("quantized", "quantized values")
                .with_related_udf(name.trim_end_matches("_agg"))
                .build();
        let signature = Signature::user_defined(Volatility::Immutable);
        AggregateUDF::new_from_impl(Self {
            measure: Measure { name, figure },
            signature,
            documentation,
            cancellation: None,
        })
    }
}

impl AggregateUDFImpl for SimilarityAgg {
    fn name(&self) -> &str {
        self.measure.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        coerced(types, read_as(self.measure.name, types))
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        read_as(self.measure.name, types)?;
        Ok(DataType::Float64)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(state_fields::<Measured>(args.name))
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        bound(self, self.cancellation.as_ref(), |unbound, cancellation| Self { cancellation, ..unbound })
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneSum::new(self.measured())))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(GroupSums::new(self.measured())))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

impl SimilarityAgg {
    fn measured(&self) -> Measured {
        Measured { measure: self.measure, cancellation: self.cancellation.clone().unwrap_or_default() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Measure {
    name: &'static str,
    figure: Figure,
}

/// A measure for as long as a query is wanted.
#[derive(Debug, Clone)]
struct Measured {
    measure: Measure,
    cancellation: Cancellation,
}

impl Sums for Measured {
    type Sum = PairSums;

    type Rows = Pairs;

    fn read(&self, args: &[ArrayRef]) -> Result<Pairs> {
        Pairs::try_new(self.measure.name, args)
    }

    fn row(&self, pairs: &Pairs, row: usize) -> Result<Option<PairSums>> {
        pairs.row(row, &self.cancellation)
    }

    fn state_fields() -> Vec<Field> {
        let float = |name| Field::new(name, DataType::Float64, true);
        vec![
            Field::new("n", DataType::Int64, true),
            float("sum_aa"),
            float("sum_bb"),
            float("sum_ab"),
            float("sum_ee"),
            float("max_abs_error"),
        ]
    }

    fn to_state(sums: &[PairSums]) -> Vec<ArrayRef> {
        let float = |f: fn(&PairSums) -> f64| Arc::new(Float64Array::from_iter_values(sums.iter().map(f))) as ArrayRef;
        vec![
            Arc::new(Int64Array::from_iter_values(sums.iter().map(|s| s.n as i64))),
            float(|s| s.sum_aa),
            float(|s| s.sum_bb),
            float(|s| s.sum_ab),
            float(|s| s.sum_ee),
            float(|s| s.max_abs_error),
        ]
    }

    fn from_state(state: &[ArrayRef]) -> Vec<PairSums> {
        let float = |i: usize| state[i].as_primitive::<Float64Type>();
        let n = state[0].as_primitive::<Int64Type>();
        let (aa, bb, ab, ee, max) = (float(1), float(2), float(3), float(4), float(5));
        (0..n.len())
            .map(|i| PairSums {
                n: n.value(i) as u64,
                sum_aa: aa.value(i),
                sum_bb: bb.value(i),
                sum_ab: ab.value(i),
                sum_ee: ee.value(i),
                max_abs_error: max.value(i),
            })
            .collect()
    }

    fn evaluate(&self, sums: &[PairSums]) -> ArrayRef {
        Arc::new(sums.iter().map(|sums| self.measure.figure.of(sums)).collect::<Float64Array>())
    }
}
