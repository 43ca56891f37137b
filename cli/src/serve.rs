//! `arrow-quant serve`: models over Arrow Flight and Flight SQL; and what its credentials file needs.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use arrow_quant_flight::{Server, hash_password, logs, new_token};
use arrow_quant_v2::config::Field;

use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::flags::{Flagged, Flags};
use crate::interrupt::Signals;
use crate::service::{NamedModel, ServiceConfig, ServiceLayers, bind, limit, not_started};
use crate::{SHUTDOWN, cores, output, runtime};

/// Threads that take and answer requests; queries have their own.
const NETWORK_THREADS: usize = 2;

/// What help says after the flags.
const EXAMPLES: &str = "\
Examples:
  arrow-quant serve --model dream=dream-7b
  arrow-quant serve --config service.yaml --limit query_timeout=60";

/// Arguments of `arrow-quant serve`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    flags: ServeFlags,
}

/// What there is to do besides serving.
#[derive(clap::Subcommand)]
enum Action {
    /// Read a password from standard input and print its hash for the credentials file
    HashPassword,
    /// Print a new bearer token, and its SHA-256 for the credentials file
    NewToken,
}

/// What the server is told: a flag for every field, models, limits and a file of fields.
#[derive(clap::Args)]
struct ServeFlags {
    /// A model to serve as the schema NAME with the tables tensors, weights and, if quantized, quantized; may be given more
    /// than once
    #[arg(long = "model", value_name = "NAME=PATH")]
    models: Vec<NamedModel>,
    /// A YAML file of settings; flags and the environment go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A limit by its name, such as query_timeout=60, concurrent_queries=16 or memory_mb=4096; may be given more than once
    #[arg(long = "limit", value_name = "NAME=VALUE")]
    limits: Vec<String>,
    #[command(flatten)]
    fields: Flags<ServiceConfig>,
}

impl Flagged for ServiceConfig {
    fn has_flag(field: &Field<Self>) -> bool {
        // Limits share one, all commands have the number of threads, and a model's path may have the character =.
        !field.name.starts_with("limits.") && !["models", "threads"].contains(&field.name)
    }
}

impl ServeFlags {
    /// The file, the environment and the flags together.
    fn load(&self, threads: Option<u16>) -> arrow_quant_v2::Result<ServiceConfig> {
        let mut layers = ServiceLayers::new().environment();
        if let Some(path) = &self.config {
            layers = layers.file(path);
        }
        let limits = self.limits.iter().map(|text| limit(text)).collect::<Result<Vec<_>, _>>()?;
        let others = [("models", NamedModel::field_value(&self.models)?)];
        let threads = threads.map(|threads| ("threads", threads.into()));
        for (field, value) in self.fields.given()?.into_iter().chain(limits).chain(others).chain(threads) {
            layers = layers.flag(field, value);
        }
        Ok(layers.load()?.config)
    }
}

/// Serves until a signal, or does what there is to do besides.
pub(crate) fn run(arguments: &Arguments, threads: Option<u16>) -> Result<(), Failure> {
    match arguments.action {
        Some(Action::HashPassword) => {
            let hash = hash_password(&password()?).map_err(not_started)?;
            print(&[hash])
        }
        Some(Action::NewToken) => {
            let (token, sum) = new_token();
            print(&[token, format!("sha256: {sum}")])
        }
        None => serve(arguments.flags.load(threads)?),
    }
}

fn serve(mut config: ServiceConfig) -> Result<(), Failure> {
    if config.threads == 0 {
        config.threads = cores(None)?;
    }
    logs::init(config.log_format).map_err(not_started)?;
    let runtime = runtime(NETWORK_THREADS)?;
    let result = runtime.block_on(async {
        // Taken before anybody is told that the server is there.
        let signals = Signals::new().map_err(|error| Failure::Message(format!("signals cannot be taken: {error}")))?;
        let server = bind(&config).await?;
        announce(&server, &config)?;
        until_stopped(server, signals).await
    });
    runtime.shutdown_timeout(SHUTDOWN);
    result
}

/// Says where the server is.
fn announce(server: &Server, config: &ServiceConfig) -> Result<(), Failure> {
    let scheme = if config.is_encrypted() { "grpc+tls" } else { "grpc" };
    let mut lines = vec![format!("listening on {scheme}://{}", server.address())];
    lines.extend(server.metrics_address().map(|address| format!("metrics on http://{address}/metrics")));
    print(&lines)
}

/// Serves until a signal and then for as long as queries need to end, or until a second signal.
async fn until_stopped(server: Server, mut signals: Signals) -> Result<(), Failure> {
    let (stop, stopped) = oneshot::channel();
    // Whoever does not say stop is gone, and so is this.
    let mut serving = std::pin::pin!(server.run(async move { stopped.await.unwrap_or(()) }));
    let ended = tokio::select! {
        ended = &mut serving => Some(ended),
        _ = signals.next() => None,
    };
    if let Some(ended) = ended {
        return Ok(ended.map_err(not_started)?);
    }
    // It cannot have ended: it was not told to.
    let _ = stop.send(());
    tokio::select! {
        ended = &mut serving => Ok(ended.map_err(not_started)?),
        status = signals.next() => {
            let failure = Failure::Interrupted { status, message: "stopped at once".to_string() };
            failure.print();
            // Without waiting for what runs, which is what was asked for.
            std::process::exit(i32::from(status))
        }
    }
}

/// A line of standard input.
fn password() -> Result<String, Failure> {
    if io::stdin().is_terminal() {
        // Nobody is left to hear that standard error is closed.
        let _ = write!(io::stderr(), "password (shown as you type): ");
    }
    let mut line = String::new();
    io::stdin()
        .read_line(&mut line)
        .map_err(|error| Failure::Message(format!("cannot read standard input: {error}")))?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_string())
}

fn print(lines: &[String]) -> Result<(), Failure> {
    let mut out = output::stdout();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(())
}
