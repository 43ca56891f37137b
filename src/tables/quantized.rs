//! Quantized model directories: the manifest, and the tables over their Parquet files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float32Builder, ListBuilder, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_quant_udfs::{quantized_type, scalar_functions, tensor_type, with_encoding};
use datafusion::catalog::TableProvider;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::logical_expr::{
    ColumnarValue, Expr, JoinType, LogicalPlanBuilder, ScalarUDF, Volatility, col, create_udf, lit, when,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use url::Url;

use super::table_of;
use super::tensors::shape_type;
use crate::calibration::StoredCalibration;
use crate::job::{ACTIVATIONS, Manifest, SMOOTHING, full_name, hash_in_steps, hash_of};
use crate::model::MANIFEST;
use crate::{QuantError, Result};

/// The columns of the Parquet files: each row is either quantized, or keeps its weights.
pub(crate) fn part_schema() -> SchemaRef {
    let text = |name| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![
        text("component"),
        text("tensor"),
        Field::new("shape", shape_type(), false),
        Field::new("chunk", DataType::Int32, false),
        Field::new("start", DataType::Int64, false),
        Field::new("quantized", quantized_type(), true),
        Field::new("weights", tensor_type(), true),
    ]))
}

/// A quantized model directory.
pub(crate) struct QuantizedModel {
    path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// What its calibration became.
    pub calibration: StoredCalibration,
    /// The tables of that.
    activations: Option<RecordBatch>,
    smoothing: Option<RecordBatch>,
}

impl QuantizedModel {
    /// Opens a directory that has a manifest, and checks that its files are there with the sizes the manifest tells.
    pub fn open(path: &Path) -> Result<Self> {
        let manifest_path = path.join(MANIFEST);
        if !manifest_path.is_file() {
            return Err(QuantError::ModelNotFound {
                path: path.to_path_buf(),
                message: format!(
                    "no quantized model at `{}`: it has no {MANIFEST}; give a directory that arrow-quant quantize wrote",
                    path.display()
                ),
            });
        }
        let text = std::fs::read_to_string(&manifest_path).map_err(|e| QuantError::io(&manifest_path, e))?;
        let manifest = Manifest::parse(&manifest_path, &text)?;
        for file in manifest.stored() {
            let file_path = path.join(&file.path);
            let found = std::fs::metadata(&file_path).map(|metadata| metadata.len()).ok();
            if found != Some(file.bytes) {
                let found = found.map_or("is missing".to_string(), |found| format!("has {found} bytes"));
                return Err(QuantError::Metadata {
                    path: file_path.clone(),
                    tensor: None,
                    message: format!(
                        "{} {found}, but the manifest says {} bytes: the quantized model is damaged, quantize it again",
                        file_path.display(),
                        file.bytes
                    ),
                });
            }
        }
        let table = |name: &str| match manifest.tables.iter().find(|file| file.path == name) {
            Some(file) => read_table(&path.join(name), &file.sha256).map(Some),
            None => Ok(None),
        };
        let (activations, smoothing) = (table(ACTIVATIONS)?, table(SMOOTHING)?);
        let calibration = StoredCalibration::read(path, activations.as_ref(), smoothing.as_ref())?;
        let is_smoothed = |tensor: &str| calibration.factors(tensor).is_some();
        if let Some(layer) = manifest.layers.iter().find(|l| l.smoothing_alpha.is_some() && !is_smoothed(&l.tensor)) {
            let message =
                format!("`{}`: the smoothing of {} is missing: quantize the model again", path.display(), layer.tensor);
            return Err(QuantError::Metadata { path: path.to_path_buf(), tensor: Some(layer.tensor.clone()), message });
        }
        Ok(Self { path: path.to_path_buf(), manifest, calibration, activations, smoothing })
    }

    /// The tables beside those of weights, by name.
    pub fn tables(&self) -> Result<Vec<(&'static str, Arc<dyn TableProvider>)>> {
        let mut tables = Vec::new();
        if let Some(activations) = &self.activations {
            let columns = ["tensor", "state", "time_group", "t_start", "t_end", "timesteps"];
            let indexes = columns.iter().map(|column| activations.schema().index_of(column));
            let groups = activations.project(&indexes.collect::<std::result::Result<Vec<_>, _>>()?)?;
            tables.push(("activations", table_of(activations.clone())?));
            tables.push(("time_groups", table_of(groups)?));
        }
        if let Some(smoothing) = &self.smoothing {
            tables.push(("smoothing", table_of(smoothing.clone())?));
        }
        Ok(tables)
    }

