//! Secrets: made, hashed and compared. What is kept of one is its hash.

use argon2::password_hash::{self, PasswordHash, PasswordHashString, SaltString};
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::ServeError;

/// A SHA-256.
pub(crate) type Sum = [u8; 32];

/// The longest password, in bytes.
pub(crate) const PASSWORD_BYTES: usize = 1024;

/// The most a hash of the credentials file may cost: KiB of memory, passes, lanes.
const MOST: [(&str, u32); 3] = [("m", 1 << 20), ("t", 64), ("p", 16)];

/// The Argon2id hash of a password as a PHC string, for `password` in a credentials file: 19 MiB, two passes, one lane,
/// a random salt.
///
/// # Errors
///
/// The password is empty or longer than 1024 bytes.
pub fn hash_password(password: &str) -> Result<String, ServeError> {
    if password.is_empty() || password.len() > PASSWORD_BYTES {
        let found = password.len();
        return Err(ServeError::Configuration(format!("the password has {found} bytes, not 1 to {PASSWORD_BYTES}")));
    }
    let hash = Params::new(19 * 1024, 2, 1, None).map_err(password_hash::Error::from);
    hash.and_then(|cost| hash_at(password, cost))
        .map_err(|error| ServeError::Configuration(format!("the password cannot be hashed: {error}")))
}

/// The hash of a password at a given cost.
pub(crate) fn hash_at(password: &str, cost: Params) -> password_hash::Result<String> {
    let salt = SaltString::encode_b64(&random::<16>())?;
    let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, cost).hash_password(password.as_bytes(), &salt)?;
    Ok(hash.to_string())
}

/// A new bearer token (`aq_` and 43 characters), and its SHA-256 for `sha256` in a credentials file.
#[must_use]
pub fn new_token() -> (String, String) {
    let token = token_of("aq_");
    let sum = hex(&sum_of(token.as_bytes()));
    (token, sum)
}

/// A token of 32 random bytes.
pub(crate) fn token_of(prefix: &str) -> String {
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random::<32>()))
}

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Why a text of the credentials file is not the hash of a password that can be verified here.
pub(crate) fn parse_password_hash(text: &str) -> Result<PasswordHashString, String> {
    if !text.starts_with("$argon2id$") {
        return Err("is not an argon2id hash: put what `arrow-quant serve hash-password` prints here, never the \
                    password itself"
            .to_string());
    }
    let shape = "is not a whole hash `$argon2id$v=19$m=…,t=…,p=…$salt$hash`";
    let hash = PasswordHash::new(text).map_err(|error| format!("{shape}: {error}"))?;
    for (name, most) in MOST {
        match hash.params.get_decimal(name) {
            Some(cost) if (1..=most).contains(&cost) => {}
            Some(cost) => return Err(format!("costs {name}={cost}: 1 to {most} is allowed")),
            None => return Err(format!("{shape}: it has no {name}")),
        }
    }
    Params::try_from(&hash).map_err(|error| format!("{shape}: {error}"))?;
    let salted = hash.salt.is_some_and(|salt| salt.decode_b64(&mut [0; 64]).is_ok_and(|salt| salt.len() >= 8));
    let version = hash.version.is_some_and(|version| Version::try_from(version).is_ok());
    if !salted || !version || hash.hash.is_none() {
        return Err(shape.to_string());
    }
    Ok(PasswordHashString::from(&hash))
}

/// Whether a hash is that of a password. Takes as long as the hash costs.
pub(crate) fn verify(password: &str, hash: &PasswordHashString) -> bool {
    Argon2::default().verify_password(password.as_bytes(), &hash.password_hash()).is_ok()
}

/// The SHA-256 of some bytes.
pub(crate) fn sum_of(bytes: &[u8]) -> Sum {
    Sha256::digest(bytes).into()
}

/// Whether two sums are the same, in a time that does not tell where they differ.
pub(crate) fn same(a: &Sum, b: &Sum) -> bool {
    a[..].ct_eq(&b[..]).into()
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 that 64 hexadecimal digits say.
pub(crate) fn parse_sum(text: &str) -> Option<Sum> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut sum = [0; 32];
    for (at, byte) in sum.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(sum)
}
