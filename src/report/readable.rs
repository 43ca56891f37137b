//! Columns made fit for people: bytes become their number, nested values become text.

use std::fmt::{self, Write};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, GenericListArray, MapArray, OffsetSizeTrait, StringArray, StructArray,
};
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// `array` with every binary value, at any depth of structs, lists, maps and dictionaries, replaced by the text
/// `<131072 bytes>`.
///
/// # Errors
/// If an array contradicts its type.
pub fn without_bytes(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !holds_bytes(array.data_type()) {
        return Ok(array.clone());
    }
    Ok(match array.data_type() {
        DataType::Binary => sizes(array.as_binary::<i32>().iter()),
        DataType::LargeBinary => sizes(array.as_binary::<i64>().iter()),
        DataType::BinaryView => sizes(array.as_binary_view().iter()),
        DataType::FixedSizeBinary(_) => sizes(array.as_fixed_size_binary().iter()),
        DataType::Struct(_) => Arc::new(struct_without_bytes(array.as_struct())?),
        DataType::List(field) => list_without_bytes::<i32>(array, field)?,
        DataType::LargeList(field) => list_without_bytes::<i64>(array, field)?,
        DataType::FixedSizeList(field, size) => {
            let list = array.as_fixed_size_list();
            let values = without_bytes(list.values())?;
            let field = retyped(field, &values);
            let nulls = list.nulls().cloned();
            Arc::new(FixedSizeListArray::try_new_with_length(field, *size, values, nulls, list.len())?)
        }
        DataType::Map(field, ordered) => {
            let map = array.as_map();
            let entries = struct_without_bytes(map.entries())?;
            let field = Arc::new(field.as_ref().clone().with_data_type(entries.data_type().clone()));
            Arc::new(MapArray::try_new(field, map.offsets().clone(), entries, map.nulls().cloned(), *ordered)?)
        }
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            dictionary.with_values(without_bytes(dictionary.values())?)
        }
        _ => array.clone(),
    })
}

/// A nested column as text, one string a row; any other column as it is.
///
/// # Errors
/// If the type has no text.
pub fn flat(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !array.data_type().is_nested() {
        return Ok(array.clone());
    }
    let options = FormatOptions::default().with_null("null");
    let format = ArrayFormatter::try_new(array.as_ref(), &options)?;
    let texts = (0..array.len()).map(|row| array.is_valid(row).then(|| format.value(row).to_string()));
    Ok(Arc::new(texts.collect::<StringArray>()))
}

/// A row's text, of which only the first `limit` characters are made.
///
/// # Errors
/// If the value has no text.
pub fn shortened(format: &ArrayFormatter<'_>, row: usize, limit: usize) -> Result<String, ArrowError> {
    let mut beginning = Beginning { text: String::new(), room: limit, cut: false };
    match format.value(row).write(&mut beginning) {
        Err(error) if !beginning.cut => Err(error),
        _ => {
            if beginning.cut {
                beginning.text.push('…');
            }
            Ok(beginning.text)
        }
    }
}

/// Keeps the first characters written, and refuses more.
struct Beginning {
    text: String,
    room: usize,
    cut: bool,
}

impl Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.room == 0 {
                self.cut = true;
                return Err(fmt::Error);
            }
            self.text.push(c);
            self.room -= 1;
        }
        Ok(())
    }
}

/// Whether values of the type hold bytes that [`without_bytes`] finds.
fn holds_bytes(data_type: &DataType) -> bool {
    match data_type {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => true,
        DataType::Struct(fields) => fields.iter().any(|field| holds_bytes(field.data_type())),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => holds_bytes(field.data_type()),
        DataType::Dictionary(_, values) => holds_bytes(values),
        _ => false,
    }
}

/// The number of bytes of each value, as text.
fn sizes<'a>(values: impl Iterator<Item = Option<&'a [u8]>>) -> ArrayRef {
    Arc::new(values.map(|value| value.map(|bytes| format!("<{} bytes>", bytes.len()))).collect::<StringArray>())
}

fn struct_without_bytes(array: &StructArray) -> Result<StructArray, ArrowError> {
    let columns = array.columns().iter().map(without_bytes).collect::<Result<Vec<_>, _>>()?;
    let fields: Vec<FieldRef> =
        array.fields().iter().zip(&columns).map(|(field, column)| retyped(field, column)).collect();
    StructArray::try_new_with_length(fields.into(), columns, array.nulls().cloned(), array.len())
}

