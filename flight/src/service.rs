//! The RPCs of Flight, each in a few lines: who calls, what is asked, and the file that answers it.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arrow::datatypes::Schema;
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{Any, Command, ProstMessageExt};
use arrow_flight::{
    Action as ActionRequest, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest,
    HandshakeResponse, IpcMessage, PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
};
use arrow_quant_bounds::{QueryFault, while_planning};
use bytes::Bytes;
use datafusion::error::DataFusionError;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt, stream};
use prost::Message;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::metadata::MetadataValue;
use tonic::{Code, Extensions, Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::action::Action;
use crate::auth::{Authenticator, Caller};
use crate::connections::Peer;
use crate::framing::{Aside, Sent};
use crate::interrupt::Interruptible;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::queries::{Admission, cancelled, failed};
use crate::session::{Session, Sessions};
use crate::status::{Classify, status_of};
use crate::stream::{Messages, too_late};

/// The cookie that makes one connection's session its own.
pub(crate) const COOKIE: &str = "arrow_flight_session_id";

/// What all RPCs share.
pub(crate) struct State {
    pub sessions: Sessions,
    pub authenticator: Authenticator,
    pub admission: Admission,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    /// Where queries are planned and computed, so that they keep nobody from being answered.
    pub threads: tokio::runtime::Handle,
    pub read_only: bool,
    pub classify: Classify,
    pub interruptible: Interruptible,
    pub actions: BTreeMap<&'static str, Arc<dyn Action>>,
    /// Actions that run, with the user who may cancel them.
    pub jobs: Mutex<HashMap<String, (Arc<str>, CancellationToken)>>,
    /// Set once the server was told to stop: nothing new begins.
    pub draining: AtomicBool,
}

/// One RPC's caller and session.
pub(crate) struct Call {
    pub caller: Caller,
    pub session: Arc<Session>,
}

impl State {
    pub(crate) fn status(&self, error: &DataFusionError, request: &str) -> Status {
        status_of(error, self.classify, request)
    }

    pub(crate) fn permit_write(&self, call: &Call) -> Result<(), Status> {
        call.caller.permit_write(self.read_only)
    }

    /// Runs work on the query threads; dropped, the work is stopped.
    pub(crate) async fn on_threads<T, F>(&self, work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        AbortOnDropHandle::new(self.threads.spawn(work)).await.map_err(failed)
    }

    /// Plans something, on a thread that waits for nobody: planning cannot be interrupted between its steps, and others are answered
    /// meanwhile. Its place is taken until it has really ended, even if nobody waits for it any more.
    pub(crate) async fn planned<T, F>(&self, work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let place = self.admission.plan().await?;
        let (wanted, unwanted) = oneshot::channel::<()>();
        let threads = self.threads.clone();
        let planning = self.threads.spawn_blocking(move || {
            let _place = place;
            while_planning(|| {
                threads.block_on(async move {
                    tokio::select! {
                        planned = work => Some(planned),
                        _ = unwanted => None,
                    }
                })
            })
        });
        let planned = tokio::time::timeout(self.limits.query_timeout, planning).await;
        drop(wanted);
        match planned {
            Err(_) => Err(too_late()),
            Ok(Ok(Some(planned))) => Ok(planned),
            Ok(Ok(None)) => Err(cancelled()),
            Ok(Err(error)) => Err(failed(error)),
        }
    }

    /// The caller that the gate let in, and their session; refused once the server is being stopped.
    async fn call(&self, extensions: &Extensions) -> Result<Call, Status> {
        let caller = caller(extensions)?;
        if self.draining.load(Ordering::Relaxed) {
            return Err(Status::unavailable("the server stops: nothing new is begun"));
        }
        let session = self.sessions.of(&caller).await?;
        Ok(Call { caller, session })
    }

    /// Counts the requests that are refused, gives the answer of the others.
    pub(crate) async fn counted_refusals<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let result = work.await;
        if let Err(status) = &result {
            self.count(method, Some(status));
        }
        result
    }

    fn count(&self, method: &'static str, refused: Option<&Status>) {
        self.metrics.request(method, refused.map_or(Code::Ok, Status::code));
        let Some(status) = refused else { return };
        // As a value in quotes, for the message may repeat what the client wrote, with line ends.
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => {
                tracing::warn!(code = ?status.code(), reason = ?status.message(), "refused");
            }
            code => tracing::info!(?code, reason = ?status.message(), "refused"),
        }
    }

    /// Counts a request and gives its answer. A panic is a status, not a broken connection.
    async fn counted<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let result = std::panic::AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|payload| {
            let fault = QueryFault::of_panic(payload.as_ref());
            tracing::error!(method, %fault, "a request failed");
            Err(Status::internal(fault.to_string()))
        });
        self.count(method, result.as_ref().err());
        result
    }
}

