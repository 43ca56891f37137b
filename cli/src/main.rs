//! `arrow-quant`: quantize, validate, inspect and query model weights from the command line.
//!
//! A thin face of the crate `arrow_quant_v2`: it parses arguments, starts the runtime, shows results and turns errors
//! into one line and an exit status. 0 is success, 1 an error, 2 a wrong argument, 3 a result below the floor, 130 and 143 an
//! interruption.

mod calibration;
mod completion;
mod config;
mod export;
mod failure;
mod flags;
mod inspect;
mod interrupt;
mod manual;
mod markdown;
mod named_model;
mod output;
mod parquet_rows;
mod plan;
mod progress;
mod prompt;
mod prompt_commands;
mod quantize;
mod queries;
mod report;
#[cfg(feature = "service")]
mod serve;
#[cfg(feature = "service")]
mod service;
mod source;
mod sql;
mod statements;
mod table;
mod targets;
mod validate;

use std::io::{self, Write};
use std::num::NonZero;
use std::process::ExitCode;
use std::time::Duration;

use arrow_quant_v2::{Started, numbers, start_runtime};
use clap::Parser;
use tokio::runtime::Runtime;

use crate::failure::Failure;

/// A server of many clients frees memory on other threads than took it, in pieces of all sizes: this allocator gives it back, where
/// glibc's kept hundreds of megabytes after two minutes of two hundred clients.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The allocator's settings: as many arenas as cores, because threads that write take turns and each arena keeps what they freed;
/// what was freed half a second ago goes back to the system. A thread of the allocator's own does that, which is
/// started later ([`runtime`]): where threads are short, the allocator would try again and again, and say so each time. One thread is
/// enough, and it starts no others.
#[cfg(not(target_env = "msvc"))]
// SAFETY: the allocator declares this symbol as a pointer to text that ends in a zero byte, which a reference to such an array is,
// and reads it; nothing else in the program has its name.
#[unsafe(export_name = "_rjem_malloc_conf")]
static MALLOC_CONF: &[u8; 79] = b"narenas_ratio:1.0,max_background_threads:1,dirty_decay_ms:500,muzzy_decay_ms:0\0";

/// The variable that bounds the cores where `--threads` does not.
const THREADS_VARIABLE: &str = "ARROW_QUANT_NUM_THREADS";

/// The most cores that can be asked for.
const MAX_THREADS: u16 = 1024;

/// Time for cancelled tasks to end and clean up behind themselves.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// What help says after the commands.
const MORE: &str = "\
Examples:
  arrow-quant quantize dream-7b dream-7b-int4
  arrow-quant plan dream-7b --target-bpw 3.5
  arrow-quant validate dream-7b dream-7b-int4 --min-accuracy 0.99
  arrow-quant sql --model m=dream-7b \"SELECT tensor, dtype, shape FROM m.tensors\"

Exit status: 0 success, 1 it cannot be done, 2 wrong arguments, 3 below the quality floor,
130 and 143 interrupted. With --json, an error is one line of JSON on standard error.";

/// Quantize model weights, validate the result, and query both with SQL.
#[derive(Parser)]
#[command(name = "arrow-quant", version, color = clap::ColorChoice::Never, max_term_width = 120, after_help = MORE)]
struct Cli {
    /// Cores to use at most, 0 for all [default: all] [env: ARROW_QUANT_NUM_THREADS]
    #[arg(
        long,
        global = true,
        value_name = "N",
        alias = "num-threads",
        value_parser = clap::value_parser!(u16).range(0..=i64::from(MAX_THREADS))
    )]
    threads: Option<u16>,

    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(clap::Subcommand)]
enum Command {
    /// Write a quantized copy of a model and report its quality, tensor by tensor
    Quantize(Box<quantize::Arguments>),
    /// Show what would become of a model, and estimate quality, size, time and memory; write the plan to edit it
    Plan(Box<plan::Arguments>),
    /// Compare a quantized model with its original, tensor by tensor
    Validate(validate::Arguments),
    /// List a model's tensors, from its headers alone
    Inspect(inspect::Arguments),
    /// Show what a quantized model says of itself, as text or as a page of HTML
    Report(report::Arguments),
    /// Write a quantized model for another program, with the codes that it has
    Export(export::Arguments),
    /// List what a model can be written as, and which programs load it
    Targets(targets::Arguments),
    /// Show or check a configuration
    Config(Box<config::Arguments>),
    /// Run SQL over models; without a query, at a prompt
    Sql(sql::Arguments),
    /// Serve models over Arrow Flight and Flight SQL
    #[cfg(feature = "service")]
    Serve(Box<serve::Arguments>),
    /// Print a script that completes commands and flags in a shell
    Completions(manual::CompletionArguments),
    /// Print the manual page, or write those of all commands
    Man(manual::ManArguments),
}

impl Command {
    /// Whether it prints its result as JSON, and so its errors.
    fn is_json(&self) -> bool {
        match self {
            Self::Quantize(arguments) => arguments.shown.json,
            Self::Plan(arguments) => arguments.shown.json,
            Self::Validate(arguments) => arguments.shown.json,
            Self::Inspect(arguments) => arguments.json,
            Self::Report(arguments) => arguments.json,
            Self::Targets(arguments) => arguments.json,
            Self::Export(arguments) => arguments.shown.json,
            Self::Config(_) | Self::Sql(_) | Self::Completions(_) | Self::Man(_) => false,
            #[cfg(feature = "service")]
            Self::Serve(_) => false,
        }
    }

