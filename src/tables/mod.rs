//! Models as tables: `tensors`, `weights` and, for quantized models, `quantized`.

mod checked;
mod chunks;
pub(crate) mod functions;
mod part_files;
mod parts;
mod quantized;
mod rooted;
mod shapes;
mod staged;
mod tensors;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_quant_formats::directory::check_file;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;

use crate::model::{QuantizedDirectory, manifest_at};
use crate::{Model, QuantError, Result, SettingProblem};

pub(crate) use checked::CheckSources;
pub(crate) use chunks::{Chunk, LIMIT, cut};
pub(crate) use functions::{Files, SafetensorsFactory, table_functions};
pub(crate) use parts::{ChunkCursor, ModelParts};
pub(crate) use quantized::QuantizedModel;
pub(crate) use quantized::part_schema;
pub(crate) use shapes::{shape_type, shapes};
pub(crate) use staged::stage;
pub(crate) use weights::{WeightsTable, weights_schema};

/// A model of either kind.
pub enum AnyModel {
    /// Weights as they were trained.
    Weights(Arc<Model>),
    /// What `quantize` wrote.
    Quantized(Arc<QuantizedModel>),
}

impl AnyModel {
    /// Opens whatever is at a path.
    ///
    /// # Errors
    /// If it is no model, or a damaged one.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_variant(path, None)
    }

    /// Opens whatever is at a path, and of weights with variants the one that is asked for.
    ///
    /// # Errors
    /// If it is no model, or a damaged one, or there is no such variant.
    pub fn open_variant(path: &Path, variant: Option<&str>) -> Result<Self> {
        // What was made for another program is read as that program's.
        if QuantizedDirectory::is_at(path) && !manifest_at(path)?.is_export() {
            return match variant {
                None => Ok(Self::Quantized(Arc::new(QuantizedModel::open(path)?))),
                Some(asked) => {
                    let (path, asked) = (path.to_path_buf(), Some(asked.to_string()));
                    Err(QuantError::setting("variant", SettingProblem::Variant { path, asked, there: Vec::new() }))
                }
            };
        }
        Ok(Self::Weights(Arc::new(Model::open_variant(path, variant)?)))
    }

    /// Tensors, and bytes of their weights as they are stored.
    pub fn size(&self) -> (usize, u64) {
        match self {
            Self::Weights(model) => (model.tensors().len(), model.tensors().iter().map(|tensor| tensor.bytes).sum()),
            Self::Quantized(model) => {
                let manifest = model.manifest();
                (manifest.tensors.len(), manifest.stored().map(|file| file.bytes).sum())
            }
        }
    }

    /// The files that its tables read through the object stores of a session.
    pub fn served_files(&self) -> Vec<PathBuf> {
        match self {
            Self::Weights(_) => Vec::new(),
            Self::Quantized(model) => model.manifest().stored().map(|file| model.path().join(&file.path)).collect(),
        }
    }

    /// One row a tensor, from headers alone.
    pub fn tensors(&self, name: &str) -> Result<Arc<dyn TableProvider>> {
        match self {
            Self::Weights(model) => tensors::of_model(name, model),
            Self::Quantized(model) => tensors::of_quantized(name, model),
        }
    }

    /// One row a chunk, its weights as a tensor value: of a quantized model, the weights its codes stand for.
    pub fn weights(&self, name: &str) -> Result<Arc<dyn TableProvider>> {
        match self {
            Self::Weights(model) => Ok(Arc::new(WeightsTable::new(name, Arc::clone(model)))),
            Self::Quantized(model) => model.weights(name),
        }
    }

    /// The tables that a calibration became.
    pub fn calibrated(&self) -> Result<Vec<(&'static str, Arc<dyn TableProvider>)>> {
        match self {
            Self::Weights(_) => Ok(Vec::new()),
            Self::Quantized(model) => model.tables(),
        }
    }

    /// One row a quantized chunk; `None` for a model that is not quantized.
    pub fn quantized(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match self {
            Self::Weights(_) => Ok(None),
            Self::Quantized(model) => model.quantized(name).map(Some),
        }
    }
}

/// A table of one batch in memory.
pub(crate) fn table_of(batch: RecordBatch) -> Result<Arc<dyn TableProvider>> {
    Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
}

/// What a model is called where nobody named it: the last part of its path.
pub(crate) fn default_name(path: &Path) -> String {
    // `.` and `..` have no last part of their own.
    let canonical = if path.file_name().is_none() { path.canonicalize().ok() } else { None };
    let name = canonical.as_deref().unwrap_or(path).file_name().unwrap_or_default().to_string_lossy();
    let is_file_of_weights = check_file(Path::new(&*name)).is_ok();
    let name = name.rsplit_once('.').filter(|_| is_file_of_weights).map_or(&*name, |(stem, _)| stem);
    if name.is_empty() { "model".to_string() } else { name.to_string() }
}
