//! Ctrl-C and SIGTERM: the work is dropped, which cleans up behind itself, and the exit status says so.

use crate::failure::Failure;

/// The job's result, or on a signal the failure that says so. The job is dropped before this returns.
pub(crate) async fn unless_interrupted<T>(job: impl Future<Output = arrow_quant_v2::Result<T>>) -> Result<T, Failure> {
    tokio::select! {
        // The signals first: their handlers must be there before the job creates what a signal must not leave behind.
        biased;
        status = signal() => Err(Failure::Interrupted { status, message: "interrupted".to_string() }),
        result = job => Ok(result?),
    }
}

/// Ends with Ctrl-C. From its first call on, Ctrl-C no longer ends the process by itself.
pub(crate) async fn ctrl_c() {
    if tokio::signal::ctrl_c().await.is_err() {
        // No handler could be installed: Ctrl-C ends the process by itself.
        std::future::pending::<()>().await;
    }
}

/// Ends with a signal that asks to stop: the exit status it stands for.
pub(crate) async fn signal() -> u8 {
    tokio::select! {
        () = ctrl_c() => 130,
        () = terminate() => 143,
    }
}

/// Takes the signal for a file that grows beyond the limit (`ulimit -f`), which would end the process without a word: with
/// it taken, the write fails, and that is told.
#[cfg(unix)]
pub(crate) fn file_size_signal() -> Option<tokio::signal::unix::Signal> {
    /// SIGXFSZ, the same on all systems that Rust runs on.
    const FILE_SIZE: i32 = 25;
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(FILE_SIZE)).ok()
}

/// Only Unix sends SIGXFSZ.
#[cfg(not(unix))]
pub fn file_size_signal() {}

/// Ends with SIGTERM.
#[cfg(unix)]
async fn terminate() {
    use tokio::signal::unix::{SignalKind, signal};

    match signal(SignalKind::terminate()) {
        Ok(mut signals) => {
            signals.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

/// Never ends: there is no SIGTERM here.
#[cfg(not(unix))]
async fn terminate() {
    std::future::pending().await
}

/// The signals that ask to stop, taken from when this is made.
#[cfg(all(unix, feature = "service"))]
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(all(unix, feature = "service"))]
impl Signals {
    /// # Errors
    /// If the system lets none be taken.
    pub(crate) fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Ends with the next one: the exit status it stands for.
    pub(crate) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}

/// The signals that ask to stop.
#[cfg(all(not(unix), feature = "service"))]
pub struct Signals;

#[cfg(all(not(unix), feature = "service"))]
impl Signals {
    /// # Errors
    /// None.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    /// Ends with the next one: the exit status it stands for.
    pub async fn next(&mut self) -> u8 {
        signal().await
    }
}

/// SIGHUP, which asks to read files anew.
#[cfg(all(unix, feature = "service"))]
pub(crate) struct Hangups(Option<tokio::signal::unix::Signal>);

#[cfg(all(unix, feature = "service"))]
impl Hangups {
    /// Without a handler, which the system may refuse, SIGHUP ends the process.
    pub(crate) fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};

        Self(signal(SignalKind::hangup()).ok())
    }

    /// Ends with the next one.
    pub(crate) async fn next(&mut self) {
        match &mut self.0 {
            Some(signals) => {
                signals.recv().await;
            }
            None => std::future::pending().await,
        }
    }
}

/// Only Unix sends SIGHUP, so this never yields one.
#[cfg(all(not(unix), feature = "service"))]
pub struct Hangups;

#[cfg(all(not(unix), feature = "service"))]
impl Hangups {
    /// Takes nothing.
    pub fn new() -> Self {
        Self
    }

    /// Never ends.
    pub async fn next(&mut self) {
        std::future::pending().await
    }
}
