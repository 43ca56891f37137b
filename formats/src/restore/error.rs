//! Why a checkpoint cannot be restored.

use std::fmt;

use crate::StoredType;
use crate::names::shown;
use crate::schemes::Sign;

/// Why a checkpoint cannot be restored.
#[derive(Debug)]
pub enum RestoreError<E> {
    /// A stored tensor cannot be read.
    Read(E),
    /// A tensor is not as its layout asks for.
    Tensor(Unrestorable),
}

/// A tensor that cannot be restored.
#[derive(Debug, Clone, PartialEq)]
pub struct Unrestorable {
    /// Its name.
    pub tensor: String,
    /// Why.
    pub problem: RestoreProblem,
}

impl<E> RestoreError<E> {
    pub(super) fn of(tensor: &str, problem: RestoreProblem) -> Self {
        Self::Tensor(Unrestorable { tensor: tensor.to_string(), problem })
    }
}

impl fmt::Display for Unrestorable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor '{}': {}", shown(&self.tensor), self.problem)
    }
}

impl std::error::Error for Unrestorable {}

/// What is wrong with a quantized tensor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreProblem {
    /// A tensor that belongs to it is not there.
    #[error("has no '{}' beside it, without which its codes are not weights: get the file again", shown(part))]
    Missing {
        /// The name of the other tensor.
        part: String,
    },
    /// A tensor that belongs to it has another type than the layout.
    #[error("'{}' is {found}, expected {expected}", shown(part))]
    Type {
        /// The name of the tensor with the type.
        part: String,
        /// Its type.
        found: StoredType,
        /// What it may be.
        expected: &'static str,
    },
    /// Shapes do not fit each other.
    #[error("'{}' has the shape {}, expected {}", shown(part), shown(&format!("{found:?}")), shown(expected))]
    Shape {
        /// The name of the tensor with the shape.
        part: String,
        /// Its shape.
        found: Vec<i64>,
        /// What it should be.
        expected: String,
    },
    /// A setting of the quantization is not one that is read.
    #[error("{key} is {}, allowed: {allowed}", shown(found))]
    Setting {
        /// The setting.
        key: String,
        /// What it is.
        found: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A setting of the quantization is not there.
    #[error("the configuration does not say {key}, allowed: {allowed}; give the directory that has it")]
    NoSetting {
        /// The setting.
        key: &'static str,
        /// What it may be.
        allowed: &'static str,
    },
    /// The index of a group is beyond the groups.
    #[error("'{}' has the index {found} of a group, expected 0 to {most}", shown(part))]
    Group {
        /// The name of the tensor with the index.
        part: String,
        /// The index.
        found: i64,
        /// The greatest that is allowed.
        most: u64,
    },
    /// A description in the file is not the JSON that was expected.
    #[error("'{}' is not understood: {}", shown(part), shown(found))]
    Json {
        /// The tensor or key that has it.
        part: String,
        /// What is wrong.
        found: String,
    },
    /// A part of the layout that is not read.
    #[error("'{}' belongs to a layout that is not read", shown(part))]
    Part {
        /// The name of the other tensor.
        part: String,
    },
    /// Something of another layout is left over.
    #[error("is not of a layout that is read: {sign}")]
    NotUnderstood {
        /// What tells.
        sign: Sign,
    },
}
