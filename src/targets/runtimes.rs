//! Which program loads what, and what is written for a program where nothing else is asked for.

use serde::Serialize;
use serde_json::Value;

use super::TARGETS;
use crate::config::{Format, WeightType};

/// One row a program: its name, the format that is written for it, a type and a group size.
macro_rules! runtimes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $format:ident, $type:literal, $group_size:expr;)+) => {
        /// A program that loads quantized models.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Runtime { $($(#[$doc])* $variant),+ }

        impl Runtime {
            /// Every program.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name as users type it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// Fields of a configuration, each with its value: the format that the program loads, and a type and a group size
            /// that suit it.
            pub fn settings(self) -> Vec<(&'static str, Value)> {
                let (format, weight_type, group_size): (_, &str, Option<u64>) = match self {
                    $(Self::$variant => (Format::$format, $type, $group_size)),+
                };
                let settings = [("format", format.name().into()), ("type", weight_type.into())];
                settings.into_iter().chain(group_size.map(|size| ("group_size", size.into()))).collect()
            }
        }
    };
}

runtimes! {
    /// llama.cpp, and what is built on it.
    LlamaCpp = "llama.cpp", Gguf, "q4_k_m", None;
    /// vLLM and SGLang.
    Vllm = "vllm", CompressedTensors, "int4", Some(32);
    /// Transformers.
    Transformers = "transformers", CompressedTensors, "int4", Some(32);
    /// Diffusers, InvokeAI and SD.Next.
    Diffusers = "diffusers", Sdnq, "int4", Some(64);
    /// ComfyUI without further nodes.
    ComfyUi = "comfyui", ComfyUi, "int4", Some(64);
    /// mlx-lm.
    Mlx = "mlx", Mlx, "int4", Some(64);
}

/// What one format holds, and which programs load it.
#[derive(Debug, Clone, Serialize)]
pub struct FormatReport {
    /// The format.
    pub format: &'static str,
    /// Programs that load it.
    pub runtimes: &'static str,
    /// What is written.
    pub output: &'static str,
    /// Types that weights can become.
    pub types: Vec<&'static str>,
    /// Weights of a group, of types that have groups.
    pub group_sizes: Vec<usize>,
    /// Schemes of such types.
    pub schemes: Vec<&'static str>,
    /// What else there is to know.
    pub limits: &'static str,
}

/// Every format, in the order of the documentation.
pub fn formats() -> Vec<FormatReport> {
    Format::ALL.iter().filter_map(|(format, _)| report(*format)).collect()
}

fn report(format: Format) -> Option<FormatReport> {
    let target = TARGETS.iter().find(|target| target.allowed().target == format.name())?;
    let allowed = target.allowed();
    let (runtimes, output, limits) = about(format);
    let is_held = |weight_type: &WeightType| match weight_type {
        WeightType::Int(bits) => allowed.bits.contains(bits),
        WeightType::Block(block_type) => allowed.block_types.contains(block_type),
        // Only GGUF has mixes, which are llama.cpp's.
        WeightType::Mix(mix) => format == Format::Gguf && allowed.block_types.contains(&mix.base()),
        WeightType::Float(dtype) => allowed.floats.contains(dtype),
    };
    let types = <WeightType as crate::config::Choice>::all().into_iter().map(|(weight_type, _)| weight_type);
    Some(FormatReport {
        format: format.name(),
        runtimes,
        output,
        types: types.filter(is_held).map(WeightType::name).collect(),
        group_sizes: allowed.group_sizes.iter().map(|size| size.get()).collect(),
        schemes: allowed.schemes.iter().map(|scheme| scheme.name()).collect(),
        limits,
    })
}

/// Which programs load a format, what an output is, and limits.
fn about(format: Format) -> (&'static str, &'static str, &'static str) {
    match format {
        Format::ArrowQuant => ("arrow-quant", "a directory of Parquet files", "none"),
        Format::Gguf => (
            "llama.cpp; ComfyUI-GGUF, stable-diffusion.cpp, diffusers",
            "one file",
            "language and diffusion models that are known; blocks must divide rows, or another type is taken",
        ),
        Format::Sdnq => (
            "diffusers, InvokeAI, SD.Next; transformers",
            "a directory like the model's",
            "linear layers; groups must divide rows",
        ),
        Format::CompressedTensors => (
            "vLLM, SGLang, transformers",
            "a directory like the model's",
            "linear layers but for the head; groups must divide rows; vLLM on a CPU has no int8",
        ),
        Format::Mlx => {
            ("mlx-lm", "a directory like the model's", "linear layers and the embedding; groups must divide rows")
        }
        Format::ComfyUi => ("ComfyUI", "one file", "linear layers, under the names of the model"),
        Format::Safetensors => {
            ("all that read safetensors", "a directory, or one file", "floats: nothing is quantized")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DiffusionQuantConfig;

    #[test]
    fn every_format_is_described_and_every_runtime_has_a_configuration() {
        assert_eq!(formats().len(), Format::ALL.len());
        assert!(formats().iter().all(|format| !format.types.is_empty()));
        for runtime in Runtime::ALL {
            let mut config = DiffusionQuantConfig::default();
            for (field, value) in runtime.settings() {
                config.set(field, &value).unwrap();
            }
            config.validate().unwrap();
            let format = config.format.unwrap();
            let report = report(format).unwrap();
            assert!(report.types.contains(&config.weight_type.name()), "{}", runtime.name());
            assert!(report.group_sizes.is_empty() || report.group_sizes.contains(&config.group_size.get()));
        }
    }
}
