//! The fields of the service's configuration: what each may hold, its variable, and what it is for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use arrow_quant_flight::logs::LogFormat;
use serde_json::Value;

use super::config::{NamedModel, ServiceConfig};
use crate::config::{Field, Kind, Nullable, Problem, Shape, Switch, Whole, number};
use crate::config_field;

/// The most of anything that is counted.
const MOST: usize = 1_000_000;

/// The most bytes of a message: lengths on the wire have 32 bits.
const MOST_BYTES: usize = u32::MAX as usize;

/// The longest duration, in seconds.
const LONGEST: f64 = 1e9;

const ADDRESS: &str = "an IP address and a port, such as 127.0.0.1:50051";
const BOOLEAN: &str = "true or false";
const FILE: &str = "the path of a file";

/// An IP address and a port.
struct Address;

impl Kind for Address {
    type Value = SocketAddr;

    const SHAPE: Shape = Shape::Text;

    fn read(&self, value: &Value) -> Option<SocketAddr> {
        value.as_str()?.parse().ok()
    }

    fn show(&self, value: &SocketAddr) -> Value {
        value.to_string().into()
    }
}

/// A path that is not empty.
struct Place;

impl Kind for Place {
    type Value = PathBuf;

    const SHAPE: Shape = Shape::Text;

    fn read(&self, value: &Value) -> Option<PathBuf> {
        // A path may be all digits.
        let text = value.as_str().map(str::to_string).or_else(|| value.as_number().map(ToString::to_string))?;
        Some(text).filter(|text| !text.is_empty()).map(Into::into)
    }

    fn show(&self, value: &PathBuf) -> Value {
        value.to_string_lossy().into()
    }
}

/// How logs are written.
struct Format;

impl Kind for Format {
    type Value = LogFormat;

    const SHAPE: Shape = Shape::Choice(|| vec!["text".into(), "json".into()]);

    fn read(&self, value: &Value) -> Option<LogFormat> {
        match value.as_str()? {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        }
    }

    fn show(&self, value: &LogFormat) -> Value {
        match value {
            LogFormat::Text => "text".into(),
            LogFormat::Json => "json".into(),
        }
    }
}

/// A duration in seconds for whose number this is true.
struct Seconds(fn(f64) -> bool);

impl Kind for Seconds {
    type Value = Duration;

    const SHAPE: Shape = Shape::Real;

    fn read(&self, value: &Value) -> Option<Duration> {
        Duration::try_from_secs_f64(value.as_f64().filter(|seconds| self.0(*seconds))?).ok()
    }

    fn show(&self, value: &Duration) -> Value {
        number(value.as_secs_f64())
    }
}

/// Models by their names. Those of several places add up; a later model replaces an earlier one of the same name.
struct Models;

impl Kind for Models {
    type Value = Vec<NamedModel>;

    const SHAPE: Shape = Shape::Mapping;

    fn read(&self, value: &Value) -> Option<Vec<NamedModel>> {
        value.as_object()?.iter().map(|(name, path)| NamedModel::new(name, path.as_str()?).ok()).collect()
    }

    fn show(&self, value: &Vec<NamedModel>) -> Value {
        value.iter().map(|model| (model.name.clone(), Value::from(model.path.to_string_lossy()))).collect()
    }

    fn explain(&self, value: &Value) -> Option<Problem> {
        let problem = value.as_object()?.iter().find_map(|(name, path)| NamedModel::new(name, path.as_str()?).err());
        problem.map(|problem| Problem::Other(format!("models: {problem}")))
    }

    fn put(&self, place: &mut Vec<NamedModel>, new: Vec<NamedModel>) {
        for model in new {
            place.retain(|other| other.name != model.name);
            place.push(model);
        }
    }
}

/// Paths and URLs. Those of several places add up.
struct Allowed;

impl Kind for Allowed {
    type Value = Vec<String>;

    const SHAPE: Shape = Shape::Texts;

    fn read(&self, value: &Value) -> Option<Vec<String>> {
        value.as_array()?.iter().map(|item| item.as_str().map(str::to_string)).collect()
    }

