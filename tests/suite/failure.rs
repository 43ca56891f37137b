//! What the `arrow-quant` command says when it cannot go on, and that it leaves nothing half-written behind.

use std::fs;
use std::path::Path;

use crate::common::{
    DIGITS, Tensor, arrow_quant, contains, files, names, refused, refused_with, run, safetensors, text, write_model,
    write_tall_model,
};
use tempfile::TempDir;

#[test]
fn a_weight_that_is_not_finite_is_named_and_nothing_left() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("m.safetensors");
    let mut bad = Tensor::gaussian("blocks.1.weight", "F32", &[64, 128], 2);
    bad.values[4321] = f64::NAN;
    write_model(&model, &[Tensor::gaussian("blocks.0.weight", "F32", &[64, 128], 1), bad]);
    let out = directory.path().join("out");
    let message = refused(text(&model), &out, &[]);
    contains(&message, &["blocks.1.weight: weight 4321 is NaN", "name it in --sensitive-layer-names"]);
    // As the message advises.
    run(arrow_quant(&["quantize", text(&model), text(&out), "--sensitive-layer-names", "blocks.1.weight", "--quiet"]))
        .printed();
}

#[test]
fn models_that_cannot_be_read() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    let out = path("out");
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("pickle")).unwrap();
    fs::write(path("pickle/pytorch_model.bin"), b"\x80\x02").unwrap();
    fs::write(path("m.ckpt"), b"\x80\x02").unwrap();
    let whole = safetensors(&[Tensor::gaussian("some.weight", "F32", &[64, 64], 1)]);
    fs::write(path("truncated.safetensors"), &whole[..whole.len() - 100]).unwrap();
    let message = |name: &str| refused(text(&path(name)), &out, &[]);
    contains(&message("none"), &["no model at `", "none`: no such file or directory; give a .safetensors file"]);
    contains(&message("empty"), &["no weights in `", "empty`: looked for *.safetensors"]);
    contains(&message("pickle"), &["pytorch_model.bin", "can run code", "convert them to safetensors"]);
    contains(&message("m.ckpt"), &["m.ckpt` is a pickle checkpoint", "convert it to safetensors"]);
    contains(
        &message("truncated.safetensors"),
        &["truncated.safetensors: tensor 'some.weight'", "truncated", "get it again"],
    );
    for command in ["inspect", "validate"] {
        let none = path("none");
        let arguments = [command, text(&none), text(&none)];
        let last = if command == "inspect" { 2 } else { 3 };
        contains(&run(arrow_quant(&arguments[..last])).error(), &["no model at `"]);
    }
}

#[test]
fn outputs_that_cannot_be_written() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("directory")).unwrap();
    fs::write(path("directory/mine"), "").unwrap();
    fs::write(path("file"), "").unwrap();
    fs::create_dir(path("killed.partial")).unwrap();
    fs::write(path("killed.partial/journal.jsonl"), "").unwrap();
    let message = |out: &Path| refused(DIGITS, out, &[]);
    contains(&message(&path("directory")), &["directory` exists already: remove it, or choose another output"]);
    contains(&message(&path("file")), &["file` exists already: remove it, or choose another output"]);
    contains(
        &message(&path("killed")),
        &["killed.partial` is left from a run that was interrupted", "continue it with --resume", "remove it"],
    );
    contains(&message(&path("no/out")), &["the directory `", "no` does not exist: create it first"]);
    assert_eq!(names(directory.path()), ["directory", "file", "killed.partial"]);
    assert!(names(&path("directory")) == ["mine"] && names(&path("killed.partial")) == ["journal.jsonl"]);
}

#[cfg(unix)]
#[test]
fn a_damaged_quantized_model_is_not_validated() {
    let directory = TempDir::new().unwrap();
    // A name in which a glob would see a pattern.
    let out = directory.path().join("b[1]*");
    let model = "tests/data/digits-dit";
    run(arrow_quant(&["quantize", model, text(&out), "--quiet"])).printed();
    run(arrow_quant(&["validate", model, text(&out), "--min-accuracy", "0.9", "--quiet"])).printed();
    let part = out.join("weights/part-00000.parquet");
    let mut bytes = std::fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let error = run(arrow_quant(&["validate", model, text(&out), "--quiet"])).error();
    contains(&error, &["part-00000.parquet: is not what was written", "quantize the model again"]);
}

