//! A message names a setting as the place does that its value came from: a flag, a variable, a field of a file.

use std::fs;

use tempfile::TempDir;

use crate::common::{DIGITS, arrow_quant, run, text};

/// Asserts that a message starts with the first part, and that the others follow.
#[track_caller]
fn starts(message: &str, parts: &[&str]) {
    assert!(message.starts_with(parts[0]), "'{message}' does not start with '{}'", parts[0]);
    crate::common::contains(message, &parts[1..]);
}

/// A job on the example model that fails.
#[track_caller]
fn quantize(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    run(arrow_quant(&[&["quantize", DIGITS, text(&out)], arguments].concat()).envs(variables.iter().copied())).error()
}

/// A server that does not start.
#[track_caller]
fn serve(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let arguments = [&["serve"], arguments].concat();
    run(arrow_quant(&arguments).envs(variables.iter().copied())).error()
}

#[test]
fn contradictions_name_both_settings() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path).to_string()
    };
    let (off, widths) =
        (at("off.yaml", "enable_mixed_precision: false"), at("widths.yaml", "layer_bit_widths: {fc: 8}"));
    let both = at("both.yaml", "enable_mixed_precision: false\nlayer_bit_widths: {fc: 8}");
    let message = quantize(&["--enable-mixed-precision=false", "--layer-bit-widths", "fc=8"], &[]);
    starts(
        &message,
        &["--layer-bit-widths is set but --enable-mixed-precision is false: set it to true, or leave out \
           --layer-bit-widths"],
    );
    let message = quantize(&["--config", &off, "--layer-bit-widths", "fc=8"], &[]);
    starts(&message, &[&format!("--layer-bit-widths is set but enable_mixed_precision in {off} is false")]);
    let message = quantize(&["--config", &widths, "--enable-mixed-precision=false"], &[]);
    starts(&message, &[&format!("{widths}: layer_bit_widths is set but --enable-mixed-precision is false")]);
    let message = quantize(&["--config", &both], &[]);
    starts(&message, &[&format!("{both}: layer_bit_widths is set but enable_mixed_precision is false")]);
    let targets = at("targets.yaml", "target_bpw: 3\ntarget_model_size_mb: 4");
    let message = quantize(&["--config", &targets], &[]);
    starts(&message, &[&format!("{targets}: target_model_size_mb and target_bpw are both set, allowed: one")]);
}

#[test]
fn a_setting_that_does_not_fit_the_model_is_named_by_its_place() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    fs::write(&path, "tensors: nothing").unwrap();
    let message = quantize(&["--config", text(&path)], &[]);
    starts(&message, &[&format!("tensors in {} is 'nothing', which selects no tensor", path.display())]);
    starts(&quantize(&["--tensors", "nothing"], &[]), &["--tensors is 'nothing', which selects no tensor"]);
    starts(&quantize(&["--target-size", "1kB"], &[]), &["--target-size is 0.001 MB, allowed for this model: about"]);
    let floor = [("ARROW_QUANT_MIN_ACCURACY", "0.9999"), ("ARROW_QUANT_BIT_WIDTH", "2")];
    let out = directory.path().join("out");
    let mut command = arrow_quant(&["quantize", DIGITS, text(&out), "--fail-fast"]);
    crate::common::contains(
        &run(command.envs(floor)).error_with(3),
        &[", below ARROW_QUANT_MIN_ACCURACY 0.9999", "or leave out --fail-fast"],
    );
}

