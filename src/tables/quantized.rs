//! Quantized model directories: the manifest, and the tables over their Parquet files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_quant_udfs::{quantized_type, scalar_functions, tensor_type};
use datafusion::catalog::TableProvider;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit, when};
use sha2::{Digest, Sha256};

use super::tensors::shape_type;
use url::Url;

use crate::job::Manifest;
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
        for file in &manifest.files {
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
        Ok(Self { path: path.to_path_buf(), manifest })
    }

    /// Checks that every file has the content the manifest tells.
    pub fn verify(&self) -> Result<()> {
        for file in &self.manifest.files {
            let path = self.path.join(&file.path);
            let mut hash = Sha256::new();
            File::open(&path)
                .and_then(|mut file| io::copy(&mut file, &mut hash))
                .map_err(|e| QuantError::io(&path, e))?;
            let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
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
                    QuantError::Configuration(format!("`{}` cannot be read: it has no URL", path.display()))
                })?;
                Ok(ListingTableUrl::try_new(url, None)?)
            })
            .collect::<Result<Vec<_>>>()?;
        let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
        let config =
            ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(part_schema());
        Ok(Arc::new(ListingTable::try_new(config)?))
    }

    /// The parts with the model's name before their columns, up to a last column.
    fn view(&self, name: &str, filter: Option<Expr>, payload: Expr) -> Result<Arc<dyn TableProvider>> {
        let mut plan = LogicalPlanBuilder::scan("parts", provider_as_source(self.parts()?), None)?;
        if let Some(filter) = filter {
            plan = plan.filter(filter)?;
        }
        let columns = ["component", "tensor", "shape", "chunk", "start"].map(col);
        let plan = plan.project([lit(name).alias("model")].into_iter().chain(columns).chain([payload]))?.build()?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }

    /// The quantized rows.
    pub fn quantized(&self, name: &str) -> Result<Arc<dyn TableProvider>> {
        self.view(name, Some(col("quantized").is_not_null()), col("quantized"))
    }

    /// All rows: kept weights as they are, quantized ones restored.
    pub fn weights(&self, name: &str) -> Result<Arc<dyn TableProvider>> {
        let dequantize = scalar_functions().into_iter().find(|f| f.name() == "dequantize");
        let Some(dequantize) = dequantize else {
            return Err(QuantError::Configuration("the function dequantize is not there".to_string()));
        };
        let restored = dequantize.call(vec![col("quantized")]);
        let payload = when(col("quantized").is_null(), col("weights")).otherwise(restored)?.alias("weights");
        self.view(name, None, payload)
    }
}
