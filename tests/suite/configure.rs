//! The configuration from outside: `config show` and `config validate`, and where values come from.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use arrow_quant_v2::FIELDS;
use serde_json::json;
use tempfile::TempDir;

use crate::common::{DIGITS, arrow_quant, contains, quantized, run, text};

/// A flag for every field, with a value that is not the default's and how it is shown.
const FLAGS: [(&str, &[&str], &str); 31] = [
    ("deployment_profile", &["--profile", "edge"], "\"edge\""),
    ("modality", &["--modality", "audio"], "\"audio\""),
    ("variant", &["--variant", "fp16"], "\"fp16\""),
    ("format", &["--format", "gguf"], "\"gguf\""),
    ("architecture", &["--architecture", "llama"], "\"llama\""),
    ("pre_tokenizer", &["--pre", "gpt-4o"], "\"gpt-4o\""),
    ("bit_width", &["--bits", "8"], "8"),
    ("type", &["--type", "int3"], "\"int3\""),
    ("no_fallback", &["--no-fallback"], "true"),
    ("group_size", &["--group-size", "32"], "32"),
    ("scheme", &["--scheme", "symmetric"], "\"symmetric\""),
    ("method", &["--method", "minmax"], "\"minmax\""),
    ("min_accuracy", &["--min-accuracy", "0.75"], "0.75"),
    ("min_sqnr_db", &["--min-sqnr-db", "-1.5"], "-1.5"),
    ("fail_fast", &["--fail-fast"], "true"),
    ("tensors", &["--tensors", "a # b"], "\"a # b\""),
    ("skip_sensitive_layers", &["--skip-sensitive-layers"], "true"),
    ("sensitive_layer_names", &["--sensitive-layer-names", "a,b"], "[\"a\",\"b\"]"),
    ("sensitive_layer_patterns", &["--sensitive-layer-patterns", "^a{1,2}$"], "[\"^a{1,2}$\"]"),
    ("layer_bit_widths", &["--layer-bit-widths", "a=2", "--layer-bit-widths", "b=16"], "{\"a\":2,\"b\":16}"),
    ("enable_mixed_precision", &["--enable-mixed-precision=false"], "false"),
    ("target_model_size_mb", &["--target-size", "1.9GB"], "1900.0"),
    ("target_bpw", &["--target-bpw", "3.5"], "3.5"),
    ("enable_time_aware", &["--enable-time-aware=false"], "false"),
    ("num_time_groups", &["--num-time-groups", "7"], "7"),
    ("time_group_boundaries", &["--time-group-boundaries", "equal"], "\"equal\""),
    ("calibration_samples", &["--calibration-samples", "9"], "9"),
    ("enable_spatial", &["--enable-spatial=false"], "false"),
    ("num_threads", &["--threads", "3"], "3"),
    ("enable_streaming", &["--enable-streaming=false"], "false"),
    ("max_memory_limit_mb", &["--max-memory-limit-mb", "300"], "300"),
];

/// A variable for each field that has one, with a value, how it is shown, and one that is not allowed.
const VARIABLES: [(&str, &str, &str, &str); 9] = [
    ("ARROW_QUANT_BIT_WIDTH", "bit_width", "8", "7"),
    ("ARROW_QUANT_TYPE", "type", "\"int8\"", "q9_k"),
    ("ARROW_QUANT_GROUP_SIZE", "group_size", "32", "large"),
    ("ARROW_QUANT_MIN_ACCURACY", "min_accuracy", "0.75", "1.5"),
    ("ARROW_QUANT_FAIL_FAST", "fail_fast", "true", "yes"),
    ("ARROW_QUANT_NUM_TIME_GROUPS", "num_time_groups", "7", "101"),
    ("ARROW_QUANT_CALIBRATION_SAMPLES", "calibration_samples", "9", "0"),
    ("ARROW_QUANT_NUM_THREADS", "num_threads", "3", "-1"),
    ("ARROW_QUANT_MAX_MEMORY_MB", "max_memory_limit_mb", "300", "5"),
];

/// Each field's value and origin, as `config show` prints them.
#[track_caller]
fn shown(command: &mut Command) -> BTreeMap<String, (String, String)> {
    let printed = run(command).printed();
    let line = |line: &str| {
        let (field, origin) = line.rsplit_once("# ").unwrap();
        let (name, value) = field.split_once(": ").unwrap();
        (name.to_string(), (value.trim_end().to_string(), origin.to_string()))
    };
    let fields: BTreeMap<_, _> = printed.lines().map(line).collect();
    assert_eq!(fields.len(), FIELDS.len(), "{printed}");
    fields
}

fn show(arguments: &[&str]) -> Command {
    arrow_quant(&[["config", "show"].as_slice(), arguments].concat())
}

