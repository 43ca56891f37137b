//! The configuration of the service, from several places: YAML file, environment, flags. Later ones win.

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use arrow_quant_flight::logs::LogFormat;
use arrow_quant_flight::{Credentials, Limits, ServeError, ServerConfig, TlsFiles};
use serde_json::{Map, Value};

use super::settings::{SETTINGS, Setting, assign, flag, variable};
use arrow_quant_formats::nearest;
use arrow_quant_v2::config::{SERVICE_PREFIX, environment, read, shown, value_of};
use arrow_quant_v2::{QuantError, Result};

/// The port where clients connect, unless another is asked for.
const PORT: u16 = 50051;

/// How the service runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServiceConfig {
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
    /// What is allowed.
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
    pub fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    /// Whether clients connect with TLS.
    pub fn is_encrypted(&self) -> bool {
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
        })
    }

    /// Checks what belongs together.
    fn validate(&self) -> Result<()> {
        let missing = |field: &str, why: &str| Err(QuantError::field(field, format!("{field} is missing: {why}")));
        match (&self.tls_certificate, &self.tls_key, &self.tls_client_ca) {
            (Some(_), None, _) => missing("tls.key", "give the private key of tls.certificate (--tls-key)"),
            (None, Some(_), _) => missing("tls.certificate", "give the certificate of tls.key (--tls-certificate)"),
            (None, None, Some(_)) => missing(
                "tls.certificate",
                "tls.client_ca takes a certificate and key of the server too (--tls-certificate, --tls-key)",
            ),
            _ => Ok(()),
        }
    }

    /// A later one of the same name takes the place of an earlier one.
    fn add_model(&mut self, model: NamedModel) {
        self.models.retain(|other| other.name != model.name);
        self.models.push(model);
    }
}

/// A model and the schema it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedModel {
    /// The schema. SQL reads names without quotes in lower case, and so it is.
    pub name: String,
    /// The file or directory.
    pub path: PathBuf,
}

impl NamedModel {
    /// # Errors
    /// If the name is none that SQL reads without quotes, or the path is empty.
    pub fn new(name: &str, path: &str) -> Result<Self, String> {
        let mut chars = name.chars();
        let starts = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !starts || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("the name '{name}' is not allowed: a letter or _, then letters, digits or _"));
        }
        if path.is_empty() {
            return Err(format!("the path of '{name}' is empty"));
        }
        Ok(Self { name: name.to_ascii_lowercase(), path: path.into() })
    }
}

impl FromStr for NamedModel {
    type Err = String;

    /// `NAME=PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("NAME=PATH is needed, as in --model m=path/to/model")?;
        Self::new(name, path)
    }
}

/// The places that a configuration comes from: YAML file < environment < flags. Models and what is allowed add up.
#[derive(Debug, Default)]
pub struct ServiceLayers {
    file: Option<PathBuf>,
    variables: Vec<(String, String)>,
    flags: Vec<(String, Value)>,
    models: Vec<NamedModel>,
    allow: Vec<String>,
}

impl ServiceLayers {
    /// The defaults alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a YAML file.
    pub fn file(mut self, path: &Path) -> Self {
        self.file = Some(path.to_path_buf());
        self
    }

    /// With the environment.
    pub fn environment(self) -> Self {
        self.variables(environment())
    }

    /// With these variables.
    pub fn variables(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.variables.extend(variables);
        self
    }

    /// With a flag's value. Names are those of the file, with dots between those of what is nested.
    pub fn flag(mut self, name: &str, value: Value) -> Self {
        self.flags.push((name.to_string(), value));
        self
    }

    /// With a limit as `NAME=VALUE`.
    ///
    /// # Errors
    /// If it is none, or there is no such limit.
    pub fn limit(self, text: &str) -> Result<Self> {
        let Some((name, value)) = text.split_once('=') else {
            let message = format!("--limit {text}: NAME=VALUE is needed, as in --limit query_timeout=60");
            return Err(QuantError::field("limits", message));
        };
        let known = named(&format!("limits.{name}"), "limits.")
            .map_err(|message| QuantError::field("limits", format!("--limit {text}: {message}")))?;
        Ok(self.flag(known.name, value_of(value)))
    }

    /// With a model.
    pub fn model(mut self, model: NamedModel) -> Self {
        self.models.push(model);
        self
    }

    /// With something that clients may name.
    pub fn allow(mut self, path_or_url: &str) -> Self {
        self.allow.push(path_or_url.to_string());
        self
    }

    /// Puts the layers together, and checks the whole.
    ///
    /// # Errors
    /// Naming the field, the file, variable or flag, the value, what is allowed, and for unknown names the nearest one.
    pub fn load(&self) -> Result<ServiceConfig> {
        let mut config = ServiceConfig::default();
        if let Some(path) = &self.file {
            let in_file = |Refusal { field, message }| QuantError::Configuration {
                field: Some(field),
                path: Some(path.clone()),
                message: format!("{}: {message}", path.display()),
            };
            apply_file(&mut config, &read(path)?).map_err(in_file)?;
        }
        for (name, text) in &self.variables {
            if !name.starts_with(SERVICE_PREFIX) || text.is_empty() {
                continue;
            }
            let setting = of_variable(name)?;
            set(&mut config, setting, &value_of(text), name).map_err(Refusal::into_error)?;
        }
        for (name, value) in &self.flags {
            let setting = named(name, "").map_err(|message| QuantError::field(name, message))?;
            set(&mut config, setting, value, flag(setting)).map_err(Refusal::into_error)?;
        }
        for (index, model) in self.models.iter().enumerate() {
            let NamedModel { name, path } = model;
            if self.models[..index].iter().any(|other| other.name == *name) {
                let message = format!("--model {name}={}: another model has the name '{name}'", path.display());
                return Err(QuantError::field("models", message));
            }
            config.add_model(model.clone());
        }
        config.allow.extend(self.allow.iter().cloned());
        config.validate()?;
        Ok(config)
    }
}

