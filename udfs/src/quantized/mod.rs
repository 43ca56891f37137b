//! Quantized values: codes and parameters that describe themselves, with the sums that tell what was lost.

mod column;
mod errors;

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, StringArray, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use arrow_quant_kernels::{Blocks, Isa, KernelError, PairSums, Quantized, QuantizedRef, Weights, dequantize_while};
use datafusion::common::Result;

use crate::cancellation::Cancellation;
use crate::slices::to_f32_of;
use crate::tensor::binary_views;

pub use column::{QuantizedColumn, with_encoding};
pub(crate) use errors::ErrorColumn;
pub use errors::error_sums;

/// The type of a quantized value. All fields are nullable, so that the fields of a NULL value are NULL in every engine;
/// of a value that is not NULL, only those are NULL that its encoding or scheme has no use for.
///
/// | field | meaning |
/// |---|---|
/// | `encoding` | how the codes stand for weights: `int4`, or another width of grouped integers; `q4_k`, or another of ggml's block types |
/// | `bits`, `group_size`, `scheme` | of grouped integers, what `quantize` was asked for; NULL for blocks |
/// | `method` | how the parameters were found |
/// | `parameter_dtype` | of grouped integers, `F16`, or `F32` where f16 cannot hold the value's scales; NULL for blocks |
/// | `length`, `row_length` | weights in all, and of a row: groups and blocks end with rows |
/// | `codes` | one code a weight, packed without gaps, first code in the lowest bits; or the blocks as a GGUF file has them |
/// | `scales`, `minima` | one of each a group, little-endian; `minima` only for `affine`; NULL for blocks |
/// | `zero_points` | one byte a group, only for `asymmetric` |
/// | `errors` | n, Σw², Σŵ², Σwŵ, Σ(w−ŵ)² and max\|w−ŵ\| |
pub fn quantized_type() -> DataType {
    DataType::Struct(fields())
}

fn fields() -> Fields {
    Fields::from(vec![
        Field::new(ENCODING, DataType::Utf8, true),
        Field::new("bits", DataType::Int32, true),
        Field::new("group_size", DataType::Int32, true),
        Field::new("scheme", DataType::Utf8, true),
        Field::new("method", DataType::Utf8, true),
        Field::new("parameter_dtype", DataType::Utf8, true),
        Field::new("length", DataType::Int64, true),
        Field::new("row_length", DataType::Int64, true),
        Field::new("codes", DataType::BinaryView, true),
        Field::new("scales", DataType::BinaryView, true),
        Field::new("minima", DataType::BinaryView, true),
        Field::new("zero_points", DataType::BinaryView, true),
        Field::new("errors", DataType::Struct(error_fields()), true),
    ])
}

fn error_fields() -> Fields {
    let integer = std::iter::once(Field::new(COUNT, DataType::Int64, true));
    integer.chain(SUMS.map(|name| Field::new(name, DataType::Float64, true))).collect()
}

/// Values of stored-format versions 1 and 2 lack this field.
const ENCODING: &str = "encoding";

/// The fields of `errors`: the number of weights, and the sums.
const COUNT: &str = "n";
const SUMS: [&str; 5] = ["sum_ww", "sum_qq", "sum_wq", "sum_ee", "max_abs_error"];

/// A quantized value.
#[derive(Debug, Clone, PartialEq)]
pub enum QuantizedValue {
    /// Of grouped integers.
    Groups(Quantized),
    /// Of ggml's blocks.
    Blocks(Blocks),
}

impl From<Quantized> for QuantizedValue {
    fn from(groups: Quantized) -> Self {
        Self::Groups(groups)
    }
}

impl From<Blocks> for QuantizedValue {
    fn from(blocks: Blocks) -> Self {
        Self::Blocks(blocks)
    }
}

impl QuantizedValue {
    /// What was lost.
    pub fn errors(&self) -> &PairSums {
        match self {
            Self::Groups(groups) => &groups.errors,
            Self::Blocks(blocks) => &blocks.errors,
        }
    }

    pub(crate) fn set_errors(&mut self, errors: PairSums) {
        match self {
            Self::Groups(groups) => groups.errors = errors,
            Self::Blocks(blocks) => blocks.errors = errors,
        }
    }

    /// The same, borrowed.
    ///
    /// # Errors
    /// If the blocks are not those of their length.
    pub fn as_ref(&self) -> Result<ValueRef<'_>, KernelError> {
        match self {
            Self::Groups(groups) => Ok(ValueRef::Groups(groups.as_ref())),
            Self::Blocks(blocks) => {
                Weights::blocks(blocks.block_type, &blocks.bytes, blocks.row_length).map(ValueRef::Blocks)
            }
        }
    }

    fn groups(&self) -> Option<&Quantized> {
        match self {
            Self::Groups(groups) => Some(groups),
            Self::Blocks(_) => None,
        }
    }
}

