//! How far a job is, on standard error: a bar on a terminal, otherwise a line every few seconds.

use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;
use std::time::Duration;

use arrow_quant_v2::{OnProgress, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::numbers;
use crate::output::Shown;

/// Time between two updates of the bar.
const BAR_EVERY: Duration = Duration::from_millis(100);

/// Time between two lines; a job that ends sooner prints none.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What the bar's line says.
const TEMPLATE: &str = "{prefix} {bar:24} {percent:>3} % {weights}, {eta} left  {wide_msg}";

/// Shows a job's progress for as long as it lives.
pub(crate) struct Meter {
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
    /// A bar where standard error is a terminal; otherwise lines, unless the result is JSON; nothing at all if quiet.
    pub(crate) fn new(shown: &Shown) -> Self {
        let show = if shown.quiet {
            Show::Nothing
        } else if io::stderr().is_terminal() {
            Show::Bar(bar())
        } else if shown.json {
            Show::Nothing
        } else {
            Show::Lines
        };
        Self { show }
    }

    /// How often the job shall call.
    pub(crate) fn interval(&self) -> Duration {
        match self.show {
            Show::Nothing | Show::Bar(_) => BAR_EVERY,
            Show::Lines => LINE_EVERY,
        }
    }

    /// What the job calls as it goes on.
    pub(crate) fn callback(&self) -> OnProgress {
        let show = self.show.clone();
        Arc::new(move |progress: &Progress| show.update(progress))
    }
}

impl Drop for Meter {
    /// Clears the terminal's line for the next output.
    fn drop(&mut self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }
}

impl Show {
    fn update(&self, progress: &Progress) {
        match self {
            Self::Nothing => {}
            Self::Bar(bar) => {
                let stage = progress.stage.to_string();
                if bar.prefix() != stage {
                    bar.reset_eta();
                    bar.set_prefix(stage);
                }
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                let tensor = progress.tensor.escape_debug();
                bar.set_message(format!("{}  {tensor}", numbers::rate(progress.rate)));
            }
            // The first and the last of a stage say nothing that the report does not.
            Self::Lines if (1..progress.total).contains(&progress.done) => {
                let _ = writeln!(io::stderr(), "{progress}");
            }
            Self::Lines => {}
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
        });
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_understands_its_template() {
        ProgressStyle::with_template(TEMPLATE).unwrap();
    }
}
