//! Actions: those of Flight and Flight SQL, and those that the embedding program adds.

use std::sync::Arc;
use std::time::Instant;

use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
    ActionCreatePreparedStatementRequest, Any, Command,
};
use arrow_flight::{
    Action as ActionRequest, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo,
    RenewFlightEndpointRequest, Result as ActionResult,
};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};
use tracing::Instrument;
use uuid::Uuid;

use crate::action::{Action, ActionCall};
use crate::auth::Caller;
use crate::lock::locked;
use crate::options::{CloseSessionResult, SetSessionOptionsRequest};
use crate::results::parse_handle;
use crate::service::{Asked, Call, State, once, packed};

/// The actions of the protocols, with their descriptions.
const STANDARD: [(&str, &str); 9] = [
    ("CreatePreparedStatement", "Flight SQL: plans a statement to be run with different values"),
    ("ClosePreparedStatement", "Flight SQL: forgets a prepared statement"),
    ("CancelQuery", "Flight SQL: stops a query, by its FlightInfo (older form)"),
    ("CancelFlightInfo", "stops a query, by its FlightInfo"),
    ("RenewFlightEndpoint", "keeps a result longer"),
    ("SetSessionOptions", "sets options of the session"),
    ("GetSessionOptions", "gives the options of the session"),
    ("CloseSession", "ends the session: its queries, tables and statements"),
    ("cancel", "stops an action that runs: {\"id\": \"...\"}"),
];

impl State {
    /// All actions there are.
    pub(crate) fn action_types(&self) -> Vec<ActionType> {
        let own = self.actions.values().map(|action| (action.name(), action.description()));
        STANDARD
            .into_iter()
            .chain(own)
            .map(|(name, description)| ActionType { r#type: name.to_string(), description: description.to_string() })
            .collect()
    }

    /// Does what an action asks for.
    pub(crate) async fn act(
        self: &Arc<Self>,
        call: &Call,
        request: ActionRequest,
    ) -> Result<BoxStream<'static, Result<ActionResult, Status>>, Status> {
        let body = &request.body;
        let answer: Bytes = match request.r#type.as_str() {
            "CreatePreparedStatement" => {
                let request: ActionCreatePreparedStatementRequest = unpacked(body)?;
                packed(&self.create_prepared(call, request).await?)
            }
            "ClosePreparedStatement" => {
                let request: ActionClosePreparedStatementRequest = unpacked(body)?;
                self.close_prepared(call, &request);
                return Ok(stream::empty().boxed());
            }
            "CancelQuery" => {
                let request: ActionCancelQueryRequest = unpacked(body)?;
                let info = FlightInfo::decode(&*request.info).map_err(malformed)?;
                packed(&ActionCancelQueryResult { result: self.cancel_query(call, &info)?.into() })
            }
            "CancelFlightInfo" => {
                let request = CancelFlightInfoRequest::decode(body.clone()).map_err(malformed)?;
                let info =
                    request.info.ok_or_else(|| Status::invalid_argument("CancelFlightInfo has no FlightInfo"))?;
                CancelFlightInfoResult { status: self.cancel_query(call, &info)?.into() }.encode_to_vec().into()
            }
            "RenewFlightEndpoint" => {
                let request = RenewFlightEndpointRequest::decode(body.clone()).map_err(malformed)?;
                self.renew(call, request)?.encode_to_vec().into()
            }
            "SetSessionOptions" => {
                let request = SetSessionOptionsRequest::decode(body.clone()).map_err(malformed)?;
                self.set_options(call, request).encode_to_vec().into()
            }
            "GetSessionOptions" => self.options(call).encode_to_vec().into(),
            "cancel" => self.cancel_job(call, body)?,
            name => match self.actions.get(name) {
                Some(action) => return self.run_action(call, Arc::clone(action), request.body).await,
                None => return Err(self.no_such_action(name)),
            },
        };
        Ok(once(ActionResult { body: answer }))
    }

    fn no_such_action(&self, name: &str) -> Status {
        let known: Vec<_> = self.action_types().into_iter().map(|action| action.r#type).collect();
        let name: String = name.chars().take(100).collect();
        Status::unimplemented(format!("no action '{name}': there are {}", known.join(", ")))
    }

    /// Ends the caller's session, if it is theirs alone.
    pub(crate) fn close_session(&self, caller: &Caller) -> ActionResult {
        const CLOSED: i32 = 1;
        const NOT_CLOSEABLE: i32 = 3;
        // Without a handshake or cookies, all connections of a user share a session.
        let status = if caller.session.is_empty() {
            NOT_CLOSEABLE
        } else {
            self.sessions.close(caller);
            self.authenticator.forget(&caller.session);
            CLOSED
        };
        ActionResult { body: CloseSessionResult { status }.encode_to_vec().into() }
    }

    fn cancel_query(&self, call: &Call, info: &FlightInfo) -> Result<CancelStatus, Status> {
        let tickets = info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref()).map(|ticket| &ticket.ticket);
        let descriptor = info.flight_descriptor.iter().map(|descriptor| &descriptor.cmd);
        let mut ids = tickets.chain(descriptor).filter_map(|bytes| query_id(bytes));
        let Some(id) = ids.next() else {
            return Err(Status::invalid_argument("the FlightInfo has no ticket that this server gave"));
        };
        let found = self.sessions.of_user(&call.caller.user).iter().any(|session| session.queries.cancel(&id));
        if found { Ok(CancelStatus::Cancelled) } else { Err(Status::not_found("no such result: it is gone already")) }
    }

