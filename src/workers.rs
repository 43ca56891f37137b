//! Work on many things by threads of its own, beside the runtime.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{QuantError, Result};

/// What `work` makes of each number below `count`, in their order. The threads end soon after the future was dropped, or one
/// of them failed.
///
/// # Errors
/// The first that `work` had.
pub(crate) async fn on_threads<T: Send + 'static>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> Result<T> + Send + Sync + 'static,
) -> Result<Vec<T>> {
    let stopped = StopOnDrop(Arc::new(AtomicBool::new(false)));
    let stop = Arc::clone(&stopped.0);
    let joined = tokio::task::spawn_blocking(move || each(threads, count, &stop, work)).await;
    joined
        .map_err(|error| QuantError::Quantization { tensor: None, message: format!("a worker ended early: {error}") })?
}

fn each<T: Send>(
    threads: usize,
    count: usize,
    stop: &AtomicBool,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    let failed = Mutex::new(None);
    let run = || {
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            match work(index) {
                Ok(made) => done.lock().unwrap_or_else(PoisonError::into_inner).push((index, made)),
                Err(error) => {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    std::thread::scope(|scope| (0..threads.max(1)).for_each(|_| drop(scope.spawn(run))));
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, made)| made).collect())
}

/// Threads that were started for a future end soon after it was dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
