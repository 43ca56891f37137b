//! What an error is about, as values: for front ends that hand errors to programs.

use std::path::Path;

use super::{Origin, QuantError};

/// The kinds of errors that programs tell apart: one for each exception of the Python package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A setting or argument is not allowed.
    Configuration,
    /// Something is where an output should go.
    OutputExists,
    /// There is no readable model.
    ModelNotFound,
    /// A file contradicts itself, or is not understood.
    Metadata,
    /// Two models that should hold the same tensors do not.
    ShapeMismatch,
    /// Quality is below the floor, or cannot be judged.
    Validation,
    /// Something else ended the work: a weight, a file, a query.
    Quantization,
}

impl Kind {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::OutputExists => "output_exists",
            Self::ModelNotFound => "model_not_found",
            Self::Metadata => "metadata",
            Self::ShapeMismatch => "shape_mismatch",
            Self::Validation => "validation",
            Self::Quantization => "quantization",
        }
    }
}

/// What an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About<'a> {
    /// Its kind.
    pub kind: Kind,
    /// The tensor, where it is one.
    pub tensor: Option<&'a str>,
    /// The field of the configuration or the argument, where it is one.
    pub field: Option<&'a str>,
    /// The file or directory, where it is one.
    pub path: Option<&'a Path>,
}

impl QuantError {
    /// What the error is about.
    pub fn about(&self) -> About<'_> {
        let of = |kind| About { kind, tensor: None, field: None, path: None };
        match self {
            Self::Refused(refused) => {
                let path = match &refused.origin {
                    Some(Origin::File(path)) => Some(path.as_path()),
                    Some(Origin::Profile(_) | Origin::Variable(_) | Origin::Flag(_) | Origin::Explicit) | None => None,
                };
                About { field: refused.field.as_deref(), path, ..of(Kind::Configuration) }
            }
            Self::Configuration { field, path, .. } => {
                About { field: field.as_deref(), path: path.as_deref(), ..of(Kind::Configuration) }
            }
            Self::Setting { field, .. } => About { field: Some(field), ..of(Kind::Configuration) },
            Self::Output { path, .. } => About { path: Some(path), ..of(Kind::OutputExists) },
            Self::ModelNotFound { path, .. } => About { path: Some(path), ..of(Kind::ModelNotFound) },
            Self::Metadata { path, tensor, .. } => {
                About { path: Some(path), tensor: tensor.as_deref(), ..of(Kind::Metadata) }
            }
            Self::Language { path, problem } => match problem.setting() {
                Some(field) => About { path: Some(path), field: Some(field), ..of(Kind::Configuration) },
                None => About { path: Some(path), ..of(Kind::Metadata) },
            },
            Self::UnknownModality { path } => About { path: Some(path), ..of(Kind::Metadata) },
            Self::ShapeMismatch { tensor, .. } => About { tensor: tensor.as_deref(), ..of(Kind::ShapeMismatch) },
            Self::Validation { tensor, .. } => About { tensor: tensor.as_deref(), ..of(Kind::Validation) },
            Self::BelowFloor { tensor, .. } => About { tensor: Some(tensor), ..of(Kind::Validation) },
            Self::Quantization { tensor, .. } => About { tensor: tensor.as_deref(), ..of(Kind::Quantization) },
            Self::Weights { tensor, .. } => About { tensor: Some(tensor), ..of(Kind::Quantization) },
            Self::Io { path, .. } | Self::Changed { path, .. } => About { path: Some(path), ..of(Kind::Quantization) },
            Self::Unfinished { problem } => problem.about(),
            Self::Threads { .. } | Self::Access(_) | Self::Query(_) => of(Kind::Quantization),
        }
    }
}
