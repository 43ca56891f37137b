//! `quantize(weights, bits, group_size [, scheme] [, method] [, importance [, smoothing]])`.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use arrow_quant_kernels::{
    Bits, Dtype, GroupSize, Isa, KernelError, Method, Quantized, Scheme, Settings, Weights, dequantize_while,
    quantize_while,
};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err, internal_err, plan_datafusion_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use super::{SECTION, on_arrays};
use crate::arguments::coerced;
use crate::cancellation::Cancellation;
use crate::pairs::active_isa;
use crate::quantized::{quantized_array, quantized_type};
use crate::slices::{pair_sums_of, scale_channels_of, to_f32_of};
use crate::tensor::{TensorColumn, is_string, kernel_error};

const NAME: &str = "quantize";

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "Quantizes weights: groups of `group_size` consecutive weights of a row share one scale (and one minimum or zero \
         point). Returns a quantized value, which `dequantize` restores and whose fields hold the codes, the parameters and \
         the error sums. A NaN or infinite weight is an error.",
        "quantize(weights, bits, group_size [, scheme] [, method] [, importance [, smoothing]])",
    )
    .with_sql_example(
        "```sql\nSELECT tensor, quantize(weights, 4, 128) AS quantized FROM weights('model/') WHERE tensor LIKE '%proj%';\n\
         -- each tensor at its own width\n\
         SELECT tensor, quantize(weights, p.bits, p.group_size, 'symmetric') FROM weights('model/') JOIN plan p USING (component, tensor);\n```",
    )
    .with_argument("weights", "a tensor value (struct of dtype, row_length and data) or a list of floats")
    .with_argument("bits", format!("{}; may be a column", listed(Bits::ALL.iter().map(|bits| bits.get()))))
    .with_argument("group_size", format!("{}; may be a column", listed(GroupSize::ALL.iter().map(|size| size.get()))))
    .with_argument(
        "scheme",
        "`'affine'` (default: scale and minimum), `'asymmetric'` (scale and integer zero point) or `'symmetric'` (scale only)",
    )
    .with_argument(
        "method",
        "`'mse'` (default: search for the least squared error, never worse than minmax), `'unbiased'` (the same, and then each group's levels are \
         stretched so that restored weights are not a little smaller than the weights, which deep models add up) or `'minmax'`; \
         scheme and method \
         are told apart by their names, so either may stand alone",
    )
    .with_argument(
        "importance",
        "a list of numbers from 0 on, one for each input channel (element of a row), that weight the squared errors of \
         `'mse'`; an empty list weights all alike",
    )
    .with_argument(
        "smoothing",
        "a list of numbers above 0, one for each input channel, that weights are multiplied with before they are quantized; an \
         empty list leaves them as they are. What `dequantize` gives is then to be divided again; the error sums are those of \
         the weights as they were",
    )
    .with_related_udf("dequantize")
    .build()
});

/// Numbers in words: `2, 4 or 8`.
fn listed(numbers: impl Iterator<Item = usize>) -> String {
    let mut numbers: Vec<_> = numbers.map(|number| number.to_string()).collect();
    let last = numbers.pop().unwrap_or_default();
    if numbers.is_empty() { last } else { format!("{} or {last}", numbers.join(", ")) }
}

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Quantize {
    signature: Signature,
}

impl Quantize {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

fn is_list(data_type: &DataType) -> bool {
    matches!(data_type, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _))
}

