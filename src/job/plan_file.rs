//! Plans as files: tables with a row a tensor, to be looked at, edited, and given to a job.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use arrow_quant_kernels::{Bits, GroupSize, Settings};
use datafusion::prelude::{CsvReadOptions, ParquetReadOptions};
use parquet::arrow::ArrowWriter;

use super::plan::{Choice, TensorPlan, full_name, unite};
use super::planning::{PlanReport, PlannedTensor};
use super::ties::repeated;
use crate::config::nearest;
use crate::session::session;
use crate::{Model, QuantError, Result, Tensor};

/// The columns that a job looks at.
const COLUMNS: [&str; 4] = ["component", "tensor", "bits", "group_size"];

/// The ways to store a plan.
enum Format {
    Parquet,
    Csv,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            Some("parquet") => Ok(Self::Parquet),
            Some("csv") => Ok(Self::Csv),
            _ => Err(QuantError::Configuration(format!(
                "the plan `{}` is of no known format, allowed: names that end with .parquet or .csv",
                path.display()
            ))),
        }
    }
}

/// Writes a plan.
pub(super) fn write(plan: &PlanReport, path: &Path) -> Result<()> {
    let format = Format::of(path)?;
    let batch = batch(&plan.tensors)?;
    let failed = |error: &dyn std::error::Error| QuantError::Quantization {
        tensor: None,
        message: format!("the plan `{}` cannot be written: {error}", path.display()),
    };
    let file = File::create(path).map_err(|e| QuantError::io(path, e))?;
    match format {
        Format::Parquet => {
            let mut writer = ArrowWriter::try_new(file, batch.schema(), None).map_err(|e| failed(&e))?;
            writer.write(&batch).and_then(|()| writer.close().map(drop)).map_err(|e| failed(&e))
        }
        Format::Csv => arrow::csv::Writer::new(file).write(&batch).map_err(|e| failed(&e)),
    }
}

fn batch(tensors: &[PlannedTensor]) -> Result<RecordBatch> {
    let text =
        |f: fn(&PlannedTensor) -> Option<String>| Arc::new(tensors.iter().map(f).collect::<StringArray>()) as ArrayRef;
    let int =
        |f: fn(&PlannedTensor) -> Option<i64>| Arc::new(tensors.iter().map(f).collect::<Int64Array>()) as ArrayRef;
    let float =
        |f: fn(&PlannedTensor) -> Option<f64>| Arc::new(tensors.iter().map(f).collect::<Float64Array>()) as ArrayRef;
    Ok(RecordBatch::try_from_iter_with_nullable([
        ("component", text(|t| Some(t.component.clone())), true),
        ("tensor", text(|t| Some(t.tensor.clone())), false),
        ("bits", int(|t| t.bits.map(i64::from)), true),
        ("group_size", int(|t| t.group_size.map(i64::from)), true),
        ("because", text(|t| Some(t.because.clone())), true),
        ("dtype", text(|t| Some(t.dtype.clone())), true),
        ("shape", text(|t| Some(format!("{:?}", t.shape))), true),
        ("elements", int(|t| Some(t.elements as i64)), true),
        ("bytes", int(|t| Some(t.bytes as i64)), true),
        ("sqnr_db", float(|t| t.sqnr_db), true),
        ("cosine_similarity", float(|t| t.cosine_similarity), true),
    ])?)
}

/// What a row says of a tensor.
type Row = (Option<i64>, Option<i64>);

