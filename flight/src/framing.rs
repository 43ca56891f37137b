//! Messages of batches in the frames that gRPC sends them in (gRPC over HTTP/2, "Length-Prefixed-Message"), which pass by tonic: it
//! copies each message once on its way in and once on its way out, and what it hands over is not aligned as Arrow needs it, so that
//! Arrow copies it again. Here a body is copied once on its way in, to where Arrow can use it, and not at all on its way out.

use std::future::poll_fn;
use std::mem::{replace, take};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use arrow::buffer::{Buffer, MutableBuffer, ScalarBuffer};
use arrow_flight::FlightData;
use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt, stream};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use prost::{EncodeError, Message, decode_length_delimiter, encode_length_delimiter, length_delimiter_len};
use tonic::Status;
use tonic::body::Body;

use crate::lock::locked;
use crate::stream::Messages;

/// Bytes before a message: whether it is compressed, and its length, big-endian.
const PREFIX: usize = 5;

/// The key of `data_body` (field 1000, length-delimited), the last of a message's fields.
const BODY_KEY: usize = 1000 << 3 | 2;

/// How Arrow's buffers are aligned.
const ALIGNMENT: usize = 64;

/// A body that is no longer is copied: to be sent along with what precedes it, or to be by itself once it has come.
const SHORT: usize = 16 << 10;

/// Bytes of messages that are sent together, where there are as many.
const TOGETHER: usize = 32 << 10;

/// What is handed around tonic in the extensions of a request or a response, to be taken once.
pub(crate) struct Aside<T>(Arc<Mutex<Option<T>>>);

impl<T> Aside<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(Mutex::new(Some(value))))
    }

    pub(crate) fn take(&self) -> Option<T> {
        locked(&self.0).take()
    }
}

impl<T> Clone for Aside<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The messages a client sends.
pub(crate) struct Sent {
    body: Body,
    /// What has come of the body and was not used.
    rest: Bytes,
    /// Bytes of a message.
    most: usize,
}

impl Sent {
    /// Those of a body, of `most` bytes each.
    pub(crate) fn new(body: Body, most: usize) -> Self {
        Self { body, rest: Bytes::new(), most }
    }

    /// The messages; ends with an error where the stream breaks off, a message is too large or is none.
    pub(crate) fn messages(self) -> impl Stream<Item = Result<FlightData, Status>> + Send + 'static {
        stream::try_unfold(self, async |mut sent| Ok(sent.next().await?.map(|message| (message, sent))))
    }

    async fn next(&mut self) -> Result<Option<FlightData>, Status> {
        let mut prefix = [0; PREFIX];
        for (at, byte) in prefix.iter_mut().enumerate() {
            if !self.some().await? {
                return if at == 0 { Ok(None) } else { Err(broken_off()) };
            }
            *byte = self.rest.get_u8();
        }
        let [compressed, length @ ..] = prefix;
        if compressed != 0 {
            return Err(Status::internal("the stream has a compressed message, and its headers name no compression"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.most {
            return Err(Status::resource_exhausted(format!(
                "message_bytes: a message has {length} bytes, of {} that are allowed",
                self.most
            )));
        }
        let message = self.message(length).await?;
        let mut message = FlightData::decode(message)
            .map_err(|error| Status::invalid_argument(format!("the stream has a message that is none: {error}")))?;
        let body = &message.data_body;
        if body.len() <= SHORT || length - body.len() > body.len() / 32 {
            // The memory of a batch is counted by its body: the whole message must not stay for it.
            message.data_body = bytes_of(Buffer::from(&**body));
        }
        Ok(Some(message))
    }

    /// The bytes of a message, in memory that has nothing else.
    async fn message(&mut self, length: usize) -> Result<Bytes, Status> {
        if length > 0 && !self.some().await? {
            return Err(broken_off());
        }
        let lead = lead(&self.rest[..length.min(self.rest.len())]);
        let end = lead + length;
        let mut memory = MutableBuffer::with_capacity(end);
        memory.resize(lead, 0);
        while memory.len() < end {
            if !self.some().await? {
                return Err(broken_off());
            }
            let part = self.rest.split_to(self.rest.len().min(end - memory.len()));
            memory.extend_from_slice(&part);
        }
        Ok(bytes_of(memory.into()).slice(lead..))
    }

    /// Waits until there is something to read; `false` at the end.
    async fn some(&mut self) -> Result<bool, Status> {
        while self.rest.is_empty() {
            match poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                // What is no data are trailers, of which clients have none.
                Some(frame) => self.rest = frame?.into_data().unwrap_or_default(),
                None if self.body.is_end_stream() => return Ok(false),
                // The connection was closed without an error, or the stream reset without one: it is not complete.
                None => return Err(Status::cancelled("the client broke off its stream")),
            }
        }
        Ok(true)
    }
}

fn bytes_of(buffer: Buffer) -> Bytes {
    Bytes::from_owner(ScalarBuffer::<u8>::from(buffer))
}

fn broken_off() -> Status {
    Status::invalid_argument("the stream breaks off within a message")
}

/// How many bytes to put before a message so that its body is aligned, as far as its beginning tells.
fn lead(beginning: &[u8]) -> usize {
    let mut rest = beginning;
    loop {
        let key = decode_length_delimiter(&mut rest);
        let (Ok(key), Ok(length)) = (key, decode_length_delimiter(&mut rest)) else { return 0 };
        match rest.get(length..) {
            _ if key == BODY_KEY => return (beginning.len() - rest.len()).wrapping_neg() % ALIGNMENT,
            Some(after) if key & 7 == BODY_KEY & 7 => rest = after,
            _ => return 0,
        }
    }
}

/// The body of an answer that is batches: the messages, then how they ended.
pub(crate) struct Answer {
    messages: Messages,
    /// The body of the message of which all else is sent.
    data_body: Bytes,
    state: AnswerState,
}

enum AnswerState {
    Open,
    /// All messages are sent.
    Closing(Status),
    Ended,
}

impl Answer {
    pub(crate) fn new(messages: Messages) -> Self {
        Self { messages, data_body: Bytes::new(), state: AnswerState::Open }
    }

    /// The next messages as they are sent, up to where a body is to follow; none if there are none yet, or no more.
    fn next(&mut self, cx: &mut Context<'_>) -> Bytes {
        let mut bytes = Vec::new();
        while bytes.len() < TOGETHER && self.data_body.is_empty() {
            let Poll::Ready(message) = self.messages.poll_next_unpin(cx) else { break };
            let encoded = match message {
                Some(message) => message.and_then(|message| encode(message, &mut bytes)),
                None => Err(Status::ok("")),
            };
            match encoded {
                Ok(data_body) => self.data_body = data_body,
                Err(status) => {
                    self.state = AnswerState::Closing(status);
                    break;
                }
            }
        }
        bytes.into()
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.data_body.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(take(&mut self.data_body)))));
        }
        if let AnswerState::Open = self.state {
            let bytes = self.next(cx);
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        }
        match replace(&mut self.state, AnswerState::Ended) {
            AnswerState::Open => {
                self.state = AnswerState::Open;
                Poll::Pending
            }
            AnswerState::Closing(status) => {
                let mut trailers = HeaderMap::new();
                Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
            }
            AnswerState::Ended => Poll::Ready(None),
        }
    }
}