/// The types to read the arguments as. Fails if there are too few or too many, or one cannot be read as what stands there.
fn read_as(types: &[DataType]) -> Result<Vec<DataType>> {
    if !(3..=7).contains(&types.len()) {
        return plan_err!(
            "{NAME} expects 3 to 7 arguments (weights, bits, group_size [, scheme] [, method] [, importance [, smoothing]]), found {}",
            types.len()
        );
    }
    let lists = types[3..].iter().filter(|t| is_list(t)).count();
    if lists > 2 {
        return plan_err!("{NAME} expects importance and smoothing, found {lists} lists");
    }
    let mut coerced = vec![TensorColumn::coerce(NAME, "weights", &types[0])?];
    for (data_type, argument) in types[1..3].iter().zip(["bits", "group_size"]) {
        if !(data_type.is_integer() || data_type.is_null()) {
            return plan_err!("{NAME} expects {argument} to be an integer, found {data_type}");
        }
        coerced.push(DataType::Int64);
    }
    for (i, data_type) in types.iter().enumerate().skip(3) {
        coerced.push(match data_type {
            t if is_string(t) => DataType::Utf8,
            t if is_list(t) && TensorColumn::accepts(t) => t.clone(),
            t if is_list(t) => DataType::new_list(DataType::Float32, true),
            DataType::Null => DataType::Utf8,
            other => return plan_err!("{NAME} expects argument {} to be a scheme or method (text), importance or smoothing (lists of numbers), found {other}", i + 1),
        });
    }
    Ok(coerced)
}

