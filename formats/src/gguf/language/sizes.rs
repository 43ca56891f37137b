//! The keys that say what a language model is: its sizes, and how positions are rotated.

use super::super::Value;
use super::LanguageError;
use super::architectures::Architecture;
use super::config::Config;
use super::keys::Keys;
use crate::gguf::Extra;

type Result<T, E = LanguageError> = std::result::Result<T, E>;

/// Keys with their values.
type Entries = Vec<(String, Value)>;

/// The keys of a model of an architecture, and tensors that stand for keys. `vocabulary` is the number of its tokens.
pub(super) fn keys(
    architecture: &'static Architecture,
    config: &Config<'_>,
    vocabulary: u32,
) -> Result<(Entries, Vec<Extra>)> {
    let mut keys = Keys { architecture: architecture.name, entries: Vec::new() };
    keys.general("general.architecture", architecture.name.into());
    keys.general("general.type", "model".into());
    let trained = config.whole(&["max_position_embeddings", "max_sequence_length", "n_ctx"])?;
    keys.whole("context_length", Some(trained));
    keys.whole("embedding_length", Some(config.width()?));
    keys.whole("block_count", Some(config.blocks()?));
    keys.whole("feed_forward_length", Some(config.whole(&["intermediate_size", "mlp_hidden_size"])?));
    keys.whole("attention.head_count", Some(config.heads()?));
    keys.whole("attention.head_count_kv", Some(config.kv_heads()?));
    keys.real("attention.layer_norm_rms_epsilon", Some(config.real(&["rms_norm_eps"])?));
    keys.whole("attention.key_length", config.head_dim()?);
    keys.whole("attention.value_length", config.head_dim()?);
    keys.whole("vocab_size", Some(vocabulary));
    let size = config.head_size()?;
    let rotated = match config.rope().real_if(&["partial_rotary_factor"])? {
        Some(part) => (f64::from(size) * part) as u32,
        None => match config.real_if(&["partial_rotary_factor"])? {
            Some(part) => (f64::from(size) * part) as u32,
            None => size,
        },
    };
    keys.whole("rope.dimension_count", Some(rotated));
    keys.real("rope.freq_base", config.rope_base()?);
    (architecture.keys)(config, &mut keys)?;
    let extra = scaling(architecture, config, rotated, &mut keys)?;
    Ok((keys.entries, extra))
}

/// How positions are scaled: keys, or tensors of factors.
fn scaling(
    architecture: &'static Architecture,
    config: &Config<'_>,
    rotated: u32,
    keys: &mut Keys,
) -> Result<Vec<Extra>> {
    let Some(kind) = config.rope_kind() else { return Ok(Vec::new()) };
    let rope = config.rope();
    match (kind.as_str(), architecture.name) {
        ("linear", _) => {
            keys.text("rope.scaling.type", "linear");
            keys.real("rope.scaling.factor", Some(rope.real(&["factor"])?));
            Ok(Vec::new())
        }
        ("yarn", name) if name != "phi3" => {
            keys.text("rope.scaling.type", "yarn");
            keys.real("rope.scaling.factor", Some(rope.real(&["factor"])?));
            let trained = rope.whole_if(&["original_max_position_embeddings"])?;
            let trained = trained.map_or_else(|| config.whole(&["max_position_embeddings"]), Ok)?;
            keys.whole("rope.scaling.original_context_length", Some(trained));
            Ok(Vec::new())
        }
        ("llama3", "llama" | "smollm3") => Ok(vec![llama3_factors(config, rotated)?]),
        ("longrope" | "su", "phi3") => longrope(config, keys),
        _ => Err(LanguageError::Rope { kind, architecture: architecture.name }),
    }
}

/// What each frequency is divided by: 1 for short waves, the factor for long ones, and in between what fits both ends.
fn llama3_factors(config: &Config<'_>, rotated: u32) -> Result<Extra> {
    let rope = config.rope();
    let base = config.rope_base()?.unwrap_or(10_000.0);
    let (factor, low, high) =
        (rope.real(&["factor"])?, rope.real(&["low_freq_factor"])?, rope.real(&["high_freq_factor"])?);
    let trained = f64::from(rope.whole(&["original_max_position_embeddings"])?);
    let divisor = |pair: u32| {
        let wavelength = 2.0 * std::f64::consts::PI * base.powf(f64::from(2 * pair) / f64::from(rotated));
        let smooth = ((trained / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    Ok(Extra { name: "rope_freqs.weight".to_string(), values: (0..rotated / 2).map(divisor).collect() })
}

/// The factors of Phi for short and for long texts.
fn longrope(config: &Config<'_>, keys: &mut Keys) -> Result<Vec<Extra>> {
    let rope = config.rope();
    let longest = f64::from(config.whole(&["max_position_embeddings"])?);
    let trained = match config.whole_if(&["original_max_position_embeddings"])? {
        Some(trained) => f64::from(trained),
        None => f64::from(rope.whole(&["original_max_position_embeddings"])?),
    };
    let scale = longest / trained;
    let attention = if scale > 1.0 { (1.0 + scale.ln() / trained.ln()).sqrt() } else { 1.0 };
    keys.real("rope.scaling.attn_factor", Some(attention));
    let factors = |name: &str, key: &str| Ok(Extra { name: name.to_string(), values: rope.reals(key)? });
    Ok(vec![factors("rope_factors_long.weight", "long_factor")?, factors("rope_factors_short.weight", "short_factor")?])
}