/// Appends a message as it is sent, but for a body that is not short, which follows it.
fn encode(mut message: FlightData, bytes: &mut Vec<u8>) -> Result<Bytes, Status> {
    let body = take(&mut message.data_body);
    let key_and_length = match body.len() {
        0 => 0,
        length => length_delimiter_len(BODY_KEY) + length_delimiter_len(length),
    };
    let length = message.encoded_len() + key_and_length + body.len();
    let prefix = u32::try_from(length).map_err(|_| {
        Status::resource_exhausted(format!("a row takes a message of {length} bytes, and gRPC has none of 4 GiB"))
    })?;
    let failed = |error: EncodeError| Status::internal(error.to_string());
    bytes.push(0);
    bytes.extend_from_slice(&prefix.to_be_bytes());
    message.encode(bytes).map_err(failed)?;
    if !body.is_empty() {
        encode_length_delimiter(BODY_KEY, bytes).map_err(failed)?;
        encode_length_delimiter(body.len(), bytes).map_err(failed)?;
    }
    if body.len() > SHORT {
        return Ok(body);
    }
    bytes.extend_from_slice(&body);
    Ok(Bytes::new())
}

/// A body of some bytes, in frames of some size.
#[cfg(any(test, fuzzing))]
pub(crate) struct Frames(pub Bytes, pub usize);