impl ScalarUDFImpl for Quantize {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        coerced(types, read_as(types))
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("{NAME} tells its type by return_field_from_args")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        read_as(&args.arg_fields.iter().map(|field| field.data_type().clone()).collect::<Vec<_>>())?;
        let mut options = Options::default();
        for (i, argument) in args.scalar_arguments.iter().enumerate() {
            let error = |e: KernelError| plan_datafusion_err!("{NAME}: {e}");
            match argument {
                Some(ScalarValue::Int64(Some(bits))) if i == 1 => drop(Bits::try_from(*bits).map_err(error)?),
                Some(ScalarValue::Int64(Some(size))) if i == 2 => drop(GroupSize::try_from(*size).map_err(error)?),
                Some(ScalarValue::Utf8(Some(name))) if i > 2 => options.read(name).map_err(error)?,
                _ => {}
            }
        }
        Ok(Arc::new(Field::new(NAME, quantized_type(), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (args, lists) = split_lists(args)?;
        on_arrays(args, |arrays, rows, cancellation| quantize_rows(arrays, rows, &lists, cancellation))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

/// Scheme and method as far as they have been named.
#[derive(Default)]
struct Options {
    scheme: Option<Scheme>,
    method: Option<Method>,
}

impl Options {
    fn read(&mut self, name: &str) -> Result<(), KernelError> {
        let refused = |allowed| KernelError::Argument { name: "scheme or method", value: format!("'{name}'"), allowed };
        match (name.parse(), name.parse()) {
            (Ok(scheme), _) if self.scheme.is_none() => self.scheme = Some(scheme),
            (_, Ok(method)) if self.method.is_none() => self.method = Some(method),
            (Err(_), Err(_)) => {
                return Err(refused(
                    "the schemes 'affine', 'asymmetric', 'symmetric' and the methods 'mse', 'unbiased', 'minmax'",
                ));
            }
            _ => return Err(refused("one scheme and one method")),
        }
        Ok(())
    }
}

/// A list a channel: one for all rows, or one for each.
struct ChannelList {
    column: TensorColumn,
    is_one: bool,
}

impl ChannelList {
    /// The numbers for a row; `None` if they are NULL.
    fn row(&self, isa: Isa, row: usize, cancellation: &Cancellation) -> Result<Option<Vec<f32>>> {
        let Some(list) = self.column.complete_row(if self.is_one { 0 } else { row })? else { return Ok(None) };
        to_f32_of(isa, list, cancellation).map(Some).map_err(|e| kernel_error(NAME, row, e))
    }
}

/// Takes importance and smoothing out of the arguments. They are often one literal for all rows: no need to repeat it.
fn split_lists(mut args: ScalarFunctionArgs) -> Result<(ScalarFunctionArgs, Vec<ChannelList>)> {
    let mut lists = Vec::new();
    while let Some(at) = args.args.iter().skip(3).position(|arg| is_list(&arg.data_type())) {
        let (array, is_one) = match args.args.remove(at + 3) {
            ColumnarValue::Scalar(scalar) => (scalar.to_array()?, true),
            ColumnarValue::Array(array) => (array, false),
        };
        if !is_one {
            // Keeps `on_arrays` from taking the rest for scalars.
            let rows = args.number_rows;
            args.args[0] = ColumnarValue::Array(args.args[0].clone().into_array(rows)?);
        }
        lists.push(ChannelList { column: TensorColumn::try_new(NAME, &array)?, is_one });
    }
    Ok((args, lists))
}

/// Quantizes weights, times smoothing if there is one. The error sums are between the weights and what is restored of them.
fn quantize_row(
    isa: Isa,
    weights: Weights<'_>,
    settings: Settings,
    [importance, smoothing]: [Option<&[f32]>; 2],
    cancellation: &Cancellation,
) -> Result<Quantized, KernelError> {
    let wanted = || !cancellation.is_cancelled();
    let Some(smoothing) = smoothing else { return quantize_while(isa, weights, settings, importance, wanted) };
    let bytes = |floats: &[f32]| floats.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let scaled = bytes(&scale_channels_of(isa, weights, smoothing, cancellation)?);
    let scaled = Weights::new(Dtype::F32, &scaled, weights.row_length())?;
    let mut quantized = quantize_while(isa, scaled, settings, importance, wanted)?;
    let restored = bytes(&dequantize_while(isa, &quantized.as_ref(), wanted)?);
    let inverse: Vec<f32> = smoothing.iter().map(|factor| 1.0 / factor).collect();
    let restored = Weights::new(Dtype::F32, &restored, weights.row_length())?;
    let restored = bytes(&scale_channels_of(isa, restored, &inverse, cancellation)?);
    let restored = Weights::new(Dtype::F32, &restored, weights.row_length())?;
    quantized.errors = pair_sums_of(isa, weights, restored, cancellation)?;
    Ok(quantized)
}

fn quantize_rows(
    arrays: &[ArrayRef],
    rows: usize,
    lists: &[ChannelList],
    cancellation: &Cancellation,
) -> Result<ArrayRef> {
    let isa = active_isa()?;
    let weights = TensorColumn::try_new(NAME, &arrays[0])?;
    let (bits, group_sizes): (&Int64Array, &Int64Array) =
        (arrays[1].as_primitive::<Int64Type>(), arrays[2].as_primitive::<Int64Type>());
    let names: Vec<&StringArray> = arrays[3..].iter().map(|array| array.as_string()).collect();
    let mut out = Vec::with_capacity(rows);
    for row in 0..rows {
        let error = |e| kernel_error(NAME, row, e);
        let is_null = bits.is_null(row) || group_sizes.is_null(row) || names.iter().any(|n| n.is_null(row));
        let Some(slice) = (if is_null { None } else { weights.complete_row(row)? }) else {
            out.push(None);
            continue;
        };
        let mut options = Options::default();
        for name in &names {
            options.read(name.value(row)).map_err(error)?;
        }
        let settings = Settings {
            bits: Bits::try_from(bits.value(row)).map_err(error)?,
            group_size: GroupSize::try_from(group_sizes.value(row)).map_err(error)?,
            scheme: options.scheme.unwrap_or(Scheme::Affine),
            method: options.method.unwrap_or(Method::Mse),
        };
        let channels = lists.iter().map(|list| list.row(isa, row, cancellation)).collect::<Result<Option<Vec<_>>>>()?;
        let Some(channels) = channels else {
            out.push(None);
            continue;
        };
        let list = |at: usize| channels.get(at).filter(|list| !list.is_empty()).map(Vec::as_slice);
        let quantized = quantize_row(isa, slice, settings, [list(0), list(1)], cancellation);
        out.push(Some(quantized.map_err(error)?));
    }
    quantized_array(out).map_err(|e| exec_datafusion_err!("{NAME}: {e}"))
}
