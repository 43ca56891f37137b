//! What configurations and metadata say of the quantization of weights.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::{QuantizationScheme, Sign};

/// Files beside weights that say how they were quantized.
pub(super) const CLAIMING_FILES: &[&str] =
    &["config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json"];

/// Keys of a configuration under which that stands.
const KEYS: &[&str] = &["quantization_config", "compression_config", "quantization"];

/// Keys of configurations of parts of a model, which may have such a key too.
const PARTS: &[&str] = &["text_config", "llm_config", "language_config"];

/// Keys of metadata that say it, and the scheme where it is always the same.
const METADATA: &[(&str, Option<QuantizationScheme>)] = &[
    ("_quantization_metadata", Some(QuantizationScheme::ComfyUi)),
    ("quantization_config", None),
    ("quantization_level", Some(QuantizationScheme::Mlx)),
    ("comfy.gguf.orig_shape", Some(QuantizationScheme::Ggml)),
    ("general.quantization_version", Some(QuantizationScheme::Ggml)),
    ("general.file_type", Some(QuantizationScheme::Ggml)),
];

/// That weights are quantized, as a configuration or metadata says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The scheme.
    pub scheme: QuantizationScheme,
    /// Where it stands.
    pub sign: Sign,
    /// What it says of the quantization, key by key.
    pub config: Map<String, Value>,
}

/// What a file of [`CLAIMING_FILES`] claims. A text that is not JSON claims nothing; the code that
/// needs its fields reports the error.
pub fn claim_of_config(file: &Path, text: &[u8]) -> Option<Claim> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let json: Map<String, Value> = serde_json::from_slice(text).ok()?;
    let is_config = file.file_name() == Some("config.json".as_ref());
    let parts = PARTS.iter().filter_map(|part| json.get(*part)?.as_object());
    let mut holders = std::iter::once(&json).chain(parts);
    let found = holders.find_map(|holder| KEYS.iter().find_map(|key| claimed(key, holder.get(*key)?.as_object()?)));
    // The other files are such a configuration themselves.
    let (key, (scheme, method), config) = match found {
        Some(found) => found,
        None if is_config => return None,
        None => claimed("", &json)?,
    };
    let key = [key, &method].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" with ");
    Some(Claim { scheme, sign: Sign::Config { file: file.to_path_buf(), key }, config: config.clone() })
}

/// A key whose value says that weights are quantized.
type Claimed<'a> = (&'static str, (QuantizationScheme, String), &'a Map<String, Value>);

fn claimed<'a>(key: &'static str, config: &'a Map<String, Value>) -> Option<Claimed<'a>> {
    Some((key, scheme_of(config)?, config))
}

/// A configuration without what it claims. `None` if it claims nothing, or says nothing else.
pub fn without_claims(file: &Path, text: &[u8]) -> Option<Vec<u8>> {
    claim_of_config(file, text)?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut json: Map<String, Value> = serde_json::from_slice(text).ok()?;
    let mut remove = |json: &mut Map<String, Value>| KEYS.iter().for_each(|key| drop(json.remove(*key)));
    remove(&mut json);
    for part in PARTS {
        json.get_mut(*part).and_then(Value::as_object_mut).into_iter().for_each(&mut remove);
    }
    serde_json::to_vec_pretty(&json).ok()
}

/// Whether a file says nothing but how weights are quantized.
pub fn is_only_claim(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default();
    name != "config.json" && CLAIMING_FILES.iter().any(|claiming| name == *claiming)
}

/// What the metadata of files of weights claims.
pub fn claim_of_metadata(metadata: &BTreeMap<String, String>) -> Option<Claim> {
    METADATA.iter().find_map(|(key, scheme)| {
        let text = metadata.get(*key)?;
        let config = match serde_json::from_str(text) {
            Ok(Value::Object(config)) => config,
            Ok(_) | Err(_) => Map::new(),
        };
        let scheme = match scheme {
            Some(scheme) => scheme.clone(),
            None => scheme_of(&config)?.0,
        };
        Some(Claim { scheme, sign: Sign::Metadata { key: key.to_string() }, config })
    })
}

/// The scheme of a configuration of quantization, and the key and value that name it. `None` if it says that nothing is
/// quantized.
fn scheme_of(config: &Map<String, Value>) -> Option<(QuantizationScheme, String)> {
    use QuantizationScheme::{Bitsandbytes, Bitsandbytes4, Bitsandbytes8, Mlx, ModelOpt, Nvfp4, Other};
    let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let is_on = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    let bits = match (is_on("load_in_4bit") || is_on("_load_in_4bit"), is_on("load_in_8bit") || is_on("_load_in_8bit"))
    {
        (true, _) => Some((Bitsandbytes4, "load_in_4bit".to_string())),
        (_, true) => Some((Bitsandbytes8, "load_in_8bit".to_string())),
        (false, false) => None,
    };
    if let Some(algorithm) = text("quant_algo") {
        let is_nvfp4 = algorithm.to_ascii_uppercase().contains("NVFP4");
        return Some((if is_nvfp4 { Nvfp4 } else { ModelOpt }, format!("quant_algo {algorithm}")));
    }
    if let Some((key, method)) =
        ["quant_method", "method", "quantization_method"].iter().find_map(|key| Some((key, text(key)?)))
    {
        let scheme = match QuantizationScheme::named(method) {
            Bitsandbytes => bits.map_or(Bitsandbytes, |(scheme, _)| scheme),
            scheme => scheme,
        };
        return Some((scheme, format!("{key} {method}")));
    }
    if bits.is_some() {
        return bits;
    }
    // MLX names no method.
    let has = |key: &str| config.get(key).is_some_and(Value::is_number);
    match (has("group_size"), has("bits") || has("w_bit") || has("nbits")) {
        (true, true) if config.contains_key("w_bit") => Some((QuantizationScheme::Awq, "w_bit".to_string())),
        (true, true) if config.contains_key("desc_act") => Some((QuantizationScheme::Gptq, "desc_act".to_string())),
        (true, true) => Some((Mlx, "group_size and bits".to_string())),
        _ => text("weights_dtype").map(|dtype| (Other("quantized".to_string()), format!("weights_dtype {dtype}"))),
    }
}
