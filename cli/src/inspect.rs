//! `arrow-quant inspect`: list a model's tensors, from its headers alone.

use std::collections::BTreeMap;
use std::io::{self, Write};

use arrow::array::RecordBatch;
use arrow::json::ArrayWriter;
use arrow_quant_v2::{register_model, session};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::report::tensors_of;
use crate::table::{Table, tensor_label, write_facts};
use crate::{in_runtime, numbers, output};

/// What is shown of the table `tensors`.
const QUERY: &str = "SELECT component, tensor, dtype, shape, elements, bytes FROM m.tensors";

/// Arguments of `arrow-quant inspect`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model, quantized or not
    model: String,
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
struct Inspection<'a> {
    model: &'a str,
    weights: u64,
    bytes: u64,
    tensors: Vec<Tensor>,
}

/// Shows the model's tensors.
pub(crate) fn run(arguments: &Arguments, threads: usize) -> Result<(), Failure> {
    let tensors = tensors(&in_runtime(threads, query(&arguments.model, threads))?)?;
    let inspection = Inspection {
        model: &arguments.model,
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

async fn query(model: &str, threads: usize) -> Result<Vec<RecordBatch>, Failure> {
    let ctx = session(threads)?;
    register_model(&ctx, "m", model).await?;
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
fn write_inspection(inspection: &Inspection<'_>, out: &mut impl Write) -> io::Result<()> {
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
    write_facts(
        &[
            ("tensors", inspection.tensors.len().to_string()),
            ("weights", numbers::count(inspection.weights)),
            ("size", numbers::bytes(inspection.bytes)),
            ("dtypes", dtypes.collect::<Vec<_>>().join("; ")),
        ],
        out,
    )
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
        let inspection = Inspection { model: "m", weights: 2001, bytes: 4004, tensors };
        let mut out = Vec::new();
        write_inspection(&inspection, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("unet/conv  BF16   [2, 1000]    2,000  4.00 kB\n"), "{text}");
        assert!(text.contains("dtypes   BF16: 1 tensor, 4.00 kB; F32: 1 tensor, 4 B\n"), "{text}");
    }

    #[test]
    fn no_batches_are_no_tensors() {
        assert!(tensors(&[]).unwrap().is_empty());
    }
}