    fn renew(&self, call: &Call, request: RenewFlightEndpointRequest) -> Result<arrow_flight::FlightEndpoint, Status> {
        let endpoint =
            request.endpoint.ok_or_else(|| Status::invalid_argument("RenewFlightEndpoint has no endpoint"))?;
        let ticket = endpoint.ticket.as_ref().map(|ticket| &*ticket.ticket).unwrap_or_default();
        let Asked::Command(Command::TicketStatementQuery(ticket)) = Asked::parse(ticket)? else {
            return Err(Status::invalid_argument("the endpoint's ticket is not one that this server gave"));
        };
        self.find(call, &ticket)?.0.touch();
        Ok(arrow_flight::FlightEndpoint { expiration_time: Some(self.expiration()), ..endpoint })
    }

    fn cancel_job(&self, call: &Call, body: &[u8]) -> Result<Bytes, Status> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            id: String,
        }
        let Body { id } = serde_json::from_slice(body)
            .map_err(|error| Status::invalid_argument(format!("cancel: expects {{\"id\": \"...\"}}: {error}")))?;
        let jobs = locked(&self.jobs);
        let job = jobs.get(&id).filter(|(user, _)| *user == call.caller.user);
        if let Some((_, token)) = job {
            token.cancel();
        }
        Ok(format!("{{\"cancelled\":{}}}", job.is_some()).into())
    }

    async fn run_action(
        self: &Arc<Self>,
        call: &Call,
        action: Arc<dyn Action>,
        body: Bytes,
    ) -> Result<BoxStream<'static, Result<ActionResult, Status>>, Status> {
        if action.writes() {
            self.permit_write(call)?;
        }
        let place = if action.is_job() { Some(self.admission.enter().await?) } else { None };
        let id = Uuid::new_v4().to_string();
        let cancelled = CancellationToken::new();
        let job = Job::new(self, &id, &call.caller.user, cancelled.clone());
        let name = action.name();
        tracing::info!(action = name, query = id, user = %call.caller.user, "action");
        let announced = action.is_job().then(|| Ok(Bytes::from(format!("{{\"id\":\"{id}\"}}"))));
        let request = String::from_utf8_lossy(&body).into_owned();
        let id_of_action = id.clone();
        let context =
            ActionCall { body, user: Arc::clone(&call.caller.user), base: self.sessions.base().clone(), cancelled, id };
        let state = Arc::clone(self);
        let ended =
            Ended { action: name, user: Arc::clone(&call.caller.user), id: id_of_action, started: Instant::now() };
        let answers = self.on_threads(async move { action.run(context).await }).await;
        let answers = answers.and_then(|answers| answers.map_err(|error| self.status(&error, &request)));
        let answers = answers.inspect_err(|status| ended.log(status.code()))?;
        let answers = answers.map_err(move |error| state.status(&error, &request));
        let (sender, receiver) = mpsc::channel(1);
        self.threads.spawn(
            async move {
                // Both are held for as long as it runs.
                let _held = (place, job);
                let mut answers = stream::iter(announced).chain(answers);
                let code = loop {
                    let answer = tokio::select! {
                        () = sender.closed() => break Code::Cancelled,
                        answer = answers.next() => answer,
                    };
                    let Some(answer) = answer else { break Code::Ok };
                    let failed = answer.as_ref().err().map(Status::code);
                    if sender.send(answer.map(|body| ActionResult { body })).await.is_err() {
                        break Code::Cancelled;
                    }
                    if let Some(code) = failed {
                        break code;
                    }
                };
                ended.log(code);
            }
            .in_current_span(),
        );
        Ok(ReceiverStream::new(receiver).boxed())
    }
}

/// An action, for the log.
struct Ended {
    action: &'static str,
    user: Arc<str>,
    id: String,
    started: Instant,
}

impl Ended {
    /// Says how it ended.
    fn log(&self, code: Code) {
        let Self { action, user, id, started } = self;
        tracing::info!(action, query = id, %user, ?code, seconds = started.elapsed().as_secs_f64(), "action ended");
    }
}

/// An action that runs: known until it is dropped, which also stops what is left of it.
struct Job {
    state: Arc<State>,
    id: String,
    _stop: DropGuard,
}

impl Job {
    fn new(state: &Arc<State>, id: &str, user: &Arc<str>, cancelled: CancellationToken) -> Self {
        locked(&state.jobs).insert(id.to_string(), (Arc::clone(user), cancelled.clone()));
        Self { state: Arc::clone(state), id: id.to_string(), _stop: cancelled.drop_guard() }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        locked(&self.state.jobs).remove(&self.id);
    }
}

/// The query of a ticket or of a poll's descriptor.
fn query_id(bytes: &[u8]) -> Option<Uuid> {
    match Asked::parse(bytes).ok()? {
        Asked::Command(Command::TicketStatementQuery(ticket)) => Some(parse_handle(&ticket.statement_handle).ok()?.0),
        _ => None,
    }
}

fn malformed(error: prost::DecodeError) -> Status {
    Status::invalid_argument(format!("the body of the action cannot be decoded: {error}"))
}

/// A message of Flight SQL from the body of an action.
fn unpacked<M: arrow_flight::sql::ProstMessageExt>(body: &[u8]) -> Result<M, Status> {
    let any = Any::decode(body).map_err(malformed)?;
    any.unpack().ok().flatten().ok_or_else(|| Status::invalid_argument("the body of the action is another message"))
}
