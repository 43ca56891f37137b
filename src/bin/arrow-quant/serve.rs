//! `arrow-quant serve`: models over Arrow Flight and Flight SQL; and what its credentials file needs.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use arrow_quant_flight::{Server, hash_password, logs, new_token};
use arrow_quant_v2::config::{Configuration, Field};
use arrow_quant_v2::service::{NamedModel, ServiceConfig, ServiceLayers, bind, limit, not_started};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::flags::{flag, given};
use crate::interrupt::Signals;
use crate::{SHUTDOWN, cores, output, runtime};

/// Threads that take and answer requests; queries have their own.
const NETWORK_THREADS: usize = 2;

/// Arguments of `arrow-quant serve`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    flags: Flags,
}

/// What there is to do besides serving.
#[derive(clap::Subcommand)]
enum Action {
    /// Read a password from standard input and print its hash for the credentials file
    HashPassword,
    /// Print a new bearer token, and its SHA-256 for the credentials file
    NewToken,
}

/// What the server is told: a flag for every field save the limits, which share one, and the number of threads, which all
/// commands have.
struct Flags(ArgMatches);

/// A YAML file of fields.
const FILE: &str = "config";

/// Models, with their names.
const MODELS: &str = "models";

/// The limits, each by its name.
const LIMITS: &str = "limits";

/// The fields that have flags of their own.
fn fields() -> impl Iterator<Item = &'static Field<ServiceConfig>> {
    let has_flag = |name: &str| !name.starts_with("limits.") && ![MODELS, "threads"].contains(&name);
    ServiceConfig::FIELDS.iter().filter(move |field| has_flag(field.name))
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE).long(FILE).value_name("FILE").value_parser(value_parser!(PathBuf));
        let model = Arg::new(MODELS).long("model").value_name("NAME=PATH").action(ArgAction::Append);
        let limit = Arg::new(LIMITS).long("limit").value_name("NAME=VALUE").action(ArgAction::Append);
        command.args(fields().map(flag)).args([
            model.value_parser(value_parser!(NamedModel)).help(
                "A model to serve as the schema NAME with the tables tensors, weights and, if quantized, quantized; may be \
                 given more than once",
            ),
            file.help("A YAML file of fields; flags and the environment go before it"),
            limit.help(
                "A limit by its name, such as query_timeout=60, concurrent_queries=16 or memory_mb=4096; may be given more \
                 than once",
            ),
        ])
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(matches.clone()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = matches.clone();
        Ok(())
    }
}

impl Flags {
    /// The file, the environment and the flags together.
    fn load(&self, threads: Option<u16>) -> arrow_quant_v2::Result<ServiceConfig> {
        let mut layers = ServiceLayers::new().environment();
        if let Some(path) = self.0.get_one::<PathBuf>(FILE) {
            layers = layers.file(path);
        }
        for field in fields() {
            if let Some(value) = given(field, &self.0)? {
                layers = layers.flag(field.name, value);
            }
        }
        if let Some(threads) = threads {
            layers = layers.flag("threads", threads.into());
        }
        for text in self.0.get_many::<String>(LIMITS).unwrap_or_default() {
            let (name, value) = limit(text)?;
            layers = layers.flag(name, value);
        }
        let models: Vec<_> = self.0.get_many::<NamedModel>(MODELS).unwrap_or_default().cloned().collect();
        Ok(layers.flag(MODELS, NamedModel::field_value(&models)?).load()?.config)
    }
}

/// Serves until a signal, or does what there is to do besides.
pub fn run(arguments: &Arguments, threads: Option<u16>) -> Result<(), Failure> {
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
