//! `quantize` with error feedback, for programs that have second moments at hand: `quantize`'s own arguments, and after them
//! the name of the second moments of each row's input.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, AsArray, StringArray};
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow_quant_kernels::{Factor, Isa, KernelError, Weights, feed_back, feed_back_blocks};
use datafusion::common::{Result, exec_datafusion_err, internal_datafusion_err, internal_err, plan_datafusion_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::arguments::{check_constants, read_as};
use super::{NAME, quantize_rows, split_lists};
use crate::arguments::coerced;
use crate::cancellation::Cancellation;
use crate::functions::on_arrays;
use crate::pairs::active_isa;
use crate::quantized::{QuantizedValue, quantized_array, quantized_type};
use crate::tensor::{TensorColumn, kernel_error};

/// Where the factors of second moments come from.
pub trait Factors: std::fmt::Debug + Send + Sync {
    /// The factor of the second moments of this name.
    ///
    /// # Errors
    /// If there are none, or they cannot be read or factored.
    fn factor(&self, moments: &str) -> Result<Arc<Factor>>;
}

/// `quantize` with one more argument at the end, text: the name of the second moments of the weights' input. Where it is not
/// NULL, codes are assigned with error feedback, to the levels that the method found. Smoothing must be empty there.
pub fn quantize_with_feedback(factors: Arc<dyn Factors>) -> ScalarUDF {
    let signature = Signature::user_defined(Volatility::Immutable);
    ScalarUDF::new_from_impl(QuantizeWithFeedback { signature, factors })
}

#[derive(Debug)]
struct QuantizeWithFeedback {
    signature: Signature,
    factors: Arc<dyn Factors>,
}

/// Functions are the same if their factors come from the same place.
impl PartialEq for QuantizeWithFeedback {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.factors, &other.factors)
    }
}

impl Eq for QuantizeWithFeedback {}

impl Hash for QuantizeWithFeedback {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.factors).cast::<()>().hash(state);
    }
}

impl ScalarUDFImpl for QuantizeWithFeedback {
    fn name(&self) -> &str {
        "quantize_with_feedback"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let Some((_, quantize)) = types.split_last() else { return internal_err!("{NAME} has arguments") };
        let read = read_as(quantize).map(|read| read.into_iter().chain([DataType::Utf8]).collect());
        coerced(types, read)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(quantized_type())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<_> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let Some((_, quantize)) = types.split_last() else { return internal_err!("{NAME} has arguments") };
        let (types, constants) = (read_as(quantize)?, &args.scalar_arguments[..quantize.len()]);
        check_constants(&types, constants).map_err(|e| plan_datafusion_err!("{NAME}: {e}"))?;
        Ok(Arc::new(Field::new(NAME, quantized_type(), true)))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let names = args.args.pop().ok_or_else(|| internal_datafusion_err!("{NAME} has arguments"))?;
        let names = names.into_array(args.number_rows)?;
        let (mut args, lists) = split_lists(args)?;
        // Keeps `on_arrays` from taking the rest for scalars: names differ from row to row.
        args.args[0] = ColumnarValue::Array(args.args[0].clone().into_array(args.number_rows)?);
        on_arrays(args, |arrays, rows, cancellation| {
            let isa = active_isa()?;
            let names = names.as_string();
            let factor = |row: usize| name_of(names, row).map(|name| self.factors.factor(name)).transpose();
            let mut values = quantize_rows(isa, arrays, rows, &lists, factor, cancellation)?;
            let weights = TensorColumn::try_new(NAME, &arrays[0])?;
            self.feed_back(isa, &weights, &mut values, names, cancellation)?;
            quantized_array(values).map_err(|e| exec_datafusion_err!("{NAME}: {e}"))
        })
    }
}

impl QuantizeWithFeedback {
    /// Rounds the rows again that have second moments. Rows that follow one another and have the same go together, so that
    /// the factor is passed over once for all of them.
    fn feed_back(
        &self,
        isa: Isa,
        weights: &TensorColumn,
        values: &mut [Option<QuantizedValue>],
        names: &StringArray,
        cancellation: &Cancellation,
    ) -> Result<()> {
        let name = |row: usize| name_of(names, row);
        let mut first = 0;
        while first < values.len() {
            let is_alike = |row: &usize| name(*row) == name(first) && are_alike(&values[*row], &values[first]);
            let end = (first..values.len()).take_while(is_alike).last().map_or(first + 1, |last| last + 1);
            if let Some(moments) = name(first).filter(|_| values[first].is_some()) {
                let factor = self.factors.factor(moments)?;
                let slices = (first..end).map(|row| weights.complete_row(row)).collect::<Result<Vec<_>>>()?;
                let pieces = slices.into_iter().zip(&mut values[first..end]);
                let pieces = pieces.filter_map(|(slice, value)| Some((slice?, value.as_mut()?))).collect();
                round_again(isa, &factor, pieces, cancellation).map_err(|e| kernel_error(NAME, first, e))?;
            }
            first = end;
        }
        Ok(())
    }
}

/// The second moments of a row, if it has some.
fn name_of(names: &StringArray, row: usize) -> Option<&str> {
    names.is_valid(row).then(|| names.value(row))
}

/// Whether values are stored in the same way, so that they can be rounded together.
fn are_alike(one: &Option<QuantizedValue>, other: &Option<QuantizedValue>) -> bool {
    match (one, other) {
        (Some(QuantizedValue::Groups(one)), Some(QuantizedValue::Groups(other))) => one.settings == other.settings,
        (Some(QuantizedValue::Blocks(one)), Some(QuantizedValue::Blocks(other))) => one.block_type == other.block_type,
        (None, None) => true,
        (Some(_), _) | (None, Some(_)) => false,
    }
}

/// Rounds values of one kind again, each with its weights.
fn round_again(
    isa: Isa,
    factor: &Factor,
    pieces: Vec<(Weights<'_>, &mut QuantizedValue)>,
    cancellation: &Cancellation,
) -> Result<(), KernelError> {
    let (mut groups, mut blocks) = (Vec::new(), Vec::new());
    for (weights, value) in pieces {
        match value {
            QuantizedValue::Groups(value) => groups.push((weights, value)),
            QuantizedValue::Blocks(value) => blocks.push((weights, value)),
        }
    }
    let go_on = || !cancellation.is_cancelled();
    feed_back(isa, factor, &mut groups, go_on)?;
    feed_back_blocks(isa, factor, &mut blocks, go_on)
}