/// Who the gate found to call.
fn caller(extensions: &Extensions) -> Result<Caller, Status> {
    extensions.get().cloned().ok_or_else(|| Status::unauthenticated("nobody has said who calls"))
}

/// The peer's certificate, of a connection with mutual TLS.
pub(crate) fn certificate(extensions: &http::Extensions) -> Option<Arc<[u8]>> {
    extensions.get::<Peer>()?.certificate.clone()
}

/// An answer to a caller whom only their user name tells apart: a client that keeps cookies gets a session of its own.
fn with_cookie<T>(call: &Call, answer: T) -> Response<T> {
    let mut response = Response::new(answer);
    if call.caller.session.is_empty() {
        let cookie = format!("{COOKIE}={}; HttpOnly; SameSite=Strict", Uuid::new_v4());
        if let Ok(cookie) = MetadataValue::try_from(cookie) {
            response.metadata_mut().insert("set-cookie", cookie);
        }
    }
    response
}

/// The batches a client sends, which the gate has kept from tonic.
fn messages(
    extensions: &Extensions,
) -> Result<impl Stream<Item = Result<FlightData, Status>> + Send + 'static, Status> {
    let sent = extensions.get::<Aside<Sent>>().and_then(Aside::take);
    Ok(sent.ok_or_else(|| Status::internal("the stream was read already"))?.messages())
}

/// Batches as an answer, which the gate sends in the place of tonic's empty one.
fn batches(messages: Messages) -> Response<Messages> {
    let mut response = Response::new(stream::empty().boxed());
    response.extensions_mut().insert(Aside::new(messages));
    response
}

/// A schema as Flight SQL's messages hold it.
pub(crate) fn schema_bytes(schema: &Schema) -> Result<Bytes, Status> {
    let message: Result<IpcMessage, _> = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into();
    message
        .map(|IpcMessage(bytes)| bytes)
        .map_err(|error| Status::internal(format!("the schema cannot be encoded: {error}")))
}

/// What bytes of a descriptor or ticket ask for: a command of Flight SQL, or, from plain Flight clients, SQL as text.
#[derive(Debug)]
pub(crate) enum Asked {
    Command(Command),
    Sql(String),
}

impl Asked {
    /// # Errors
    /// If the bytes are neither.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Status> {
        if let Ok(any) = Any::decode(bytes)
            && any.type_url.starts_with("type.googleapis.com/")
        {
            let command = Command::try_from(any).map_err(|error| Status::invalid_argument(error.to_string()))?;
            return Ok(Self::Command(command));
        }
        match std::str::from_utf8(bytes) {
            Ok(sql) if !sql.trim().is_empty() => Ok(Self::Sql(sql.to_string())),
            _ => Err(Status::invalid_argument("neither a command of Flight SQL nor a SQL statement as text")),
        }
    }
}

/// A message packed as commands and tickets are.
pub(crate) fn packed(message: &impl ProstMessageExt) -> Bytes {
    message.as_any().encode_to_vec().into()
}

