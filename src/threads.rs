//! Starting threads where the system may refuse them: it bounds the processes of a user (`ulimit -u`), of a container (its limit of
//! pids), and the memory that their stacks are in.
//!
//! tokio panics if a worker cannot be started. Work that waits for a thread it cannot get waits for ever. So the threads are tried out
//! first, and a runtime gets no more than there are.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::{QuantError, Result};

/// Threads that a process should be able to start beside those of a runtime: for blocking work, and for a pool.
const SPARE: usize = 4;

/// The time after which the system has taken note that threads ended.
const SETTLED: Duration = Duration::from_millis(20);

/// How long an idle thread for blocking work lives where another one may not be had.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A runtime, and whether the system gave fewer threads than were asked for.
#[derive(Debug)]
pub struct Started {
    /// The runtime.
    pub runtime: Runtime,
    /// Whether no other threads should be started.
    pub is_short: bool,
}

/// Starts a runtime with so many threads for queries, whose stacks have so many bytes. Where the system does not give as many, with
/// fewer, which is said in the log.
///
/// # Errors
/// [`Threads`](QuantError::Threads) if it does not even give two: one for queries, and one for what waits.
pub fn start_runtime(threads: usize, stack: usize) -> Result<Started> {
    let mut builder = Builder::new_multi_thread();
    builder.thread_name("arrow-quant").thread_stack_size(stack).enable_all();
    let (possible, refused) = try_out(threads + SPARE, stack);
    let Some(source) = refused else {
        return Ok(Started { runtime: build(builder.worker_threads(threads))?, is_short: false });
    };
    // One is left for the caller to start.
    let (workers, blocking) = match possible {
        0 | 1 => return Err(QuantError::Threads { source }),
        2 | 3 => (1, 1),
        more => (threads.min(more - 3), 2),
    };
    log::warn!("the system starts no more than {possible} threads ({source}): {workers} of them compute");
    thread::sleep(SETTLED);
    let runtime = build(builder.worker_threads(workers).max_blocking_threads(blocking).thread_keep_alive(FOREVER))?;
    keep_blocking_threads(&runtime, blocking);
    Ok(Started { runtime, is_short: true })
}

/// Builds a runtime; threads may have become fewer since they were tried out.
fn build(builder: &mut Builder) -> Result<Runtime> {
    let built = panic::catch_unwind(AssertUnwindSafe(|| builder.build()));
    let built = built.unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into()));
    built.map_err(|source| QuantError::Threads { source })
}

/// Starts the threads for blocking work now: where threads are short, they cannot be had later, and the work would wait for ever.
fn keep_blocking_threads(runtime: &Runtime, count: usize) {
    let gate = Arc::new(Mutex::new(()));
    let shut = gate.lock();
    let started: Vec<_> = (0..count)
        .map(|_| {
            let gate = Arc::clone(&gate);
            runtime.spawn_blocking(move || drop(gate.lock().unwrap_or_else(PoisonError::into_inner)))
        })
        .collect();
    drop(shut);
    for waits in started {
        // It does nothing that could fail.
        let _ = runtime.block_on(waits);
    }
}

/// How many threads can be started at once, up to a number; and why not more.
fn try_out(wanted: usize, stack: usize) -> (usize, Option<io::Error>) {
    let gate = Arc::new(Mutex::new(()));
    let shut = gate.lock();
    let (mut threads, mut refused) = (Vec::with_capacity(wanted), None);
    while threads.len() < wanted && refused.is_none() {
        let gate = Arc::clone(&gate);
        let waits = move || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        match thread::Builder::new().stack_size(stack).spawn(waits) {
            Ok(thread) => threads.push(thread),
            Err(error) => refused = Some(error),
        }
    }
    drop(shut);
    let possible = threads.len();
    for thread in threads {
        // It does nothing that could panic.
        let _ = thread.join();
    }
    (possible, refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_has_the_threads_that_were_asked_for() {
        let started = start_runtime(2, 1 << 20).unwrap();
        assert_eq!((started.runtime.metrics().num_workers(), started.is_short), (2, false));
        assert_eq!(started.runtime.block_on(async { tokio::task::spawn_blocking(|| 7).await.unwrap() }), 7);
    }

    /// No machine has the addresses for such stacks.
    #[test]
    fn threads_that_cannot_be_started_are_an_error_that_says_what_to_do() {
        let error = start_runtime(1, usize::MAX >> 4).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("cannot be started") && message.contains("ulimit -u"), "{message}");
    }

    #[test]
    fn threads_for_blocking_work_are_there_before_they_are_needed() {
        let mut builder = Builder::new_multi_thread();
        let runtime = build(builder.worker_threads(1).max_blocking_threads(2).thread_keep_alive(FOREVER)).unwrap();
        keep_blocking_threads(&runtime, 2);
        assert_eq!(runtime.block_on(async { tokio::task::spawn_blocking(|| 7).await.unwrap() }), 7);
    }
}
