//! The original names of Flux, from those of diffusers: rows of several tensors become those of one.

use std::collections::BTreeMap;

use super::{DiffusionError, Joined};
use crate::gguf::Rows;

/// What names of diffusers begin with that no original name does.
pub(super) const DIFFUSERS: &str = "transformer_blocks.";

/// Layers outside the blocks.
const OUTER: &[(&str, &str)] = &[
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("context_embedder", "txt_in"),
    ("x_embedder", "img_in"),
    ("proj_out", "final_layer.linear"),
    ("norm_out.linear", TURNED),
];

/// The layer whose shift and scale change places.
const TURNED: &str = "final_layer.adaLN_modulation.1";

/// Layers of a block of two streams; those of one original layer in the order of its rows.
const DOUBLE: &[(&str, &str)] = &[
    ("norm1.linear", "img_mod.lin"),
    ("norm1_context.linear", "txt_mod.lin"),
    ("attn.to_q", "img_attn.qkv"),
    ("attn.to_k", "img_attn.qkv"),
    ("attn.to_v", "img_attn.qkv"),
    ("attn.add_q_proj", "txt_attn.qkv"),
    ("attn.add_k_proj", "txt_attn.qkv"),
    ("attn.add_v_proj", "txt_attn.qkv"),
    ("attn.norm_q", "img_attn.norm.query_norm"),
    ("attn.norm_k", "img_attn.norm.key_norm"),
    ("attn.norm_added_q", "txt_attn.norm.query_norm"),
    ("attn.norm_added_k", "txt_attn.norm.key_norm"),
    ("attn.to_out.0", "img_attn.proj"),
    ("attn.to_add_out", "txt_attn.proj"),
    ("ff.net.0.proj", "img_mlp.0"),
    ("ff.net.2", "img_mlp.2"),
    ("ff_context.net.0.proj", "txt_mlp.0"),
    ("ff_context.net.2", "txt_mlp.2"),
];

/// Layers of a block of one stream.
const SINGLE: &[(&str, &str)] = &[
    ("attn.to_q", "linear1"),
    ("attn.to_k", "linear1"),
    ("attn.to_v", "linear1"),
    ("proj_mlp", "linear1"),
    ("proj_out", "linear2"),
    ("norm.linear", "modulation.lin"),
    ("attn.norm_q", "norm.query_norm"),
    ("attn.norm_k", "norm.key_norm"),
];

/// The tensors of a file with original names, given those of a model with its indexes.
pub(super) fn joined(named: &[(usize, &str)]) -> Result<Vec<Joined>, DiffusionError> {
    let mut all: BTreeMap<String, Vec<(usize, usize)>> = BTreeMap::new();
    for &(index, name) in named {
        let (rank, original) = original(name).ok_or_else(|| DiffusionError::Tensor {
            tensor: name.to_string(),
            architecture: "flux",
            problem: "flux has no layer of this name".to_string(),
        })?;
        all.entry(original).or_default().push((rank, index));
    }
    let joined = all.into_iter().map(|(name, mut sources)| {
        sources.sort_unstable();
        let own = layer(&name);
        let wanted =
            [DOUBLE, SINGLE, OUTER].iter().flat_map(|table| table.iter()).filter(|(_, known)| *known == own).count();
        if sources.len() != wanted {
            return Err(DiffusionError::Tensor {
                tensor: name.clone(),
                architecture: "flux",
                problem: format!(
                    "it joins {wanted} tensors, of which {} are there: get the whole model",
                    sources.len()
                ),
            });
        }
        let rows = if name.starts_with(TURNED) { Rows::HalvesSwapped } else { Rows::AsTheyAre };
        Ok(Joined { name, sources: sources.into_iter().map(|(_, index)| index).collect(), rows })
    });
    joined.collect()
}

/// The name of the layer that an original tensor is of, without that of its block.
fn layer(name: &str) -> &str {
    let layer = name.rsplit_once('.').map_or(name, |(layer, _)| layer);
    let of_block = layer.strip_prefix("double_blocks.").or_else(|| layer.strip_prefix("single_blocks."));
    of_block.and_then(|rest| rest.split_once('.')).map_or(layer, |(_, own)| own)
}

/// The original name, and the place among the tensors that are joined to it.
fn original(name: &str) -> Option<(usize, String)> {
    let (layer, suffix) = name.rsplit_once('.')?;
    let find = |table: &[(&str, &'static str)], layer: &str| {
        let rank = table.iter().position(|(known, _)| *known == layer)?;
        Some((rank, table[rank].1))
    };
    let of_block = |prefix: &str| layer.strip_prefix(prefix)?.split_once('.');
    let (rank, original) = if let Some((number, layer)) = of_block("transformer_blocks.") {
        let (rank, inner) = find(DOUBLE, layer)?;
        (rank, format!("double_blocks.{number}.{inner}"))
    } else if let Some((number, layer)) = of_block("single_transformer_blocks.") {
        let (rank, inner) = find(SINGLE, layer)?;
        (rank, format!("single_blocks.{number}.{inner}"))
    } else {
        let (rank, outer) = find(OUTER, layer)?;
        (rank, outer.to_string())
    };
    let suffix = if original.ends_with("query_norm") || original.ends_with("key_norm") { "scale" } else { suffix };
    Some((rank, format!("{original}.{suffix}")))
}
