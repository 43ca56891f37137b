//! The words of a front end stay with it: no library names a flag of the command.

use std::fs;
use std::path::{Path, PathBuf};

/// The libraries, by the folders of their sources.
const LIBRARIES: [&str; 5] = ["src", "stores", "formats", "udfs", "flight/src"];

/// The flags in the string literals of a Rust source, each with its line. Comments may name flags.
fn flags(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (start, literal) in literals(source) {
        for (at, _) in literal.match_indices("--") {
            let name = &literal[at + 2..];
            if name.starts_with(|c: char| c.is_ascii_lowercase()) {
                let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(name.len());
                let line = source[..start + at].matches('\n').count() + 1;
                found.push((line, format!("--{}", &name[..end])));
            }
        }
    }
    found
}

/// The string literals of a Rust source, each with where it starts.
fn literals(source: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = source[at..].chars().next() {
        let rest = &source[at..];
        let quote = ["'\"'", r#"'\"'"#].into_iter().find(|quote| rest.starts_with(quote));
        // Bytes before the text of a literal, of the text, and after it.
        let literal = match next {
            '"' => Some((1, end_of_text(&rest[1..]), 1)),
            'r' => {
                let hashes = rest[1..].bytes().take_while(|&byte| byte == b'#').count();
                let end = format!("\"{}", "#".repeat(hashes));
                let text = rest[1 + hashes..].strip_prefix('"');
                text.map(|text| (2 + hashes, text.find(&end).unwrap_or(text.len()), end.len()))
            }
            _ => None,
        };
        at += if let Some((before, length, after)) = literal {
            found.push((at + before, &rest[before..before + length]));
            before + length + after
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else {
            quote.map_or(next.len_utf8(), str::len)
        };
    }
    found
}

/// Bytes before the quote that ends a literal.
fn end_of_text(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at.min(bytes.len())
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
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut files = Vec::new();
    for library in LIBRARIES {
        sources(&root.join(library), &mut files);
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
        r##"let raw = (r"\", r#"a"--raw"#); let none = a--b;"##,
    ]
    .join("\n");
    let expected = [(2, "--quoted"), (3, "--f-g"), (5, "--more"), (6, "--raw")];
    assert_eq!(flags(&source), expected.map(|(line, flag)| (line, flag.to_string())));
}
