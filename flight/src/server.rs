//! A server: where it listens, what it begins with, and how it ends.

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use arrow_quant_bounds::bounded;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::routing::get;
use datafusion::prelude::SessionContext;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};
use tower::util::MapResponseLayer;

use crate::action::Action;
use crate::auth::{Authenticator, Credentials};
use crate::error::ServeError;
use crate::gate::Gate;
use crate::input::limit_named;
use crate::interrupt::Interruptible;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::queries::Admission;
use crate::service::{Flight, State};
use crate::session::Sessions;
use crate::tls::{Encryption, TlsFiles};
use crate::{connections, tables};

/// The protocol, for clients that ask the server what it speaks.
const DESCRIPTORS: &[u8] = include_bytes!("../proto/flight.bin");

/// How much a client may send before the server has taken it, for one call and for a connection.
const CALL_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Bytes of a message of those who ask for the server's health or methods, which everyone may.
const PROBE_BYTES: usize = 4 << 10;

/// How a server is found and what it demands.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where clients connect; port 0 is any that is free.
    pub listen: SocketAddr,
    /// Where Prometheus reads metrics, over HTTP and without authentication.
    pub metrics_listen: Option<SocketAddr>,
    /// Encryption; plain text without.
    pub tls: Option<TlsFiles>,
    /// Who may connect; everyone without.
    pub credentials: Option<Credentials>,
    /// Whether addresses other machines reach may be served without encryption or authentication.
    pub insecure: bool,
    /// Whether everything that changes something is refused.
    pub read_only: bool,
    /// Where tables that clients store are kept as Parquet; in memory without.
    pub ingest_directory: Option<PathBuf>,
    /// Threads that compute queries.
    pub threads: usize,
    /// What is allowed.
    pub limits: Limits,
    /// The gRPC codes of errors that are not DataFusion's.
    pub classify: fn(&(dyn Error + 'static)) -> Option<Code>,
    /// How functions of the session learn that their query is not wanted any more.
    pub interruptible: Interruptible,
}

/// A server that is bound to its addresses.
pub struct Server {
    state: Arc<State>,
    config: ServerConfig,
    tls: Option<Arc<Encryption>>,
    listener: TcpListener,
    metrics_listener: Option<TcpListener>,
    _threads: QueryThreads,
}

/// What a thread's stack may grow to. Optimizers descend a statement as deep as it is long; pages that are not reached are not
/// taken.
const STACK_BYTES: usize = 256 << 20;

/// The threads that compute queries. They are not waited for: what computes is stopped at its next step.
struct QueryThreads(Option<Runtime>);

impl QueryThreads {
    fn start(threads: usize) -> std::io::Result<(Self, Handle)> {
        try_threads(threads.max(1) + 1)?;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder
            .worker_threads(threads.max(1))
            .thread_name("query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        Ok((Self(Some(runtime)), handle))
    }
}

/// Starts and ends so many threads, because tokio panics where the system refuses one.
fn try_threads(threads: usize) -> std::io::Result<()> {
    let (shut, gate) = std::sync::mpsc::sync_channel::<()>(0);
    let gate = Arc::new(Mutex::new(gate));
    let start = |_| {
        let gate = Arc::clone(&gate);
        // Nothing is sent: it waits until the sender is gone.
        let wait = move || drop(gate.lock().map(|gate| gate.recv()));
        std::thread::Builder::new().stack_size(STACK_BYTES).spawn(wait)
    };
    let started: Vec<_> = (0..threads).map(start).collect();
    drop(shut);
    for thread in started {
        // It does nothing that could panic.
        let _ = thread?.join();
    }
    Ok(())
}

impl Drop for QueryThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Server {
    /// Binds the addresses. What `ctx` has as catalogs and schemas is served to everyone; functions, memory and disk limits are
    /// those of the session.
    ///
    /// # Errors
    /// If the configuration is not allowed, files cannot be read, or an address is taken.
    pub async fn bind(
        ctx: SessionContext,
        config: ServerConfig,
        actions: Vec<Arc<dyn Action>>,
    ) -> Result<Self, ServeError> {
        check(&config)?;
        let tls = config.tls.clone().map(Encryption::new).transpose()?.map(Arc::new);
        if let Some(directory) = &config.ingest_directory {
            tables::clear_staging(directory)?;
        }
        let (threads, handle) =
            QueryThreads::start(config.threads).map_err(|error| ServeError::io("threads of queries", error))?;
        let (listener, metrics_listener) = (
            listen(config.listen).await?,
            match config.metrics_listen {
                Some(address) => Some(listen(address).await?),
                None => None,
            },
        );
        let metrics = Metrics::new();
        let client_certificates = config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let authenticator =
            Authenticator::new(config.credentials.clone(), config.read_only, client_certificates, &config.limits);
        let state = Arc::new(State {
            sessions: Sessions::new(bounded(&ctx), config.ingest_directory.clone(), config.limits.clone()),
            authenticator,
            admission: Admission::new(config.limits.clone(), Arc::clone(&metrics)),
            metrics,
            limits: config.limits.clone(),
            threads: handle,
            read_only: config.read_only,
            classify: config.classify,
            interruptible: config.interruptible,
            actions: actions.into_iter().map(|action| (action.name(), action)).collect(),
            jobs: Default::default(),
            draining: Default::default(),
        });
        Ok(Self { state, config, tls, listener, metrics_listener, _threads: threads })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.config.listen)
    }

    /// What reads credentials and certificates anew.
    pub fn reloader(&self) -> Reloader {
        Reloader { state: Arc::clone(&self.state), tls: self.tls.clone() }
    }

    /// Where metrics are read.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_listener.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `shutdown`, then lets what runs come to its end, for as long as `drain_timeout` allows.
    ///
    /// # Errors
    /// If the transport fails.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        let Self { state, config, tls, listener, metrics_listener, _threads } = self;
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<FlightServiceServer<Flight>>().await;
        let reflection =
            |error: tonic_reflection::server::Error| ServeError::Configuration(format!("reflection: {error}"));
        let reflect = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let router = tonic::transport::Server::builder()
            .initial_stream_window_size(CALL_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(1 << 20)
            .http2_max_header_list_size(u32::try_from(config.limits.metadata_bytes).unwrap_or(u32::MAX))
            // A client whose machine vanished is found out, and its queries end.
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .layer(MapResponseLayer::new(with_limit_named))
            .add_service(Gate::new(Arc::clone(&state)))
            .add_service(health_service.max_decoding_message_size(PROBE_BYTES))
            .add_service(reflect().build_v1().map_err(reflection)?.max_decoding_message_size(PROBE_BYTES))
            .add_service(reflect().build_v1alpha().map_err(reflection)?.max_decoding_message_size(PROBE_BYTES));

        let _metrics = metrics_listener.map(|listener| serve_metrics(Arc::clone(&state), listener));
        let _sweeper = AbortOnDropHandle::new(tokio::spawn(sweep(Arc::clone(&state))));
        let (stopping, gone) = (CancellationToken::new(), CancellationToken::new());
        let _drain = {
            let (state, stopping, gone) = (Arc::clone(&state), stopping.clone(), gone.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                shutdown.await;
                tracing::info!("stopping: nothing new is begun");
                state.draining.store(true, Ordering::Relaxed);
                health.set_not_serving::<FlightServiceServer<Flight>>().await;
                health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
                stopping.cancel();
                let patience = Box::pin(tokio::time::sleep(state.limits.drain_timeout));
                patience.await;
                tracing::warn!("drain_timeout: what still runs is cancelled");
                state.cancel_everything();
                // Clients are told why before their connections are closed.
                tokio::time::sleep(Duration::from_secs(1)).await;
                gone.cancel();
            }))
        };
        let incoming = connections::incoming(listener, tls, stopping.clone());
        let served = router.serve_with_incoming_shutdown(incoming, stopping.clone().cancelled_owned());
        let result = tokio::select! {
            result = served => result.map_err(ServeError::from),
            () = gone.cancelled() => Ok(()),
        };
        state.cancel_everything();
        result
    }
}

