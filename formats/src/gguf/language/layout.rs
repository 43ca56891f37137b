//! Which tensors become which: names, order of rows, and what is left out.

use std::collections::BTreeMap;

use super::LanguageError;
use super::architectures::Architecture;
use super::config::Config;
use crate::gguf::{Holds, NAME_BYTES, Place, Rows, SourceTensor};
use crate::manifest::Omission;

type Result<T, E = LanguageError> = std::result::Result<T, E>;

/// Tensors that are left out, by their index, and why.
type Omissions = Vec<(usize, Omission)>;

/// The head's name.
pub(super) const HEAD: &str = "output.weight";

/// The embedding's name.
pub(super) const EMBEDDING: &str = "token_embd.weight";

/// Modules that are not in a block.
pub(super) const OUTER: &[(&str, &str)] = &[
    ("embed_tokens", "token_embd"),
    ("norm", "output_norm"),
    ("lm_head", "output"),
    ("transformer.wte", "token_embd"),
    ("transformer.ln_f", "output_norm"),
    ("transformer.ff_out", "output"),
];

/// Modules of a block, as most architectures call them.
pub(super) const INNER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
];

/// Modules that lists of experts are in, and those of an expert.
pub(super) const EXPERTS: [&str; 2] = ["mlp.experts.", "block_sparse_moe.experts."];
pub(super) const OF_EXPERT: &[(&str, &str)] = &[
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("down_proj", "ffn_down_exps"),
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
];

/// What a name of a model of several begins with, where the language model is one of them.
const PREFIXES: [&str; 4] = ["model.language_model.", "language_model.model.", "language_model.", "model."];

/// What the names of other parts of such a model begin with.
const OTHER_PARTS: [&str; 6] =
    ["vision_tower.", "vision_model.", "visual.", "multi_modal_projector.", "audio_tower.", "embed_vision."];

/// What buffers are called that the loader computes itself.
const BUFFERS: [&str; 3] = ["rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"];

/// Whether a tensor is a buffer that the loader computes, by its name.
pub fn is_computed(name: &str) -> bool {
    BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}

/// What one tensor becomes.
enum Becomes {
    /// A tensor of the file.
    One(String),
    /// One of several that become a tensor of the file.
    Expert(String, u32),
    LeftOut(Omission),
}

/// The tensors of the file in their order, and those that are left out.
pub(super) fn places(
    architecture: &'static Architecture,
    config: &Config<'_>,
    tensors: &[SourceTensor<'_>],
) -> Result<(Vec<Place>, Omissions)> {
    let blocks = config.blocks()?;
    let mut left_out = Vec::new();
    let mut single: BTreeMap<String, usize> = BTreeMap::new();
    let mut experts: BTreeMap<String, BTreeMap<u32, usize>> = BTreeMap::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let before = match becomes(architecture, tensor.name, blocks)? {
            Becomes::LeftOut(why) => {
                left_out.push((index, why));
                None
            }
            Becomes::One(name) => single.insert(name.clone(), index).map(|before| (name, before)),
            Becomes::Expert(name, number) => {
                let of_name = experts.entry(name.clone()).or_default();
                of_name.insert(number, index).map(|before| (name, before))
            }
        };
        if let Some((name, before)) = before {
            let tensors = [tensors[before].name, tensor.name].map(str::to_string);
            return Err(LanguageError::Twice { name, tensors });
        }
    }
    if is_tied(architecture, config, &single, tensors)
        && let Some(head) = single.remove(HEAD)
    {
        left_out.push((head, Omission::Tied));
    }
    let single = single.into_iter().map(|(name, index)| (name, vec![index]));
    let all: BTreeMap<String, Vec<usize>> =
        single.chain(experts.into_iter().map(|(name, of)| (name, of.into_values().collect()))).collect();
    check_blocks(architecture, &all, blocks)?;
    let mut places = all
        .into_iter()
        .map(|(name, sources)| place(architecture, config, tensors, name, sources))
        .collect::<Result<Vec<_>>>()?;
    places.sort_by_key(|place| order(&place.name));
    Ok((places, left_out))
}

