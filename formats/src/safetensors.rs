//! Safetensors files. The header comes from strangers, so nothing in it is believed: every figure is checked against
//! the others and against the length of the file before a single byte of data is looked at.
//!
//! The format: a little-endian u64 N, N bytes of JSON that name each tensor's type, shape and place, then the data, one
//! tensor after the other without holes.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};

use crate::names::shown;
use crate::{FormatError, Problem, StoredType, TensorEntry};

type Result<T, E = FormatError> = std::result::Result<T, E>;

/// Bytes before the header: its length.
pub const PREFIX: u64 = 8;

/// The longest header that is read, the limit of the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// The key of a header that is no tensor.
pub const METADATA: &str = "__metadata__";

/// What a header says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Free text that the file's writer left. What is not text there is shown as JSON.
    pub metadata: BTreeMap<String, String>,
    /// The tensors, in the order of their data.
    pub tensors: Vec<TensorEntry>,
}

/// Bytes of the header including its length, of a file of `file_length` bytes that starts with `start`; 64 bytes of
/// the file are enough, or all of them if it has fewer.
///
/// # Errors
/// [`FormatError`] if the file is too short or a Git LFS pointer, or the header longer than the file or than any that is
/// read.
pub fn header_length(start: &[u8], file_length: u64) -> Result<u64> {
    if start.starts_with(b"version https://git-lfs") {
        return Err(FormatError::file(Problem::LfsPointer));
    }
    let Some(length) = start.first_chunk::<8>() else {
        return Err(FormatError::file(Problem::TooShort { found: file_length }));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(FormatError::file(Problem::HeaderTooLong { found: length, most: MAX_HEADER }));
    }
    let wanted = PREFIX + length;
    if wanted > file_length {
        return Err(FormatError::file(Problem::Truncated { wanted, found: file_length }));
    }
    Ok(wanted)
}

/// Reads and checks the header of a file of `file_length` bytes. `header` are its first bytes, as many as
/// [`header_length`] gives.
///
/// # Errors
/// [`FormatError`], naming the tensor where there is one, if the file is truncated, its header is not understood, or
/// figures in it contradict each other or the file.
pub fn parse(header: &[u8], file_length: u64) -> Result<Header> {
    let data = header_length(header, file_length)?;
    let json = header
        .get(PREFIX as usize..data as usize)
        .ok_or_else(|| FormatError::file(Problem::Truncated { wanted: data, found: header.len() as u64 }))?;
    let text = std::str::from_utf8(json)
        .map_err(|e| FormatError::file(Problem::NotUtf8 { at: PREFIX as usize + e.valid_up_to() }))?;
    let raw = read_json(text)?;
    let mut tensors = raw.tensors.into_iter().map(|(name, raw)| entry(name, raw)).collect::<Result<Vec<_>>>()?;
    check_places(&mut tensors, data, file_length)?;
    for tensor in &mut tensors {
        tensor.range = data + tensor.range.start..data + tensor.range.end;
    }
    Ok(Header { metadata: raw.metadata.unwrap_or_default(), tensors })
}

/// The header of a file that holds tensors one after the other, including its length: what [`parse`] reads. Ranges of
/// the entries are ignored; `pad_to` makes the data begin at a multiple of it.
///
/// # Errors
/// [`FormatError`] if a tensor has more bytes than can be counted, or ends within one.
pub fn write_header(metadata: &BTreeMap<String, String>, tensors: &[TensorEntry], pad_to: usize) -> Result<Vec<u8>> {
    let mut members = serde_json::Map::new();
    if !metadata.is_empty() {
        members.insert(METADATA.to_string(), serde_json::json!(metadata));
    }
    let mut begin = 0_u64;
    for TensorEntry { name, stored, shape, .. } in tensors {
        let elements = crate::elements(shape);
        let end = stored.bytes(elements).and_then(|bytes| begin.checked_add(bytes)).ok_or_else(|| {
            let bits = u128::from(elements) * u128::from(stored.bits());
            FormatError::tensor(name, Problem::PartOfByte { stored: *stored, shape: shape.clone(), bits })
        })?;
        let member = serde_json::json!({"dtype": stored.name(), "shape": shape, "data_offsets": [begin, end]});
        if members.insert(name.clone(), member).is_some() {
            return Err(FormatError::tensor(name, Problem::Twice));
        }
        begin = end;
    }
    let mut json = serde_json::Value::Object(members).to_string().into_bytes();
    let padding = (PREFIX as usize + json.len()).next_multiple_of(pad_to.max(1)) - PREFIX as usize - json.len();
    json.extend(std::iter::repeat_n(b' ', padding));
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// The header as JSON has it.
struct RawHeader {
    metadata: Option<BTreeMap<String, String>>,
    tensors: Vec<(String, RawTensor)>,
}

/// A tensor as JSON has it. Keys that are not named here are ignored, as the reference implementation does.
#[derive(Deserialize)]
#[serde(expecting = "an object with dtype, shape and data_offsets")]
struct RawTensor {
    dtype: String,
    shape: Vec<i64>,
    data_offsets: Vec<i64>,
}

/// Reads the members one by one: a map type of the standard library would drop all but the last of equal names.
struct HeaderVisitor<'a> {
    /// The tensor whose value is being read, for the message if that fails.
    reading: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for HeaderVisitor<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
        let mut header = RawHeader { metadata: None, tensors: Vec::new() };
        let mut metadata_seen = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                if metadata_seen {
                    return Err(de::Error::custom(format_args!("`{METADATA}` is there twice, expected once")));
                }
                metadata_seen = true;
                header.metadata = metadata(map.next_value()?)?;
            } else {
                *self.reading = Some(name);
                let tensor = map.next_value()?;
                if let Some(name) = self.reading.take() {
                    header.tensors.push((name, tensor));
                }
            }
        }
        Ok(header)
    }
}

