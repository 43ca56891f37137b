//! The header of a safetensors file. It comes from strangers, so nothing in it is believed: every figure is checked
//! against the others and against the file before a single byte of data is looked at.
//!
//! The format: a little-endian u64 N, N bytes of JSON that name each tensor's dtype, shape and place, then the data,
//! one tensor after the other without holes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};

use crate::error::{QuantError, Result};

/// The longest header that is read, the limit of the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// The key of a header that is no tensor.
const METADATA: &str = "__metadata__";

/// Every dtype and the bits of one element.
const DTYPES: &[(&str, u64)] = &[
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("I16", 16),
    ("U16", 16),
    ("I32", 32),
    ("U32", 32),
    ("I64", 64),
    ("U64", 64),
    ("F16", 16),
    ("BF16", 16),
    ("F32", 32),
    ("F64", 64),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("C64", 64),
];

/// What a header says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Free text of whoever wrote the file.
    pub metadata: BTreeMap<String, String>,
    /// The tensors, in the order of their data.
    pub tensors: Vec<TensorHeader>,
}

/// One tensor of a file. Its bytes lie within the file, and are as many as dtype and shape ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// Its name, unique in the file.
    pub name: String,
    /// Its dtype, one that safetensors knows.
    pub dtype: String,
    /// Its dimensions, none negative. The product of those that are not zero fits an i64.
    pub shape: Vec<i64>,
    /// Where its data begin, counted from the start of the file.
    pub offset: usize,
    /// Bytes of its data.
    pub bytes: usize,
}

/// Reads and checks the header of `file`, the whole file's bytes. `path` is for messages only.
///
/// # Errors
/// [`QuantError::Metadata`], naming the file and where there is one the tensor, if the file is truncated, its header is
/// not understood, or figures in it contradict each other or the file.
pub fn parse(path: &Path, file: &[u8]) -> Result<Header> {
    let json = header_json(path, file)?;
    let text = std::str::from_utf8(json).map_err(|e| {
        let at = 8 + e.valid_up_to();
        defect(path, None, format_args!("header is not UTF-8 at byte {at} of the file, expected JSON"))
    })?;
    let raw = read_json(path, text)?;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        tensors.push(Placed::new(path, name, tensor)?);
    }
    let data = 8 + json.len();
    check_places(path, &mut tensors, data as u64, file.len() as u64)?;
    let tensors = tensors.into_iter().map(|tensor| TensorHeader {
        name: tensor.name,
        dtype: tensor.dtype,
        shape: tensor.shape,
        offset: data + tensor.begin as usize,
        bytes: (tensor.end - tensor.begin) as usize,
    });
    Ok(Header { metadata: raw.metadata.unwrap_or_default(), tensors: tensors.collect() })
}

/// A [`QuantError::Metadata`] whose message starts with the file and the tensor.
pub(super) fn defect(path: &Path, tensor: Option<&str>, message: impl fmt::Display) -> QuantError {
    let message = match tensor {
        Some(name) => format!("{}: tensor '{}': {message}", path.display(), shown(name)),
        None => format!("{}: {message}", path.display()),
    };
    QuantError::Metadata { path: path.to_path_buf(), tensor: tensor.map(str::to_string), message }
}

/// Text of a stranger, made fit for a message: one line, and not endless.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown: String =
        text.chars().take(LONGEST).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// The bytes of the header, without the eight that hold its length.