/// Gives a server that runs other credentials and certificates. Connections that are open stay.
pub struct Reloader {
    state: Arc<State>,
    tls: Option<Arc<Encryption>>,
}

impl Reloader {
    /// Lets in who is in `credentials`, if the server has credentials, and reads the files of TLS anew.
    ///
    /// # Errors
    /// If the files cannot be read or used; then everything is as before.
    pub fn reload(&self, credentials: Option<Credentials>) -> Result<(), ServeError> {
        if let Some(tls) = &self.tls {
            tls.reload()?;
        }
        if let Some(credentials) = credentials {
            self.state.authenticator.reload(credentials);
        }
        Ok(())
    }
}

/// Messages that are too large are refused before we see them.
fn with_limit_named<B>(mut response: http::Response<B>) -> http::Response<B> {
    if let Some(status) = Status::from_header_map(response.headers()).filter(|status| status.code() == Code::OutOfRange)
    {
        // The refusal stays as it was if its new text cannot be a header.
        let _ = limit_named(status).add_header(response.headers_mut());
    }
    response
}

impl State {
    fn cancel_everything(&self) {
        for session in self.sessions.all() {
            session.cancel();
        }
        for (_, cancelled) in crate::lock::locked(&self.jobs).values() {
            cancelled.cancel();
        }
    }

    fn observe(&self) {
        let sessions = self.sessions.all();
        let total = |count: &dyn Fn(&crate::session::Session) -> usize| {
            sessions.iter().map(|session| count(session)).sum::<usize>() as i64
        };
        self.metrics.sessions.set(sessions.len() as i64);
        self.metrics.results_open.set(total(&|session| session.queries.len()));
        self.metrics.statements_open.set(total(&|session| session.statements.len()));
        let reserved = self.sessions.base().runtime_env().memory_pool.reserved();
        self.metrics.memory_reserved.set(i64::try_from(reserved).unwrap_or(i64::MAX));
    }
}

/// Refuses what would let strangers in.
fn check(config: &ServerConfig) -> Result<(), ServeError> {
    if config.insecure || config.listen.ip().is_loopback() {
        return Ok(());
    }
    let address = config.listen;
    let Some(tls) = &config.tls else {
        return Err(ServeError::Unencrypted { address });
    };
    if config.credentials.is_none() && tls.client_ca.is_none() {
        return Err(ServeError::Unauthenticated { address });
    }
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source })
}

/// Ends sessions and results that nobody used for longer than they live.
async fn sweep(state: Arc<State>) {
    let shortest = state.limits.session_lifetime.min(state.limits.result_lifetime);
    let mut sweeps = tokio::time::interval((shortest / 4).clamp(Duration::from_millis(50), Duration::from_secs(30)));
    loop {
        sweeps.tick().await;
        state.sessions.sweep();
    }
}

fn serve_metrics(state: Arc<State>, listener: TcpListener) -> AbortOnDropHandle<()> {
    let text = async |Shared(state): Shared<Arc<State>>| {
        state.observe();
        let kind = [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")];
        match state.metrics.text() {
            Ok(text) => (StatusCode::OK, kind, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, kind, error.to_string()),
        }
    };
    let router = axum::Router::new().route("/metrics", get(text)).with_state(state);
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    }))
}
