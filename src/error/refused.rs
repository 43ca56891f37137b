//! Why a setting is refused: data, and the one place that makes a sentence of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{FieldNames, Literals, QuantError, Words};

/// Where a field's value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The profile of this name.
    Profile(&'static str),
    /// A YAML file.
    File(PathBuf),
    /// A variable of the environment.
    Variable(&'static str),
    /// A flag, as the user types it.
    Flag(String),
    /// The caller.
    Explicit,
}

impl Origin {
    /// Whether it is the same place, whatever the variable or flag is called there.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Variable(_), Self::Variable(_)) | (Self::Flag(_), Self::Flag(_)) => true,
            (Self::Profile(_) | Self::File(_) | Self::Variable(_) | Self::Flag(_) | Self::Explicit, _) => self == other,
        }
    }
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

/// What a field may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// True or false.
    Switch,
    /// What the words say.
    Words {
        /// The words, which do not speak of null.
        text: &'static str,
        /// What null means, if it is a value that users may give.
        null: Option<&'static str>,
    },
}

impl Allowed {
    /// What these words say.
    pub const fn words(text: &'static str) -> Self {
        Self::Words { text, null: None }
    }

    /// The same, or null.
    pub const fn or_null(self, meaning: &'static str) -> Self {
        match self {
            Self::Switch => self,
            Self::Words { text, .. } => Self::Words { text, null: Some(meaning) },
        }
    }

    /// What is allowed, for users of a language.
    pub fn spelled(self, literals: Literals) -> String {
        match self {
            Self::Switch => format!("{} or {}", literals.truth(true), literals.truth(false)),
            Self::Words { text, null } => match null.zip(literals.null()) {
                Some((meaning, null)) => format!("{text}, or {null} {meaning}"),
                None => text.to_string(),
            },
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
    /// Where values of other fields came from, which the problem may be about too.
    pub others: BTreeMap<&'static str, Origin>,
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
        /// What is allowed.
        allowed: Allowed,
    },
    /// The field does not allow the value of an entry.
    Entry {
        /// The entry.
        entry: String,
        /// Its value.
        found: Value,
        /// What is allowed.
        allowed: Allowed,
    },
    /// An entry is there twice.
    Twice {
        /// The entry.
        entry: String,
    },
    /// A pattern is not a regular expression.
    Pattern {
        /// The pattern.
        pattern: String,
        /// What the parser says of it.
        reason: String,
    },
    /// Another field says the same in another way.
    BothSet {
        /// The other field.
        other: &'static str,
    },
    /// Another field says a part of the same, and says it differently.
    Contradicts {
        /// The other field.
        other: &'static str,
        /// The value of the field, and of the other one.
        values: Box<[Value; 2]>,
    },
    /// The field is not what another field goes with.
    NotWith {
        /// The other field.
        other: &'static str,
        /// The value of the field, and of the other one.
        values: Box<[Value; 2]>,
        /// What the field may be beside it.
        allowed: &'static str,
    },
    /// The field has no effect, because a switch is off.
    IsOff {
        /// The switch.
        switch: &'static str,
    },
    /// The field is not set, and another field needs it.
    Missing {
        /// The field that is set.
        needed_by: &'static str,
    },
    /// Something that is said of the field: `has …`, `is …`.
    Predicate(String),
    /// Something of a file as a whole.
    File(String),
}

impl Refused {
    /// A problem of a field, with a value of the caller.
    pub fn new(field: &str, problem: Problem) -> Self {
        Self { field: Some(field.to_string()), ..Self::general(problem) }
    }

    /// A problem that is not of one field.
    pub fn general(problem: Problem) -> Self {
        Self { field: None, origin: None, others: BTreeMap::new(), problem: Box::new(problem) }
    }

    /// A problem of a file as a whole.
    pub fn file(path: &Path, problem: impl fmt::Display) -> Self {
        Self::general(Problem::File(problem.to_string())).at(Origin::File(path.to_path_buf()))
    }

    /// The same, of a value that came from there.
    pub fn at(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    /// What a field is called: as its place names it, or as a front end does.
    fn called(&self, field: &str, words: &dyn Words) -> String {
        match self.origin_of(field) {
            Some(Origin::Variable(name)) => (*name).to_string(),
            Some(Origin::Flag(flag)) => flag.clone(),
            Some(origin @ Origin::File(path)) => {
                // The message starts with the file of the field that is refused.
                let is_told = self.origin.as_ref() == Some(origin);
                if is_told { field.to_string() } else { format!("{field} in {}", path.display()) }
            }
            Some(Origin::Profile(_) | Origin::Explicit) | None => words.setting(field),
        }
    }

    fn origin_of(&self, field: &str) -> Option<&Origin> {
        if self.field.as_deref() == Some(field) { self.origin.as_ref() } else { self.others.get(field) }
    }

    /// How values are written at the place of a field.
    fn literals(&self, field: &str, words: &dyn Words) -> Literals {
        match self.origin_of(field) {
            Some(Origin::Variable(_)) => Literals::Variable,
            Some(Origin::Flag(_)) => Literals::Flag,
            Some(Origin::File(_)) => Literals::Yaml,
            Some(Origin::Profile(_) | Origin::Explicit) | None => words.literals(),
        }
    }

    /// The values of the field that is refused and of another one.
    fn both(&self, other: &str, [found, as_other]: &[Value; 2], words: &dyn Words) -> String {
        let field = self.field.as_deref().unwrap_or_default();
        let is = |field, value| format!("{} is {}", self.called(field, words), self.literals(field, words).show(value));
        format!("{} and {}", is(field, found), is(other, as_other))
    }

    /// Writes the sentence.
    pub(super) fn write(&self, words: &dyn Words, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field.as_deref().unwrap_or_default();
        let (called, literals) = (self.called(field, words), self.literals(field, words));
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
            Problem::Value { found, allowed } => {
                write!(f, "{called} is {}, allowed: {}", literals.show(found), allowed.spelled(literals))
            }
            Problem::Entry { entry, found, allowed } => {
                write!(f, "{called} of '{entry}' is {}, allowed: {}", literals.show(found), allowed.spelled(literals))
            }
            Problem::Twice { entry } => write!(f, "{called} has '{entry}' twice: give it once"),
            Problem::Pattern { pattern, reason } => {
                write!(f, "{called} is '{pattern}', which is not a regular expression: {reason}")
            }
            Problem::BothSet { other } => {
                write!(f, "{} and {called} are both set, allowed: one of them", self.called(other, words))
            }
            Problem::Contradicts { other, values } => {
                write!(f, "{}: make them agree, or leave one out", self.both(other, values, words))
            }
            Problem::NotWith { other, values, allowed } => {
                write!(f, "{}, allowed with it: {allowed}", self.both(other, values, words))
            }
            Problem::IsOff { switch } => {
                let (other, literals) = (self.called(switch, words), self.literals(switch, words));
                let (off, on) = (literals.truth(false), literals.truth(true));
                write!(f, "{called} is set but {other} is {off}: set it to {on}, or leave out {called}")
            }
            Problem::Missing { needed_by } => {
                let other = self.called(needed_by, words);
                write!(f, "{called} is missing, which {other} needs: give both, or leave out {other}")
            }
            Problem::Predicate(predicate) => write!(f, "{called} {predicate}"),
            Problem::File(message) => f.write_str(message),
        }
    }
}

/// The sentence in the words of YAML and Rust.
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(&FieldNames, f)
    }
}

impl std::error::Error for Refused {}

impl From<Refused> for QuantError {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}
