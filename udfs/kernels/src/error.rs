//! What the kernels refuse.

/// Why a slice was not quantized, restored or compared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A setting outside its domain.
    #[error("{name} is {value}, allowed: {allowed}")]
    Argument {
        /// The setting.
        name: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A NaN or infinite weight.
    #[error("weight {index} is {value:?}: only finite weights, in the range of f32, can be quantized")]
    NotFinite {
        /// Its index in the slice.
        index: usize,
        /// NaN, inf or -inf; or a binary64 that exceeds binary32.
        value: f64,
    },
    /// A group with a weight of 2¹²⁵ or more in magnitude.
    #[error(
        "the group from weight {index} on spans {min:e} to {max:e}: only magnitudes below 4.25e37 can be quantized"
    )]
    Range {
        /// The group's first weight.
        index: usize,
        /// Its least weight.
        min: f32,
        /// Its greatest weight.
        max: f32,
    },
    /// A block whose scale f16 does not hold.
    #[error("the {block_type} block from weight {index} on spans {min:e} to {max:e}: its scale does not fit in f16")]
    BlockRange {
        /// What it was to become.
        block_type: &'static str,
        /// The block's first weight.
        index: usize,
        /// Its least weight.
        min: f32,
        /// Its greatest weight.
        max: f32,
    },
    /// A buffer of the wrong length.
    #[error("{found} {what} do not divide into runs of {multiple_of}")]
    Length {
        /// What was counted.
        what: &'static str,
        /// How many there were.
        found: usize,
        /// What must divide them.
        multiple_of: usize,
    },
    /// Two buffers that do not fit together.
    #[error("{what}: found {found}, expected {expected}")]
    Mismatch {
        /// What was counted.
        what: &'static str,
        /// How many there were.
        found: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A negative, NaN or infinite importance.
    #[error("importance {index} is {value}, allowed: finite numbers from 0 on")]
    Importance {
        /// The input channel.
        index: usize,
        /// Its importance.
        value: f32,
    },
    /// A factor that is zero, negative, NaN or infinite.
    #[error("factor {index} is {value}, allowed: finite numbers above 0")]
    Factor {
        /// The input channel.
        index: usize,
        /// Its factor.
        value: f32,
    },
    /// Second moments that cannot be factored.
    #[error("the second moments of channel {channel} are {what}")]
    Moments {
        /// The input channel.
        channel: usize,
        /// What is wrong with them.
        what: &'static str,
    },
    /// The result is not wanted any more.
    #[error("the work was cancelled")]
    Cancelled,
    /// `ARROW_QUANT_ISA` names an instruction set that is not there.
    #[error("ARROW_QUANT_ISA is '{found}', this CPU has: {available}")]
    Isa {
        /// The name asked for.
        found: String,
        /// The names there are.
        available: String,
    },
}

impl KernelError {
    /// The same of a slice that starts at an index of a longer one: the indices of weights are the longer one's.
    pub fn within(self, start: usize) -> Self {
        match self {
            Self::NotFinite { index, value } => Self::NotFinite { index: start + index, value },
            Self::Range { index, min, max } => Self::Range { index: start + index, min, max },
            Self::BlockRange { block_type, index, min, max } => {
                Self::BlockRange { block_type, index: start + index, min, max }
            }
            Self::Argument { .. }
            | Self::Length { .. }
            | Self::Mismatch { .. }
            | Self::Importance { .. }
            | Self::Factor { .. }
            | Self::Moments { .. }
            | Self::Cancelled
            | Self::Isa { .. } => self,
        }
    }
}

/// The result of a kernel.
pub type Result<T> = std::result::Result<T, KernelError>;
