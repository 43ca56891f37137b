//! A model's tensors, from its headers alone.

use std::path::Path;

use arrow::array::RecordBatch;
use arrow::json::ArrayWriter;

use crate::report::{InspectedTensor, Inspection};
use crate::session::{register, session};
use crate::{AnyModel, Model, QuantError, Result, blocking};

/// What is told of the table `tensors`.
const QUERY: &str = "SELECT component, tensor, dtype, shape, elements, bytes FROM m.tensors";

/// Lists the tensors of a model, quantized or not; of weights with variants, those of the variant that is asked for. No weight is
/// read.
///
/// # Errors
/// If there is no readable model at the path, or no such variant.
pub async fn inspect_model(path: &Path, variant: Option<&str>, threads: usize) -> Result<Inspection> {
    let (at, variant) = (path.to_path_buf(), variant.map(str::to_string));
    let model = blocking(move || AnyModel::open_variant(&at, variant.as_deref())).await?;
    let ctx = session(threads)?;
    register(&ctx, "m", &model)?;
    let tensors = tensors(&ctx.sql(QUERY).await?.collect().await?)?;
    let (files, left_out, quantized_by) = match &model {
        AnyModel::Weights(model) => (
            model.files().map(|(name, _)| name.to_string()).collect(),
            model.left_out().iter().map(ToString::to_string).collect(),
            quantized_by(model),
        ),
        AnyModel::Quantized(_) => (Vec::new(), Vec::new(), None),
    };
    Ok(Inspection {
        model: path.to_string_lossy().into_owned(),
        files,
        left_out,
        quantized_by,
        weights: tensors.iter().map(|tensor| tensor.elements).sum(),
        bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        tensors,
    })
}

/// How another program quantized the weights, and whether they are restored.
fn quantized_by(model: &Model) -> Option<String> {
    let restored = model.restored_from().next().map(|source| format!("{source}; the tensors are restored to F32"));
    let stored = model.quantized_source().filter(|source| source.is_in_tensors);
    stored.map(ToString::to_string).or(restored)
}

/// The rows, by way of JSON: whatever encodings Arrow has for them.
fn tensors(batches: &[RecordBatch]) -> Result<Vec<InspectedTensor>> {
    let mut writer = ArrayWriter::new(Vec::new());
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    let unexpected = |error| QuantError::Quantization {
        tensor: None,
        message: format!("the table of tensors is not as expected: {error}"),
    };
    serde_json::from_slice(&writer.into_inner()).map_err(unexpected)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, ListArray, StringArray, StringViewArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn rows_of_any_encoding_are_read() {
        let columns: [(&str, ArrayRef); 6] = [
            ("component", Arc::new(StringArray::from(vec!["", "unet"]))),
            ("tensor", Arc::new(StringViewArray::from(vec!["norm", "conv"]))),
            ("dtype", Arc::new(StringArray::from(vec!["F32", "BF16"]))),
            (
                "shape",
                Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([
                    Some(vec![]),
                    Some(vec![Some(2), Some(1000)]),
                ])),
            ),
            ("elements", Arc::new(Int64Array::from(vec![1, 2000]))),
            ("bytes", Arc::new(Int64Array::from(vec![4, 4000]))),
        ];
        let tensors = tensors(&[RecordBatch::try_from_iter(columns).unwrap()]).unwrap();
        let conv = InspectedTensor {
            component: "unet".to_string(),
            tensor: "conv".to_string(),
            dtype: "BF16".to_string(),
            shape: vec![2, 1000],
            elements: 2000,
            bytes: 4000,
        };
        assert_eq!((tensors[0].shape.len(), &tensors[1]), (0, &conv));
    }

    #[test]
    fn no_batches_are_no_tensors() {
        assert!(tensors(&[]).unwrap().is_empty());
    }
}
