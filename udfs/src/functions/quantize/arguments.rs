//! The arguments of `quantize`: what stands where, and what a row is to become.

use std::str::FromStr;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use arrow_quant_kernels::{Bits, BlockType, Fill, GroupSize, KernelError, Method, Scheme, Settings};
use datafusion::common::{Result, ScalarValue, internal_err, plan_err};

use super::NAME;
use crate::tensor::{TensorColumn, is_string};

pub(super) const SYNTAX: &str = "(weights, bits, group_size [, scheme] [, method] [, importance [, smoothing]]) or (weights, type [, group_size] [, scheme] [, method] \
     [, importance [, smoothing]])";

/// The types of weights that `type` names.
const TYPES: &str = "'int2', 'int3', 'int4', 'int5', 'int6', 'int8', 'q4_0', 'q4_1', 'q5_0', 'q5_1', 'q8_0', 'q2_0', 'q2_k', 'q3_k', 'q4_k', 'q5_k', \
     'q6_k', 'iq4_nl', 'iq4_xs', 'tq1_0', 'tq2_0', 'mxfp4' or 'nvfp4'";

const GROUP_SIZES: &str = "16, 32, 64, 128 or 256";

pub(super) fn is_list(data_type: &DataType) -> bool {
    matches!(data_type, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _))
}

/// The types to read the arguments as: `weights`; then `bits` (an integer) or `type` (text); where the third is an integer
/// or NULL, or `bits` stands before it, `group_size`; then names and lists in any order. Fails if there are too few or too many, or one
/// cannot be read as what stands there.
pub(super) fn read_as(types: &[DataType]) -> Result<Vec<DataType>> {
    let is_named = types.get(1).is_some_and(is_string);
    if !(if is_named { 2..=7 } else { 3..=7 }).contains(&types.len()) {
        return plan_err!("{NAME} expects {SYNTAX}, found {} arguments", types.len());
    }
    let has_group_size = !is_named || types.get(2).is_some_and(|third| third.is_integer() || third.is_null());
    let rest = if has_group_size { 3 } else { 2 };
    let lists = types[rest..].iter().filter(|t| is_list(t)).count();
    if lists > 2 {
        return plan_err!("{NAME} expects importance and smoothing, found {lists} lists");
    }
    let mut coerced = vec![TensorColumn::coerce(NAME, "weights", &types[0])?];
    let first = if is_named { "type" } else { "bits" };
    for (data_type, argument) in types[1..rest].iter().zip([first, "group_size"]) {
        coerced.push(match data_type {
            t if is_string(t) && argument == "type" => DataType::Utf8,
            t if t.is_integer() || t.is_null() => DataType::Int64,
            other if argument == "bits" => {
                return plan_err!("{NAME} expects {argument} to be an integer, or the name of a type, found {other}");
            }
            other => return plan_err!("{NAME} expects {argument} to be an integer, found {other}"),
        });
    }
    for (i, data_type) in types.iter().enumerate().skip(rest) {
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

/// What weights become, as `bits` or `type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Groups(Bits),
    Blocks(BlockType),
}

impl FromStr for Type {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        let refused = || KernelError::Argument { name: "type", value: format!("'{name}'"), allowed: TYPES };
        let groups = name.parse().map(Self::Groups);
        groups.or_else(|_| name.parse().map(Self::Blocks)).map_err(|_: KernelError| refused())
    }
}

/// Everything that decides which bytes weights become, importance and smoothing aside.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    Groups(Settings),
    Blocks(BlockType, Fill),
}

/// Scheme and method of grouped integers as far as they have been named.
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

/// Fails for names that neither grouped integers nor blocks could have.
fn check_any(names: &[&str]) -> Result<(), KernelError> {
    let mut options = Options::default();
    let of_groups = names.iter().try_for_each(|name| options.read(name));
    of_groups.or_else(|error| match names {
        [name] if name.parse::<Fill>().is_ok() => Ok(()),
        _ => Err(error),
    })
}

/// How blocks are to be filled.
fn fill(block_type: BlockType, names: &[&str]) -> Result<Fill, KernelError> {
    let refused = |value, allowed| Err(KernelError::Argument { name: "method", value, allowed });
    let fills = names.iter().map(|name| name.parse::<Fill>().map_err(|_| *name));
    match fills.collect::<Result<Vec<Fill>, &str>>().as_deref() {
        Ok([]) => Ok(Fill::Mse),
        Ok([fill]) => Ok(*fill),
        Ok([first, second, ..]) => refused(format!("'{first}' and '{second}' for {block_type}"), "one of them"),
        Err(name) => refused(format!("'{name}' for {block_type}"), "'mse' or 'reference'"),
    }
}

/// The group size of grouped integers.
fn group_size(bits: Bits, size: Option<i64>) -> Result<GroupSize, KernelError> {
    let missing =
        || KernelError::Argument { name: "group_size", value: format!("missing for {bits}"), allowed: GROUP_SIZES };
    GroupSize::try_from(size.ok_or_else(missing)?)
}

