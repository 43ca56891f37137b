//! The words of a front end stay with it: no library names a flag of the command.

use std::fs;
use std::path::{Path, PathBuf};

/// The libraries, by the folders of their sources.
const LIBRARIES: [&str; 5] = ["src", "stores", "formats", "udfs", "flight/src"];

/// The flags in the string literals of a Rust source, each with its line. Comments may name flags.
fn flags(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut in_literal, mut in_block_comment) = (false, false);
    for (number, line) in source.lines().enumerate() {
        let mut rest = line;
        while let Some(next) = rest.chars().next() {
            let step = if in_block_comment {
                in_block_comment = !rest.starts_with("*/");
                next.len_utf8()
            } else if in_literal {
                let flag = rest.strip_prefix("--").filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
                if let Some(name) = flag {
                    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(name.len());
                    found.push((number + 1, format!("--{}", &name[..end])));
                }
                in_literal = next != '"';
                if next == '\\' { 1 + rest.chars().nth(1).map_or(0, char::len_utf8) } else { next.len_utf8() }
            } else if rest.starts_with("//") {
                break;
            } else if rest.starts_with("'\"'") {
                3
            } else if rest.starts_with("'\\\"'") {
                4
            } else {
                in_block_comment = rest.starts_with("/*");
                in_literal = next == '"';
                next.len_utf8()
            };
            rest = &rest[step..];
        }
    }
    found
}

/// The Rust sources of a folder. Benchmarks and tests speak to developers.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !["benches", "tests", "target", "fuzz"].contains(&name) {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

#[test]
fn no_library_names_a_flag() {
    let mut files = Vec::new();
    for library in LIBRARIES {
        sources(Path::new(library), &mut files);
    }
    assert!(files.len() > 100, "{} files are too few to be all", files.len());
    for file in files {
        let found = flags(&fs::read_to_string(&file).unwrap());
        assert!(found.is_empty(), "{}: {found:?} belong to the command; errors name settings as data", file.display());
    }
}

#[test]
fn flags_are_found_in_literals_alone() {
    let source = [
        r#"// "--comment" "#,
        r#"let a = "say \"--quoted\" or"; // "--behind""#,
        r#"let quote = '"'; let b = -(-c) - d; /* "--block" */ e("--f-g=1");"#,
        r#"let sql = "SELECT 1 -- a comment"; let line = "text \"#,
        r#"    and --more";"#,
        r#"let none = a--b;"#,
    ]
    .join("\n");
    let expected = [(2, "--quoted"), (3, "--f-g"), (5, "--more")];
    assert_eq!(flags(&source), expected.map(|(line, flag)| (line, flag.to_string())));
}
