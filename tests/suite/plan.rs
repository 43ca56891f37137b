//! Plans: what would become of a model, as a table that can be edited and given to a job.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    DIGITS, Tensor, arrow_quant, contains, files, names, quantized, refused, run, tensor, tensors, text, write_model,
};

/// The example model's plan as CSV, with more arguments.
#[track_caller]
fn planned(directory: &Path, arguments: &[&str]) -> String {
    let path = directory.join("planned.csv");
    run(arrow_quant(&[["plan", DIGITS, "--output", text(&path), "--quiet"].as_slice(), arguments].concat())).printed();
    let plan = fs::read_to_string(&path).unwrap();
    fs::remove_file(path).unwrap();
    plan
}

/// A plan with other bits and group size for a tensor that has 4 bits in groups of 128.
#[track_caller]
fn edited(plan: &str, tensor: &str, choice: &str) -> String {
    let (before, after) = (format!("\n,{tensor},4,128,"), format!("\n,{tensor},{choice},"));
    assert!(plan.contains(&before), "{plan}");
    plan.replace(&before, &after)
}

#[test]
fn a_plan_as_text() {
    let directory = TempDir::new().unwrap();
    let plan = planned(directory.path(), &[]);
    assert!(names(directory.path()).is_empty(), "nothing but the plan is written");
    let mut lines = plan.lines();
    assert_eq!(
        lines.next(),
        Some("component,tensor,bits,group_size,type,because,dtype,shape,elements,bytes,sqnr_db,cosine_similarity")
    );
    assert_eq!(lines.next(), Some(",blocks.0.fc1.bias,,,,1-D,BF16,[512],512,1024,,"));
    assert!(
        lines.next().unwrap().starts_with(",blocks.0.fc1.weight,4,128,,bit_width,BF16,\"[512, 128]\",65536,34816,")
    );
    assert_eq!(plan.lines().count(), 1 + 52);
}

#[test]
fn an_edited_plan_decides() {
    let directory = TempDir::new().unwrap();
    let mut plan = planned(directory.path(), &[]);
    for (tensor, choice) in [
        ("blocks.0.fc1.weight", "8,64"),
        ("blocks.1.fc1.weight", "2,"),
        ("pos_embed", ","),
        ("time_fc1.weight", "16,32"),
    ] {
        plan = edited(&plan, tensor, choice);
    }
    let path = directory.path().join("edited.csv");
    fs::write(&path, plan).unwrap();
    let (out, report) = quantized(DIGITS, directory.path(), "out", &["--plan", text(&path)]);
    let choice = |name: &str| json!([tensor(&report, name)["bits"], tensor(&report, name)["group_size"]]);
    assert_eq!(choice("blocks.0.fc1.weight"), json!([8, 64]));
    assert_eq!(choice("blocks.1.fc1.weight"), json!([2, 128]), "without a group size, the configuration's");
    assert_eq!(choice("pos_embed"), json!([null, null]), "without bits it is kept");
    assert_eq!(choice("time_fc1.weight"), json!([null, null]), "at 16 bits it is kept");
    assert_eq!(choice("blocks.2.fc1.weight"), json!([4, 128]), "as it was");
    assert!(tensors(&report).iter().all(|tensor| tensor["because"] == "plan"));
    run(arrow_quant(&["validate", DIGITS, text(&out), "--min-accuracy", "0.9", "--quiet"])).printed();
}

#[test]
fn a_plan_as_it_was_written_changes_nothing() {
    let directory = TempDir::new().unwrap();
    let weights = |out: &Path| files(&out.join("weights"));
    let arguments = ["--layer-bit-widths", "blocks.0=8", "--sensitive-layer-names", "pos_embed"];
    let (direct, _) = quantized(DIGITS, directory.path(), "direct", &arguments);
    for name in ["plan.parquet", "plan.csv"] {
        let path = directory.path().join(name);
        let plan = [["plan", DIGITS, "--output", text(&path), "--quiet"].as_slice(), &arguments].concat();
        run(arrow_quant(&plan)).printed();
        let (by_plan, _) = quantized(DIGITS, directory.path(), &format!("by-{name}"), &["--plan", text(&path)]);
        assert!(weights(&direct) == weights(&by_plan), "{name}");
    }
}