    fn show(&self, value: &Vec<String>) -> Value {
        value.as_slice().into()
    }

    fn put(&self, place: &mut Vec<String>, new: Vec<String>) {
        place.extend(new);
    }
}

const COUNT: Whole<usize> = Whole(|count| (1..=MOST).contains(&count));
const COUNTED: &str = "1 to 1000000";
const BYTES: Whole<usize> = Whole(|bytes| (1024..=MOST_BYTES).contains(&bytes));
const MESSAGE: &str = "1024 to 4294967295";
const SECONDS: Seconds = Seconds(|seconds| seconds > 0.0 && seconds <= LONGEST);
const TIME: &str = "a number of seconds above 0, up to 1000000000";
const PATIENCE: Seconds = Seconds(|seconds| (0.0..=LONGEST).contains(&seconds));
const WAIT: &str = "a number of seconds, 0 to 1000000000";

/// The table. Of each field: what it is for, its name, its place in the configuration, its kind and what it may hold in words;
/// and its variable, flag and a hint, where it has them. A limit has the flag `--limit NAME=VALUE`, which a message calls
/// `--limit NAME`.
macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $name:literal: $($place:ident).+ = $kind:expr, $allowed:expr $(, $with:ident($argument:expr))*;
    )+) => {
        /// Every field of the service's configuration.
        pub(super) const FIELDS: &[Field<ServiceConfig>] = &[$(
            config_field!(ServiceConfig, $name, $($place).+, $kind, $allowed, concat!($($doc),+))$(.$with($argument))*,
        )+];
    };
}