pub(super) fn header_json<'a>(path: &Path, file: &'a [u8]) -> Result<&'a [u8]> {
    if file.starts_with(b"version https://git-lfs") {
        return Err(defect(path, None, "file is a Git LFS pointer, not the weights: run `git lfs pull` to get them"));
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        let found = file.len();
        return Err(defect(
            path,
            None,
            format_args!("file has {found} bytes, expected 8 or more of a safetensors file"),
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        let message = format!("header length is {length} bytes, expected {MAX_HEADER} or fewer of a safetensors file");
        return Err(defect(path, None, message));
    }
    // At most MAX_HEADER, so it fits a usize of any width.
    rest.get(..length as usize).ok_or_else(|| {
        let found = file.len();
        let message = format!("file is truncated: header wants {} bytes, file has {found}: get it again", length + 8);
        defect(path, None, message)
    })
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
                header.metadata = map.next_value()?;
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

fn read_json(path: &Path, text: &str) -> Result<RawHeader> {
    let mut reading = None;
    let mut json = serde_json::Deserializer::from_str(text);
    let header = de::Deserializer::deserialize_map(&mut json, HeaderVisitor { reading: &mut reading })
        .and_then(|header| json.end().map(|()| header));
    header.map_err(|e| {
        let what = if e.is_data() { "is not understood" } else { "is not valid JSON" };
        defect(path, reading.as_deref(), format_args!("header {what}: {}", shown(&e.to_string())))
    })
}

/// A tensor whose own figures agree, at `begin..end` of the data.
struct Placed {
    name: String,
    dtype: String,
    shape: Vec<i64>,
    begin: u64,
    end: u64,
}

impl Placed {
    fn new(path: &Path, name: String, raw: RawTensor) -> Result<Self> {
        let RawTensor { dtype, shape, data_offsets } = raw;
        let wrong = |message: String| defect(path, Some(&name), message);
        let Some(&(_, bits)) = DTYPES.iter().find(|(known, _)| *known == dtype) else {
            let known: Vec<_> = DTYPES.iter().map(|(name, _)| *name).collect();
            return Err(wrong(format!("dtype is '{}', expected one of {}", shown(&dtype), known.join(", "))));
        };
        let Some((begin, end)) = offsets(&data_offsets) else {
            let found = shown(&format!("{data_offsets:?}"));
            return Err(wrong(format!("data_offsets are {found}, expected [begin, end] with 0 <= begin <= end")));
        };
        let elements = elements(&shape).map_err(|why| wrong(format!("shape is {}, {why}", shown_shape(&shape))))?;
        // Less than 2^63 elements of at most 64 bits: no overflow.
        let total = u128::from(elements) * u128::from(bits);
        if !total.is_multiple_of(8) {
            let shape = shown_shape(&shape);
            return Err(wrong(format!("{dtype} of shape {shape} comes to {total} bits, expected whole bytes")));
        }
        let (wanted, found) = (total / 8, end - begin);
        if wanted != u128::from(found) {
            let shape = shown_shape(&shape);
            return Err(wrong(format!(
                "data_offsets [{begin}, {end}] hold {found} bytes, expected {wanted} for {dtype} of shape {shape}"
            )));
        }
        Ok(Self { name, dtype, shape, begin, end })
    }
}

fn offsets(data_offsets: &[i64]) -> Option<(u64, u64)> {
    let &[begin, end] = data_offsets else { return None };
    let (begin, end) = (u64::try_from(begin).ok()?, u64::try_from(end).ok()?);
    (begin <= end).then_some((begin, end))
}

/// The product of the dimensions. Zeros are left out of the check for overflow, so that the product of any subset of
/// the dimensions is safe too.
fn elements(shape: &[i64]) -> std::result::Result<u64, &'static str> {
    let mut product = 1i64;
    for &dimension in shape {
        if dimension < 0 {
            return Err("expected dimensions of 0 or more");
        }
        product = product.checked_mul(dimension.max(1)).ok_or("expected fewer than 2^63 elements")?;
    }
    Ok(if shape.contains(&0) { 0 } else { product.unsigned_abs() })
}

fn shown_shape(shape: &[i64]) -> String {
    shown(&format!("{shape:?}"))
}

/// Puts the tensors in the order of their data, and checks that no name is there twice and that they fill the file
/// from byte `data` on without overlap or hole.
fn check_places(path: &Path, tensors: &mut [Placed], data: u64, file: u64) -> Result<()> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(twice) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(defect(path, Some(&twice[0].name), "name is there twice, expected once"));
    }
    // Tensors without elements come before the tensor at the same place.
    tensors.sort_by_key(|tensor| (tensor.begin, tensor.end));
    let available = file - data;
    if let Some(cut) = tensors.iter().find(|tensor| tensor.end > available) {
        let wanted = data + tensors.iter().map(|tensor| tensor.end).max().unwrap_or(0);
        let message = format!("file is truncated: header wants {wanted} bytes, file has {file}: get it again");
        return Err(defect(path, Some(&cut.name), message));
    }
    let (mut filled, mut previous) = (0, None::<&Placed>);
    for tensor in tensors.iter() {
        let begin = tensor.begin;
        let before = previous.map_or_else(|| "the header".to_string(), |p| format!("tensor '{}'", shown(&p.name)));
        if begin < filled {
            let message = format!("data begin at {begin}, expected {filled}: they overlap those of {before}");
            return Err(defect(path, Some(&tensor.name), message));
        }
        if begin > filled {
            let hole = begin - filled;
            let message =
                format!("data begin at {begin}, expected {filled}: there is a hole of {hole} bytes after {before}");
            return Err(defect(path, Some(&tensor.name), message));
        }
        (filled, previous) = (tensor.end, Some(tensor));
    }
    if filled < available {
        let left = available - filled;
        let message = format!("{left} bytes are left over after the last tensor, expected {} in all", data + filled);
        return Err(defect(path, None, message));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file with `json` as its header and `data` bytes of data.
    pub(crate) fn file(json: &str, data: usize) -> Vec<u8> {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.extend((0..data).map(|i| i as u8));
        file
    }

    fn message(file: &[u8]) -> String {
        match parse(Path::new("m.safetensors"), file) {
            Err(QuantError::Metadata { message, .. }) => message,
            other => panic!("expected a metadata error, found {other:?}"),
        }
    }

    const VALID: &str = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"F32","shape":[2,3],"data_offsets":[2,26]},
        "scalar":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},
        "none":{"dtype":"F64","shape":[4,0],"data_offsets":[26,26]},
        "half":{"dtype":"F4","shape":[3,2],"data_offsets":[26,29],"extra":[{}]}}  "#;

    #[test]
    fn a_valid_file_is_read() {
        let bytes = file(VALID, 29);
        let header = parse(Path::new("m.safetensors"), &bytes).unwrap();
        assert_eq!(header.metadata["format"], "pt");
        let data = 8 + VALID.len();
        let found: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.offset - data, t.bytes)).collect();
        assert_eq!(found, [("scalar", 0, 2), ("b", 2, 24), ("none", 26, 0), ("half", 26, 3)]);
        assert_eq!(header.tensors[1].shape, [2, 3]);
        assert_eq!(header.tensors[1].dtype, "F32");
        assert!(parse(Path::new("m.safetensors"), &file("{}", 0)).unwrap().tensors.is_empty());
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
            (r#"{"__metadata__":{"a":1}}"#, 0, "header is not understood: invalid type: integer"),
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
            assert!(found.starts_with("m.safetensors: ") && !found.contains('\n'), "{found}");
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
            assert!(parse(Path::new("m.safetensors"), &valid[..i]).is_err(), "cut to {i} bytes");
            for bit in 0..8 {
                let mut damaged = valid.clone();
                damaged[i] ^= 1 << bit;
                if let Ok(header) = parse(Path::new("m.safetensors"), &damaged) {
                    assert!(header.tensors.iter().all(|t| t.offset + t.bytes <= damaged.len()));
                }
            }
        }
    }
}
