//! Diffusion models in GGUF, as ComfyUI-GGUF, stable-diffusion.cpp and diffusers read them: which tensors stay as they are, and
//! what they are called.
//!
//! Readers find out by the names of tensors what a model is; the file says little beside. Sources: ComfyUI-GGUF's
//! `tools/convert.py` and `loader.py`, diffusers' single-file loaders (export-notes).

mod flux;
mod mixes;
#[cfg(test)]
mod tests;

use std::fmt;

use arrow_quant_kernels::BlockType;

use super::language::Mix;
use super::{Holds, Place, Rows, SourceTensor};
use crate::manifest::Omission;

/// What names begin with in checkpoints that hold other models too.
const PREFIXES: [&str; 2] = ["model.diffusion_model.", "net."];

/// What the names of those other models begin with.
const OTHER_PARTS: [&str; 8] = [
    "first_stage_model.",
    "cond_stage_model.",
    "conditioner.",
    "text_encoders.",
    "vae.",
    "text_encoder.",
    "model_ema.",
    "embedding_manager.",
];

/// The longest name that ComfyUI's readers take.
const NAME_BYTES: usize = 127;

/// Tensors of fewer elements are not worth blocks, and readers expect them as F32.
const SMALL: u64 = 1024;

/// A kind of diffusion model.
#[derive(Debug, PartialEq, Eq)]
pub struct Architecture {
    /// Its name in GGUF.
    pub name: &'static str,
    /// Names of tensors that it has, all of them.
    has: &'static [&'static str],
    /// Parts of the names of tensors that stay floats.
    stays: &'static [&'static str],
    /// Parts of the names of tensors that are F32 in any case.
    is_f32: &'static [&'static str],
    /// How a diffusers class is called whose names it may have.
    classes: &'static [&'static str],
}

/// Every kind, in the order in which they are looked for.
pub static ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "flux",
        has: &["double_blocks.0.img_attn.proj.weight"],
        stays: &["txt_in", "img_in", "time_in", "vector_in", "guidance_in", "final_layer", "distilled_guidance_layer"],
        is_f32: &[],
        classes: &["FluxTransformer2DModel"],
    },
    Architecture {
        name: "sd3",
        has: &["joint_blocks.0.x_block.attn.qkv.weight"],
        stays: &[
            "final_layer",
            "time_text_embed",
            "context_embedder",
            "t_embedder",
            "y_embedder",
            "x_embedder",
            "proj_out.weight",
            "pos_embed",
            "norm_out",
        ],
        is_f32: &[],
        classes: &["SD3Transformer2DModel"],
    },
    Architecture {
        name: "hyvid",
        has: &["txt_in.individual_token_refiner.blocks.0.self_attn.qkv.weight"],
        stays: &["txt_in", "img_in", "time_in", "vector_in", "guidance_in", "final_layer"],
        is_f32: &[],
        classes: &[],
    },
    Architecture {
        name: "hyvid",
        has: &["context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight", "x_embedder.proj.weight"],
        stays: &["context_embedder", "x_embedder", "time_text_embed", "norm_out", "proj_out.weight"],
        is_f32: &[],
        classes: &["HunyuanVideoTransformer3DModel"],
    },
    Architecture {
        name: "wan",
        has: &["blocks.0.self_attn.norm_q.weight", "head.modulation"],
        stays: &[
            "modulation",
            "patch_embedding",
            "text_embedding",
            "time_projection",
            "time_embedding",
            "img_emb",
            "head",
        ],
        is_f32: &[".modulation", "img_emb.emb_pos"],
        classes: &[],
    },
    Architecture {
        name: "wan",
        has: &["blocks.0.attn1.norm_q.weight", "condition_embedder.time_proj.weight", "scale_shift_table"],
        stays: &["condition_embedder", "patch_embedding", "proj_out", "scale_shift_table"],
        is_f32: &["scale_shift_table"],
        classes: &["WanTransformer3DModel"],
    },
    Architecture {
        name: "ltxv",
        has: &["adaln_single.linear.weight", "transformer_blocks.0.scale_shift_table", "patchify_proj.weight"],
        stays: &["adaln_single", "caption_projection", "patchify_proj", "proj_out", "scale_shift_table"],
        is_f32: &["scale_shift_table"],
        classes: &[],
    },
    Architecture {
        name: "ltxv",
        has: &["time_embed.linear.weight", "transformer_blocks.0.scale_shift_table", "proj_in.weight"],
        stays: &["time_embed", "caption_projection", "proj_in", "proj_out", "scale_shift_table"],
        is_f32: &["scale_shift_table"],
        classes: &["LTXVideoTransformer3DModel"],
    },
    Architecture {
        name: "lumina2",
        has: &["cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight"],
        stays: &["t_embedder", "x_embedder", "final_layer", "cap_embedder", "context_refiner", "noise_refiner"],
        is_f32: &[],
        classes: &[],
    },
    Architecture {
        name: "qwen_image",
        has: &["transformer_blocks.0.attn.add_q_proj.weight", "txt_norm.weight", "img_in.weight"],
        stays: &["img_in", "txt_in", "time_text_embed", "norm_out", "proj_out"],
        is_f32: &[],
        classes: &["QwenImageTransformer2DModel"],
    },
    Architecture {
        name: "aura",
        has: &["double_layers.3.modX.1.weight"],
        stays: &[
            "t_embedder",
            "init_x_linear",
            "modF.1.weight",
            "cond_seq_linear.weight",
            "final_linear",
            "positional_encoding",
            "register_tokens",
        ],
        is_f32: &[],
        classes: &[],
    },
    Architecture {
        name: "hidream",
        has: &["caption_projection.0.linear.weight", "double_stream_blocks.0.block.ff_i.shared_experts.w3.weight"],
        stays: &["p_embedder", "t_embedder", "x_embedder", "final_layer", ".ff_i.gate.weight", "caption_projection"],
        is_f32: &[".ff_i.gate.weight"],
        classes: &[],
    },
    Architecture {
        name: "cosmos",
        has: &["blocks.0.mlp.layer1.weight", "blocks.0.adaln_modulation_cross_attn.1.weight"],
        stays: &["p_embedder", "t_embedder", "t_embedding_norm", "x_embedder", "pos_embedder", "final_layer"],
        is_f32: &["pos_embedder"],
        classes: &[],
    },
    Architecture {
        name: "sdxl",
        has: &["label_emb.0.0.weight", "input_blocks.3.0.op.weight", "input_blocks.6.0.op.weight"],
        stays: UNET,
        is_f32: &[],
        classes: &[],
    },
    Architecture {
        name: "sd1",
        has: &["input_blocks.3.0.op.weight", "input_blocks.6.0.op.weight", "input_blocks.9.0.op.weight"],
        stays: UNET,
        is_f32: &[],
        classes: &[],
    },
    Architecture {
        name: "sdxl",
        has: &["down_blocks.0.downsamplers.0.conv.weight", "add_embedding.linear_1.weight"],
        stays: UNET,
        is_f32: &[],
        classes: &["UNet2DConditionModel"],
    },
    Architecture {
        name: "sd1",
        has: &["down_blocks.0.downsamplers.0.conv.weight", "conv_in.weight"],
        stays: UNET,
        is_f32: &[],
        classes: &["UNet2DConditionModel"],
    },
];

