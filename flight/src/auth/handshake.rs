//! Tokens that handshakes give out: each is a session of its own, until it was not used for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tonic::Status;

use super::SessionKey;
use super::secret::{Sum, hex, same, sum_of, token_of};
use crate::lock::locked;

/// Who is behind a proof, and what they may.
#[derive(Clone)]
pub(super) struct Grant {
    pub user: Arc<str>,
    pub write: bool,
    /// When the token that proved it expires.
    pub until: Option<DateTime<Utc>>,
}

impl Grant {
    /// Fails once the token that proved it has expired.
    pub(crate) fn current(self) -> Result<Self, Status> {
        if self.expired() { Err(expired()) } else { Ok(self) }
    }

    fn expired(&self) -> bool {
        self.until.is_some_and(|until| Utc::now() >= until)
    }
}

fn expired() -> Status {
    Status::unauthenticated("this token expired")
}

struct Issued {
    sum: Sum,
    grant: Grant,
    used: Instant,
}

impl Issued {
    fn expired(&self, lifetime: Duration) -> bool {
        self.used.elapsed() >= lifetime || self.grant.expired()
    }
}

/// The tokens given out and not yet expired.
pub(super) struct SessionTokens {
    most: usize,
    lifetime: Duration,
    issued: Mutex<HashMap<SessionKey, Issued>>,
}

impl SessionTokens {
    /// At most `most` tokens, each valid until it was not used for `lifetime`.
    pub(crate) fn new(most: usize, lifetime: Duration) -> Self {
        Self { most, lifetime, issued: Mutex::default() }
    }

    /// A new token for what a proof granted, and the session it stands for.
    pub(crate) fn issue(&self, grant: Grant) -> Result<(SessionKey, String), Status> {
        let mut issued = locked(&self.issued);
        if issued.len() >= self.most {
            issued.retain(|_, token| !token.expired(self.lifetime));
        }
        if issued.len() >= self.most {
            return Err(Status::resource_exhausted(format!(
                "sessions: {} are open; close one (CloseSession) or try again later",
                issued.len()
            )));
        }
        let token = token_of("aqs_");
        let sum = sum_of(token.as_bytes());
        let session = session_of(&sum);
        issued.insert(Arc::clone(&session), Issued { sum, grant, used: Instant::now() });
        Ok((session, token))
    }

    /// What the token of a sum was granted, and its session; `None` if it was not given out or is gone.
    pub(crate) fn holder(&self, sum: &Sum) -> Result<Option<(SessionKey, Grant)>, Status> {
        let session = session_of(sum);
        let mut issued = locked(&self.issued);
        let Some(token) = issued.get_mut(&session).filter(|token| same(&token.sum, sum)) else { return Ok(None) };
        if token.expired(self.lifetime) {
            issued.remove(&session);
            return Err(expired());
        }
        token.used = Instant::now();
        let grant = token.grant.clone();
        Ok(Some((session, grant)))
    }

    /// Makes the tokens worthless whose grants are not to be kept.
    pub(crate) fn retain(&self, keep: impl Fn(&Grant) -> bool) {
        locked(&self.issued).retain(|_, token| keep(&token.grant));
    }

    /// Makes the token of a session worthless.
    pub(crate) fn forget(&self, session: &SessionKey) {
        locked(&self.issued).remove(session);
    }
}

/// The session that a token stands for. Not a value that a cookie can have.
fn session_of(sum: &Sum) -> SessionKey {
    SessionKey::from(format!("h{}", hex(&sum[..16])))
}