/// A value and where it comes from.
#[track_caller]
fn is(fields: &BTreeMap<String, (String, String)>, name: &str, value: &str, origin: &str) {
    let (found, from) = &fields[name];
    assert_eq!((found.as_str(), from.as_str()), (value, origin), "{name}");
}

#[test]
fn without_anything_all_is_of_the_local_profile() {
    let fields = shown(&mut show(&[]));
    for (name, value) in [("deployment_profile", "\"local\""), ("bit_width", "4"), ("modality", "null")] {
        is(&fields, name, value, "profile local");
    }
    assert!(fields.values().all(|(_, origin)| origin == "profile local"));
}

#[test]
fn every_field_has_a_flag() {
    for ((field, arguments, value), known) in FLAGS.iter().zip(FIELDS) {
        assert_eq!(*field, known.name);
        let flag = arguments[0].split('=').next().unwrap();
        is(&shown(&mut show(arguments)), field, value, flag);
    }
}

#[test]
fn every_variable_counts() {
    let known: Vec<_> = FIELDS.iter().filter_map(|field| Some((field.variable?, field.name))).collect();
    assert_eq!(VARIABLES.map(|(variable, field, ..)| (variable, field)).as_slice(), known);
    for (variable, field, value, wrong) in VARIABLES {
        is(&shown(show(&[]).env(variable, value.trim_matches('"'))), field, value, variable);
        is(&shown(show(&[]).env(variable, "")), field, &shown(&mut show(&[]))[field].0, "profile local");
        for command in [["config", "show"], ["config", "validate"]] {
            let message = run(arrow_quant(&command).env(variable, wrong)).error();
            contains(&message, &[&format!("{variable} is '{wrong}', allowed: ")]);
        }
    }
    let misspelled = run(show(&[]).env("ARROW_QUANT_BITWIDTH", "4")).error();
    contains(&misspelled, &["there is no variable ARROW_QUANT_BITWIDTH; did you mean ARROW_QUANT_BIT_WIDTH?"]);
}

#[test]
fn flags_go_before_the_environment_before_the_file_before_the_profile() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    fs::write(&path, "deployment_profile: edge\ngroup_size: 64\nmin_accuracy: 0.7\nnum_time_groups: 3\n").unwrap();
    let file = text(&path);
    let mut command = show(&["--config", file, "--group-size", "32", "--calibration-samples", "1"]);
    let variables =
        [("ARROW_QUANT_GROUP_SIZE", "256"), ("ARROW_QUANT_MIN_ACCURACY", "0.8"), ("ARROW_QUANT_BIT_WIDTH", "8")];
    let fields = shown(command.envs(variables));
    is(&fields, "group_size", "32", "--group-size");
    is(&fields, "calibration_samples", "1", "--calibration-samples");
    is(&fields, "min_accuracy", "0.8", "ARROW_QUANT_MIN_ACCURACY");
    is(&fields, "bit_width", "8", "ARROW_QUANT_BIT_WIDTH");
    is(&fields, "num_time_groups", "3", file);
    is(&fields, "deployment_profile", "\"edge\"", file);
    is(&fields, "enable_spatial", "false", "profile edge");

    // Another profile changes what nothing else speaks of.
    let fields = shown(&mut show(&["--config", file, "--profile", "cloud"]));
    is(&fields, "deployment_profile", "\"cloud\"", "--profile");
    is(&fields, "bit_width", "8", "profile cloud");
    is(&fields, "group_size", "64", file);
}

#[test]
fn a_target_replaces_one_in_the_other_unit() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    fs::write(&path, "target_model_size_mb: 700\n").unwrap();
    let fields = shown(&mut show(&["--config", text(&path), "--target-bpw", "3"]));
    is(&fields, "target_bpw", "3.0", "--target-bpw");
    is(&fields, "target_model_size_mb", "null", "profile local");
}

#[test]
fn what_is_shown_is_a_configuration() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("shown.yaml");
    // Not both targets at once, and not the flags that contradict widths and targets.
    let left_out = ["target_bpw", "enable_mixed_precision", "bit_width", "type", "group_size"];
    let flags = FLAGS.iter().filter(|(field, ..)| !left_out.contains(field));
    let all: Vec<&str> = flags.flat_map(|(_, arguments, _)| arguments.iter().copied()).collect();
    for arguments in [&[][..], &all] {
        fs::write(&path, run(show(arguments)).printed()).unwrap();
        let (before, after) = (shown(&mut show(arguments)), shown(&mut show(&["--config", text(&path)])));
        for (name, (value, _)) in &before {
            is(&after, name, value, text(&path));
        }
        let validate = ["config", "validate", "--config", text(&path)];
        assert_eq!(run(arrow_quant(&validate)).printed(), "the configuration is valid\n");
    }
}

