use std::time::Duration;

use argon2::Params;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use prost::Message;
use tonic::Code;
use tonic::metadata::{MetadataMap, MetadataValue};

use super::secret::{hash_at, parse_sum};
use super::*;
use crate::error::ServeError;

const TOKEN: &str = "aq_a-token-of-ci";
const OLD_TOKEN: &str = "aq_an-expired-one";
const COOKIE: &str = "6f1d0c1e-6f3c-4c80-9d57-0f5f3f5a2b11";

/// A hash that costs next to nothing.
fn cheap(password: &str) -> String {
    hash_at(password, Params::new(8, 1, 1, None).unwrap()).unwrap()
}

fn read(text: &str) -> Result<Credentials, ServeError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("credentials.yaml");
    std::fs::write(&path, text).unwrap();
    Credentials::read(&path)
}

fn credentials() -> Credentials {
    let (ada, bob) = (cheap("engine:1"), cheap("b"));
    let (token, old) = (hex(&sum_of(TOKEN.as_bytes())), hex(&sum_of(OLD_TOKEN.as_bytes())));
    read(&format!(
        "users:\n- {{name: ada, password: '{ada}', write: true}}\n- name: bob\n  password: {bob}\n\
         tokens:\n- {{user: ci, sha256: {token}, expires: '2999-01-31T00:00:00Z'}}\n\
         - {{user: ada, sha256: {old}, expires: '2020-01-31T00:00:00+01:00', write: true}}\n"
    ))
    .unwrap()
}

fn limits(sessions: usize, session_lifetime: Duration) -> Limits {
    Limits { sessions, session_lifetime, ..Limits::default() }
}

fn known() -> Authenticator {
    Authenticator::new(Some(credentials()), false, false, &Limits::default())
}

fn open_to_all() -> Authenticator {
    Authenticator::new(None, false, false, &Limits::default())
}

fn nothing() -> MetadataMap {
    MetadataMap::new()
}

fn header(authorization: &str) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", authorization.parse().unwrap());
    metadata
}

fn bearer(token: &str) -> MetadataMap {
    header(&format!("Bearer {token}"))
}

fn basic(pair: &str) -> MetadataMap {
    header(&format!("Basic {}", STANDARD.encode(pair)))
}

fn cookies(values: &[&str]) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for value in values {
        metadata.append("cookie", value.parse().unwrap());
    }
    metadata
}

async fn user_of(authenticator: &Authenticator, metadata: &MetadataMap) -> String {
    authenticator.caller(metadata, None).await.unwrap().user.to_string()
}

