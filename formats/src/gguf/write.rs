//! Writing headers.

use super::values::{Element, Value};
use super::{ALIGNMENT, MAGIC, TensorType, VERSION};

/// A tensor that is about to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions, those of rows last.
    pub shape: Vec<i64>,
    /// The type of its weights.
    pub kind: TensorType,
}

/// A header, and where what follows it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// The start of the file, up to where data begin.
    pub header: Vec<u8>,
    /// Where the data of each tensor begin, counted from the start of the file.
    pub offsets: Vec<u64>,
    /// Bytes of each tensor.
    pub bytes: Vec<u64>,
    /// Bytes of the file: the last tensor is padded as all are.
    pub length: u64,
}

impl NewTensor {
    /// Bytes of its weights. `None` if they cannot be counted.
    pub fn bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1_u64, |product, d| product.checked_mul(d.unsigned_abs()))?;
        self.kind.bytes(elements)
    }
}

/// The header of a file with these keys and tensors, whose data follow in this order, each at the next multiple of
/// [`ALIGNMENT`]. `None` if the tensors have more bytes than can be counted.
pub fn write_header(metadata: &[(String, Value)], tensors: &[NewTensor]) -> Option<Written> {
    let mut header = MAGIC.to_vec();
    VERSION.write(&mut header);
    (tensors.len() as u64).write(&mut header);
    (metadata.len() as u64).write(&mut header);
    for (key, value) in metadata {
        key.write(&mut header);
        value.write(&mut header);
    }
    let (mut next, mut offsets, mut bytes) = (0_u64, Vec::new(), Vec::new());
    for tensor in tensors {
        tensor.name.write(&mut header);
        (tensor.shape.len() as u32).write(&mut header);
        tensor.shape.iter().rev().for_each(|dimension| dimension.write(&mut header));
        tensor.kind.number().write(&mut header);
        next.write(&mut header);
        offsets.push(next);
        bytes.push(tensor.bytes()?);
        next = next.checked_add(tensor.bytes()?)?.checked_next_multiple_of(ALIGNMENT)?;
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    let data = header.len() as u64;
    offsets.iter_mut().for_each(|offset| *offset += data);
    Some(Written { header, offsets, bytes, length: data.checked_add(next)? })
}

#[cfg(test)]
mod tests {
    use super::super::{Array, GgufError, Header, parse};
    use super::*;

    fn metadata() -> Vec<(String, Value)> {
        let value = |key: &str, value: Value| (key.to_string(), value);
        vec![
            value("general.architecture", "llama".into()),
            value("a.u8", 7_u8.into()),
            value("a.i8", (-7_i8).into()),
            value("a.u16", 7_u16.into()),
            value("a.i16", (-7_i16).into()),
            value("a.i32", (-7_i32).into()),
            value("a.u64", u64::MAX.into()),
            value("a.i64", i64::MIN.into()),
            value("a.f32", 0.5_f32.into()),
            value("a.f64", 0.1_f64.into()),
            value("a.bool", true.into()),
            value("a.tokens", vec!["a".to_string(), "ß".to_string(), String::new()].into()),
            value("a.scores", vec![0.5_f32, -1e4].into()),
            value("a.types", vec![1_i32, 3].into()),
            value("a.flags", vec![true, false].into()),
        ]
    }

    fn tensor(name: &str, shape: &[i64], kind: TensorType) -> NewTensor {
        NewTensor { name: name.to_string(), shape: shape.to_vec(), kind }
    }

    fn tensors() -> Vec<NewTensor> {
        vec![
            tensor("token_embd.weight", &[3, 256], TensorType::Q4K),
            tensor("output_norm.weight", &[5], TensorType::F32),
            tensor("blk.0.ffn_gate_exps.weight", &[2, 3, 32], TensorType::Q8_0),
            tensor("none", &[0, 32], TensorType::Q4_0),
        ]
    }

    /// A whole file, its data zeros.
    fn file() -> Vec<u8> {
        let written = write_header(&metadata(), &tensors()).unwrap();
        let mut bytes = written.header;
        bytes.resize(written.length as usize, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Header, GgufError> {
        parse(bytes, bytes.len() as u64).map(|header| header.expect("all of the file is there"))
    }

    #[test]
    fn a_written_header_is_read_back() {
        let written = write_header(&metadata(), &tensors()).unwrap();
        let header = read(&file()).unwrap();
        assert_eq!(header.metadata, metadata());
        assert_eq!(header.data, written.header.len() as u64);
        assert_eq!(header.value("a.flags"), Some(&Value::Array(Array::Bool(vec![true, false]))));
        for ((found, tensor), (offset, bytes)) in
            header.tensors.iter().zip(tensors()).zip(written.offsets.iter().zip(&written.bytes))
        {
            assert_eq!((&found.name, &found.shape, found.kind), (&tensor.name, &tensor.shape, tensor.kind));
            assert_eq!(found.range, *offset..offset + bytes);
            assert!(offset.is_multiple_of(ALIGNMENT));
        }
        assert_eq!(header.tensors[0].range.end - header.tensors[0].range.start, 3 * 144);
        assert!(write_header(&[], &[tensor("w", &[i64::MAX, 32], TensorType::F32)]).is_none());
    }

    #[test]
    fn a_header_that_goes_on_asks_for_more() {
        let (whole, header) = (file(), write_header(&metadata(), &tensors()).unwrap().header.len());
        let mut is_whole = false;
        for length in 0..whole.len() {
            let parsed = parse(&whole[..length], whole.len() as u64).unwrap();
            assert!(!is_whole || parsed.is_some(), "{length}");
            is_whole = parsed.is_some();
            assert!(is_whole || length < header, "{length}");
        }
        assert!(is_whole);
    }

    #[test]
    fn no_damage_to_a_file_panics() {
        let valid = file();
        let header = write_header(&metadata(), &tensors()).unwrap().header.len();
        let last = valid.len() - ALIGNMENT as usize;
        for end in 0..last {
            assert!(read(&valid[..end]).is_err(), "cut to {end} bytes");
        }
        for i in 0..header {
            for bit in 0..8 {
                let mut damaged = valid.clone();
                damaged[i] ^= 1 << bit;
                if let Ok(header) = read(&damaged) {
                    assert!(header.tensors.iter().all(|t| t.range.end <= damaged.len() as u64));
                }
            }
        }
        // Random bytes in random places, several at once.
        let mut state = 12345_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let mut damaged = valid.clone();
            for _ in 0..1 + random(6) {
                let (at, byte) = (random(header), [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)]);
                damaged[at] = byte;
            }
            let _ = read(&damaged);
            let _ = parse(&damaged[..random(damaged.len())], u64::MAX);
        }
    }

    /// What is wrong with a file in which a run of bytes is another.
    fn message(at: usize, bytes: &[u8]) -> String {
        let mut damaged = file();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        read(&damaged).unwrap_err().to_string()
    }

    #[test]
    fn each_defect_is_named() {
        let valid = file();
        let find = |text: &[u8]| valid.windows(text.len()).position(|found| found == text).unwrap();
        let all = u64::MAX.to_le_bytes();
        let embedding = find(b"token_embd.weight") + 17;
        let cases: &[(usize, &[u8], &str)] = &[
            (0, b"GGML", "file does not begin with GGUF"),
            (4, &[1, 0, 0, 0], "GGUF version is 1, expected 2 or 3"),
            (4, &[0, 0, 0, 3], "file is big-endian"),
            (8, &all, "18446744073709551615 tensors are announced, more than fit the file"),
            (16, &all, "18446744073709551615 keys are announced"),
            (24, &all, "18446744073709551615 bytes of text are announced"),
            (32, &[0xff], "text is not UTF-8 at byte 32 of the file"),
            (24 + 8 + 20, &[13, 0, 0, 0], "'general.architecture': value is of type 13"),
            (find(b"a.i8"), b"a.u8", "'a.u8': name is there twice"),
            (find(b"a.bool") + 10, &[2], "'a.bool': truth value is 2, expected 0 or 1"),
            (find(b"a.tokens") + 12, &[9], "'a.tokens': value is an array of arrays"),
            (find(b"a.tokens") + 16, &all, "'a.tokens': 18446744073709551615 values are announced"),
            (embedding, &[9], "'token_embd.weight': tensor has 9 dimensions, expected 8 or fewer"),
            (embedding + 4, &[32], "'token_embd.weight': rows have 288 weights, expected a multiple of 256 for Q4_K"),
            (embedding + 11, &[0x80], "'token_embd.weight': shape is [9223372036854776064, 3], expected fewer"),
            (embedding + 19, &[0x7f], "expected fewer than 2^63 bytes"),
            (embedding + 20, &[4], "'token_embd.weight': tensor is of type 4, which is not known"),
            (embedding + 24, &[32], "'token_embd.weight': data begin at 32, expected 0"),
            (embedding + 12, &[4], "'output_norm.weight': data begin at 448, expected 576"),
        ];
        for (at, bytes, expected) in cases {
            let found = message(*at, bytes);
            assert!(found.contains(expected), "'{found}' does not contain '{expected}'");
            assert!(!found.contains('\n'), "{found}");
        }
        let mut long = valid.clone();
        long.resize(valid.len() + 64, 0);
        assert!(read(&long).unwrap_err().to_string().contains("bytes are left over after the last tensor"));
        let cut = &valid[..valid.len() - 64];
        let message = parse(cut, cut.len() as u64).unwrap_err().to_string();
        assert!(message.contains("file is truncated"), "{message}");
    }

    #[test]
    fn another_alignment_is_read() {
        let mut metadata = vec![("general.alignment".to_string(), Value::U32(1))];
        let header = write_header(&metadata, &[]).unwrap().header;
        assert_eq!(
            parse(&header, header.len() as u64).unwrap_err().to_string().as_str(),
            "7 bytes are left over after the last tensor"
        );
        metadata[0].1 = Value::U32(24);
        let header = write_header(&metadata, &[]).unwrap().header;
        assert!(read(&header).unwrap_err().to_string().contains("alignment is U32(24), expected a power of two"));
    }
}
