//! Batches as messages of Arrow's stream format. The schema in the stream is the one that was announced: arrow-flight's encoder
//! would make lists of large lists, and unions that cannot be NULL.

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::FlightData;

/// Encodes the batches of one stream.
pub(crate) struct Encoder {
    generator: IpcDataGenerator,
    dictionaries: DictionaryTracker,
    options: IpcWriteOptions,
    context: IpcWriteContext,
}

impl Encoder {
    /// The encoder of a stream, and its first message, the schema.
    pub(crate) fn new(schema: &Schema) -> (Self, FlightData) {
        let (generator, options) = (IpcDataGenerator::default(), IpcWriteOptions::default());
        // Dictionaries within unions may differ from batch to batch; they are sent again then.
        let mut dictionaries = DictionaryTracker::new(false);
        let first = generator.schema_to_bytes_with_dictionary_tracker(schema, &mut dictionaries, &options);
        (Self { generator, dictionaries, options, context: IpcWriteContext::default() }, first.into())
    }

    /// The messages of a batch: new dictionaries, and then the rows.
    ///
    /// # Errors
    /// If the batch cannot be encoded.
    pub(crate) fn messages(&mut self, batch: &RecordBatch) -> Result<Vec<FlightData>, ArrowError> {
        let (dictionaries, rows) =
            self.generator.encode(batch, &mut self.dictionaries, &self.options, &mut self.context)?;
        Ok(dictionaries.into_iter().chain([rows]).map(FlightData::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::new_null_array;
    use arrow::datatypes::{DataType, Field, Fields, TimeUnit, UnionFields, UnionMode};
    use arrow::ipc::convert::try_schema_from_ipc_buffer;
    use arrow_flight::decode::FlightRecordBatchStream;
    use futures::{StreamExt, TryStreamExt, stream};

    use super::*;
    use crate::service::schema_bytes;
    use crate::wire::{Pieces, wire_schema};

    fn leaves() -> Vec<DataType> {
        use DataType::*;
        vec![
            Null,
            Boolean,
            Int8,
            Int16,
            Int32,
            Int64,
            UInt8,
            UInt16,
            UInt32,
            UInt64,
            Float16,
            Float32,
            Float64,
            Date32,
            Date64,
            Utf8,
            LargeUtf8,
            Utf8View,
            Binary,
            LargeBinary,
            BinaryView,
            FixedSizeBinary(3),
            Decimal128(10, 2),
            Decimal256(40, 2),
            Timestamp(TimeUnit::Microsecond, Some("Europe/Berlin".into())),
            Duration(TimeUnit::Nanosecond),
            Dictionary(Box::new(Int8), Box::new(Utf8)),
            Dictionary(Box::new(Int32), Box::new(LargeUtf8)),
        ]
    }

    /// The types that hold a type.
    fn around(inner: &DataType) -> Vec<DataType> {
        let item = || Arc::new(Field::new("item", inner.clone(), true));
        let union = |mode| {
            let fields = [Field::new("a", DataType::Int64, true), Field::new("b", inner.clone(), true)];
            DataType::Union(UnionFields::try_new([0, 1], fields).expect("two types"), mode)
        };
        let entries = Fields::from(vec![
            Field::new("keys", DataType::LargeUtf8, false),
            Field::new("values", inner.clone(), true),
        ]);
        vec![
            DataType::List(item()),
            DataType::LargeList(item()),
            DataType::ListView(item()),
            DataType::LargeListView(item()),
            DataType::FixedSizeList(item(), 2),
            DataType::Struct(Fields::from(vec![Field::new("x", inner.clone(), true)])),
            DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false),
            union(UnionMode::Sparse),
            union(UnionMode::Dense),
        ]
    }

    /// What a client that fetches a column of a type is told, and what it gets.
    async fn announced_and_sent(data_type: &DataType) -> (Schema, Schema) {
        let field = Field::new("x", data_type.clone(), true).with_metadata([("a".into(), "b".into())].into());
        let schema = Arc::new(Schema::new(vec![field]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![new_null_array(data_type, 3)]).expect("one column");
        let wire = wire_schema(&schema);
        let announced = try_schema_from_ipc_buffer(&schema_bytes(&wire).expect("encodes")).expect("decodes");
        let (mut encoder, first) = Encoder::new(&wire);
        let mut messages = vec![first];
        for piece in Pieces::new(batch, wire) {
            messages.extend(encoder.messages(&piece.expect("casts")).expect("encodes"));
        }
        let messages = stream::iter(messages.into_iter().map(Ok)).boxed();
        let mut rows = FlightRecordBatchStream::new_from_flight_data(messages);
        let batches: Vec<RecordBatch> = rows.by_ref().try_collect().await.expect("decodes");
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3, "{data_type}");
        assert!(batches.iter().all(|batch| *batch.schema() == announced), "{data_type}");
        (announced, rows.schema().expect("a schema comes first").as_ref().clone())
    }

    #[tokio::test]
    async fn the_schema_sent_is_the_one_announced_for_every_type_two_levels_deep() {
        let leaves = leaves();
        let once: Vec<DataType> = leaves.iter().flat_map(around).collect();
        let twice: Vec<DataType> = once.iter().step_by(7).flat_map(around).collect();
        let mut tried = 0;
        for data_type in leaves.iter().chain(&once).chain(&twice) {
            let (announced, sent) = announced_and_sent(data_type).await;
            assert_eq!(announced, sent, "{data_type}");
            tried += 1;
        }
        assert!(tried > 400, "{tried}");
    }

    #[tokio::test]
    async fn large_lists_stay_large() {
        let large = DataType::LargeList(Arc::new(Field::new("item", DataType::Int64, true)));
        let (announced, sent) = announced_and_sent(&large).await;
        assert_eq!((announced.field(0).data_type(), sent.field(0).data_type()), (&large, &large));
    }
}
