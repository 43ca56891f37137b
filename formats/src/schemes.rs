//! Checkpoints that another program quantized: which scheme they have, and what tells. Their scales and codes are no weights,
//! so a model must not be made of them unread.
//!
//! What a configuration claims is believed if the tensors agree: dequantized copies often keep the claim. What tensors show
//! needs no claim. Names alone show nothing, as models have scales and codebooks of their own; a rule asks for the type of a
//! tensor and for another tensor of the same module.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::StoredType;
use crate::names::shown;

mod claims;
mod rules;

use claims::CLAIMING_FILES;
pub use claims::{Claim, claim_of_config, claim_of_metadata, is_only_claim, without_claims};

/// One row a scheme: variant, its name for people, and what configurations call it.
macro_rules! schemes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, [$($method:literal)|*];)+) => {
        /// How another program quantized weights.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum QuantizationScheme {
            $($(#[$doc])* $variant,)+
            /// One that only its configuration names.
            Other(String),
        }

        impl QuantizationScheme {
            /// The scheme that a configuration names, such as `gptq` as a `quant_method`.
            pub fn named(method: &str) -> Self {
                let name = method.to_ascii_lowercase().replace('_', "-");
                let is_one_of = |names: &[&str]| names.contains(&name.as_str());
                $(if is_one_of(&[$($method),*]) {
                    return Self::$variant;
                })+
                Self::Other(shown(method))
            }
        }

        impl fmt::Display for QuantizationScheme {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($name),)+
                    Self::Other(name) => f.write_str(name),
                }
            }
        }
    };
}

schemes! {
    /// Packed integers with zero points, columns in an order of their own.
    Gptq = "GPTQ", ["gptq" | "gptq-v2" | "gptqmodel" | "marlin" | "gptq-marlin"];
    /// Packed integers with zero points, interleaved.
    Awq = "AWQ", ["awq" | "awq-marlin"];
    /// The packing of GPTQ with the rounding of Intel's AutoRound.
    AutoRound = "AutoRound", ["auto-round" | "autoround" | "intel/auto-round" | "auto-round:auto-gptq"];
    /// FP8 with a scale a tensor, row or block.
    ScaledFp8 = "FP8 with scales", ["fp8" | "fbgemm-fp8" | "finegrained-fp8" | "float8"];
    /// The formats of compressed-tensors.
    CompressedTensors = "compressed-tensors", ["compressed-tensors" | "sparseml"];
    /// The formats of NVIDIA's ModelOpt but for NVFP4.
    ModelOpt = "ModelOpt", ["modelopt" | "modelopt-fp8"];
    /// FP4 in blocks of 16, with FP8 scales and one of the whole.
    Nvfp4 = "NVFP4", ["nvfp4" | "modelopt-fp4" | "modelopt-nvfp4"];
    /// FP4 in blocks of 32, with powers of two as scales.
    Mxfp4 = "MXFP4", ["mxfp4"];
    /// Codebooks of 16 values with a scale a block.
    Bitsandbytes4 = "bitsandbytes with 4 bits", ["bitsandbytes-4bit" | "nf4"];
    /// 8-bit integers with a scale a row.
    Bitsandbytes8 = "bitsandbytes with 8 bits", ["bitsandbytes-8bit" | "llm.int8"];
    /// bitsandbytes, where nothing tells the bits.
    Bitsandbytes = "bitsandbytes", ["bitsandbytes" | "bnb"];
    /// Packed integers with scales and offsets of Apple's MLX.
    Mlx = "MLX", ["mlx"];
    /// SD.Next's integers with scales and zero points.
    Sdnq = "SDNQ", ["sdnq" | "sdnq-training"];
    /// Subclasses of tensors of optimum-quanto.
    Quanto = "quanto", ["quanto"];
    /// Subclasses of tensors of torchao.
    Torchao = "torchao", ["torchao"];
    /// Half-quadratic quantization.
    Hqq = "HQQ", ["hqq"];
    /// 8-bit integers with a scale a column.
    Eetq = "EETQ", ["eetq"];
    /// Low-rank parts and 4-bit integers, packed for nunchaku.
    SvdQuant = "SVDQuant", ["svdquant" | "nunchaku" | "nunchaku-lite"];
    /// The layers of ComfyUI, which say their format one by one.
    ComfyUi = "ComfyUI", [];
    /// Sums of codebooks.
    Aqlm = "AQLM", ["aqlm"];
    /// Lattice codebooks.
    QuipSharp = "QuIP#", ["quip" | "quip#" | "quip-sharp"];
    /// Vector codebooks.
    Vptq = "VPTQ", ["vptq"];
    /// Integers with outliers beside.
    Spqr = "SpQR", ["spqr"];
    /// Codebooks for Gaussian weights.
    Higgs = "HIGGS", ["higgs"];
    /// Ternary weights.
    BitNet = "BitNet", ["bitnet"];
    /// The format of ExLlamaV2.
    Exl2 = "EXL2", ["exl2"];
    /// The format of ExLlamaV3.
    Exl3 = "EXL3", ["exl3"];
    /// Packed integers of MLC.
    Mlc = "MLC", ["mlc"];
    /// The formats of AMD's Quark.
    Quark = "Quark", ["quark"];
    /// Blocks of ggml.
    Ggml = "ggml blocks", ["gguf" | "ggml"];
    /// Integers with scales, of no program that is known.
    ScaledIntegers = "integers with scales", [];
}

