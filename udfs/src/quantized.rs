//! Quantized values: codes and parameters that describe themselves, with the sums that tell what was lost.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, Float64Array, Int32Array, Int64Array, StringArray, StringViewArray,
    StructArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use arrow_quant_kernels::{Bits, GroupSize, PairSums, Quantized, QuantizedRef};
use datafusion::common::{Result, exec_datafusion_err, exec_err, plan_err};

use crate::tensor::{binary_views, column, kernel_error};

/// The type of a quantized value.
///
/// | field | meaning |
/// |---|---|
/// | `bits`, `group_size`, `scheme`, `method` | what `quantize` was asked for |
/// | `parameter_dtype` | `F16`, or `F32` where f16 cannot hold the value's scales |
/// | `length`, `row_length` | weights in all, and of a row: groups end with rows |
/// | `codes` | one code a weight, packed without gaps, first code in the lowest bits |
/// | `scales`, `minima` | one of each a group, little-endian; `minima` only for `affine` |
/// | `zero_points` | one byte a group, only for `asymmetric` |
/// | `errors` | n, Σw², Σŵ², Σwŵ, Σ(w−ŵ)² and max\|w−ŵ\| |
pub fn quantized_type() -> DataType {
    DataType::Struct(fields())
}

fn fields() -> Fields {
    Fields::from(vec![
        Field::new("bits", DataType::Int32, false),
        Field::new("group_size", DataType::Int32, false),
        Field::new("scheme", DataType::Utf8, false),
        Field::new("method", DataType::Utf8, false),
        Field::new("parameter_dtype", DataType::Utf8, false),
        Field::new("length", DataType::Int64, false),
        Field::new("row_length", DataType::Int64, false),
        Field::new("codes", DataType::BinaryView, false),
        Field::new("scales", DataType::BinaryView, false),
        Field::new("minima", DataType::BinaryView, true),
        Field::new("zero_points", DataType::BinaryView, true),
        Field::new("errors", DataType::Struct(error_fields()), false),
    ])
}

fn error_fields() -> Fields {
    let float = |name| Field::new(name, DataType::Float64, false);
    Fields::from(vec![
        Field::new("n", DataType::Int64, false),
        float("sum_ww"),
        float("sum_qq"),
        float("sum_wq"),
        float("sum_ee"),
        float("max_abs_error"),
    ])
}

/// Quantized values as an array, `None` being NULL.
///
/// # Errors
/// If a value is larger than a row can hold.
pub fn quantized_array(values: Vec<Option<Quantized>>) -> Result<ArrayRef> {
    let nulls = NullBuffer::from_iter(values.iter().map(Option::is_some));
    let ints = |f: fn(&Quantized) -> i32| {
        Arc::new(values.iter().map(|v| v.as_ref().map_or(0, f)).collect::<Int32Array>()) as ArrayRef
    };
    let longs = |f: fn(&Quantized) -> i64| {
        Arc::new(values.iter().map(|v| v.as_ref().map_or(0, f)).collect::<Int64Array>()) as ArrayRef
    };
    let names = |f: fn(&Quantized) -> &'static str| {
        let names = values.iter().map(|v| v.as_ref().map_or("", f));
        Arc::new(StringArray::from_iter_values(names)) as ArrayRef
    };
    let sums = |f: fn(&PairSums) -> f64| {
        let sums = values.iter().map(|v| v.as_ref().map_or(0.0, |v| f(&v.errors)));
        Arc::new(Float64Array::from_iter_values(sums)) as ArrayRef
    };
    let errors = StructArray::new(
        error_fields(),
        vec![
            longs(|q| q.errors.n as i64),
            sums(|e| e.sum_aa),
            sums(|e| e.sum_bb),
            sums(|e| e.sum_ab),
            sums(|e| e.sum_ee),
            sums(|e| e.max_abs_error),
        ],
        None,
    );
    let heads = vec![
        ints(|q| q.settings.bits.get() as i32),
        ints(|q| q.settings.group_size.get() as i32),
        names(|q| q.settings.scheme.name()),
        names(|q| q.settings.method.name()),
        names(|q| q.parameter_dtype.name()),
        longs(|q| q.length as i64),
        longs(|q| q.row_length as i64),
    ];
    let (mut codes, mut scales, mut minima, mut zero_points) = (vec![], vec![], vec![], vec![]);
    for value in values {
        let scheme = value.as_ref().map(|q| q.settings.scheme);
        let (c, s, m, z) = value.map(|q| (q.codes, q.scales, q.minima, q.zero_points)).unwrap_or_default();
        codes.push(Some(c));
        scales.push(Some(s));
        minima.push((scheme == Some(arrow_quant_kernels::Scheme::Affine)).then_some(m));
        zero_points.push((scheme == Some(arrow_quant_kernels::Scheme::Asymmetric)).then_some(z));
    }
    let payloads = [binary_views(codes)?, binary_views(scales)?, binary_views(minima)?, binary_views(zero_points)?];
    let columns = heads.into_iter().chain(payloads).chain([Arc::new(errors) as ArrayRef]).collect();
    let nulls = Some(nulls).filter(|nulls| nulls.null_count() > 0);
    Ok(Arc::new(StructArray::new(fields(), columns, nulls)))
}

/// A column of quantized values, in whatever encodings they came.
pub struct QuantizedColumn {
    function: &'static str,
    nulls: Option<NullBuffer>,
    heads: Option<Heads>,
}

