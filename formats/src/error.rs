//! What can be wrong with a file of weights.

use std::fmt;

use crate::StoredType;
use crate::names::shown;

/// A file that contradicts itself, or is not understood. The file's name is the reader's to tell.
#[derive(Debug, Clone, PartialEq)]
pub struct FormatError {
    /// The tensor, where one is wrong.
    pub tensor: Option<String>,
    /// What is wrong.
    pub problem: Problem,
}

impl FormatError {
    pub(crate) fn file(problem: Problem) -> Self {
        Self { tensor: None, problem }
    }

    pub(crate) fn tensor(tensor: &str, problem: Problem) -> Self {
        Self { tensor: Some(tensor.to_string()), problem }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor '{}': ", shown(tensor))?;
        }
        self.problem.fmt(f)
    }
}

impl std::error::Error for FormatError {}

/// What is wrong with a file of weights.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file is what Git LFS leaves where it did not fetch the weights.
    #[error("file is a Git LFS pointer, not the weights: run `git lfs pull` to get them")]
    LfsPointer,
    /// The file is shorter than the length that it should start with.
    #[error("file has {found} bytes, expected 8 or more of a safetensors file")]
    TooShort {
        /// Bytes of the file.
        found: u64,
    },
    /// The header is longer than any that is read.
    #[error("header length is {found} bytes, expected {most} or fewer of a safetensors file")]
    HeaderTooLong {
        /// The length that the file gives.
        found: u64,
        /// The longest that is read.
        most: u64,
    },
    /// The file ends before its header or data do.
    #[error("file is truncated: header wants {wanted} bytes, file has {found}: get it again")]
    Truncated {
        /// Bytes that the header asks for.
        wanted: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The header is not text.
    #[error("header is not UTF-8 at byte {at} of the file, expected JSON")]
    NotUtf8 {
        /// The first byte that is not.
        at: usize,
    },
    /// The header is text but not JSON.
    #[error("header is not valid JSON: {0}")]
    NotJson(String),
    /// The header is JSON of another structure.
    #[error("header is not understood: {0}")]
    NotUnderstood(String),
    /// The type of a tensor is not known.
    #[error("dtype is '{}', expected one of {}", shown(.0), names_of_types())]
    Type(String),
    /// The offsets of a tensor are not a range.
    #[error("data_offsets are {}, expected [begin, end] with 0 <= begin <= end", shown(&format!("{:?}", .0)))]
    Offsets(Vec<i64>),
    /// A dimension is negative.
    #[error("shape is {}, expected dimensions of 0 or more", shown_shape(.0))]
    NegativeDimension(Vec<i64>),
    /// A tensor has more elements than can be counted.
    #[error("shape is {}, expected fewer than 2^63 elements", shown_shape(.0))]
    TooManyElements(Vec<i64>),
    /// A tensor ends within a byte.
    #[error("{stored} of shape {} comes to {bits} bits, expected whole bytes", shown_shape(shape))]
    PartOfByte {
        /// The type of its elements.
        stored: StoredType,
        /// Its dimensions.
        shape: Vec<i64>,
        /// Bits in all.
        bits: u128,
    },
    /// The offsets of a tensor do not fit its type and shape.
    #[error(
        "data_offsets [{begin}, {end}] hold {} bytes, expected {wanted} for {stored} of shape {}",
        end - begin,
        shown_shape(shape)
    )]
    Size {
        /// The offset of its first byte in the data.
        begin: u64,
        /// The offset after its last byte.
        end: u64,
        /// Bytes that type and shape ask for.
        wanted: u128,
        /// The type of its elements.
        stored: StoredType,
        /// Its dimensions.
        shape: Vec<i64>,
    },
    /// A name is there twice.
    #[error("name is there twice, expected once")]
    Twice,
    /// The data of two tensors overlap.
    #[error("data begin at {begin}, expected {expected}: they overlap those of {}", predecessor(before))]
    Overlap {
        /// Where the tensor's data begin.
        begin: u64,
        /// Where they should.
        expected: u64,
        /// The tensor before it, if there is one.
        before: Option<String>,
    },
    /// There are bytes between two tensors.
    #[error(
        "data begin at {begin}, expected {expected}: there is a hole of {} bytes after {}",
        begin - expected,
        predecessor(before)
    )]
    Hole {
        /// Where the tensor's data begin.
        begin: u64,
        /// Where they should.
        expected: u64,
        /// The tensor before it, if there is one.
        before: Option<String>,
    },
    /// There are bytes after the last tensor.
    #[error("{left} bytes are left over after the last tensor, expected {expected} in all")]
    LeftOver {
        /// Bytes that belong to no tensor.
        left: u64,
        /// Bytes that the file should have.
        expected: u64,
    },
}

fn names_of_types() -> String {
    StoredType::ALL.iter().map(|known| known.name()).collect::<Vec<_>>().join(", ")
}

fn shown_shape(shape: &[i64]) -> String {
    shown(&format!("{shape:?}"))
}

fn predecessor(before: &Option<String>) -> String {
    before.as_ref().map_or_else(|| "the header".to_string(), |name| format!("tensor '{}'", shown(name)))
}
