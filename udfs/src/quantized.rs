//! Quantized values: codes and parameters that describe themselves, with the sums that tell what was lost.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayAccessor, ArrayRef, AsArray, BinaryViewArray, Float64Array, Int32Array, Int64Array, StringArray,
    StringViewArray, StructArray, new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::CastOptions;
use arrow::datatypes::{DataType, Field, Fields};
use arrow_quant_kernels::{
    Bits, Encoding, GroupSize, Grouping, PairSums, ParameterDtype, Quantized, QuantizedRef, Scheme,
};
use datafusion::common::{Result, cast_column, exec_datafusion_err, exec_err, plan_err};

use crate::tensor::{binary_views, column, kernel_error};

/// The type of a quantized value. All fields are nullable, so that the fields of a NULL value are NULL in every engine;
/// of a value that is not NULL, only those are NULL that its encoding or scheme has no use for.
///
/// | field | meaning |
/// |---|---|
/// | `encoding` | how the codes stand for weights: `int2`, `int4` or `int8` |
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

/// The fields that weights cannot be restored without. `minima` and `zero_points` are each needed by one scheme only, and
/// `encoding` follows from `bits`.
const RESTORED_FROM: [&str; 8] =
    ["bits", "group_size", "scheme", "parameter_dtype", "length", "row_length", "codes", "scales"];

/// The fields of `errors`: the number of weights, and the sums.
const COUNT: &str = "n";
const SUMS: [&str; 5] = ["sum_ww", "sum_qq", "sum_wq", "sum_ee", "max_abs_error"];

/// Quantized values as an array, `None` being NULL.
///
/// # Errors
/// If a value is larger than a row can hold.
pub fn quantized_array(values: Vec<Option<Quantized>>) -> Result<ArrayRef> {
    let nulls = Some(NullBuffer::from_iter(values.iter().map(Option::is_some))).filter(|nulls| nulls.null_count() > 0);
    let ints = |f: fn(&Quantized) -> i32| {
        Arc::new(values.iter().map(|v| v.as_ref().map(f)).collect::<Int32Array>()) as ArrayRef
    };
    let longs = |f: fn(&Quantized) -> i64| {
        Arc::new(values.iter().map(|v| v.as_ref().map(f)).collect::<Int64Array>()) as ArrayRef
    };
    let names = |f: fn(&Quantized) -> &'static str| {
        Arc::new(values.iter().map(|v| v.as_ref().map(f)).collect::<StringArray>()) as ArrayRef
    };
    let sums = |f: fn(&PairSums) -> f64| {
        Arc::new(values.iter().map(|v| v.as_ref().map(|v| f(&v.errors))).collect::<Float64Array>()) as ArrayRef
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
        nulls.clone(),
    );
    let heads = vec![
        names(|q| q.settings.bits.name()),
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
        let (c, s, m, z) = match value {
            Some(q) => {
                let scheme = q.settings.scheme;
                let minima = scheme.has_minima().then_some(q.minima);
                let zero_points = scheme.has_zero_points().then_some(q.zero_points);
                (Some(q.codes), Some(q.scales), minima, zero_points)
            }
            None => (None, None, None, None),
        };
        codes.push(c);
        scales.push(s);
        minima.push(m);
        zero_points.push(z);
    }
    let payloads = [binary_views(codes)?, binary_views(scales)?, binary_views(minima)?, binary_views(zero_points)?];
    let columns = heads.into_iter().chain(payloads).chain([Arc::new(errors) as ArrayRef]).collect();
    Ok(Arc::new(StructArray::new(fields(), columns, nulls)))
}

/// The same quantized values in [`quantized_type`], from whatever Arrow types and order their fields have. An `encoding`
/// that is missing or NULL, as in stored-format versions 1 and 2, follows from `bits`. Messages name the function.
///
/// # Errors
/// If a field that weights are restored from is missing, or `encoding` and `bits` are not those of a known encoding.
pub fn with_encoding(function: &'static str, values: &StructArray) -> Result<StructArray> {
    let known = QuantizedColumn::try_new(function, values)?;
    let encodings = (0..values.len()).map(|row| Ok(known.bits(row)?.map(Bits::name)));
    let encodings = Arc::new(encodings.collect::<Result<StringArray>>()?) as ArrayRef;
    // What does not fit is an error, not NULL.
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let values = cast_column(&(Arc::new(values.clone()) as ArrayRef), &quantized_type(), &options)?;
    let values = values.as_struct();
    // Fields of NULL values of versions 1 and 2 are 0 and empty.
    let (fields, mut columns) = values.flatten();
    for (field, column) in fields.iter().zip(&mut columns) {
        if field.name() == ENCODING {
            *column = Arc::clone(&encodings);
        } else if let Some(errors) = column.as_struct_opt() {
            let (fields, sums) = errors.flatten();
            *column = Arc::new(StructArray::try_new(fields, sums, errors.nulls().cloned())?);
        }
    }
    Ok(StructArray::try_new(fields, columns, values.nulls().cloned())?)
}

