//! `arrow-quant report`: what a quantized model says of itself.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{DIGITS, arrow_quant, contains, manifest, names, run, text};

#[test]
fn the_report_is_what_the_job_printed() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let job = run(arrow_quant(&["quantize", DIGITS, text(&out), "--layer-bit-widths", "pos_embed=8"])).printed();
    let report = run(arrow_quant(&["report", text(&out)])).printed();
    // A job also tells its time, what it read and where it wrote.
    let of_the_job = |line: &&str| ["time ", "written to ", "read from "].iter().any(|begin| line.starts_with(begin));
    let expected: Vec<_> = job.lines().filter(|line| !of_the_job(line)).collect();
    assert_eq!(report.lines().collect::<Vec<_>>(), expected);
    assert_eq!(job.lines().count(), expected.len() + 3, "{job}");
    contains(
        &report,
        &[
            "group",
            "kept: 25 tensors at their own dtype (1-D 25)\n",
            "note: the model makes image",
            "compression ratio",
        ],
    );
}

#[test]
fn the_report_as_json_is_the_account_in_the_model() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let job = run(arrow_quant(&["quantize", DIGITS, text(&out), "--json"])).json();
    let report = run(arrow_quant(&["report", text(&out), "--json"])).json();
    for (key, value) in report.as_object().unwrap() {
        assert_eq!(*value, job[key], "{key}");
    }
    let manifest = manifest(&out);
    for key in ["settings", "modality", "notes", "tensors"] {
        assert_eq!(report[key], manifest[key], "{key}");
    }
    assert_eq!((&report["name"], report["weights"].as_u64()), (&Value::from("digits-dit"), Some(1_257_988)));
}

#[test]
fn the_report_as_a_page_needs_nothing_else() {
    let directory = TempDir::new().unwrap();
    let (out, page) = (directory.path().join("out"), directory.path().join("page.html"));
    run(arrow_quant(&["quantize", DIGITS, text(&out), "--quiet"])).printed();
    fs::write(&page, "an older one").unwrap();
    assert_eq!(run(arrow_quant(&["report", text(&out), "--html", text(&page)])).printed(), "");
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"));
    contains(&html, &["digits-dit", "blocks.0.fc2.weight", "bit_width"]);
    for reference in ["http://", "https://", "src=", "<link", "@import", "url("] {
        assert!(!html.contains(reference), "the page refers to something by {reference}");
    }
    assert_eq!(names(directory.path()), ["out", "page.html"]);
}

#[test]
fn what_has_no_report() {
    let directory = TempDir::new().unwrap();
    let (out, page) = (directory.path().join("none"), directory.path().join("page.html"));
    for path in [text(&out), DIGITS] {
        let message = run(arrow_quant(&["report", path, "--html", text(&page)])).error();
        contains(&message, &["no quantized model at `", path, "give a directory that arrow-quant quantize wrote"]);
    }
    assert!(names(directory.path()).is_empty());
    let out = directory.path().join("out");
    run(arrow_quant(&["quantize", DIGITS, text(&out), "--quiet"])).printed();
    let nowhere = directory.path().join("no/page.html");
    let message = run(arrow_quant(&["report", text(&out), "--html", text(&nowhere)])).error();
    contains(&message, &["no/page.html: no such file or directory"]);
}