async fn refusal(authenticator: &Authenticator, metadata: &MetadataMap) -> String {
    let status = authenticator.caller(metadata, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    status.message().to_string()
}

#[test]
fn files_that_are_refused() {
    let good = cheap("secret");
    let sum = hex(&sum_of(b"secret"));
    let user = |name: &str, password: &str| format!("users:\n- name: {name}\n  password: '{password}'\n");
    let token = |rest: &str| format!("tokens:\n- user: ci\n  {rest}\n");
    let long = "x".repeat(65);
    let cases = [
        ("{}".to_string(), "neither `users` nor `tokens`"),
        ("passwords: []".to_string(), "unknown field `passwords`, expected `users` or `tokens`"),
        ("users: [".to_string(), "line"),
        (user("a b", &good), "users[0]: `name` \"a b\" is not allowed: 1 to 64"),
        (user("''", &good), "users[0]: `name` \"\" is not allowed"),
        (user("..", &good), "not dots alone"),
        (user(&long, &good), "1 to 64"),
        (user("a/b", &good), "is not allowed"),
        (format!("users:\n- {{name: a, password: '{good}'}}\n- {{name: a, password: '{good}'}}"), "that of users[0]"),
        (user("ada", "s3cret"), "users[0] ('ada'): `password` is not an argon2id hash: put what `arrow-quant serve"),
        (user("ada", "$2b$12$abcdefghijk"), "is not an argon2id hash"),
        (user("ada", "$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$aGFzaGhhc2hoYXNo"), "is not an argon2id hash"),
        (user("ada", "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzYWx0"), "is not a whole hash"),
        (user("ada", "$argon2id$v=19$m=8,t=1,p=1$c2FsdA$aGFzaGhhc2hoYXNo"), "is not a whole hash"),
        (user("ada", "$argon2id$m=8,t=1,p=1$c29tZXNhbHRzYWx0$aGFzaGhhc2hoYXNo"), "is not a whole hash"),
        (user("ada", "$argon2id$v=19$m=8,t=1$c29tZXNhbHRzYWx0$aGFzaGhhc2hoYXNo"), "it has no p"),
        (user("ada", &good.replace("m=8", "m=4294967295")), "costs m=4294967295: 1 to 1048576 is allowed"),
        (user("ada", &good.replace("p=1", "p=536870912")), "costs p=536870912: 1 to 16 is allowed"),
        (user("ada", &good.replace("p=1", "p=2")), "is not a whole hash"),
        ("users: s3cret".to_string(), "users: invalid type: another value, expected a sequence"),
        ("users:\n- s3cret".to_string(), "another value, expected struct"),
        (format!("{}  write: s3cret", user("ada", &good)), "another value, expected a boolean"),
        (format!("{}  admin: true", user("ada", &good)), "unknown field `admin`"),
        ("users:\n- name: ada".to_string(), "missing field `password`"),
        (token("sha256: s3cret"), "tokens[0] ('ci'): `sha256` is not 64 hexadecimal digits"),
        (token(&format!("sha256: {}", "g".repeat(64))), "is not 64 hexadecimal digits"),
        (token(&format!("sha256: {sum}\n  expires: tomorrow")), "`expires` is not a time like 2027-01-31T00:00:00Z"),
        (token(&format!("sha256: {sum}\n  expires: 2027-02-30T00:00:00Z")), "`expires` is not a time"),
        (format!("tokens:\n- {{user: a, sha256: {sum}}}\n- {{user: b, sha256: {sum}}}"), "that of tokens[0] already"),
        (format!("tokens:\n- {{user: 'a:b', sha256: {sum}}}"), "tokens[0]: `user` \"a:b\" is not allowed"),
    ];
    for (text, expected) in cases {
        let message = read(&text).unwrap_err().to_string();
        assert!(message.contains(expected), "{text}\n{message}\n{expected}");
        assert!(message.contains("credentials.yaml: "), "{message}");
        assert!(!message.contains("s3cret") && !message.contains(&sum) && !message.contains('\n'), "{message}");
    }
    let message = Credentials::read("nowhere/credentials.yaml".as_ref()).unwrap_err().to_string();
    assert!(message.contains("nowhere/credentials.yaml"), "{message}");
}

#[test]
fn sums_that_look_like_numbers() {
    for sum in ["1".repeat(64), format!("{}e{}", "9".repeat(32), "1".repeat(31)), "0".repeat(64)] {
        let credentials = read(&format!("tokens:\n- user: ci\n  sha256: {sum}\n")).unwrap();
        assert_eq!(Some(credentials.tokens[0].sum), parse_sum(&sum));
    }
}

#[test]
fn nothing_secret_is_shown() {
    let credentials = credentials();
    assert_eq!(format!("{credentials:?}"), r#"Credentials { users: ["ada", "bob"], tokens: ["ci", "ada"] }"#);
}

#[test]
fn new_secrets() {
    let (token, sum) = new_token();
    assert!(token.starts_with("aq_") && token.len() == 46, "{}", token.len());
    assert_eq!(parse_sum(&sum), Some(sum_of(token.as_bytes())));
    assert_ne!(new_token().0, token);
    let hash = hash_password("engine").unwrap();
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    let stored = secret::parse_password_hash(&hash).unwrap();
    assert!(secret::verify("engine", &stored) && !secret::verify("engines", &stored));
    assert_eq!(hash_password("").unwrap_err().to_string(), "the password has 0 bytes, not 1 to 1024");
    assert!(hash_password(&"x".repeat(1025)).is_err());
}

#[tokio::test]
async fn who_is_let_in() {
    let known = known();
    assert_eq!(user_of(&known, &basic("ada:engine:1")).await, "ada");
    assert_eq!(user_of(&known, &basic("ada:engine:1")).await, "ada");
    assert_eq!(user_of(&known, &header(&format!("basic {}", STANDARD.encode("bob:b")))).await, "bob");
    assert_eq!(user_of(&known, &header(&format!("Basic {}", STANDARD_NO_PAD.encode("bob:b")))).await, "bob");
    assert_eq!(user_of(&known, &bearer(TOKEN)).await, "ci");
    let mut old_clients = nothing();
    old_clients.insert_bin("auth-token-bin", MetadataValue::from_bytes(TOKEN.as_bytes()));
    assert_eq!(user_of(&known, &old_clients).await, "ci");
}

#[tokio::test]
async fn who_is_not() {
    let known = known();
    let wrong = "wrong user or password";
    for pair in ["ada:engine", "ada:", "bob:engine:1", "nobody:b", ":", "ADA:engine:1", "ada\0:engine:1"] {
        assert_eq!(refusal(&known, &basic(pair)).await, wrong, "{pair:?}");
    }
    assert_eq!(refusal(&known, &bearer("aq_unknown")).await, "unknown token");
    assert_eq!(refusal(&known, &bearer("aqs_unknown")).await, "unknown token");
    assert_eq!(refusal(&known, &bearer("")).await, refusal(&known, &header("Bearer")).await);
    assert_eq!(refusal(&known, &bearer(&hex(&sum_of(TOKEN.as_bytes())))).await, "unknown token");
    assert_eq!(refusal(&known, &bearer(OLD_TOKEN)).await, "this token expired");
    assert!(refusal(&known, &nothing()).await.starts_with("no credentials: send "));
    for value in ["Basic", "Basic !!!", "Digest x", "", "Basic bm8gY29sb24="] {
        assert!(refusal(&known, &header(value)).await.starts_with("the header `authorization` is neither"), "{value}");
    }
    assert!(known.handshake(&nothing(), None).await.is_err());
    assert!(known.handshake(&basic("ada:x"), None).await.is_err());
}

#[tokio::test]
async fn tokens_alone() {
    let sum = hex(&sum_of(TOKEN.as_bytes()));
    let credentials = read(&format!("tokens:\n- {{user: ci, sha256: {sum}}}")).unwrap();
    let known = Authenticator::new(Some(credentials), false, true, &Limits::default());
    assert_eq!(user_of(&known, &bearer(TOKEN)).await, "ci");
    assert_eq!(refusal(&known, &basic("ci:x")).await, "wrong user or password");
}

#[tokio::test]
async fn who_may_write() {
    let refused = |caller: &Caller, read_only| caller.permit_write(read_only).unwrap_err();
    let known = known();
    let ada = known.caller(&basic("ada:engine:1"), None).await.unwrap();
    let bob = known.caller(&basic("bob:b"), None).await.unwrap();
    assert!(ada.may_write && ada.permit_write(false).is_ok() && !bob.may_write);
    assert_eq!(refused(&bob, false).message(), "user 'bob' may not write");
    assert_eq!(refused(&bob, true).message(), "this server is read-only");
    assert_eq!(refused(&ada, true).code(), Code::PermissionDenied);
    assert!(known.handshake(&basic("ada:engine:1"), None).await.unwrap().0.may_write);
    assert!(open_to_all().caller(&nothing(), None).await.unwrap().may_write);
    let read_only = Authenticator::new(Some(credentials()), true, false, &Limits::default());
    assert!(!read_only.caller(&basic("ada:engine:1"), None).await.unwrap().may_write);
    let read_only = Authenticator::new(None, true, false, &Limits::default());
    assert!(!read_only.caller(&nothing(), None).await.unwrap().may_write);
}

#[tokio::test]
async fn handshakes_give_sessions() {
    for authenticator in [known(), open_to_all()] {
        let (first, token) = authenticator.handshake(&basic("ada:engine:1"), None).await.unwrap();
        let (second, other) = authenticator.handshake(&basic("ada:engine:1"), None).await.unwrap();
        assert!(token.starts_with("aqs_") && token.len() == 47 && token != other);
        assert_ne!(first.session, second.session);
        assert!(!format!("{first:?}").contains(&token));
        let again = authenticator.caller(&bearer(&token), None).await.unwrap();
        assert_eq!((&again.user, &again.session, again.may_write), (&first.user, &first.session, first.may_write));
        let mut with_cookie = bearer(&token);
        with_cookie.insert("cookie", format!("arrow_flight_session_id={COOKIE}").parse().unwrap());
        assert_eq!(authenticator.caller(&with_cookie, None).await.unwrap().session, first.session);
        // What names a session does not open it.
        let named = cookies(&[&format!("arrow_flight_session_id={}", first.session)]);
        assert!(authenticator.caller(&named, None).await.map_or(true, |caller| caller.session.is_empty()));
        authenticator.forget(&"".into());
        authenticator.forget(&first.session);
        assert_eq!(authenticator.caller(&bearer(&other), None).await.unwrap().session, second.session);
        assert!(authenticator.caller(&bearer(&token), None).await.map_or(true, |caller| caller.session.is_empty()));
    }
    let known = known();
    let (caller, token) = known.handshake(&bearer(TOKEN), None).await.unwrap();
    assert_eq!(&*caller.user, "ci");
    known.forget(&caller.session);
    assert_eq!(refusal(&known, &bearer(&token)).await, "unknown token");
}

#[tokio::test]
async fn handshakes_by_payload() {
    let auth = |user: &str, password: &str| {
        arrow_flight::BasicAuth { username: user.into(), password: password.into() }.encode_to_vec()
    };
    let known = known();
    let (caller, token) = known.handshake_payload(&auth("bob", "b"), None).await.unwrap();
    assert_eq!((&*caller.user, user_of(&known, &bearer(&token)).await.as_str()), ("bob", "bob"));
    let long = auth("bob", &"b".repeat(1 << 20));
    for (payload, expected) in [
        (auth("bob", "x"), "wrong user or password"),
        (Vec::new(), "no credentials: send "),
        (vec![0xff; 9], "the payload of the handshake is not a BasicAuth message"),
        (long, "the payload of the handshake is not a BasicAuth message"),
    ] {
        let status = known.handshake_payload(&payload, None).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().starts_with(expected), "{}", status.message());
    }
    let (caller, _) = open_to_all().handshake_payload(&[0xff; 9], None).await.unwrap();
    assert_eq!(&*caller.user, "anonymous");
}

#[tokio::test]
async fn sessions_are_limited() {
    let credentials = credentials();
    let few = Authenticator::new(Some(credentials.clone()), false, false, &limits(2, Duration::from_secs(3600)));
    let (first, _) = few.handshake(&basic("bob:b"), None).await.unwrap();
    few.handshake(&bearer(TOKEN), None).await.unwrap();
    let status = few.handshake(&basic("bob:b"), None).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("sessions: 2 are open"), "{}", status.message());
    assert_eq!(user_of(&few, &basic("bob:b")).await, "bob");
    few.forget(&first.session);
    few.handshake(&basic("bob:b"), None).await.unwrap();

    let brief = Authenticator::new(Some(credentials), false, false, &limits(1, Duration::ZERO));
    let (_, token) = brief.handshake(&basic("bob:b"), None).await.unwrap();
    let (_, other) = brief.handshake(&basic("bob:b"), None).await.unwrap();
    assert_eq!(refusal(&brief, &bearer(&token)).await, "unknown token");
    assert_eq!(refusal(&brief, &bearer(&other)).await, "this token expired");
}

