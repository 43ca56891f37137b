//! Target sizes: bits and group sizes that follow from how large the model may be.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    DIGITS, Tensor, arrow_quant, contains, files, quantized, refused, run, tensor, tensors, text, write_model,
};

/// A report on the example model with a target, and no floor that would have a say.
#[track_caller]
fn report(directory: &Path, name: &str, arguments: &[&str]) -> Value {
    quantized(DIGITS, directory, name, &[arguments, &["--min-accuracy", "0"]].concat()).1
}

fn stored(report: &Value) -> u64 {
    report["stored_bytes"].as_u64().unwrap()
}

fn squared_error(report: &Value) -> f64 {
    report["squared_error"].as_f64().unwrap()
}

/// Bits and group size of each quantized tensor.
fn choices(report: &Value) -> BTreeSet<String> {
    let quantized = tensors(report).iter().filter(|tensor| !tensor["bits"].is_null());
    quantized.map(|tensor| format!("{} in {}", tensor["bits"], tensor["group_size"])).collect()
}

#[track_caller]
fn is_met(report: &Value, target: f64) {
    let stored = stored(report) as f64;
    assert!(stored <= target && stored >= 0.99 * target, "{stored} bytes for {target}");
}

#[test]
fn a_target_is_met_within_one_percent_and_never_exceeded() {
    let directory = TempDir::new().unwrap();
    for bits in ["3", "3.6", "4.4", "6"] {
        let report = report(directory.path(), bits, &["--target-bpw", bits]);
        let weights = report["weights"].as_f64().unwrap();
        is_met(&report, bits.parse::<f64>().unwrap() * weights / 8.0);
        let decided = tensors(&report).iter().filter(|tensor| tensor["because"] != "1-D");
        for tensor in decided {
            assert!(tensor["because"].as_str().unwrap().starts_with("target"), "{tensor}");
        }
        assert!(choices(&report).len() > 1, "{:?}", choices(&report));
    }
}

#[test]
fn a_target_goes_by_several_units() {
    let directory = TempDir::new().unwrap();
    let written = |name: &str, flag: &str, target: &str| {
        let (out, report) = quantized(DIGITS, directory.path(), name, &[flag, target]);
        is_met(&report, 600_000.0);
        files(&out.join("weights"))
    };
    let expected = written("kB", "--target-size", "600kB");
    assert!(expected == written("MB", "--target-model-size-mb", "0.6"));
    assert!(expected == written("B", "--target-size", "600000 b"));
}

/// Sizes of models that are quantized all alike, and what mixed widths make of them.
#[test]
fn the_error_is_at_least_a_fifth_below_that_of_all_tensors_alike() {
    let directory = TempDir::new().unwrap();
    let mut alike = Vec::new();
    for bits in ["2", "4", "8"] {
        for size in ["32", "64", "128", "256"] {
            let name = format!("{bits}-{size}");
            let report = report(directory.path(), &name, &["--bits", bits, "--group-size", size]);
            alike.push((name, stored(&report), squared_error(&report)));
        }
    }
    for (name, target, _) in &alike {
        let megabytes = format!("{}", *target as f64 / 1e6);
        let mixed = report(directory.path(), &format!("as-{name}"), &["--target-model-size-mb", &megabytes]);
        is_met(&mixed, *target as f64);
        let fitting = alike.iter().filter(|(_, stored, _)| stored <= target);
        let best = fitting.map(|(.., error)| *error).min_by(f64::total_cmp).unwrap();
        // Of the smallest there is no other choice, and at 8 bits in groups of 256 hardly one.
        let most = if ["2-256", "8-256"].contains(&name.as_str()) { 1.0 } else { 0.8 };
        let found = squared_error(&mixed);
        assert!(found <= most * best, "{name}, {target} bytes: an error of {found}, {best} with all alike");
    }
}