struct Heads {
    bits: Int64Array,
    group_size: Int64Array,
    scheme: StringViewArray,
    parameter_dtype: StringViewArray,
    length: Int64Array,
    row_length: Int64Array,
    codes: BinaryViewArray,
    scales: BinaryViewArray,
    minima: BinaryViewArray,
    zero_points: BinaryViewArray,
}

impl QuantizedColumn {
    /// True for a type that a quantized value can be read from.
    pub(crate) fn accepts(data_type: &DataType) -> bool {
        match data_type {
            DataType::Null => true,
            DataType::Struct(found) => fields().iter().all(|f| found.iter().any(|g| g.name() == f.name())),
            _ => false,
        }
    }

    /// Fails at planning for a type that no quantized value can be read from.
    pub(crate) fn check(function: &str, data_type: &DataType) -> Result<()> {
        if Self::accepts(data_type) {
            return Ok(());
        }
        plan_err!("{function} expects a quantized value, as quantize(...) returns, found {data_type}")
    }

    pub(crate) fn read(function: &'static str, array: &ArrayRef) -> Result<Self> {
        if *array.data_type() == DataType::Null {
            return Ok(Self { function, nulls: None, heads: None });
        }
        Self::try_new(function, array.as_struct())
    }

    /// Reads quantized values; messages name the function that wants them.
    ///
    /// # Errors
    /// If the structs lack a field of quantized values.
    pub fn try_new(function: &'static str, array: &StructArray) -> Result<Self> {
        let int = |name| -> Result<Int64Array> { Ok(column(array, name, &DataType::Int64)?.as_primitive().clone()) };
        let text = |name| -> Result<StringViewArray> {
            Ok(column(array, name, &DataType::Utf8View)?.as_string_view().clone())
        };
        let bytes = |name| -> Result<BinaryViewArray> {
            Ok(column(array, name, &DataType::BinaryView)?.as_binary_view().clone())
        };
        let heads = Heads {
            bits: int("bits")?,
            group_size: int("group_size")?,
            scheme: text("scheme")?,
            parameter_dtype: text("parameter_dtype")?,
            length: int("length")?,
            row_length: int("row_length")?,
            codes: bytes("codes")?,
            scales: bytes("scales")?,
            minima: bytes("minima")?,
            zero_points: bytes("zero_points")?,
        };
        Ok(Self { function, nulls: array.nulls().cloned(), heads: Some(heads) })
    }

    /// The quantized value in a row; `None` if it is NULL.
    ///
    /// # Errors
    /// If its fields hold what is not allowed.
    pub fn row(&self, row: usize) -> Result<Option<QuantizedRef<'_>>> {
        let Some(heads) = &self.heads else { return Ok(None) };
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(None);
        }
        let error = |e| kernel_error(self.function, row, e);
        let count = |value: i64| {
            usize::try_from(value)
                .map_err(|_| exec_datafusion_err!("{}, row {row}: {value} is no count of weights", self.function))
        };
        Ok(Some(QuantizedRef {
            bits: Bits::try_from(heads.bits.value(row)).map_err(error)?,
            group_size: GroupSize::try_from(heads.group_size.value(row)).map_err(error)?,
            scheme: heads.scheme.value(row).parse().map_err(error)?,
            length: count(heads.length.value(row))?,
            row_length: count(heads.row_length.value(row))?,
            parameter_dtype: heads.parameter_dtype.value(row).parse().map_err(error)?,
            codes: heads.codes.value(row),
            scales: heads.scales.value(row),
            minima: optional(&heads.minima, row),
            zero_points: optional(&heads.zero_points, row),
        }))
    }
}

fn optional(array: &BinaryViewArray, row: usize) -> &[u8] {
    if array.is_null(row) { &[] } else { array.value(row) }
}

/// The error sums of quantized values.
pub(crate) struct ErrorColumn {
    n: Int64Array,
    sums: [Float64Array; 5],
    nulls: Option<NullBuffer>,
}

impl ErrorColumn {
    pub fn try_new(array: &ArrayRef) -> Result<Self> {
        Self::of(array.as_struct())
    }

    fn of(array: &StructArray) -> Result<Self> {
        let Some(errors) = array.column_by_name("errors").and_then(|errors| errors.as_struct_opt()) else {
            return exec_err!("the quantized value has no error sums");
        };
        let sum =
            |name| -> Result<Float64Array> { Ok(column(errors, name, &DataType::Float64)?.as_primitive().clone()) };
        Ok(Self {
            n: column(errors, "n", &DataType::Int64)?.as_primitive().clone(),
            sums: [sum("sum_ww")?, sum("sum_qq")?, sum("sum_wq")?, sum("sum_ee")?, sum("max_abs_error")?],
            nulls: array.nulls().cloned(),
        })
    }

    /// The sums in a row; `None` if the value is NULL.
    pub fn row(&self, row: usize) -> Option<PairSums> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return None;
        }
        let [sum_aa, sum_bb, sum_ab, sum_ee, max_abs_error] = self.sums.each_ref().map(|sum| sum.value(row));
        Some(PairSums { n: self.n.value(row) as u64, sum_aa, sum_bb, sum_ab, sum_ee, max_abs_error })
    }
}

/// The error sums inside quantized values, `None` for NULL.
///
/// # Errors
/// If the array holds no quantized values.
pub fn error_sums(quantized: &StructArray) -> Result<Vec<Option<PairSums>>> {
    let column = ErrorColumn::of(quantized)?;
    Ok((0..quantized.len()).map(|row| column.row(row)).collect())
}
