//! The configuration of the service, from several places: YAML file, environment, flags. Later ones win.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use arrow_quant_flight::logs::LogFormat;
use arrow_quant_flight::{Credentials, Limits, ServeError, ServerConfig, TlsFiles};
use serde_json::{Map, Value};

use super::settings::FIELDS;
use crate::named_model::NamedModel;
use arrow_quant_v2::Result;
use arrow_quant_v2::config::{Configuration, Field, Layers, Origin, Problem, Refused, named, value_of};

/// The port where clients connect, unless another is asked for.
const PORT: u16 = 50051;

/// How the service runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub(crate) struct ServiceConfig {
    /// Where clients connect; port 0 is any that is free.
    pub listen: SocketAddr,
    /// Where Prometheus reads metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// The models that are served.
    pub models: Vec<NamedModel>,
    /// Directories, files and URL prefixes that clients may name.
    pub allow: Vec<String>,
    /// Where tables that clients store are kept; in memory without.
    pub ingest_directory: Option<PathBuf>,
    /// Whether clients may change something.
    pub read_write: bool,
    /// The file of users and tokens.
    pub credentials: Option<PathBuf>,
    /// The server's certificate, PEM.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub tls_key: Option<PathBuf>,
    /// The authority of clients' certificates, PEM.
    pub tls_client_ca: Option<PathBuf>,
    /// Whether other machines may connect without encryption or authentication.
    pub insecure: bool,
    /// Threads that compute queries and jobs, 0 for one a core.
    pub threads: usize,
    /// How logs are written.
    pub log_format: LogFormat,
    /// The limits of the server.
    pub limits: Limits,
    /// Memory of all queries together, in 10⁶ bytes.
    pub memory_mb: u64,
    /// Disk of all queries together, where memory is not enough, in 10⁶ bytes.
    pub spill_mb: u64,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, PORT).into(),
            metrics_listen: None,
            models: Vec::new(),
            allow: Vec::new(),
            ingest_directory: None,
            read_write: false,
            credentials: None,
            tls_certificate: None,
            tls_key: None,
            tls_client_ca: None,
            insecure: false,
            threads: 0,
            log_format: LogFormat::default(),
            limits: Limits::default(),
            memory_mb: 1024,
            spill_mb: 10_240,
        }
    }
}

impl ServiceConfig {
    /// Threads that compute queries and jobs.
    pub(crate) fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    /// What the server starts with, in one line, for its log.
    pub(crate) fn summary(&self) -> String {
        let models: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        let yes = |is: bool| if is { "yes" } else { "no" };
        format!(
            "arrow-quant {} starts: models [{}], {} threads, memory {} MB, spill {} MB, writes {}, credentials {}, TLS {}, \
             client certificates {}, query_timeout {} s, {} queries at once",
            env!("CARGO_PKG_VERSION"),
            models.join(", "),
            self.threads(),
            self.memory_mb,
            self.spill_mb,
            yes(self.read_write),
            yes(self.credentials.is_some()),
            yes(self.is_encrypted()),
            yes(self.tls_client_ca.is_some()),
            self.limits.query_timeout.as_secs_f64(),
            self.limits.concurrent_queries,
        )
    }

    /// Whether clients connect with TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.tls_certificate.is_some()
    }

    /// What the server is told. Reads the credentials.
    ///
    /// # Errors
    /// If the credentials cannot be read or are not allowed.
    pub(super) fn server(&self) -> Result<ServerConfig, ServeError> {
        let tls = match (&self.tls_certificate, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: self.tls_client_ca.clone(),
            }),
            _ => None,
        };
        Ok(ServerConfig {
            listen: self.listen,
            metrics_listen: self.metrics_listen,
            tls,
            credentials: self.credentials.as_deref().map(Credentials::read).transpose()?,
            insecure: self.insecure,
            read_only: !self.read_write,
            ingest_directory: self.ingest_directory.clone(),
            threads: self.threads(),
            limits: self.limits.clone(),
            classify: super::classify,
            interruptible: super::interruptible,
        })
    }
}

impl Configuration for ServiceConfig {
    const FIELDS: &'static [Field<Self>] = FIELDS;
    const PREFIX: &'static str = "ARROW_QUANT_SERVE_";
    const NULL_IS_UNSET: bool = true;

    fn check(&self) -> Result<(), Refused> {
        let missing = |field, needed_by| Err(Refused::new(field, Problem::Missing { needed_by }));
        match (&self.tls_certificate, &self.tls_key, &self.tls_client_ca) {
            (Some(_), None, _) => missing("tls.key", "tls.certificate"),
            (None, Some(_), _) => missing("tls.certificate", "tls.key"),
            (None, None, Some(_)) => missing("tls.certificate", "tls.client_ca"),
            (Some(_), Some(_), _) | (None, None, None) => Ok(()),
        }
    }
}

impl NamedModel {
    /// Models of the command line as the value of the field `models`.
    ///
    /// # Errors
    /// If two models have one name.
    pub(crate) fn field_value(models: &[Self]) -> Result<Value> {
        let mut all = Map::new();
        for Self { name, path } in models {
            if all.insert(name.clone(), path.to_string_lossy().into()).is_some() {
                let flag = Origin::Flag(format!("--model {name}={}", path.display()));
                let problem = Problem::Predicate("has a name that another model has: give it another".to_string());
                return Err(Refused::new("models", problem).at(flag).into());
            }
        }
        Ok(all.into())
    }
}

/// The places that a configuration comes from: YAML file < environment < flags. Models and what is allowed add up.
pub(crate) type ServiceLayers = Layers<ServiceConfig>;

/// The field and value of a limit as `NAME=VALUE`.
///
/// # Errors
/// If the text is not `NAME=VALUE`, or there is no such limit.
pub(crate) fn limit(text: &str) -> Result<(&'static str, Value)> {
    let refused = |predicate: String| {
        Refused::new("limits", Problem::Predicate(predicate)).at(Origin::Flag(format!("--limit {text}")))
    };
    let Some((name, value)) = text.split_once('=') else {
        return Err(refused("has no value: give NAME=VALUE, as in --limit query_timeout=60".into()).into());
    };
    let field = named::<ServiceConfig>(&format!("limits.{name}")).map_err(|unknown| {
        let Problem::Unknown { nearest, names, .. } = *unknown.problem else { return unknown };
        let advice = nearest
            .map_or_else(|| format!(", allowed: {}", names.join(", ")), |near| format!("; did you mean {near}?"));
        refused(format!("names no limit '{name}'{advice}"))
    })?;
    Ok((field.name, value_of(value)))
}
