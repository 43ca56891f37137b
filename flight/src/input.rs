//! Streams that clients send: the descriptor, the schema, and batch after batch.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::{MessageHeader, root_as_message};
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::{FlightDescriptor, flight_descriptor::DescriptorType};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use crate::queries::failed;
use crate::status::status_of;

/// How much larger a batch may become than the message it came in, by decompression.
const EXPANSION: u64 = 64;

/// Bytes of values that can be bound to a statement.
const VALUES_BYTES: usize = 16 << 20;

/// A stream of which the descriptor was read.
pub(crate) struct Input {
    pub descriptor: FlightDescriptor,
    messages: BoxStream<'static, Result<FlightData, Status>>,
}

impl Input {
    /// Reads the first message.
    ///
    /// # Errors
    /// If there is none, or it has no descriptor.
    pub(crate) async fn open(
        messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
    ) -> Result<Self, Status> {
        let mut messages = messages.map_err(limit_named).boxed();
        let Some(mut first) = messages.try_next().await? else {
            return Err(Status::invalid_argument("the stream has no messages: the first has the descriptor"));
        };
        let descriptor = first.flight_descriptor.take();
        let Some(descriptor) = descriptor.filter(|descriptor| descriptor.r#type() != DescriptorType::Unknown) else {
            return Err(Status::invalid_argument("the first message has no descriptor"));
        };
        let messages = stream::iter([Ok(first)]).chain(messages).try_filter(|message| {
            // Clients send the descriptor, or metadata of their own, in messages without data.
            futures::future::ready(!message.data_header.is_empty())
        });
        Ok(Self { descriptor, messages: messages.boxed() })
    }

    /// The rows that follow, with their schema, once it has arrived.
    ///
    /// # Errors
    /// If the stream ends before, or begins with another message.
    pub(crate) async fn rows(self) -> Result<SendableRecordBatchStream, Status> {
        let checked = self.messages.map(|message| {
            let message = message.map_err(|status| FlightError::Tonic(Box::new(status)))?;
            check(&message)?;
            Ok(message)
        });
        let mut peekable = checked.boxed().peekable();
        let schema: SchemaRef = match std::pin::Pin::new(&mut peekable).peek().await {
            None => return Err(Status::invalid_argument("the stream ended before its schema")),
            Some(Ok(first)) => {
                // The conversion panics at types that there are none of.
                let schema = std::panic::catch_unwind(|| Schema::try_from(first));
                let schema = schema.unwrap_or_else(|_| Err(ArrowError::SchemaError("a type is not known".to_string())));
                Arc::new(schema.map_err(|error| Status::invalid_argument(format!("no schema comes first: {error}")))?)
            }
            Some(Err(_)) => {
                let failed = peekable.next().await.and_then(Result::err).map(refused);
                return Err(failed.unwrap_or_else(|| Status::invalid_argument("the stream has no schema")));
            }
        };
        // What the checks let pass and the decoder still fails at ends this stream, and nothing else.
        let decoded = AssertUnwindSafe(FlightRecordBatchStream::new_from_flight_data(peekable)).catch_unwind();
        let rows = decoded.map(|rows| match rows {
            Ok(rows) => rows.map_err(|error| DataFusionError::External(Box::new(refused(error)))),
            Err(_) => {
                let status = Status::invalid_argument("the stream cannot be decoded: a message contradicts itself");
                Err(DataFusionError::External(Box::new(status)))
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    /// The values that are bound to a statement; none, if the stream is only the descriptor.
    pub(crate) async fn values(self) -> Result<Vec<RecordBatch>, Status> {
        let mut messages = self.messages.peekable();
        if std::pin::Pin::new(&mut messages).peek().await.is_none() {
            return Ok(Vec::new());
        }
        let mut rows = Self { descriptor: self.descriptor, messages: messages.boxed() }.rows().await?;
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(|error| status_of(&error, |_| None, ""))?;
            bytes += batch.get_array_memory_size();
            if bytes > VALUES_BYTES {
                return Err(Status::resource_exhausted(format!(
                    "statement: the values bound to it have more than {VALUES_BYTES} bytes; ingest them as a table"
                )));
            }
            batches.push(batch);
        }
        Ok(batches)
    }
}

/// Tonic refuses messages that are too large as OUT_OF_RANGE.
pub(crate) fn limit_named(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(format!("message_bytes: {}", status.message())),
        _ => status,
    }
}

/// Messages read on the network's threads, the next one while this one is worked on: the work does not wait for it, nor puts it together
/// from frames.
pub(crate) fn one_ahead(
    messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
) -> impl Stream<Item = Result<FlightData, Status>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(1);
    let reading = tokio::spawn(async move {
        let mut messages = pin!(messages);
        // Room comes first, so that no more than one message waits.
        while let Ok(room) = sender.reserve().await {
            let Some(message) = messages.next().await else { break };
            room.send(message);
        }
    });
    let reading = AbortOnDropHandle::new(reading);
    stream::unfold(Some((receiver, reading)), |state| async {
        let (mut receiver, reading) = state?;
        match receiver.recv().await {
            Some(message) => Some((message, Some((receiver, reading)))),
            // A stream that was not read to its end is not complete.
            None => reading.await.err().map(|error| (Err(failed(error)), None)),
        }
    })
}

/// The client's data is to blame, unless the connection is.
fn refused(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        error => Status::invalid_argument(format!("the stream cannot be decoded: {error}")),
    }
}

/// Refuses what the decoder takes for granted: buffers lie within the message, counts are no less than zero, and what is
/// compressed does not claim to become much larger than the message; memory is taken before it is decompressed.
fn check(message: &FlightData) -> Result<(), FlightError> {
    let refuse = |reason: &str| FlightError::Arrow(ArrowError::IpcError(reason.to_string()));
    let header = root_as_message(&message.data_header).map_err(|error| refuse(&format!("no message: {error}")))?;
    let batch = match header.header_type() {
        MessageHeader::RecordBatch => header.header_as_record_batch(),
        MessageHeader::DictionaryBatch => header.header_as_dictionary_batch().and_then(|dictionary| dictionary.data()),
        _ => None,
    };
    let Some(batch) = batch else { return Ok(()) };
    let counts = |length: i64, nulls: i64| (0..=length).contains(&nulls) && length <= i64::from(i32::MAX);
    if !counts(batch.length(), 0)
        || batch.nodes().into_iter().flatten().any(|node| !counts(node.length(), node.null_count()))
    {
        return Err(refuse("a batch has impossible numbers of rows or nulls"));
    }
    let body = &message.data_body;
    let allowed = (body.len() as u64 + (1 << 20)).saturating_mul(EXPANSION);
    let mut total = 0_u64;
    for buffer in batch.buffers().into_iter().flatten() {
        let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let bytes = range.and_then(|(start, length)| body.get(start..start.checked_add(length)?));
        let Some(bytes) = bytes else { return Err(refuse("a buffer lies outside its message")) };
        if let Some(prefix) = bytes.first_chunk::<8>().filter(|_| batch.compression().is_some()) {
            // -1 says that the buffer is not compressed.
            total = total.saturating_add(u64::try_from(i64::from_le_bytes(*prefix)).unwrap_or(0));
        }
    }
    if total > allowed {
        return Err(refuse("the buffers of a batch are said to become too large"));
    }
    Ok(())
}
