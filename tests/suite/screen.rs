//! What the command shows and how it ends: statuses, errors as JSON, the width of a terminal, formats of rows, completions.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{DIGITS, Tensor, arrow_quant, contains, names, quantized, run, text, write_model};

/// The one line of JSON on standard error.
#[track_caller]
fn told(stderr: &str) -> Value {
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    serde_json::from_str::<Value>(stderr).unwrap()["error"].take()
}

#[test]
fn the_status_tells_below_the_floor_from_cannot_and_from_wrong_arguments() {
    let directory = TempDir::new().unwrap();
    let (out, _) = quantized(DIGITS, directory.path(), "out", &["--bits", "2"]);
    let next = directory.path().join("next");
    for (arguments, status) in [
        (["validate", DIGITS, text(&out), "--min-accuracy", "0.5"].as_slice(), 0),
        (&["validate", DIGITS, "nothing"], 1),
        (&["validate", DIGITS, text(&out), "--min-accuracy", "5"], 1),
        (&["validate", DIGITS], 2),
        (&["validate", DIGITS, text(&out), "--min-accuracy", "0.99"], 3),
        (&["validate", DIGITS, text(&out), "--min-accuracy", "0.99", "--quiet"], 3),
        (&["quantize", DIGITS, text(&next), "--bits", "2", "--min-accuracy", "0.99", "--fail-fast"], 3),
        (&["quantize", DIGITS, text(&out)], 1),
    ] {
        let outcome = run(arrow_quant(arguments));
        assert_eq!(outcome.status, Some(status), "{arguments:?}: {outcome:?}");
    }
}

#[test]
fn a_validation_as_json_says_whether_it_passed_and_what_is_below() {
    let directory = TempDir::new().unwrap();
    let (out, _) = quantized(DIGITS, directory.path(), "out", &[]);
    let validate =
        |more: &[&str]| run(arrow_quant(&[["validate", DIGITS, text(&out), "--json"].as_slice(), more].concat()));
    // The floor that is recorded.
    let passed = validate(&[]).json();
    assert_eq!((&passed["passed"], &passed["min_accuracy"]), (&json!(true), &json!(0.85)));
    assert_eq!(passed["below"], Value::Array(vec![]));
    let failed = validate(&["--min-accuracy", "0.995"]);
    assert_eq!(failed.status, Some(3));
    let report: Value = serde_json::from_str(&failed.stdout).unwrap();
    assert_eq!((&report["passed"], &report["min_accuracy"]), (&json!(false), &json!(0.995)));
    let below: Vec<_> = report["below"].as_array().unwrap().iter().map(|tensor| &tensor["tensor"]).collect();
    assert_eq!(below, ["pos_embed", "blocks.0.fc2.weight"]);
    assert_eq!(report["tensors"].as_array().unwrap().len(), 52);
    let error = told(&failed.stderr);
    assert_eq!((&error["kind"], &error["status"]), (&json!("validation"), &json!(3)));
}

#[test]
fn errors_are_json_where_results_are() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let model = directory.path().join("m.safetensors");
    let mut broken = Tensor::gaussian("w", "F32", &[4, 64], 1);
    broken.values[7] = f64::NAN;
    write_model(&model, &[broken]);
    for (arguments, kind, status, about) in [
        (["quantize", "nothing", text(&out)].as_slice(), "model_not_found", 1, ("path", "nothing")),
        (&["quantize", text(&model), text(&out)], "quantization", 1, ("tensor", "w")),
        (&["quantize", DIGITS, text(&out), "--min-accuracy", "7"], "configuration", 1, ("field", "min_accuracy")),
        (&["quantize", DIGITS, text(directory.path())], "output_exists", 1, ("path", text(directory.path()))),
        (&["plan", DIGITS, "--target-bpw", "0.1"], "configuration", 1, ("field", "target_bpw")),
        (&["inspect", "nothing"], "model_not_found", 1, ("path", "nothing")),
        (&["report", DIGITS], "model_not_found", 1, ("path", DIGITS)),
        (&["quantize", DIGITS, text(&out), "--bits", "7"], "usage", 2, ("kind", "usage")),
        (&["quantize"], "usage", 2, ("kind", "usage")),
    ] {
        let outcome = run(arrow_quant(&[arguments, &["--json"]].concat()));
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(status), ""), "{arguments:?}: {outcome:?}");
        let error = told(&outcome.stderr);
        assert_eq!((&error["kind"], &error[about.0]), (&json!(kind), &json!(about.1)), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.contains('\n')), "{error}");
    }
}

