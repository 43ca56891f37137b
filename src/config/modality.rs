//! What a model makes.

use std::fmt;
use std::str::FromStr;

use arrow_quant_formats::shown;
use serde::{Deserialize, Serialize};

use crate::{QuantError, Result};

/// What a model makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Text, encoders and language models by diffusion among them.
    Text,
    /// Source code.
    Code,
    /// Pictures.
    Image,
    /// Sound, or text from sound.
    Audio,
}

impl Modality {
    /// Every modality and its name.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::Text, "text"), (Self::Code, "code"), (Self::Image, "image"), (Self::Audio, "audio")];
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(modality, _)| modality == self).map_or("", |(_, name)| name);
        f.pad(name)
    }
}

impl FromStr for Modality {
    type Err = QuantError;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(modality, _)| *modality).ok_or_else(|| QuantError::field("modality", modality_not_allowed(text)))
    }
}

/// That a text is not a modality.
pub(crate) fn modality_not_allowed(text: &str) -> String {
    format!("modality is '{}', allowed: text, code, image or audio", shown(text))
}
