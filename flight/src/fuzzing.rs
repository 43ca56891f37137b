//! What a stranger's bytes reach first, one function each, for fuzzers. None may panic, whatever the bytes.

use std::pin::pin;

use arrow_flight::{FlightData, FlightDescriptor};
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, stream};
use prost::Message;
use tonic::body::Body;

use crate::framing::{Frames, Sent};
use crate::input::Input;
use crate::options::SetSessionOptionsRequest;
use crate::results::{asked, parse_handle};
use crate::service::Asked;

/// A ticket.
pub fn ticket(bytes: &[u8]) {
    if let Ok(Asked::Command(arrow_flight::sql::Command::TicketStatementQuery(ticket))) = Asked::parse(bytes) {
        let _ = parse_handle(&ticket.statement_handle);
    }
    let _ = parse_handle(bytes);
}

/// A descriptor, and the command it holds.
pub fn command(bytes: &[u8]) {
    if let Ok(descriptor) = FlightDescriptor::decode(bytes) {
        let _ = asked(&descriptor);
    }
    if let Ok(Asked::Command(command)) = Asked::parse(bytes) {
        let _ = crate::metadata::schema_of(&command);
    }
}

/// Messages of a stream: each begins with the lengths, as u16 little-endian, of its header and its body.
pub fn ipc(bytes: &[u8]) {
    let descriptor = FlightDescriptor::new_path(vec!["t".to_string()]);
    let mut messages = vec![Ok(FlightData { flight_descriptor: Some(descriptor), ..Default::default() })];
    let mut rest = bytes;
    while let Some((lengths, after)) = rest.split_first_chunk::<4>() {
        let [a, b, c, d] = *lengths;
        let header = usize::from(u16::from_le_bytes([a, b])).min(after.len());
        let body = usize::from(u16::from_le_bytes([c, d])).min(after.len() - header);
        let data_header = after[..header].to_vec().into();
        let data_body = after[header..header + body].to_vec().into();
        messages.push(Ok(FlightData { data_header, data_body, ..Default::default() }));
        rest = &after[header + body..];
    }
    futures::executor::block_on(async {
        let Ok(input) = Input::open(stream::iter(messages)).await else { return };
        let Ok(mut rows): Result<SendableRecordBatchStream, _> = input.rows().await else { return };
        while let Some(Ok(batch)) = rows.next().await {
            // Rows must be valid before their reader gets them.
            for column in batch.columns() {
                column.to_data().validate_full().expect("what is decoded is valid");
            }
        }
    });
}

/// Messages as a connection brings them, in frames of as many bytes as the first one says.
pub fn frames(bytes: &[u8]) {
    let Some((&frame, bytes)) = bytes.split_first() else { return };
    let body = Frames(Bytes::copy_from_slice(bytes), usize::from(frame).max(1));
    futures::executor::block_on(async {
        let mut messages = pin!(Sent::new(Body::new(body), 1 << 20).messages());
        while let Some(Ok(_)) = messages.next().await {}
    });
}

/// The body of SetSessionOptions.
pub fn options(bytes: &[u8]) {
    let _ = SetSessionOptionsRequest::decode(bytes);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BinaryArray, Int32Array, RecordBatch, StringArray};
    use arrow_flight::encode::FlightDataEncoderBuilder;
    use arrow_flight::sql::{CommandGetTables, CommandStatementQuery};
    use futures::TryStreamExt;
    use uuid::Uuid;

    use super::*;
    use crate::results::handle;
    use crate::service::packed;

    /// Numbers that look random and are the same each time (Marsaglia's xorshift).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % end.max(1) as u64) as usize
        }

        /// A copy with some bytes changed, put in, taken out or cut off.
        fn damaged(&mut self, bytes: &[u8]) -> Vec<u8> {
            let mut bytes = bytes.to_vec();
            for _ in 0..=self.below(6) {
                let at = self.below(bytes.len());
                match self.below(6) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at.min(bytes.len()), self.below(256) as u8),
                    2 if !bytes.is_empty() => drop(bytes.remove(at)),
                    3 if at + 8 <= bytes.len() => {
                        bytes[at..at + 8].copy_from_slice(&[[0xff; 8], [0x7f; 8]][self.below(2)])
                    }
                    _ if !bytes.is_empty() => bytes[at] = self.below(256) as u8,
                    _ => {}
                }
            }
            bytes
        }
    }

    fn messages() -> Vec<u8> {
        let columns: [(&str, ArrayRef); 3] = [
            ("number", Arc::new(Int32Array::from(vec![Some(1), None, Some(3)]))),
            ("text", Arc::new(StringArray::from(vec!["a", "bc", ""]))),
            ("bytes", Arc::new(BinaryArray::from_vec(vec![b"x", b"", b"yz"]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
        let encoder = FlightDataEncoderBuilder::new().build(stream::iter([Ok(batch)]));
        let messages: Vec<FlightData> = futures::executor::block_on(encoder.try_collect()).expect("encodes");
        let mut bytes = Vec::new();
        for message in messages {
            bytes.extend_from_slice(&(message.data_header.len() as u16).to_le_bytes());
            bytes.extend_from_slice(&(message.data_body.len() as u16).to_le_bytes());
            bytes.extend_from_slice(&message.data_header);
            bytes.extend_from_slice(&message.data_body);
        }
        bytes
    }

    /// Two messages in frames of 20 bytes.
    fn framed() -> Vec<u8> {
        let message = FlightData {
            data_header: vec![1; 70].into(),
            data_body: vec![2; 130].into(),
            ..FlightData::default().with_descriptor(FlightDescriptor::new_cmd("SELECT 1"))
        };
        let message = message.encode_to_vec();
        let mut bytes = vec![20];
        for _ in 0..2 {
            bytes.push(0);
            bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&message);
        }
        bytes
    }

    #[test]
    fn damaged_bytes_are_refused_without_a_panic() {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let sql = packed(&CommandStatementQuery { query: "SELECT 1".into(), transaction_id: None });
        let tables = packed(&CommandGetTables { catalog: Some("a".into()), ..Default::default() });
        let ticket_bytes = packed(&handle(&Uuid::nil(), 3));
        let descriptor = FlightDescriptor::new_cmd(sql.clone()).encode_to_vec();
        let stream = messages();
        for _ in 0..20_000 {
            ticket(&numbers.damaged(&ticket_bytes));
            command(&numbers.damaged(&sql));
            command(&numbers.damaged(&tables));
            command(&numbers.damaged(&descriptor));
            options(&numbers.damaged(&descriptor));
        }
        let framed = framed();
        for _ in 0..5_000 {
            ipc(&numbers.damaged(&stream));
            frames(&numbers.damaged(&framed));
        }
    }
}
