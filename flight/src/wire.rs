//! Batches as clients get them: types that every client reads, in messages that every client takes.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_quant_bounds::value_bytes;

/// Bytes of a message. Clients take 4 MiB at least, so rows are sent by up to half of that; a row is never split.
const MESSAGE_BYTES: usize = 2 << 20;

/// The schema of a result on the wire: views are plain text and bytes, since a message would hold the buffers of a whole batch
/// for each of its slices, and dictionaries are their values.
pub(crate) fn wire_schema(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(wire_field).collect::<Vec<_>>();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn wire_field(field: &FieldRef) -> FieldRef {
    let data_type = wire_type(field.data_type());
    if data_type == *field.data_type() {
        return Arc::clone(field);
    }
    Arc::new(Field::new(field.name(), data_type, field.is_nullable()).with_metadata(field.metadata().clone()))
}

fn wire_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => wire_type(values),
        DataType::List(field) | DataType::ListView(field) => DataType::List(wire_field(field)),
        DataType::LargeList(field) | DataType::LargeListView(field) => DataType::LargeList(wire_field(field)),
        DataType::FixedSizeList(field, length) => DataType::FixedSizeList(wire_field(field), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(wire_field).collect()),
        DataType::Map(field, sorted) => DataType::Map(wire_field(field), *sorted),
        other => other.clone(),
    }
}

/// A batch cut into pieces of at most [`MESSAGE_BYTES`], or one row, each of the wire's schema.
pub(crate) struct Pieces {
    batch: RecordBatch,
    schema: SchemaRef,
    sizes: Vec<usize>,
    next: usize,
}

impl Pieces {
    pub(crate) fn new(batch: RecordBatch, schema: SchemaRef) -> Self {
        let mut sizes = vec![0; batch.num_rows()];
        for column in batch.columns() {
            sizes.iter_mut().zip(value_bytes(column)).for_each(|(size, bytes)| *size += bytes);
        }
        Self { batch, schema, sizes, next: 0 }
    }
}

impl Iterator for Pieces {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.next;
        if start >= self.sizes.len() {
            return None;
        }
        let mut bytes = 0;
        while self.next < self.sizes.len() {
            bytes += self.sizes[self.next];
            if bytes > MESSAGE_BYTES && self.next > start {
                break;
            }
            self.next += 1;
        }
        Some(wire_batch(&self.batch.slice(start, self.next - start), &self.schema))
    }
}

/// A batch with the types of the wire.
fn wire_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(Arc::clone(column))
            } else {
                cast(column, field.data_type())
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, AsArray, BinaryViewArray, DictionaryArray, Int32Array, ListArray, StringViewArray, StructArray,
    };
    use arrow::datatypes::{Int8Type, Int32Type};

    use super::*;

    #[test]
    fn nested_views_and_dictionaries_become_plain() {
        let text: ArrayRef = Arc::new(StringViewArray::from(vec!["a", "a text of more than twelve bytes"]));
        let inner =
            StructArray::from(vec![(Arc::new(Field::new("text", DataType::Utf8View, false)), Arc::clone(&text))]);
        let words: DictionaryArray<Int8Type> = vec!["x", "y"].into_iter().collect();
        let numbers = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)]), Some(vec![])]);
        let batch = RecordBatch::try_from_iter([
            ("inner", Arc::new(inner) as ArrayRef),
            ("words", Arc::new(words) as _),
            ("numbers", Arc::new(numbers) as _),
        ]);
        let batch = batch.expect("columns of one length");
        let schema = wire_schema(&batch.schema());
        assert_eq!(schema.field(1).data_type(), &DataType::Utf8);
        let pieces = Pieces::new(batch, Arc::clone(&schema)).collect::<Result<Vec<_>, _>>().expect("casts");
        assert_eq!(pieces.len(), 1);
        assert_eq!(pieces[0].schema(), schema);
        assert_eq!(
            pieces[0].column(0).as_struct().column(0).as_string::<i32>().value(1),
            "a text of more than twelve bytes"
        );
    }

    #[test]
    fn pieces_are_small_and_hold_every_row_once() {
        let payload = vec![7_u8; 300 << 10];
        let rows = 64;
        let bytes: ArrayRef = Arc::new(BinaryViewArray::from_iter_values((0..rows).map(|_| payload.as_slice())));
        let index: ArrayRef = Arc::new(Int32Array::from_iter_values(0..rows));
        let batch = RecordBatch::try_from_iter([("index", index), ("bytes", bytes)]).expect("columns of one length");
        let schema = wire_schema(&batch.schema());
        let pieces = Pieces::new(batch.slice(3, 50), schema).collect::<Result<Vec<_>, _>>().expect("casts");
        assert!(pieces.iter().all(|piece| piece.num_rows() <= 6), "6 rows of 300 KiB fit 2 MiB");
        let seen: Vec<i32> =
            pieces.iter().flat_map(|piece| piece.column(0).as_primitive::<Int32Type>().values().to_vec()).collect();
        assert_eq!(seen, (3..53).collect::<Vec<_>>());
    }

    #[test]
    fn a_row_larger_than_a_message_is_a_message() {
        let bytes: ArrayRef = Arc::new(BinaryViewArray::from_iter_values([vec![1_u8; 5 << 20], vec![2; 10]]));
        let batch = RecordBatch::try_from_iter([("bytes", bytes)]).expect("one column");
        let schema = wire_schema(&batch.schema());
        let rows: Vec<usize> = Pieces::new(batch, schema).map(|piece| piece.expect("casts").num_rows()).collect();
        assert_eq!(rows, [1, 1]);
    }
}
