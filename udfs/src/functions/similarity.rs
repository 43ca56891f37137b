//! `cosine_similarity`, `sqnr`, `max_abs_error`: three figures of the same sums.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::{SECTION, on_arrays};
use crate::arguments::coerced;
use crate::cancellation::Cancellation;
use crate::pairs::{Figure, Pairs, active_isa, read_as};
use crate::slices::product_sums_of;
use crate::tensor::{Row, TensorColumn, kernel_error};

/// `cosine_similarity(a, b)`, `cosine_similarity(quantized)`.
pub(crate) fn cosine_similarity() -> ScalarUDF {
    Similarity::udf(
        "cosine_similarity",
        Figure::CosineSimilarity,
        "The cosine of the angle between two tensors: Σab / √(Σa² Σb²), computed in f64; 1 - cosine_distance(a, b). NULL if \
         either is all zero or has a NULL element; an error if the lengths differ. Of a quantized value: between the weights \
         and what they are restored to, from the error sums inside.",
        "SELECT tensor, cosine_similarity(weights, dequantize(quantize(weights, 4, 128))) FROM weights('model/');",
    )
}

/// `sqnr(a, b)`, `sqnr(quantized)`.
pub(crate) fn sqnr() -> ScalarUDF {
    Similarity::udf(
        "sqnr",
        Figure::Sqnr,
        "The signal-to-quantization-noise ratio in dB: 10 log₁₀(Σa² / Σ(a - b)²), the signal being the first argument. \
         Infinite if both are equal; NULL if both are all zero. Of a quantized value: of the weights against what they are \
         restored to.",
        "SELECT tensor, sqnr(quantize(weights, 2, 64)) AS db FROM weights('model/') ORDER BY db;",
    )
}

/// `max_abs_error(a, b)`, `max_abs_error(quantized)`.
pub(crate) fn max_abs_error() -> ScalarUDF {
    Similarity::udf(
        "max_abs_error",
        Figure::MaxAbsError,
        "The greatest |a - b| over the elements of two tensors. NULL without elements. Of a quantized value: the greatest \
         error that quantization made.",
        "SELECT tensor, max_abs_error(quantize(weights, 8, 64)) FROM weights('model/');",
    )
}

/// One of the functions.
#[derive(Debug)]
struct Similarity {
    name: &'static str,
    figure: Figure,
    signature: Signature,
    documentation: Documentation,
}

// The documentation follows from the name.
impl PartialEq for Similarity {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Similarity {}

impl std::hash::Hash for Similarity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl Similarity {
    fn udf(name: &'static str, figure: Figure, description: &str, example: &str) -> ScalarUDF {
        let documentation =
            Documentation::builder(SECTION, description, format!("{name}(a, b)` or `{name}(quantized)"))
                .with_sql_example(format!("```sql\n{example}\n```"))
                .with_argument("a", "a tensor value or a list of floats")
                .with_argument("b", "another, of as many elements, of the same dtype or not")
                .with_argument("quantized", "a quantized value")
                .with_related_udf(format!("{name}_agg"))
                .build();
        let signature = Signature::user_defined(Volatility::Immutable);
        ScalarUDF::new_from_impl(Self { name, figure, signature, documentation })
    }
}

impl ScalarUDFImpl for Similarity {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        coerced(types, read_as(self.name, types))
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        read_as(self.name, types)?;
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        on_arrays(args, |arrays, rows, cancellation| {
            // The cosine of two tensors alone needs fewer sums, and a kernel that keeps pace with memory has only those.
            if let (Figure::CosineSimilarity, [a, b]) = (self.figure, arrays) {
                return self.cosines(a, b, rows, cancellation);
            }
            let pairs = Pairs::try_new(self.name, arrays)?;
            let figures = (0..rows).map(|row| Ok(pairs.row(row, cancellation)?.and_then(|sums| self.figure.of(&sums))));
            Ok(Arc::new(figures.collect::<Result<Float64Array>>()?) as ArrayRef)
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

impl Similarity {
    fn cosines(&self, a: &ArrayRef, b: &ArrayRef, rows: usize, cancellation: &Cancellation) -> Result<ArrayRef> {
        let isa = active_isa()?;
        let (a, b) = (TensorColumn::try_new(self.name, a)?, TensorColumn::try_new(self.name, b)?);
        let cosines = (0..rows).map(|row| match (a.row(row)?, b.row(row)?) {
            (Some(Row::Weights(a)), Some(Row::Weights(b))) => {
                let sums = product_sums_of(isa, a, b, cancellation).map_err(|e| kernel_error(self.name, row, e))?;
                Ok(sums.cosine_similarity())
            }
            _ => Ok(None),
        });
        Ok(Arc::new(cosines.collect::<Result<Float64Array>>()?))
    }
}