#[tokio::test]
async fn cookies_name_sessions() {
    let all = open_to_all();
    let hex = "0123456789abcdefABCDEF0123456789";
    let long = "a".repeat(65);
    for (values, session) in [
        (vec![format!("arrow_flight_session_id={COOKIE}")], COOKIE),
        (vec![format!("a=b; arrow_flight_session_id=\"{hex}\" ; c")], hex),
        (vec!["a=b".to_string(), format!("arrow_flight_session_id={COOKIE}")], COOKIE),
        (vec![format!("arrow_flight_session_id={}", &hex[1..])], ""),
        (vec![format!("arrow_flight_session_id={long}")], ""),
        (vec![format!("arrow_flight_session_id=../{hex}")], ""),
        (vec![format!("session_id={hex}")], ""),
        (vec![], ""),
    ] {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let caller = all.caller(&cookies(&values), None).await.unwrap();
        assert_eq!((&*caller.user, &*caller.session), ("anonymous", session), "{values:?}");
    }
}

#[tokio::test]
async fn without_credentials_headers_do_not_matter() {
    let all = open_to_all();
    for metadata in [nothing(), bearer("x"), basic("ada:x"), header("Basic !!!")] {
        let caller = all.caller(&metadata, Some(b"a certificate")).await.unwrap();
        assert_eq!((&*caller.user, &*caller.session), ("anonymous", ""));
    }
}

#[tokio::test]
async fn certificates_name_users() {
    let all = Authenticator::new(None, false, true, &Limits::default());
    let user = format!("certificate-{}", &hex(&sum_of(b"der"))[..16]);
    let caller = all.caller(&nothing(), Some(b"der")).await.unwrap();
    assert_eq!((&*caller.user, &*caller.session, caller.may_write), (user.as_str(), "", true));
    assert_eq!(refusal(&all, &nothing()).await, "no client certificate");
    let (caller, token) = all.handshake(&nothing(), Some(b"der")).await.unwrap();
    assert_eq!(&*caller.user, user);
    assert_eq!(all.caller(&bearer(&token), Some(b"der")).await.unwrap().session, caller.session);
    let other = all.caller(&bearer(&token), Some(b"other")).await.unwrap();
    assert!(other.session.is_empty() && *other.user != *user);
}
