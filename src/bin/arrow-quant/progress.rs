//! How far a job is, on standard error: a bar on a terminal, otherwise a line every few seconds.

use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow_quant_v2::{OnProgress, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::numbers;

/// Milliseconds between two updates of the bar.
const BAR_EVERY: u64 = 100;

/// Milliseconds between two lines; a job that ends sooner prints none.
const LINE_EVERY: u64 = 5_000;

/// What the bar's line says.
const TEMPLATE: &str = "{bar:24} {percent:>3} % {weights}, {rate}, {eta} left  {wide_msg}";

/// Shows a job's progress for as long as it lives.
pub struct Meter {
    show: Show,
}

/// The ways to show it.
#[derive(Clone)]
enum Show {
    Nothing,
    Bar(ProgressBar),
    Lines,
}

impl Meter {
    /// A bar where standard error is a terminal; otherwise lines, unless `results_only`; nothing at all if `quiet`.
    pub fn new(quiet: bool, results_only: bool) -> Self {
        let show = if quiet {
            Show::Nothing
        } else if io::stderr().is_terminal() {
            Show::Bar(bar())
        } else if results_only {
            Show::Nothing
        } else {
            Show::Lines
        };
        Self { show }
    }

    /// What the job calls as it goes on, as often as it likes.
    pub fn callback(&self) -> OnProgress {
        let show = self.show.clone();
        let started = Instant::now();
        let last = AtomicU64::new(0);
        Arc::new(move |progress: &Progress| {
            let every = match &show {
                Show::Nothing => return,
                Show::Bar(_) => BAR_EVERY,
                Show::Lines => LINE_EVERY,
            };
            let now = started.elapsed().as_millis() as u64;
            let before = last.load(Ordering::Relaxed);
            let due = now >= before + every;
            // Of several threads that find it due, one shows it.
            if due && last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                show.update(progress, started.elapsed());
            }
        })
    }
}

impl Drop for Meter {
    /// Leaves the terminal's line to whoever writes next.
    fn drop(&mut self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }
}

impl Show {
    fn update(&self, progress: &Progress, elapsed: Duration) {
        match self {
            Self::Nothing => {}
            Self::Bar(bar) => {
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                bar.set_message(progress.tensor.escape_debug().to_string());
            }
            Self::Lines => {
                let _ = writeln!(io::stderr(), "{}", line(progress, elapsed));
            }
        }
    }
}

/// The bar, not drawn before its first update.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template(TEMPLATE)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .with_key("weights", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}", numbers::part_of(state.pos(), state.len().unwrap_or(0)));
        })
        .with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}", numbers::rate(state.per_sec()));
        });
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
}

/// Progress in a sentence: `quantized 34 % (1.2 of 3.4 billion weights), 310 million weights/s`.
fn line(progress: &Progress, elapsed: Duration) -> String {
    let (done, total) = (progress.done as f64, progress.total.max(1) as f64);
    format!(
        "quantized {:.0} % ({} weights), {}",
        (100.0 * done / total).floor(),
        numbers::part_of(progress.done, progress.total),
        numbers::rate(done / elapsed.as_secs_f64().max(1e-3))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_and_how_fast() {
        let progress = Progress { done: 1_156_000_000, total: 3_400_000_000, tensor: "norm".to_string() };
        assert_eq!(
            line(&progress, Duration::from_secs(4)),
            "quantized 34 % (1.2 of 3.4 billion weights), 289 million weights/s"
        );
    }

    #[test]
    fn the_bar_understands_its_template() {
        ProgressStyle::with_template(TEMPLATE).unwrap();
    }
}