fn list_without_bytes<O: OffsetSizeTrait>(array: &ArrayRef, field: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let list = array.as_list::<O>();
    let values = without_bytes(list.values())?;
    let field = retyped(field, &values);
    Ok(Arc::new(GenericListArray::<O>::try_new(field, list.offsets().clone(), values, list.nulls().cloned())?))
}

/// `field` with the type of `values`.
fn retyped(field: &FieldRef, values: &ArrayRef) -> FieldRef {
    Arc::new(Field::clone(field).with_data_type(values.data_type().clone()))
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BinaryArray, BinaryViewArray, DictionaryArray, FixedSizeBinaryArray, Int32Array, LargeBinaryArray, ListArray,
    };
    use arrow::buffer::{NullBuffer, OffsetBuffer};
    use arrow::datatypes::Int32Type;

    use super::*;

    fn texts(array: &ArrayRef) -> Vec<String> {
        let shown = without_bytes(array).unwrap();
        let options = FormatOptions::default().with_null("NULL");
        let format = ArrayFormatter::try_new(shown.as_ref(), &options).unwrap();
        (0..shown.len()).map(|row| format.value(row).to_string()).collect()
    }

    fn data() -> BinaryArray {
        BinaryArray::from_opt_vec(vec![Some(&b"abc"[..]), None, Some(&b""[..])])
    }

    /// `{dtype, data}`, a tensor value, of which the last is NULL.
    fn tensor_values() -> ArrayRef {
        let dtype: ArrayRef = Arc::new(StringArray::from(vec!["BF16", "F16", "F32"]));
        let fields = vec![Field::new("dtype", DataType::Utf8, false), Field::new("data", DataType::Binary, true)];
        let nulls = NullBuffer::from(vec![true, true, false]);
        Arc::new(StructArray::new(fields.into(), vec![dtype, Arc::new(data())], Some(nulls)))
    }

    #[test]
    fn every_encoding_shows_its_size() {
        let values = [Some(&b"abc"[..]), None, Some(&b""[..])];
        let arrays: [ArrayRef; 3] = [
            Arc::new(data()),
            Arc::new(LargeBinaryArray::from_iter(values)),
            Arc::new(BinaryViewArray::from_iter(values)),
        ];
        for array in &arrays {
            assert_eq!(texts(array), ["<3 bytes>", "NULL", "<0 bytes>"], "{}", array.data_type());
        }
        let fixed = FixedSizeBinaryArray::try_from_iter([b"ab", b"cd"].into_iter()).unwrap();
        assert_eq!(texts(&(Arc::new(fixed) as ArrayRef)), ["<2 bytes>", "<2 bytes>"]);
    }

    #[test]
    fn bytes_inside_structs_lists_and_dictionaries() {
        let values = tensor_values();
        assert_eq!(texts(&values), ["{dtype: BF16, data: <3 bytes>}", "{dtype: F16, data: NULL}", "NULL"]);
        assert_eq!(texts(&values.slice(1, 1)), ["{dtype: F16, data: NULL}"]);

        let item = Arc::new(Field::new("item", values.data_type().clone(), true));
        let list: ArrayRef = Arc::new(ListArray::new(item, OffsetBuffer::from_lengths([1, 0, 2]), values, None));
        assert_eq!(texts(&list.slice(0, 2)), ["[{dtype: BF16, data: <3 bytes>}]", "[]"]);

        let keys = Int32Array::from(vec![Some(2), None, Some(0)]);
        let dictionary: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(data())));
        assert_eq!(texts(&dictionary), ["<0 bytes>", "NULL", "<3 bytes>"]);
    }

    #[test]
    fn nested_columns_become_text_and_others_stay() {
        let shown = flat(&without_bytes(&tensor_values()).unwrap()).unwrap();
        let shown = shown.as_string::<i32>();
        assert_eq!(shown.value(0), "{dtype: BF16, data: <3 bytes>}");
        assert!(shown.is_null(2));
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
        assert_eq!(&flat(&numbers).unwrap(), &numbers);
    }

    #[test]
    fn long_values_are_cut() {
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some((0..1000).map(Some).collect::<Vec<_>>())]);
        let options = FormatOptions::default();
        let format = ArrayFormatter::try_new(&lists, &options).unwrap();
        assert_eq!(shortened(&format, 0, 8).unwrap(), "[0, 1, 2…");
    }
}
