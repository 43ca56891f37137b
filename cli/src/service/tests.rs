use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow_quant_flight::Code;
use arrow_quant_flight::logs::LogFormat;
use datafusion::error::DataFusionError;
use serde_json::json;

use super::body::Body;
use super::{ServiceConfig, ServiceLayers, classify, limit};
use crate::named_model::NamedModel;
use arrow_quant_formats::directory::Missing;
use arrow_quant_stores::StoreError;
use arrow_quant_v2::config::Configuration;
use arrow_quant_v2::{QuantError, Result};

fn variable(name: &str, value: &str) -> (String, String) {
    (format!("ARROW_QUANT_SERVE_{name}"), value.to_string())
}

/// The configuration of a YAML file, variables and flags.
fn load(yaml: &str, with: impl FnOnce(ServiceLayers) -> ServiceLayers) -> Result<ServiceConfig> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serve.yaml");
    std::fs::write(&path, yaml).unwrap();
    Ok(with(ServiceLayers::new().file(&path)).load()?.config)
}

fn message(yaml: &str) -> String {
    let message = load(yaml, |layers| layers).unwrap_err().to_string();
    message.split_once("serve.yaml: ").map_or(message.clone(), |(_, said)| said.to_string())
}

#[test]
fn flags_go_before_the_environment_and_that_before_the_file() {
    let yaml = "
        listen: 127.0.0.1:1
        metrics_listen: 127.0.0.1:2
        read_write: true
        threads: 3
        log_format: json
        models: {dream: /models/dream, Other: o}
        allow: [/models]
        tls: {certificate: c.pem, key: k.pem, client_ca: null}
        limits: {query_timeout: 1.5, sessions: 7, memory_mb: 64}";
    let file = load(yaml, |layers| layers).unwrap();
    assert_eq!((file.listen.port(), file.threads, file.read_write, file.insecure), (1, 3, true, false));
    assert_eq!((file.log_format, file.is_encrypted(), file.tls_client_ca), (LogFormat::Json, true, None));
    assert_eq!((file.limits.query_timeout, file.memory_mb), (Duration::from_millis(1500), 64));
    let names: Vec<_> = file.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!((names, file.allow), (vec!["dream", "other"], vec!["/models".to_string()]));

    let variables = [
        variable("LISTEN", "127.0.0.1:10"),
        variable("METRICS_LISTEN", "127.0.0.1:20"),
        variable("LIMIT_SESSIONS", "70"),
        variable("LIMIT_MEMORY_MB", "640"),
        variable("READ_WRITE", ""),
        ("ARROW_QUANT_NUM_THREADS".to_string(), "9".to_string()),
    ];
    let all = load(yaml, |layers| {
        let (sessions, many) = limit("sessions=700").unwrap();
        let layers = layers.variables(variables).flag("listen", "[::1]:100".into()).flag(sessions, many);
        layers.flag("models", json!({"dream": "other/place"})).flag("allow", json!(["s3://bucket/prefix"]))
    });
    let all = all.unwrap();
    assert_eq!((all.listen.port(), all.metrics_listen.unwrap().port(), all.threads), (100, 20, 3));
    assert_eq!((all.limits.sessions, all.memory_mb, all.read_write), (700, 640, true));
    let dream = NamedModel { name: "dream".to_string(), path: PathBuf::from("other/place") };
    assert_eq!((all.models.len(), all.models.contains(&dream)), (2, true));
    assert_eq!(all.allow, ["/models", "s3://bucket/prefix"]);
}

#[test]
fn a_file_is_refused_with_what_is_allowed() {
    for (yaml, expected) in [
        ("listn: 127.0.0.1:1", "there is no field 'listn'; did you mean listen?"),
        ("limits: {sesions: 1}", "there is no field 'limits.sesions'; did you mean sessions?"),
        ("limits.sessions: 1", "there is no field 'limits.sessions'"),
        ("tls: {certificat: x}", "did you mean certificate?"),
        ("listen: 50051", "listen is 50051, allowed: a host and a port, such as 127.0.0.1:50051"),
        ("read_write: maybe", "read_write is 'maybe', allowed: true or false"),
        ("threads: 2000", "threads is 2000, allowed: 1 to 1024, or 0 for all cores"),
        ("limits: {query_timeout: -1}", "limits.query_timeout is -1, allowed: a number of seconds above 0"),
        ("limits: {concurrent_queries: 0}", "limits.concurrent_queries is 0, allowed: 1 to 1000000"),
        ("limits: 3", "limits is 3, allowed: names and values"),
        ("models: [a]", "models is [\"a\"], allowed: a mapping from names to paths"),
        ("models: {a/b: x}", "the name 'a/b' of a model is not allowed"),
        ("allow: /models", "allow is '/models', allowed: a list of paths and URLs"),
        ("tls: {certificate: c.pem}", "tls.key is missing"),
        ("tls: {client_ca: c.pem}", "tls.certificate is missing"),
    ] {
        let found = message(yaml);
        assert!(found.contains(expected), "{yaml}: {found}");
    }
}