/// The entries of a file's metadata. The format asks for text; programs write numbers and objects there too.
fn metadata<E: de::Error>(value: serde_json::Value) -> std::result::Result<Option<BTreeMap<String, String>>, E> {
    use serde_json::Value;
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    match value {
        Value::Null => Ok(None),
        Value::Object(entries) => Ok(Some(entries.into_iter().map(|(key, value)| (key, text(value))).collect())),
        other => {
            let found = shown(&other.to_string());
            Err(E::custom(format_args!("`{METADATA}` is {found}, expected an object of text")))
        }
    }
}

fn read_json(text: &str) -> Result<RawHeader> {
    let mut reading = None;
    let mut json = serde_json::Deserializer::from_str(text);
    let header = de::Deserializer::deserialize_map(&mut json, HeaderVisitor { reading: &mut reading })
        .and_then(|header| json.end().map(|()| header));
    header.map_err(|e| {
        let message = shown(&e.to_string());
        let problem = if e.is_data() { Problem::NotUnderstood(message) } else { Problem::NotJson(message) };
        FormatError { tensor: reading, problem }
    })
}

/// A tensor whose own figures agree, its range counted from the start of the data.
fn entry(name: String, raw: RawTensor) -> Result<TensorEntry> {
    let wrong = |problem: Problem| Err(FormatError::tensor(&name, problem));
    let RawTensor { dtype, shape, data_offsets } = raw;
    let Ok(stored) = dtype.parse::<StoredType>() else { return wrong(Problem::Type(dtype)) };
    let Some((begin, end)) = offsets(&data_offsets) else { return wrong(Problem::Offsets(data_offsets)) };
    if shape.iter().any(|&dimension| dimension < 0) {
        return wrong(Problem::NegativeDimension(shape));
    }
    let Some(elements) = elements(&shape) else { return wrong(Problem::TooManyElements(shape)) };
    // Less than 2^63 elements of at most 64 bits: no overflow.
    let bits = u128::from(elements) * u128::from(stored.bits());
    if !bits.is_multiple_of(8) {
        return wrong(Problem::PartOfByte { stored, shape, bits });
    }
    if bits / 8 != u128::from(end - begin) {
        return wrong(Problem::Size { begin, end, wanted: bits / 8, stored, shape });
    }
    Ok(TensorEntry { name, stored, shape, range: begin..end })
}

fn offsets(data_offsets: &[i64]) -> Option<(u64, u64)> {
    let &[begin, end] = data_offsets else { return None };
    let (begin, end) = (u64::try_from(begin).ok()?, u64::try_from(end).ok()?);
    (begin <= end).then_some((begin, end))
}

