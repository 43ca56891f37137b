//! `quantize(weights, bits, group_size [, scheme] [, method] [, importance [, smoothing]])`, and the same with a named type.

mod arguments;
mod feedback;

use std::sync::{Arc, LazyLock};

use arrow::array::ArrayRef;
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow_quant_kernels::{
    Bits, BlockType, Dtype, Factor, GroupSize, Isa, KernelError, Weights, quantize_blocks_while, quantize_while,
};
use datafusion::common::{Result, exec_datafusion_err, internal_err, plan_datafusion_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use self::arguments::{Arguments, Wanted, check_constants, is_list, read_as};
pub use self::feedback::{Factors, quantize_with_feedback};
use super::{SECTION, on_arrays};
use crate::arguments::coerced;
use crate::cancellation::Cancellation;
use crate::pairs::active_isa;
use crate::quantized::{QuantizedValue, quantized_array, quantized_type};
use crate::slices::{pair_sums_of, scale_channels_of, to_f32_of};
use crate::tensor::{TensorColumn, kernel_error};

const NAME: &str = "quantize";

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "Quantizes weights. To grouped integers: `group_size` consecutive weights of a row share one scale (and one minimum or zero \
         point). To a block type of ggml, where rows are whole blocks. Returns a quantized value, which `dequantize` restores and \
         whose fields hold the codes, the parameters and the error sums. A NaN or infinite weight is an error.",
        "quantize(weights, bits, group_size [, scheme] [, method] [, importance [, smoothing]])` or \
         `quantize(weights, type [, group_size] [, scheme] [, method] [, importance [, smoothing]])",
    )
    .with_sql_example(
        "```sql\nSELECT tensor, quantize(weights, 4, 128) AS quantized FROM weights('model/') WHERE tensor LIKE '%proj%';\n\
         SELECT tensor, sqnr(quantize(weights, 'q4_k')) AS db FROM weights('model/') WHERE tensor LIKE '%proj%';\n\
         -- each tensor at its own width\n\
         SELECT tensor, quantize(weights, p.bits, p.group_size, 'symmetric') FROM weights('model/') JOIN plan p USING (component, tensor);\n\
         -- or as its own type: group_size and scheme are NULL where that is one of ggml's, type is NULL where weights stay\n\
         SELECT tensor, quantize(weights, p.type, p.group_size, p.scheme, p.method) FROM weights('model/') JOIN plan p USING (component, tensor);\n```",
    )
    .with_argument("weights", "a tensor value (struct of dtype, row_length and data) or a list of floats")
    .with_argument("bits", format!("{}; may be a column", listed(Bits::ALL.iter().map(|bits| bits.get()))))
    .with_argument(
        "type",
        format!(
            "grouped integers, {}; or a block type of ggml, {}; may be a column",
            listed(Bits::ALL.iter().map(|bits| format!("`'{bits}'`"))),
            listed(BlockType::ALL.iter().map(|block_type| format!("`'{block_type}'`")))
        ),
    )
    .with_argument(
        "group_size",
        format!(
            "of grouped integers: {}; may be a column. NULL or left out for blocks, whose length is part of their type",
            listed(GroupSize::ALL.iter().map(|size| size.get()))
        ),
    )
    .with_argument(
        "scheme",
        "of grouped integers: `'affine'` (default: scale and minimum), `'asymmetric'` (scale and integer zero point) or `'symmetric'` (scale \
         only). NULL or left out for blocks",
    )
    .with_argument(
        "method",
        "`'mse'` (default: search for the least squared error, never worse than minmax), `'unbiased'` (the same, and then each group's levels are \
         stretched so that restored weights are not a little smaller than the weights, which deep models add up) or `'minmax'`; for blocks `'mse'` or \
         `'reference'` (the bytes that ggml itself makes). Scheme and method are told apart by their names, so either may stand alone",
    )
    .with_argument(
        "importance",
        "a list of numbers from 0 on, one for each input channel (element of a row), that weight the squared errors of \
         `'mse'`, and of `'reference'` as ggml weights them; an empty list weights all alike",
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

/// Things in words: `2, 4 or 8`.
fn listed<T: ToString>(things: impl Iterator<Item = T>) -> String {
    let mut things: Vec<_> = things.map(|thing| thing.to_string()).collect();
    let last = things.pop().unwrap_or_default();
    if things.is_empty() { last } else { format!("{} or {last}", things.join(", ")) }
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
        let types = read_as(&args.arg_fields.iter().map(|field| field.data_type().clone()).collect::<Vec<_>>())?;
        check_constants(&types, args.scalar_arguments).map_err(|e| plan_datafusion_err!("{NAME}: {e}"))?;
        Ok(Arc::new(Field::new(NAME, quantized_type(), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (args, lists) = split_lists(args)?;
        on_arrays(args, |arrays, rows, cancellation| {
            let values = quantize_rows(active_isa()?, arrays, rows, &lists, |_| Ok(None), cancellation)?;
            quantized_array(values).map_err(|e| exec_datafusion_err!("{NAME}: {e}"))
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
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
    while let Some(at) = args.args.iter().skip(2).position(|arg| is_list(&arg.data_type())) {
        let (array, is_one) = match args.args.remove(at + 2) {
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
    wanted: Wanted,
    [importance, smoothing]: [Option<&[f32]>; 2],
    cancellation: &Cancellation,
) -> Result<QuantizedValue, KernelError> {
    let Some(smoothing) = smoothing else { return quantize_as(isa, weights, wanted, importance, cancellation) };
    let scaled = Buffer::from_vec(scale_channels_of(isa, weights, smoothing, cancellation)?);
    let scaled = Weights::new(Dtype::F32, &scaled, weights.row_length())?;
    let mut quantized = quantize_as(isa, scaled, wanted, importance, cancellation)?;
    let restored = Buffer::from_vec(quantized.as_ref()?.dequantize(isa, cancellation)?);
    let inverse: Vec<f32> = smoothing.iter().map(|factor| 1.0 / factor).collect();
    let restored = Weights::new(Dtype::F32, &restored, weights.row_length())?;
    let restored = Buffer::from_vec(scale_channels_of(isa, restored, &inverse, cancellation)?);
    let restored = Weights::new(Dtype::F32, &restored, weights.row_length())?;
    quantized.set_errors(pair_sums_of(isa, weights, restored, cancellation)?);
    Ok(quantized)
}

fn quantize_as(
    isa: Isa,
    weights: Weights<'_>,
    wanted: Wanted,
    importance: Option<&[f32]>,
    cancellation: &Cancellation,
) -> Result<QuantizedValue, KernelError> {
    let go_on = || !cancellation.is_cancelled();
    match wanted {
        Wanted::Groups(settings) => {
            quantize_while(isa, weights, settings, importance, go_on).map(QuantizedValue::Groups)
        }
        Wanted::Blocks(block_type, fill) => {
            quantize_blocks_while(isa, weights, block_type, fill, importance, go_on).map(QuantizedValue::Blocks)
        }
    }
}

/// The quantized values of rows; `None` where an argument is NULL. Where a row has a factor, its importance counts in place of the
/// list's.
fn quantize_rows(
    isa: Isa,
    arrays: &[ArrayRef],
    rows: usize,
    lists: &[ChannelList],
    factor: impl Fn(usize) -> Result<Option<Arc<Factor>>>,
    cancellation: &Cancellation,
) -> Result<Vec<Option<QuantizedValue>>> {
    let weights = TensorColumn::try_new(NAME, &arrays[0])?;
    let arguments = Arguments::try_new(&arrays[1..])?;
    let mut out = Vec::with_capacity(rows);
    for row in 0..rows {
        let error = |e| kernel_error(NAME, row, e);
        let wanted = arguments.row(row).transpose();
        // Where a row is kept, its weights may be of any dtype.
        let slice = if wanted.is_some() { weights.complete_row(row)? } else { None };
        let channels = match slice {
            Some(_) => lists.iter().map(|list| list.row(isa, row, cancellation)).collect::<Result<Option<Vec<_>>>>()?,
            None => None,
        };
        let (Some(wanted), Some(slice), Some(channels)) = (wanted, slice, channels) else {
            out.push(None);
            continue;
        };
        let list = |at: usize| channels.get(at).filter(|list| !list.is_empty()).map(Vec::as_slice);
        let factor = factor(row)?;
        let importance = factor.as_deref().map(Factor::importance).or(list(0));
        let quantized = wanted.and_then(|wanted| quantize_row(isa, slice, wanted, [importance, list(1)], cancellation));
        out.push(Some(quantized.map_err(error)?));
    }
    Ok(out)
}
