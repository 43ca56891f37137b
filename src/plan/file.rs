//! Plans as files: tables with a row a tensor, to be looked at, edited, and given to a job.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use arrow_quant_formats::manifest::Reason;
use arrow_quant_formats::{full_name, nearest};
use arrow_quant_kernels::{Bits, GroupSize};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::allowed::Allowed;
use super::choice::{Choice, JobSettings};
use super::tensors::{TensorPlan, unite};
use super::ties::repeated;
use crate::config::WeightType;
use crate::config::listed::BITS_AND_MORE;
use crate::{Model, PlanReport, PlannedTensor, QuantError, Result, SettingProblem, Tensor};

/// The columns that a job looks at, and that a plan must have.
const COLUMNS: [&str; 4] = ["component", "tensor", "bits", "group_size"];

/// The column of types, which a plan need not have: grouped integers are said by their bits.
const TYPE: &str = "type";

/// The ways to store a plan.
enum Format {
    Parquet,
    Csv,
}

impl Format {
    /// The format of a file that a setting names.
    fn of(path: &Path, setting: &'static str) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            Some("parquet") => Ok(Self::Parquet),
            Some("csv") => Ok(Self::Csv),
            _ => Err(QuantError::setting(setting, SettingProblem::PlanName { path: path.to_path_buf() })),
        }
    }
}

impl PlanReport {
    /// Writes the plan as a table with a row a tensor, which may be edited and given to a job: Parquet, or CSV where
    /// the name ends so. What is in a file of that name is replaced.
    ///
    /// # Errors
    /// If the name ends otherwise, or the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        write(self, path.as_ref())
    }
}

/// Writes a plan.
fn write(plan: &PlanReport, path: &Path) -> Result<()> {
    let format = Format::of(path, "path")?;
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
        (TYPE, text(block_type), true),
        ("because", text(|t| Some(t.because.to_string())), true),
        ("dtype", text(|t| Some(t.dtype.clone())), true),
        ("shape", text(|t| Some(format!("{:?}", t.shape))), true),
        ("elements", int(|t| Some(t.elements as i64)), true),
        ("bytes", int(|t| Some(t.bytes as i64)), true),
        ("sqnr_db", float(|t| t.sqnr_db), true),
        ("cosine_similarity", float(|t| t.cosine_similarity), true),
    ])?)
}

/// The type of a tensor of blocks. Of grouped integers none is written: whoever edits their bits then has no type to edit.
fn block_type(tensor: &PlannedTensor) -> Option<String> {
    let is_of_blocks = matches!(tensor.encoding.parse(), Ok(WeightType::Block(_))) && tensor.bits.is_some();
    is_of_blocks.then(|| tensor.encoding.clone())
}

/// What a row says of a tensor.
#[derive(Debug, Default)]
struct Row {
    bits: Option<i64>,
    name: Option<String>,
    group_size: Option<i64>,
}

/// Reads the plan of a model.
///
/// # Errors
/// If the file is none, has a row for a tensor that the model has not or none for one that it has, or a row says what
/// cannot be done.
pub(super) fn read(
    path: &Path,
    model: &Model,
    group_size: GroupSize,
    settings: JobSettings,
    allowed: &Allowed,
) -> Result<Vec<TensorPlan>> {
    let defect = |problem: String| QuantError::defect(path, None, format!("the plan is wrong: {problem}"));
    let mut rows = rows(path, &defect)?;
    let mut plans = Vec::with_capacity(model.tensors().len());
    for tensor in model.tensors() {
        let name = full_name(&tensor.component, &tensor.name);
        let Some(row) = rows.remove(&(tensor.component.clone(), tensor.name.clone())) else {
            return Err(defect(format!("it has no row for {name}; give it one, with bits NULL to keep the tensor")));
        };
        let wrong = |message| defect(format!("{name}: {message}"));
        let choice = choice(tensor, row, group_size).map_err(wrong)?;
        if let Some(choice) = choice {
            check(tensor, choice, settings, allowed).map_err(wrong)?;
        }
        plans.push(TensorPlan {
            component: tensor.component.clone(),
            tensor: tensor.name.clone(),
            choice,
            reason: Reason::Plan,
            is_open: false,
            same_as: None,
            channels: None,
        });
    }
    if let Some((component, tensor)) = rows.into_keys().min() {
        let near = nearest(&tensor, model.tensors().iter().map(|t| t.name.as_str()));
        let advice = near.map_or("remove the row".to_string(), |near| format!("did you mean '{near}'?"));
        return Err(defect(format!("{} is not a tensor of the model; {advice}", full_name(&component, &tensor))));
    }
    unite(&mut plans, &repeated(model.tensors())?);
    Ok(plans)
}

