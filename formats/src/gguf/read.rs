//! Reading headers. They come from strangers: every number is checked before anything is made as large as it says.

use std::collections::HashSet;
use std::ops::Range;

use super::cursor::{Cursor, Stop};
use super::values::Value;
use super::{ALIGNMENT, ALIGNMENT_KEY, GgufError, GgufProblem, MAGIC, TensorType};

/// The longest header that is read. A vocabulary of a quarter of a million tokens takes about ten million bytes.
pub const MAX_HEADER: u64 = 1 << 28;

/// The most dimensions that are read.
const MAX_DIMENSIONS: u32 = 8;

/// The fewest bytes of a key: an empty text is refused, then a type, then a value.
const LEAST_KEY: u64 = 8 + 1 + 4 + 1;

/// The fewest bytes that the header has of a tensor.
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 4 + 8;

/// What a header says, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Keys and values, in the order of the file. Keys are unique.
    pub metadata: Vec<(String, Value)>,
    /// The tensors, in the order of their data.
    pub tensors: Vec<Tensor>,
    /// Where the data begin.
    pub data: u64,
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name, unique in the file.
    pub name: String,
    /// Its dimensions, those of rows last, as in PyTorch.
    pub shape: Vec<i64>,
    /// The type of its weights.
    pub kind: TensorType,
    /// Its bytes, counted from the start of the file.
    pub range: Range<u64>,
}

impl Header {
    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
}

/// Reads the header of a file of `file_length` bytes that begins with `start`. `None` if the header goes on after `start`.
///
/// # Errors
/// [`GgufError`], naming the key or tensor where there is one, if the file is truncated, its header is not understood, or
/// figures in it contradict each other or the file.
pub fn parse(start: &[u8], file_length: u64) -> Result<Option<Header>, GgufError> {
    let mut cursor = Cursor { bytes: start, at: 0, file: file_length, place: None };
    match cursor.header() {
        Ok(header) => Ok(Some(header)),
        Err(Stop::Short { wanted }) if (start.len() as u64) < file_length && wanted <= u128::from(file_length) => {
            let is_too_long = start.len() as u64 >= MAX_HEADER;
            if is_too_long { Err(GgufError::file(GgufProblem::HeaderTooLong(MAX_HEADER))) } else { Ok(None) }
        }
        Err(Stop::Short { wanted }) => {
            Err(GgufError { place: cursor.place, problem: GgufProblem::Truncated { wanted, found: file_length } })
        }
        Err(Stop::Wrong(problem)) => Err(GgufError { place: cursor.place, problem }),
    }
}