/// Reads the plan of a model.
///
/// # Errors
/// If the file is none, has a row for a tensor that the model has not or none for one that it has, or a row says what
/// cannot be done.
pub(super) async fn read(path: &Path, model: &Model, settings: Settings) -> Result<Vec<TensorPlan>> {
    let defect = |message: String| QuantError::Metadata {
        path: path.to_path_buf(),
        tensor: None,
        message: format!("the plan `{}`: {message}", path.display()),
    };
    let mut rows = rows(path, &defect).await?;
    let mut plans = Vec::with_capacity(model.tensors().len());
    for tensor in model.tensors() {
        let name = full_name(&tensor.component, &tensor.name);
        let Some(row) = rows.remove(&(tensor.component.clone(), tensor.name.clone())) else {
            return Err(defect(format!("it has no row for {name}; give it one, with bits NULL to keep the tensor")));
        };
        let choice = choice(tensor, row, settings).map_err(|message| defect(format!("{name}: {message}")))?;
        plans.push(TensorPlan {
            component: tensor.component.clone(),
            tensor: tensor.name.clone(),
            choice,
            because: "plan".to_string(),
            is_open: false,
            same_as: None,
        });
    }
    if let Some((component, tensor)) = rows.into_keys().min() {
        let near = nearest(&tensor, model.tensors().iter().map(|t| t.name.as_str()));
        let advice = near.map_or("remove the row".to_string(), |near| format!("did you mean '{near}'?"));
        return Err(defect(format!("{} is no tensor of the model; {advice}", full_name(&component, &tensor))));
    }
    unite(&mut plans, &repeated(model.tensors()));
    Ok(plans)
}

/// The rows by component and tensor.
async fn rows(path: &Path, defect: &impl Fn(String) -> QuantError) -> Result<HashMap<(String, String), Row>> {
    // Asked for here, because to the readers below a file that is not there is an empty table.
    std::fs::metadata(path).map_err(|e| QuantError::io(path, e))?;
    let ctx = session(1)?;
    let name = path.to_string_lossy().into_owned();
    let table = match Format::of(path)? {
        Format::Parquet => ctx.read_parquet(name, ParquetReadOptions::default()).await?,
        Format::Csv => ctx.read_csv(name, CsvReadOptions::new()).await?,
    };
    let found: HashSet<String> = table.schema().fields().iter().map(|field| field.name().clone()).collect();
    if let Some(missing) = COLUMNS.iter().find(|column| !found.contains(**column)) {
        return Err(defect(format!("it has no column {missing}, expected {}", COLUMNS.join(", "))));
    }
    let mut rows = HashMap::new();
    for batch in table.select_columns(&COLUMNS)?.collect().await? {
        let column = |name: &str, data_type| cast(&batch[name], &data_type);
        let (components, tensors) = (column("component", DataType::Utf8)?, column("tensor", DataType::Utf8)?);
        let integers = |name| {
            let column = column(name, DataType::Int64)?;
            // A cast makes what is no integer NULL, which would keep the tensor.
            match column.null_count() > batch[name].logical_null_count() {
                true => Err(defect(format!("a value of {name} is no whole number"))),
                false => Ok(column),
            }
        };
        let (bits, sizes) = (integers("bits")?, integers("group_size")?);
        let (components, tensors) = (components.as_string::<i32>(), tensors.as_string::<i32>());
        let (bits, sizes) = (bits.as_primitive::<Int64Type>(), sizes.as_primitive::<Int64Type>());
        for row in 0..batch.num_rows() {
            // CSV has no empty text beside NULL.
            let component = if components.is_null(row) { "" } else { components.value(row) };
            let key = (component.to_string(), tensors.value(row).to_string());
            let value = (bits.is_valid(row).then(|| bits.value(row)), sizes.is_valid(row).then(|| sizes.value(row)));
            if rows.insert(key.clone(), value).is_some() {
                return Err(defect(format!("it has two rows for {}", full_name(&key.0, &key.1))));
            }
        }
    }
    Ok(rows)
}

/// What a row asks for, checked.
fn choice(tensor: &Tensor, (bits, group_size): Row, settings: Settings) -> Result<Option<Choice>, String> {
    let Some(bits) = bits.filter(|bits| *bits != 16) else { return Ok(None) };
    if tensor.float_dtype().is_none() || tensor.shape.len() < 2 {
        let what =
            if tensor.shape.len() < 2 { "it has less than two dimensions" } else { "its dtype is not quantized" };
        return Err(format!("bits is {bits}, but {what}: allowed is NULL, to keep it"));
    }
    let bits = Bits::try_from(bits).map_err(|_| format!("bits is {bits}, allowed: 2, 4, 8, or NULL to keep it"))?;
    let group_size = match group_size {
        Some(size) => GroupSize::try_from(size).map_err(|e| e.to_string())?,
        None => settings.group_size,
    };
    Ok(Some(Choice { bits, group_size }))
}