/// The Flight service over a session.
#[derive(Clone)]
pub(crate) struct Flight(pub Arc<State>);

type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// One answer.
pub(crate) fn once<T: Send + 'static>(answer: T) -> Answers<T> {
    stream::iter([Ok(answer)]).boxed()
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Messages;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Messages;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let (metadata, extensions, mut messages) = request.into_parts();
        let work = async {
            let (_, token) = if metadata.contains_key("authorization") {
                self.0.authenticator.handshake(&metadata, certificate(&extensions).as_deref()).await?
            } else {
                let first = messages.message().await?.unwrap_or_default();
                self.0.authenticator.handshake_payload(&first.payload, certificate(&extensions).as_deref()).await?
            };
            let answer = HandshakeResponse { protocol_version: 0, payload: token.clone().into_bytes().into() };
            let mut response: Response<Self::HandshakeStream> = Response::new(once(answer));
            let header = MetadataValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Status::internal("the token cannot be sent"))?;
            response.metadata_mut().insert("authorization", header);
            Ok(response)
        };
        self.0.counted("Handshake", work).await
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let (_, extensions, criteria) = request.into_parts();
        let work = async {
            let call = self.0.call(&extensions).await?;
            let flights = self.0.flights(&call, &criteria.expression).await?;
            Ok(with_cookie(&call, stream::iter(flights.into_iter().map(Ok)).boxed()))
        };
        self.0.counted("ListFlights", work).await
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let (_, extensions, descriptor) = request.into_parts();
        let work = async {
            let call = self.0.call(&extensions).await?;
            let info = self.0.flight_info(&call, descriptor).await?;
            Ok(with_cookie(&call, info))
        };
        self.0.counted("GetFlightInfo", work).await
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let (_, extensions, descriptor) = request.into_parts();
        let work = async {
            let call = self.0.call(&extensions).await?;
            let info = self.0.poll(&call, descriptor).await?;
            Ok(with_cookie(&call, info))
        };
        self.0.counted("PollFlightInfo", work).await
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let (_, extensions, descriptor) = request.into_parts();
        let work = async {
            let call = self.0.call(&extensions).await?;
            let schema = self.0.schema(&call, descriptor).await?;
            Ok(with_cookie(&call, SchemaResult { schema: schema_bytes(&schema)? }))
        };
        self.0.counted("GetSchema", work).await
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let (_, extensions, ticket) = request.into_parts();
        let work = async {
            let call = self.0.call(&extensions).await?;
            self.0.fetch(&call, &ticket.ticket).await.map(batches)
        };
        self.0.counted("DoGet", work).await
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let (_, extensions, _) = request.into_parts();
        let work = async {
            let call = self.0.call(&extensions).await?;
            self.0.put(&call, messages(&extensions)?).await.map(|result| Response::new(once(result)))
        };
        self.0.counted("DoPut", work).await
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        let (_, extensions, _) = request.into_parts();
        let work = async {
            let call = self.0.call(&extensions).await?;
            Arc::clone(&self.0).exchange(call, messages(&extensions)?).await.map(batches)
        };
        self.0.counted("DoExchange", work).await
    }

    async fn do_action(&self, request: Request<ActionRequest>) -> Result<Response<Self::DoActionStream>, Status> {
        let (_, extensions, action) = request.into_parts();
        let work = async {
            let caller = caller(&extensions)?;
            if action.r#type == "CloseSession" {
                return Ok(Response::new(once(self.0.close_session(&caller))));
            }
            let call = self.0.call(&extensions).await?;
            let answers = self.0.act(&call, action).await?;
            Ok(with_cookie(&call, answers))
        };
        self.0.counted("DoAction", work).await
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let (_, extensions, _) = request.into_parts();
        let work = async {
            caller(&extensions)?;
            Ok(Response::new(stream::iter(self.0.action_types().into_iter().map(Ok)).boxed()))
        };
        self.0.counted("ListActions", work).await
    }
}