impl Cursor<'_> {
    fn header(&mut self) -> Result<Header, Stop> {
        let wrong = |problem| Err(Stop::Wrong(problem));
        let magic = self.bytes.get(..MAGIC.len());
        if magic.is_some_and(|magic| magic != MAGIC) || magic.is_none() && !MAGIC.starts_with(self.bytes) {
            return wrong(GgufProblem::Magic);
        }
        self.at = MAGIC.len().min(self.bytes.len());
        match self.number::<u32>()? {
            2 | 3 => {}
            version if version.swap_bytes() < 1 << 16 => return wrong(GgufProblem::BigEndian),
            version => return wrong(GgufProblem::Version(version)),
        }
        let (tensors, keys) = (self.number::<u64>()?, self.number::<u64>()?);
        self.expect("keys", keys, LEAST_KEY)?;
        self.expect("tensors", tensors, LEAST_TENSOR)?;
        let metadata = self.metadata(keys)?;
        let alignment = alignment(&metadata).map_err(Stop::Wrong)?;
        let mut infos = self.infos(tensors)?;
        self.place = None;
        let data = (self.at as u64).next_multiple_of(alignment);
        let end = self.places(&mut infos, data, alignment)?;
        self.place = None;
        // The last tensor is padded too, though some writers leave that out.
        if self.file >= end.saturating_add(alignment) {
            return wrong(GgufProblem::LeftOver(self.file - end));
        }
        Ok(Header { metadata, tensors: infos.into_iter().map(|(tensor, _)| tensor).collect(), data })
    }

    fn metadata(&mut self, keys: u64) -> Result<Vec<(String, Value)>, Stop> {
        let mut metadata = Vec::new();
        let mut seen = HashSet::new();
        for _ in 0..keys {
            let key = self.name("key", &mut seen)?;
            metadata.push((key, Value::read(self)?));
        }
        Ok(metadata)
    }

    /// A name that was not seen before.
    fn name(&mut self, what: &'static str, seen: &mut HashSet<String>) -> Result<String, Stop> {
        self.place = None;
        let name = self.text()?;
        if name.is_empty() {
            return Err(Stop::Wrong(GgufProblem::Empty(what)));
        }
        self.place = Some(name.clone());
        if !seen.insert(name.clone()) {
            return Err(Stop::Wrong(GgufProblem::Twice));
        }
        Ok(name)
    }

    /// The tensors, and the offset of each in the data.
    fn infos(&mut self, tensors: u64) -> Result<Vec<(Tensor, u64)>, Stop> {
        let mut infos = Vec::new();
        let mut seen = HashSet::new();
        for _ in 0..tensors {
            let name = self.name("name", &mut seen)?;
            let count = self.number::<u32>()?;
            if count > MAX_DIMENSIONS {
                return Err(Stop::Wrong(GgufProblem::Dimensions(count)));
            }
            let dimensions = (0..count).map(|_| self.number::<u64>()).collect::<Result<Vec<_>, _>>()?;
            let number = self.number::<u32>()?;
            let kind = TensorType::of_number(number).ok_or(Stop::Wrong(GgufProblem::TensorType(number)))?;
            let offset = self.number::<u64>()?;
            let (shape, bytes) = size(&dimensions, kind).map_err(Stop::Wrong)?;
            infos.push((Tensor { name, shape, kind, range: 0..bytes }, offset));
        }
        Ok(infos)
    }

    /// Gives tensors their ranges, which must follow each other; and the end of the last.
    fn places(&mut self, infos: &mut [(Tensor, u64)], data: u64, alignment: u64) -> Result<u64, Stop> {
        let mut expected = 0_u64;
        let mut end = data;
        for (tensor, offset) in infos {
            self.place = Some(tensor.name.clone());
            if *offset != expected {
                return Err(Stop::Wrong(GgufProblem::Offset { found: *offset, expected }));
            }
            let wanted = u128::from(data) + u128::from(expected) + u128::from(tensor.range.end);
            if wanted > u128::from(self.file) {
                return Err(Stop::Wrong(GgufProblem::Truncated { wanted, found: self.file }));
            }
            let start = data + expected;
            let after = expected + tensor.range.end;
            expected = after.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
            tensor.range = start..start + tensor.range.end;
            end = tensor.range.end;
        }
        Ok(end)
    }
}

/// Shape and bytes of a tensor whose dimensions are given as in the file, those of rows first.
fn size(dimensions: &[u64], kind: TensorType) -> Result<(Vec<i64>, u64), GgufProblem> {
    let too_large = || GgufProblem::TooLarge(dimensions.to_vec());
    let shape = dimensions.iter().rev().map(|&dimension| i64::try_from(dimension).ok()).collect::<Option<Vec<_>>>();
    let shape = shape.ok_or_else(too_large)?;
    // Zeros are left out of the check, so that the product of any subset of the dimensions is safe too.
    let product = shape.iter().try_fold(1_i64, |product, &dimension| product.checked_mul(dimension.max(1)));
    product.ok_or_else(too_large)?;
    let row = shape.last().copied().unwrap_or(1);
    if !row.unsigned_abs().is_multiple_of(kind.block().0) {
        return Err(GgufProblem::Rows { row, kind });
    }
    let bytes = kind.bytes(crate::elements(&shape)).filter(|bytes| i64::try_from(*bytes).is_ok());
    Ok((shape, bytes.ok_or_else(too_large)?))
}

fn alignment(metadata: &[(String, Value)]) -> Result<u64, GgufProblem> {
    match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT),
        Some((_, Value::U32(alignment))) if alignment.is_power_of_two() => Ok(u64::from(*alignment)),
        Some((_, other)) => Err(GgufProblem::Alignment(crate::shown(&format!("{other:?}")))),
    }
}