/// Where a sample looked, every weight could be one of the levels. The rest cannot, which is seen when it is written.
#[test]
fn tensors_that_are_not_like_their_samples_are_chosen_for_again() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("m.safetensors");
    let named = ["a", "b", "c", "d"].into_iter().zip(1..);
    let mut tensors: Vec<Tensor> =
        named.map(|(name, seed)| Tensor::gaussian(name, "F32", &[1024, 1024], seed)).collect();
    for tensor in &mut tensors {
        for row in (0..1024).filter(|row| row % 128 < 8 || row % 128 >= 120) {
            let weights = &mut tensor.values[row * 1024..][..1024];
            weights.iter_mut().for_each(|weight| *weight = weight.signum());
        }
    }
    tensors.push(Tensor::gaussian("e", "F32", &[2048, 1024], 5));
    tensors.push(Tensor::gaussian("f", "F32", &[1024, 1024], 6));
    write_model(&model, &tensors);
    for floor in ["0", "0.97"] {
        let arguments = ["--target-bpw", "4.4", "--min-accuracy", floor];
        let (_, mixed) = quantized(text(&model), directory.path(), &format!("mixed-{floor}"), &arguments);
        let alike = [&arguments[..], &["--enable-mixed-precision=false"]].concat();
        let (_, alike) = quantized(text(&model), directory.path(), &format!("alike-{floor}"), &alike);
        let (found, expected) = (squared_error(&mixed), squared_error(&alike));
        assert!(found <= 1.02 * expected, "{floor}: an error of {found}, {expected} with all alike");
    }
}

#[test]
fn too_small_a_target_names_the_least_there_is() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    for (flag, target, field) in
        [("--target-bpw", "2", "--target-bpw is 2"), ("--target-size", "100kB", "--target-size is 0.1")]
    {
        let message = refused(DIGITS, &out, &[flag, target]);
        contains(&message, &[field, ", allowed for this model: about ", " or more"]);
        let least = message.split(": about ").nth(1).and_then(|rest| rest.strip_suffix(" or more")).unwrap();
        let least = &least.replace(' ', "");
        // What is named is possible.
        let (_, report) = quantized(DIGITS, directory.path(), flag, &[flag, least]);
        assert!(report["bits_per_weight"].as_f64().unwrap() < 2.45, "{least}");
    }
}

#[test]
fn with_room_for_all_everything_is_kept() {
    let directory = TempDir::new().unwrap();
    let report = report(directory.path(), "out", &["--target-size", "1GB"]);
    assert!(tensors(&report).iter().all(|tensor| tensor["bits"].is_null()));
    assert_eq!((squared_error(&report), &report["cosine_similarity"]), (0.0, &Value::Null));
}

#[test]
fn without_mixed_precision_all_tensors_get_the_same() {
    let directory = TempDir::new().unwrap();
    for (bits, expected) in [("3", "2 in 64"), ("4.5", "4 in 128"), ("6", "5 in 64")] {
        let arguments = ["--target-bpw", bits, "--enable-mixed-precision=false"];
        let report = report(directory.path(), bits, &arguments);
        assert_eq!(choices(&report).into_iter().collect::<Vec<_>>(), [expected], "{bits}");
        assert!(report["bits_per_weight"].as_f64().unwrap() <= bits.parse().unwrap());
    }
}

/// That a size is too small is said of a size that is.
#[test]
fn without_mixed_precision_the_least_is_that_of_all_alike() {
    let directory = TempDir::new().unwrap();
    // At two bits in groups of 64, pos_embed has a cosine similarity of 0.935.
    let alike = ["--enable-mixed-precision=false", "--min-accuracy", "0.936"];
    let out = directory.path().join("out");
    let message = refused(DIGITS, &out, &[&["--target-bpw", "2.6"], alike.as_slice()].concat());
    let least = message.split(": about ").nth(1).and_then(|rest| rest.strip_suffix(" or more")).unwrap();
    assert!(least.parse::<f64>().unwrap() > 2.6, "{message}");
    quantized(DIGITS, directory.path(), "out", &[&["--target-bpw", least], alike.as_slice()].concat());
}