/// Fails at planning for a type without the fields that a function needs of a quantized value.
fn check_fields(function: &str, data_type: &DataType, needed: &[&str]) -> Result<()> {
    let expected = format!("{function} expects a quantized value, as quantize(...) returns, found {data_type}");
    match data_type {
        DataType::Null => Ok(()),
        DataType::Struct(found) => match missing(found, needed).as_slice() {
            [] => Ok(()),
            missing => plan_err!("{expected}, which lacks {}", missing.join(", ")),
        },
        _ => plan_err!("{expected}"),
    }
}

fn missing<'a>(found: &Fields, needed: &[&'a str]) -> Vec<&'a str> {
    needed.iter().copied().filter(|&name| found.iter().all(|field| field.name() != name)).collect()
}

/// A field in a row, of a value that is not NULL.
fn required<A: ArrayAccessor>(function: &str, row: usize, name: &str, array: A) -> Result<A::Item> {
    if array.is_null(row) {
        return exec_err!("{function}, row {row}: {name} is NULL in a quantized value that is not NULL");
    }
    Ok(array.value(row))
}

/// A column of quantized values, in whatever Arrow types their fields came.
pub struct QuantizedColumn {
    function: &'static str,
    nulls: Option<NullBuffer>,
    heads: Option<Heads>,
}

struct Heads {
    encoding: StringViewArray,
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

/// The width of an encoding that a quantized value can have.
fn width_of(name: &str, function: &str, row: usize) -> Result<Bits> {
    // The grouping that the value has is in its other fields, which values of other encodings need not have.
    let grouping =
        Grouping { group_size: GroupSize::ALL[0], scheme: Scheme::Affine, parameter_dtype: ParameterDtype::F16 };
    match Encoding::parse(name, Some(grouping)) {
        Ok(Encoding::Grouped(bits, _)) => Ok(bits),
        Ok(Encoding::Float(_) | Encoding::Fp8(_) | Encoding::Block(_)) | Err(_) => {
            let allowed: Vec<_> = Bits::ALL.iter().map(|&bits| format!("'{}'", bits.name())).collect();
            exec_err!("{function}, row {row}: encoding is '{name}', allowed: {}", allowed.join(", "))
        }
    }
}

impl QuantizedColumn {
    /// Fails at planning for a type that no quantized value can be read from.
    pub(crate) fn check(function: &str, data_type: &DataType) -> Result<()> {
        check_fields(function, data_type, &RESTORED_FROM)
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
    /// If the structs lack a field that weights are restored from.
    pub fn try_new(function: &'static str, array: &StructArray) -> Result<Self> {
        let int = |name| -> Result<Int64Array> { Ok(column(array, name, &DataType::Int64)?.as_primitive().clone()) };
        let text = |name| -> Result<StringViewArray> {
            Ok(column(array, name, &DataType::Utf8View)?.as_string_view().clone())
        };
        let bytes = |name| -> Result<BinaryViewArray> {
            Ok(column(array, name, &DataType::BinaryView)?.as_binary_view().clone())
        };
        let has = |name| array.column_by_name(name).is_some();
        let nulls = |data_type| new_null_array(data_type, array.len());
        let optional = |name| {
            if has(name) { bytes(name) } else { Ok(nulls(&DataType::BinaryView).as_binary_view().clone()) }
        };
        let heads = Heads {
            encoding: if has(ENCODING) { text(ENCODING)? } else { nulls(&DataType::Utf8View).as_string_view().clone() },
            bits: int("bits")?,
            group_size: int("group_size")?,
            scheme: text("scheme")?,
            parameter_dtype: text("parameter_dtype")?,
            length: int("length")?,
            row_length: int("row_length")?,
            codes: bytes("codes")?,
            scales: bytes("scales")?,
            minima: optional("minima")?,
            zero_points: optional("zero_points")?,
        };
        Ok(Self { function, nulls: array.nulls().cloned(), heads: Some(heads) })
    }

    /// What a row holds; `None` if it is NULL.
    fn heads(&self, row: usize) -> Option<&Heads> {
        let is_null = self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
        self.heads.as_ref().filter(|_| !is_null)
    }

    /// The width of a row's codes, which its encoding must agree with; `None` if the row is NULL.
    fn bits(&self, row: usize) -> Result<Option<Bits>> {
        let Some(heads) = self.heads(row) else { return Ok(None) };
        let function = self.function;
        let named = heads.encoding.is_valid(row).then(|| heads.encoding.value(row));
        let encoding = named.map(|name| width_of(name, function, row)).transpose()?;
        let bits = required(function, row, "bits", &heads.bits)?;
        let bits = Bits::try_from(bits).map_err(|error| kernel_error(function, row, error))?;
        match encoding {
            Some(encoding) if encoding != bits => exec_err!(
                "{function}, row {row}: encoding is '{}' and bits is {}, allowed with these bits: '{}'",
                encoding.name(),
                bits.get(),
                bits.name()
            ),
            Some(_) | None => Ok(Some(bits)),
        }
    }

    /// The quantized value in a row; `None` if it is NULL.
    ///
    /// # Errors
    /// If a field that the value needs is NULL, or holds what is not allowed.
    pub fn row(&self, row: usize) -> Result<Option<QuantizedRef<'_>>> {
        let (Some(heads), Some(bits)) = (self.heads(row), self.bits(row)?) else { return Ok(None) };
        let error = |e| kernel_error(self.function, row, e);
        let int = |name, array| required::<&Int64Array>(self.function, row, name, array);
        let text = |name, array| required::<&StringViewArray>(self.function, row, name, array);
        let count = |name, array| {
            let value = int(name, array)?;
            usize::try_from(value)
                .map_err(|_| exec_datafusion_err!("{}, row {row}: {value} is not a count of weights", self.function))
        };
        let scheme = text("scheme", &heads.scheme)?.parse().map_err(error)?;
        Ok(Some(QuantizedRef {
            bits,
            group_size: GroupSize::try_from(int("group_size", &heads.group_size)?).map_err(error)?,
            scheme,
            length: count("length", &heads.length)?,
            row_length: count("row_length", &heads.row_length)?,
            parameter_dtype: text("parameter_dtype", &heads.parameter_dtype)?.parse().map_err(error)?,
            codes: required(self.function, row, "codes", &heads.codes)?,
            scales: required(self.function, row, "scales", &heads.scales)?,
            minima: self.parameter(row, "minima", &heads.minima, scheme.has_minima())?,
            zero_points: self.parameter(row, "zero_points", &heads.zero_points, scheme.has_zero_points())?,
        }))
    }

