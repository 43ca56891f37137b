//! How a tensor is quantized.

use arrow_quant_kernels::{Bits, GroupSize, KernelError, Settings};
use serde::{Deserialize, Serialize};

/// How a tensor is quantized; scheme and method are the job's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "StoredChoice", try_from = "StoredChoice")]
pub(crate) struct Choice {
    pub bits: Bits,
    pub group_size: GroupSize,
}

/// A choice as plain numbers.
#[derive(Serialize, Deserialize)]
struct StoredChoice {
    bits: i64,
    group_size: i64,
}

impl From<Choice> for StoredChoice {
    fn from(choice: Choice) -> Self {
        Self { bits: choice.bits.get() as i64, group_size: choice.group_size.get() as i64 }
    }
}

impl TryFrom<StoredChoice> for Choice {
    type Error = KernelError;

    fn try_from(stored: StoredChoice) -> Result<Self, KernelError> {
        Ok(Self { bits: stored.bits.try_into()?, group_size: stored.group_size.try_into()? })
    }
}

impl Choice {
    pub(crate) fn with(self, settings: Settings) -> Settings {
        Settings { bits: self.bits, group_size: self.group_size, ..settings }
    }
}