    /// Checks that every file has the content the manifest tells.
    pub async fn verify(&self) -> Result<()> {
        for file in self.manifest.stored() {
            let path = self.path.join(&file.path);
            let found = hash_in_steps(&path).await.map_err(|e| QuantError::io(&path, e))?;
            if found != file.sha256 {
                let message = format!(
                    "{} is not what was written (its SHA-256 is {found}): quantize the model again",
                    path.display()
                );
                return Err(QuantError::Metadata { path, tensor: None, message });
            }
        }
        Ok(())
    }

    /// The rows of all parts as they are stored.
    fn parts(&self) -> Result<Arc<dyn TableProvider>> {
        let directory = self.path.canonicalize().map_err(|e| QuantError::io(&self.path, e))?;
        let urls = self
            .manifest
            .files
            .iter()
            .map(|file| {
                let path = directory.join(&file.path);
                // Not parsed: in a path that is parsed, `*`, `?` and `[` stand for other characters.
                let url = Url::from_file_path(&path).map_err(|()| {
                    QuantError::configuration(format!("`{}` cannot be read: it has no URL", path.display()))
                })?;
                Ok(ListingTableUrl::try_new(url, None)?)
            })
            .collect::<Result<Vec<_>>>()?;
        let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
        let config =
            ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(part_schema());
        Ok(Arc::new(ListingTable::try_new(config)?))
    }

    /// The rows of all parts, and those of tensors that are stored under another name.
    fn rows(&self) -> Result<LogicalPlanBuilder> {
        let scan = |name| Ok::<_, QuantError>(LogicalPlanBuilder::scan(name, provider_as_source(self.parts()?), None)?);
        let parts = scan("parts")?;
        let Some(ties) = self.ties()? else { return Ok(parts) };
        let ties = LogicalPlanBuilder::scan("ties", provider_as_source(ties), None)?;
        let keys = (vec!["ties.stored_component", "ties.stored_tensor"], vec!["stored.component", "stored.tensor"]);
        let own = ["shape", "chunk", "start", "quantized", "weights"].map(|name| col(format!("stored.{name}")));
        let tied = ties
            .join(scan("stored")?.build()?, JoinType::Inner, keys, None)?
            .project([col("ties.component"), col("ties.tensor")].into_iter().chain(own))?
            .build()?;
        Ok(parts.union(tied)?)
    }

    /// A table of tensors that are stored under another name, with that name. `None` if there are none.
    fn ties(&self) -> Result<Option<Arc<dyn TableProvider>>> {
        let tensors = &self.manifest.tensors;
        let mut rows: [Vec<&str>; 4] = Default::default();
        for tensor in tensors {
            let Some(name) = &tensor.same_as else { continue };
            let Some(stored) =
                tensors.iter().find(|t| t.same_as.is_none() && full_name(&t.component, &t.tensor) == *name)
            else {
                let message = format!(
                    "`{}`: {} is stored as {name}, which is not there: quantize the model again",
                    self.path.display(),
                    full_name(&tensor.component, &tensor.tensor)
                );
                return Err(QuantError::Metadata { path: self.path.clone(), tensor: Some(name.clone()), message });
            };
            for (column, value) in
                rows.iter_mut().zip([&tensor.component, &tensor.tensor, &stored.component, &stored.tensor])
            {
                column.push(value);
            }
        }
        if rows[0].is_empty() {
            return Ok(None);
        }
        let names = ["component", "tensor", "stored_component", "stored_tensor"];
        let column = |values: &Vec<&str>| Arc::new(StringArray::from(values.clone())) as ArrayRef;
        let batch = RecordBatch::try_from_iter(names.into_iter().zip(rows.iter().map(column)))?;
        Ok(Some(table_of(batch)?))
    }

    /// A table of the tensors whose codes stand for weights times smoothing, with what undoes it: one number for each weight
    /// of a row. `None` if there are none.
    fn smoothed(&self) -> Result<Option<Arc<dyn TableProvider>>> {
        let (mut components, mut tensors) = (Vec::new(), Vec::new());
        let mut inverses =
            ListBuilder::new(Float32Builder::new()).with_field(Field::new_list_field(DataType::Float32, false));
        for tensor in self.manifest.tensors.iter().filter(|tensor| tensor.bits.is_some()) {
            let name = full_name(&tensor.component, &tensor.tensor);
            let Some(factors) = self.calibration.factors(&name) else { continue };
            let channels = tensor.shape.get(1).copied().unwrap_or_default();
            if usize::try_from(channels) != Ok(factors.len()) {
                let message = format!(
                    "`{}`: {name} has {channels} channels, and smoothing of {}: quantize the model again",
                    self.path.display(),
                    factors.len()
                );
                return Err(QuantError::Metadata { path: self.path.clone(), tensor: Some(name), message });
            }
            let kernel: i64 = tensor.shape[2..].iter().product();
            components.push(tensor.component.as_str());
            tensors.push(tensor.tensor.as_str());
            for factor in factors {
                (0..kernel).for_each(|_| inverses.values().append_value(1.0 / factor));
            }
            inverses.append(true);
        }
        if tensors.is_empty() {
            return Ok(None);
        }
        let columns: [(&str, ArrayRef); 3] = [
            ("component", Arc::new(StringArray::from(components))),
            ("tensor", Arc::new(StringArray::from(tensors))),
            ("inverse", Arc::new(inverses.finish())),
        ];
        Ok(Some(table_of(RecordBatch::try_from_iter(columns)?)?))
    }