    /// The parameters in a row; empty where they are NULL and the scheme does not need them.
    fn parameter<'a>(&self, row: usize, name: &str, array: &'a BinaryViewArray, is_needed: bool) -> Result<&'a [u8]> {
        if !is_needed && array.is_null(row) { Ok(&[]) } else { required(self.function, row, name, array) }
    }
}

/// The error sums of quantized values.
pub(crate) struct ErrorColumn {
    function: &'static str,
    nulls: Option<NullBuffer>,
    /// Of `errors` itself.
    errors: Option<NullBuffer>,
    n: Int64Array,
    sums: [Float64Array; 5],
}

impl ErrorColumn {
    /// Fails at planning for a type without error sums.
    pub(crate) fn check(function: &str, data_type: &DataType) -> Result<()> {
        check_fields(function, data_type, &["errors"])?;
        let fields = match data_type {
            DataType::Struct(fields) => &fields[..],
            _ => &[],
        };
        match fields.iter().find(|field| field.name() == "errors").map(|errors| errors.data_type()) {
            None => Ok(()),
            Some(DataType::Struct(sums)) if missing(sums, &[COUNT]).is_empty() && missing(sums, &SUMS).is_empty() => {
                Ok(())
            }
            Some(other) => plan_err!(
                "{function} expects the field errors of a quantized value to be a struct of {COUNT}, {}, found {other}",
                SUMS.join(", ")
            ),
        }
    }

    pub(crate) fn try_new(function: &'static str, array: &StructArray) -> Result<Self> {
        let Some(errors) = array.column_by_name("errors").and_then(|errors| errors.as_struct_opt()) else {
            return exec_err!("{function}: the quantized value has no error sums");
        };
        let sum =
            |name| -> Result<Float64Array> { Ok(column(errors, name, &DataType::Float64)?.as_primitive().clone()) };
        let [ww, qq, wq, ee, max] = SUMS;
        Ok(Self {
            function,
            nulls: array.nulls().cloned(),
            errors: errors.nulls().cloned(),
            n: column(errors, COUNT, &DataType::Int64)?.as_primitive().clone(),
            sums: [sum(ww)?, sum(qq)?, sum(wq)?, sum(ee)?, sum(max)?],
        })
    }

    /// The sums in a row; `None` if the value is NULL.
    ///
    /// # Errors
    /// If the value is not NULL and one of them is, or their number is negative.
    pub(crate) fn row(&self, row: usize) -> Result<Option<PairSums>> {
        let is_null = |nulls: &Option<NullBuffer>| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
        if is_null(&self.nulls) {
            return Ok(None);
        }
        let function = self.function;
        if is_null(&self.errors) {
            return exec_err!("{function}, row {row}: errors is NULL in a quantized value that is not NULL");
        }
        let n = required(function, row, COUNT, &self.n)?;
        let n = u64::try_from(n)
            .map_err(|_| exec_datafusion_err!("{function}, row {row}: {n} is not a count of weights"))?;
        let mut sums = [0.0; 5];
        for ((sum, name), array) in sums.iter_mut().zip(SUMS).zip(&self.sums) {
            *sum = required(function, row, name, array)?;
        }
        let [sum_aa, sum_bb, sum_ab, sum_ee, max_abs_error] = sums;
        Ok(Some(PairSums { n, sum_aa, sum_bb, sum_ab, sum_ee, max_abs_error }))
    }
}

/// The error sums inside quantized values, `None` for NULL.
///
/// # Errors
/// If the array holds no quantized values, or a value that is not NULL lacks a sum.
pub fn error_sums(quantized: &StructArray) -> Result<Vec<Option<PairSums>>> {
    let column = ErrorColumn::try_new("error_sums", quantized)?;
    (0..quantized.len()).map(|row| column.row(row)).collect()
}