#[cfg(any(test, fuzzing))]
impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let length = self.1.min(self.0.len());
        Poll::Ready((length > 0).then(|| Ok(Frame::data(self.0.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use arrow_flight::FlightDescriptor;
    use futures::TryStreamExt;
    use futures::executor::block_on;

    use super::*;

    fn received(bytes: &[u8], frame: usize, most: usize) -> Result<Vec<FlightData>, Status> {
        let body = Body::new(Frames(Bytes::copy_from_slice(bytes), frame));
        block_on(Sent::new(body, most).messages().try_collect())
    }

    /// What an answer is made of, and its trailers.
    fn sent(messages: Vec<Result<FlightData, Status>>) -> (Vec<u8>, HeaderMap) {
        let mut answer = Answer::new(stream::iter(messages).boxed());
        let (mut bytes, mut trailers) = (Vec::new(), None);
        while let Some(frame) = block_on(poll_fn(|cx| Pin::new(&mut answer).poll_frame(cx))) {
            match frame.expect("a frame").into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        (bytes, trailers.expect("trailers"))
    }

    fn messages() -> Vec<FlightData> {
        let with = |header: usize, body: usize| FlightData {
            data_header: vec![1; header].into(),
            data_body: vec![2; body].into(),
            ..Default::default()
        };
        let described = FlightData {
            flight_descriptor: Some(FlightDescriptor::new_cmd("SELECT 1")),
            app_metadata: vec![3; 1000].into(),
            ..with(7, 70)
        };
        let lengths = [(0, 0), (0, 1), (1, 0), (100, SHORT), (101, SHORT + 1), (200_000, 100), (300, 300_000)];
        lengths.map(|(header, body)| with(header, body)).into_iter().chain([described]).collect()
    }

    #[test]
    fn messages_are_as_protobuf_has_them() {
        for message in messages() {
            let (bytes, trailers) = sent(vec![Ok(message.clone())]);
            let encoded = message.encode_to_vec();
            assert_eq!(bytes[0], 0);
            assert_eq!(bytes[1..PREFIX], u32::try_from(encoded.len()).unwrap().to_be_bytes());
            assert_eq!(bytes[PREFIX..], encoded);
            assert_eq!(trailers["grpc-status"], "0");
        }
    }

    #[test]
    fn what_is_sent_arrives_in_frames_of_any_size() {
        let (bytes, _) = sent(messages().into_iter().map(Ok).collect());
        for frame in [1, 4, 5, 6, 63, 1000, 65_536, usize::MAX] {
            assert_eq!(received(&bytes, frame, usize::MAX).unwrap(), messages(), "{frame}");
        }
    }

    #[test]
    fn bodies_are_aligned_and_keep_no_more_than_they_hold() {
        let (bytes, _) = sent(messages().into_iter().map(Ok).collect());
        let large = received(&bytes, 65_536, usize::MAX).unwrap().remove(6);
        assert_eq!(large.data_body.as_ptr() as usize % ALIGNMENT, 0);
        // Whether the body is where it was in its message, behind as much metadata.
        let stays = |metadata: usize| {
            let padded = FlightData { app_metadata: vec![0; metadata].into(), ..large.clone() };
            let (bytes, _) = sent(vec![Ok(padded)]);
            let padded = received(&bytes, 65_536, usize::MAX).unwrap().remove(0);
            assert_eq!(padded.data_body, large.data_body);
            assert_eq!(padded.data_body.as_ptr() as usize % ALIGNMENT, 0);
            let distance = (padded.data_body.as_ptr() as usize).wrapping_sub(padded.app_metadata.as_ptr() as usize);
            distance == metadata + length_delimiter_len(BODY_KEY) + length_delimiter_len(large.data_body.len())
        };
        assert!(stays(1000));
        assert!(!stays(20_000));
        assert_eq!(lead(&[]), 0);
        assert_eq!(lead(&[0xff; 20]), 0);
        let message =
            FlightData { data_header: vec![1; 61].into(), data_body: vec![2; 9].into(), ..Default::default() };
        // 2 of the header's key and length, 61 of it, 3 of the body's.
        assert_eq!(lead(&message.encode_to_vec()), 62);
        assert_eq!(lead(&message.encode_to_vec()[..66]), 62);
        assert_eq!(lead(&message.encode_to_vec()[..60]), 0);
    }

    #[test]
    fn streams_that_break_off() {
        let (bytes, _) = sent(messages().into_iter().rev().map(Ok).collect());
        for end in (0..2000).chain([bytes.len() - 1]) {
            let whole = received(&bytes[..end], 512, usize::MAX);
            let length = messages().pop().unwrap().encoded_len() + PREFIX;
            assert_eq!(whole.is_ok(), end == 0 || end == length, "{end}");
        }
    }

    #[test]
    fn a_stream_that_was_reset_is_not_complete() {
        /// A body as hyper gives it after a reset without an error: nothing more comes, and it has not ended.
        struct Reset(Frames);

        impl http_body::Body for Reset {
            type Data = Bytes;
            type Error = Status;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Pin::new(&mut self.0).poll_frame(cx)
            }

            fn is_end_stream(&self) -> bool {
                false
            }
        }

        let (bytes, _) = sent(messages().into_iter().map(Ok).collect());
        let reset = Body::new(Reset(Frames(bytes.into(), 1000)));
        let received: Vec<_> = block_on(Sent::new(reset, usize::MAX).messages().collect());
        let (last, whole) = received.split_last().unwrap();
        assert!(whole.iter().all(Result::is_ok));
        assert_eq!((whole.len(), last.as_ref().unwrap_err().code()), (messages().len(), tonic::Code::Cancelled));
    }

    #[test]
    fn messages_that_are_refused() {
        let message = |bytes: &[u8]| received(bytes, 100, 9).unwrap_err();
        assert_eq!(
            message(&[0, 0, 0, 0, 10]).message(),
            "message_bytes: a message has 10 bytes, of 9 that are allowed"
        );
        assert_eq!(message(&[1, 0, 0, 0, 1, 0]).code(), tonic::Code::Internal);
        assert_eq!(message(&[0, 0, 0, 0, 2, 0xff, 0xff]).code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn an_error_ends_an_answer() {
        let first = messages().remove(1);
        let (bytes, trailers) = sent(vec![Ok(first.clone()), Err(Status::not_found("gone")), Ok(first.clone())]);
        assert_eq!(received(&bytes, 100, 100).unwrap(), [first]);
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"5".parse().unwrap(), &"gone".parse().unwrap())
        );
    }
}
