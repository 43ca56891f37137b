//! Queries that are quantized: the result is that of files which hold the same weights, and what is not a model is refused.

use std::fs;
use std::path::Path;

use crate::common::{DIGITS, Tensor, arrow_quant, contains, files, manifest, names, run, tensors, text, write_model};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Weights of several dtypes, one tensor of more than a chunk, and some that are kept.
fn mixed(seed: u64) -> Vec<Tensor> {
    vec![
        Tensor::gaussian("a.weight", "F32", &[300, 512], seed),
        Tensor::gaussian("b.weight", "BF16", &[64, 128], seed + 1),
        Tensor::gaussian("c.weight", "F16", &[16, 8, 3, 3], seed + 2),
        Tensor::gaussian("a.bias", "F32", &[300], seed + 3),
        Tensor::counting("steps", "I64", &[3, 5]),
        Tensor::gaussian("scale", "F32", &[], seed + 4),
    ]
}

/// Quantizes what a query gives into `directory/name`, and gives the report.
#[track_caller]
fn quantize(sql: &str, out: &Path, arguments: &[&str]) -> Value {
    let report = run(arrow_quant(&[&["quantize", "--query", sql, text(out), "--json"], arguments].concat())).json();
    let parent = out.parent().unwrap();
    let beside = names(parent).into_iter().filter(|name| name.ends_with(".source") || name.ends_with(".partial"));
    assert_eq!(beside.collect::<Vec<_>>(), Vec::<String>::new());
    report
}

/// Asserts that two quantized models have the same files of weights and say the same of every tensor.
#[track_caller]
fn assert_same(found: &Path, expected: &Path) {
    let weights = |out: &Path| files(&out.join("weights"));
    assert!(weights(found) == weights(expected), "{} is not {}", found.display(), expected.display());
    let (found, expected) = (manifest(found), manifest(expected));
    for key in ["format_version", "settings", "totals", "tensors", "files"] {
        assert_eq!(found[key], expected[key], "{key}");
    }
}

#[test]
fn a_query_over_all_weights_is_the_model() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    write_model(&at("model.safetensors"), &mixed(1));
    let model = at("model.safetensors");
    run(arrow_quant(&["quantize", text(&model), text(&at("expected")), "--quiet"])).printed();

    let all = format!("SELECT * FROM weights('{}')", text(&model));
    let report = quantize(&all, &at("found"), &[]);
    assert_same(&at("found"), &at("expected"));
    assert_eq!(report["model"], all.as_str());
    let manifest = manifest(&at("found"));
    assert_eq!(manifest["source"]["name"], "query");
    assert!(
        manifest["notes"].as_array().unwrap().contains(&json!(format!("the model is what this query gave: {all}")))
    );

    // The columns that are needed, in another order, and the rows too.
    let shuffled =
        format!("SELECT weights, 1 AS more, start, shape, tensor FROM weights('{}') ORDER BY start DESC", text(&model));
    quantize(&shuffled, &at("shuffled"), &["--threads", "2"]);
    assert_same(&at("shuffled"), &at("expected"));
}

/// `COPY … STORED AS SAFETENSORS` keeps the type that most weights have, and takes another one.
#[test]
fn a_query_is_written_as_safetensors() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    write_model(&at("model.safetensors"), &[Tensor::gaussian("b.weight", "BF16", &[64, 128], 2)]);
    let copy = |name: &str, options: &str| {
        let (model, out) = (at("model.safetensors"), at(name));
        let query = format!("SELECT * FROM weights('{}')", text(&model));
        let copy = format!("COPY ({query}) TO '{}' STORED AS SAFETENSORS {options}", text(&out));
        let printed = run(arrow_quant(&["sql", &copy, "--format", "csv"])).printed();
        assert_eq!(printed, "count\n1\n");
        run(arrow_quant(&["inspect", text(&out), "--json"])).json()["tensors"][0]["dtype"].clone()
    };
    assert_eq!(copy("same.safetensors", ""), "BF16");
    assert_eq!(copy("wide.safetensors", "OPTIONS (type 'f32')"), "F32");
    let difference = format!(
        "SELECT max(max_abs_error(a.weights, b.weights)) AS e FROM weights('{}') a JOIN weights('{}') b USING (tensor)",
        text(&at("model.safetensors")),
        text(&at("same.safetensors"))
    );
    assert_eq!(run(arrow_quant(&["sql", &difference, "--format", "json"])).json(), json!({"e": 0.0}));
}

