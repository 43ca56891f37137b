//! Who calls: tokens, passwords and certificates, and the session a call belongs to.

mod credentials;
mod handshake;
mod passwords;
mod presented;
mod secret;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError, RwLock};

use subtle::{ConditionallySelectable, ConstantTimeEq};
use tonic::Status;
use tonic::metadata::MetadataMap;

pub use self::credentials::Credentials;
use self::credentials::Token;
use self::handshake::{Grant, SessionTokens};
use self::passwords::Passwords;
use self::presented::{Proof, cookie_of, proof_of, proof_of_payload};
use self::secret::{Sum, hex, sum_of};
pub use self::secret::{hash_password, new_token};
use crate::limits::Limits;

/// The session of a user that a call belongs to: that of its handshake's token, else that of its cookie, else the one
/// without a name, `""`. It is not a token: who knows it cannot call by it.
pub(crate) type SessionKey = Arc<str>;

/// Who calls, and in which session.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The user: of the credentials file, `certificate-…` or `anonymous`.
    pub user: Arc<str>,
    /// Whether this server lets this user write.
    pub may_write: bool,
    /// The session; the user's own, whatever sessions of others are called.
    pub session: SessionKey,
}

impl Caller {
    /// Fails with PERMISSION_DENIED if the server or the user may not write.
    pub(crate) fn permit_write(&self, read_only: bool) -> Result<(), Status> {
        if read_only {
            return Err(Status::permission_denied("this server is read-only"));
        }
        if !self.may_write {
            return Err(Status::permission_denied(format!("user '{}' may not write", self.user)));
        }
        Ok(())
    }
}

/// Finds out who calls.
pub(crate) struct Authenticator {
    known: RwLock<Option<Arc<Known>>>,
    issued: SessionTokens,
    read_only: bool,
    client_certificates: bool,
}

/// What a credentials file lists.
struct Known {
    passwords: Passwords,
    tokens: Vec<Token>,
}

impl Authenticator {
    /// Without credentials everybody is let in, by the name of their certificate if those are asked for.
    pub(crate) fn new(
        credentials: Option<Credentials>,
        read_only: bool,
        client_certificates: bool,
        limits: &Limits,
    ) -> Self {
        let known = RwLock::new(credentials.map(Known::new));
        let issued = SessionTokens::new(limits.sessions, limits.session_lifetime);
        Self { known, issued, read_only, client_certificates }
    }

    /// Knows other users and tokens from now on. Sessions of users that are gone, or may do less, end.
    pub(crate) fn reload(&self, credentials: Credentials) {
        let known = Known::new(credentials);
        self.issued.retain(|grant| known.still_grants(grant));
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }

    fn known(&self) -> Option<Arc<Known>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who makes a call, by its metadata and the certificate (DER) of the connection.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED: no credentials, wrong ones, or expired ones. RESOURCE_EXHAUSTED: so many passwords are being
    /// checked that this one did not have its turn.
    pub(crate) async fn caller(&self, metadata: &MetadataMap, certificate: Option<&[u8]>) -> Result<Caller, Status> {
        let (grant, session) = self.granted(self.proof(metadata)?, certificate).await?;
        let session = session.unwrap_or_else(|| SessionKey::from(cookie_of(metadata).unwrap_or_default()));
        Ok(self.admitted(grant, session))
    }

    /// A handshake by the metadata of the call: who makes it, in a session of its own, and the token for further calls.
    ///
    /// # Errors
    ///
    /// As [`Self::caller`], and RESOURCE_EXHAUSTED if there are too many sessions.
    pub(crate) async fn handshake(
        &self,
        metadata: &MetadataMap,
        certificate: Option<&[u8]>,
    ) -> Result<(Caller, String), Status> {
        self.issue(self.proof(metadata)?, certificate).await
    }

    /// A handshake by a payload, the message `BasicAuth`; otherwise as [`Self::handshake`].
    pub(crate) async fn handshake_payload(
        &self,
        payload: &[u8],
        certificate: Option<&[u8]>,
    ) -> Result<(Caller, String), Status> {
        let proof = if self.known().is_some() { proof_of_payload(payload)? } else { None };
        self.issue(proof, certificate).await
    }