#[test]
fn the_example_is_the_default_and_names_variables_and_flags() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("../service.example.yaml");
    let (config, text) =
        (ServiceLayers::new().file(&path).load().unwrap().config, std::fs::read_to_string(path).unwrap());
    for field in ServiceConfig::FIELDS {
        assert_eq!(field.get(&config), field.get(&ServiceConfig::default()), "{}", field.name);
        // The limits are told of together.
        let limit = field.name.strip_prefix("limits.").map(|limit| format!("\n  {limit}: "));
        let of_its_own = field.variable.into_iter().map(str::to_string).chain([format!("--{}", field.flag())]);
        let named = limit.map_or_else(|| of_its_own.collect(), |limit| vec![limit]);
        assert!(named.iter().all(|name| text.contains(name)), "{}: {named:?}", field.name);
    }
}

#[test]
fn variables_and_flags_are_refused_by_their_names() {
    let of = |layers: ServiceLayers| layers.load().unwrap_err().to_string();
    assert_eq!(
        of(ServiceLayers::new().variables([variable("THREADS", "many")])),
        "ARROW_QUANT_SERVE_THREADS is 'many', allowed: 1 to 1024, or 0 for all cores"
    );
    assert_eq!(
        of(ServiceLayers::new().variables([variable("LISTN", "x")])),
        "there is no variable ARROW_QUANT_SERVE_LISTN; did you mean ARROW_QUANT_SERVE_LISTEN? unset it, or set that one"
    );
    assert!(
        of(ServiceLayers::new().flag("tls.client_ca", true.into())).starts_with("--tls-client-ca is true, allowed: ")
    );
    let (sessions, none) = limit("sessions=none").unwrap();
    assert!(of(ServiceLayers::new().flag(sessions, none)).starts_with("--limit sessions is 'none', allowed: 1 "));
    let twice = ["m=a", "M=b"].map(|model| model.parse().unwrap());
    let message = NamedModel::field_value(&twice).unwrap_err().to_string();
    assert_eq!(message, "--model m=b has a name that another model has: give it another");
    let limit = |text: &str| limit(text).unwrap_err().to_string();
    assert_eq!(limit("query_time=1"), "--limit query_time=1 names no limit 'query_time'; did you mean query_timeout?");
    assert!(limit("sessions").contains("has no value: give NAME=VALUE"));
}

#[test]
fn the_environment_of_jobs_takes_no_notice_of_that_of_the_service() {
    arrow_quant_v2::ConfigLayers::new()
        .variables([variable("THREADS", "2"), variable("NUM_THREAD", "x")])
        .load()
        .unwrap();
}

#[test]
fn bodies_name_the_action_and_the_field() {
    let parse = |text: &str| Body::parse("add_model", text.as_bytes(), &["name", "path"]);
    let body = parse(r#"{"name": "m", "path": null}"#).unwrap();
    assert_eq!(body.text("name").unwrap(), "m");
    assert_eq!(body.text("path").unwrap_err().to_string(), "add_model: path is missing, expected text");
    let body = parse(r#"{"name": 3}"#).unwrap();
    assert_eq!(body.text("name").unwrap_err().to_string(), "add_model: name is 3, expected text");
    assert!(!parse("").unwrap().flag("path").unwrap());
    let refused = |text: &str| parse(text).unwrap_err().to_string();
    assert_eq!(refused(r#"{"pathh": 1}"#), "add_model: there is no field 'pathh'; did you mean path?");
    assert!(refused("[]").starts_with("add_model: the body is no JSON object, expected {\"name\": …, \"path\": …}"));
    assert!(refused("\u{0}").starts_with("add_model: the body is no JSON ("));
    let fields = parse(r#"{"name": {"a": 1}}"#).unwrap();
    assert_eq!(fields.fields("name").unwrap().collect::<Vec<_>>(), [(&"a".to_string(), &json!(1))]);
}

#[test]
fn errors_have_codes() {
    let access = || QuantError::Access(StoreError::Outside { path: PathBuf::new() });
    assert_eq!(classify(&access()), Some(Code::PermissionDenied));
    let stored = object_store::Error::Generic { store: "file", source: Box::new(access()) };
    assert_eq!(classify(&io::Error::other(stored)), Some(Code::PermissionDenied));
    assert_eq!(classify(&QuantError::configuration("bits is 3")), Some(Code::InvalidArgument));
    let missing = QuantError::missing(Path::new(""), Missing::Nothing);
    assert_eq!(classify(&missing), Some(Code::NotFound));
    let query = QuantError::Query(Box::new(DataFusionError::Plan("x".to_string())));
    assert_eq!(classify(&query), None);
    assert_eq!(classify(&io::Error::other("x")), None);
}
