//! The service: models and jobs over Arrow Flight and Flight SQL, for [`arrow_quant_flight`] to serve.

mod actions;
mod body;
mod config;
mod job;
mod models;
mod settings;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use arrow_quant_flight::{Code, Interrupt, ServeError, Server};
use arrow_quant_udfs::Cancellation;
use datafusion::common::config::ConfigOptions;

pub(crate) use config::{ServiceConfig, ServiceLayers, limit};

use crate::named_model::NamedModel;
use arrow_quant_stores::StoreError;
use arrow_quant_udfs::RowError;
use arrow_quant_v2::config::{Configuration, Layered};
use arrow_quant_v2::{AllowedPaths, Origin, QuantError, Words, service_session};
use job::Cancelled;
use models::{Models, NameTaken};

use crate::failure::{Failure, Names};

/// The settings that are paths of files which the server reads or writes.
const FILES: [&str; 5] = ["credentials", "tls.certificate", "tls.key", "tls.client_ca", "ingest_directory"];

/// Makes a session of the models that a configuration names, and a server of it that is bound to its addresses.
///
/// # Errors
/// If a model cannot be read, what is allowed does not exist, or the server cannot start.
pub(crate) async fn bind(layered: &Layered<ServiceConfig>) -> Result<Server, Failure> {
    let config = &layered.config;
    let allowed = Arc::new(AllowedPaths::new(config.allow.iter().map(String::as_str)).map_err(|error| {
        let names = if let StoreError::Allow { text, .. } = &error {
            names_with_entry(layered, "allow", text)
        } else {
            Names::of(layered)
        };
        Failure::from(QuantError::from(error)).named(names)
    })?);
    let memory = usize::try_from(config.memory_mb.saturating_mul(1_000_000)).unwrap_or(usize::MAX);
    let spill = config.spill_mb.saturating_mul(1_000_000);
    let ctx = service_session(config.threads(), memory, spill, &allowed)?;
    let models = Arc::new(Models::new(allowed, config.threads()));
    for NamedModel { name, path } in &config.models {
        models.add(&ctx, name, path).await.map_err(|error| {
            let called = names_with_entry(layered, "models", name).setting("models");
            Failure::Message(format!("{called}: {name}: {error}"))
        })?;
    }
    if config.ingest_directory.as_ref().is_some_and(|directory| models.allowed.check(directory).is_ok()) {
        log::warn!("ingest_directory is in a directory that is allowed: clients can read the tables of one another");
    }
    let server = config.server().map_err(|error| not_started(error, layered))?;
    Server::bind(ctx, server, actions::all(&models)).await.map_err(|error| not_started(error, layered))
}

/// Makes the functions of a query stop when it is not wanted any more.
fn interruptible(options: &mut ConfigOptions) -> Interrupt {
    let cancellation = Cancellation::default();
    options.extensions.insert(cancellation.clone());
    Arc::new(move || cancellation.cancel())
}

/// The names of settings, that of a list or mapping as the place has it that an entry is from.
fn names_with_entry(layered: &Layered<ServiceConfig>, field: &'static str, entry: &str) -> Names {
    let names = Names::of(layered);
    match ServiceConfig::FIELDS.iter().find(|known| known.name == field) {
        Some(known) => names.with(known, layered.entry_set_by(field, entry)),
        None => names,
    }
}

/// Why a server with this configuration does not start. Settings have the names of the places that set them.
pub(crate) fn not_started(error: ServeError, layered: &Layered<ServiceConfig>) -> Failure {
    let names = Names::of(layered);
    // What can be done has the names of the place that set the address.
    let beside = |field: &str| match layered.beside("listen", field) {
        Some(Origin::Variable(variable)) => variable.to_string(),
        Some(Origin::File(_)) => field.to_string(),
        Some(Origin::Flag(_) | Origin::Profile(_) | Origin::Explicit) | None => names.advised(field),
    };
    let listen = names.setting("listen");
    match error {
        ServeError::Unencrypted { address } => Failure::Message(format!(
            "{listen} is {address}, which can be reached by other machines: give a TLS certificate and key ({}, {}), listen on \
             127.0.0.1, or set {}",
            beside("tls.certificate"),
            beside("tls.key"),
            beside("insecure")
        )),
        ServeError::Unauthenticated { address } => Failure::Message(format!(
            "{listen} is {address}, which can be reached by other machines: give credentials ({}) or an authority of client \
             certificates ({}), or set {}",
            beside("credentials"),
            beside("tls.client_ca"),
            beside("insecure")
        )),
        ServeError::Bind { address, .. } => {
            let field = if layered.config.listen == address { "listen" } else { "metrics_listen" };
            Failure::Message(format!("{}: {error}", names.setting(field)))
        }
        ServeError::File { ref path, .. } => Failure::Message(format!("{}{error}", of_file(layered, &names, path))),
        ServeError::Io { path, source } => {
            let of_file = of_file(layered, &names, &path);
            Failure::Message(format!("{of_file}{}", QuantError::Io { path, source }))
        }
        ServeError::DataFusion(error) => error.into(),
        other => Failure::Message(other.to_string()),
    }
}

/// The setting that a file or directory is of, and a colon; nothing for a file of no setting.
fn of_file(layered: &Layered<ServiceConfig>, names: &Names, path: &Path) -> String {
    let is_of = |field: &&str| layered.value(field).as_str().is_some_and(|set| path.starts_with(set));
    let found = FILES.into_iter().find(is_of);
    found.map_or_else(String::new, |field| format!("{}: ", names.setting(field)))
}

/// The status of one of our errors. Of one that others passed on, they have it as a source.
fn classify(error: &(dyn Error + 'static)) -> Option<Code> {
    if error.is::<NameTaken>() {
        return Some(Code::AlreadyExists);
    }
    if error.is::<Cancelled>() {
        return Some(Code::Cancelled);
    }
    if let Some(object_store::Error::Generic { source, .. }) = error.downcast_ref::<object_store::Error>() {
        return classify(source.as_ref());
    }
    if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        return classify(inner);
    }
    if error.is::<RowError>() {
        return Some(Code::InvalidArgument);
    }
    if let Some(error) = error.downcast_ref::<StoreError>() {
        return match error {
            StoreError::Outside { .. } | StoreError::TooManyDirectories { .. } => Some(Code::PermissionDenied),
            _ => None,
        };
    }
    match error.downcast_ref::<QuantError>()? {
        QuantError::Access(_) => Some(Code::PermissionDenied),
        QuantError::ModelNotFound { .. } => Some(Code::NotFound),
        QuantError::Quantization { .. } | QuantError::Weights { .. } | QuantError::Changed { .. } => {
            Some(Code::FailedPrecondition)
        }
        QuantError::Unfinished { problem } => classify(problem.as_ref()),
        QuantError::Io { source, .. } => Some(match source.kind() {
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::AlreadyExists => Code::AlreadyExists,
            _ => Code::Internal,
        }),
        QuantError::Threads { .. } => Some(Code::ResourceExhausted),
        QuantError::Query(_) => None,
        QuantError::Refused(_)
        | QuantError::Configuration { .. }
        | QuantError::Setting { .. }
        | QuantError::Output { .. }
        | QuantError::Metadata { .. }
        | QuantError::UnknownModality { .. }
        | QuantError::Language { .. }
        | QuantError::ShapeMismatch { .. }
        | QuantError::Validation { .. }
        | QuantError::BelowFloor { .. } => Some(Code::InvalidArgument),
        // Kinds that this crate does not know yet.
        _ => None,
    }
}
