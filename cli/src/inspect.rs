//! `arrow-quant inspect`: list a model's tensors, from its headers alone.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::json::ArrayWriter;
use arrow_quant_v2::{AnyModel, register, session};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::report::tensors_of;
use crate::table::{Table, clean, tensor_label, write_facts};
use crate::{in_runtime, numbers, output};

/// What is shown of the table `tensors`.
const QUERY: &str = "SELECT component, tensor, dtype, shape, elements, bytes FROM m.tensors";

/// Arguments of `arrow-quant inspect`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model, quantized or not
    model: PathBuf,
    /// Which of its weights to look at, where it has them in several variants: fp16 of model.fp16.safetensors
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Print tensors and totals as JSON
    #[arg(long)]
    json: bool,
}

/// A row of the table `tensors`.
#[derive(Debug, Serialize, Deserialize)]
struct Tensor {
    #[serde(default)]
    component: String,
    tensor: String,
    dtype: String,
    #[serde(default)]
    shape: Vec<i64>,
    elements: u64,
    bytes: u64,
}

/// A model's tensors and their totals.
#[derive(Serialize)]
struct Inspection {
    model: String,
    weights: u64,
    bytes: u64,
    #[serde(flatten)]
    found: Found,
    tensors: Vec<Tensor>,
}

/// What was found where the model is.
#[derive(Debug, Default, Serialize)]
struct Found {
    /// The files that the weights are in.
    files: Vec<String>,
    /// What is beside them, and why it is no part of the model.
    left_out: Vec<String>,
    /// How another program quantized them.
    quantized_by: Option<String>,
}

impl Found {
    fn of(model: &AnyModel) -> Result<Self, Failure> {
        Ok(match model {
            AnyModel::Weights(model) => Self {
                files: model.files().map(|(name, _)| name.to_string()).collect(),
                left_out: model.left_out().iter().map(ToString::to_string).collect(),
                quantized_by: model
                    .quantized_source()?
                    .filter(|source| source.is_in_tensors)
                    .map(|source| source.to_string()),
            },
            AnyModel::Quantized(_) => Self::default(),
        })
    }
}

/// Shows the model's tensors.
pub(crate) fn run(arguments: &Arguments, threads: usize) -> Result<(), Failure> {
    let model = AnyModel::open_variant(&arguments.model, arguments.variant.as_deref())?;
    let tensors = tensors(&in_runtime(threads, query(&model, threads))?)?;
    let inspection = Inspection {
        model: arguments.model.to_string_lossy().into_owned(),
        found: Found::of(&model)?,
        weights: tensors.iter().map(|tensor| tensor.elements).sum(),
        bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        tensors,
    };
    if arguments.json {
        return output::write_json(&inspection);
    }
    let mut out = output::stdout();
    write_inspection(&inspection, &mut out)?;
    out.flush()?;
    Ok(())
}

async fn query(model: &AnyModel, threads: usize) -> Result<Vec<RecordBatch>, Failure> {
    let ctx = session(threads)?;
    register(&ctx, "m", model)?;
    Ok(ctx.sql(QUERY).await?.collect().await?)
}

/// The rows, by way of JSON: whatever encodings Arrow has for them.
fn tensors(batches: &[RecordBatch]) -> Result<Vec<Tensor>, Failure> {
    let mut writer = ArrayWriter::new(Vec::new());
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    serde_json::from_slice(&writer.into_inner())
        .map_err(|error| Failure::Message(format!("the table of tensors is not as expected: {error}")))
}

/// The tensors as the model orders them, and the totals.
fn write_inspection(inspection: &Inspection, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new().text("tensor").text("dtype").text("shape").number("weights").number("size");
    let mut dtypes: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in &inspection.tensors {
        table.row([
            tensor_label(&tensor.component, &tensor.tensor),
            tensor.dtype.clone(),
            format!("{:?}", tensor.shape),
            numbers::grouped(tensor.elements),
            numbers::bytes(tensor.bytes),
        ]);
        let (tensors, bytes) = dtypes.entry(&tensor.dtype).or_default();
        *tensors += 1;
        *bytes += tensor.bytes;
    }
    table.write(out)?;
    writeln!(out)?;
    let dtypes = dtypes
        .iter()
        .map(|(dtype, (tensors, bytes))| format!("{dtype}: {}, {}", tensors_of(*tensors), numbers::bytes(*bytes)));
    let mut facts = vec![
        ("tensors", inspection.tensors.len().to_string()),
        ("weights", numbers::count(inspection.weights)),
        ("size", numbers::bytes(inspection.bytes)),
        ("dtypes", dtypes.collect::<Vec<_>>().join("; ")),
    ];
    let Found { files, left_out, quantized_by } = &inspection.found;
    if !files.is_empty() {
        facts.push(("files", files.join(", ")));
    }
    facts.extend(quantized_by.iter().map(|scheme| ("quantized by", scheme.clone())));
    write_facts(&facts, out)?;
    for line in left_out {
        writeln!(out, "{}", clean(line.clone()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, ListArray, StringArray, StringViewArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn rows_of_any_encoding_are_read_and_summed() {
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
        let found = Found {
            files: vec!["a.safetensors".to_string()],
            left_out: vec!["left out: `b.bin`: weights in a format that is not read".to_string()],
            quantized_by: None,
        };
        let inspection = Inspection { model: "m".to_string(), weights: 2001, bytes: 4004, found, tensors };
        let mut out = Vec::new();
        write_inspection(&inspection, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("unet/conv  BF16   [2, 1000]    2,000  4.00 kB\n"), "{text}");
        assert!(text.contains("dtypes   BF16: 1 tensor, 4.00 kB; F32: 1 tensor, 4 B\n"), "{text}");
        assert!(
            text.ends_with("files    a.safetensors\nleft out: `b.bin`: weights in a format that is not read\n"),
            "{text}"
        );
    }

    #[test]
    fn no_batches_are_no_tensors() {
        assert!(tensors(&[]).unwrap().is_empty());
    }
}