#[test]
fn a_selection_of_nothing_is_refused() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let error = run(arrow_quant(&["quantize", "tests/data/digits-dit", text(&out), "--tensors", "nothing"])).error();
    contains(&error, &["--tensors is 'nothing', which selects no tensor", "see arrow-quant inspect"]);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn an_output_that_is_not_writable() {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o555)).unwrap();
    // Permissions do not bind root.
    if File::create(directory.path().join("probe")).is_err() {
        let message = refused(DIGITS, &directory.path().join("out"), &[]);
        contains(&message, &["is not writable: choose another output"]);
    }
}

/// A limit on the size of files stands in for a disk that is full.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full() {
    use std::process::Command;

    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let program = arrow_quant(&[]).get_program().to_os_string();
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" XFSZ; ulimit -f 100; exec "$0" "$@""#]).arg(program);
    command.args(["quantize", DIGITS, text(&out)]);
    let message = run(command).error();
    contains(&message, &["part-00000.parquet", "larger than is allowed here"]);
    assert!(!message.contains("--resume"), "there is nothing to go on from: {message}");
    assert!(names(directory.path()).is_empty(), "{:?}", names(directory.path()));
}

#[cfg(unix)]
#[test]
fn a_run_interrupted_before_its_first_part_leaves_nothing() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use crate::common::write_large_model;

    let directory = TempDir::new().unwrap();
    let model = directory.path().join("large.safetensors");
    // All of it is one part.
    write_large_model(&model, "F32", 1 << 10);
    for (signal, status) in [("-INT", 130), ("-TERM", 143)] {
        let (out, partial) = (directory.path().join("out"), directory.path().join("out.partial"));
        let mut command = arrow_quant(&["quantize", text(&model), text(&out), "--threads", "1", "--quiet"]);
        // The slowest instruction set gives time to interrupt it.
        command.env("ARROW_QUANT_ISA", "scalar").stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !partial.exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{} does not appear", partial.display());
            std::thread::yield_now();
        }
        let killed = Command::new("sh").args(["-c", &format!("kill {signal} {}", child.id())]).status().unwrap();
        let mut message = String::new();
        child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
        let found = child.wait().unwrap();
        // A run may be faster than the signal: then it is complete, or has finished its only part.
        if partial.exists() {
            contains(&message, &["the finished parts are in ", "--resume"]);
            run(arrow_quant(&["quantize", text(&model), text(&out), "--resume", "--quiet"])).printed();
        }
        assert!(!partial.exists(), "{signal}: {found}, {message}");
        if out.exists() {
            run(arrow_quant(&["validate", text(&model), text(&out), "--quiet"])).printed();
            fs::remove_dir_all(&out).unwrap();
            continue;
        }
        assert!(killed.success());
        assert_eq!(found.code(), Some(status), "{signal}: {found}, {message}");
        assert_eq!(message, format!("error: interrupted; nothing was written to {}\n", out.display()));
        assert!(!out.exists());
    }
}

#[test]
fn wrong_arguments_are_refused_with_those_allowed() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    for (flag, value, allowed) in [
        ("--bits", "7", "2, 3, 4, 5, 6, 8"),
        ("--group-size", "100", "16, 32, 64, 128, 256"),
        ("--scheme", "best", "affine, asymmetric, symmetric"),
        ("--method", "best", "minmax, mse"),
        ("--profile", "best", "edge, local, cloud"),
        ("--threads", "many", "invalid digit"),
    ] {
        let outcome = run(arrow_quant(&["quantize", DIGITS, text(&out), flag, value]));
        assert_eq!(outcome.status, Some(2), "{outcome:?}");
        contains(&outcome.stderr, &[&format!("invalid value '{value}' for '{flag}"), allowed]);
    }
    contains(&refused(DIGITS, &out, &["--tensors", "("]), &["--tensors is '(', which is not a regular expression"]);
    for (variable, value, allowed) in
        [("ARROW_QUANT_NUM_THREADS", "many", "0 for all cores"), ("ARROW_QUANT_ISA", "sse9", "this CPU has: ")]
    {
        let message = run(arrow_quant(&["quantize", DIGITS, text(&out)]).env(variable, value)).error();
        contains(&message, &[&format!("{variable} is '{value}'"), allowed]);
    }
    assert!(names(directory.path()).is_empty());
}

