//! The fields of the service's configuration: what each may hold, its variable, and what it is for.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use arrow_quant_flight::logs::LogFormat;
use serde_json::Value;

use super::config::ServiceConfig;
use crate::named_model::NamedModel;
use arrow_quant_v2::config::{Field, Kind, Nullable, Problem, Shape, Switch, Whole, number};
use arrow_quant_v2::config_field;

/// The most of anything that is counted.
const MOST: usize = 1_000_000;

/// The most bytes of a message: lengths on the wire have 32 bits.
const MOST_BYTES: usize = u32::MAX as usize;

/// The longest duration, in seconds.
const LONGEST: f64 = 1e9;

const ADDRESS: &str = "a host and a port, such as 127.0.0.1:50051 or localhost:50051";
const BOOLEAN: &str = "true or false";
const FILE: &str = "the path of a file";

/// An IP address or the name of this host, and a port.
struct Address;

impl Kind for Address {
    type Value = SocketAddr;

    const SHAPE: Shape = Shape::Text;

    fn read(&self, value: &Value) -> Option<SocketAddr> {
        let text = value.as_str()?;
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        // A name may have several addresses; clients that have IPv4 alone are more than those that have not.
        let addresses: Vec<SocketAddr> = text.to_socket_addrs().ok()?.collect();
        addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).copied()
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
        problem.map(|problem| Problem::Predicate(format!("is refused: {problem}")))
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

/// The table. Of each field: what it is for, its name, its variable without the prefix, its place in the configuration, its kind,
/// what it may hold in words, and its flag and a hint, where it has them. A limit has the flag `--limit NAME=VALUE`, which a
/// message calls `--limit NAME`.
macro_rules! settings {
    (
        fields { $(
            $(#[doc = $doc:literal])+
            $name:literal $($variable:literal)?: $($place:ident).+ = $kind:expr, $allowed:expr
                $(, $with:ident($argument:expr))*;
        )+ }
        limits { $(
            $(#[doc = $of_limit:literal])+
            $limit:literal $its_variable:literal: $($its_place:ident).+ = $its_kind:expr, $its_allowed:expr;
        )+ }
    ) => {
        /// Every field of the service's configuration.
        pub(super) const FIELDS: &[Field<ServiceConfig>] = &[
            $(config_field!(ServiceConfig, $name, $($place).+, $kind, $allowed, concat!($($doc),+))
                $(.variable(concat!("ARROW_QUANT_SERVE_", $variable)))? $(.$with($argument))*,)+
            $(config_field!(
                ServiceConfig, concat!("limits.", $limit), $($its_place).+, $its_kind, $its_allowed, concat!($($of_limit),+)
            )
            .variable(concat!("ARROW_QUANT_SERVE_LIMIT_", $its_variable))
            .flags(&[concat!("limit ", $limit)]),)+
        ];
    };
}

settings! {
    fields {
        /// Where clients connect; port 0 is any that is free.
        "listen" "LISTEN": listen = Address, ADDRESS, hint("ADDRESS");
        /// Where Prometheus reads metrics, without authentication.
        "metrics_listen" "METRICS_LISTEN": metrics_listen = Nullable(Address), ADDRESS, hint("ADDRESS");
        /// The models, each a schema with the tables tensors, weights and, if it is quantized, quantized.
        "models": models = Models, "a mapping from names to paths", flags(&["model"]), hint("NAME=PATH");
        /// A directory, file or URL prefix that clients may name in statements and actions.
        "allow": allow = Allowed, "a list of paths and URLs", hint("PATH_OR_URL");
        /// Keeps tables that clients store in this directory; without it, they are in memory.
        "ingest_directory" "INGEST_DIRECTORY": ingest_directory = Nullable(Place), "the path of a directory",
            hint("DIR");
        /// Whether clients may create, change and store; with credentials, those who may write.
        "read_write" "READ_WRITE": read_write = Switch, BOOLEAN;
        /// The file of users and tokens; without it, everyone may connect.
        "credentials" "CREDENTIALS": credentials = Nullable(Place), FILE, hint("FILE");
        /// The server's certificate, PEM.
        "tls.certificate" "TLS_CERTIFICATE": tls_certificate = Nullable(Place), FILE, hint("FILE");
        /// The private key of the certificate, PEM.
        "tls.key" "TLS_KEY": tls_key = Nullable(Place), FILE, hint("FILE");
        /// The authority that clients' certificates must be signed by, PEM; without it, clients need no certificate.
        "tls.client_ca" "TLS_CLIENT_CA": tls_client_ca = Nullable(Place), FILE, hint("FILE");
        /// Whether other machines may connect without encryption or authentication.
        "insecure" "INSECURE": insecure = Switch, BOOLEAN;
        /// Threads that compute queries and jobs.
        "threads" "THREADS": threads = Whole(|threads: usize| threads <= 1024), "1 to 1024, or 0 for all cores";
        /// How logs are written to standard error.
        "log_format" "LOG_FORMAT": log_format = Format, "text or json";
    }
    limits {
        /// Queries, ingests and jobs that run at once.
        "concurrent_queries" "CONCURRENT_QUERIES": limits.concurrent_queries = COUNT, COUNTED;
        /// Queries that wait.
        "queued_queries" "QUEUED_QUERIES": limits.queued_queries = Whole(|count: usize| count <= MOST), "0 to 1000000";
        /// How long queries wait.
        "queue_timeout" "QUEUE_TIMEOUT": limits.queue_timeout = PATIENCE, WAIT;
        /// How long a query may take.
        "query_timeout" "QUERY_TIMEOUT": limits.query_timeout = SECONDS, TIME;
        /// Bytes of a client's message.
        "message_bytes" "MESSAGE_BYTES": limits.message_bytes = BYTES, MESSAGE;
        /// Bytes of a request's headers.
        "metadata_bytes" "METADATA_BYTES": limits.metadata_bytes = BYTES, MESSAGE;
        /// Bytes of a SQL statement.
        "statement_bytes" "STATEMENT_BYTES": limits.statement_bytes = BYTES, MESSAGE;
        /// Sessions, and tokens of handshakes.
        "sessions" "SESSIONS": limits.sessions = COUNT, COUNTED;
        /// How long a session is kept unused.
        "session_lifetime" "SESSION_LIFETIME": limits.session_lifetime = SECONDS, TIME;
        /// How long a result is kept unused.
        "result_lifetime" "RESULT_LIFETIME": limits.result_lifetime = SECONDS, TIME;
        /// Prepared statements of a session, and as many results not yet fetched.
        "statements" "STATEMENTS": limits.statements = COUNT, COUNTED;
        /// How long queries may go on once the server is told to stop.
        "drain_timeout" "DRAIN_TIMEOUT": limits.drain_timeout = PATIENCE, WAIT;
        /// Memory of all queries together.
        "memory_mb" "MEMORY_MB": memory_mb = Whole(|size: u64| size >= 1), "a number of MB (10^6 bytes), 1 or more";
        /// Disk of all queries together, if memory is not enough.
        "spill_mb" "SPILL_MB": spill_mb = Whole(|_: u64| true), "a number of MB (10^6 bytes), 0 or more";
    }
}
