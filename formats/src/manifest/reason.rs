//! Why a tensor became what it is.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Why a tensor has its encoding, or was kept. [`worded`](Self::worded) and `Display` give the sentence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The configuration's bits and group size.
    BitWidth,
    /// The configuration's block type.
    Type,
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
    /// Blocks of a type do not divide its rows: it has a type of shorter blocks, or was kept.
    Rows {
        /// The block type that was asked for.
        block_type: String,
        /// Weights of such a block.
        block_length: u32,
        /// Weights of a row.
        row_length: u64,
    },
    /// Groups of a size do not divide its rows, and the target has whole groups alone: it has smaller ones, or was kept.
    GroupRows {
        /// The group size that was asked for.
        group_size: u32,
        /// Weights of a row.
        row_length: u64,
    },
    /// The target cannot hold it as it was to be quantized.
    NotHeld {
        /// The target's name.
        target: String,
        /// What the target lacks.
        limit: Limit,
    },
    /// The target does not hold it.
    LeftOut {
        /// The target's name.
        target: String,
        /// Why.
        why: Omission,
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
    /// It is of one layer with another tensor, to those who load it, which asked for more precision.
    OneLayer {
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
    /// A sentence alone: directories of versions 1 and 2 have no more, and those of later programs can have reasons of
    /// kinds that are not known here.
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
    /// Blocks of a type.
    BlockType {
        /// The block type.
        block_type: String,
    },
    /// A scheme.
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// Any encoding for this tensor, which must stay as it is.
    Tensor,
}

/// Why a tensor is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Omission {
    /// It is a head that is the embedding.
    Tied,
    /// It is a buffer that the loader computes.
    Computed,
    /// It is of another part of the model, or of a block that the model does not use.
    OtherPart,
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

/// The sentence with the names of fields, as manifests have it.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.worded(&str::to_string))
    }
}

impl Reason {
    /// The sentence. `called` gives the name of a setting, whose field it is given.
    pub fn worded(&self, called: &dyn Fn(&str) -> String) -> String {
        match self {
            Self::BitWidth => called("bit_width"),
            Self::Type => called("type"),
            Self::LayerBitWidths { layer } => format!("{} '{layer}'", called("layer_bit_widths")),
            Self::SensitiveLayerNames { name } => format!("{} '{name}'", called("sensitive_layer_names")),
            Self::SensitiveLayerPatterns { pattern } => format!("{} '{pattern}'", called("sensitive_layer_patterns")),
            Self::SensitiveInFamily { family, pattern } => format!("sensitive in {family}: {pattern}"),
            Self::NotSelected => "not selected".to_string(),
            Self::NotQuantized { dtype } => format!("{dtype} is not quantized"),
            Self::Dimensions { dimensions } => format!("{dimensions}-D"),
            Self::Mask => "a mask".to_string(),
            Self::BelowF32 => "below the range of F32".to_string(),
            Self::NoSmaller => "no smaller".to_string(),
            Self::Rows { block_type, block_length, row_length } => {
                format!("rows of {row_length} are no multiple of {block_length}, as {block_type} needs")
            }
            Self::GroupRows { group_size, row_length } => {
                format!("rows of {row_length} are no multiple of groups of {group_size}")
            }
            Self::NotHeld { target, limit: Limit::Bits { bits } } => format!("{target} has no {bits}-bit codes"),
            Self::NotHeld { target, limit: Limit::GroupSize { group_size } } => {
                format!("{target} has no groups of {group_size}")
            }
            Self::NotHeld { target, limit: Limit::BlockType { block_type } } => format!("{target} has no {block_type}"),
            Self::NotHeld { target, limit: Limit::Scheme { scheme } } => format!("{target} has no {scheme} scheme"),
            Self::NotHeld { target, limit: Limit::Tensor } => format!("{target} keeps it"),
            Self::LeftOut { target, why } => {
                let why = match why {
                    Omission::Tied => "the head is the embedding",
                    Omission::Computed => "it is computed when the model is loaded",
                    Omission::OtherPart => "it is of another part of the model",
                };
                format!("not in {target}: {why}")
            }
            Self::Target { field } => called(field),
            Self::Plan => "plan".to_string(),
            Self::SameAs { tensor } => format!("the same as {tensor}"),
            Self::ForEqual { reason, tensor } => format!("{}, for {tensor} which is the same", reason.worded(called)),
            Self::OneLayer { reason, tensor } => {
                format!("{}, for {tensor} in one layer with it", reason.worded(called))
            }
            Self::Fallback { bits, shortfall } => format!("fallback: {bits} bits have {}", shortfall.worded(called)),
            Self::Recorded { sentence } => sentence.clone(),
        }
    }
}

impl Shortfall {
    /// What a tensor has, or a number of bits. `called` gives the name of a setting, whose field it is given.
    pub fn worded(&self, called: &dyn Fn(&str) -> String) -> String {
        let accuracy = || called("min_accuracy");
        match self {
            Self::CosineSimilarity { found, floor } => {
                format!("a cosine similarity of {found:.6}, below {} {floor}", accuracy())
            }
            Self::Sqnr { found, floor } => format!("an SQNR of {found:.2} dB, below {} {floor}", called("min_sqnr_db")),
            Self::Zeros { floor } => format!("nothing but zeros, below {} {floor}", accuracy()),
        }
    }
}

/// A reason as manifests and reports hold it: the sentence as `because`, and the value as `reason`. Directories of
/// versions 1 and 2 have the sentence alone. Reasons inform, so a value that is not understood is not an error: the
/// sentence then stands for it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Fields")]
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

#[derive(Deserialize)]
struct Fields {
    because: String,
    #[serde(default)]
    reason: Option<Value>,
}

impl From<Fields> for RecordedReason {
    fn from(Fields { because, reason }: Fields) -> Self {
        let known = reason.and_then(|reason| Reason::deserialize(reason).ok());
        Self(known.unwrap_or(Reason::Recorded { sentence: because }))
    }
}

impl Serialize for RecordedReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Fields", 2)?;
        fields.serialize_field("because", &self.to_string())?;
        fields.serialize_field("reason", &self.0)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The tags of a type: what serde would have taken in the place of one that there is not.
    fn tags<T: for<'de> Deserialize<'de> + fmt::Debug>(tag: &str) -> Vec<String> {
        let error = T::deserialize(json!({ tag: "?" })).unwrap_err().to_string();
        error.split('`').skip(3).step_by(2).map(str::to_string).collect()
    }

    #[test]
    fn every_kind_is_in_the_document() {
        let document = include_str!("../../../docs/format.md");
        let (kinds, limits, measures) = (tags::<Reason>("kind"), tags::<Limit>("kind"), tags::<Shortfall>("measure"));
        assert!(kinds.contains(&"same_as".to_string()), "{kinds:?}");
        assert!(limits.len() > 1 && measures.len() > 1, "{limits:?} {measures:?}");
        for kind in kinds {
            assert!(document.contains(&format!("\n| `{kind}` |")), "docs/format.md does not say what `{kind}` is");
        }
        for tag in limits.into_iter().chain(measures) {
            assert!(document.contains(&format!("`{tag}`")), "docs/format.md does not say what `{tag}` is");
        }
    }
}