/// What tells a scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sign {
    /// A key of a configuration.
    Config {
        /// The file, relative to the model's directory.
        file: PathBuf,
        /// The key, and its value where that is short.
        key: String,
    },
    /// A key of the metadata of a file of weights.
    Metadata {
        /// The key.
        key: String,
    },
    /// A tensor with another beside it.
    Tensor {
        /// Its name.
        name: String,
        /// The type of its elements.
        stored: StoredType,
        /// The other tensor; empty if it needs none.
        beside: String,
    },
    /// A tensor of a GGUF file.
    Blocks {
        /// Its name.
        name: String,
        /// The type of its blocks.
        kind: &'static str,
    },
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config { file, key } => write!(f, "{} has {}", shown(&file.to_string_lossy()), shown(key)),
            Self::Metadata { key } => write!(f, "the metadata of the weights has {}", shown(key)),
            Self::Blocks { name, kind } => write!(f, "tensor '{}' is {kind}", shown(name)),
            Self::Tensor { name, stored, beside } if beside.is_empty() => {
                write!(f, "tensor '{}' is {stored}", shown(name))
            }
            Self::Tensor { name, stored, beside } => {
                write!(f, "tensor '{}' is {stored} and has '{}' beside it", shown(name), shown(beside))
            }
        }
    }
}

/// A quantized checkpoint of another program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizedSource {
    /// How its weights were quantized.
    pub scheme: QuantizationScheme,
    /// What tells, at least one.
    pub signs: Vec<Sign>,
    /// Whether the tensors agree. If not, a configuration claims it of weights that are plain.
    pub is_in_tensors: bool,
}

impl fmt::Display for QuantizedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signs: Vec<String> = self.signs.iter().map(ToString::to_string).collect();
        write!(f, "{} ({})", self.scheme, signs.join("; "))
    }
}

/// A tensor as the rules look at it.
#[derive(Debug, Clone, Copy)]
pub struct SchemeTensor<'a> {
    /// Its name, unique among those given.
    pub name: &'a str,
    /// The type of its elements.
    pub stored: StoredType,
    /// Its dimensions.
    pub shape: &'a [i64],
}

/// Finds out whether a component was quantized by another program. `claims` are what configurations and metadata say of it,
/// and `tensors` all it has, in the order of their names.
pub fn recognize(claims: &[Claim], tensors: &[SchemeTensor<'_>]) -> Option<QuantizedSource> {
    let shown_by = rules::first_match(tensors);
    let Some(claim) = claims.first() else {
        let (scheme, sign) = shown_by?;
        return Some(QuantizedSource { scheme, signs: vec![sign], is_in_tensors: true });
    };
    let is_in_tensors = shown_by.is_some() || tensors.iter().any(|tensor| holds_codes(tensor));
    let scheme = match (&claim.scheme, &shown_by) {
        // A configuration may leave out what the tensors tell.
        (
            QuantizationScheme::Bitsandbytes | QuantizationScheme::ModelOpt | QuantizationScheme::Mlx,
            Some((scheme, _)),
        ) => scheme.clone(),
        (claimed, _) => claimed.clone(),
    };
    let signs = std::iter::once(claim.sign.clone()).chain(shown_by.map(|(_, sign)| sign)).collect();
    Some(QuantizedSource { scheme, signs, is_in_tensors })
}

/// The first tensor that shows a quantization, by its name, and what shows it.
pub fn first_sign(tensors: &[SchemeTensor<'_>]) -> Option<(String, Sign)> {
    let (_, sign) = rules::first_match(tensors)?;
    match &sign {
        Sign::Tensor { name, .. } => Some((name.clone(), sign)),
        Sign::Config { .. } | Sign::Metadata { .. } | Sign::Blocks { .. } => None,
    }
}

/// Whether a tensor may hold codes, if a configuration says that there are some: a matrix at least of small elements.
fn holds_codes(tensor: &SchemeTensor<'_>) -> bool {
    use StoredType::*;
    let is_small = match tensor.stored {
        U8 | I8 | I16 | U16 | I32 | U32 | F8E4M3 | F8E5M2 | F8E8M0 | F8E4M3Fnuz | F8E5M2Fnuz | F4 | F6E2M3 | F6E3M2 => {
            true
        }
        Bool | I64 | U64 | F16 | BF16 | F32 | F64 | C64 => false,
    };
    is_small && tensor.shape.len() > 1
}

/// The files, relative to a model's directory, whose claims are of a component.
pub fn claiming_files(component: &str) -> impl Iterator<Item = PathBuf> + '_ {
    CLAIMING_FILES.iter().map(move |file| Path::new(component).join(file))
}

#[cfg(test)]
mod tests;
