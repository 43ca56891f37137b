//! llama.cpp's importance matrices: the mean square of each input channel of a model's weights, as `llama-imatrix` writes
//! them, in a GGUF file or in the older one that has no magic (often `imatrix.dat`).

use super::{Header, MAGIC, TensorType, Value};
use crate::names::shown;

/// What the names of tensors end with in a GGUF file: sums of squares, and how many were added.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// The longest name that the older file may have.
const NAME_BYTES: u32 = 1 << 10;

/// The input of a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelPower {
    /// The weight, as llama.cpp calls it: `blk.0.attn_q.weight`.
    pub name: String,
    /// Input channels.
    pub channels: usize,
    /// What was added up for each expert, 1 or more; one number where there are no experts.
    pub counts: Vec<f64>,
    /// Mean squares by channel, those of one expert after the other; 0 for an expert that nothing was measured of.
    pub mean_squares: Vec<f32>,
}

/// Why a file cannot be read as an importance matrix.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImatrixError {
    /// It is a GGUF file of something else.
    #[error("it is a GGUF file of type {}, expected `imatrix`, as llama-imatrix writes", shown(.0))]
    OtherGguf(String),
    /// The file ends before what it announces.
    #[error(
        "it ends too early: {wanted} bytes should follow byte {at}; the file is truncated, or not an importance matrix"
    )]
    Truncated {
        /// Where something begins.
        at: usize,
        /// Its bytes.
        wanted: u64,
    },
    /// A number of something cannot be.
    #[error("it should have {found} {what}, which cannot be: the file is damaged, or not an importance matrix")]
    Count {
        /// The name of the things counted.
        what: &'static str,
        /// Their number, by the file.
        found: i64,
    },
    /// A weight's entry is wrong.
    #[error("'{}': {problem}", shown(name))]
    Entry {
        /// The weight.
        name: String,
        /// The fault.
        problem: &'static str,
    },
    /// There are no weights.
    #[error("it has no weights")]
    Empty,
}

type Result<T> = std::result::Result<T, ImatrixError>;

/// Reads a GGUF file's tensors; `bytes` are those of the whole file.
///
/// # Errors
/// [`ImatrixError`] if the file is of another type, or its tensors do not go together.
pub fn of_gguf(header: &Header, bytes: &[u8]) -> Result<Vec<ChannelPower>> {
    match header.value("general.type") {
        Some(Value::Text(kind)) if kind == "imatrix" => {}
        Some(Value::Text(kind)) => return Err(ImatrixError::OtherGguf(kind.clone())),
        _ => return Err(ImatrixError::OtherGguf("model".to_string())),
    }
    let floats = |name: &str| -> Option<(&[i64], Vec<f32>)> {
        let tensor = header.tensors.iter().find(|tensor| tensor.name == name && tensor.kind == TensorType::F32)?;
        let range = usize::try_from(tensor.range.start).ok()?..usize::try_from(tensor.range.end).ok()?;
        Some((&tensor.shape, numbers(bytes.get(range)?)))
    };
    let mut found = Vec::new();
    for tensor in &header.tensors {
        let Some(name) = tensor.name.strip_suffix(SUMS) else { continue };
        let wrong = |problem| ImatrixError::Entry { name: name.to_string(), problem };
        let (shape, sums) = floats(&tensor.name).ok_or_else(|| wrong("its sums are not F32"))?;
        let (_, counts) = floats(&format!("{name}{COUNTS}")).ok_or_else(|| wrong("it has no counts in F32"))?;
        let channels = shape.last().and_then(|&channels| usize::try_from(channels).ok()).unwrap_or_default();
        if channels == 0 || counts.is_empty() || sums.len() != channels * counts.len() {
            return Err(wrong("it has not a sum for each channel and count"));
        }
        let counts = counts.into_iter().map(f64::from).collect();
        found.push(power(name, channels, counts, sums)?);
    }
    if found.is_empty() { Err(ImatrixError::Empty) } else { Ok(found) }
}