/// Whether the head is the embedding: by the architecture, the configuration, or because they are equal.
fn is_tied(
    architecture: &Architecture,
    config: &Config<'_>,
    single: &BTreeMap<String, usize>,
    tensors: &[SourceTensor<'_>],
) -> bool {
    let (Some(&head), Some(&embedding)) = (single.get(HEAD), single.get(EMBEDDING)) else { return false };
    let first = |index: usize| tensors[index].same_as.unwrap_or(index);
    architecture.is_tied || config.is("tie_word_embeddings") || first(head) == first(embedding)
}

/// What a tensor becomes by its name.
fn becomes(architecture: &'static Architecture, full: &str, blocks: u32) -> Result<Becomes> {
    let name = PREFIXES.iter().find_map(|prefix| full.strip_prefix(prefix)).unwrap_or(full);
    if OTHER_PARTS.iter().any(|part| name.starts_with(part) || full.starts_with(part)) {
        return Ok(Becomes::LeftOut(Omission::OtherPart));
    }
    if is_computed(name) {
        return Ok(Becomes::LeftOut(Omission::Computed));
    }
    let unknown = || LanguageError::Tensor { tensor: full.to_string(), architecture: architecture.name };
    let (module, suffix) = name.rsplit_once('.').ok_or_else(unknown)?;
    if !["weight", "bias"].contains(&suffix) {
        return Err(unknown());
    }
    if let Some(outer) = called(OUTER, module) {
        return Ok(Becomes::One(format!("{outer}.{suffix}")));
    }
    let inner = module.strip_prefix("layers.").or_else(|| module.strip_prefix("transformer.blocks."));
    let (number, module) = inner.and_then(|inner| inner.split_once('.')).ok_or_else(unknown)?;
    let number: u32 = number.parse().map_err(|_| unknown())?;
    if number >= blocks {
        return Ok(Becomes::LeftOut(Omission::OtherPart));
    }
    let of_expert = EXPERTS.iter().find_map(|experts| module.strip_prefix(experts));
    if let Some((expert, module)) = of_expert.and_then(|rest| rest.split_once('.')) {
        let expert: u32 = expert.parse().map_err(|_| unknown())?;
        let inner = called(OF_EXPERT, module).ok_or_else(unknown)?;
        return Ok(Becomes::Expert(format!("blk.{number}.{inner}.{suffix}"), expert));
    }
    let inner = called(architecture.names, module).or_else(|| called(INNER, module)).ok_or_else(unknown)?;
    Ok(Becomes::One(format!("blk.{number}.{inner}.{suffix}")))
}

/// What llama.cpp calls a tensor of a language model, in each architecture that has one of its name; of an expert, what it calls
/// those of all experts, and the expert's number.
pub fn runtime_names(full: &str) -> Vec<(String, Option<u32>)> {
    let mut names = Vec::new();
    for architecture in Architecture::all() {
        let name = match becomes(architecture, full, u32::MAX) {
            Ok(Becomes::One(name)) => (name, None),
            Ok(Becomes::Expert(name, expert)) => (name, Some(expert)),
            Ok(Becomes::LeftOut(_)) | Err(_) => continue,
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn called(names: &[(&'static str, &'static str)], module: &str) -> Option<&'static str> {
    names.iter().find(|(name, _)| *name == module).map(|(_, called)| *called)
}

/// Checks that each block has what the architecture needs.
fn check_blocks(architecture: &'static Architecture, all: &BTreeMap<String, Vec<usize>>, blocks: u32) -> Result<()> {
    let outer = [EMBEDDING.to_string(), "output_norm.weight".to_string()];
    let of_block = |block| architecture.needs.iter().map(move |module| format!("blk.{block}.{module}.weight"));
    match outer.into_iter().chain((0..blocks).flat_map(of_block)).find(|name| !all.contains_key(name)) {
        Some(tensor) => Err(LanguageError::Missing { tensor, architecture: architecture.name }),
        None => Ok(()),
    }
}

/// A tensor of the file, with all that is known of it.
fn place(
    architecture: &'static Architecture,
    config: &Config<'_>,
    tensors: &[SourceTensor<'_>],
    name: String,
    sources: Vec<usize>,
) -> Result<Place> {
    if name.len() > NAME_BYTES {
        return Err(LanguageError::LongName { name });
    }
    let first = &tensors[sources[0]];
    let wrong = |tensor: &SourceTensor<'_>, expected: String| LanguageError::Shape {
        tensor: tensor.name.to_string(),
        shape: tensor.shape.to_vec(),
        expected,
    };
    if let Some(other) = sources.iter().map(|&index| &tensors[index]).find(|other| other.shape != first.shape) {
        return Err(wrong(other, format!("{:?} like other experts", first.shape)));
    }
    let is_of_experts = name.contains("_exps.");
    let mut shape = first.shape.to_vec();
    if is_of_experts {
        let count = config.whole(&["num_local_experts", "num_experts"])?;
        if sources.len() != count as usize {
            return Err(LanguageError::Missing {
                tensor: format!("{count} experts of {name}"),
                architecture: architecture.name,
            });
        }
        shape.insert(0, i64::from(count));
    }
    let heads = match module(&name) {
        "attn_q" if architecture.is_turned => Some(config.heads()?),
        "attn_k" if architecture.is_turned => Some(config.kv_heads()?),
        _ => None,
    };
    if let Some(heads) = heads {
        let rows = i64::from(heads) * i64::from(config.head_size()?);
        if first.shape.first() != Some(&rows) || config.head_size()? % 2 != 0 {
            return Err(wrong(first, format!("{rows} rows")));
        }
    }
    let is_norm = name.ends_with("norm.weight");
    let is_router = module(&name).starts_with("ffn_gate_inp");
    let is_f32 = shape.len() < 2 || is_norm || is_router || !name.ends_with(".weight");
    let rows = heads.map_or(Rows::AsTheyAre, |heads| Rows::Turned { heads });
    let holds = if is_f32 { Holds::F32 } else { Holds::Blocks };
    Ok(Place { adds_one: architecture.adds_one && is_norm, name, shape, sources, rows, holds })
}

/// The module of a tensor of the file.
pub(super) fn module(name: &str) -> &str {
    let own = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, own)| own);
    own.rsplit_once('.').map_or(own, |(module, _)| module)
}

/// The block of a tensor of the file.
pub(super) fn block(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// What the tensors of a file are sorted by: those of no block first.
fn order(name: &str) -> (Option<u32>, String) {
    (block(name), name.to_string())
}

/// The embedding's tensor and its rows.
pub(super) fn embedding(
    architecture: &'static Architecture,
    places: &[Place],
    tensors: &[SourceTensor<'_>],
) -> Result<(String, i64)> {
    let missing = || LanguageError::Missing { tensor: EMBEDDING.to_string(), architecture: architecture.name };
    let place = places.iter().find(|place| place.name == EMBEDDING).ok_or_else(missing)?;
    let tensor = &tensors[place.sources[0]];
    match tensor.shape {
        [rows, _] if *rows > 0 => Ok((tensor.name.to_string(), *rows)),
        shape => Err(LanguageError::Shape {
            tensor: tensor.name.to_string(),
            shape: shape.to_vec(),
            expected: "two dimensions".to_string(),
        }),
    }
}
