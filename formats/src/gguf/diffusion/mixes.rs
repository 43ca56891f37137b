//! Which type each tensor of a diffusion model gets in a mix.
//!
//! Source: the patch of llama.cpp's `llama_tensor_get_type` that ComfyUI-GGUF quantizes with (export-notes).

use arrow_quant_kernels::BlockType;

use crate::gguf::language::Mix;

/// What a tensor is to a mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Values of attention.
    Value,
    /// Queries, keys and values in one.
    Fused,
    /// The second matrix of a feed-forward network.
    Down,
    /// Any other.
    Other,
}

/// Parts of the names of the second matrix of a feed-forward network.
const DOWN: [&str; 7] =
    [".ffn.2.", ".ff.net.2.", ".mlp.layer2.", ".feed_forward.w2.", "img_mlp.2.", "txt_mlp.2.", ".mlp.fc2."];

fn role(name: &str) -> Role {
    if name.contains("to_v.") || name.contains("attn_v.") || name.contains(".attn.v.") {
        Role::Value
    } else if name.contains("qkv.") {
        Role::Fused
    } else if DOWN.iter().any(|part| name.contains(part)) {
        Role::Down
    } else {
        Role::Other
    }
}

/// The type of a tensor by its name in the file.
pub(super) fn block_type(mix: Mix, name: &str) -> BlockType {
    use BlockType::{Q4K, Q5K, Q6K};
    match (role(name), mix) {
        (Role::Value | Role::Down, Mix::Q4KM | Mix::Q5KM) | (Role::Fused, Mix::Q5KM) => Q6K,
        (Role::Fused, Mix::Q4KM) | (Role::Down, Mix::Q4KS) => Q5K,
        (Role::Value | Role::Fused | Role::Down, Mix::Q3KM) | (Role::Fused, Mix::Q3KL) => Q4K,
        (Role::Value | Role::Down, Mix::Q3KL) => Q5K,
        (
            Role::Value | Role::Fused | Role::Down | Role::Other,
            Mix::Q3KS | Mix::Q3KM | Mix::Q3KL | Mix::Q4KS | Mix::Q4KM | Mix::Q5KS | Mix::Q5KM,
        ) => mix.base(),
    }
}
