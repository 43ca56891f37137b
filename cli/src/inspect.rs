//! `arrow-quant inspect`: list a model's tensors, from its headers alone.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use arrow_quant_v2::{Inspection, inspect_model};

use crate::failure::Failure;
use crate::report::tensors_of;
use crate::table::{Table, clean, tensor_label, write_facts};
use crate::{in_runtime, numbers, output};

/// What help says after the flags.
const EXAMPLES: &str = "\
Examples:
  arrow-quant inspect dream-7b
  arrow-quant inspect dream-7b-int4 --json";

/// Arguments of `arrow-quant inspect`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The model, quantized or not
    model: PathBuf,
    /// Which of its weights to look at, where it has them in several variants: fp16 of model.fp16.safetensors
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Print tensors and totals as JSON
    #[arg(long)]
    pub json: bool,
}

/// Shows the model's tensors.
pub(crate) fn run(arguments: &Arguments, threads: usize) -> Result<(), Failure> {
    let Arguments { model, variant, .. } = arguments;
    let inspection = in_runtime(threads, async { Ok(inspect_model(model, variant.as_deref(), threads).await?) })?;
    if arguments.json {
        return output::write_json(&inspection);
    }
    let mut out = output::stdout();
    write_inspection(&inspection, &mut out)?;
    out.flush()?;
    Ok(())
}

/// The tensors as the model orders them, and the totals.
fn write_inspection(inspection: &Inspection, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new().names("tensor").text("dtype").text("shape").number("weights").number("size");
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
    if !inspection.files.is_empty() {
        facts.push(("files", inspection.files.join(", ")));
    }
    facts.extend(inspection.quantized_by.iter().map(|scheme| ("quantized by", scheme.clone())));
    write_facts(&facts, out)?;
    for line in &inspection.left_out {
        writeln!(out, "{}", clean(line.clone()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow_quant_v2::InspectedTensor;

    use super::*;

    #[test]
    fn tensors_are_listed_and_summed() {
        let tensor = |component: &str, name: &str, dtype: &str, shape: &[i64], bytes| InspectedTensor {
            component: component.to_string(),
            tensor: name.to_string(),
            dtype: dtype.to_string(),
            shape: shape.to_vec(),
            elements: shape.iter().product::<i64>() as u64,
            bytes,
        };
        let inspection = Inspection {
            model: "m".to_string(),
            weights: 2001,
            bytes: 4004,
            files: vec!["a.safetensors".to_string()],
            left_out: vec!["left out: `b.bin`: weights in a format that is not read".to_string()],
            quantized_by: None,
            tensors: vec![tensor("", "norm", "F32", &[], 4), tensor("unet", "conv", "BF16", &[2, 1000], 4000)],
        };
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
}
