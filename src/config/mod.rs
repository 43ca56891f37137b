//! Configurations: that of a job, and what makes one from a profile, YAML, the environment, flags and explicit values.
//!
//! A configuration is a struct and a table of [`Field`]s. From the table come YAML files ([`Layers`]), variables, flags,
//! documents and type hints.

mod choices;
mod kinds;
mod layers;
pub(crate) mod listed;
mod pattern;
#[cfg(test)]
mod reference;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use arrow_quant_kernels::{Bits, GroupSize, Scheme, Settings};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

pub use crate::error::{Allowed, Origin, Problem, Refused};
pub use choices::{Boundaries, Choice, DeploymentProfile, Format, Method, Modality, WeightType, Width};
pub use kinds::{
    BitsOfType, Kind, Names, Nullable, OneOf, Pattern, Patterns, Real, Shape, Switch, Text, Whole, Widths, number,
    one_of,
};
pub use layers::{Layered, Layers, value_of};
pub(crate) use pattern::regex;
pub use table::{Configuration, Field, check, named, set};

use crate::{QuantError, Result, config_field};

/// Fields that say how a job runs, not what comes of it: they are not recorded with a model, and a run can be resumed
/// with others.
const OF_THE_RUN: [&str; 3] = ["num_threads", "enable_streaming", "max_memory_limit_mb"];

/// The least memory a job can be bounded to, in MB: what the program itself takes, and one part under way.
const LEAST_MEMORY_MB: u64 = 192;

const BOOLEAN: &str = "true or false";

/// The places that the configuration of a job comes from.
pub type ConfigLayers = Layers<DiffusionQuantConfig>;

/// The configuration of a job, and where each field's value came from.
pub type LayeredConfig = Layered<DiffusionQuantConfig>;