/// The product of the dimensions; `None` if it overflows. Zeros are left out of the check, so that the product of any
/// subset of the dimensions is safe too.
fn elements(shape: &[i64]) -> Option<u64> {
    let product = shape.iter().try_fold(1i64, |product, &dimension| product.checked_mul(dimension.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { product.unsigned_abs() })
}

/// Puts the tensors in the order of their data, and checks that no name is there twice and that they fill the file
/// from byte `data` on without overlap or hole.
fn check_places(tensors: &mut [TensorEntry], data: u64, file: u64) -> Result<()> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(twice) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(FormatError::tensor(&twice[0].name, Problem::Twice));
    }
    // Tensors without elements come before the tensor at the same place.
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let available = file - data;
    if let Some(cut) = tensors.iter().find(|tensor| tensor.range.end > available) {
        let last = tensors.iter().map(|tensor| tensor.range.end).max().unwrap_or(0);
        return Err(FormatError::tensor(&cut.name, Problem::Truncated { wanted: data + last, found: file }));
    }
    let (mut expected, mut previous) = (0, None::<&TensorEntry>);
    for tensor in tensors.iter() {
        let begin = tensor.range.start;
        let before = || previous.map(|tensor| tensor.name.clone());
        if begin < expected {
            return Err(FormatError::tensor(&tensor.name, Problem::Overlap { begin, expected, before: before() }));
        }
        if begin > expected {
            return Err(FormatError::tensor(&tensor.name, Problem::Hole { begin, expected, before: before() }));
        }
        (expected, previous) = (tensor.range.end, Some(tensor));
    }
    if expected < available {
        let problem = Problem::LeftOver { left: available - expected, expected: data + expected };
        return Err(FormatError::file(problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with `json` as its header and `data` bytes of data.
    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.extend((0..data).map(|i| i as u8));
        file
    }

    fn message(file: &[u8]) -> String {
        parse(file, file.len() as u64).unwrap_err().to_string()
    }

    const VALID: &str = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"F32","shape":[2,3],"data_offsets":[2,26]},
        "scalar":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},
        "none":{"dtype":"F64","shape":[4,0],"data_offsets":[26,26]},
        "half":{"dtype":"F4","shape":[3,2],"data_offsets":[26,29],"extra":[{}]}}  "#;

    #[test]
    fn a_valid_file_is_read() {
        let bytes = file(VALID, 29);
        let header = parse(&bytes, bytes.len() as u64).unwrap();
        assert_eq!(header.metadata["format"], "pt");
        let data = PREFIX + VALID.len() as u64;
        let found: Vec<_> = header
            .tensors
            .iter()
            .map(|t| (t.name.as_str(), t.range.start - data, t.range.end - t.range.start))
            .collect();
        assert_eq!(found, [("scalar", 0, 2), ("b", 2, 24), ("none", 26, 0), ("half", 26, 3)]);
        assert_eq!(header.tensors[1].shape, [2, 3]);
        assert_eq!(header.tensors[1].stored, StoredType::F32);
        assert!(parse(&file("{}", 0), 10).unwrap().tensors.is_empty());
    }

    #[test]
    fn metadata_that_is_not_text_is_read_as_json() {
        let bytes = file(r#"{"__metadata__":{"format":"pt","step":7,"config":{"a":[1]},"none":null}}"#, 0);
        let metadata = parse(&bytes, bytes.len() as u64).unwrap().metadata;
        let found: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(found, [("config", r#"{"a":[1]}"#), ("format", "pt"), ("none", "null"), ("step", "7")]);
        let bytes = file(r#"{"__metadata__":null}"#, 0);
        assert!(parse(&bytes, bytes.len() as u64).unwrap().metadata.is_empty());
    }

    #[test]
    fn each_defect_is_named() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let two = |a: &str, b: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
            )
        };
        let twice = r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0077":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        let cases: &[(&str, usize, &str)] = &[
            ("", 0, "header is not valid JSON: EOF"),
            ("{", 0, "header is not valid JSON"),
            ("{} {}", 0, "header is not valid JSON: trailing characters"),
            ("[]", 0, "header is not understood: invalid type: sequence, expected a JSON object"),
            (
                r#"{"__metadata__":["a"]}"#,
                0,
                r#"header is not understood: `__metadata__` is ["a"], expected an object"#,
            ),
            (r#"{"__metadata__":"pt"}"#, 0, r#"header is not understood: `__metadata__` is "pt", expected an object"#),
            (r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "`__metadata__` is there twice"),
            (r#"{"w":3}"#, 0, "tensor 'w': header is not understood: invalid type: integer"),
            (r#"{"w":{"dtype":"U8","shape":[]}}"#, 1, "tensor 'w': header is not understood: missing field"),
            (r#"{"w":{"dtype":"U8","dtype":"I8"}}"#, 1, "duplicate field `dtype`"),
            (twice, 2, "tensor 'w': name is there twice"),
            (&one("Q4", "[1]", "[0,1]"), 1, "tensor 'w': dtype is 'Q4', expected one of BOOL, U8"),
            (&one("U8", "[-1]", "[0,1]"), 1, "shape is [-1], expected dimensions of 0 or more"),
            (&one("U8", "[18446744073709551615]", "[0,1]"), 1, "tensor 'w': header is not understood"),
            (&one("U8", "[1.5]", "[0,1]"), 1, "tensor 'w': header is not understood"),
            (&one("U8", "[4294967296,4294967296]", "[0,1]"), 1, "expected fewer than 2^63 elements"),
            (&one("U8", "[4294967296,4294967296,0]", "[0,0]"), 0, "expected fewer than 2^63 elements"),
            (&one("F64", "[9223372036854775807]", "[0,8]"), 8, "hold 8 bytes, expected 73786976294838206456"),
            (&one("F32", "[2]", "[0,4]"), 4, "hold 4 bytes, expected 8 for F32 of shape [2]"),
            (&one("F4", "[3]", "[0,2]"), 2, "F4 of shape [3] comes to 12 bits, expected whole bytes"),
            (&one("U8", "[1]", "[1,0]"), 1, "data_offsets are [1, 0], expected [begin, end]"),
            (&one("U8", "[1]", "[-1,0]"), 1, "data_offsets are [-1, 0]"),
            (&one("U8", "[1]", "[0,1,2]"), 1, "data_offsets are [0, 1, 2]"),
            (&one("U8", "[8]", "[0,8]"), 7, "tensor 'w': file is truncated: header wants"),
            (&one("U8", "[8]", "[0,8]"), 9, "1 bytes are left over after the last tensor"),
            (
                &one("U8", "[8]", "[1,9]"),
                9,
                "tensor 'w': data begin at 1, expected 0: there is a hole of 1 bytes after the header",
            ),
            (&two("[0,4]", "[3,7]"), 7, "tensor 'b': data begin at 3, expected 4: they overlap those of tensor 'a'"),
            (&two("[5,9]", "[0,4]"), 9, "tensor 'a': data begin at 5, expected 4: there is a hole"),
            ("{}", 3, "3 bytes are left over"),
        ];
        for (json, data, expected) in cases {
            let found = message(&file(json, *data));
            assert!(found.contains(expected), "{json}: '{found}' does not contain '{expected}'");
            assert!(!found.contains('\n'), "{found}");
        }
    }

    #[test]
    fn a_file_that_is_no_safetensors_file_is_refused() {
        assert!(message(b"").contains("file has 0 bytes"));
        assert!(message(b"1234567").contains("file has 7 bytes, expected 8 or more"));
        assert!(message(b"not one of ours").contains("header length is"));
        assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        assert!(
            message(&[9, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']).contains("truncated: header wants 17 bytes, file has 10")
        );
        assert!(message(&[2, 0, 0, 0, 0, 0, 0, 0, b'{', 0xff]).contains("not UTF-8 at byte 9"));
    }

    #[test]
    fn a_message_is_one_short_line_whatever_the_name() {
        let name = format!("a\\n{}", "x".repeat(10_000));
        let found = message(&file(&format!(r#"{{"{name}":{{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}}}"#), 1));
        assert!(!found.contains('\n') && found.len() < 1000, "{found}");
    }

    #[test]
    fn no_damage_to_a_file_panics() {
        let valid = file(VALID, 29);
        for i in 0..valid.len() {
            assert!(parse(&valid[..i], i as u64).is_err(), "cut to {i} bytes");
            for bit in 0..8 {
                let mut damaged = valid.clone();
                damaged[i] ^= 1 << bit;
                if let Ok(header) = parse(&damaged, damaged.len() as u64) {
                    assert!(header.tensors.iter().all(|t| t.range.end <= damaged.len() as u64));
                }
            }
        }
    }

    #[test]
    fn a_written_header_is_read_back() {
        let entry = |name: &str, stored, shape: &[i64], range| TensorEntry {
            name: name.to_string(),
            stored,
            shape: shape.to_vec(),
            range,
        };
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let tensors = [entry("b", StoredType::F32, &[2, 3], 0..0), entry("a", StoredType::U8, &[5], 0..0)];
        let mut bytes = write_header(&metadata, &tensors, 64).unwrap();
        let data = bytes.len() as u64;
        assert!(data.is_multiple_of(64));
        bytes.resize(bytes.len() + 29, 0);
        let header = parse(&bytes, bytes.len() as u64).unwrap();
        assert_eq!(header.metadata, metadata);
        let expected = [
            entry("b", StoredType::F32, &[2, 3], data..data + 24),
            entry("a", StoredType::U8, &[5], data + 24..data + 29),
        ];
        assert_eq!(header.tensors, expected);
        assert!(write_header(&metadata, &[entry("odd", StoredType::F4, &[3], 0..0)], 8).is_err());
    }
}
