//! Messages of batches in the frames that gRPC sends them in (gRPC over HTTP/2, "Length-Prefixed-Message"), which pass by tonic: it
//! copies each message once on its way in and once on its way out, and what it hands over is not aligned as Arrow needs it, so that
//! Arrow copies it again. Here a body is copied once on its way in, to where Arrow can use it, and not at all on its way out.

use std::future::poll_fn;
use std::mem::take;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use arrow::buffer::{Buffer, MutableBuffer, ScalarBuffer};
use arrow_flight::FlightData;
use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt, stream};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use prost::{Message, decode_length_delimiter, encode_length_delimiter};
use tonic::Status;
use tonic::body::Body;

use crate::session::locked;
use crate::stream::Messages;

/// Bytes before a message: whether it is compressed, and its length, big-endian.
const PREFIX: usize = 5;

/// The key of `data_body` (field 1000, length-delimited), the last of a message's fields.
const BODY_KEY: usize = 1000 << 3 | 2;

/// How Arrow's buffers are aligned.
const ALIGNMENT: usize = 64;

/// A body that is shorter is sent along with what precedes it.
const SHORT: usize = 16 << 10;

/// What is handed around tonic in the extensions of a request or a response, to be taken once.
pub(crate) struct Aside<T>(Arc<Mutex<Option<T>>>);

impl<T> Aside<T> {
    pub fn new(value: T) -> Self {
        Self(Arc::new(Mutex::new(Some(value))))
    }

    pub fn take(&self) -> Option<T> {
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
    pub fn new(body: Body, most: usize) -> Self {
        Self { body, rest: Bytes::new(), most }
    }

    /// The messages; ends with an error where the stream breaks off, a message is too large or is none.
    pub fn messages(self) -> impl Stream<Item = Result<FlightData, Status>> + Send + 'static {
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
            return Err(Status::unimplemented("the stream has a compressed message, which this server does not take"));
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
        if message.data_body.len() < length / 2 {
            // The memory of a batch is counted by its body, and the whole message must not stay for it.
            message.data_body = Bytes::copy_from_slice(&message.data_body);
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
        Ok(Bytes::from_owner(ScalarBuffer::<u8>::from(Buffer::from(memory))).slice(lead..))
    }

    /// Waits until there is something to read; `false` at the end.
    async fn some(&mut self) -> Result<bool, Status> {
        while self.rest.is_empty() {
            match poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                // What is no data are trailers, of which clients have none.
                Some(frame) => self.rest = frame?.into_data().unwrap_or_default(),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
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
    ended: bool,
}

impl Answer {
    pub fn new(messages: Messages) -> Self {
        Self { messages, data_body: Bytes::new(), ended: false }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.data_body.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(take(&mut self.data_body)))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let encoded = match ready!(self.messages.poll_next_unpin(cx)) {
            Some(message) => message.and_then(encode),
            None => Err(Status::ok("")),
        };
        match encoded {
            Ok((start, data_body)) => {
                self.data_body = data_body;
                Poll::Ready(Some(Ok(Frame::data(start))))
            }
            Err(status) => {
                self.ended = true;
                let mut trailers = HeaderMap::new();
                Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
            }
        }
    }
}

/// A message as it is sent: all but a body that is not short, and that body.
fn encode(mut message: FlightData) -> Result<(Bytes, Bytes), Status> {
    let body = take(&mut message.data_body);
    let mut start = vec![0; PREFIX];
    message.encode(&mut start).map_err(|error| Status::internal(error.to_string()))?;
    if !body.is_empty() {
        for number in [BODY_KEY, body.len()] {
            encode_length_delimiter(number, &mut start).map_err(|error| Status::internal(error.to_string()))?;
        }
    }
    let length = start.len() - PREFIX + body.len();
    let length = u32::try_from(length).map_err(|_| {
        Status::resource_exhausted(format!("a row takes a message of {length} bytes, and gRPC has none of 4 GiB"))
    })?;
    start[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    if body.len() > SHORT {
        return Ok((start.into(), body));
    }
    start.extend_from_slice(&body);
    Ok((start.into(), Bytes::new()))
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
    fn messages_that_are_refused() {
        let message = |bytes: &[u8]| received(bytes, 100, 9).unwrap_err();
        assert_eq!(
            message(&[0, 0, 0, 0, 10]).message(),
            "message_bytes: a message has 10 bytes, of 9 that are allowed"
        );
        assert_eq!(message(&[1, 0, 0, 0, 1, 0]).code(), tonic::Code::Unimplemented);
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
