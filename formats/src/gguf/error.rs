//! What can be wrong with a GGUF file.

use std::fmt;

use super::types::TensorType;
use crate::names::shown;

/// A GGUF file that contradicts itself, or is not understood.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufError {
    /// The tensor or the key, where one is wrong.
    pub place: Option<String>,
    /// What is wrong.
    pub problem: GgufProblem,
}

impl GgufError {
    pub(super) fn file(problem: GgufProblem) -> Self {
        Self { place: None, problem }
    }
}

impl fmt::Display for GgufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "'{}': ", shown(place))?;
        }
        self.problem.fmt(f)
    }
}

impl std::error::Error for GgufError {}

/// What is wrong with a GGUF file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufProblem {
    /// The file begins with something else.
    #[error("file does not begin with GGUF")]
    Magic,
    /// The version is not one that is read.
    #[error("GGUF version is {0}, expected 2 or 3: convert the model again with a current program")]
    Version(u32),
    /// The file was written on a machine with another order of bytes.
    #[error("file is big-endian, expected little-endian: convert the model again")]
    BigEndian,
    /// The file ends before its header or data do.
    #[error("file is truncated: {wanted} bytes are wanted, file has {found}: get it again")]
    Truncated {
        /// Bytes that the header asks for.
        wanted: u128,
        /// Bytes of the file.
        found: u64,
    },
    /// The header is longer than any that is read.
    #[error("header has more than {0} bytes, expected fewer")]
    HeaderTooLong(u64),
    /// A number says how many of something follow, and the file has not so many bytes.
    #[error("{count} {what} are announced, more than fit the file")]
    Count {
        /// What is counted.
        what: &'static str,
        /// How many there should be.
        count: u64,
    },
    /// Text is not UTF-8.
    #[error("text is not UTF-8 at byte {0} of the file")]
    NotUtf8(u64),
    /// A name or key is empty.
    #[error("a {0} is empty")]
    Empty(&'static str),
    /// A name or key is there twice.
    #[error("name is there twice, expected once")]
    Twice,
    /// The type of a value is not known.
    #[error("value is of type {0}, expected 0 to 12")]
    ValueType(u32),
    /// An array holds arrays.
    #[error("value is an array of arrays")]
    Nested,
    /// A truth value is neither 0 nor 1.
    #[error("truth value is {0}, expected 0 or 1")]
    Truth(u8),
    /// The alignment is not a power of two.
    #[error("alignment is {0}, expected a power of two")]
    Alignment(String),
    /// A tensor has too many dimensions.
    #[error("tensor has {0} dimensions, expected 8 or fewer")]
    Dimensions(u32),
    /// A tensor has more elements or bytes than can be counted.
    #[error("shape is {}, expected fewer than 2^63 bytes", shown(&format!("{:?}", .0)))]
    TooLarge(Vec<u64>),
    /// The type of a tensor is not known.
    #[error("tensor is of type {0}, which is not known")]
    TensorType(u32),
    /// The rows of a tensor are not whole blocks.
    #[error("rows have {row} weights, expected a multiple of {block} for {kind}", block = kind.block().0)]
    Rows {
        /// Weights of a row.
        row: i64,
        /// The type.
        kind: TensorType,
    },
    /// The data of a tensor are at another place than the tensors before it leave for them.
    #[error("data begin at {found}, expected {expected}")]
    Offset {
        /// The offset that the header gives.
        found: u64,
        /// Where the data of the tensors before it end.
        expected: u64,
    },
    /// There are bytes after the last tensor.
    #[error("{0} bytes are left over after the last tensor")]
    LeftOver(u64),
}
