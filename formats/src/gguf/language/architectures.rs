//! The architectures that are known, as a table: what they are called, and in what they differ.
//!
//! Source: llama.cpp's converter and loader (`conversion/*.py`, `src/llama-model.cpp`), and export-notes of this project.

use super::LanguageError;
use super::config::Config;
use super::keys::Keys;

/// What is known of an architecture.
#[derive(Debug)]
pub struct Architecture {
    /// The name in GGUF.
    pub name: &'static str,
    /// The classes of transformers that it is.
    pub classes: &'static [&'static str],
    /// Whether rotary pairs are neighbours in GGUF, where the checkpoint has them half a head apart.
    pub(super) is_turned: bool,
    /// Whether 1 is added to the weights of norms.
    pub(super) adds_one: bool,
    /// Whether the head is always the embedding.
    pub(super) is_tied: bool,
    /// Names of a block's modules that are not those of most architectures.
    pub(super) names: &'static [(&'static str, &'static str)],
    /// Modules that every block must have.
    pub(super) needs: &'static [&'static str],
    /// Adds keys that most architectures do not have.
    pub(super) keys: fn(&Config<'_>, &mut Keys) -> Result<(), LanguageError>,
}

const NOTHING: fn(&Config<'_>, &mut Keys) -> Result<(), LanguageError> = |_, _| Ok(());

/// Modules of blocks whose query, key and value are apart.
const SEPARATE: &[&str] = &["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"];

/// Modules of blocks whose query, key and value are one matrix.
const FUSED: &[&str] = &["attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"];

/// The norms of gemma 2 and 3.
const GEMMA: &[(&str, &str)] = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

const PLAIN: Architecture = Architecture {
    name: "",
    classes: &[],
    is_turned: false,
    adds_one: false,
    is_tied: false,
    names: &[],
    needs: SEPARATE,
    keys: NOTHING,
};

static ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        classes: &["LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "LLaMAForCausalLM"],
        is_turned: true,
        keys: |config, keys| keys.experts(config),
        ..PLAIN
    },
    Architecture { name: "qwen2", classes: &["Qwen2ForCausalLM"], ..PLAIN },
    Architecture {
        name: "qwen2moe",
        classes: &["Qwen2MoeForCausalLM"],
        keys: |config, keys| {
            keys.whole("expert_shared_feed_forward_length", config.whole_if(&["shared_expert_intermediate_size"])?);
            keys.experts(config)
        },
        ..PLAIN
    },
    Architecture { name: "qwen3", classes: &["Qwen3ForCausalLM"], ..PLAIN },
    Architecture {
        name: "qwen3moe",
        classes: &["Qwen3MoeForCausalLM"],
        keys: |config, keys| keys.experts(config),
        ..PLAIN
    },
    Architecture { name: "gemma", classes: &["GemmaForCausalLM"], adds_one: true, is_tied: true, ..PLAIN },
    Architecture {
        name: "gemma2",
        classes: &["Gemma2ForCausalLM"],
        adds_one: true,
        is_tied: true,
        names: GEMMA,
        keys: |config, keys| {
            keys.real("attn_logit_softcapping", config.real_if(&["attn_logit_softcapping"])?);
            keys.real("final_logit_softcapping", config.real_if(&["final_logit_softcapping"])?);
            keys.whole("attention.sliding_window", config.whole_if(&["sliding_window"])?);
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        adds_one: true,
        is_tied: true,
        names: GEMMA,
        keys: |config, keys| {
            keys.real("final_logit_softcapping", config.real_if(&["final_logit_softcapping"])?);
            keys.whole("attention.sliding_window", config.whole_if(&["sliding_window"])?);
            let sliding = config.part("rope_parameters").and_then(|rope| rope.part("sliding_attention"));
            let base = match sliding {
                Some(rope) => rope.real_if(&["rope_theta"])?,
                None => config.real_if(&["rope_local_base_freq"])?,
            };
            keys.real("rope.freq_base_swa", base);
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "phi3",
        classes: &["Phi3ForCausalLM"],
        needs: FUSED,
        keys: |config, keys| {
            let trained = config.whole_if(&["original_max_position_embeddings"])?;
            let trained = trained.map_or_else(|| config.whole(&["max_position_embeddings"]), Ok)?;
            keys.whole("rope.scaling.original_context_length", Some(trained));
            // The loader asks for it; 0 is none.
            let window = config.whole_if(&["sliding_window"])?.unwrap_or(0);
            keys.whole("attention.sliding_window", Some(window));
            Ok(())
        },
        ..PLAIN
    },
    Architecture { name: "smollm3", classes: &["SmolLM3ForCausalLM"], is_turned: true, ..PLAIN },
    Architecture {
        name: "dream",
        classes: &["DreamModel", "DreamForCausalLM"],
        keys: |_, keys| {
            keys.switch("attention.causal", false);
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "llada",
        classes: &["LLaDAModelLM"],
        is_turned: true,
        names: &[
            ("attn_norm", "attn_norm"),
            ("q_proj", "attn_q"),
            ("k_proj", "attn_k"),
            ("v_proj", "attn_v"),
            ("attn_out", "attn_output"),
            ("ff_norm", "ffn_norm"),
            ("ff_proj", "ffn_gate"),
            ("up_proj", "ffn_up"),
            ("ff_out", "ffn_down"),
        ],
        keys: |_, keys| {
            keys.switch("attention.causal", false);
            keys.general("diffusion.shift_logits", false.into());
            Ok(())
        },
        ..PLAIN
    },
];

/// The names of those that are known.
fn names() -> String {
    Architecture::all().map(|known| known.name).collect::<Vec<_>>().join(", ")
}

impl Architecture {
    /// Every architecture that is known.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        ARCHITECTURES.iter()
    }

    /// The architecture that is asked for by its name in GGUF, or else the one of the classes of a configuration.
    pub(super) fn find(config: &Config<'_>, asked: Option<&str>) -> Result<&'static Self, LanguageError> {
        if let Some(name) = asked {
            let named = Self::all().find(|known| known.name == name);
            return named.ok_or_else(|| LanguageError::NoArchitecture { asked: name.to_string(), known: names() });
        }
        let classes = config.classes();
        let known = classes.iter().find_map(|class| Self::all().find(|known| known.classes.contains(class)));
        known.ok_or_else(|| {
            let found = match (classes.is_empty(), config.text("model_type")) {
                (false, _) => classes.join(", "),
                (true, Some(kind)) => format!("of the model_type {kind}"),
                (true, None) => "of no name".to_string(),
            };
            LanguageError::UnknownArchitecture { found, known: names() }
        })
    }
}
