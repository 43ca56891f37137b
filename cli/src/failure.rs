//! Why the command ends without success, told in one line, and its exit status.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use arrow::error::ArrowError;
use arrow_quant_v2::QuantError;
use datafusion::error::DataFusionError;

/// Why the command ends without success.
#[derive(Debug)]
pub enum Failure {
    /// The work could not be done.
    Job(QuantError),
    /// Results could not be written to standard output.
    Output(io::Error),
    /// The command itself has something to say.
    Message(String),
    /// Arguments that do not go together.
    Usage(String),
    /// A signal ended the work.
    Interrupted {
        /// 128 and the signal's number.
        status: u8,
        /// What it left behind.
        message: String,
    },
}

impl Failure {
    /// Tells it on standard error.
    pub fn print(&self) {
        // Nobody is left to hear that standard error is closed.
        let _ = writeln!(io::stderr(), "error: {self}");
    }

    /// Tells it on standard error, and the status to exit with. A reader that has had enough (`| head`) is no failure.
    pub fn report(self) -> ExitCode {
        match &self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            _ => self.print(),
        }
        match self {
            Self::Interrupted { status, .. } => ExitCode::from(status),
            Self::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = match self {
            Self::Job(error @ QuantError::Query(_)) => lower_first(&error.to_string()),
            Self::Job(error) => error.to_string(),
            Self::Output(error) => format!("cannot write to standard output: {error}"),
            Self::Message(message) | Self::Usage(message) | Self::Interrupted { message, .. } => message.clone(),
        };
        f.write_str(&one_line(&message))
    }
}

impl From<QuantError> for Failure {
    fn from(error: QuantError) -> Self {
        Self::Job(error)
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        Self::Job(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<ArrowError> for Failure {
    /// Arrow's writers hand on what standard output said; all else is the query's.
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, error) => Self::Output(error),
            error => DataFusionError::from(error).into(),
        }
    }
}

/// `message` on one line. Names in it come from files: no control character reaches the terminal.
fn one_line(message: &str) -> String {
    let line = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A sentence's first letter in lower case; an abbreviation (SQL) stays.
fn lower_first(message: &str) -> String {
    let mut chars = message.chars();
    match (chars.next(), chars.next()) {
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(message.chars().skip(1)).collect()
        }
        _ => message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_clean_line() {
        assert_eq!(one_line("first\n  second\n\n\x1b[31mthird"), "first second  [31mthird");
    }

    #[test]
    fn sentences_start_small_and_abbreviations_stay() {
        assert_eq!(lower_first("No field named x"), "no field named x");
        assert_eq!(lower_first("SQL error"), "SQL error");
        assert_eq!(lower_first(""), "");
    }
}
