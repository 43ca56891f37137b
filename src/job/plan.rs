//! Which tensors are quantized to what, and which are kept.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow_quant_kernels::{Isa, KernelError, Method, Scheme, Settings, Weights, group_count, par_quantize};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use regex::Regex;

use crate::{Result, Tensor};

/// What becomes of one tensor.
#[derive(Debug, Clone)]
pub(crate) struct TensorPlan {
    pub component: String,
    pub tensor: String,
    /// `None` if it is kept.
    pub settings: Option<Settings>,
    /// Why it is kept.
    pub kept_because: Option<String>,
}

impl TensorPlan {
    pub fn key(&self) -> (&str, &str) {
        (&self.component, &self.tensor)
    }
}

/// `component/tensor`, or the tensor's name alone in a plain model.
pub(crate) fn full_name(component: &str, tensor: &str) -> String {
    if component.is_empty() { tensor.to_string() } else { format!("{component}/{tensor}") }
}

/// The plan for every tensor of a model, in its order.
pub(crate) fn plan_tensors(model: &crate::Model, settings: Settings, selected: Option<&Regex>) -> Vec<TensorPlan> {
    let plan = |tensor: &Tensor| {
        let kept_because = reason_to_keep(tensor, settings, selected);
        TensorPlan {
            component: tensor.component.clone(),
            tensor: tensor.name.clone(),
            settings: kept_because.is_none().then_some(settings),
            kept_because,
        }
    };
    model.tensors().iter().map(plan).collect()
}

fn reason_to_keep(tensor: &Tensor, settings: Settings, selected: Option<&Regex>) -> Option<String> {
    if tensor.float_dtype().is_none() {
        return Some(format!("{} is not quantized", tensor.dtype));
    }
    if tensor.shape.len() < 2 {
        return Some(format!("{}-D", tensor.shape.len()));
    }
    if selected.is_some_and(|regex| !regex.is_match(&tensor.name)) {
        return Some("not selected".to_string());
    }
    // With f16 parameters; short rows, as of a patch embedding, may take more for them than they save.
    if quantized_bytes(tensor, settings) >= tensor.bytes {
        return Some("no smaller".to_string());
    }
    None
}

/// Bytes of codes and f16 parameters.
fn quantized_bytes(tensor: &Tensor, settings: Settings) -> u64 {
    let (elements, row) = (tensor.elements() as usize, tensor.row_length() as usize);
    let groups = group_count(elements, row.max(1), settings.group_size);
    let per_group = match settings.scheme {
        Scheme::Affine => 4,
        Scheme::Asymmetric => 3,
        Scheme::Symmetric => 2,
    };
    (settings.bits.packed_len(elements) + groups * per_group) as u64
}

/// The plan as a table to join with; `bits` is NULL for tensors that are kept.
pub(crate) fn plan_table(plans: &[TensorPlan]) -> Result<Arc<dyn TableProvider>> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("component", DataType::Utf8, false),
        Field::new("tensor", DataType::Utf8, false),
        Field::new("bits", DataType::Int64, true),
        Field::new("group_size", DataType::Int64, true),
    ]));
    let int = |f: fn(&Settings) -> usize| {
        plans.iter().map(|plan| plan.settings.as_ref().map(|s| f(s) as i64)).collect::<Int64Array>()
    };
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(StringArray::from_iter_values(plans.iter().map(|plan| &plan.component))),
            Arc::new(StringArray::from_iter_values(plans.iter().map(|plan| &plan.tensor))),
            Arc::new(int(|s| s.bits.get())),
            Arc::new(int(|s| s.group_size.get())),
        ],
    )?;
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
}

/// Why a tensor cannot be quantized: its first weight that is not finite, or too large.
pub(crate) fn first_refused(tensor: &Tensor, settings: Settings) -> Option<KernelError> {
    let (isa, dtype) = (Isa::active().ok()?, tensor.float_dtype()?);
    let weights = Weights::new(dtype, tensor.data(), tensor.row_length() as usize).ok()?;
    par_quantize(isa, weights, Settings { method: Method::MinMax, ..settings }, None).err()
}
