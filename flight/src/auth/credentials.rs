//! The credentials file: who may connect, known by the hashes of passwords and tokens.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use argon2::password_hash::PasswordHashString;
use chrono::{DateTime, Utc};
use serde_yaml::{Mapping, Value};

use super::secret::{Sum, parse_password_hash, parse_sum};
use crate::error::ServeError;

/// Users and tokens of a server.
///
/// ```yaml
/// users:
///   - name: ada
///     password: $argon2id$v=19$…        # by `arrow-quant serve hash-password`
///     write: true                        # default false
/// tokens:
///   - user: ci                           # a user of its own or one of `users`
///     sha256: 9f86d081…                  # by `arrow-quant serve new-token`
///     expires: 2027-01-31T00:00:00Z      # optional, RFC 3339
///     write: false                       # what the token may, whatever its user may
/// ```
#[derive(Clone)]
pub struct Credentials {
    pub(crate) users: Vec<User>,
    pub(crate) tokens: Vec<Token>,
}

/// A user with a password.
#[derive(Clone)]
pub(crate) struct User {
    pub name: Arc<str>,
    pub password: PasswordHashString,
    pub write: bool,
}

/// A bearer token.
#[derive(Clone)]
pub(crate) struct Token {
    pub user: Arc<str>,
    pub sum: Sum,
    pub expires: Option<DateTime<Utc>>,
    pub write: bool,
}

/// A mapping of the file. No message shows a value, for any may be a secret in the wrong place; so the file is read as a tree
/// of values, where serde's messages would quote what does not fit a type.
struct Entry<'a> {
    fields: Option<&'a Mapping>,
}

impl<'a> Entry<'a> {
    /// Reads a mapping that has no other fields than these.
    fn new(value: &'a Value, known: &[&str]) -> Result<Self, String> {
        let expected = || known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        if value.is_null() {
            return Ok(Self { fields: None });
        }
        let fields = value.as_mapping().ok_or_else(|| format!("expected a mapping of {}", expected()))?;
        match fields.keys().find(|name| !name.as_str().is_some_and(|name| known.contains(&name))) {
            Some(Value::String(name)) => Err(format!("unknown field `{name}`, expected {}", expected())),
            Some(_) => Err(format!("a name is not text, expected {}", expected())),
            None => Ok(Self { fields: Some(fields) }),
        }
    }

    /// The value of a field; `None` if it is not there, or null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields?.get(name).filter(|value| !value.is_null())
    }

    fn list(&self, name: &str) -> Result<&'a [Value], String> {
        match self.get(name) {
            Some(value) => value.as_sequence().map(Vec::as_slice).ok_or_else(|| format!("`{name}` is not a list")),
            None => Ok(&[]),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, String> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| format!("`{name}` is not text: put it in quotes"));
        self.get(name).map(text).transpose()
    }

    fn required(&self, name: &str) -> Result<&'a str, String> {
        self.text(name)?.ok_or_else(|| format!("`{name}` is missing"))
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        let flag = |value: &Value| value.as_bool().ok_or_else(|| format!("`{name}` is not true or false"));
        self.get(name).map_or(Ok(false), flag)
    }
}

impl Credentials {
    /// Reads a credentials file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or an entry is not allowed: the message names file and entry, and never a secret.
    pub fn read(path: &Path) -> Result<Self, ServeError> {
        let text = std::fs::read_to_string(path).map_err(|source| ServeError::io(path, source))?;
        Self::parse(&text).map_err(|problem| ServeError::File { path: path.to_path_buf(), problem })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: Value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        let file = Entry::new(&file, &["users", "tokens"])?;
        let (user_entries, token_entries) = (file.list("users")?, file.list("tokens")?);
        if user_entries.is_empty() && token_entries.is_empty() {
            return Err("it has neither `users` nor `tokens`: nobody could connect".to_string());
        }
        let mut names = HashMap::new();
        let mut users = Vec::with_capacity(user_entries.len());
        for (at, entry) in user_entries.iter().enumerate() {
            let user = parse_user(entry).map_err(|reason| format!("users[{at}]{reason}"))?;
            if let Some(first) = names.insert(Arc::clone(&user.name), at) {
                return Err(format!("users[{at}]: `name` '{}' is that of users[{first}] already", user.name));
            }
            users.push(user);
        }
        let mut sums = HashMap::new();
        let mut tokens = Vec::with_capacity(token_entries.len());
        for (at, entry) in token_entries.iter().enumerate() {
            let token = parse_token(entry).map_err(|reason| format!("tokens[{at}]{reason}"))?;
            if let Some(first) = sums.insert(token.sum, at) {
                return Err(format!("tokens[{at}]: `sha256` is that of tokens[{first}] already"));
            }
            tokens.push(token);
        }
        Ok(Self { users, tokens })
    }
}

/// Names alone: hashes are secrets too.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let users: Vec<&str> = self.users.iter().map(|user| &*user.name).collect();
        let tokens: Vec<&str> = self.tokens.iter().map(|token| &*token.user).collect();
        f.debug_struct("Credentials").field("users", &users).field("tokens", &tokens).finish()
    }
}

/// A user, or else what follows its place in a message.
fn parse_user(entry: &Value) -> Result<User, String> {
    let entry = Entry::new(entry, &["name", "password", "write"]).map_err(after_place)?;
    let name =
        valid_name(entry.required("name").map_err(after_place)?).map_err(|reason| format!(": `name` {reason}"))?;
    let of_user = |reason: String| format!(" ('{name}'): {reason}");
    let password = parse_password_hash(entry.required("password").map_err(of_user)?)
        .map_err(|reason| of_user(format!("`password` {reason}")))?;
    let write = entry.flag("write").map_err(of_user)?;
    Ok(User { name, password, write })
}

/// A token, or else what follows its place in a message.
fn parse_token(entry: &Value) -> Result<Token, String> {
    let entry = Entry::new(entry, &["user", "sha256", "expires", "write"]).map_err(after_place)?;
    let user =
        valid_name(entry.required("user").map_err(after_place)?).map_err(|reason| format!(": `user` {reason}"))?;
    let of_user = |reason: String| format!(" ('{user}'): {reason}");
    let sum = parse_sum(entry.required("sha256").map_err(of_user)?).ok_or_else(|| {
        of_user(
            "`sha256` is not 64 hexadecimal digits: put the SHA-256 that `arrow-quant serve new-token` prints here, never the \
             token itself"
                .to_string(),
        )
    })?;
    let expires = entry.text("expires").map_err(of_user)?.map(|text| {
        DateTime::parse_from_rfc3339(text)
            .map(|at| at.to_utc())
            .map_err(|error| of_user(format!("`expires` is not a time like 2027-01-31T00:00:00Z (RFC 3339): {error}")))
    });
    let (expires, write) = (expires.transpose()?, entry.flag("write").map_err(of_user)?);
    Ok(Token { user: Arc::clone(&user), sum, expires, write })
}

/// A problem of an entry that has no name, behind its place.
fn after_place(reason: String) -> String {
    format!(": {reason}")
}

fn valid_name(name: &str) -> Result<Arc<str>, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.@-".contains(&byte);
    // Names are names of directories too.
    if (1..=64).contains(&name.len()) && name.bytes().all(allowed) && name.bytes().any(|byte| byte != b'.') {
        return Ok(Arc::from(name));
    }
    Err(format!("{name:?} is not allowed: 1 to 64 ASCII letters, digits and `_.@-`, and not dots alone"))
}