#[test]
fn a_pipeline_keeps_its_components() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (component, seed) in [("unet", 1), ("vae", 7)] {
        write_model(&at("pipeline").join(component).join("model.safetensors"), &mixed(seed));
    }
    fs::write(at("pipeline/model_index.json"), r#"{"unet": ["x", "U"], "vae": ["x", "V"]}"#).unwrap();
    run(arrow_quant(&["quantize", text(&at("pipeline")), text(&at("expected")), "--quiet"])).printed();
    quantize(&format!("SELECT * FROM weights('{}')", text(&at("pipeline"))), &at("found"), &[]);
    assert_same(&at("found"), &at("expected"));
    assert_eq!(names(&at("found")), ["arrow_quant.json", "weights"]);
}

#[test]
fn two_models_averaged_are_the_file_of_the_averages() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (first, second) = (mixed(1), mixed(100));
    // The mean as weighted_sum specifies it, in dtypes that the values are already rounded to.
    let f32_mean = |x: &f64, y: &f64| f64::from(0.5_f32.mul_add(*y as f32, 0.5 * *x as f32));
    let mean = |x: &Tensor, y: &Tensor| Tensor {
        name: x.name,
        dtype: x.dtype,
        shape: x.shape.clone(),
        values: x.values.iter().zip(&y.values).map(|(x, y)| f32_mean(x, y)).collect(),
    };
    let floats = |tensor: &&Tensor| tensor.dtype == "F32";
    let means: Vec<Tensor> =
        first.iter().filter(floats).zip(second.iter().filter(floats)).map(|(x, y)| mean(x, y)).collect();
    write_model(&at("first.safetensors"), &first);
    write_model(&at("second.safetensors"), &second);
    write_model(&at("means.safetensors"), &means);
    let sql = format!(
        "SELECT a.component, a.tensor, a.shape, a.start, weighted_sum(0.5, a.weights, 0.5, b.weights) AS weights \
         FROM weights('{}') a JOIN weights('{}') b ON a.tensor = b.tensor AND a.chunk = b.chunk \
         WHERE a.weights['dtype'] = 'F32'",
        text(&at("first.safetensors")),
        text(&at("second.safetensors")),
    );
    let cases: [(&str, &[&str]); 3] =
        [("int4", &[]), ("target", &["--target-bpw", "5.5"]), ("int8", &["--bits", "8", "--group-size", "64"])];
    for (name, arguments) in cases {
        let (model, expected) = (at("means.safetensors"), at(&format!("{name}-expected")));
        run(arrow_quant(&[&["quantize", text(&model), text(&expected), "--quiet"], arguments].concat())).printed();
        let report = quantize(&sql, &at(name), arguments);
        assert_same(&at(name), &expected);
        assert_eq!(tensors(&report).len(), 3);
    }
}

#[test]
fn lists_of_floats_are_tensors_of_their_type() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let sql = "SELECT 'w' AS tensor, [2, 32] AS shape, i * 32 AS start, \
               arrow_cast(array_repeat(0.5 * i, 32), 'List(Float32)') AS weights FROM (VALUES (0), (1)) AS t(i)";
    let report = quantize(sql, &out, &["--bits", "8"]);
    let found = &tensors(&report)[0];
    assert_eq!((&found["dtype"], &found["shape"]), (&json!("F32"), &json!([2, 32])), "{found}");
}

/// A row of a tensor value of the dtype F16.
fn row(tensor: &str, shape: &str, start: i64, elements: usize) -> String {
    format!(
        "('{tensor}', {shape}, {start}, named_struct('dtype', 'F16', 'row_length', 2, 'data', X'{}'))",
        "0000".repeat(elements)
    )
}

fn of_rows(rows: &[String]) -> String {
    format!("SELECT * FROM (VALUES {}) AS t(tensor, shape, start, weights)", rows.join(", "))
}

/// The message of a query that is refused, after which nothing is left.
#[track_caller]
fn refused(sql: &str) -> String {
    let directory = TempDir::new().unwrap();
    let message = run(arrow_quant(&["quantize", "--query", sql, text(&directory.path().join("out"))])).error();
    assert_eq!(names(directory.path()), Vec::<String>::new(), "{message}");
    message
}

