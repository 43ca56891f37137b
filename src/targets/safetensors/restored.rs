//! Floats of one type: what every program reads.

use arrow_quant_kernels::Dtype;
use serde_json::{Map, Value};

use super::{Dialect, GroupedTensor, Layer, NewTensor, allowed};
use crate::plan::Allowed;

#[derive(Debug)]
pub(super) struct Restored;

impl Dialect for Restored {
    fn allowed(&self) -> Allowed {
        Allowed { floats: &[Dtype::F32, Dtype::F16, Dtype::BF16], ..allowed("safetensors", |_| true) }
    }

    /// None: it holds no codes.
    fn tensors(&self, _: &GroupedTensor<'_>) -> Vec<NewTensor> {
        Vec::new()
    }

    fn needs_config(&self) -> bool {
        false
    }

    fn configure(&self, _: &mut Map<String, Value>, _: &[Layer]) {}
}
