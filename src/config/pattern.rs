//! Regular expressions that fields hold.

use regex::Regex;
use regex_syntax::Error;

use super::{Problem, Refused};

/// Reads a regular expression.
pub(super) fn pattern(pattern: &str) -> Result<Regex, Problem> {
    Regex::new(pattern).map_err(|refused| {
        // The parser says what is wrong as a value. `Regex` has its message alone, which shows the pattern in several lines.
        let reason = match regex_syntax::parse(pattern) {
            Err(Error::Parse(error)) => error.kind().to_string(),
            Err(Error::Translate(error)) => error.kind().to_string(),
            // Too large when compiled, which the message says in one line; or an error of a kind that the parser adds later.
            Ok(_) | Err(_) => refused.to_string(),
        };
        Problem::Pattern { pattern: pattern.to_string(), reason }
    })
}

/// Reads a regular expression that a field holds.
pub(crate) fn regex(field: &str, text: &str) -> crate::Result<Regex> {
    pattern(text).map_err(|problem| Refused::new(field, problem).into())
}