settings! {
    /// Where clients connect; port 0 is any that is free.
    "listen": listen = Address, ADDRESS, variable("ARROW_QUANT_SERVE_LISTEN"), hint("ADDRESS");
    /// Where Prometheus reads metrics, without authentication.
    "metrics_listen": metrics_listen = Nullable(Address), ADDRESS,
        variable("ARROW_QUANT_SERVE_METRICS_LISTEN"), hint("ADDRESS");
    /// The models, each a schema with the tables tensors, weights and, if it is quantized, quantized.
    "models": models = Models, "a mapping from names to paths", flags(&["model"]), hint("NAME=PATH");
    /// A directory, file or URL prefix that clients may name in statements and actions.
    "allow": allow = Allowed, "a list of paths and URLs", hint("PATH_OR_URL");
    /// Keeps tables that clients store in this directory; without it, they are in memory.
    "ingest_directory": ingest_directory = Nullable(Place), "the path of a directory",
        variable("ARROW_QUANT_SERVE_INGEST_DIRECTORY"), hint("DIR");
    /// Whether clients may create, change and store; with credentials, those who may write.
    "read_write": read_write = Switch, BOOLEAN, variable("ARROW_QUANT_SERVE_READ_WRITE");
    /// The file of users and tokens; without it, everyone may connect.
    "credentials": credentials = Nullable(Place), FILE, variable("ARROW_QUANT_SERVE_CREDENTIALS"), hint("FILE");
    /// The server's certificate, PEM.
    "tls.certificate": tls_certificate = Nullable(Place), FILE,
        variable("ARROW_QUANT_SERVE_TLS_CERTIFICATE"), hint("FILE");
    /// The private key of the certificate, PEM.
    "tls.key": tls_key = Nullable(Place), FILE, variable("ARROW_QUANT_SERVE_TLS_KEY"), hint("FILE");
    /// The authority that clients' certificates must be signed by, PEM; without it, clients need no certificate.
    "tls.client_ca": tls_client_ca = Nullable(Place), FILE,
        variable("ARROW_QUANT_SERVE_TLS_CLIENT_CA"), hint("FILE");
    /// Whether other machines may connect without encryption or authentication.
    "insecure": insecure = Switch, BOOLEAN, variable("ARROW_QUANT_SERVE_INSECURE");
    /// Threads that compute queries and jobs.
    "threads": threads = Whole(|threads: usize| threads <= 1024), "1 to 1024, or 0 for all cores",
        variable("ARROW_QUANT_SERVE_THREADS");
    /// How logs are written to standard error.
    "log_format": log_format = Format, "text or json", variable("ARROW_QUANT_SERVE_LOG_FORMAT");
    /// Queries, ingests and jobs that run at once.
    "limits.concurrent_queries": limits.concurrent_queries = COUNT, COUNTED,
        variable("ARROW_QUANT_SERVE_LIMIT_CONCURRENT_QUERIES"), flags(&["limit concurrent_queries"]);
    /// Queries that wait.
    "limits.queued_queries": limits.queued_queries = Whole(|count: usize| count <= MOST), "0 to 1000000",
        variable("ARROW_QUANT_SERVE_LIMIT_QUEUED_QUERIES"), flags(&["limit queued_queries"]);
    /// How long queries wait.
    "limits.queue_timeout": limits.queue_timeout = PATIENCE, WAIT,
        variable("ARROW_QUANT_SERVE_LIMIT_QUEUE_TIMEOUT"), flags(&["limit queue_timeout"]);
    /// How long a query may take.
    "limits.query_timeout": limits.query_timeout = SECONDS, TIME,
        variable("ARROW_QUANT_SERVE_LIMIT_QUERY_TIMEOUT"), flags(&["limit query_timeout"]);
    /// Bytes of a client's message.
    "limits.message_bytes": limits.message_bytes = BYTES, MESSAGE,
        variable("ARROW_QUANT_SERVE_LIMIT_MESSAGE_BYTES"), flags(&["limit message_bytes"]);
    /// Bytes of a request's headers.
    "limits.metadata_bytes": limits.metadata_bytes = BYTES, MESSAGE,
        variable("ARROW_QUANT_SERVE_LIMIT_METADATA_BYTES"), flags(&["limit metadata_bytes"]);
    /// Bytes of a SQL statement.
    "limits.statement_bytes": limits.statement_bytes = BYTES, MESSAGE,
        variable("ARROW_QUANT_SERVE_LIMIT_STATEMENT_BYTES"), flags(&["limit statement_bytes"]);
    /// Sessions, and tokens of handshakes.
    "limits.sessions": limits.sessions = COUNT, COUNTED,
        variable("ARROW_QUANT_SERVE_LIMIT_SESSIONS"), flags(&["limit sessions"]);
    /// How long a session is kept unused.
    "limits.session_lifetime": limits.session_lifetime = SECONDS, TIME,
        variable("ARROW_QUANT_SERVE_LIMIT_SESSION_LIFETIME"), flags(&["limit session_lifetime"]);
    /// How long a result is kept unused.
    "limits.result_lifetime": limits.result_lifetime = SECONDS, TIME,
        variable("ARROW_QUANT_SERVE_LIMIT_RESULT_LIFETIME"), flags(&["limit result_lifetime"]);
    /// Prepared statements of a session, and as many results not yet fetched.
    "limits.statements": limits.statements = COUNT, COUNTED,
        variable("ARROW_QUANT_SERVE_LIMIT_STATEMENTS"), flags(&["limit statements"]);
    /// How long queries may go on once the server is told to stop.
    "limits.drain_timeout": limits.drain_timeout = PATIENCE, WAIT,
        variable("ARROW_QUANT_SERVE_LIMIT_DRAIN_TIMEOUT"), flags(&["limit drain_timeout"]);
    /// Memory of all queries together.
    "limits.memory_mb": memory_mb = Whole(|size: u64| size >= 1), "a number of MB (10^6 bytes), 1 or more",
        variable("ARROW_QUANT_SERVE_LIMIT_MEMORY_MB"), flags(&["limit memory_mb"]);
    /// Disk of all queries together, if memory is not enough.
    "limits.spill_mb": spill_mb = Whole(|_: u64| true), "a number of MB (10^6 bytes), 0 or more",
        variable("ARROW_QUANT_SERVE_LIMIT_SPILL_MB"), flags(&["limit spill_mb"]);
}