/// Why a field is not allowed.
struct Refusal {
    field: String,
    message: String,
}

impl Refusal {
    fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.to_string(), message: message.into() }
    }

    fn into_error(self) -> QuantError {
        QuantError::field(&self.field, self.message)
    }
}

/// Sets a field, which a message calls as the operator did.
fn set(config: &mut ServiceConfig, setting: &Setting, value: &Value, called: impl Display) -> Result<(), Refusal> {
    assign(config, setting.name, value).ok_or_else(|| {
        Refusal::new(setting.name, format!("{called} is {}, allowed: {}", shown(value), setting.allowed))
    })
}

/// The setting of a name that begins with `group`, or else what is nearest.
fn named(name: &str, group: &str) -> Result<&'static Setting, String> {
    let known = || SETTINGS.iter().filter(|setting| setting.name.starts_with(group));
    known().find(|setting| setting.name == name).ok_or_else(|| {
        // Without what all of them begin with, which makes them alike.
        let names = known().map(|setting| &setting.name[group.len()..]);
        let what = if group.is_empty() { "field" } else { "limit" };
        let name = name.strip_prefix(group).unwrap_or(name);
        unknown(what, name, name, &names.collect::<Vec<_>>())
    })
}

/// That there is no such name, by which it is called here, among others like it; and which may be meant.
fn unknown(what: &str, called: &str, name: &str, names: &[&str]) -> String {
    match nearest(name, names.iter().copied()) {
        Some(near) => format!("there is no {what} '{called}'; did you mean {near}?"),
        None => format!("there is no {what} '{called}', allowed: {}", names.join(", ")),
    }
}

fn of_variable(name: &str) -> Result<&'static Setting> {
    SETTINGS.iter().find(|setting| variable(setting) == name).ok_or_else(|| {
        let variables: Vec<_> = SETTINGS.iter().map(variable).collect();
        let rests: Vec<_> = variables.iter().map(|variable| &variable[SERVICE_PREFIX.len()..]).collect();
        let near = nearest(&name[SERVICE_PREFIX.len()..], rests.iter().copied());
        let advice = near.map_or_else(
            || "unset it, or set the field in a YAML file".to_string(),
            |near| format!("did you mean {SERVICE_PREFIX}{near}?"),
        );
        QuantError::configuration(format!("there is no variable {name}; {advice}"))
    })
}

/// Sets what a file says.
fn apply_file(config: &mut ServiceConfig, file: &Map<String, Value>) -> Result<(), Refusal> {
    for (name, value) in file.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "models" => models(config, value)?,
            "allow" => allow(config, value)?,
            "tls" | "limits" => {
                let expected = || Refusal::new(name, format!("{name} is {}, allowed: names and values", shown(value)));
                for (inner, value) in value.as_object().ok_or_else(expected)? {
                    apply(config, &format!("{name}."), inner, value)?;
                }
            }
            _ => apply(config, "", name, value)?,
        }
    }
    Ok(())
}

/// Sets a field of a file, in a group of fields or in none.
fn apply(config: &mut ServiceConfig, group: &str, name: &str, value: &Value) -> Result<(), Refusal> {
    let full = format!("{group}{name}");
    let Some(setting) = SETTINGS.iter().find(|setting| setting.name == full && !name.contains('.')) else {
        let in_group = SETTINGS.iter().filter_map(|setting| setting.name.strip_prefix(group));
        let mut names: Vec<_> = in_group.filter(|name| !name.contains('.')).collect();
        if group.is_empty() {
            names.extend(["models", "allow", "tls", "limits"]);
        }
        let message = unknown("field", &full, name, &names);
        return Err(Refusal::new(&full, message));
    };
    if value.is_null() { Ok(()) } else { set(config, setting, value, setting.name) }
}

fn models(config: &mut ServiceConfig, value: &Value) -> Result<(), Refusal> {
    let refused = |value: &Value| {
        Refusal::new("models", format!("models is {}, allowed: a mapping from names to paths", shown(value)))
    };
    for (name, path) in value.as_object().ok_or_else(|| refused(value))? {
        let path = path.as_str().ok_or_else(|| refused(value))?;
        let model =
            NamedModel::new(name, path).map_err(|message| Refusal::new("models", format!("models: {message}")))?;
        config.add_model(model);
    }
    Ok(())
}

fn allow(config: &mut ServiceConfig, value: &Value) -> Result<(), Refusal> {
    let texts = value.as_array().and_then(|items| items.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let texts = texts.ok_or_else(|| {
        Refusal::new("allow", format!("allow is {}, allowed: a list of paths and URLs", shown(value)))
    })?;
    config.allow.extend(texts.into_iter().map(str::to_string));
    Ok(())
}
