//! Users and their passwords, checked at a cost that no flood of guesses makes the machine's.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tonic::Status;

use super::credentials::User;
use super::secret::{PASSWORD_BYTES, Sum, random, same, verify};

/// Hashes computed at once: each holds one thread and the memory that the hash asks for.
const AT_ONCE: usize = 2;

/// How long a check waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// The passwords of all users.
pub(super) struct Passwords {
    users: Arc<Vec<User>>,
    /// Of each user the fingerprint of its password, once that was given: checked again without the hash.
    given: Vec<OnceLock<Sum>>,
    /// Fingerprints mean nothing outside of this process.
    key: [u8; 32],
    turns: Arc<Semaphore>,
}

impl Passwords {
    pub(crate) fn new(users: Vec<User>) -> Self {
        let given = users.iter().map(|_| OnceLock::new()).collect();
        Self { users: Arc::new(users), given, key: random(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The user of a name, if the password is right. What is wrong, user or password, neither the status tells nor
    /// the time it takes.
    pub(crate) async fn check(&self, name: &str, password: String) -> Result<&User, Status> {
        let wrong = || Status::unauthenticated("wrong user or password");
        if self.users.is_empty() || password.len() > PASSWORD_BYTES {
            return Err(wrong());
        }
        let print = self.fingerprint(name, &password);
        let place = self.users.iter().position(|user| &*user.name == name);
        if let Some(user) = self.known(place, &print) {
            return Ok(user);
        }
        let turn = tokio::time::timeout(PATIENCE, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Status::resource_exhausted("too many passwords are being checked; try again later"));
        };
        if let Some(user) = self.known(place, &print) {
            return Ok(user);
        }
        let users = Arc::clone(&self.users);
        let verified = place.unwrap_or_else(|| self.stand_in(name));
        let right = tokio::task::spawn_blocking(move || {
            // Held until the hash is computed, though the caller may be gone.
            let _turn = turn;
            verify(&password, &users[verified].password)
        });
        let right = right.await.map_err(|_| Status::internal("the password cannot be checked"))?;
        match place {
            Some(place) if right => {
                // Another call of the same user may have been first, with the same password.
                let _ = self.given[place].set(print);
                Ok(&self.users[place])
            }
            _ => Err(wrong()),
        }
    }

    /// The users there are.
    pub(crate) fn users(&self) -> &[User] {
        &self.users
    }

    /// The user at a place, if it gave this password before.
    fn known(&self, place: Option<usize>, print: &Sum) -> Option<&User> {
        let place = place?;
        let given = self.given[place].get()?;
        same(given, print).then(|| &self.users[place])
    }

    /// The user whose hash is verified in place of an unknown one's: for one name always the same, as its cost is seen.
    fn stand_in(&self, name: &str) -> usize {
        let print = self.fingerprint(name, "");
        print.iter().fold(0, |rest, byte| (rest * 256 + usize::from(*byte)) % self.users.len())
    }

    fn fingerprint(&self, name: &str, password: &str) -> Sum {
        let hash = Sha256::new().chain_update(self.key).chain_update(name).chain_update([0u8]).chain_update(password);
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use argon2::Params;
    use futures::FutureExt;

    use super::*;
    use crate::auth::secret::{hash_at, parse_password_hash};

    fn passwords() -> Passwords {
        let user = |name: &str, password| {
            let hash = hash_at(password, Params::new(8, 1, 1, None).unwrap()).unwrap();
            User { name: Arc::from(name), password: parse_password_hash(&hash).unwrap(), write: false }
        };
        Passwords::new(vec![user("ada", "right"), user("bob", "other")])
    }

    #[tokio::test]
    async fn one_hash_for_the_first_right_password_and_for_each_wrong_one() {
        let passwords = passwords();
        assert!(passwords.check("ada", "wrong".into()).await.is_err());
        assert_eq!(&*passwords.check("ada", "right".into()).await.unwrap().name, "ada");
        let turns = passwords.turns.acquire_many(AT_ONCE as u32).await.unwrap();
        let at_once = |name, password: &str| passwords.check(name, password.into()).now_or_never();
        assert!(at_once("ada", "right").unwrap().is_ok(), "a password that was right is known");
        for (name, password) in [("ada", "wrong"), ("bob", "other"), ("bob", "right"), ("nobody", "right")] {
            assert!(at_once(name, password).is_none(), "{name} waits for a turn");
        }
        drop(turns);
        assert_eq!(&*passwords.check("bob", "other".into()).await.unwrap().name, "bob");
        assert_eq!(passwords.check("nobody", "right".into()).await.err().unwrap().message(), "wrong user or password");
    }

    #[test]
    fn an_unknown_user_has_one_stand_in() {
        let passwords = passwords();
        let places: Vec<usize> = (0..100).map(|n| passwords.stand_in(&format!("user{n}"))).collect();
        assert_eq!(places, (0..100).map(|n| passwords.stand_in(&format!("user{n}"))).collect::<Vec<_>>());
        assert!(places.contains(&0) && places.contains(&1));
    }

    #[tokio::test]
    async fn the_longest_password() {
        let passwords = passwords();
        let turns = passwords.turns.acquire_many(AT_ONCE as u32).await.unwrap();
        let long = "x".repeat(PASSWORD_BYTES + 1);
        assert!(passwords.check("ada", long).now_or_never().unwrap().is_err(), "refused without a hash");
        drop(turns);
    }
}
