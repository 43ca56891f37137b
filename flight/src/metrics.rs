//! Counters and gauges of the server, as Prometheus reads them.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tonic::Code;

/// The labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    code: String,
}

/// The label of a finished query.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    status: String,
}

/// What the server counts.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    queries: Family<Finished, Counter>,
    seconds: Histogram,
    pub queries_running: Gauge,
    pub queries_queued: Gauge,
    pub sessions: Gauge,
    pub results_open: Gauge,
    pub statements_open: Gauge,
    pub memory_reserved: Gauge,
    pub rows_sent: Counter,
    pub bytes_sent: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("arrow_quant");
        // From a millisecond to over an hour.
        let seconds = Histogram::new(exponential_buckets(0.001, 4.0, 12));
        let metrics = (Family::default(), Family::default());
        let (requests, queries): (Family<Request, Counter>, Family<Finished, Counter>) = metrics;
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        registry.register("requests", "Requests by method and gRPC code", requests.clone());
        registry.register("queries", "Finished queries by gRPC code", queries.clone());
        registry.register(
            "query_seconds",
            "Seconds from the first result asked for to the last delivered",
            seconds.clone(),
        );
        let queries_running = gauge(&mut registry, "queries_running", "Queries that run");
        let queries_queued = gauge(&mut registry, "queries_queued", "Queries that wait for a place");
        let sessions = gauge(&mut registry, "sessions", "Open sessions");
        let results_open = gauge(&mut registry, "results_open", "Results that can be fetched");
        let statements_open = gauge(&mut registry, "statements_open", "Open prepared statements");
        let memory_reserved = gauge(&mut registry, "memory_reserved_bytes", "Bytes reserved in the memory pool");
        let rows_sent = counter(&mut registry, "rows_sent", "Rows sent to clients");
        let bytes_sent = counter(&mut registry, "bytes_sent", "Bytes of record batches sent to clients");
        Arc::new(Self {
            registry,
            requests,
            queries,
            seconds,
            queries_running,
            queries_queued,
            sessions,
            results_open,
            statements_open,
            memory_reserved,
            rows_sent,
            bytes_sent,
        })
    }

    /// A request that was answered.
    pub(crate) fn request(&self, method: &'static str, code: Code) {
        self.requests.get_or_create(&Request { method, code: name(code) }).inc();
    }

    /// A query that came to its end.
    pub(crate) fn query(&self, code: Code, seconds: f64) {
        self.queries.get_or_create(&Finished { status: name(code) }).inc();
        self.seconds.observe(seconds);
    }

    /// The text of `/metrics`.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A code as its name: `Ok`, `ResourceExhausted`.
fn name(code: Code) -> String {
    format!("{code:?}")
}
