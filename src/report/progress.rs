//! The progress of a job, passed to a callback at bounded intervals.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::numbers;

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Samples of every tensor are quantized in all ways, to choose one for each.
    Measuring,
    /// What a calibration makes of each layer is found out.
    Calibrating,
    /// The model is quantized.
    Quantizing,
    /// Parts are quantized again, for tensors below the floor or to meet the target size.
    Requantizing,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Measuring => "measuring",
            Self::Calibrating => "calibrating",
            Self::Quantizing => "quantizing",
            Self::Requantizing => "requantizing",
        })
    }
}

/// How far a job is.
#[derive(Debug, Clone)]
pub struct Progress {
    /// What it is doing.
    pub stage: Stage,
    /// The tensor worked on last.
    pub tensor: String,
    /// Weights done in this stage; those that are kept cost no time to speak of and do not count.
    pub done: u64,
    /// Weights to do in this stage.
    pub total: u64,
    /// Weights a second since the stage began.
    pub rate: f64,
}

/// In a sentence: `quantizing lm_head: 34 % (1.2 of 3.4 billion weights), 310 million weights/s`.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.stage)?;
        if !self.tensor.is_empty() {
            write!(f, " {}", self.tensor.escape_debug())?;
        }
        if self.total == 0 {
            return Ok(());
        }
        let percent = (100.0 * self.done as f64 / self.total as f64).floor();
        write!(f, ": {percent:.0} % ({} weights)", numbers::part_of(self.done, self.total))?;
        if self.done == 0 { Ok(()) } else { write!(f, ", {}", numbers::rate(self.rate)) }
    }
}

/// Told how far a job is, from any of its threads.
pub type OnProgress = Arc<dyn Fn(&Progress) + Send + Sync>;

/// One stage of a job: counts what is done, and tells it at most once an interval, and when the stage ends.
pub(crate) struct StageProgress {
    stage: Stage,
    total: u64,
    done: AtomicU64,
    started: Instant,
    /// When it was last told. Held while it is told, so that what is done only grows.
    told: Mutex<Instant>,
    listener: Listener,
}

/// Who is told, and how often.
#[derive(Clone)]
pub(crate) struct Listener {
    pub on_progress: Option<OnProgress>,
    pub interval: Duration,
}

impl StageProgress {
    /// A stage of so many weights.
    pub(crate) fn new(stage: Stage, total: u64, listener: Listener) -> Self {
        let started = Instant::now();
        let progress = Self { stage, total, done: AtomicU64::new(0), started, told: Mutex::new(started), listener };
        progress.tell("");
        progress
    }

    /// Counts weights of a tensor as done.
    pub(crate) fn add(&self, weights: u64, tensor: &str) {
        self.done.fetch_add(weights, Ordering::Relaxed);
        // Of several threads that find it due, one tells it.
        if let Ok(mut told) = self.told.try_lock()
            && told.elapsed() >= self.listener.interval
        {
            *told = Instant::now();
            self.tell(tensor);
        }
    }

    /// Ends the stage.
    pub(crate) fn finish(&self) {
        let _told = self.told.lock();
        self.tell("");
    }

    fn tell(&self, tensor: &str) {
        let Some(on_progress) = &self.listener.on_progress else { return };
        let done = self.done.load(Ordering::Relaxed);
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
        on_progress(&Progress { stage: self.stage, tensor: tensor.to_string(), done, total: self.total, rate });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_says_how_far_and_how_fast() {
        let said = |done, total, rate| {
            Progress { stage: Stage::Quantizing, tensor: "norm".to_string(), done, total, rate }.to_string()
        };
        let expected = "quantizing norm: 34 % (1.2 of 3.4 billion weights), 289 million weights/s";
        assert_eq!(said(1_156_000_000, 3_400_000_000, 289e6), expected);
        assert_eq!(said(0, 1200, 0.0), "quantizing norm: 0 % (0 of 1,200 weights)");
        assert_eq!(said(0, 0, 0.0), "quantizing norm");
    }

    #[test]
    fn the_first_and_the_last_are_told_and_few_between() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = {
            let told = Arc::clone(&told);
            let on_progress: OnProgress = Arc::new(move |p: &Progress| told.lock().unwrap().push((p.done, p.total)));
            Listener { on_progress: Some(on_progress), interval: Duration::from_secs(3600) }
        };
        let stage = StageProgress::new(Stage::Quantizing, 1000, listener);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..250).for_each(|_| stage.add(1, "w")));
            }
        });
        stage.finish();
        assert_eq!(*told.lock().unwrap(), [(0, 1000), (1000, 1000)]);
    }
}