/// The configuration still says how codes and scales are found, and what is too poor.
#[test]
fn a_floor_holds_for_a_plan_too() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("plan.csv");
    fs::write(&path, edited(&planned(directory.path(), &[]), "pos_embed", "2,64")).unwrap();
    let (_, report) = quantized(DIGITS, directory.path(), "out", &["--plan", text(&path), "--min-sqnr-db", "18"]);
    let poor = tensor(&report, "pos_embed");
    assert_eq!((&poor["bits"], &poor["fallbacks"][0]["bits"]), (&json!(4), &json!(2)), "{poor}");
}

#[test]
fn plans_that_cannot_be_followed() {
    let directory = TempDir::new().unwrap();
    let plan = planned(directory.path(), &[]);
    let path = |name: &str| directory.path().join(name);
    let out = path("out");
    let message = |name: &str, plan: &str| {
        fs::write(path(name), plan).unwrap();
        refused(DIGITS, &out, &["--plan", text(&path(name))])
    };
    let without = |name: &str| plan.lines().filter(|line| !line.contains(name)).collect::<Vec<_>>().join("\n");
    let with = |row: &str| format!("{plan}{row}\n");
    for (plan, expected) in [
        (without("pos_embed"), "it has no row for pos_embed; give it one, with bits NULL to keep the tensor"),
        (with(",pos_embd,4,128,,,,,,,,"), "pos_embd is not a tensor of the model; did you mean 'pos_embed'?"),
        (with(",pos_embed,4,128,,,,,,,,"), "it has two rows for pos_embed"),
        (edited(&plan, "pos_embed", "7,128"), "pos_embed: bits is 7, allowed: 2, 3, 4, 5, 6, 8, or NULL to keep it"),
        (edited(&plan, "pos_embed", "4,100"), "pos_embed: group_size is 100, allowed: 16, 32, 64, 128 or 256"),
        (edited(&plan, "pos_embed", "four,128"), "pos_embed: bits is 'four', which is not a whole number"),
        (plan.replace("proj_out.bias,,", "proj_out.bias,4,"), "proj_out.bias: bits is 4, but it has less than two"),
        (plan.replacen("bits", "width", 1), "it has no column bits, expected component, tensor, bits, group_size"),
        (String::new(), "it has no column component"),
    ] {
        contains(&message("p.csv", &plan), &["p.csv: the plan is wrong: ", expected]);
    }
    contains(&message("p.txt", &plan), &["--plan is `", "p.txt`, allowed: names that end with .parquet or .csv"]);
    contains(&refused(DIGITS, &out, &["--plan", text(&path("none.csv"))]), &["none.csv: no such file or directory"]);
    // Said before the model is looked at.
    let wrong = run(arrow_quant(&["plan", DIGITS, "--output", text(&path("other.xlsx"))]));
    assert_eq!(wrong.status, Some(2));
    contains(&wrong.stderr, &["other.xlsx", "expected a name that ends with .parquet or .csv"]);
}

#[test]
fn a_plan_that_is_no_table_is_named() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("p.parquet");
    fs::write(&path, "this is no Parquet file").unwrap();
    let message = refused(DIGITS, &directory.path().join("out"), &["--plan", text(&path)]);
    contains(&message, &["p.parquet"]);
}

/// Names in which a glob would see a pattern, or an extension another one.
#[test]
fn a_plan_may_have_any_name() {
    let directory = TempDir::new().unwrap();
    let plan = planned(directory.path(), &[]);
    for name in ["b[1]*.csv", "a b%20c.csv", "LARGE.CSV"] {
        let path = directory.path().join(name);
        fs::write(&path, edited(&plan, "pos_embed", "8,64")).unwrap();
        let (_, report) = quantized(DIGITS, directory.path(), &format!("{name}-out"), &["--plan", text(&path)]);
        assert_eq!(tensor(&report, "pos_embed")["bits"], 8, "{name}");
    }
}

