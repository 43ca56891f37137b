//! The settings of the service by their names: what each may hold, and how a value from outside becomes one.

use std::time::Duration;

use arrow_quant_flight::logs::LogFormat;
use serde_json::Value;

use super::config::ServiceConfig;

/// The most of anything that is counted.
const MOST: u64 = 1_000_000;

/// The most threads that can be asked for.
const MOST_THREADS: u64 = 1024;

/// The most bytes of a message: lengths on the wire have 32 bits.
const MOST_BYTES: u64 = u32::MAX as u64;

/// The longest duration, in seconds.
const LONGEST: f64 = 1e9;

/// A setting with one value.
#[derive(Debug)]
pub(super) struct Setting {
    /// As in the file, with dots between the names of what is nested.
    pub name: &'static str,
    /// What it may hold.
    pub allowed: &'static str,
}

const ADDRESS: &str = "an IP address and a port, such as 127.0.0.1:50051";
const BOOLEAN: &str = "true or false";
const FILE: &str = "the path of a file";
const COUNT: &str = "1 to 1000000";
const SECONDS: &str = "a number of seconds above 0, up to 1000000000";
const PATIENCE: &str = "a number of seconds, 0 to 1000000000";
const BYTES: &str = "1024 to 4294967295";
const MEGABYTES: &str = "a number of MB (10^6 bytes), 1 or more";

const fn setting(name: &'static str, allowed: &'static str) -> Setting {
    Setting { name, allowed }
}

/// Every setting that has one value.
pub(super) const SETTINGS: [Setting; 25] = [
    setting("listen", ADDRESS),
    setting("metrics_listen", ADDRESS),
    setting("ingest_directory", "the path of a directory"),
    setting("read_write", BOOLEAN),
    setting("credentials", FILE),
    setting("tls.certificate", FILE),
    setting("tls.key", FILE),
    setting("tls.client_ca", FILE),
    setting("insecure", BOOLEAN),
    setting("threads", "1 to 1024, or 0 for all cores"),
    setting("log_format", "text or json"),
    setting("limits.concurrent_queries", COUNT),
    setting("limits.queued_queries", "0 to 1000000"),
    setting("limits.queue_timeout", PATIENCE),
    setting("limits.query_timeout", SECONDS),
    setting("limits.message_bytes", BYTES),
    setting("limits.metadata_bytes", BYTES),
    setting("limits.statement_bytes", BYTES),
    setting("limits.sessions", COUNT),
    setting("limits.session_lifetime", SECONDS),
    setting("limits.result_lifetime", SECONDS),
    setting("limits.statements", COUNT),
    setting("limits.drain_timeout", PATIENCE),
    setting("limits.memory_mb", MEGABYTES),
    setting("limits.spill_mb", "a number of MB (10^6 bytes), 0 or more"),
];

/// The variable that sets it.
pub(super) fn variable(setting: &Setting) -> String {
    let name = setting.name.replace("limits.", "limit.").replace('.', "_").to_uppercase();
    format!("{}{name}", arrow_quant_v2::config::SERVICE_PREFIX)
}

/// The flag that sets it.
pub(super) fn flag(setting: &Setting) -> String {
    match setting.name.strip_prefix("limits.") {
        Some(limit) => format!("--limit {limit}"),
        None => format!("--{}", setting.name.replace(['.', '_'], "-")),
    }
}

/// Sets it; `None` if the value is not allowed.
pub(super) fn assign(config: &mut ServiceConfig, name: &str, value: &Value) -> Option<()> {
    let whole = |least: u64, most: u64| value.as_u64().filter(|number| (least..=most).contains(number));
    let count = |least: u64, most: u64| whole(least, most).and_then(|number| usize::try_from(number).ok());
    let limits = &mut config.limits;
    match name {
        "listen" => config.listen = value.as_str()?.parse().ok()?,
        "metrics_listen" => config.metrics_listen = Some(value.as_str()?.parse().ok()?),
        "ingest_directory" => config.ingest_directory = Some(path(value)?),
        "read_write" => config.read_write = value.as_bool()?,
        "credentials" => config.credentials = Some(path(value)?),
        "tls.certificate" => config.tls_certificate = Some(path(value)?),
        "tls.key" => config.tls_key = Some(path(value)?),
        "tls.client_ca" => config.tls_client_ca = Some(path(value)?),
        "insecure" => config.insecure = value.as_bool()?,
        "threads" => config.threads = count(0, MOST_THREADS)?,
        "log_format" => config.log_format = log_format(value.as_str()?)?,
        "limits.concurrent_queries" => limits.concurrent_queries = count(1, MOST)?,
        "limits.queued_queries" => limits.queued_queries = count(0, MOST)?,
        "limits.queue_timeout" => limits.queue_timeout = seconds(value, true)?,
        "limits.query_timeout" => limits.query_timeout = seconds(value, false)?,
        "limits.message_bytes" => limits.message_bytes = count(1024, MOST_BYTES)?,
        "limits.metadata_bytes" => limits.metadata_bytes = count(1024, MOST_BYTES)?,
        "limits.statement_bytes" => limits.statement_bytes = count(1024, MOST_BYTES)?,
        "limits.sessions" => limits.sessions = count(1, MOST)?,
        "limits.session_lifetime" => limits.session_lifetime = seconds(value, false)?,
        "limits.result_lifetime" => limits.result_lifetime = seconds(value, false)?,
        "limits.statements" => limits.statements = count(1, MOST)?,
        "limits.drain_timeout" => limits.drain_timeout = seconds(value, true)?,
        "limits.memory_mb" => config.memory_mb = whole(1, u64::MAX)?,
        "limits.spill_mb" => config.spill_mb = whole(0, u64::MAX)?,
        _ => return None,
    }
    Some(())
}

fn path(value: &Value) -> Option<std::path::PathBuf> {
    // A path may be all digits.
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    Some(text).filter(|text| !text.is_empty()).map(Into::into)
}

fn log_format(name: &str) -> Option<LogFormat> {
    match name {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

fn seconds(value: &Value, or_none: bool) -> Option<Duration> {
    let is_allowed = |seconds: &f64| *seconds <= LONGEST && (*seconds > 0.0 || (or_none && *seconds == 0.0));
    Duration::try_from_secs_f64(value.as_f64().filter(is_allowed)?).ok()
}
