//! Quantized model directories: the manifest, and the tables over their Parquet files.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float32Array, Float32Builder, ListBuilder, RecordBatch, StringArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Float32Type, Schema, SchemaRef};
use arrow_quant_formats::full_name;
use arrow_quant_formats::manifest::{ACTIVATIONS, FileEntry, Manifest, SMOOTHING};
use arrow_quant_udfs::{quantized_type, scalar_functions, tensor_type, with_encoding};
use bytes::Bytes;
use datafusion::catalog::TableProvider;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::logical_expr::{
    ColumnarValue, Expr, JoinType, LogicalPlanBuilder, ScalarUDF, Volatility, col, create_udf, lit, when,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::part_files::PartFiles;
use super::rooted::Root;
use super::shapes::shape_type;
use super::table_of;
use crate::model::QuantizedDirectory;
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
pub struct QuantizedModel {
    directory: Arc<QuantizedDirectory>,
    /// The tables of what its calibration became.
    activations: Option<RecordBatch>,
    smoothing: Option<RecordBatch>,
    /// The tensors of the smoothing table, each with the factors of its input channels.
    factors: Vec<(String, Float32Array)>,
}

impl QuantizedModel {
    /// Opens a directory that has a manifest, and checks that its files are there with the sizes the manifest tells.
    pub fn open(path: &Path) -> Result<Self> {
        let directory = Arc::new(QuantizedDirectory::open(path)?);
        let table = |name: &str| match directory.manifest.tables.iter().find(|file| file.path == name) {
            Some(file) => read_table(&directory, file).map(Some),
            None => Ok(None),
        };
        let (activations, smoothing) = (table(ACTIVATIONS)?, table(SMOOTHING)?);
        let factors = smoothing.as_ref().map_or(Ok(Vec::new()), |table| factors(&path.join(SMOOTHING), table))?;
        let is_smoothed = |name: &str| factors.iter().any(|(tensor, _)| tensor == name);
        let layers = &directory.manifest.layers;
        if let Some(layer) = layers.iter().find(|l| l.smoothing_alpha.is_some() && !is_smoothed(&l.tensor)) {
            let problem = "its smoothing is missing: quantize the model again";
            return Err(QuantError::defect(path, Some(layer.tensor.clone()), problem));
        }
        Ok(Self { directory, activations, smoothing, factors })
    }

    /// What the directory says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.directory.manifest
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.directory.path()
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
        self.directory.verify().await
    }

    /// The rows of all parts as they are stored.
    fn parts(&self) -> Result<Arc<dyn TableProvider>> {
        let directory = self.path().canonicalize().map_err(|e| QuantError::io(self.path(), e))?;
        let root = Root::of(&directory)?;
        let url = |file: &FileEntry| match &root {
            Some(root) => root.url(&file.path),
            None => self.directory.url(file),
        };
        let files = self.manifest().files.iter();
        // Not parsed: in a path that is parsed, `*`, `?` and `[` stand for other characters.
        let urls = files.map(|file| Ok(ListingTableUrl::try_new(url(file)?, None)?)).collect::<Result<Vec<_>>>()?;
        let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
        let config =
            ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(part_schema());
        Ok(Arc::new(PartFiles { directory: Arc::clone(&self.directory), rows: ListingTable::try_new(config)?, root }))
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
        let tensors = &self.manifest().tensors;
        let mut rows: [Vec<&str>; 4] = Default::default();
        for tensor in tensors {
            let Some(name) = &tensor.same_as else { continue };
            let Some(stored) =
                tensors.iter().find(|t| t.same_as.is_none() && full_name(&t.component, &t.tensor) == *name)
            else {
                let problem = format!("is stored as {name}, which is not there: quantize the model again");
                let tensor = full_name(&tensor.component, &tensor.tensor);
                return Err(QuantError::defect(self.path(), Some(tensor), problem));
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
        for tensor in self.manifest().tensors.iter().filter(|tensor| tensor.bits.is_some()) {
            let name = full_name(&tensor.component, &tensor.tensor);
            let Some(factors) = self.factors(&name) else { continue };
            let channels = tensor.shape.get(1).copied().unwrap_or_default();
            if usize::try_from(channels) != Ok(factors.len()) {
                let problem =
                    format!("has {channels} channels, and smoothing of {}: quantize the model again", factors.len());
                return Err(QuantError::defect(self.path(), Some(name), problem));
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

    /// What the inputs of a layer are divided by; `None` without smoothing.
    pub(crate) fn factors(&self, tensor: &str) -> Option<&[f32]> {
        self.factors.iter().find(|(name, _)| name == tensor).map(|(_, factors)| factors.values().as_ref())
    }

    /// The table of the parameters of activations.
    pub(crate) fn activations(&self) -> Option<&RecordBatch> {
        self.activations.as_ref()
    }

    /// The rows with the model's name before their columns, up to a last column.
    fn view(&self, name: &str, filter: Option<Expr>, payload: Expr) -> Result<Arc<dyn TableProvider>> {
        view(self.rows()?, name, filter, payload)
    }

    /// The quantized rows, in one type whatever the version of the directory.
    pub fn quantized(&self, name: &str) -> Result<Arc<dyn TableProvider>> {
        let quantized = if self.manifest().encodings_are_named() {
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
fn read_table(directory: &QuantizedDirectory, file: &FileEntry) -> Result<RecordBatch> {
    let bytes = Bytes::from(directory.read(file)?);
    let path = directory.path().join(&file.path);
    let unreadable =
        |error: String| QuantError::defect(&path, None, format!("cannot be read: {error}: quantize the model again"));
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| unreadable(e.to_string()))?;
    let schema = Arc::clone(reader.schema());
    let batches = reader.build().map_err(|e| unreadable(e.to_string()))?;
    let batches = batches.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| unreadable(e.to_string()))?;
    concat_batches(&schema, &batches).map_err(|e| unreadable(e.to_string()))
}

/// The tensors of a smoothing table, each with the factors of its input channels.
fn factors(path: &Path, table: &RecordBatch) -> Result<Vec<(String, Float32Array)>> {
    let damaged = |tensor: Option<String>, problem: &str| {
        QuantError::defect(path, tensor, format!("{problem}: quantize the model again"))
    };
    let column = |name: &str, wanted: DataType| {
        let found = table.column_by_name(name).and_then(|column| cast(column, &wanted).ok());
        let complete = found.filter(|column| column.null_count() == 0);
        complete.ok_or_else(|| damaged(None, &format!("its column {name} is missing or damaged")))
    };
    let tensors = column("tensor", DataType::Utf8)?;
    let lists = column("smooth", DataType::List(Field::new_list_field(DataType::Float32, true).into()))?;
    let row = |row: usize| {
        let tensor = tensors.as_string::<i32>().value(row).to_string();
        let factors = lists.as_list::<i32>().value(row).as_primitive::<Float32Type>().clone();
        if factors.null_count() > 0 || factors.values().iter().any(|&f| !(f.is_finite() && f > 0.0)) {
            return Err(damaged(Some(tensor), "has factors that are not numbers above 0"));
        }
        Ok((tensor, factors))
    };
    (0..table.num_rows()).map(row).collect()
}