    /// The rows with the model's name before their columns, up to a last column.
    fn view(&self, name: &str, filter: Option<Expr>, payload: Expr) -> Result<Arc<dyn TableProvider>> {
        view(self.rows()?, name, filter, payload)
    }

    /// The quantized rows, in one type whatever the version of the directory.
    pub fn quantized(&self, name: &str) -> Result<Arc<dyn TableProvider>> {
        let quantized = if self.manifest.encodings_are_named() {
            col("quantized")
        } else {
            name_encodings().call(vec![col("quantized")]).alias("quantized")
        };
        self.view(name, Some(col("quantized").is_not_null()), quantized)
    }

    /// All rows: kept weights as they are, quantized ones restored.
    pub fn weights(&self, name: &str) -> Result<Arc<dyn TableProvider>> {
        let restored = function("dequantize")?.call(vec![col("quantized")]);
        let Some(smoothed) = self.smoothed()? else {
            let payload = when(col("quantized").is_null(), col("weights")).otherwise(restored)?;
            return self.view(name, None, payload.alias("weights"));
        };
        let smoothed = LogicalPlanBuilder::scan("smoothed", provider_as_source(smoothed), None)?;
        let rows = self.rows()?.alias("r")?;
        let keys = (vec!["smoothed.component", "smoothed.tensor"], vec!["r.component", "r.tensor"]);
        // The rows are those that stream past, in their order.
        let joined = smoothed.join(rows.build()?, JoinType::Right, keys, None)?;
        let own = ["component", "tensor", "shape", "chunk", "start", "quantized", "weights"];
        let columns = own.map(|name| col(format!("r.{name}")).alias(name));
        let rows = joined.project(columns.into_iter().chain([col("smoothed.inverse").alias("inverse")]))?;
        let divided = function("scale_channels")?.call(vec![restored.clone(), col("inverse")]);
        let mut payload = when(col("quantized").is_null(), col("weights")).when(col("inverse").is_null(), restored);
        view(rows, name, None, payload.otherwise(divided)?.alias("weights"))
    }
}

/// Rows with a model's name before their columns, up to a last column.
fn view(
    mut plan: LogicalPlanBuilder,
    name: &str,
    filter: Option<Expr>,
    payload: Expr,
) -> Result<Arc<dyn TableProvider>> {
    if let Some(filter) = filter {
        plan = plan.filter(filter)?;
    }
    let columns = ["component", "tensor", "shape", "chunk", "start"].map(col);
    let plan = plan.project([lit(name).alias("model")].into_iter().chain(columns).chain([payload]))?.build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

/// Fills in the `encoding` of quantized values that were stored before there was such a field.
fn name_encodings() -> ScalarUDF {
    const NAME: &str = "name_encodings";
    let name_all = |args: &[ColumnarValue]| {
        let values = ColumnarValue::values_to_arrays(args)?;
        Ok(ColumnarValue::Array(Arc::new(with_encoding(NAME, values[0].as_struct())?)))
    };
    create_udf(NAME, vec![quantized_type()], quantized_type(), Volatility::Immutable, Arc::new(name_all))
}

fn function(name: &str) -> Result<Arc<ScalarUDF>> {
    let found = scalar_functions().into_iter().find(|function| function.name() == name);
    found.ok_or_else(|| QuantError::configuration(format!("the function {name} is not there")))
}

/// A table of one Parquet file, read as a whole, if its content is what the manifest tells.
fn read_table(path: &Path, sha256: &str) -> Result<RecordBatch> {
    let unreadable = |message: String| QuantError::Metadata {
        path: path.to_path_buf(),
        tensor: None,
        message: format!("{} cannot be read: {message}: quantize the model again", path.display()),
    };
    let found = hash_of(path).map_err(|e| QuantError::io(path, e))?;
    if found != sha256 {
        return Err(unreadable(format!("it is not what was written (its SHA-256 is {found})")));
    }
    let file = std::fs::File::open(path).map_err(|e| QuantError::io(path, e))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| unreadable(e.to_string()))?;
    let schema = Arc::clone(reader.schema());
    let batches = reader.build().map_err(|e| unreadable(e.to_string()))?;
    let batches = batches.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| unreadable(e.to_string()))?;
    concat_batches(&schema, &batches).map_err(|e| unreadable(e.to_string()))
}