/// What stays of the networks of Stable Diffusion, by the names of either kind of file.
const UNET: &[&str] = &[
    "class_embedding",
    "time_embedding",
    "add_embedding",
    "time_embed",
    "label_emb",
    "conv_in",
    "conv_out",
    "input_blocks.0.0.weight",
    "out.2.weight",
];

/// What a GGUF file of a diffusion model has.
#[derive(Debug, Clone)]
pub struct DiffusionModel {
    /// What the model is.
    pub architecture: &'static Architecture,
    /// The tensors, in the order of the file.
    pub places: Vec<Place>,
    /// Tensors that are not written, by index, and why.
    pub left_out: Vec<(usize, Omission)>,
    /// Whether the file has the names of diffusers, which no other program reads.
    pub has_names_of_diffusers: bool,
}

/// Why a model cannot become such a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiffusionError {
    /// Readers do not take a name so long.
    #[error("the name of {name} has {} bytes, and readers of GGUF take at most {NAME_BYTES}", .name.len())]
    LongName {
        /// The name.
        name: String,
    },
    /// A tensor has no place beside the others.
    #[error("{tensor} has no place in a file of {architecture}: {problem}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What the model is.
        architecture: &'static str,
        /// The rule that it breaks.
        problem: String,
    },
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The names of all kinds, each once.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl DiffusionModel {
    /// Lays out the file of a model from its tensors. `class` is the diffusers class in `config.json`, `asked` the architecture
    /// that the user named. `None` if the model is unknown.
    ///
    /// # Errors
    /// If the model is known, but readers would not load the file.
    pub fn new(
        tensors: &[SourceTensor<'_>],
        class: Option<&str>,
        asked: Option<&str>,
    ) -> Result<Option<Self>, DiffusionError> {
        let mut left_out = Vec::new();
        let mut named = Vec::with_capacity(tensors.len());
        let has_prefix = tensors.iter().any(|tensor| tensor.name.starts_with(PREFIXES[0]));
        for (index, tensor) in tensors.iter().enumerate() {
            let stripped = PREFIXES.iter().find_map(|prefix| tensor.name.strip_prefix(prefix));
            let is_other =
                has_prefix && stripped.is_none() || OTHER_PARTS.iter().any(|part| tensor.name.starts_with(part));
            if is_other {
                left_out.push((index, Omission::OtherPart));
            } else {
                named.push((index, stripped.unwrap_or(tensor.name)));
            }
        }
        let has = |name: &&str| named.iter().any(|(_, found)| found == name);
        let by_names = || ARCHITECTURES.iter().find(|known| known.has.iter().all(&has));
        let by_class = || ARCHITECTURES.iter().find(|known| class.is_some_and(|class| known.classes.contains(&class)));
        let by_asked = || ARCHITECTURES.iter().find(|known| Some(known.name) == asked);
        let found = by_names().or_else(by_class).filter(|known| asked.is_none_or(|asked| asked == known.name));
        let Some(architecture) = found.or_else(by_asked) else { return Ok(None) };
        let is_of_flux = architecture.name == "flux" && named.iter().any(|(_, name)| name.starts_with(flux::DIFFUSERS));
        let joined = if is_of_flux { flux::joined(&named)? } else { named.iter().map(single).collect() };
        let places: Vec<Place> =
            joined.into_iter().map(|joined| architecture.place(joined, tensors)).collect::<Result<_, _>>()?;
        let mut names: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(DiffusionError::Tensor {
                tensor: twice[0].to_string(),
                architecture: architecture.name,
                problem: "two tensors have this name".to_string(),
            });
        }
        // Qwen-Image has the names of diffusers in every file.
        let is_original =
            is_of_flux || architecture.name == "qwen_image" || !named.iter().any(|(_, name)| is_of_diffusers(name));
        Ok(Some(Self { architecture, places, left_out, has_names_of_diffusers: !is_original }))
    }

    /// The type that a tensor of the file gets in a mix.
    pub fn block_type(&self, mix: Mix, place: &Place) -> BlockType {
        mixes::block_type(mix, &place.name)
    }
}

