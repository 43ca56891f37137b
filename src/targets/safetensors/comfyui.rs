//! ComfyUI's own layouts: one file under the names that the model's original has. Each quantized layer has a tensor that
//! describes it.
//!
//! Source: ComfyUI's `comfy/ops.py`, and comfy-kitchen 0.2.40 as it was run (export-notes).

use arrow_quant_formats::StoredType;
use arrow_quant_kernels::{Bits, GroupSize};
use serde_json::{Map, Value, json};

use super::{AFFINE, Content, Dialect, GroupedTensor, Layer, NewTensor, allowed, is_linear};
use crate::plan::Allowed;

#[derive(Debug)]
pub(super) struct ComfyUi;

impl Dialect for ComfyUi {
    fn allowed(&self) -> Allowed {
        const GROUP_SIZES: &[GroupSize] = &super::super::sizes([64]);
        Allowed {
            bits: &[Bits::Four],
            group_sizes: GROUP_SIZES,
            schemes: AFFINE,
            ..allowed("comfyui", |tensor| !is_linear(tensor))
        }
    }

    /// The layout `awq_w4a16`: w = (q - 8) * scale + zero, so its zero is what a code of 8 stands for.
    fn tensors(&self, tensor: &GroupedTensor<'_>) -> Vec<NewTensor> {
        let about = json!({"format": "awq_w4a16", "group_size": tensor.group_size.get()}).to_string().into_bytes();
        let parameter = |name: &str, content| NewTensor {
            name: format!("{}.{name}", tensor.module()),
            stored: StoredType::F32,
            shape: vec![tensor.groups(), tensor.rows],
            content,
        };
        vec![
            NewTensor {
                name: tensor.name.to_string(),
                stored: StoredType::I8,
                shape: vec![tensor.rows, tensor.columns / 2],
                content: Content::Codes,
            },
            parameter("weight_scale", Content::TurnedScales),
            parameter("weight_zeros", Content::TurnedMiddles),
            NewTensor {
                name: format!("{}.comfy_quant", tensor.module()),
                stored: StoredType::U8,
                shape: vec![about.len() as i64],
                content: Content::Bytes(about),
            },
        ]
    }

    fn needs_config(&self) -> bool {
        false
    }

    fn configure(&self, _: &mut Map<String, Value>, _: &[Layer]) {}
}