#[test]
fn a_file_configures_a_job() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    fs::write(&path, "bit_width: 8\ngroup_size: 64\nlayer_bit_widths:\n  pos_embed: 2\n").unwrap();
    let arguments = ["--config", text(&path), "--group-size", "32"];
    let (_, report) = quantized(DIGITS, directory.path(), "out", &arguments);
    let settings = &report["settings"];
    assert_eq!([&settings["bit_width"], &settings["group_size"]], [&json!(8), &json!(32)]);
    let bits = |name: &str| &crate::common::tensor(&report, name)["bits"];
    assert_eq!([bits("pos_embed"), bits("time_fc1.weight")], [&json!(2), &json!(8)]);
}

#[test]
fn files_that_are_wrong() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    for (content, expected) in [
        ("bit_witdh: 4\n", "there is no field 'bit_witdh'; did you mean bit_width?"),
        ("bit_width: 7\n", "bit_width is 7, allowed: 2, 3, 4, 5, 6 or 8"),
        ("bit_width: \"4\"\n", "bit_width is '4', allowed: 2, 3, 4, 5, 6 or 8"),
        ("deployment_profile: phone\n", "deployment_profile is 'phone', allowed: edge, local or cloud"),
        ("tensors: 3\n", "tensors is 3, allowed: a regular expression, or null for all"),
        ("fail_fast: maybe\n", "fail_fast is 'maybe', allowed: true or false"),
        ("tensors: (\n", "tensors is '(', which is not a regular expression"),
        (
            "layer_bit_widths: {a: 7}\n",
            "layer_bit_widths of 'a' is 7, allowed: 2, 3, 4, 5, 6, 8, a block type such as q6_k, or 16 to keep it",
        ),
        ("target_bpw: 3\ntarget_model_size_mb: 4\n", "target_model_size_mb and target_bpw are both set"),
        ("bit_width: 4\nbit_width: 8\n", "not YAML: duplicate entry with key \"bit_width\""),
        ("bit_width: [\n", "not YAML: "),
        ("- bit_width\n", "expected fields and their values, one `field: value` a line"),
    ] {
        fs::write(&path, content).unwrap();
        refuses(&["--config", text(&path)], &["c.yaml: ", expected]);
    }
    refuses(&["--config", text(&directory.path().join("none.yaml"))], &["none.yaml: no such file or directory"]);
}

/// Asserts that `config validate` fails with a message that has these parts, and `quantize` too.
#[track_caller]
fn refuses(arguments: &[&str], parts: &[&str]) {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    for command in [["config", "validate"].as_slice(), &["quantize", DIGITS, text(&out)]] {
        contains(&run(arrow_quant(&[command, arguments].concat())).error(), parts);
    }
    assert!(!Path::new(&out).exists());
}

/// Asserts that `config validate` and `quantize` fail with this message.
#[track_caller]
fn refuses_with(arguments: &[&str], expected: &str) {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    for command in [["config", "validate"].as_slice(), &["quantize", DIGITS, text(&out)]] {
        assert_eq!(run(arrow_quant(&[command, arguments].concat())).error(), expected);
    }
}

#[test]
fn values_that_are_wrong_are_named_with_what_is_allowed() {
    refuses_with(&["--min-accuracy", "1.5"], "--min-accuracy is 1.5, allowed: 0.0 to 1.0");
    refuses_with(&["--min-accuracy", "nan"], "--min-accuracy is 'NaN', allowed: 0.0 to 1.0");
    refuses_with(&["--min-sqnr-db", "inf"], "--min-sqnr-db is 'inf', allowed: a number of dB");
    refuses_with(&["--num-time-groups", "101"], "--num-time-groups is 101, allowed: 1 to 100");
    refuses_with(&["--calibration-samples", "0"], "--calibration-samples is 0, allowed: 1 or more");
    refuses_with(&["--target-bpw", "65"], "--target-bpw is 65.0, allowed: a number above 0 and up to 64");
    refuses_with(&["--max-memory-limit-mb", "5"], "--max-memory-limit-mb is 5, allowed: 192 or more");
    refuses_with(&["--tensors", "("], "--tensors is '(', which is not a regular expression: unclosed group");
    refuses_with(
        &["--sensitive-layer-patterns", "a", "--sensitive-layer-patterns", "[z-a]"],
        "--sensitive-layer-patterns is '[z-a]', which is not a regular expression: invalid character class range, the start must be <= the end",
    );
    refuses_with(
        &["--layer-bit-widths", "fc=7"],
        "--layer-bit-widths of 'fc' is 7, allowed: 2, 3, 4, 5, 6, 8, a block type such as q6_k, or 16 to keep it",
    );
    refuses_with(
        &["--layer-bit-widths", "fc=4", "--layer-bit-widths", "fc=8"],
        "--layer-bit-widths has 'fc' twice: give it once",
    );
}