/// Fails for a group size of blocks, which have their own.
fn check_no_group_size(block_type: BlockType, size: Option<i64>) -> Result<(), KernelError> {
    let Some(size) = size else { return Ok(()) };
    let (value, allowed) = (format!("{size} for {block_type}"), "none, or NULL: a block has its own");
    Err(KernelError::Argument { name: "group_size", value, allowed })
}

/// Fails for constants that no row can be quantized with. `types` are those that the arguments are read as.
pub(super) fn check_constants(types: &[DataType], constants: &[Option<&ScalarValue>]) -> Result<(), KernelError> {
    let integer = |at: usize| match constants.get(at) {
        Some(Some(ScalarValue::Int64(number))) => *number,
        _ => None,
    };
    let text = |at: usize| match constants.get(at) {
        Some(Some(ScalarValue::Utf8(name))) => name.as_deref(),
        _ => None,
    };
    let has_group_size = types.get(2) == Some(&DataType::Int64);
    let rest = if has_group_size { 3 } else { 2 };
    let names: Vec<&str> = (rest..types.len()).filter_map(text).collect();
    let size = integer(2);
    let wanted = match (integer(1).map(Bits::try_from).transpose()?, text(1).map(str::parse).transpose()?) {
        (Some(bits), _) => Some(Type::Groups(bits)),
        (None, named) => named,
    };
    match wanted {
        Some(Type::Groups(bits)) => {
            if size.is_some() || !has_group_size {
                group_size(bits, size)?;
            }
            let mut options = Options::default();
            names.iter().try_for_each(|name| options.read(name))
        }
        Some(Type::Blocks(block_type)) => {
            check_no_group_size(block_type, size)?;
            fill(block_type, &names).map(drop)
        }
        None => {
            size.map(GroupSize::try_from).transpose()?;
            check_any(&names)
        }
    }
}

/// The arguments other than weights and lists, row by row.
pub(super) struct Arguments<'a> {
    wanted: Types<'a>,
    /// `None` without that argument.
    group_sizes: Option<&'a Int64Array>,
    names: Vec<&'a StringArray>,
}

enum Types<'a> {
    Bits(&'a Int64Array),
    Names(&'a StringArray),
}

impl<'a> Arguments<'a> {
    /// `arrays` are the arguments after the weights, without lists.
    pub(super) fn try_new(arrays: &'a [ArrayRef]) -> Result<Self> {
        let [first, rest @ ..] = arrays else { return internal_err!("{NAME} has a type") };
        let wanted = match first.as_string_opt() {
            Some(names) => Types::Names(names),
            None => Types::Bits(first.as_primitive::<Int64Type>()),
        };
        let group_sizes = rest.first().and_then(|array| array.as_primitive_opt::<Int64Type>());
        let names = rest[usize::from(group_sizes.is_some())..].iter().map(|array| array.as_string()).collect();
        Ok(Self { wanted, group_sizes, names })
    }

    /// What a row is to become; `None` if it is NULL. For blocks the other arguments may be NULL: they have no use for a
    /// group size or a scheme.
    pub(super) fn row(&self, row: usize) -> Result<Option<Wanted>, KernelError> {
        let wanted = match self.wanted {
            Types::Bits(bits) if bits.is_valid(row) => Type::Groups(Bits::try_from(bits.value(row))?),
            Types::Names(names) if names.is_valid(row) => names.value(row).parse()?,
            Types::Bits(_) | Types::Names(_) => return Ok(None),
        };
        let names: Vec<&str> = self.names.iter().filter(|n| n.is_valid(row)).map(|names| names.value(row)).collect();
        let size = self.group_sizes.filter(|sizes| sizes.is_valid(row)).map(|sizes| sizes.value(row));
        match wanted {
            Type::Groups(bits) => {
                let is_null = names.len() < self.names.len() || self.group_sizes.is_some() && size.is_none();
                if is_null {
                    return Ok(None);
                }
                let mut options = Options::default();
                names.iter().try_for_each(|name| options.read(name))?;
                Ok(Some(Wanted::Groups(Settings {
                    bits,
                    group_size: group_size(bits, size)?,
                    scheme: options.scheme.unwrap_or(Scheme::Affine),
                    method: options.method.unwrap_or(Method::Mse),
                })))
            }
            Type::Blocks(block_type) => {
                check_no_group_size(block_type, size)?;
                Ok(Some(Wanted::Blocks(block_type, fill(block_type, &names)?)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_lists_every_type() {
        let names: Vec<_> = Bits::ALL.iter().map(|b| b.name()).chain(BlockType::ALL.iter().map(|b| b.name())).collect();
        let listed: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
        assert_eq!(TYPES.replace(" or ", ", "), listed.join(", "));
        for name in names {
            assert!(name.parse::<Type>().is_ok(), "{name}");
        }
        assert!("F32".parse::<Type>().is_err());
    }

    #[test]
    fn the_message_lists_every_group_size() {
        let refused = GroupSize::try_from(0).unwrap_err().to_string();
        assert_eq!(refused, format!("group_size is 0, allowed: {GROUP_SIZES}"));
    }
}
