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
use std::sync::Arc;

use arrow_quant_flight::{Code, Interrupt, ServeError, Server};
use arrow_quant_udfs::Cancellation;
use datafusion::common::config::ConfigOptions;

pub(crate) use config::{NamedModel, ServiceConfig, ServiceLayers, limit};

use arrow_quant_stores::StoreError;
use arrow_quant_v2::{AllowedPaths, QuantError, Result, service_session};
use job::Cancelled;
use models::{Models, NameTaken};

/// Makes a session of the models that a configuration names, and a server of it that is bound to its addresses.
///
/// # Errors
/// If a model cannot be read, what is allowed does not exist, or the server cannot start.
pub(crate) async fn bind(config: &ServiceConfig) -> Result<Server> {
    let allowed = Arc::new(AllowedPaths::new(config.allow.iter().map(String::as_str))?);
    let memory = usize::try_from(config.memory_mb.saturating_mul(1_000_000)).unwrap_or(usize::MAX);
    let spill = config.spill_mb.saturating_mul(1_000_000);
    let ctx = service_session(config.threads(), memory, spill, &allowed)?;
    let models = Arc::new(Models::new(allowed, config.threads()));
    for NamedModel { name, path } in &config.models {
        models.add(&ctx, name, path)?;
    }
    if config.ingest_directory.as_ref().is_some_and(|directory| models.allowed.check(directory).is_ok()) {
        log::warn!("ingest_directory is in a directory that is allowed: clients can read the tables of one another");
    }
    let server = config.server().map_err(not_started)?;
    Server::bind(ctx, server, actions::all(&models)).await.map_err(not_started)
}

/// Makes the functions of a query stop when it is not wanted any more.
fn interruptible(options: &mut ConfigOptions) -> Interrupt {
    let cancellation = Cancellation::default();
    options.extensions.insert(cancellation.clone());
    Arc::new(move || cancellation.cancel())
}

/// An error of the server as one of ours.
pub(crate) fn not_started(error: ServeError) -> QuantError {
    match error {
        ServeError::Io { path, source } => QuantError::Io { path, source },
        ServeError::DataFusion(error) => error.into(),
        ServeError::Unencrypted { address } => QuantError::field(
            "insecure",
            format!(
                "{address} can be reached by other machines: give a TLS certificate and key (--tls-certificate, --tls-key), \
                 listen on 127.0.0.1, or say --insecure"
            ),
        ),
        ServeError::Unauthenticated { address } => QuantError::field(
            "insecure",
            format!(
                "{address} can be reached by other machines: give credentials (--credentials) or an authority of client \
                 certificates (--tls-client-ca), or say --insecure"
            ),
        ),
        other => QuantError::configuration(other.to_string()),
    }
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
    if let Some(error) = error.downcast_ref::<StoreError>() {
        return match error {
            StoreError::Outside { .. } | StoreError::TooManyDirectories { .. } => Some(Code::PermissionDenied),
            _ => None,
        };
    }
    match error.downcast_ref::<QuantError>()? {
        QuantError::Access(_) => Some(Code::PermissionDenied),
        QuantError::ModelNotFound { .. } => Some(Code::NotFound),
        QuantError::Quantization { .. } | QuantError::Weights { .. } => Some(Code::FailedPrecondition),
        QuantError::Io { source, .. } | QuantError::Unfinished { source, .. } => Some(match source.kind() {
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::AlreadyExists => Code::AlreadyExists,
            _ => Code::Internal,
        }),
        QuantError::Query(_) => None,
        QuantError::Configuration { .. }
        | QuantError::Setting { .. }
        | QuantError::Output { .. }
        | QuantError::Metadata { .. }
        | QuantError::UnknownModality { .. }
        | QuantError::ShapeMismatch { .. }
        | QuantError::Validation { .. }
        | QuantError::BelowFloor { .. } => Some(Code::InvalidArgument),
        // Kinds that this crate does not know yet.
        _ => None,
    }
}