#[test]
fn relations_that_are_not_models_are_refused() {
    let digits = format!("weights('{DIGITS}')");
    let two = |second: String| of_rows(&[row("w", "[2, 2]", 0, 2), second]);
    let cases: &[(String, &str)] = &[
        (
            format!("SELECT tensor, shape, start FROM {digits}"),
            "the query gives no column 'weights': it needs tensor, shape, start",
        ),
        (format!("SELECT shape, start, weights FROM {digits}"), "no column 'tensor'"),
        (format!("SELECT a.*, b.* FROM {digits} a, {digits} b"), "the query gives two columns 'tensor'"),
        (
            format!("SELECT tensor, 'x' AS shape, start, weights FROM {digits}"),
            "column 'shape' of the query is Utf8, expected a list of integers",
        ),
        (
            format!("SELECT tensor, shape, 0.5 AS start, weights FROM {digits}"),
            "column 'start' of the query is Float64, expected an integer",
        ),
        (
            format!("SELECT tensor, shape, start, quantize(weights, 4, 64) AS weights FROM {digits}"),
            "expected a tensor value (a struct with dtype and data) or a list of 16, 32 or 64-bit floats",
        ),
        (
            format!("SELECT 1 AS component, tensor, shape, start, weights FROM {digits}"),
            "column 'component' of the query is Int64, expected text",
        ),
        (format!("SELECT * FROM {digits} WHERE start < 0"), "the query gives no rows"),
        (two(row("w", "[2, 2]", 1, 2)), "the query's tensor 'w': two chunks have element 1"),
        (two(row("w", "[2, 2]", 0, 4)), "tensor 'w': two chunks have element 0"),
        (two(row("w", "[2, 2]", 3, 1)), "tensor 'w': elements 2 to 3 are missing: every chunk"),
        (of_rows(&[row("w", "[2, 2]", 0, 3)]), "tensor 'w': elements 3 to 4 are missing"),
        (of_rows(&[row("w", "[2, 2]", 2, 2)]), "tensor 'w': elements 0 to 2 are missing"),
        (two(row("w", "[2, 2]", 2, 3)), "tensor 'w': a chunk has elements 2 to 5, but shape [2, 2] has 4"),
        (of_rows(&[row("w", "[2, 2]", -1, 2)]), "tensor 'w': a chunk has elements -1 to 1, but shape [2, 2] has 4"),
        (two(row("w", "[4]", 2, 2)), "tensor 'w': shape is [2, 2] in one row and [4] in another"),
        (of_rows(&[row("w", "[-2, 2]", 0, 2)]), "tensor 'w': shape is [-2, 2], expected dimensions of 0 or more"),
        (of_rows(&[row("w", "[4294967296, 4294967296]", 0, 2)]), "fewer than 2^63 elements"),
        (of_rows(&[row("w", "[NULL, 2]", 0, 2)]), "tensor 'w': shape is NULL"),
        (of_rows(&[row("__metadata__", "[2]", 0, 2)]), "no tensor of a file can have this name"),
        (
            two(row("w", "[2, 2]", 2, 2).replace("F16", "BF16")),
            "tensor 'w': dtype is F16 in one row and BF16 in another",
        ),
        (of_rows(&[row("w", "[2]", 0, 2).replace("F16", "Q4")]), "tensor 'w': dtype is 'Q4', expected one of BOOL, U8"),
        (of_rows(&[row("w", "[2]", 0, 2).replace("F16", "F32")]), "tensor 'w': elements 1 to 2 are missing"),
        (
            of_rows(&[row("w", "[1]", 0, 1).replace("F16", "F32")]),
            "tensor 'w': 2 bytes from element 0 on do not divide into elements of F32",
        ),
        (
            "SELECT 'w' AS tensor, [2] AS shape, 0 AS start, arrow_cast([1.0, NULL], 'List(Float32)') AS weights"
                .to_string(),
            "tensor 'w': weights is NULL",
        ),
        (format!("SELECT NULL::TEXT AS tensor, shape, start, weights FROM {digits}"), "a row whose tensor is NULL"),
        (
            format!("SELECT '../x' AS component, tensor, shape, start, weights FROM {digits}"),
            "component is '../x', expected the name of a directory",
        ),
        (
            format!(
                "SELECT CASE WHEN tensor = 'pos_embed' THEN '' ELSE 'dit' END AS component, tensor, shape, start, weights FROM {digits}"
            ),
            "tensor 'pos_embed': component is empty, but other tensors have one",
        ),
        ("CREATE TABLE t AS SELECT 1".to_string(), "DDL not supported"),
        ("SELECT * FROM weights('nowhere')".to_string(), "nowhere"),
    ];
    for (sql, expected) in cases {
        contains(&refused(sql), &[expected]);
    }
}

