//! Why a tensor became what it is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a tensor has its encoding, or was kept. [`Display`](fmt::Display) gives the sentence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The configuration's bits and group size.
    BitWidth,
    /// An entry of `layer_bit_widths`.
    LayerBitWidths {
        /// The name or pattern of the entry.
        layer: String,
    },
    /// A name in `sensitive_layer_names`.
    SensitiveLayerNames {
        /// The name.
        name: String,
    },
    /// A pattern in `sensitive_layer_patterns`.
    SensitiveLayerPatterns {
        /// The pattern.
        pattern: String,
    },
    /// Tensors of this kind are sensitive in the model's architecture.
    SensitiveInFamily {
        /// The architecture.
        family: String,
        /// The pattern that the tensor's name matches.
        pattern: String,
    },
    /// `tensors` does not select it.
    NotSelected,
    /// Its elements are not floating-point numbers that can be quantized.
    NotQuantized {
        /// The type of its elements.
        dtype: String,
    },
    /// It has too few dimensions.
    Dimensions {
        /// How many it has.
        dimensions: usize,
    },
    /// It is a mask, not weights.
    Mask,
    /// All its weights would become zeros as F32.
    BelowF32,
    /// Quantizing would not make it smaller.
    NoSmaller,
    /// The target cannot hold it as it was to be quantized.
    NotHeld {
        /// The target's name.
        target: String,
        /// What the target lacks.
        limit: Limit,
    },
    /// A target size chose for it.
    Target {
        /// The field that holds the target.
        field: String,
    },
    /// A plan that was given.
    Plan,
    /// It is equal to another tensor, and stored with it.
    SameAs {
        /// The other tensor, `component/tensor` in a pipeline.
        tensor: String,
    },
    /// A tensor that is equal to it asked for more precision.
    ForEqual {
        /// Why the other tensor asked.
        reason: Box<Reason>,
        /// The other tensor.
        tensor: String,
    },
    /// It was below the floor with fewer bits.
    Fallback {
        /// The bits it had.
        bits: u8,
        /// What was below the floor.
        shortfall: Shortfall,
    },
    /// The sentence of a directory of version 1 or 2.
    Recorded {
        /// The sentence.
        sentence: String,
    },
}

/// What a target lacks for a tensor to be quantized as was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Limit {
    /// Codes of so many bits.
    Bits {
        /// The bits.
        bits: u8,
    },
    /// Groups of so many weights.
    GroupSize {
        /// Weights of a group.
        group_size: u32,
    },
    /// A scheme.
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// Any encoding for this tensor, which must stay as it is.
    Tensor,
}

/// What of a quantized tensor is below the floor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "measure", rename_all = "snake_case")]
pub enum Shortfall {
    /// The cosine similarity.
    CosineSimilarity {
        /// What was found.
        found: f64,
        /// `min_accuracy`.
        floor: f64,
    },
    /// The SQNR in dB.
    Sqnr {
        /// What was found.
        found: f64,
        /// `min_sqnr_db`.
        floor: f64,
    },
    /// All weights became zero.
    Zeros {
        /// `min_accuracy`.
        floor: f64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BitWidth => f.write_str("bit_width"),
            Self::LayerBitWidths { layer } => write!(f, "layer_bit_widths '{layer}'"),
            Self::SensitiveLayerNames { name } => write!(f, "sensitive_layer_names '{name}'"),
            Self::SensitiveLayerPatterns { pattern } => write!(f, "sensitive_layer_patterns '{pattern}'"),
            Self::SensitiveInFamily { family, pattern } => write!(f, "sensitive in {family}: {pattern}"),
            Self::NotSelected => f.write_str("not selected"),
            Self::NotQuantized { dtype } => write!(f, "{dtype} is not quantized"),
            Self::Dimensions { dimensions } => write!(f, "{dimensions}-D"),
            Self::Mask => f.write_str("a mask"),
            Self::BelowF32 => f.write_str("below the range of F32"),
            Self::NoSmaller => f.write_str("no smaller"),
            Self::NotHeld { target, limit: Limit::Bits { bits } } => write!(f, "{target} has no {bits}-bit codes"),
            Self::NotHeld { target, limit: Limit::GroupSize { group_size } } => {
                write!(f, "{target} has no groups of {group_size}")
            }
            Self::NotHeld { target, limit: Limit::Scheme { scheme } } => write!(f, "{target} has no {scheme} scheme"),
            Self::NotHeld { target, limit: Limit::Tensor } => write!(f, "{target} keeps it"),
            Self::Target { field } => f.write_str(field),
            Self::Plan => f.write_str("plan"),
            Self::SameAs { tensor } => write!(f, "the same as {tensor}"),
            Self::ForEqual { reason, tensor } => write!(f, "{reason}, for {tensor} which is the same"),
            Self::Fallback { bits, shortfall } => write!(f, "fallback: {bits} bits have {shortfall}"),
            Self::Recorded { sentence } => f.write_str(sentence),
        }
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CosineSimilarity { found, floor } => {
                write!(f, "a cosine similarity of {found:.6}, below min_accuracy {floor}")
            }
            Self::Sqnr { found, floor } => write!(f, "an SQNR of {found:.2} dB, below min_sqnr_db {floor}"),
            Self::Zeros { floor } => write!(f, "become all zeros, below min_accuracy {floor}"),
        }
    }
}

/// A reason as manifests and reports hold it: the sentence as `because`, and the value as `reason`. Directories of
/// versions 1 and 2 have the sentence alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Fields", into = "Fields")]
pub struct RecordedReason(Reason);

impl RecordedReason {
    /// The reason.
    pub fn reason(&self) -> &Reason {
        &self.0
    }
}

impl Default for RecordedReason {
    fn default() -> Self {
        Self(Reason::BitWidth)
    }
}

impl fmt::Display for RecordedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Reason> for RecordedReason {
    fn from(reason: Reason) -> Self {
        Self(reason)
    }
}

#[derive(Serialize, Deserialize)]
struct Fields {
    because: String,
    #[serde(default)]
    reason: Option<Reason>,
}

impl From<Fields> for RecordedReason {
    fn from(fields: Fields) -> Self {
        Self(fields.reason.unwrap_or(Reason::Recorded { sentence: fields.because }))
    }
}

impl From<RecordedReason> for Fields {
    fn from(recorded: RecordedReason) -> Self {
        Self { because: recorded.to_string(), reason: Some(recorded.0) }
    }
}