#[test]
fn bits_that_are_no_whole_number_are_not_rounded() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("p.csv");
    fs::write(&path, edited(&planned(directory.path(), &[]), "pos_embed", "4.5,128")).unwrap();
    let message = refused(DIGITS, &directory.path().join("out"), &["--plan", text(&path)]);
    contains(&message, &["the plan is wrong: ", "pos_embed: bits is '4.5', which is not a whole number"]);
}

/// Readers of CSV look at a thousand rows to tell a column's type. Here none of those has bits.
#[test]
fn a_long_plan_whose_first_bits_come_late() {
    let directory = TempDir::new().unwrap();
    let (model, path) = (directory.path().join("m.safetensors"), directory.path().join("p.csv"));
    let names: Vec<&'static str> = (0..1001).map(|i| &*format!("t{i:04}").leak()).collect();
    let mut all: Vec<_> = names.into_iter().map(|name| Tensor::counting(name, "F32", &[4])).collect();
    all.push(Tensor::gaussian("z.weight", "F32", &[64, 64], 1));
    write_model(&model, &all);
    run(arrow_quant(&["plan", text(&model), "--output", text(&path), "--quiet"])).printed();
    let (_, report) = quantized(text(&model), directory.path(), "out", &["--plan", text(&path)]);
    assert_eq!(tensor(&report, "z.weight")["bits"], 4);
}

#[test]
fn a_plan_goes_with_nothing_that_decides_otherwise() {
    let directory = TempDir::new().unwrap();
    let [out, plan, config] = ["out", "p.csv", "c.yaml"].map(|name| directory.path().join(name));
    fs::write(&plan, planned(directory.path(), &[])).unwrap();
    for more in [["--bits", "4"], ["--group-size", "64"], ["--target-bpw", "4"], ["--target-size", "1MB"]] {
        let outcome = run(arrow_quant(&["quantize", DIGITS, text(&out), "--plan", text(&plan), more[0], more[1]]));
        assert_eq!(outcome.status, Some(2), "{outcome:?}");
        contains(&outcome.stderr, &["--plan <FILE>' cannot be used with", more[0]]);
    }
    fs::write(&config, "target_bpw: 4\n").unwrap();
    let message = refused(DIGITS, &out, &["--plan", text(&plan), "--config", text(&config)]);
    // The setting has its name in the file, since no flag gave it.
    assert!(!message.contains("--target-bpw"), "{message}");
    contains(&message, &["target_bpw in ", "c.yaml is set beside a plan", "leave one out"]);
}

#[test]
fn a_dry_run_tells_what_there_would_be_and_writes_nothing() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let dry_run = |arguments: &[&str]| {
        let all = [["quantize", DIGITS, text(&out), "--dry-run"].as_slice(), arguments].concat();
        run(arrow_quant(&all).current_dir(directory.path()))
    };
    let printed = dry_run(&[]).printed();
    contains(
        &printed,
        &[
            "blocks.0.fc2.weight",
            "4 bits: 27 tensors with 1.25 million weights\n",
            "kept: 25 tensors with 8,324 weights\n",
            "size               2.52 MB → ",
            "bits per weight    4.",
            "dB, from a sample\n",
            "time               about ",
            "memory             at most ",
        ],
    );
    let plan = dry_run(&["--json"]).json();
    assert!(names(directory.path()).is_empty());

    let (_, report) = quantized(DIGITS, directory.path(), "out", &[]);
    let near = |key: &str, part: f64| {
        let (planned, found) = (plan[key].as_f64().unwrap(), report[key].as_f64().unwrap());
        assert!((planned - found).abs() <= part * found, "{key}: {planned}, then {found}");
    };
    near("stored_bytes", 0.02);
    near("sqnr_db", 0.02);
    near("squared_error", 0.1);
    assert_eq!((&plan["weights"], &plan["original_bytes"]), (&report["weights"], &report["original_bytes"]));
    let decided = |report: &Value| tensors(report).iter().map(|t| json!([t["bits"], t["because"]])).collect::<Vec<_>>();
    assert_eq!(decided(&plan), decided(&report));
}
