//! Quantized values as they come from anywhere: each is checked before anything is made of it.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayAccessor, ArrayRef, AsArray, BinaryViewArray, Int64Array, StringArray, StringViewArray, StructArray,
    new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::CastOptions;
use arrow::datatypes::{DataType, Fields};
use arrow_quant_kernels::{
    Bits, BlockType, Encoding, GroupSize, Grouping, KernelError, ParameterDtype, QuantizedRef, Scheme, Weights,
};
use datafusion::common::{Result, cast_column, exec_datafusion_err, exec_err, plan_err};

use super::{ENCODING, ValueRef, quantized_type};
use crate::tensor::{column, kernel_error};

/// The fields that no value's weights are restored without.
const ALWAYS: [&str; 3] = ["length", "row_length", "codes"];

/// The fields that weights of grouped integers cannot be restored without. `minima` and `zero_points` are each needed by one
/// scheme only, and `encoding` follows from `bits`.
const OF_GROUPS: [&str; 8] =
    ["bits", "group_size", "scheme", "parameter_dtype", "length", "row_length", "codes", "scales"];

/// The same quantized values in [`quantized_type`], from whatever Arrow types and order their fields have. An `encoding`
/// that is missing or NULL, as in stored-format versions 1 and 2, follows from `bits`. Messages name the function.
///
/// # Errors
/// If a field that weights are restored from is missing, or `encoding` and `bits` are not those of a known encoding.
pub fn with_encoding(function: &'static str, values: &StructArray) -> Result<StructArray> {
    let known = QuantizedColumn::try_new(function, values)?;
    let encodings = (0..values.len()).map(|row| Ok(known.stored(row)?.map(|(_, stored)| stored.name())));
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
pub(super) fn check_fields(function: &str, data_type: &DataType, needed: &[&str]) -> Result<()> {
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

pub(super) fn missing<'a>(found: &Fields, needed: &[&'a str]) -> Vec<&'a str> {
    needed.iter().copied().filter(|&name| found.iter().all(|field| field.name() != name)).collect()
}

/// A field in a row, of a value that is not NULL.
pub(super) fn required<A: ArrayAccessor>(function: &str, row: usize, name: &str, array: A) -> Result<A::Item> {
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

/// The fields; those that the values lack are NULL.
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

/// What the codes of a value are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Groups(Bits),
    Blocks(BlockType),
}

impl Stored {
    fn name(self) -> &'static str {
        match self {
            Self::Groups(bits) => bits.name(),
            Self::Blocks(block_type) => block_type.name(),
        }
    }

    /// What an encoding's name says; `None` if no quantized value has that encoding.
    fn named(name: &str) -> Option<Self> {
        // The grouping that the value has is in its other fields, which values of other encodings need not have.
        let grouping =
            Grouping { group_size: GroupSize::ALL[0], scheme: Scheme::Affine, parameter_dtype: ParameterDtype::F16 };
        match Encoding::parse(name, Some(grouping)).ok()? {
            Encoding::Grouped(bits, _) => Some(Self::Groups(bits)),
            Encoding::Block(block_type) => Some(Self::Blocks(block_type)),
            Encoding::Float(_) | Encoding::Fp8(_) => None,
        }
    }
}

