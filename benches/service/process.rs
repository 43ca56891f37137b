//! Servers as processes, how to reach them, and the memory they take.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arrow_flight::flight_service_client::FlightServiceClient;
use tonic::transport::{Channel, Endpoint};

use crate::{Result, memory};

/// What a client that means to be fast allows the server to send ahead.
const CALL_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const FRAME: u32 = 1 << 20;

/// How often a server's memory is read.
const SAMPLED: Duration = Duration::from_millis(20);

/// A server as a process, which ends with this.
pub(crate) struct Server {
    process: Child,
    pub address: String,
}

impl Server {
    pub(crate) fn of_model(model: &Path) -> Result<Self> {
        let command = env::var_os("ARROW_QUANT").unwrap_or_else(|| env!("CARGO_BIN_EXE_arrow-quant").into());
        let mut served = OsString::from("model=");
        served.push(model);
        Self::start(Command::new(command).args(["serve", "--listen", "127.0.0.1:0", "--model"]).arg(served))
    }

    /// One that serves what another server gives it first.
    pub(crate) fn of_memory(address: &str) -> Result<Self> {
        Self::start(Command::new(env::current_exe()?).args([memory::FLAG, address]))
    }

    fn start(command: &mut Command) -> Result<Self> {
        let process = command.env("RUST_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut server = Self { process, address: String::new() };
        let mut line = String::new();
        if let Some(out) = server.process.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        match line.trim_end().strip_prefix(LISTENING) {
            Some(address) => server.address = address.to_string(),
            None => return Err(format!("{command:?} did not start").into()),
        }
        Ok(server)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) async fn client(&self) -> Result<FlightServiceClient<Channel>> {
        connect(&self.address).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a server prints before its address.
pub(crate) const LISTENING: &str = "listening on grpc://";

/// A client of a server on this machine.
pub(crate) async fn connect(address: &str) -> Result<FlightServiceClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME);
    let client = FlightServiceClient::new(endpoint.connect().await?);
    Ok(client.max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX))
}

/// Resident memory of a process, in bytes: all of it, and what is not of files.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    pub resident: u64,
    pub anonymous: u64,
}

impl Memory {
    pub(crate) fn of(process: u32) -> Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(1024 * line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<u64>().ok()?)
        };
        let found = bytes("VmRSS").zip(bytes("RssAnon")).zip(bytes("RssShmem"));
        let Some(((resident, anonymous), shared)) = found else { return Err("the process has ended".into()) };
        Ok(Self { resident, anonymous: anonymous + shared })
    }

    fn most(self, other: Self) -> Self {
        Self { resident: self.resident.max(other.resident), anonymous: self.anonymous.max(other.anonymous) }
    }

    /// By how much it is more.
    pub(crate) fn beyond(self, before: Self) -> Self {
        Self {
            resident: self.resident.saturating_sub(before.resident),
            anonymous: self.anonymous.saturating_sub(before.anonymous),
        }
    }
}

/// Reads a process's memory until it is asked for the most.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Memory>>,
}

impl Watch {
    pub(crate) fn start(process: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || -> Result<Memory> {
            let mut most = Memory::default();
            while !stopped.load(Ordering::Relaxed) {
                most = most.most(Memory::of(process)?);
                thread::sleep(SAMPLED);
            }
            Ok(most)
        });
        Self { stop, thread }
    }

    pub(crate) fn most(self) -> Result<Memory> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the memory could not be watched")?
    }
}