#[test]
fn a_model_and_a_query_are_not_given_together() {
    let usage = |arguments: &[&str]| {
        let outcome = run(arrow_quant(arguments));
        assert_eq!(outcome.status, Some(2), "{outcome:?}");
        outcome.stderr
    };
    contains(
        &usage(&["quantize", "--query", "SELECT 1", "model", "out"]),
        &["--query and a model cannot be used together"],
    );
    contains(&usage(&["quantize", "--query", "SELECT 1"]), &["the directory to write is missing"]);
    contains(&usage(&["quantize"]), &["required"]);
    contains(&usage(&["plan", "--query", "SELECT 1", "model"]), &["--query", "cannot be used with"]);
}

#[test]
fn a_query_is_planned() {
    let sql = format!("SELECT * FROM weights('{DIGITS}')");
    let plan = run(arrow_quant(&["plan", "--query", &sql, "--json"])).json();
    assert_eq!((tensors(&plan).len(), &plan["model"]), (52, &json!(sql)));
    let same = run(arrow_quant(&["quantize", "--query", &sql, "--dry-run", "--json"])).json();
    assert_eq!(same["tensors"], plan["tensors"]);
}

#[test]
fn what_is_in_the_way_is_not_removed() {
    let directory = TempDir::new().unwrap();
    let sql = of_rows(&[row("w", "[2, 2]", 0, 4)]);
    let (out, source) = (directory.path().join("out"), directory.path().join("out.source"));
    let command = ["quantize", "--query", &sql, text(&out), "--quiet"];
    fs::create_dir(&source).unwrap();
    fs::write(source.join("mine"), "").unwrap();
    let message = run(arrow_quant(&command)).error();
    contains(&message, &["out.source` is in the way, and not from a run of arrow-quant: remove it"]);
    assert!(source.join("mine").exists());
    // What a run left that was killed is replaced.
    fs::remove_file(source.join("mine")).unwrap();
    fs::write(source.join("arrow-quant.lock"), "").unwrap();
    fs::create_dir(source.join("query")).unwrap();
    fs::write(source.join("query/half.safetensors"), "").unwrap();
    run(arrow_quant(&command)).printed();
    assert_eq!(names(directory.path()), ["out"]);
    contains(&run(arrow_quant(&command)).error(), &["exists already"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_query_is_resumed() {
    use crate::interruption::{Job, PART_ROWS, Running, gaussian};

    let job = Job::new(&[(gaussian("w", 1), 6 * PART_ROWS)], &[]);
    let sql = format!("SELECT * FROM weights('{}')", text(&job.model));
    let out = job.out();
    let command = |more: &[&str]| {
        let mut command =
            arrow_quant(&[&["quantize", "--query", &sql, text(&out), "--json", "--threads", "1"], more].concat());
        command.env("ARROW_QUANT_ISA", "scalar");
        command
    };
    run(command(&[])).json();
    let expected = job.take_output();
    for _ in 0..10 {
        let mut started = command(&[]);
        started.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut running = Running(started.spawn().unwrap());
        running.until(|| job.records() >= 2);
        running.kill();
        if !out.exists() {
            let report = run(command(&["--resume"])).json();
            assert!(report["resumed_parts"].as_u64() >= Some(2), "{report}");
            assert_eq!(report["started_afresh"], Value::Null);
            // Time aside, a run that was left alone gives the same.
            assert_eq!(job.take_output(), expected);
            assert_eq!(names(job.directory.path()), ["model"]);
            return;
        }
        fs::remove_dir_all(&out).unwrap();
    }
    panic!("no run can be cut short");
}

#[test]
fn a_place_that_is_not_there_is_named_as_it_was_given() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("none/x");
    let model = directory.path().join("model.safetensors");
    write_model(&model, &mixed(1));
    let query = format!("SELECT * FROM weights('{}')", text(&model));
    for source in [["--query", &query].as_slice(), &[text(&model)]] {
        let message = run(arrow_quant(&[&["quantize"], source, &[text(&out)]].concat())).error();
        let expected = format!("{}: the directory `", out.display());
        contains(&message, &[&expected, "none` does not exist: create it first"]);
    }
}
