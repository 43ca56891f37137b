//! SDNQ: SD.Next's quantization, which diffusers and InvokeAI read too. Its zero points are floats, so our affine codes are
//! stored exactly.
//!
//! Source: sdnq 0.2.8 and diffusers 0.42.1 as they were run (export-notes).

use arrow_quant_formats::StoredType;
use arrow_quant_kernels::{Bits, GroupSize, ParameterDtype};
use serde_json::{Map, Value, json};

use super::{
    AFFINE, Content, Dialect, GroupedTensor, Layer, NewTensor, absent_head, allowed, is_linear, most_frequent,
};
use crate::plan::Allowed;

#[derive(Debug)]
pub(super) struct Sdnq;

impl Dialect for Sdnq {
    fn allowed(&self) -> Allowed {
        Allowed {
            bits: &[Bits::Two, Bits::Four, Bits::Eight],
            group_sizes: GroupSize::ALL,
            schemes: AFFINE,
            ..allowed("sdnq", |tensor| !is_linear(tensor))
        }
    }

    fn has_one_group_size(&self) -> bool {
        true
    }

    fn parameters(&self, _: ParameterDtype) -> ParameterDtype {
        ParameterDtype::F32
    }

    fn tensors(&self, tensor: &GroupedTensor<'_>) -> Vec<NewTensor> {
        let (module, rows, groups) = (tensor.module(), tensor.rows, tensor.groups());
        // Codes of less than a byte are flat, whatever the shape is.
        let shape = match tensor.bits {
            Bits::Eight => vec![rows, groups, tensor.group_size.get() as i64],
            bits => vec![rows * tensor.columns * bits.get() as i64 / 8],
        };
        let parameters = if groups == 1 { vec![rows, 1] } else { vec![rows, groups, 1] };
        let parameter = |name: &str, content| NewTensor {
            name: format!("{module}.{name}"),
            stored: tensor.parameter_type(),
            shape: parameters.clone(),
            content,
        };
        vec![
            NewTensor { name: tensor.name.to_string(), stored: StoredType::U8, shape, content: Content::Codes },
            parameter("scale", Content::Scales),
            parameter("zero_point", Content::Minima),
        ]
    }

    fn configure(&self, config: &mut Map<String, Value>, layers: &[Layer]) {
        let quantized = || layers.iter().filter_map(|layer| Some((layer, layer.grouped?)));
        let Some((bits, group_size)) = most_frequent(quantized().map(|(_, grouped)| grouped)) else { return };
        // Layers are named by their tensors.
        let tensor = |module: &str| format!("{module}.weight");
        let of_type = |bits: Bits| format!("uint{}", bits.get());
        let mut dtypes = Map::new();
        for &other in Bits::ALL.iter().filter(|other| **other != bits) {
            let modules: Vec<_> =
                quantized().filter(|(_, grouped)| grouped.0 == other).map(|(layer, _)| tensor(&layer.module)).collect();
            if !modules.is_empty() {
                dtypes.insert(of_type(other), json!(modules));
            }
        }
        let kept = layers.iter().filter(|layer| layer.grouped.is_none()).map(|layer| layer.module.as_str());
        let kept: Vec<_> = kept.chain(absent_head(layers)).map(tensor).collect();
        let description = json!({
            "quant_method": "sdnq",
            "weights_dtype": of_type(bits),
            "group_size": group_size.get(),
            "modules_to_not_convert": kept,
            "modules_dtype_dict": dtypes,
        });
        config.insert("quantization_config".to_string(), description);
    }
}