/// The struct and its table. Of each field: what it is for, its name, type, kind and what it may hold in words; and its
/// variable, flags, a hint and an example, where it has them. The name that users type is in brackets where Rust reserves
/// it; before it may be a row of the table that shows another side of the same field.
macro_rules! configuration {
    ($(
        $(row $row:expr;)?
        $(#[doc = $doc:literal])+
        $name:ident $([$typed:literal])?: $type:ty = $kind:expr, $allowed:expr $(, $with:ident($argument:expr))*;
    )+) => {
        /// How a model is to be quantized. A profile gives every field its value; set those that should differ.
        ///
        /// [`ConfigLayers`] puts a configuration together from a profile, a YAML file, the environment and explicit values.
        #[derive(Debug, Clone, PartialEq)]
        pub struct DiffusionQuantConfig {
            $($(#[doc = $doc])+ pub $name: $type,)+
        }

        /// Every field of the configuration of a job, in the order they are shown.
        pub const FIELDS: &[Field<DiffusionQuantConfig>] = &[$(
            $($row,)?
            config_field!(
                DiffusionQuantConfig, name_of!($name $($typed)?), $name, $kind, $allowed, concat!($($doc),+)
            )
                $(.$with($argument))*,
        )+];
    };
}

/// The name of a field that users type.
macro_rules! name_of {
    ($name:ident) => {
        stringify!($name)
    };
    ($name:ident $typed:literal) => {
        $typed
    };
}

/// The bits of the type, which the first API has as a field.
const BIT_WIDTH: Field<DiffusionQuantConfig> = config_field!(
    DiffusionQuantConfig,
    "bit_width",
    weight_type,
    BitsOfType,
    listed::BITS,
    "Bits of a code: 4 is the type int4. With a target size, they are chosen for each tensor."
)
.variable("ARROW_QUANT_BIT_WIDTH")
.flags(&["bits", "bit-width"]);

configuration! {
    /// Where the quantized model will run. The profile gives every other field its default.
    deployment_profile: DeploymentProfile = one_of::<DeploymentProfile>(), "edge, local or cloud",
        flags(&["profile", "deployment-profile"]);
    /// What the model generates. Usually its files say so; `skip_sensitive_layers` needs to know.
    modality: Option<Modality> = Nullable(one_of::<Modality>()), "text, code, image or audio",
        or_null("to find out");
    /// Which of a model's weights to read, where it has them in several variants: `fp16` of `model.fp16.safetensors`. Without it
    /// those that have no variant are read.
    variant: Option<String> = Nullable(Text(is_variant)), "letters, digits, _ and -",
        or_null("for the weights without one"), hint("NAME"), example("fp16");
    /// What the quantized model is written as. arrow-quant is our own directory; gguf is one file for llama.cpp; sdnq a directory for
    /// diffusers, compressed-tensors one for vLLM and transformers, mlx one for mlx-lm; comfyui is one file for ComfyUI; safetensors
    /// holds floats, in a directory, or in one file if the output's name ends in .safetensors.
    format: Option<Format> = Nullable(one_of::<Format>()),
        "arrow-quant, gguf, sdnq, compressed-tensors, mlx, comfyui or safetensors",
        or_null("for what the output's name says: gguf if it ends in .gguf, else arrow-quant"), example("gguf");
    /// What GGUF calls the model's architecture, where its config.json does not say it or says one that is not known.
    architecture: Option<String> = Nullable(Text(is_name)), "the name of an architecture in GGUF",
        or_null("to take it from config.json"), hint("NAME"), example("llama");
    /// How text is cut before BPE, by llama.cpp's name for it, where that is not known by the tokenizer's expressions.
    pre_tokenizer: Option<String> = Nullable(Text(is_name)), "the name of a pre-tokenizer of llama.cpp",
        or_null("to recognize it"), flags(&["pre", "pre-tokenizer"]), hint("NAME"), example("llama-bpe");
    row BIT_WIDTH;
    /// What weights become, where the format holds it: int2 to int8 are integers of `bit_width` in groups; f32, f16 and bf16 are
    /// floats; the others are the block types of ggml and llama-quantize's mixes of them. With a target size, a type of the same kind is
    /// chosen for each tensor.
    weight_type ["type"]: WeightType = one_of::<WeightType>(), listed::TYPES,
        variable("ARROW_QUANT_TYPE"), refines("bit_width");
    /// Whether to refuse a model where the blocks of a type do not divide the rows of some tensor, instead of giving that tensor
    /// another type.
    no_fallback: bool = Switch, BOOLEAN;
    /// Weights of integers that share a scale. With a target size, their number is chosen for each tensor.
    group_size: GroupSize = one_of::<GroupSize>(), listed::GROUP_SIZES,
        variable("ARROW_QUANT_GROUP_SIZE"), hint("N");
    /// What a code means: affine has a scale and a minimum, asymmetric a scale and a zero point, symmetric a scale alone.
    scheme: Scheme = one_of::<Scheme>(), "affine, asymmetric or symmetric";
    /// How scales are found: minmax from the smallest and largest weight of a group, mse for the least squared error,
    /// unbiased likewise, then stretched so that restored weights do not shrink, reference as ggml does. ldlq finds scales as mse
    /// does and then rounds with error feedback, for the least error of each layer's output; it needs the second moments of inputs
    /// beside the calibration table, and smooths nothing. Block types have mse, ldlq and reference, integers all but reference.
    method: Method = one_of::<Method>(), "minmax, mse, unbiased, ldlq or reference";
    /// The floor, the least cosine similarity of a quantized tensor: a tensor below it is quantized again at the next width.
    min_accuracy: f64 = Real(|least| (0.0..=1.0).contains(&least)), "0.0 to 1.0",
        variable("ARROW_QUANT_MIN_ACCURACY");
    /// A second floor, the least SQNR in dB.
    min_sqnr_db: Option<f64> = Nullable(Real(|_| true)), "a number of dB",
        or_null("for no floor"), hint("DB"), example("20.0");
    /// Whether a tensor below a floor ends the job.
    fail_fast: bool = Switch, BOOLEAN, variable("ARROW_QUANT_FAIL_FAST");
    /// Quantizes only the tensors whose names match; the others keep their dtype.
    tensors: Option<String> = Nullable(Pattern), "a regular expression",
        or_null("for all"), hint("REGEX"), example("'attn|mlp'");
    /// Whether to keep the tensors that are known to be sensitive in the model's architecture.
    skip_sensitive_layers: bool = Switch, BOOLEAN;
    /// Tensors to keep, and modules with all their tensors.
    sensitive_layer_names: Vec<String> = Names, "a list of names of tensors or modules",
        hint("NAME,…"), example("[lm_head, unet/conv_in.weight]");
    /// Tensors to keep: those whose names match one of the patterns.
    sensitive_layer_patterns: Vec<String> = Patterns, "a list of regular expressions",
        hint("REGEX"), example(r"['\.gate\.', '^model\.layers\.0\.']");
    /// Bits of single tensors, 16 to keep them. An entry takes precedence over the fields above.
    layer_bit_widths: BTreeMap<String, Width> = Widths, listed::WIDTHS,
        hint("NAME=BITS"), example(r"{lm_head: 8, 'mlp\.down_proj': 4}");
    /// Whether tensors may differ in bits, by a target size or by `layer_bit_widths`. If not, a target size chooses one width
    /// and group size for all tensors.
    enable_mixed_precision: bool = Switch, BOOLEAN;
    /// The most that the files of weights may take, in MB (10^6 bytes). Bits and group size of each tensor are chosen for
    /// the least error at this size.
    target_model_size_mb: Option<f64> = Nullable(Real(|size| size > 0.0)), "a number above 0",
        or_null("for no target"), hint("MB"), example("1900"), replaces("target_bpw");
    /// The same in bits per weight, an alternative to `target_model_size_mb`.
    target_bpw: Option<f64> = Nullable(Real(|bits| bits > 0.0 && bits <= 64.0)),
        "a number above 0 and up to 64",
        or_null("for no target"), hint("BITS"), example("3.5"), replaces("target_model_size_mb");
    /// Whether activations are quantized for each group of timesteps, and weights by the importance of their input channels
    /// over all timesteps. Needs a calibration table.
    enable_time_aware: bool = Switch, BOOLEAN;
    /// Groups of timesteps at most. Needs a calibration table.
    num_time_groups: u32 = Whole(|groups: u32| (1..=100).contains(&groups)), "1 to 100",
        variable("ARROW_QUANT_NUM_TIME_GROUPS");
    /// Where time groups end: optimal cuts them for the least error and drops groups that gain little, equal gives each the
    /// same number of timesteps. Needs a calibration table.
    time_group_boundaries: Boundaries = one_of::<Boundaries>(), "optimal or equal";
    /// Samples of the calibration table to use.
    calibration_samples: i64 = Whole(|samples: i64| samples >= 1), "1 or more",
        variable("ARROW_QUANT_CALIBRATION_SAMPLES");
    /// Whether activations are smoothed channel by channel. Needs a calibration table. Has no effect if `method` is ldlq, which is
    /// better without.
    enable_spatial: bool = Switch, BOOLEAN;
    /// Cores to use.
    num_threads: usize = Whole(|threads: usize| threads <= 1024), "1 to 1024, or 0 for all cores",
        variable("ARROW_QUANT_NUM_THREADS"), flags(&["threads", "num-threads"]);
    /// Whether weights are read from mapped files as they are needed. If not, the model is read into memory first, which suits
    /// network file systems.
    enable_streaming: bool = Switch, BOOLEAN;
    /// The most memory the job may take, in MB (10^6 bytes).
    max_memory_limit_mb: Option<u64> = Nullable(Whole(|limit: u64| limit >= LEAST_MEMORY_MB)),
        "192 or more",
        or_null("for no limit"), variable("ARROW_QUANT_MAX_MEMORY_MB"), flags(&["max-memory-limit-mb", "max-memory-mb"]), hint("MB"),
        example("300");
}

impl Configuration for DiffusionQuantConfig {
    const FIELDS: &'static [Field<Self>] = FIELDS;
    const PREFIX: &'static str = "ARROW_QUANT_";
    // Those of the service, which are its own.
    const PREFIXES_OF_OTHERS: &'static [&'static str] = &["ARROW_QUANT_SERVE_"];
    const SHARES_PREFIX: bool = true;
    const PROFILE: Option<&'static str> = Some("deployment_profile");

    fn defaults_of_profile(self) -> Self {
        Self::from_profile(self.deployment_profile)
    }

    fn check(&self) -> Result<(), Refused> {
        if self.target_model_size_mb.is_some() && self.target_bpw.is_some() {
            return Err(Refused::new("target_bpw", Problem::BothSet { other: "target_model_size_mb" }));
        }
        if !self.enable_mixed_precision && !self.layer_bit_widths.is_empty() {
            return Err(Refused::new("layer_bit_widths", Problem::IsOff { switch: "enable_mixed_precision" }));
        }
        if !self.weight_type.has(self.method) {
            return Err(self.method_is_not_with("type", self.weight_type.name().into(), self.weight_type));
        }
        let mut widths = self.layer_bit_widths.iter().filter_map(|(layer, width)| Some((layer, width.weight_type()?)));
        match widths.find(|(_, weight_type)| !weight_type.has(self.method)) {
            Some((layer, weight_type)) => {
                let entry = [(layer.clone(), weight_type.name().into())].into_iter().collect();
                Err(self.method_is_not_with("layer_bit_widths", Value::Object(entry), weight_type))
            }
            None => Ok(()),
        }
    }
}

impl Default for DiffusionQuantConfig {
    fn default() -> Self {
        Self::from_profile(DeploymentProfile::default())
    }
}

/// As the table has it: a mapping from every field's name to its value.
impl Serialize for DiffusionQuantConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(FIELDS.iter().map(|field| (field.name, field.get(self))))
    }
}

