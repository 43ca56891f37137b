//! Why a setting is refused: data, and the one place that makes a sentence of it.

use std::fmt;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::Value;

use super::DeploymentProfile;
use crate::QuantError;

/// Where a field's value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The profile.
    Profile(DeploymentProfile),
    /// A YAML file.
    File(PathBuf),
    /// A variable of the environment.
    Variable(&'static str),
    /// A flag, as the user types it.
    Flag(String),
    /// The caller.
    Explicit,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Profile(profile) => write!(f, "profile {profile}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
            Self::Explicit => f.write_str("explicit"),
        }
    }
}

/// A setting that is refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The field, if the problem is about one.
    pub field: Option<String>,
    /// Where the value came from, if not from the caller. A message names the field as it is named there.
    pub origin: Option<Origin>,
    /// What is wrong.
    pub problem: Box<Problem>,
}

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// There is no such name.
    Unknown {
        /// What the name should be of: a field, a limit.
        what: &'static str,
        /// The name.
        name: String,
        /// The name that was probably meant.
        nearest: Option<&'static str>,
        /// All names.
        names: Vec<&'static str>,
    },
    /// There is no such variable.
    UnknownVariable {
        /// The variable.
        name: String,
        /// The variable that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The field does not allow the value.
    Value {
        /// The value.
        found: Value,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// The field does not allow the value of an entry.
    Entry {
        /// The entry.
        entry: String,
        /// Its value.
        found: Value,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// A pattern is not a regular expression.
    Pattern {
        /// The pattern.
        pattern: String,
        /// What the parser says of it.
        reason: String,
    },
    /// Something else, such as fields that contradict each other: a clause that needs no subject.
    Other(String),
}

impl Refused {
    /// A problem of a field, with a value of the caller.
    pub fn new(field: &str, problem: Problem) -> Self {
        Self { field: Some(field.to_string()), origin: None, problem: Box::new(problem) }
    }

    /// A problem of a file as a whole.
    pub fn file(path: &Path, problem: impl fmt::Display) -> Self {
        let origin = Some(Origin::File(path.to_path_buf()));
        Self { field: None, origin, problem: Box::new(Problem::Other(problem.to_string())) }
    }

    /// The same, of a value that came from there.
    pub fn at(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field.as_deref().unwrap_or_default();
        let called = match &self.origin {
            Some(Origin::Variable(name)) => *name,
            Some(Origin::Flag(flag)) => flag.as_str(),
            Some(Origin::Profile(_) | Origin::File(_) | Origin::Explicit) | None => field,
        };
        if let Some(Origin::File(path)) = &self.origin {
            write!(f, "{}: ", path.display())?;
        }
        match &*self.problem {
            Problem::Unknown { what, name, nearest: Some(near), .. } => {
                write!(f, "there is no {what} '{name}'; did you mean {near}?")
            }
            Problem::Unknown { what, name, nearest: None, names } => {
                write!(f, "there is no {what} '{name}', allowed: {}", names.join(", "))
            }
            Problem::UnknownVariable { name, nearest: Some(near) } => {
                write!(f, "there is no variable {name}; did you mean {near}? unset it, or set that one")
            }
            Problem::UnknownVariable { name, nearest: None } => write!(
                f,
                "there is no variable {name}: set the field in a YAML file or by its flag, and unset the variable"
            ),
            Problem::Value { found, allowed } if matches!(self.origin, Some(Origin::Variable(_))) => {
                // A variable holds text, whatever the text looks like.
                let text = found.as_str().map_or_else(|| found.to_string(), str::to_string);
                write!(f, "{called} is '{text}', allowed: {allowed}")
            }
            Problem::Value { found, allowed } => write!(f, "{called} is {}, allowed: {allowed}", shown(found)),
            Problem::Entry { entry, found, allowed } => {
                write!(f, "{called} of '{entry}' is {}, allowed: {allowed}", shown(found))
            }
            Problem::Pattern { pattern, reason } => {
                write!(f, "{called} is '{pattern}', which is not a regular expression: {reason}")
            }
            Problem::Other(clause) => f.write_str(clause),
        }
    }
}

impl std::error::Error for Refused {}

impl From<Refused> for QuantError {
    fn from(refused: Refused) -> Self {
        let message = refused.to_string();
        let path = match refused.origin {
            Some(Origin::File(path)) => Some(path),
            Some(Origin::Profile(_) | Origin::Variable(_) | Origin::Flag(_) | Origin::Explicit) | None => None,
        };
        Self::Configuration { field: refused.field, path, message }
    }
}

/// A value as a message shows it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("'{text}'"),
        other => other.to_string(),
    }
}

/// Reads a regular expression.
pub(super) fn pattern(pattern: &str) -> Result<Regex, Problem> {
    Regex::new(pattern).map_err(|error| {
        let message = error.to_string();
        let reason = message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string();
        Problem::Pattern { pattern: pattern.to_string(), reason }
    })
}

/// Reads a regular expression that a field holds.
pub(crate) fn regex(field: &str, text: &str) -> crate::Result<Regex> {
    pattern(text).map_err(|problem| Refused::new(field, problem).into())
}