#[test]
fn reports_name_the_settings_that_decided() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    fs::write(&path, "sensitive_layer_names: [pos_embed]").unwrap();
    let arguments =
        ["quantize", DIGITS, "--dry-run", "--config", text(&path), "--layer-bit-widths", "time_fc1.weight=8"];
    let printed = run(&mut arrow_quant(&arguments)).printed();
    crate::common::contains(&printed, &["--layer-bit-widths 'time_fc1.weight'", "--bits"]);
    let out = directory.path().join("out");
    let printed = run(&mut arrow_quant(&["quantize", DIGITS, text(&out), "--config", text(&path)])).printed();
    crate::common::contains(&printed, &[&format!("sensitive_layer_names in {} 'pos_embed' 1", path.display())]);
    // A report of a model uses the names of fields, because its reader need not have made the model.
    crate::common::contains(
        &run(&mut arrow_quant(&["report", text(&out)])).printed(),
        &["sensitive_layer_names 'pos_embed' 1"],
    );
}

#[test]
fn settings_of_a_server_are_named_by_their_place() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("serve.yaml");
    let file = text(&path);
    let of_file = |content: &str, more: &[&str]| {
        fs::write(&path, content).unwrap();
        serve(&[&["--config", file], more].concat(), &[])
    };
    starts(&serve(&["--allow", "/none"], &[]), &["--allow: `/none` cannot be found"]);
    let allow = &format!("allow in {file}: `/none` cannot be found");
    starts(&of_file("allow: [/none]", &[]), &[allow]);
    starts(&of_file("allow: [/none]", &["--allow", "/"]), &[allow]);

    starts(&serve(&["--tls-key", "x"], &[]), &["--tls-certificate is missing, which --tls-key needs"]);
    let key = [("ARROW_QUANT_SERVE_TLS_KEY", "x")];
    starts(&serve(&[], &key), &["ARROW_QUANT_SERVE_TLS_CERTIFICATE is missing, which ARROW_QUANT_SERVE_TLS_KEY needs"]);
    starts(
        &of_file("tls: {client_ca: x}", &[]),
        &[&format!("{file}: tls.certificate is missing, which tls.client_ca needs: give both, or leave out")],
    );

    starts(
        &serve(&["--listen", "0.0.0.0:0"], &[]),
        &["--listen is 0.0.0.0:0, which can be reached by other machines", "(--tls-certificate, --tls-key)"],
    );
    starts(
        &serve(&[], &[("ARROW_QUANT_SERVE_LISTEN", "0.0.0.0:0")]),
        &["ARROW_QUANT_SERVE_LISTEN is 0.0.0.0:0", "or set ARROW_QUANT_SERVE_INSECURE"],
    );
    let message = of_file("listen: 0.0.0.0:0", &[]);
    starts(&message, &[&format!("listen in {file} is 0.0.0.0:0"), "(tls.certificate, tls.key)", "or set insecure"]);
    assert!(!message.contains("--"), "{message}");

    starts(&serve(&["--credentials", "/none.yaml"], &[]), &["--credentials: /none.yaml: no such file"]);
    let tls = of_file("tls: {certificate: /none.pem, key: /none.pem}", &[]);
    starts(&tls, &[&format!("tls.certificate in {file}: /none.pem: no such file")]);
    starts(&serve(&["--credentials", file], &[]), &[&format!("--credentials: {file}: unknown field `tls`")]);

    starts(&serve(&["--model", "m=/none"], &[]), &["--model: m: no model at `/none`"]);
    starts(&of_file("models: {m: /none}", &[]), &[&format!("models in {file}: m: no model at `/none`")]);
    starts(
        &of_file("models: {a/b: /none}", &[]),
        &[&format!("{file}: models is refused: the name 'a/b' of a model is not")],
    );
    starts(&serve(&["--model", "m=a", "--model", "M=b"], &[]), &["--model m=b has a name that another model has"]);
    starts(&serve(&["--limit", "sesions=1"], &[]), &["--limit sesions=1 names no limit 'sesions'; did you mean"]);
    starts(&serve(&["--limit", "sessions"], &[]), &["--limit sessions has no value: give NAME=VALUE"]);
    starts(&serve(&["--limit", "sessions=0"], &[]), &["--limit sessions is 0, allowed: 1 to 1000000"]);
}
