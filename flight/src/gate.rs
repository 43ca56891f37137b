//! Who calls is known before anything is received of what they send; batches pass by tonic, both ways.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tracing::Instrument;

use crate::connections::Peer;
use crate::framing::{Answer, Aside, Sent};
use crate::service::{Flight, State, certificate};
use crate::stream::Messages;

/// Bytes of a handshake, the one call of those who are not known yet: user, password and what is around them.
const HANDSHAKE_BYTES: usize = 16 << 10;

/// Bytes of a call that sends no batches; more where longer statements are allowed.
const CALL_BYTES: usize = 4 << 20;

/// How long a client may take to send such a call.
const CALL_TIME: Duration = Duration::from_secs(60);

/// The Flight service behind its authentication: a call is refused by its headers alone, and only streams of batches may send
/// messages as large as `message_bytes`.
#[derive(Clone)]
pub(crate) struct Gate {
    state: Arc<State>,
    handshakes: FlightServiceServer<Flight>,
    calls: FlightServiceServer<Flight>,
}

/// What a call sends.
enum Sends {
    Credentials,
    Message,
    Batches,
}

impl Gate {
    pub(crate) fn new(state: Arc<State>) -> Self {
        let most = state.limits.message_bytes;
        let server = |bytes: usize| {
            FlightServiceServer::new(Flight(Arc::clone(&state)))
                .max_decoding_message_size(bytes.min(most))
                .max_encoding_message_size(usize::MAX)
        };
        let call_bytes = CALL_BYTES.max(state.limits.statement_bytes.saturating_mul(2));
        let (handshakes, calls) = (server(HANDSHAKE_BYTES), server(call_bytes));
        Self { state, handshakes, calls }
    }
}

impl NamedService for Gate {
    const NAME: &'static str = <FlightServiceServer<Flight> as NamedService>::NAME;
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (method, sends) = method(request.uri().path());
        let client = request.extensions().get::<Peer>().and_then(|peer| peer.address);
        // All that is logged of the call says whose it is.
        let span = match client {
            Some(client) => tracing::info_span!("call", method, %client),
            None => tracing::info_span!("call", method),
        };
        if matches!(sends, Sends::Credentials) {
            // It says who calls by itself, as the handler finds out.
            return self.handshakes.call(request.map(in_time)).instrument(span).boxed();
        }
        let mut server = self.calls.clone();
        let state = Arc::clone(&self.state);
        async move {
            let metadata = MetadataMap::from_headers(request.headers().clone());
            let certificate = certificate(request.extensions());
            let caller = state.authenticator.caller(&metadata, certificate.as_deref());
            match state.counted_refusals(method, caller).await {
                Ok(caller) => drop(request.extensions_mut().insert(caller)),
                Err(status) => return Ok(status.into_http()),
            }
            let request = match sends {
                Sends::Batches => {
                    let (mut parts, body) = request.into_parts();
                    parts.extensions.insert(Aside::new(Sent::new(body, state.limits.message_bytes)));
                    Request::from_parts(parts, Body::empty())
                }
                _ => request.map(in_time),
            };
            let mut response = server.call(request).await?;
            if let Some(messages) = response.extensions_mut().remove::<Aside<Messages>>().and_then(|aside| aside.take())
            {
                *response.body_mut() = Body::new(Answer::new(messages));
            }
            Ok(response)
        }
        .instrument(span)
        .boxed()
    }
}

/// The method of a path, and what its calls send.
fn method(path: &str) -> (&'static str, Sends) {
    match path.rsplit('/').next().unwrap_or_default() {
        "Handshake" => ("Handshake", Sends::Credentials),
        "DoPut" => ("DoPut", Sends::Batches),
        "DoExchange" => ("DoExchange", Sends::Batches),
        "ListFlights" => ("ListFlights", Sends::Message),
        "GetFlightInfo" => ("GetFlightInfo", Sends::Message),
        "PollFlightInfo" => ("PollFlightInfo", Sends::Message),
        "GetSchema" => ("GetSchema", Sends::Message),
        "DoGet" => ("DoGet", Sends::Message),
        "DoAction" => ("DoAction", Sends::Message),
        "ListActions" => ("ListActions", Sends::Message),
        // The server says that it has no such method.
        _ => ("unknown", Sends::Message),
    }
}

/// The body of a call that must have arrived after [`CALL_TIME`].
fn in_time(body: Body) -> Body {
    Body::new(Timed { body, late: Box::pin(sleep(CALL_TIME)) })
}

struct Timed {
    body: Body,
    late: Pin<Box<Sleep>>,
}

impl http_body::Body for Timed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        self.late.as_mut().poll(cx).map(|()| {
            let seconds = CALL_TIME.as_secs();
            Some(Err(Status::deadline_exceeded(format!("the call was not sent within {seconds} s"))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