#[test]
fn a_model_without_weights_is_told_so_where_a_size_is_asked_for() {
    let directory = TempDir::new().unwrap();
    let (model, out) = (directory.path().join("m.safetensors"), directory.path().join("out"));
    write_model(&model, &[Tensor::counting("w", "F32", &[0, 64]), Tensor::counting("b", "F32", &[0])]);
    for target in [["--target-bpw", "4"], ["--target-size", "10B"]] {
        let message = run(arrow_quant(&[["quantize", text(&model), text(&out)].as_slice(), &target].concat())).error();
        contains(&message, &["the model has no weights", "--target-"]);
        assert!(!message.contains("NaN") && !message.contains("inf "), "{message}");
    }
    let plan = run(arrow_quant(&["plan", text(&model)])).printed();
    contains(&plan, &["weights            0\n", "bits per weight    -\n", "compression ratio  -\n"]);
}

#[test]
fn a_report_fits_the_terminal_and_shows_the_figures() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("m.safetensors");
    let name = "model.diffusion_model.double_blocks.11.img_attn.qkv_projection.weight";
    write_model(&model, &[Tensor::gaussian(name, "F32", &[64, 128], 1)]);
    let (out, _) = quantized(text(&model), directory.path(), "out", &[]);
    let (model, out) = (text(&model), text(&out));
    for arguments in [["report", out].as_slice(), &["validate", model, out], &["plan", model], &["inspect", out]] {
        let wide = run(arrow_quant(arguments)).printed();
        assert!(wide.contains(name), "{wide}");
        let printed = run(arrow_quant(arguments).env("COLUMNS", "80")).printed();
        let table: Vec<&str> = printed.lines().take(3).collect();
        assert!(table.iter().all(|line| line.chars().count() <= 80), "{printed}");
        assert!(table[2].contains('…') && table[2].contains("projection.weight"), "{printed}");
        if arguments[0] != "inspect" {
            contains(table[0], &["SQNR dB", "cosine"]);
        }
    }
    contains(&run(arrow_quant(&["report", out])).printed(), &["20 dB", "each 6 dB more halves"]);
}

#[test]
fn statements_come_from_a_file_and_rows_go_into_one() {
    let directory = TempDir::new().unwrap();
    let (statements, rows) = (directory.path().join("q.sql"), |name: &str| directory.path().join(name));
    fs::write(&statements, "SELECT 1 AS n, 'a|b' AS s\nUNION ALL SELECT 2, NULL\nORDER BY n;\n").unwrap();
    let sql = |more: &[&str]| run(arrow_quant(&[["sql", "-f", text(&statements)].as_slice(), more].concat()));
    assert_eq!(sql(&["--format", "csv"]).printed(), "n,s\n1,a|b\n2,\n");
    assert_eq!(sql(&["--format", "markdown"]).printed(), "| n | s |\n| ---: | --- |\n| 1 | a\\|b |\n| 2 | NULL |\n");
    // The name says the format, and what is there is replaced.
    fs::write(rows("r.json"), "old").unwrap();
    assert_eq!(sql(&["-o", text(&rows("r.json"))]).printed(), "");
    assert_eq!(fs::read_to_string(rows("r.json")).unwrap(), "{\"n\":1,\"s\":\"a|b\"}\n{\"n\":2,\"s\":null}\n");
    assert_eq!(sql(&["-o", text(&rows("r.parquet"))]).printed(), "");
    let query = format!(
        "CREATE EXTERNAL TABLE r STORED AS PARQUET LOCATION '{}'; SELECT sum(n) AS n, count(s) AS s FROM r",
        text(&rows("r.parquet"))
    );
    assert_eq!(run(arrow_quant(&["sql", "--format", "csv", &query])).printed(), "n,s\n3,1\n");
    // Nothing is left of what failed.
    fs::write(&statements, "SELECT 1; SELECT * FROM nothing").unwrap();
    contains(&sql(&["-o", text(&rows("r.json"))]).error(), &["nothing"]);
    assert!(fs::read_to_string(rows("r.json")).unwrap().starts_with("{\"n\":1"));
    fs::write(&statements, "SELECT 1; SELECT 2").unwrap();
    contains(&sql(&["-o", text(&rows("two.parquet"))]).error(), &["takes one result"]);
    assert_eq!(names(directory.path()), ["q.sql", "r.json", "r.parquet"]);
    contains(&run(arrow_quant(&["sql", "-f", text(&rows("none.sql"))])).error(), &["none.sql: no such file"]);
    assert_eq!(run(arrow_quant(&["sql", "-f", text(&statements), "SELECT 1"])).status, Some(2));
}