    /// Whether it writes a log of its own, in which warnings are.
    fn has_log(&self) -> bool {
        #[cfg(feature = "service")]
        if let Self::Serve(_) = self {
            return true;
        }
        false
    }
}

/// Shows the library's warnings.
struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, record: &log::Metadata) -> bool {
        // Those of other crates are for their authors.
        record.level() <= log::Level::Warn && record.target().starts_with("arrow_quant")
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            // Nobody is left to hear that standard error is closed.
            let _ = writeln!(io::stderr(), "warning: {}", record.args());
        }
    }

    fn flush(&self) {}
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && asks_for_json() => return Failure::from(error).report(true),
        Err(error) => error.exit(),
    };
    let as_json = cli.command.is_json();
    // It fails only where a logger is set already.
    if !cli.command.has_log() && log::set_logger(&Warnings).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(as_json),
    }
}

/// Whether arguments that are not understood have `--json` among them.
fn asks_for_json() -> bool {
    std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// Runs the command. Those that have a configuration take the number of threads from there.
fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Quantize(arguments) => quantize::run(arguments, cli.threads),
        Command::Plan(arguments) => plan::run(arguments, cli.threads),
        Command::Config(arguments) => config::run(arguments, cli.threads),
        Command::Report(arguments) => report::run(arguments),
        Command::Targets(arguments) => targets::run(arguments),
        Command::Completions(arguments) => manual::complete(arguments),
        Command::Man(arguments) => manual::man(arguments),
        Command::Export(arguments) => export::run(arguments, cores(cli.threads)?),
        Command::Validate(arguments) => validate::run(arguments, cores(cli.threads)?),
        Command::Inspect(arguments) => inspect::run(arguments, cores(cli.threads)?),
        Command::Sql(arguments) => sql::run(arguments, cores(cli.threads)?),
        #[cfg(feature = "service")]
        Command::Serve(arguments) => serve::run(arguments, cli.threads),
    }
}

/// What a thread's stack may grow to: planning descends a statement as deep as it is long. Pages that are not reached are not
/// taken.
const STACK_BYTES: usize = 256 << 20;

/// A runtime on so many cores.
fn runtime(cores: usize) -> Result<Runtime, Failure> {
    let Started { runtime, is_short } = start_runtime(cores, STACK_BYTES)?;
    #[cfg(not(target_env = "msvc"))]
    if !is_short && !start_allocator_thread() {
        log::warn!("memory is given back late: the allocator cannot start its thread");
    }
    Ok(runtime)
}

/// Starts the thread of the allocator. False if it cannot be started.
#[cfg(not(target_env = "msvc"))]
fn start_allocator_thread() -> bool {
    let mut on = true;
    let (name, nothing, length) = (c"background_thread".as_ptr(), std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the name ends in a zero byte, the setting is a `bool`, of which the pointer and the length are given, and nothing is read.
    unsafe { tikv_jemalloc_sys::mallctl(name, nothing, length, (&raw mut on).cast(), size_of::<bool>()) == 0 }
}

/// Runs to the end, that of all tasks it started included.
fn in_runtime<T>(cores: usize, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime(cores)?;
    let result = runtime.block_on(async {
        let _too_large = interrupt::file_size_signal();
        work.await
    });
    runtime.shutdown_timeout(SHUTDOWN);
    result
}

/// Cores to use: those asked for, or those of the environment, or all.
fn cores(threads: Option<u16>) -> Result<usize, Failure> {
    let threads = match threads {
        Some(threads) => usize::from(threads),
        None => threads_of(std::env::var_os(THREADS_VARIABLE).map(|value| value.to_string_lossy().into_owned()))?,
    };
    Ok(match threads {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        threads => threads,
    })
}

/// The number in the environment's variable, 0 (all cores) where it is not set.
fn threads_of(variable: Option<String>) -> Result<usize, Failure> {
    let Some(value) = variable.filter(|value| !value.is_empty()) else { return Ok(0) };
    value.trim().parse().ok().filter(|&threads: &u16| threads <= MAX_THREADS).map(usize::from).ok_or_else(|| {
        Failure::Message(format!(
            "{THREADS_VARIABLE} is '{value}': set it to a whole number from 1 to {MAX_THREADS}, or 0 for all cores"
        ))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn threads_come_from_the_variable() {
        assert_eq!(threads_of(None).unwrap(), 0);
        assert_eq!(threads_of(Some("2".to_string())).unwrap(), 2);
        for wrong in ["-1", "two", "1025", "70000"] {
            let message = threads_of(Some(wrong.to_string())).unwrap_err().to_string();
            assert!(message.contains("ARROW_QUANT_NUM_THREADS") && message.contains("0 for all cores"), "{message}");
        }
    }

    #[test]
    fn a_wrong_value_is_refused_with_those_allowed() {
        for (flag, value, allowed) in [
            ("--bits", "7", "[possible values: 2, 3, 4, 5, 6, 8]"),
            ("--group-size", "100", "[possible values: 16, 32, 64, 128, 256]"),
            ("--scheme", "best", "affine"),
            ("--method", "best", "mse"),
            ("--profile", "best", "edge"),
        ] {
            let error = Cli::try_parse_from(["arrow-quant", "quantize", "a", "b", flag, value]).err().expect(flag);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(allowed), "{error}");
        }
    }

    #[test]
    fn threads_go_by_two_names_before_and_after_the_command() {
        for line in [
            ["arrow-quant", "--threads", "2", "inspect", "model"],
            ["arrow-quant", "inspect", "model", "--threads", "2"],
            ["arrow-quant", "inspect", "model", "--num-threads", "2"],
        ] {
            assert_eq!(Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).threads, Some(2));
        }
    }
}
