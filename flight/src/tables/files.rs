//! Names of directories and files of stored tables.

use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use datafusion::common::Result;
use uuid::Uuid;

/// Bytes of a file's name, on all file systems that matter.
pub(super) const FILE_NAME_BYTES: usize = 255;

/// What the name and the size of a part say.
pub(super) struct PartFile {
    pub generation: u32,
    pub number: u32,
    pub name: String,
    pub bytes: u64,
}

impl PartFile {
    /// A part that no other has the name of.
    pub(crate) fn new(generation: u32, number: u32, bytes: u64) -> Self {
        let name = format!("part-{generation:08x}-{number:08x}-{}.parquet", Uuid::new_v4().simple());
        Self { generation, number, name, bytes }
    }
}

/// The parts in a directory, in any order.
pub(super) fn part_files(directory: &Path) -> Result<Vec<PartFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let mut words = name.strip_suffix(".parquet").into_iter().flat_map(|stem| stem.split('-'));
        if words.next() != Some("part") {
            continue;
        }
        let mut number = || words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
        let (Some(generation), Some(number)) = (number(), number()) else { continue };
        files.push(PartFile { generation, number, bytes: entry.metadata()?.len(), name });
    }
    Ok(files)
}

/// Makes renames in a directory last.
pub(super) fn sync(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

/// A name as a file's name: everything but lower-case letters, digits, `_`, `-`, `@` and inner points is percent-encoded, so that
/// no two names are one file where letters are not told apart by their case.
pub(super) fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (at, &byte) in name.as_bytes().iter().enumerate() {
        if matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'@') || byte == b'.' && at > 0 {
            text.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02x}");
        }
    }
    text
}

/// The name that was encoded so; none if it was not.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        bytes.push(u8::from_str_radix(rest.get(at + 1..at + 3)?, 16).ok()?);
        rest = &rest[at + 3..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok().filter(|name| encoded(name) == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_file_of_its_own() {
        for name in ["a", "A", "a.b", ".", "..", ".staging", "../x", "a/b", "a%2fb", "ä ö", "\"q\"\n", "ci@host-1_2"]
        {
            let text = encoded(name);
            assert!(!text.starts_with('.') && !text.contains(['/', ' ', '\n']), "{name:?} became {text:?}");
            assert_eq!(decoded(&text).as_deref(), Some(name));
        }
        for text in [".staging", "A", "%", "%4", "%zz", "%+f", "%61", "%ff", "a b", "ä%"] {
            assert_eq!(decoded(text), None, "{text:?}");
        }
    }
}
