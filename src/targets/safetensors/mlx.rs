//! MLX: what mlx-lm loads. Codes, scales and minima ("biases") are as ours, row by row.
//!
//! Source: mlx 0.32.4 and mlx-lm 0.32.2 as they were run (export-notes).

use arrow_quant_formats::StoredType;
use arrow_quant_kernels::{Bits, GroupSize};
use serde_json::{Map, Value, json};

use super::{
    AFFINE, Content, Dialect, GroupedTensor, Layer, NewTensor, allowed, is_embedding, is_linear, most_frequent,
};
use crate::plan::Allowed;

#[derive(Debug)]
pub(super) struct Mlx;

impl Dialect for Mlx {
    fn allowed(&self) -> Allowed {
        const GROUP_SIZES: &[GroupSize] = &super::super::sizes([32, 64, 128]);
        Allowed {
            bits: Bits::ALL,
            group_sizes: GROUP_SIZES,
            schemes: AFFINE,
            ..allowed("mlx", |tensor| {
                let is_table = tensor.shape.len() == 2 && is_embedding(&tensor.name);
                !(is_linear(tensor) || is_table && tensor.name.ends_with("embed_tokens.weight"))
            })
        }
    }

    fn tensors(&self, tensor: &GroupedTensor<'_>) -> Vec<NewTensor> {
        let words = tensor.columns * tensor.bits.get() as i64 / 32;
        let parameter = |name: &str, content| NewTensor {
            name: format!("{}.{name}", tensor.module()),
            stored: tensor.parameter_type(),
            shape: vec![tensor.rows, tensor.groups()],
            content,
        };
        let codes = NewTensor {
            name: tensor.name.to_string(),
            stored: StoredType::U32,
            shape: vec![tensor.rows, words],
            content: Content::Codes,
        };
        vec![codes, parameter("scales", Content::Scales), parameter("biases", Content::Minima)]
    }

    fn format(&self) -> &'static str {
        "mlx"
    }

    fn configure(&self, config: &mut Map<String, Value>, layers: &[Layer]) {
        let quantized = || layers.iter().filter_map(|layer| Some((layer, layer.grouped?)));
        let Some((bits, group_size)) = most_frequent(quantized().map(|(_, grouped)| grouped)) else { return };
        let of = |(bits, group_size): (Bits, GroupSize)| json!({"group_size": group_size.get(), "bits": bits.get()});
        let mut description = Map::new();
        description.insert("group_size".to_string(), json!(group_size.get()));
        description.insert("bits".to_string(), json!(bits.get()));
        description.insert("mode".to_string(), json!("affine"));
        for layer in layers {
            match layer.grouped {
                Some(grouped) if grouped == (bits, group_size) => {}
                Some(grouped) => drop(description.insert(layer.module.clone(), of(grouped))),
                None if layer.is_linear => drop(description.insert(layer.module.clone(), json!(false))),
                None => {}
            }
        }
        config.insert("quantization".to_string(), Value::Object(description.clone()));
        config.insert("quantization_config".to_string(), Value::Object(description));
        tell_of_positions(config);
    }
}

/// Writes how positions are scaled where mlx-lm looks for it: transformers from version 5 on has it in `rope_parameters`.
fn tell_of_positions(config: &mut Map<String, Value>) {
    let Some(rope) = config.get("rope_parameters").and_then(Value::as_object).cloned() else { return };
    if let (false, Some(theta)) = (config.contains_key("rope_theta"), rope.get("rope_theta")) {
        config.insert("rope_theta".to_string(), theta.clone());
    }
    let is_scaled = rope.get("rope_type").and_then(Value::as_str).is_some_and(|kind| kind != "default");
    if is_scaled && config.get("rope_scaling").is_none_or(Value::is_null) {
        let scaling = rope.into_iter().filter(|(key, _)| key != "rope_theta").collect();
        config.insert("rope_scaling".to_string(), Value::Object(scaling));
    }
}
