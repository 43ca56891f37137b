//! Settings that are one of a few values, each with its name.

use std::fmt;
use std::str::FromStr;

use arrow_quant_formats::gguf::language::Mix;
use arrow_quant_kernels::{self as kernels, Bits, BlockType, Dtype, Fill, GroupSize, Scheme};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Allowed, Problem, Refused, listed};
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
    /// What a quantized model is written as.
    Format, "format", "arrow-quant, gguf, sdnq, compressed-tensors, mlx, comfyui or safetensors",
    /// The quantized model directory.
    ArrowQuant = "arrow-quant",
    /// One file, as llama.cpp loads it.
    Gguf = "gguf",
    /// A directory, as diffusers loads it with SDNQ.
    Sdnq = "sdnq",
    /// A directory, as vLLM and transformers load it.
    CompressedTensors = "compressed-tensors",
    /// A directory, as mlx-lm loads it.
    Mlx = "mlx",
    /// One file, as ComfyUI loads it.
    ComfyUi = "comfyui",
    /// Floats, in a directory or in one file.
    Safetensors = "safetensors",
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

choices! {
    /// How parameters are found: scales and minima of groups, or of blocks.
    Method, "method", "minmax, mse, unbiased, ldlq or reference",
    /// From the range of a group alone.
    MinMax = "minmax",
    /// By a search for the least squared error.
    Mse = "mse",
    /// As `mse`, and then stretched so that restored weights do not shrink.
    Unbiased = "unbiased",
    /// As `mse`, and then rounded with error feedback from the second moments of inputs.
    Ldlq = "ldlq",
    /// The bytes of blocks that ggml makes.
    Reference = "reference",
}

impl Method {
    /// Whether weights whose inputs have second moments are rounded with error feedback.
    pub const fn feeds_back(self) -> bool {
        match self {
            Self::Ldlq => true,
            Self::MinMax | Self::Mse | Self::Unbiased | Self::Reference => false,
        }
    }

    /// The method that finds scales, by the name that SQL has for it.
    pub(crate) const fn of_grids(self) -> &'static str {
        if self.feeds_back() { Self::Mse.name() } else { self.name() }
    }

    /// The method of grouped integers. `None` if they have none of this name.
    pub const fn of_integers(self) -> Option<kernels::Method> {
        match self {
            Self::MinMax => Some(kernels::Method::MinMax),
            Self::Mse | Self::Ldlq => Some(kernels::Method::Mse),
            Self::Unbiased => Some(kernels::Method::Unbiased),
            Self::Reference => None,
        }
    }

    /// How blocks are filled. `None` if they have no method of this name.
    pub const fn of_blocks(self) -> Option<Fill> {
        match self {
            Self::Mse | Self::Ldlq => Some(Fill::Mse),
            Self::Reference => Some(Fill::Reference),
            Self::MinMax | Self::Unbiased => None,
        }
    }
}

/// What weights become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// Integers of a width, in groups that share a scale.
    Int(Bits),
    /// Blocks of ggml.
    Block(BlockType),
    /// Blocks of several types, each for some tensors.
    Mix(Mix),
    /// Floats: nothing is quantized.
    Float(Dtype),
}

impl WeightType {
    /// The floats that weights can become.
    pub const FLOATS: &'static [Dtype] = &[listed::FLOATS[0].0, listed::FLOATS[1].0, listed::FLOATS[2].0];

    /// The name as users type it: `int4`, `q4_k`, `q4_k_m`, `f16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int(bits) => bits.name(),
            Self::Block(block_type) => block_type.name(),
            Self::Mix(mix) => mix.name(),
            Self::Float(Dtype::F64) => "f64",
            Self::Float(Dtype::F32) => "f32",
            Self::Float(Dtype::F16) => "f16",
            Self::Float(Dtype::BF16) => "bf16",
        }
    }

    /// Bits of a code; of a mix, of most codes; of floats the most that a code can have.
    pub const fn bits(self) -> Bits {
        match self {
            Self::Int(bits) => bits,
            Self::Block(block_type) => block_type.bits(),
            Self::Mix(mix) => mix.base().bits(),
            Self::Float(_) => Bits::Eight,
        }
    }

    /// Whether weights can become this by a method.
    pub const fn has(self, method: Method) -> bool {
        match self {
            Self::Int(_) => method.of_integers().is_some(),
            Self::Block(_) | Self::Mix(_) => method.of_blocks().is_some(),
            Self::Float(_) => true,
        }
    }

    /// The methods by which weights can become this, in words.
    pub(crate) const fn methods(self) -> &'static str {
        match self {
            Self::Int(_) => "minmax, mse, unbiased or ldlq",
            Self::Block(_) | Self::Mix(_) => "mse, ldlq or reference",
            Self::Float(_) => "any",
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for WeightType {
    type Err = QuantError;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::all().into_iter().find(|(weight_type, _)| weight_type.name() == text);
        found.map(|(weight_type, _)| weight_type).ok_or_else(|| {
            let problem = Problem::Value { found: text.into(), allowed: Allowed::words(listed::TYPES) };
            Refused::new("type", problem).into()
        })
    }
}

impl Choice for WeightType {
    fn all() -> Vec<(Self, Value)> {
        let integers = Bits::ALL.iter().copied().map(Self::Int);
        let blocks = BlockType::FILLED.iter().copied().map(Self::Block);
        let mixes = Mix::ALL.iter().copied().map(Self::Mix);
        let floats = Self::FLOATS.iter().copied().map(Self::Float);
        integers
            .chain(blocks)
            .chain(mixes)
            .chain(floats)
            .map(|weight_type| (weight_type, weight_type.name().into()))
            .collect()
    }
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
}

/// What a single tensor becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// The tensor is quantized to this type; grouped integers are written as their bits, blocks by their name.
    Of(WeightType),
    /// The tensor keeps its dtype; written as 16.
    Keep,
}

impl Width {
    /// The type; `None` if the tensor is kept.
    pub const fn weight_type(self) -> Option<WeightType> {
        match self {
            Self::Of(weight_type) => Some(weight_type),
            Self::Keep => None,
        }
    }
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(WeightType::Int(bits)) => write!(f, "{}", bits.get()),
            Self::Of(weight_type @ (WeightType::Block(_) | WeightType::Mix(_) | WeightType::Float(_))) => {
                f.write_str(weight_type.name())
            }
            Self::Keep => f.write_str("16"),
        }
    }
}

impl Choice for Width {
    fn all() -> Vec<(Self, Value)> {
        let written = |(weight_type, name)| match weight_type {
            WeightType::Int(bits) => Some((Self::Of(weight_type), bits.get().into())),
            WeightType::Block(_) => Some((Self::Of(weight_type), name)),
            // Which of its types a tensor would have, a mix says of models, not of tensors.
            WeightType::Mix(_) => None,
            // To keep a tensor is to write 16.
            WeightType::Float(_) => None,
        };
        WeightType::all().into_iter().filter_map(written).chain([(Self::Keep, 16.into())]).collect()
    }
}
