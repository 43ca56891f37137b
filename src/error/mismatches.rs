//! What does not fit of tensors, and what of a quantized model cannot be validated.

use std::fmt;
use std::path::PathBuf;

use arrow::datatypes::DataType;
use arrow_quant_formats::shown;
use arrow_quant_kernels::Dtype;

use super::Words;

/// What does not fit: a tensor in two models, or the values that a tensor is made of.
#[derive(Debug)]
#[non_exhaustive]
pub enum ShapeProblem {
    /// The tensor has another shape in the quantized model.
    Differs {
        /// The shape in the original.
        original: Vec<i64>,
        /// The shape in the quantized model.
        quantized: Vec<i64>,
    },
    /// The quantized model does not have the tensor.
    NotInQuantized,
    /// The original does not have the tensor.
    NotInOriginal,
    /// The quantized model names the tensor, and its files have no weights of it.
    NoWeights {
        /// The quantized model.
        quantized: PathBuf,
    },
    /// Bytes are not those of a tensor of this shape.
    Bytes {
        /// How many there are.
        found: u64,
        /// The type of the elements.
        dtype: Dtype,
        /// The shape.
        shape: Vec<i64>,
    },
    /// The place for restored weights has another size.
    Room {
        /// Elements that it has room for.
        found: u64,
        /// Elements of the tensor.
        expected: u64,
    },
    /// A chunk has another number of weights than its place.
    ChunkLength {
        /// The chunk.
        row: usize,
        /// Its weights.
        found: usize,
        /// The weights of its place.
        expected: usize,
    },
    /// A chunk is NULL.
    NullChunk {
        /// Its row.
        row: usize,
    },
    /// A table does not have a column of quantized tensors, or it has NULLs.
    NoColumn {
        /// The column.
        name: String,
        /// All columns of such a table.
        expected: Vec<String>,
    },
    /// The column for quantized values has others.
    NotQuantized,
    /// The chunks of a tensor cannot be put together.
    Chunks {
        /// What is wrong with them.
        problem: String,
    },
    /// An element is NULL.
    Null {
        /// Its index along the first dimension.
        at: usize,
    },
    /// Lists that are rows of a tensor have unequal lengths.
    UnequalRows {
        /// The first list that has another length.
        at: usize,
        /// Its length.
        found: usize,
        /// The length of those before it.
        expected: usize,
    },
    /// A tensor of this shape cannot have an Arrow type.
    ArrowType {
        /// The shape.
        shape: Vec<i64>,
        /// The type.
        data_type: DataType,
    },
}

impl ShapeProblem {
    /// Writes the sentence about a tensor, or about one without a name.
    pub(super) fn write(&self, tensor: Option<&str>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = tensor.map(shown);
        let subject = name.as_deref().unwrap_or("the tensor");
        let place = name.as_deref().map_or_else(String::new, |name| format!("{name}: "));
        match self {
            Self::Differs { original, quantized } => write!(
                f,
                "{subject} has shape {original:?} in the original and {quantized:?} in the quantized model: they are not the \
                 same model"
            ),
            Self::NotInQuantized => {
                write!(f, "{subject} is missing from the quantized model: they are not the same model")
            }
            Self::NotInOriginal => write!(f, "{subject} is missing from the original: they are not the same model"),
            Self::NoWeights { quantized } => {
                write!(f, "{place}`{}` has no weights of it, quantize the model again", quantized.display())
            }
            Self::Bytes { found, dtype, shape } => {
                write!(f, "{place}{found} bytes are not the elements of a tensor of {dtype} with shape {shape:?}")
            }
            Self::Room { found, expected } => write!(f, "{place}{found} elements are no room for {expected}"),
            Self::ChunkLength { row, found, expected } => {
                write!(f, "{place}row {row} has {found} weights, expected {expected}")
            }
            Self::NullChunk { row } => write!(f, "{place}the column 'quantized' is NULL at {row}"),
            Self::NoColumn { name, expected } => {
                write!(f, "the table has no column '{name}' without NULLs; expected: {}", expected.join(", "))
            }
            Self::NotQuantized => f.write_str("the column 'quantized' does not hold quantized values"),
            Self::Chunks { problem } => write!(f, "{place}{problem}"),
            Self::Null { at } => write!(f, "{subject} has a NULL at {at}: a tensor has none, fill it or leave it out"),
            Self::UnequalRows { at, found, expected } => write!(
                f,
                "{place}the list at {at} has {found} elements, those before it {expected}: the rows of a tensor are of equal \
                 length"
            ),
            Self::ArrowType { shape, data_type } => {
                write!(f, "{place}a tensor of shape {shape:?} cannot be {data_type}")
            }
        }
    }
}

/// What of a quantized model cannot be validated.
#[derive(Debug)]
#[non_exhaustive]
pub enum ValidationProblem {
    /// A calibration was given, and the model was quantized without one.
    Uncalibrated {
        /// The quantized model.
        quantized: PathBuf,
    },
    /// The smoothing that is stored of a layer has another number of channels than its weights.
    SmoothedChannels,
    /// A timestep of the calibration is not in exactly one time group of the quantized model.
    TimeGroups {
        /// The timestep.
        timestep: i64,
        /// The state of the layer, empty if it has one state.
        state: String,
        /// Time groups that have the timestep.
        groups: usize,
    },
}

impl ValidationProblem {
    /// Writes the sentence, about a tensor if one alone is wrong.
    pub(super) fn write(&self, tensor: Option<&str>, words: &dyn Words, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = tensor.map(shown).unwrap_or_default();
        match self {
            Self::Uncalibrated { quantized } => write!(
                f,
                "`{}` was quantized without a calibration: leave out {}, or quantize the model with it",
                quantized.display(),
                words.setting("calibration")
            ),
            Self::SmoothedChannels => write!(f, "{name}: its smoothing is of another number of channels"),
            Self::TimeGroups { timestep, state, groups } => {
                write!(f, "{name}: timestep {timestep}")?;
                if !state.is_empty() {
                    write!(f, " in the state '{state}'")?;
                }
                write!(f, " is in {groups} time groups of the quantized model, expected 1")
            }
        }
    }
}