#[test]
fn validation_refuses_what_is_not_the_same_model() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    write_model(&path("a.safetensors"), &[Tensor::gaussian("w", "F32", &[64, 64], 1)]);
    write_model(&path("b.safetensors"), &[Tensor::gaussian("w", "F32", &[32, 128], 1)]);
    write_model(&path("c.safetensors"), &[Tensor::gaussian("v", "F32", &[64, 64], 1)]);
    let out = path("out");
    run(arrow_quant(&["quantize", text(&path("a.safetensors")), text(&out), "--quiet"])).printed();
    let message = |name: &str| run(arrow_quant(&["validate", text(&path(name)), text(&out)])).error();
    contains(&message("b.safetensors"), &["w has shape [32, 128] in the original and [64, 64] in the quantized model"]);
    contains(&message("c.safetensors"), &["v is missing from the quantized model"]);

    // A part that was cut short is told before a wrong figure can be.
    let part = out.join("weights/part-00000.parquet");
    let bytes = fs::read(&part).unwrap();
    fs::write(&part, &bytes[..bytes.len() - 10]).unwrap();
    contains(
        &message("a.safetensors"),
        &["part-00000.parquet: has", "the quantized model is damaged, quantize it again"],
    );
}

#[test]
fn queries_that_cannot_be_run() {
    let message = |query: &str| run(arrow_quant(&["sql", query])).error();
    contains(&message("SELECT * FROM nope"), &["table", "nope", "not found"]);
    contains(&message("SELECT nope"), &["nope"]);
    contains(&message("SELCT 1"), &["SELCT"]);
    contains(&message("SELECT quantize([1.0], 7, 32)"), &["quantize: bits is 7, allowed: 2, 3, 4, 5, 6 or 8"]);
    contains(&message("SELECT * FROM weights('/none')"), &["no model at `/none`"]);
    contains(&message(""), &["there is no statement to run"]);
    let twice = format!("m={DIGITS}");
    let outcome = run(arrow_quant(&["sql", "SELECT 1", "--model", &twice, "--model", &twice]));
    contains(&outcome.error(), &["another model has the name 'm'"]);
}

/// Parts are being written by several threads when the job ends.
#[test]
fn a_job_that_fails_fast_leaves_nothing_however_often_it_is_run() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("m.safetensors");
    // Two parts each.
    let named = ["a", "b", "c"].into_iter().zip(1..);
    write_tall_model(
        &model,
        &named.map(|(name, seed)| (Tensor::gaussian(name, "BF16", &[1, 4096], seed), 1 << 11)).collect::<Vec<_>>(),
    );
    for _ in 0..20 {
        let arguments =
            ["--fail-fast", "--bits", "2", "--min-accuracy", "0.99", "--method", "minmax", "--threads", "3"];
        let message = refused_with(3, text(&model), &directory.path().join("out"), &arguments);
        contains(&message, &["below --min-accuracy 0.99"]);
    }
}

/// One of them gets the output, and the others say why they do not.
#[test]
fn jobs_that_are_started_at_once_on_the_same_output() {
    use std::process::Stdio;

    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let expected = run(arrow_quant(&["quantize", DIGITS, text(&directory.path().join("alone")), "--quiet"]));
    assert_eq!(expected.status, Some(0));
    for _ in 0..20 {
        let start = |_| {
            let mut command = arrow_quant(&["quantize", DIGITS, text(&out), "--quiet"]);
            command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<_> = (0..4).map(start).collect();
        let outcomes: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let succeeded = outcomes.iter().filter(|outcome| outcome.status.success()).count();
        assert_eq!(succeeded, 1, "{outcomes:?}");
        assert!(files(&out) == files(&directory.path().join("alone")), "{:?}", names(&out));
        assert_eq!(names(directory.path()), ["alone", "out"]);
        fs::remove_dir_all(&out).unwrap();
    }
}

/// The memory for the stacks of threads is bounded; the number of processes bounds nothing of root's.
#[cfg(target_os = "linux")]
#[test]
fn threads_that_cannot_be_started_are_told_in_a_line_or_done_without() {
    for kibibytes in [900_000, 1_300_000, 2_000_000, 4_000_000] {
        let line = format!("ulimit -v {kibibytes} && exec \"$0\" --threads 4 sql 'SELECT 1 AS one' --format csv");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &line, env!("CARGO_BIN_EXE_arrow-quant")]).stdin(std::process::Stdio::null());
        let output = command.output().unwrap();
        let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match output.status.code() {
            Some(0) => assert_eq!(printed, "one\n1\n", "{said}"),
            Some(1) => assert!(said.starts_with("error: threads cannot be started"), "{said}"),
            status => panic!("{status:?} {said}"),
        }
        assert!(!said.contains("panicked") && said.lines().count() <= 1, "{said}");
    }
}
