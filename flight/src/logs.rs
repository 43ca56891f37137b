//! Logs on standard error, as text or one JSON object a line; with the feature `otel`, traces to a collector.

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::ServeError;

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends this program's logs, and those of the libraries it is made of, to standard error. `RUST_LOG` chooses which; without it
/// all of level `info` and above. With the feature `otel` and the variable `OTEL_EXPORTER_OTLP_ENDPOINT`, spans go to that
/// collector too.
///
/// # Errors
/// If `RUST_LOG` cannot be understood, or logs go elsewhere already.
pub fn init(format: LogFormat) -> Result<(), ServeError> {
    let configuration = |error: &dyn std::fmt::Display| ServeError::Configuration(format!("RUST_LOG: {error}"));
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) => EnvFilter::try_new(directives).map_err(|error| configuration(&error))?,
        Err(_) => EnvFilter::new("info"),
    };
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry().with(filter).with(lines);
    #[cfg(feature = "otel")]
    let registry = registry.with(traces()?);
    registry.try_init().map_err(|error| ServeError::Configuration(format!("logs: {error}")))?;
    // A panic ends the request it happens in; it is logged as everything else is.
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, message, "panicked");
    }));
    Ok(())
}

/// Spans as OpenTelemetry's collectors take them; nothing where no collector is named.
#[cfg(feature = "otel")]
fn traces<S>() -> Result<Option<impl Layer<S>>, ServeError>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    use opentelemetry::trace::TracerProvider;

    if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_none() {
        return Ok(None);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .build()
        .map_err(|error| ServeError::Configuration(format!("OTEL_EXPORTER_OTLP_ENDPOINT: {error}")))?;
    let resource = opentelemetry_sdk::Resource::builder().with_service_name("arrow-quant").build();
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build();
    let tracer = provider.tracer("arrow-quant");
    opentelemetry::global::set_tracer_provider(provider);
    Ok(Some(tracing_opentelemetry::layer().with_tracer(tracer)))
}
