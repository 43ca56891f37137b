//! Work that is not for the threads of the runtime: waiting for the disk, and computing over slices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::{QuantError, Result};

/// Runs work that waits, such as for the disk, on a thread for that. If the future is dropped, the work still comes to its
/// end.
///
/// # Errors
/// That of the work.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ended_early(&error))?
}

/// Runs work that waits, where it must be done before the function returns. Where the runtime has several threads, its other
/// tasks go on meanwhile.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // On a runtime of one thread nothing else could go on. There is no other flavor today.
        Ok(_) | Err(_) => work(),
    }
}

/// What `work` makes of each number below `count`, in their order, computed by a pool of so many threads,
/// or by one where the system refuses them. The threads end
/// soon after the future was dropped, or `work` failed for one of the numbers.
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
    blocking(move || {
        let goes_on = |_: &usize| !stop.load(Ordering::Relaxed);
        let Ok(pool) = ThreadPoolBuilder::new().num_threads(threads.max(1)).build() else {
            // The system refuses so many threads. This one can do the work.
            return (0..count).take_while(goes_on).map(work).collect();
        };
        // Numbers differ a lot in the work that they are, so each is taken by itself.
        let numbers = (0..count).into_par_iter().with_max_len(1).take_any_while(goes_on);
        pool.install(|| numbers.map(work).collect())
    })
    .await
}

/// That a thread, or a task of the runtime, did not come to its end.
pub(crate) fn ended_early(error: &dyn std::error::Error) -> QuantError {
    QuantError::Quantization { tensor: None, message: format!("a worker ended early: {error}") }
}

/// Threads that were started for a future end soon after it was dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test]
    async fn results_have_the_order_of_the_numbers() {
        let made = on_threads(3, 100, |number| Ok(2 * number)).await.unwrap();
        assert_eq!(made, (0..200).step_by(2).collect::<Vec<_>>());
        assert!(on_threads(3, 0, Ok).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_error_or_a_panic_is_told() {
        let failed = |number| if number == 5 { Err(QuantError::configuration("five")) } else { Ok(number) };
        assert_eq!(on_threads(2, 10, failed).await.unwrap_err().to_string(), "five");
        let message = on_threads(2, 10, |number| if number == 5 { panic!("five") } else { Ok(number) }).await;
        assert!(message.unwrap_err().to_string().starts_with("a worker ended early"));
    }

    /// The first two numbers wait until the future was dropped.
    #[tokio::test]
    async fn threads_stop_between_numbers_when_the_future_is_dropped() {
        let (begun, is_dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (ended, mut all_ended) = tokio::sync::mpsc::channel::<()>(1);
        let work = {
            let (begun, is_dropped) = (Arc::clone(&begun), Arc::clone(&is_dropped));
            on_threads(2, 1000, move |number| {
                let _until_the_end = &ended;
                begun.fetch_add(1, Ordering::SeqCst);
                while !is_dropped.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                Ok(number)
            })
        };
        let has_begun = async {
            while begun.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = work => panic!("the work ended"),
            () = has_begun => {}
        }
        is_dropped.store(true, Ordering::SeqCst);
        all_ended.recv().await;
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }
}