    /// Makes the token of a handshake's session worthless; other sessions have none.
    pub(crate) fn forget(&self, session: &SessionKey) {
        self.issued.forget(session);
    }

    /// The proof in a call's metadata. What is not understood is no matter where no proof is asked for.
    fn proof(&self, metadata: &MetadataMap) -> Result<Option<Proof>, Status> {
        let proof = proof_of(metadata);
        if self.known().is_some() { proof } else { Ok(proof.unwrap_or_default()) }
    }

    async fn issue(&self, proof: Option<Proof>, certificate: Option<&[u8]>) -> Result<(Caller, String), Status> {
        let (grant, _) = self.granted(proof, certificate).await?;
        let (session, token) = self.issued.issue(grant.clone())?;
        Ok((self.admitted(grant, session), token))
    }

    fn admitted(&self, grant: Grant, session: SessionKey) -> Caller {
        Caller { user: grant.user, may_write: grant.write && !self.read_only, session }
    }

    /// What a proof grants, and the session, if it is a handshake's token.
    async fn granted(
        &self,
        proof: Option<Proof>,
        certificate: Option<&[u8]>,
    ) -> Result<(Grant, Option<SessionKey>), Status> {
        let Some(known) = self.known() else { return self.granted_to_all(proof, certificate) };
        match proof {
            None => Err(Status::unauthenticated(
                "no credentials: send the header `authorization: Bearer` with a token, or `authorization: Basic` with \
                 user and password",
            )),
            Some(Proof::Password { user, password }) => {
                let checked = known.passwords.check(&user, password).await;
                let user = checked.inspect_err(|status| {
                    // As it was sent, and so within quotes and not too long.
                    let user: String = user.chars().take(64).collect();
                    tracing::warn!(?user, code = ?status.code(), message = status.message(), "a password is refused");
                })?;
                Ok((Grant { user: Arc::clone(&user.name), write: user.write, until: None }, None))
            }
            Some(Proof::Token(token)) => {
                let sum = sum_of(token.as_bytes());
                if let Some((session, grant)) = self.issued.holder(&sum)? {
                    return Ok((grant, Some(session)));
                }
                let token = known.token(&sum).ok_or_else(|| Status::unauthenticated("unknown token"))?;
                let grant = Grant { user: Arc::clone(&token.user), write: token.write, until: token.expires };
                Ok((grant.current()?, None))
            }
        }
    }

    /// What a server without credentials grants.
    fn granted_to_all(
        &self,
        proof: Option<Proof>,
        certificate: Option<&[u8]>,
    ) -> Result<(Grant, Option<SessionKey>), Status> {
        let user: Arc<str> = match (self.client_certificates, certificate) {
            (false, _) => Arc::from("anonymous"),
            (true, Some(der)) => Arc::from(format!("certificate-{}", hex(&sum_of(der)[..8]))),
            (true, None) => return Err(Status::unauthenticated("no client certificate")),
        };
        let session = match proof {
            Some(Proof::Token(token)) => self.issued.holder(&sum_of(token.as_bytes())).unwrap_or_default(),
            _ => None,
        };
        // A token is good for the certificate it was given to.
        let session = session.filter(|(_, grant)| grant.user == user).map(|(session, _)| session);
        Ok((Grant { user, write: true, until: None }, session))
    }
}

impl Known {
    fn new(Credentials { users, tokens }: Credentials) -> Arc<Self> {
        Arc::new(Self { passwords: Passwords::new(users), tokens })
    }

    /// Whether a user that was let in before would be let in now, to do as much.
    fn still_grants(&self, grant: &Grant) -> bool {
        let may = |user: &str, write: bool| *user == *grant.user && (write || !grant.write);
        self.passwords.users().iter().any(|user| may(&user.name, user.write))
            || self.tokens.iter().any(|token| may(&token.user, token.write))
    }

    /// The token of a sum. All are compared, so that the time tells nothing of them.
    fn token(&self, sum: &Sum) -> Option<&Token> {
        let mut found = u64::MAX;
        for (at, token) in (0u64..).zip(&self.tokens) {
            found.conditional_assign(&at, token.sum[..].ct_eq(&sum[..]));
        }
        self.tokens.get(usize::try_from(found).ok()?)
    }
}
