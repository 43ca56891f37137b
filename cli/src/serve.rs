//! `arrow-quant serve`: models over Arrow Flight and Flight SQL; and what its credentials file needs.

use std::convert::Infallible;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use arrow_quant_flight::{Credentials, Reloader, ServeError, Server, hash_password, logs, new_token};
use arrow_quant_v2::config::{Field, Layered};

use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::flags::{Flagged, Flags};
use crate::interrupt::{Hangups, Signals};
use crate::named_model::NamedModel;
use crate::service::{ServiceConfig, ServiceLayers, bind, limit, not_started};
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
    fn load(&self, threads: Option<u16>) -> arrow_quant_v2::Result<Layered<ServiceConfig>> {
        let mut layers = ServiceLayers::new().environment();
        if let Some(path) = &self.config {
            layers = layers.file(path);
        }
        let limits = self.limits.iter().map(|text| limit(text)).collect::<Result<Vec<_>, _>>()?;
        let models = NamedModel::field_value(&self.models)?;
        let others = (!self.models.is_empty()).then_some(("models", models));
        let threads = threads.map(|threads| ("threads", threads.into()));
        for (field, value) in self.fields.given()?.into_iter().chain(limits).chain(others).chain(threads) {
            layers = layers.flag(field, value);
        }
        layers.load()
    }
}

/// Serves until a signal, or does what there is to do besides.
pub(crate) fn run(arguments: &Arguments, threads: Option<u16>) -> Result<(), Failure> {
    match arguments.action {
        Some(Action::HashPassword) => {
            let hash = hash_password(&password()?).map_err(|error| Failure::Message(error.to_string()))?;
            print(&[hash])
        }
        Some(Action::NewToken) => {
            let (token, sum) = new_token();
            print(&[token, format!("sha256: {sum}")])
        }
        None => serve(arguments.flags.load(threads)?),
    }
}

fn serve(mut layered: Layered<ServiceConfig>) -> Result<(), Failure> {
    if layered.config.threads == 0 {
        layered.config.threads = cores(None)?;
    }
    let failed = |error| not_started(error, &layered);
    logs::init(layered.config.log_format).map_err(failed)?;
    let runtime = runtime(NETWORK_THREADS)?;
    let result = runtime.block_on(async {
        // Taken before clients are told that the server is there.
        let signals = Signals::new().map_err(|error| Failure::Message(format!("signals cannot be taken: {error}")))?;
        let server = bind(&layered).await?;
        announce(&server, &layered.config)?;
        let reloads = reload_on_hangup(server.reloader(), &layered);
        tokio::select! {
            ended = until_stopped(server, signals, failed) => ended,
            never = reloads => match never {},
        }
    });
    runtime.shutdown_timeout(SHUTDOWN);
    result
}

/// Says where the server is.
fn announce(server: &Server, config: &ServiceConfig) -> Result<(), Failure> {
    let scheme = if config.is_encrypted() { "grpc+tls" } else { "grpc" };
    let mut lines = vec![format!("listening on {scheme}://{}", server.address())];
    log::info!("{}", config.summary());
    lines.extend(server.metrics_address().map(|address| format!("metrics on http://{address}/metrics")));
    print(&lines)
}

/// Reads credentials and certificates anew whenever SIGHUP asks for it. What cannot be used is told, and changes nothing.
async fn reload_on_hangup(reloader: Reloader, layered: &Layered<ServiceConfig>) -> Infallible {
    let mut hangups = Hangups::new();
    loop {
        hangups.next().await;
        let credentials = layered.config.credentials.as_deref().map(Credentials::read).transpose();
        match credentials.and_then(|credentials| reloader.reload(credentials)) {
            Ok(()) => log::info!("SIGHUP: credentials and certificates are those of the files now"),
            Err(error) => {
                let failure = not_started(error, layered);
                log::error!("SIGHUP: credentials and certificates stay as they were: {failure}");
            }
        }
    }
}

/// Serves until a signal and then for as long as queries need to end, or until a second signal.
async fn until_stopped(
    server: Server,
    mut signals: Signals,
    failed: impl Fn(ServeError) -> Failure,
) -> Result<(), Failure> {
    let (stop, stopped) = oneshot::channel();
    // If `stop` is dropped without a message, the server stops too.
    let mut serving = std::pin::pin!(server.run(async move { stopped.await.unwrap_or(()) }));
    let ended = tokio::select! {
        ended = &mut serving => Some(ended),
        _ = signals.next() => None,
    };
    if let Some(ended) = ended {
        return ended.map_err(failed);
    }
    // It cannot have ended: it was not told to.
    let _ = stop.send(());
    tokio::select! {
        ended = &mut serving => ended.map_err(failed),
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
