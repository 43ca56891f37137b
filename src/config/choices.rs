//! Settings that are one of a few values, each with its name.

use std::fmt;
use std::str::FromStr;

use arrow_quant_kernels::{Bits, GroupSize, Method, Scheme};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Allowed, Problem, Refused};
use crate::{QuantError, Result};

/// A type with a few values, each of which is written as a name or a number.
pub trait Choice: Copy + PartialEq + 'static {
    /// Every value, and how it is written.
    fn all() -> Vec<(Self, Value)>;
}

/// An enum whose variants have one name each, which is a field of a configuration.
macro_rules! choices {
    (
        $(#[$attribute:meta])* $name:ident, $field:literal, $allowed:literal,
        $($(#[$of_variant:meta])* $variant:ident = $text:literal),+ $(,)?
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$of_variant])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value and its name.
            pub const ALL: [(Self, &'static str); [$($text),+].len()] = [$((Self::$variant, $text)),+];

            /// The name as users type it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl Choice for $name {
            fn all() -> Vec<(Self, Value)> {
                Self::ALL.map(|(choice, name)| (choice, name.into())).to_vec()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = QuantError;

            fn from_str(text: &str) -> Result<Self> {
                let found = Self::ALL.into_iter().find(|(_, name)| *name == text);
                found.map(|(choice, _)| choice).ok_or_else(|| {
                    Refused::new($field, Problem::Value { found: text.into(), allowed: Allowed::words($allowed) }).into()
                })
            }
        }
    };
}

choices! {
    /// Where the quantized model will run: one name for the values of many fields.
    #[derive(Default)]
    DeploymentProfile, "deployment_profile", "edge, local or cloud",
    /// Smallest: 2 bits, groups of 256.
    Edge = "edge",
    /// Balanced: 4 bits, groups of 128.
    #[default]
    Local = "local",
    /// Closest to the original: 8 bits, groups of 64.
    Cloud = "cloud",
}

choices! {
    /// What a model makes.
    Modality, "modality", "text, code, image or audio",
    /// Text, encoders and language models by diffusion among them.
    Text = "text",
    /// Source code.
    Code = "code",
    /// Pictures.
    Image = "image",
    /// Sound, or text from sound.
    Audio = "audio",
}

choices! {
    /// Where time groups end.
    Boundaries, "time_group_boundaries", "optimal or equal",
    /// Where the least is lost; fewer groups where they gain less than half a dB, in the mean and at the worst timestep, and
    /// are no worse than equal ones.
    Optimal = "optimal",
    /// After equal numbers of timesteps, or as nearly as possible.
    Equal = "equal",
}

/// Types of the kernels, by what writes their values.
macro_rules! choices_of_kernels {
    ($($name:ident, $written:ident;)+) => {$(
        impl Choice for $name {
            fn all() -> Vec<(Self, Value)> {
                Self::ALL.iter().map(|choice| (*choice, choice.$written().into())).collect()
            }
        }
    )+};
}

choices_of_kernels! {
    Bits, get;
    GroupSize, get;
    Scheme, name;
    Method, name;
}

/// Bits of a single tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// The tensor is quantized to this width.
    Bits(Bits),
    /// The tensor keeps its dtype; written as 16.
    Keep,
}

impl Width {
    /// The width of codes; `None` if the tensor is kept.
    pub const fn bits(self) -> Option<Bits> {
        match self {
            Self::Bits(bits) => Some(bits),
            Self::Keep => None,
        }
    }
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bits().map_or(16, Bits::get))
    }
}

impl Choice for Width {
    fn all() -> Vec<(Self, Value)> {
        let widths = Bits::ALL.iter().map(|bits| Self::Bits(*bits)).chain([Self::Keep]);
        widths.map(|width| (width, width.bits().map_or(16, Bits::get).into())).collect()
    }
}
