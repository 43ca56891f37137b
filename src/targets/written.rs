//! What is measured of a part while it is written, whatever the target: bytes and error sums of each tensor.

use arrow::array::{Array, AsArray, BinaryViewArray, RecordBatch};
use arrow_quant_kernels::PairSums;
use arrow_quant_udfs::error_sums;
use serde::{Deserialize, Serialize};

use crate::{QuantError, Result};

/// The columns that hold codes, parameters and kept weights.
pub(super) const PAYLOADS: [[&str; 2]; 5] = [
    ["quantized", "codes"],
    ["quantized", "scales"],
    ["quantized", "minima"],
    ["quantized", "zero_points"],
    ["weights", "data"],
];

/// What a batch added.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written {
    /// Weights that were quantized.
    pub weights: u64,
    /// The last tensor.
    pub tensor: String,
}

/// What was written of one tensor in one part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WrittenTensor {
    pub component: String,
    pub tensor: String,
    /// Of codes and parameters, or of kept elements.
    pub bytes: u64,
    /// `None` if it was kept.
    #[serde(with = "sums")]
    pub errors: Option<PairSums>,
}

/// Error sums as a list of their fields.
mod sums {
    use arrow_quant_kernels::PairSums;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Fields = (u64, f64, f64, f64, f64, f64);

    pub(super) fn serialize<S: Serializer>(sums: &Option<PairSums>, serializer: S) -> Result<S::Ok, S::Error> {
        let fields: Option<Fields> = sums.map(|s| (s.n, s.sum_aa, s.sum_bb, s.sum_ab, s.sum_ee, s.max_abs_error));
        fields.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PairSums>, D::Error> {
        let fields = Option::<Fields>::deserialize(deserializer)?;
        Ok(fields.map(|(n, sum_aa, sum_bb, sum_ab, sum_ee, max_abs_error)| PairSums {
            n,
            sum_aa,
            sum_bb,
            sum_ab,
            sum_ee,
            max_abs_error,
        }))
    }
}

/// Adds what a batch holds to what was written of each tensor: rows of one tensor follow each other, and their sums are
/// added in the order of its chunks.
pub(crate) fn add_written(batch: &RecordBatch, tensors: &mut Vec<WrittenTensor>) -> Result<Written> {
    let column = |name: &str| batch.column_by_name(name).map(|c| c.as_ref());
    let (Some(components), Some(names), Some(quantized), Some(weights)) =
        (column("component"), column("tensor"), column("quantized"), column("weights"))
    else {
        return Err(QuantError::configuration("the batch lacks columns of a quantized model"));
    };
    let (components, names) = (components.as_string::<i32>(), names.as_string::<i32>());
    let (quantized, weights) = (quantized.as_struct(), weights.as_struct());
    let sums = error_sums(quantized)?;
    let payloads: Vec<(&BinaryViewArray, bool)> = PAYLOADS
        .iter()
        .filter_map(|[parent, field]| {
            let is_quantized = *parent == "quantized";
            let parent = if is_quantized { quantized } else { weights };
            Some((parent.column_by_name(field)?.as_binary_view(), is_quantized))
        })
        .collect();
    let mut written = Written::default();
    for (row, errors) in sums.into_iter().enumerate() {
        let is_quantized = quantized.is_valid(row);
        let bytes = payloads
            .iter()
            .filter(|(column, of_quantized)| *of_quantized == is_quantized && column.is_valid(row))
            .map(|(column, _)| column.value(row).len() as u64);
        let (component, tensor) = (components.value(row), names.value(row));
        match tensors.last_mut().filter(|last| last.component == component && last.tensor == tensor) {
            Some(last) => {
                last.bytes += bytes.sum::<u64>();
                last.errors = match (last.errors, errors) {
                    (Some(a), Some(b)) => Some(a + b),
                    (a, b) => a.or(b),
                };
            }
            None => tensors.push(WrittenTensor {
                component: component.to_string(),
                tensor: tensor.to_string(),
                bytes: bytes.sum(),
                errors,
            }),
        }
        written.weights += errors.map_or(0, |errors| errors.n);
        written.tensor = tensor.to_string();
    }
    Ok(written)
}