#[test]
fn columns_have_the_names_that_were_written_and_all_functions_are_listed() {
    let query = format!("SELECT length(string_agg(tensor, ',')), 1+1, COUNT(*) FROM tensors('{DIGITS}')");
    let printed = run(arrow_quant(&["sql", "--format", "csv", &query])).printed();
    assert!(printed.starts_with("\"length(string_agg(tensor, ','))\",1 + 1,count(*)\n"), "{printed}");
    let functions = run(arrow_quant(&["sql", "--format", "csv", "SHOW FUNCTIONS"])).printed();
    let ours = arrow_quant_udfs::scalar_functions();
    let ours = ours.iter().map(|f| f.name().to_string());
    for name in ours.chain(arrow_quant_udfs::aggregate_functions().iter().map(|f| f.name().to_string())) {
        assert!(functions.contains(&format!("\n{name},")), "{name}");
    }
}

#[test]
fn shells_complete_the_command_and_man_knows_it() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(arrow_quant(&["completions", shell])).printed();
        contains(&script, &["arrow-quant", "target-bpw", "validate"]);
    }
    assert_eq!(run(arrow_quant(&["completions", "sh"])).status, Some(2));
    // As bash calls it, behind a subcommand.
    let completed = |line: &str| {
        let script = format!(
            "source <({} completions bash); COMP_WORDS=({line}); COMP_CWORD=$(({} - 1)); \
             _arrow__quant arrow-quant \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[@]}}\"",
            env!("CARGO_BIN_EXE_arrow-quant"),
            line.split(' ').count(),
        );
        let done = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    assert_eq!(completed("arrow-quant qu"), "quantize\n");
    assert_eq!(completed("arrow-quant quantize --bi"), "--bits\n");
    assert_eq!(completed("arrow-quant config sh"), "show\n");
    contains(&run(arrow_quant(&["man"])).printed(), &[".TH arrow-quant", "Exit status", "validate"]);
    let directory = TempDir::new().unwrap();
    assert_eq!(run(arrow_quant(&["man", "--output", text(directory.path())])).printed(), "");
    let pages = names(directory.path());
    for page in ["arrow-quant.1", "arrow-quant-quantize.1", "arrow-quant-sql.1"] {
        assert!(pages.iter().any(|name| name == page), "{pages:?}");
    }
    let page = fs::read_to_string(directory.path().join("arrow-quant-quantize.1")).unwrap();
    contains(&page, &["ARROW_QUANT_BIT_WIDTH", "default: 4; edge 2, cloud 8"]);
}

#[test]
fn help_has_examples_defaults_and_variables() {
    for command in ["quantize", "plan", "validate", "inspect", "report", "config", "sql", "serve", "completions", "man"]
    {
        let help = run(arrow_quant(&[command, "--help"])).printed();
        contains(&help, &["Examples:\n  arrow-quant "]);
    }
    let help = run(arrow_quant(&["quantize", "--help"])).printed().split_whitespace().collect::<Vec<_>>().join(" ");
    contains(&help, &["[default: 4; edge 2, cloud 8] [env: ARROW_QUANT_BIT_WIDTH]", "[default: mse]"]);
    contains(&run(arrow_quant(&["--help"])).printed(), &["Exit status: 0 success", "ARROW_QUANT_NUM_THREADS"]);
}