/// Whether a name is one that diffusers gives, in a model whose original names are others.
fn is_of_diffusers(name: &str) -> bool {
    const BEGINNINGS: [&str; 4] =
        ["down_blocks.0.", "condition_embedder.", "time_text_embed.timestep_embedder.", "time_embed.emb."];
    BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Tensors whose rows become those of one.
struct Joined {
    name: String,
    sources: Vec<usize>,
    rows: Rows,
}

fn single(&(index, name): &(usize, &str)) -> Joined {
    Joined { name: name.to_string(), sources: vec![index], rows: Rows::AsTheyAre }
}

impl Architecture {
    /// A tensor of the file, with all that is known of it.
    fn place(&self, joined: Joined, tensors: &[SourceTensor<'_>]) -> Result<Place, DiffusionError> {
        let Joined { name, sources, rows } = joined;
        if name.len() > NAME_BYTES {
            return Err(DiffusionError::LongName { name });
        }
        let mut shape = tensors[sources[0]].shape.to_vec();
        for tensor in sources[1..].iter().map(|index| &tensors[*index]) {
            if tensor.shape.get(1..) != shape.get(1..) || shape.is_empty() {
                return Err(DiffusionError::Tensor {
                    tensor: tensor.name.to_string(),
                    architecture: self.name,
                    problem: format!("its shape is {:?}, and it is joined with one of {shape:?}", tensor.shape),
                });
            }
            shape[0] += tensor.shape[0];
        }
        if rows == Rows::HalvesSwapped && shape.first().is_none_or(|rows| rows % 2 != 0) {
            return Err(DiffusionError::Tensor {
                tensor: name,
                architecture: self.name,
                problem: format!("its shape is {shape:?}, expected an even number of rows"),
            });
        }
        let is_matrix = shape.len() == 2 && name.ends_with(".weight");
        let is_in = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        let holds = if shape.len() < 2 || crate::elements(&shape) <= SMALL || shape.len() > 4 || is_in(self.is_f32) {
            Holds::F32
        } else if !is_matrix {
            // Readers take other parameters for numbers of these types, whatever the file says.
            Holds::F16OrF32
        } else if is_in(self.stays) {
            Holds::Floats
        } else {
            Holds::Blocks
        };
        Ok(Place { name, shape, sources, rows, adds_one: false, holds })
    }
}
