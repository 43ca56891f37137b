//! What a client presents in the metadata of a call.

use arrow_flight::BasicAuth;
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// What a client says who it is by. Has no `Debug`: it is all secret.
pub(super) enum Proof {
    Password { user: String, password: String },
    Token(String),
}

/// The cookie by which clients name their session.
const SESSION_COOKIE: &str = "arrow_flight_session_id";

/// The longest payload of a handshake, in bytes.
const PAYLOAD_BYTES: usize = 4096;

/// Base64 as clients write it, padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The proof in the metadata of a call: the header `authorization`, else `auth-token-bin`, which clients send that did
/// the handshake by payload. `None` if there is neither.
pub(super) fn proof_of(metadata: &MetadataMap) -> Result<Option<Proof>, Status> {
    if let Some(value) = metadata.get("authorization") {
        return value.to_str().ok().and_then(authorization).map(Some).ok_or_else(|| {
            Status::unauthenticated(
                "the header `authorization` is neither `Basic` and base64 of user:password, nor `Bearer` and a token",
            )
        });
    }
    let Some(value) = metadata.get_bin("auth-token-bin") else { return Ok(None) };
    let token = value.to_bytes().ok().and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
    match token {
        Some(token) => Ok(Some(Proof::Token(token))),
        None => Err(Status::unauthenticated("the header `auth-token-bin` is not a token")),
    }
}

fn authorization(value: &str) -> Option<Proof> {
    let (scheme, value) = value.trim().split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Proof::Token(value.to_string()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64.decode(value).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Proof::Password { user: user.to_string(), password: password.to_string() })
}

/// The proof in the payload of a handshake: a `BasicAuth` message. `None` if the payload is empty.
pub(super) fn proof_of_payload(payload: &[u8]) -> Result<Option<Proof>, Status> {
    if payload.is_empty() {
        return Ok(None);
    }
    let message = if payload.len() <= PAYLOAD_BYTES { BasicAuth::decode(payload).ok() } else { None };
    match message {
        Some(BasicAuth { username, password }) => Ok(Some(Proof::Password { user: username, password })),
        None => Err(Status::unauthenticated("the payload of the handshake is not a BasicAuth message")),
    }
}

/// The session a client names by its cookie: 32 to 64 hexadecimal digits and `-`. Other values are ignored.
pub(super) fn cookie_of(metadata: &MetadataMap) -> Option<&str> {
    let values = metadata.get_all("cookie").iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(';')).find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let fits = (32..=64).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        (name.trim() == SESSION_COOKIE && fits).then_some(value)
    })
}