/// The rows by component and tensor.
fn rows(path: &Path, defect: &impl Fn(String) -> QuantError) -> Result<HashMap<(String, String), Row>> {
    let mut rows = HashMap::new();
    for batch in batches(path, defect)? {
        let text = |name: &str| {
            let column = batch.column_by_name(name).ok_or_else(|| defect(without(name)))?;
            cast(column, &DataType::Utf8).map_err(|_| defect(format!("the values of {name} are not understood")))
        };
        let [components, tensors, bits, sizes] = COLUMNS.map(text);
        let (components, tensors, bits, sizes) = (components?, tensors?, bits?, sizes?);
        let types = batch.column_by_name(TYPE).map(|_| text(TYPE)).transpose()?;
        // CSV has no empty text beside NULL.
        let value = |column: &ArrayRef, row| {
            let column = column.as_string::<i32>();
            (column.is_valid(row) && !column.value(row).is_empty()).then(|| column.value(row).to_string())
        };
        for row in 0..batch.num_rows() {
            let key = (value(&components, row).unwrap_or_default(), value(&tensors, row).unwrap_or_default());
            let name = full_name(&key.0, &key.1);
            let whole = |column: &ArrayRef, field: &str| match value(column, row) {
                None => Ok(None),
                // Tools that know no NULL among integers write 4.0.
                Some(text) => match text.trim().parse::<f64>() {
                    Ok(number) if number.fract() == 0.0 => Ok(Some(number as i64)),
                    _ => Err(defect(format!("{name}: {field} is '{text}', which is not a whole number"))),
                },
            };
            let (bits, group_size) = (whole(&bits, "bits")?, whole(&sizes, "group_size")?);
            let name_of_type = types.as_ref().and_then(|types| value(types, row));
            if rows.insert(key, Row { bits, name: name_of_type, group_size }).is_some() {
                return Err(defect(format!("it has two rows for {name}")));
            }
        }
    }
    Ok(rows)
}

fn without(column: &str) -> String {
    format!("it has no column {column}, expected {}", COLUMNS.join(", "))
}

/// The table in a file; of CSV all columns are text.
fn batches(path: &Path, defect: &impl Fn(String) -> QuantError) -> Result<Vec<RecordBatch>> {
    let format = Format::of(path, "plan")?;
    let open = || File::open(path).map_err(|e| QuantError::io(path, e));
    let unreadable = |error: &dyn std::error::Error| defect(format!("it cannot be read: {error}"));
    match format {
        Format::Parquet => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(open()?).and_then(|builder| builder.build());
            reader.map_err(|e| unreadable(&e))?.map(|batch| batch.map_err(|e| unreadable(&e))).collect()
        }
        Format::Csv => {
            let csv = arrow::csv::reader::Format::default().with_header(true);
            let (header, _) = csv.infer_schema(open()?, Some(0)).map_err(|e| unreadable(&e))?;
            if let Some(missing) = COLUMNS.iter().find(|column| header.column_with_name(column).is_none()) {
                return Err(defect(without(missing)));
            }
            let text = |field: &Arc<Field>| Field::new(field.name(), DataType::Utf8, true);
            let schema = Arc::new(Schema::new(header.fields().iter().map(text).collect::<Vec<_>>()));
            let reader = arrow::csv::ReaderBuilder::new(schema).with_format(csv).build(open()?);
            reader.map_err(|e| unreadable(&e))?.map(|batch| batch.map_err(|e| unreadable(&e))).collect()
        }
    }
}

/// What a row asks for, as far as the row alone can be checked: a type by its name, or by its bits.
fn choice(tensor: &Tensor, row: Row, group_size: GroupSize) -> Result<Option<Choice>, String> {
    let Row { bits, name, group_size: asked } = row;
    let bits = bits.filter(|bits| *bits != 16 || name.is_some());
    let what = match (bits, &name) {
        (None, None) => return Ok(None),
        (_, Some(name)) => format!("{TYPE} is '{name}'"),
        (Some(bits), None) => format!("bits is {bits}"),
    };
    if tensor.float_dtype().is_none() || tensor.shape.len() < 2 {
        let why = if tensor.shape.len() < 2 { "it has less than two dimensions" } else { "its dtype is not quantized" };
        return Err(format!("{what}, but {why}: allowed is NULL, to keep it"));
    }
    let of_bits = |bits: i64| {
        let bits = Bits::try_from(bits);
        bits.map_err(|_| format!("{what}, allowed: {BITS_AND_MORE}, or NULL to keep it"))
    };
    let weight_type = match (name, bits) {
        (Some(name), bits) => {
            let named: WeightType = name.trim().parse().map_err(|error: QuantError| error.to_string())?;
            match bits {
                Some(bits) if named.bits().get() as i64 != bits => {
                    let meant = named.bits().get();
                    return Err(format!(
                        "{what}, which has {meant} bits, and bits is {bits}: make them agree, or leave one NULL"
                    ));
                }
                Some(_) | None => named,
            }
        }
        (None, Some(bits)) => WeightType::Int(of_bits(bits)?),
        (None, None) => return Ok(None),
    };
    let group_size = match (weight_type, asked) {
        (WeightType::Int(_), Some(size)) => GroupSize::try_from(size).map_err(|e| e.to_string())?,
        (WeightType::Mix(_), _) => return Err(format!("{what}, which is a mix of types: give each tensor its own")),
        (WeightType::Float(_), _) => {
            return Err(format!("{what}, which is not quantized: NULL keeps a tensor as it is"));
        }
        (WeightType::Block(_), Some(size)) => {
            return Err(format!("{what}, and group_size is {size}: blocks have their own, allowed is NULL"));
        }
        (WeightType::Int(_) | WeightType::Block(_), None) => group_size,
    };
    Ok(Choice::new(weight_type, group_size))
}

/// Fails where a target cannot hold a choice, or the method is not one of its type.
fn check(tensor: &Tensor, choice: Choice, settings: JobSettings, allowed: &Allowed) -> Result<(), String> {
    let what = match choice {
        Choice::Grouped { bits, .. } => format!("bits is {}", bits.get()),
        Choice::Block(block_type) => format!("{TYPE} is '{block_type}'"),
    };
    let weight_type = choice.weight_type();
    if !weight_type.has(settings.method) {
        return Err(format!("{what}, and method is {}, allowed with it: {}", settings.method, weight_type.methods()));
    }
    match allowed.refusal(tensor, choice, settings.scheme) {
        Some(reason) => Err(format!("{what}, but {reason}: choose others, or NULL to keep it")),
        None => Ok(()),
    }
}