/// A quantized value whose buffers live elsewhere.
#[derive(Debug, Clone, Copy)]
pub enum ValueRef<'a> {
    /// Of grouped integers.
    Groups(QuantizedRef<'a>),
    /// Of ggml's blocks.
    Blocks(Weights<'a>),
}

impl ValueRef<'_> {
    /// Weights in all.
    pub fn length(&self) -> usize {
        match self {
            Self::Groups(groups) => groups.length,
            Self::Blocks(blocks) => blocks.len(),
        }
    }

    /// Weights of a row.
    pub fn row_length(&self) -> usize {
        match self {
            Self::Groups(groups) => groups.row_length,
            Self::Blocks(blocks) => blocks.row_length(),
        }
    }

    /// The weights that the codes stand for, unless they are not wanted any more.
    ///
    /// # Errors
    /// If the buffers of groups do not have the lengths that they must have, or the work is cancelled.
    pub fn dequantize(&self, isa: Isa, cancellation: &Cancellation) -> Result<Vec<f32>, KernelError> {
        match self {
            Self::Groups(groups) => dequantize_while(isa, groups, || !cancellation.is_cancelled()),
            Self::Blocks(blocks) => to_f32_of(isa, *blocks, cancellation),
        }
    }
}

/// What the fields of a value hold beside its buffers; `None` for a field that its encoding has no use for.
struct Head {
    encoding: &'static str,
    bits: Option<i32>,
    group_size: Option<i32>,
    scheme: Option<&'static str>,
    method: &'static str,
    parameter_dtype: Option<&'static str>,
    length: usize,
    row_length: usize,
}

impl Head {
    fn of(value: &QuantizedValue) -> Self {
        let groups = value.groups();
        let settings = groups.map(|groups| groups.settings);
        let (encoding, method, length, row_length) = match value {
            QuantizedValue::Groups(groups) => {
                (groups.settings.bits.name(), groups.settings.method.name(), groups.length, groups.row_length)
            }
            QuantizedValue::Blocks(blocks) => {
                (blocks.block_type.name(), blocks.fill.name(), blocks.length, blocks.row_length)
            }
        };
        Self {
            encoding,
            bits: settings.map(|settings| settings.bits.get() as i32),
            group_size: settings.map(|settings| settings.group_size.get() as i32),
            scheme: settings.map(|settings| settings.scheme.name()),
            method,
            parameter_dtype: groups.map(|groups| groups.parameter_dtype.name()),
            length,
            row_length,
        }
    }
}

/// Quantized values as an array, `None` being NULL.
///
/// # Errors
/// If a value is larger than a row can hold.
pub fn quantized_array(values: Vec<Option<QuantizedValue>>) -> Result<ArrayRef> {
    let nulls = Some(NullBuffer::from_iter(values.iter().map(Option::is_some))).filter(|nulls| nulls.null_count() > 0);
    let errors = error_array(&values, nulls.clone());
    let heads: Vec<Option<Head>> = values.iter().map(|value| value.as_ref().map(Head::of)).collect();
    let ints = |f: fn(&Head) -> Option<i32>| {
        Arc::new(heads.iter().map(|head| head.as_ref().and_then(f)).collect::<Int32Array>()) as ArrayRef
    };
    let longs = |f: fn(&Head) -> usize| {
        Arc::new(heads.iter().map(|head| head.as_ref().map(|head| f(head) as i64)).collect::<Int64Array>()) as ArrayRef
    };
    let names = |f: fn(&Head) -> Option<&'static str>| {
        Arc::new(heads.iter().map(|head| head.as_ref().and_then(f)).collect::<StringArray>()) as ArrayRef
    };
    let mut columns = vec![
        names(|head| Some(head.encoding)),
        ints(|head| head.bits),
        ints(|head| head.group_size),
        names(|head| head.scheme),
        names(|head| Some(head.method)),
        names(|head| head.parameter_dtype),
        longs(|head| head.length),
        longs(|head| head.row_length),
    ];
    let (mut codes, mut scales, mut minima, mut zero_points) = (vec![], vec![], vec![], vec![]);
    for value in values {
        let (c, s, m, z) = match value {
            Some(QuantizedValue::Groups(q)) => {
                let scheme = q.settings.scheme;
                let minima = scheme.has_minima().then_some(q.minima);
                let zero_points = scheme.has_zero_points().then_some(q.zero_points);
                (Some(q.codes), Some(q.scales), minima, zero_points)
            }
            Some(QuantizedValue::Blocks(blocks)) => (Some(blocks.bytes), None, None, None),
            None => (None, None, None, None),
        };
        codes.push(c);
        scales.push(s);
        minima.push(m);
        zero_points.push(z);
    }
    for payload in [codes, scales, minima, zero_points] {
        columns.push(binary_views(payload)?);
    }
    columns.push(Arc::new(errors));
    Ok(Arc::new(StructArray::new(fields(), columns, nulls)))
}

fn error_array(values: &[Option<QuantizedValue>], nulls: Option<NullBuffer>) -> StructArray {
    let errors = || values.iter().map(|value| value.as_ref().map(QuantizedValue::errors));
    let sums =
        |f: fn(&PairSums) -> f64| Arc::new(errors().map(|errors| errors.map(f)).collect::<Float64Array>()) as ArrayRef;
    let count = errors().map(|errors| errors.map(|errors| errors.n as i64)).collect::<Int64Array>();
    let columns = vec![
        Arc::new(count) as ArrayRef,
        sums(|e| e.sum_aa),
        sums(|e| e.sum_bb),
        sums(|e| e.sum_ab),
        sums(|e| e.sum_ee),
        sums(|e| e.max_abs_error),
    ];
    StructArray::new(error_fields(), columns, nulls)
}