#[test]
fn what_is_said_of_a_layer_holds_under_a_target() {
    let directory = TempDir::new().unwrap();
    let arguments = [
        ["--target-bpw", "5"],
        ["--layer-bit-widths", "blocks.0=8"],
        ["--layer-bit-widths", "blocks.1=2"],
        ["--layer-bit-widths", "pos_embed=16"],
        ["--sensitive-layer-names", "blocks.3.qkv"],
    ]
    .concat();
    let report = report(directory.path(), "out", &arguments);
    is_met(&report, 5.0 * report["weights"].as_f64().unwrap() / 8.0);
    let matrices = |module: &str| {
        let of_module = tensors(&report).iter().filter(|t| t["tensor"].as_str().unwrap().starts_with(module));
        of_module.filter(|t| t["because"] != "1-D").map(|t| &t["bits"]).collect::<Vec<_>>()
    };
    assert_eq!(matrices("blocks.0."), vec![&json!(8); 5]);
    assert_eq!(matrices("blocks.1."), vec![&json!(2); 5]);
    assert_eq!(tensor(&report, "pos_embed")["because"], "layer_bit_widths 'pos_embed'");
    assert_eq!(tensor(&report, "blocks.3.qkv.weight")["because"], "sensitive_layer_names 'blocks.3.qkv'");
}

#[test]
fn a_floor_holds_under_a_target() {
    let directory = TempDir::new().unwrap();
    let (_, report) = quantized(DIGITS, directory.path(), "out", &["--target-bpw", "3", "--min-accuracy", "0.95"]);
    is_met(&report, 3.0 * report["weights"].as_f64().unwrap() / 8.0);
    for tensor in tensors(&report).iter().filter(|tensor| !tensor["bits"].is_null()) {
        assert!(tensor["cosine_similarity"].as_f64().unwrap() >= 0.95, "{tensor}");
    }
    // At three bits hardly any tensor is that good.
    let out = directory.path().join("other");
    let message = refused(DIGITS, &out, &["--target-bpw", "3", "--min-accuracy", "0.98"]);
    contains(&message, &["--target-bpw is 3", ", allowed for this model: about 3.4"]);
}

/// Nothing is left to choose, so it is said at once.
#[test]
fn a_target_that_nothing_can_meet_is_refused_by_the_plan() {
    let wrong = run(arrow_quant(&["plan", DIGITS, "--target-bpw", "4", "--sensitive-layer-patterns", "."])).error();
    contains(&wrong, &["--target-bpw is 4", "allowed for this model: about 16."]);
}

#[test]
fn a_target_goes_with_nothing_that_decides_otherwise() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    for [flag, value, other, other_value] in [
        ["--target-size", "1MB", "--bits", "4"],
        ["--target-bpw", "4", "--group-size", "64"],
        ["--target-bpw", "4", "--target-size", "1MB"],
        ["--target-model-size-mb", "1", "--target-size", "1MB"],
    ] {
        let outcome = run(arrow_quant(&["quantize", DIGITS, text(&out), flag, value, other, other_value]));
        assert_eq!(outcome.status, Some(2), "{outcome:?}");
        contains(&outcome.stderr, &["cannot be used with", flag, other]);
    }
    let outcome = run(arrow_quant(&["quantize", DIGITS, text(&out), "--target-size", "500"]));
    contains(
        &outcome.stderr,
        &["invalid value '500' for '--target-size", "the unit is missing: write a size such as 1.9GB"],
    );
}

/// Where a format has one group size for the whole model, it is that which suits the program.
#[test]
fn a_target_keeps_the_group_size_of_a_program() {
    let plan = ["plan", DIGITS, "--for", "diffusers", "--target-bpw", "6", "--min-accuracy", "0", "--json"];
    let planned = run(arrow_quant(&plan)).json();
    let sizes: BTreeSet<_> = tensors(&planned).iter().filter_map(|tensor| tensor["group_size"].as_u64()).collect();
    assert_eq!(sizes, BTreeSet::from([64]));
}