impl DiffusionQuantConfig {
    /// The configuration of a profile.
    pub fn from_profile(profile: DeploymentProfile) -> Self {
        let (bits, num_time_groups, group_size, min_accuracy, calibration_samples, enable_spatial) = match profile {
            DeploymentProfile::Edge => (Bits::Two, 5, const { groups_of(256) }, 0.65, 32, false),
            DeploymentProfile::Local => (Bits::Four, 10, const { groups_of(128) }, 0.85, 128, true),
            DeploymentProfile::Cloud => (Bits::Eight, 20, const { groups_of(64) }, 0.95, 512, true),
        };
        Self {
            deployment_profile: profile,
            modality: None,
            variant: None,
            format: None,
            architecture: None,
            pre_tokenizer: None,
            no_fallback: false,
            weight_type: WeightType::Int(bits),
            group_size,
            scheme: Scheme::Affine,
            method: Method::Mse,
            min_accuracy,
            min_sqnr_db: None,
            fail_fast: false,
            tensors: None,
            skip_sensitive_layers: false,
            sensitive_layer_names: Vec::new(),
            sensitive_layer_patterns: Vec::new(),
            layer_bit_widths: BTreeMap::new(),
            enable_mixed_precision: true,
            target_model_size_mb: None,
            target_bpw: None,
            enable_time_aware: true,
            num_time_groups,
            time_group_boundaries: Boundaries::Optimal,
            calibration_samples,
            enable_spatial,
            num_threads: 0,
            enable_streaming: true,
            max_memory_limit_mb: None,
        }
    }