impl QuantizedColumn {
    /// Fails at planning for a type that no quantized value can be read from.
    pub(crate) fn check(function: &str, data_type: &DataType) -> Result<()> {
        // Blocks have no fields of groups.
        let names_encoding = |fields: &Fields| fields.iter().any(|field| field.name() == ENCODING);
        match data_type {
            DataType::Struct(fields) if names_encoding(fields) => check_fields(function, data_type, &ALWAYS),
            _ => check_fields(function, data_type, &OF_GROUPS),
        }
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
        Self::check(function, array.data_type())?;
        let field = |name, wanted: DataType| match array.column_by_name(name) {
            Some(_) => column(array, name, &wanted),
            None => Ok(new_null_array(&wanted, array.len())),
        };
        let int = |name| -> Result<Int64Array> { Ok(field(name, DataType::Int64)?.as_primitive().clone()) };
        let text = |name| -> Result<StringViewArray> { Ok(field(name, DataType::Utf8View)?.as_string_view().clone()) };
        let bytes =
            |name| -> Result<BinaryViewArray> { Ok(field(name, DataType::BinaryView)?.as_binary_view().clone()) };
        let heads = Heads {
            encoding: text(ENCODING)?,
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

    /// The fields, and what a row's codes are: its encoding, with which bits must agree; `None` if the row is NULL.
    fn stored(&self, row: usize) -> Result<Option<(&Heads, Stored)>> {
        let is_null = self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
        let Some(heads) = self.heads.as_ref().filter(|_| !is_null) else { return Ok(None) };
        let function = self.function;
        let named = match heads.encoding.is_valid(row).then(|| heads.encoding.value(row)) {
            Some(name) => Some(Stored::named(name).ok_or_else(|| unknown(function, row, name))?),
            None => None,
        };
        let bits = match named {
            Some(blocks @ Stored::Blocks(_)) if heads.bits.is_null(row) => return Ok(Some((heads, blocks))),
            Some(Stored::Blocks(_) | Stored::Groups(_)) | None => required(function, row, "bits", &heads.bits)?,
        };
        let bits = Bits::try_from(bits).map_err(|error| kernel_error(function, row, error))?;
        match named {
            Some(stored) if stored != Stored::Groups(bits) => exec_err!(
                "{function}, row {row}: encoding is '{}' and bits is {}, allowed with these bits: '{}'",
                stored.name(),
                bits.get(),
                bits.name()
            ),
            Some(_) | None => Ok(Some((heads, Stored::Groups(bits)))),
        }
    }

    /// The quantized value in a row; `None` if it is NULL.
    ///
    /// # Errors
    /// If a field that the value needs is NULL, or holds what is not allowed.
    pub fn row(&self, row: usize) -> Result<Option<ValueRef<'_>>> {
        let Some((heads, stored)) = self.stored(row)? else { return Ok(None) };
        let count = |name, array: &Int64Array| {
            let value = required(self.function, row, name, array)?;
            usize::try_from(value)
                .map_err(|_| exec_datafusion_err!("{}, row {row}: {value} is not a count of weights", self.function))
        };
        let length = count("length", &heads.length)?;
        let row_length = count("row_length", &heads.row_length)?;
        let codes = required(self.function, row, "codes", &heads.codes)?;
        let error = |e| kernel_error(self.function, row, e);
        match stored {
            Stored::Groups(bits) => {
                let text = |name, array| required::<&StringViewArray>(self.function, row, name, array);
                let group_size = required(self.function, row, "group_size", &heads.group_size)?;
                let scheme: Scheme = text("scheme", &heads.scheme)?.parse().map_err(error)?;
                Ok(Some(ValueRef::Groups(QuantizedRef {
                    bits,
                    group_size: GroupSize::try_from(group_size).map_err(error)?,
                    scheme,
                    length,
                    row_length,
                    parameter_dtype: text("parameter_dtype", &heads.parameter_dtype)?.parse().map_err(error)?,
                    codes,
                    scales: required(self.function, row, "scales", &heads.scales)?,
                    minima: self.parameter(row, "minima", &heads.minima, scheme.has_minima())?,
                    zero_points: self.parameter(row, "zero_points", &heads.zero_points, scheme.has_zero_points())?,
                })))
            }
            Stored::Blocks(block_type) => {
                let blocks = Weights::blocks(block_type, codes, row_length).map_err(error)?;
                if blocks.len() != length {
                    let what = "weights in the blocks";
                    return Err(error(KernelError::Mismatch { what, found: blocks.len(), expected: length }));
                }
                Ok(Some(ValueRef::Blocks(blocks)))
            }
        }
    }

    /// The parameters in a row; empty where they are NULL and the scheme does not need them.
    fn parameter<'a>(&self, row: usize, name: &str, array: &'a BinaryViewArray, is_needed: bool) -> Result<&'a [u8]> {
        if !is_needed && array.is_null(row) { Ok(&[]) } else { required(self.function, row, name, array) }
    }
}

fn unknown(function: &str, row: usize, name: &str) -> datafusion::error::DataFusionError {
    let names = Bits::ALL.iter().map(|bits| bits.name()).chain(BlockType::ALL.iter().map(|block| block.name()));
    let allowed: Vec<_> = names.map(|name| format!("'{name}'")).collect();
    exec_datafusion_err!("{function}, row {row}: encoding is '{name}', allowed: {}", allowed.join(", "))
}
