//! The README's blocks run from top to bottom as they are pasted, and its report is what the command prints.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The blocks of a language, in order; the empty one has none.
fn blocks(readme: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<(bool, String)> = None;
    for line in readme.lines() {
        match (line.strip_prefix("```"), &mut block) {
            (Some(found), None) => block = Some((found == language, String::new())),
            (Some(_), Some((is_wanted, text))) => {
                if *is_wanted {
                    blocks.push(std::mem::take(text));
                }
                block = None;
            }
            (None, Some((_, text))) => text.extend([line, "\n"]),
            (None, None) => {}
        }
    }
    blocks
}

/// Runs a line in a shell that finds the command, and gives what it prints.
#[track_caller]
fn shell(directory: &Path, line: &str) -> String {
    let command = Path::new(env!("CARGO_BIN_EXE_arrow-quant")).parent().unwrap();
    let path = format!("{}:{}", command.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    let output =
        shell.args(["-c", line]).current_dir(directory).env("PATH", path).env_remove("COLUMNS").output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_blocks_run_from_top_to_bottom() {
    let readme = fs::read_to_string(Path::new(PROJECT).join("README.md")).unwrap();
    let directory = TempDir::new().unwrap();
    for name in ["tests", "config.example.yaml"] {
        symlink(fs::canonicalize(Path::new(PROJECT).join(name)).unwrap(), directory.path().join(name)).unwrap();
    }
    // What compiles, installs, tests and serves is tested elsewhere.
    let elsewhere = ["cargo ", "tests/run", "python3 ", "pip ", "arrow-quant serve"];
    let mut ran = 0;
    for line in blocks(&readme, "sh").iter().flat_map(|block| block.lines()) {
        if !elsewhere.iter().any(|start| line.starts_with(start)) {
            shell(directory.path(), line);
            ran += 1;
        }
    }
    assert!(ran > 10, "{ran}");
    for block in blocks(&readme, "sql") {
        fs::write(directory.path().join("block.sql"), &block).unwrap();
        assert!(shell(directory.path(), "arrow-quant sql -f block.sql").contains(" rows\n"), "{block}");
    }
}

#[test]
fn the_report_is_what_the_command_prints() {
    let readme = fs::read_to_string(Path::new(PROJECT).join("README.md")).unwrap();
    let directory = TempDir::new().unwrap();
    let model = fs::canonicalize(Path::new(PROJECT).join("tests/data/digits-dit")).unwrap();
    let printed = shell(directory.path(), &format!("arrow-quant quantize '{}' digits-int4", model.display()));
    let lines: Vec<&str> = printed.lines().collect();
    for line in blocks(&readme, "").first().unwrap().lines().filter(|line| !line.is_empty() && *line != "…") {
        assert!(lines.contains(&line), "{line} is not in {printed}");
    }
}