    /// Reads a configuration: the values of the file over those of the profile it names, or of the default profile.
    ///
    /// # Errors
    /// If the file cannot be read or is no YAML, or for a key or value that is not allowed, with the nearest that is.
    pub fn from_yaml(path: impl AsRef<Path>) -> Result<Self> {
        Ok(ConfigLayers::new().file(path.as_ref()).load()?.config)
    }

    /// Writes every field, so that [`from_yaml`](Self::from_yaml) gives an equal configuration.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn to_yaml(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let text = serde_yaml::to_string(self)
            .map_err(|e| QuantError::configuration(format!("the configuration cannot be written as YAML: {e}")))?;
        fs::write(path, text).map_err(|e| QuantError::io(path, e))
    }

    /// Sets the fields that the environment has variables for.
    ///
    /// # Errors
    /// For a value that is not allowed, naming the variable, and for a variable whose name is almost that of another.
    pub fn apply_env_overrides(&mut self) -> Result<()> {
        layers::apply_variables(self, &layers::environment())?;
        Ok(())
    }

    /// Sets a field by its name, to a value as YAML or JSON would have it, null for none.
    ///
    /// # Errors
    /// Naming the field, the value and what is allowed; for a field that does not exist, the nearest name.
    pub fn set(&mut self, field: &str, value: &Value) -> Result<()> {
        Ok(set(self, field, value)?)
    }

    /// A field's value by its name, as YAML or JSON would have it; `None` for a field that does not exist.
    pub fn get(&self, field: &str) -> Option<Value> {
        named::<Self>(field).ok().map(|field| field.get(self))
    }

    /// Cores to use.
    pub fn threads(&self) -> usize {
        match self.num_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    /// Checks every field, and those that belong together.
    ///
    /// # Errors
    /// Naming the field, its value and what is allowed.
    pub fn validate(&self) -> Result<()> {
        Ok(check(self)?)
    }

    /// What is recorded with a model: every field that has a part in what it became.
    pub(crate) fn recorded(&self) -> Map<String, Value> {
        let recorded = FIELDS.iter().filter(|field| !OF_THE_RUN.contains(&field.name));
        recorded.map(|field| (field.name.to_string(), field.get(self))).collect()
    }

    /// Whether activations are smoothed. It makes weights harder to quantize, and what ldlq gains would be lost.
    pub(crate) fn smooths(&self) -> bool {
        self.enable_spatial && !self.method.feeds_back()
    }

    /// The settings of the kernels of grouped integers; `None` if the type or method is of blocks, or needs more than weights.
    pub fn settings(&self) -> Option<Settings> {
        let WeightType::Int(bits) = self.weight_type else { return None };
        let method = self.method.of_integers().filter(|_| !self.method.feeds_back())?;
        Some(Settings { bits, group_size: self.group_size, scheme: self.scheme, method })
    }

    fn method_is_not_with(&self, other: &'static str, as_other: Value, weight_type: WeightType) -> Refused {
        let values = Box::new([self.method.name().into(), as_other]);
        Refused::new("method", Problem::NotWith { other, values, allowed: weight_type.methods() })
    }
}

/// Whether a text can be a part of the name of a file.
fn is_variant(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

/// Whether a text can be a name of GGUF's.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// Groups of so many weights. In a constant, a size that there is not does not compile.
const fn groups_of(weights: usize) -> GroupSize {
    let mut at = 0;
    while GroupSize::ALL[at].get() != weights {
        at += 1;
    }
    GroupSize::ALL[at]
}