/// Whether a file begins as GGUF files do.
pub fn is_gguf(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Reads the older file, as a whole.
///
/// # Errors
/// [`ImatrixError`] if it is none.
pub fn of_legacy(bytes: &[u8]) -> Result<Vec<ChannelPower>> {
    let mut at = 0;
    let entries = count(bytes, &mut at, "weights")?;
    let mut found = Vec::new();
    for _ in 0..entries {
        let length = count(bytes, &mut at, "bytes of a name")?;
        if length > NAME_BYTES {
            return Err(ImatrixError::Count { what: "bytes of a name", found: length.into() });
        }
        let name = take(bytes, &mut at, length.into())?;
        let name = String::from_utf8_lossy(name).into_owned();
        let calls = count(bytes, &mut at, "calls")?;
        let values = count(bytes, &mut at, "channels")?;
        let sums = numbers(take(bytes, &mut at, 4 * u64::from(values))?);
        found.push(power(&name, sums.len(), vec![f64::from(calls.max(1))], sums)?);
    }
    Ok(found)
}

/// Mean squares out of sums.
fn power(name: &str, channels: usize, counts: Vec<f64>, sums: Vec<f32>) -> Result<ChannelPower> {
    let wrong = |problem| ImatrixError::Entry { name: name.to_string(), problem };
    if channels == 0 {
        return Err(wrong("it has no channels"));
    }
    if counts.iter().any(|count| !count.is_finite() || *count < 0.0) {
        return Err(wrong("a count is no number from 0 on"));
    }
    let of_expert = |(sums, count): (&[f32], &f64)| -> Vec<f32> {
        let count = if *count > 0.0 { *count } else { 1.0 };
        sums.iter().map(|&sum| (f64::from(sum) / count) as f32).collect()
    };
    let mean_squares: Vec<f32> = sums.chunks(channels).zip(&counts).flat_map(of_expert).collect();
    if mean_squares.iter().any(|square| !square.is_finite() || *square < 0.0) {
        return Err(wrong("a sum of squares is no number from 0 on"));
    }
    Ok(ChannelPower { name: name.to_string(), channels, counts, mean_squares })
}

/// A number of things, from 0 on.
fn count(bytes: &[u8], at: &mut usize, what: &'static str) -> Result<u32> {
    let found = take(bytes, at, 4)?.first_chunk().map_or(-1, |bytes| i32::from_le_bytes(*bytes));
    match u32::try_from(found) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(ImatrixError::Count { what, found: found.into() }),
    }
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, length: u64) -> Result<&'a [u8]> {
    let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
    let taken = end.and_then(|end| bytes.get(*at..end));
    let taken = taken.ok_or(ImatrixError::Truncated { at: *at, wanted: length })?;
    *at += taken.len();
    Ok(taken)
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{NewTensor, parse, write_header};

    fn legacy(entries: &[(&str, i32, &[f32])]) -> Vec<u8> {
        let mut bytes = (entries.len() as i32).to_le_bytes().to_vec();
        for (name, calls, sums) in entries {
            bytes.extend((name.len() as i32).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(calls.to_le_bytes());
            bytes.extend((sums.len() as i32).to_le_bytes());
            bytes.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
        }
        bytes
    }

    #[test]
    fn the_older_file_is_read_and_checked() {
        let whole = legacy(&[("blk.0.attn_q.weight", 4, &[8.0, 2.0, 0.0])]);
        let mut with_tail = whole.clone();
        with_tail.extend([7, 0, 0, 0, 3, 0, 0, 0, b'a', b'.', b'b']);
        for bytes in [&whole, &with_tail] {
            let found = of_legacy(bytes).unwrap();
            assert_eq!((found[0].name.as_str(), found[0].channels), ("blk.0.attn_q.weight", 3));
            assert_eq!(found[0].mean_squares, [2.0, 0.5, 0.0]);
        }
        for cut in 0..whole.len() {
            assert!(of_legacy(&whole[..cut]).is_err(), "{cut}");
        }
        for wrong in
            [legacy(&[]), legacy(&[("a", -1, &[1.0])]), legacy(&[("a", 1, &[])]), legacy(&[("a", 1, &[f32::NAN])])]
        {
            assert!(of_legacy(&wrong).is_err());
        }
        assert!(matches!(of_legacy(&[0xFF; 64]), Err(ImatrixError::Count { .. })));
    }

    fn gguf(kind: &str, tensors: &[(&str, Vec<i64>, &[f32])]) -> Vec<u8> {
        let new: Vec<NewTensor> = tensors
            .iter()
            .map(|(name, shape, _)| NewTensor {
                name: (*name).to_string(),
                shape: shape.clone(),
                kind: TensorType::F32,
            })
            .collect();
        let written = write_header(&[("general.type".to_string(), Value::from(kind))], &new).unwrap();
        let mut bytes = written.header.clone();
        for ((_, _, values), offset) in tensors.iter().zip(&written.offsets) {
            bytes.resize(*offset as usize, 0);
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        bytes.resize(written.length as usize, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<ChannelPower>> {
        of_gguf(&parse(bytes, bytes.len() as u64).unwrap().unwrap(), bytes)
    }

    #[test]
    fn a_gguf_file_has_counts_for_each_expert() {
        let sums: &[f32] = &[2.0, 4.0, 0.0, 0.0, 9.0, 3.0];
        let bytes = gguf(
            "imatrix",
            &[("e.weight.in_sum2", vec![3, 2], sums), ("e.weight.counts", vec![3, 1], &[2.0, 0.0, 3.0])],
        );
        let found = read(&bytes).unwrap();
        assert_eq!(found[0].name, "e.weight");
        assert_eq!((found[0].channels, found[0].counts.as_slice()), (2, [2.0, 0.0, 3.0].as_slice()));
        assert_eq!(found[0].mean_squares, [1.0, 2.0, 0.0, 0.0, 3.0, 1.0]);
        assert!(matches!(read(&gguf("model", &[])), Err(ImatrixError::OtherGguf(_))));
        assert_eq!(read(&gguf("imatrix", &[])), Err(ImatrixError::Empty));
        let without = read(&gguf("imatrix", &[("e.in_sum2", vec![1, 2], &[1.0, 2.0])]));
        assert!(matches!(without, Err(ImatrixError::Entry { problem: "it has no counts in F32", .. })));
    }
}
