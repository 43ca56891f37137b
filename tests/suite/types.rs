//! Types: integers of all widths, and blocks of ggml.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{DIGITS, arrow_quant, contains, quantized, refused, run, tensor, tensors, text};

/// Encodings of the quantized tensors.
fn encodings(report: &Value) -> Vec<&str> {
    let quantized = tensors(report).iter().filter(|tensor| !tensor["bits"].is_null());
    let mut names: Vec<_> = quantized.map(|tensor| tensor["encoding"].as_str().unwrap()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[test]
fn every_width_is_better_than_the_one_below_and_takes_its_bits() {
    let directory = TempDir::new().unwrap();
    let mut last = 0.0;
    for bits in [2, 3, 4, 5, 6, 8] {
        let name = format!("int{bits}");
        let arguments = ["--type", name.as_str(), "--group-size", "16", "--scheme", "symmetric", "--min-accuracy", "0"];
        let (out, report) = quantized(DIGITS, directory.path(), &name, &arguments);
        assert_eq!(encodings(&report), [name.as_str()]);
        let fc2 = tensor(&report, "blocks.0.fc2.weight");
        assert_eq!((&fc2["bits"], &fc2["group_size"]), (&json!(bits), &json!(16)));
        // Codes, and a scale of two bytes for 16 weights.
        assert_eq!(fc2["bytes"], json!(128 * 512 * bits / 8 + 128 * 512 / 16 * 2));
        let db = report["sqnr_db"].as_f64().unwrap();
        assert!(db > last + 4.0, "{bits} bits have {db} dB, those before {last}");
        last = db;
        let validated = run(arrow_quant(&["validate", DIGITS, text(&out), "--min-accuracy", "0", "--json"])).json();
        let found = validated["sqnr_db"].as_f64().unwrap();
        assert!((found - db).abs() < 1e-6, "validated as {found}, reported as {db}");
    }
}

/// 30 ways to quantize all tensors alike, against a size for each of which there is no uniform choice that is as good.
#[test]
fn sizes_between_widths_are_better_than_the_best_uniform_choice() {
    let directory = TempDir::new().unwrap();
    let figures = |name: &str, arguments: &[&str]| {
        let report = quantized(DIGITS, directory.path(), name, &[arguments, &["--min-accuracy", "0"]].concat()).1;
        (report["bits_per_weight"].as_f64().unwrap(), report["squared_error"].as_f64().unwrap())
    };
    let mut alike = Vec::new();
    for bits in ["2", "3", "4", "5", "6", "8"] {
        for size in ["16", "32", "64", "128", "256"] {
            alike.push(figures(&format!("{bits}-{size}"), &["--bits", bits, "--group-size", size]));
        }
    }
    for target in ["3.0", "3.5", "4.5", "5.5"] {
        let (bits, error) = figures(target, &["--target-bpw", target]);
        let asked: f64 = target.parse().unwrap();
        assert!(bits <= asked && bits >= 0.99 * asked, "{bits} bits per weight for {target}");
        let fitting = alike.iter().filter(|(bits, _)| *bits <= asked).map(|(_, error)| *error);
        let best = fitting.min_by(f64::total_cmp).unwrap();
        assert!(error < best, "{target}: an error of {error}, {best} with all alike");
    }
}

#[test]
fn blocks_are_quantized_and_validated() {
    let directory = TempDir::new().unwrap();
    for (name, method) in [("q4_0", "mse"), ("q8_0", "reference"), ("q5_1", "mse")] {
        let arguments = ["--type", name, "--method", method, "--min-accuracy", "0"];
        let (out, report) = quantized(DIGITS, directory.path(), name, &arguments);
        assert_eq!(encodings(&report), [name]);
        let fc2 = tensor(&report, "blocks.0.fc2.weight");
        assert_eq!((&fc2["because"], &fc2["group_size"]), (&json!("type"), &Value::Null), "{fc2}");
        let validated = run(arrow_quant(&["validate", DIGITS, text(&out), "--min-accuracy", "0", "--json"])).json();
        let (found, db) = (validated["sqnr_db"].as_f64().unwrap(), report["sqnr_db"].as_f64().unwrap());
        assert!((found - db).abs() < 1e-6, "{name}: validated as {found}, reported as {db}");
        let sql = format!("SELECT DISTINCT dtype FROM tensors('{}') WHERE dtype <> 'BF16'", text(&out));
        contains(&run(arrow_quant(&["sql", &sql])).printed(), &[&name.to_uppercase()]);
    }
}

#[test]
fn blocks_that_do_not_divide_rows_give_way_to_shorter_ones_and_the_plan_says_so() {
    let directory = TempDir::new().unwrap();
    let (_, report) = quantized(DIGITS, directory.path(), "out", &["--type", "q4_k", "--min-accuracy", "0"]);
    let (long, short) = (tensor(&report, "blocks.0.fc2.weight"), tensor(&report, "blocks.0.fc1.weight"));
    assert_eq!((&long["encoding"], &long["bits"], &long["because"]), (&json!("q4_k"), &json!(4), &json!("type")));
    assert_eq!((&short["encoding"], &short["bits"]), (&json!("q5_0"), &json!(5)));
    assert_eq!(short["because"], "rows of 128 are no multiple of 256, as q4_k needs");
    let kind = json!({"kind": "rows", "block_type": "q4_k", "block_length": 256, "row_length": 128});
    assert_eq!(short["reason"], kind);
    let patch = tensor(&report, "patch_embed.weight");
    assert_eq!((&patch["encoding"], &patch["bits"]), (&json!("BF16"), &Value::Null), "rows of 4 have no blocks");
}

#[test]
fn a_plan_names_the_type_of_blocks() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("p.csv");
    run(arrow_quant(&["plan", DIGITS, "--type", "q4_k", "--output", text(&path), "--quiet"])).printed();
    let plan = fs::read_to_string(&path).unwrap();
    contains(&plan, &["\n,blocks.0.fc2.weight,4,,q4_k,type,", "\n,blocks.0.fc1.weight,5,,q5_0,"]);
    let edited = |from: &str, to: &str| {
        assert!(plan.contains(from), "{plan}");
        fs::write(&path, plan.replace(from, to)).unwrap();
    };
    let out = directory.path().join("none");
    for (from, to, expected) in [
        (
            "fc2.weight,4,,q4_k",
            "fc2.weight,8,,q4_k",
            "type is 'q4_k', which has 4 bits, and bits is 8: make them agree",
        ),
        ("blocks.0.fc2.weight,4,,q4_k", "blocks.0.fc2.weight,4,,q9_k", "type is 'q9_k', allowed: int2, int3, "),
        ("blocks.0.fc2.weight,4,,q4_k", "blocks.0.fc2.weight,,64,q4_k", "and group_size is 64: blocks have their own"),
        (
            "blocks.0.fc1.weight,5,,q5_0",
            "blocks.0.fc1.weight,,,q5_k",
            "rows of 128 are no multiple of 256, as q5_k needs",
        ),
    ] {
        edited(from, to);
        contains(&refused(DIGITS, &out, &["--plan", text(&path)]), &["p.csv: the plan is wrong: ", expected]);
    }
    edited("blocks.0.fc2.weight,4,,q4_k", "blocks.0.fc2.weight,,,q6_k");
    let arguments = ["--plan", text(&path), "--min-accuracy", "0"];
    let (_, report) = quantized(DIGITS, directory.path(), "out", &arguments);
    assert_eq!(tensor(&report, "blocks.0.fc2.weight")["encoding"], "q6_k");
    assert_eq!(tensor(&report, "blocks.1.fc2.weight")["encoding"], "q4_k");
    assert_eq!(tensor(&report, "blocks.0.fc1.weight")["encoding"], "q5_0");
}

#[test]
fn single_tensors_have_types_of_their_own() {
    let directory = TempDir::new().unwrap();
    let arguments = ["--bits", "3", "--layer-bit-widths", "blocks.0.fc2=q6_k", "--layer-bit-widths", "pos_embed=int5"];
    let (_, report) = quantized(DIGITS, directory.path(), "out", &[&arguments[..], &["--min-accuracy", "0"]].concat());
    assert_eq!(encodings(&report), ["int3", "int5", "q6_k"]);
    assert_eq!(tensor(&report, "blocks.0.fc2.weight")["because"], "layer_bit_widths 'blocks.0.fc2'");
}

#[test]
fn blocks_below_the_floor_get_more_bits() {
    let directory = TempDir::new().unwrap();
    let arguments = ["--type", "q2_k", "--tensors", "blocks.0.fc2", "--min-sqnr-db", "24"];
    let (_, report) = quantized(DIGITS, directory.path(), "out", &arguments);
    let fc2 = tensor(&report, "blocks.0.fc2.weight");
    let attempts = fc2["fallbacks"].as_array().unwrap().iter();
    let tried: Vec<_> = attempts.map(|attempt| attempt["encoding"].as_str().unwrap()).collect();
    assert_eq!((&fc2["encoding"], tried), (&json!("q5_k"), vec!["q2_k", "q3_k", "q4_k"]), "{fc2}");
}

#[test]
fn a_size_for_blocks_is_met_with_blocks() {
    let directory = TempDir::new().unwrap();
    let arguments = ["--type", "q4_0", "--target-bpw", "5.2", "--method", "reference", "--min-accuracy", "0"];
    let (_, report) = quantized(DIGITS, directory.path(), "out", &arguments);
    let found = encodings(&report);
    assert!(found.len() > 1 && found.iter().all(|name| !name.starts_with("int")), "{found:?}");
    let bits = report["bits_per_weight"].as_f64().unwrap();
    assert!((5.1..=5.2).contains(&bits), "{bits} bits per weight");
}

#[test]
fn types_and_bits_that_contradict_each_other() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let message = |arguments: &[&str]| refused(DIGITS, &out, arguments);
    contains(&message(&["--type", "int8", "--bits", "4"]), &["--type is 'int8' and --bits is 4: make them agree"]);
    contains(&message(&["--type", "q4_k", "--method", "unbiased"]), &["--method is 'unbiased' and --type is 'q4_k', "]);
    let (_, report) = quantized(DIGITS, directory.path(), "q4_0", &["--type", "q4_0", "--bits", "4"]);
    assert_eq!(encodings(&report), ["q4_0"]);
}
