//! The credentials file: who may connect, known by the hashes of passwords and tokens.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use argon2::password_hash::PasswordHashString;
use chrono::{DateTime, Utc};
use serde::Deserialize;

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    users: Vec<UserEntry>,
    #[serde(default)]
    tokens: Vec<TokenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserEntry {
    name: String,
    password: String,
    #[serde(default)]
    write: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    user: String,
    sha256: String,
    expires: Option<String>,
    #[serde(default)]
    write: bool,
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
        let file: File = serde_yaml::from_str(text).map_err(|error| without_value(&error.to_string()))?;
        if file.users.is_empty() && file.tokens.is_empty() {
            return Err("it has neither `users` nor `tokens`: nobody could connect".to_string());
        }
        let mut names = HashMap::new();
        let mut users = Vec::with_capacity(file.users.len());
        for (at, entry) in file.users.into_iter().enumerate() {
            let name = valid_name(&entry.name).map_err(|reason| format!("users[{at}]: `name` {reason}"))?;
            if let Some(first) = names.insert(Arc::clone(&name), at) {
                return Err(format!("users[{at}]: `name` '{name}' is that of users[{first}] already"));
            }
            let password = parse_password_hash(&entry.password)
                .map_err(|reason| format!("users[{at}] ('{name}'): `password` {reason}"))?;
            users.push(User { name, password, write: entry.write });
        }
        let mut sums = HashMap::new();
        let mut tokens = Vec::with_capacity(file.tokens.len());
        for (at, entry) in file.tokens.into_iter().enumerate() {
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

/// A token, or else what follows its place in a message.
fn parse_token(entry: TokenEntry) -> Result<Token, String> {
    let user = valid_name(&entry.user).map_err(|reason| format!(": `user` {reason}"))?;
    let sum = parse_sum(&entry.sha256).ok_or_else(|| {
        format!(
            " ('{user}'): `sha256` is not 64 hexadecimal digits: put the SHA-256 that `arrow-quant serve new-token` \
             prints here, never the token itself"
        )
    })?;
    let expires = entry.expires.map(|text| {
        DateTime::parse_from_rfc3339(&text).map(|at| at.to_utc()).map_err(|error| {
            format!(" ('{user}'): `expires` is not a time like 2027-01-31T00:00:00Z (RFC 3339): {error}")
        })
    });
    Ok(Token { user: Arc::clone(&user), sum, expires: expires.transpose()?, write: entry.write })
}

fn valid_name(name: &str) -> Result<Arc<str>, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.@-".contains(&byte);
    // Names are names of directories too.
    if (1..=64).contains(&name.len()) && name.bytes().all(allowed) && name.bytes().any(|byte| byte != b'.') {
        return Ok(Arc::from(name));
    }
    Err(format!("{name:?} is not allowed: 1 to 64 ASCII letters, digits and `_.@-`, and not dots alone"))
}

/// A message of serde without the value it shows: that may be a secret in the wrong place. No type tells it: the error of the
/// YAML parser is a text and a place. A file read as a tree of values has other messages, but there a hash of digits alone is a
/// number, whose text is lost.
fn without_value(message: &str) -> String {
    for kind in ["invalid type: ", "invalid value: "] {
        if let (Some(start), Some(end)) = (message.find(kind), message.rfind(", expected")) {
            let start = start + kind.len();
            if start <= end {
                return format!("{}another value{}", &message[..start], &message[end..]);
            }
        }
    }
    message.to_string()
}
