//! The models that are served, by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::prelude::SessionContext;
use serde::Serialize;

use crate::named_model::NamedModel;
use arrow_quant_v2::{AllowedPaths, AnyModel, QuantError, Result, blocking, register};

/// The models of a server, and what else its clients may name.
pub(super) struct Models {
    pub allowed: Arc<AllowedPaths>,
    /// Threads of a job.
    pub threads: usize,
    named: Mutex<BTreeMap<String, Served>>,
}

/// A model that is served.
struct Served {
    path: PathBuf,
    summary: Summary,
}

/// What is told of a model.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Summary {
    name: String,
    tensors: usize,
    bytes: u64,
}

/// A name that another model or schema has.
#[derive(Debug, thiserror::Error)]
#[error("the name '{0}' is taken, name the model otherwise")]
pub(super) struct NameTaken(String);

impl Models {
    pub(super) fn new(allowed: Arc<AllowedPaths>, threads: usize) -> Self {
        Self { allowed, threads, named: Mutex::default() }
    }

    /// Serves a model that the operator named, or that is allowed.
    ///
    /// # Errors
    /// If there is no readable model at the path, or the name is taken.
    pub(super) async fn add(&self, ctx: &SessionContext, name: &str, path: &Path) -> Result<Summary> {
        let (allowed, opened) = (Arc::clone(&self.allowed), path.to_path_buf());
        let model = blocking(move || {
            let model = AnyModel::open(&opened)?;
            // The tables of a quantized model read its files through the stores of the session.
            allowed.serve(model.served_files())?;
            Ok(model)
        })
        .await?;
        let (tensors, bytes) = model.size();
        let summary = Summary { name: name.to_string(), tensors, bytes };
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        register(ctx, name, &model)?;
        named.insert(name.to_string(), Served { path: path.to_path_buf(), summary: summary.clone() });
        Ok(summary)
    }

    /// A name that a client gives, as it will be; refused if it is taken.
    ///
    /// # Errors
    /// If it is taken, or no name.
    pub(super) fn free_name(&self, ctx: &SessionContext, name: &str) -> datafusion::common::Result<String> {
        let NamedModel { name, .. } =
            NamedModel::new(name, ".").map_err(|message| QuantError::field("name", message))?;
        let default_catalog = ctx.state().config_options().catalog.default_catalog.clone();
        let is_schema = ctx.catalog(&default_catalog).is_some_and(|catalog| catalog.schema(&name).is_some());
        if is_schema || name == "information_schema" {
            return Err(datafusion::error::DataFusionError::External(Box::new(NameTaken(name))));
        }
        Ok(name)
    }

    /// All models, by name.
    pub(super) fn summaries(&self) -> Vec<Summary> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.values().map(|served| served.summary.clone()).collect()
    }

    /// The path of a model that a client names: by the name it is served by, or by a path that is allowed.
    ///
    /// # Errors
    /// If it is a path that is not allowed.
    pub(super) fn path(&self, model: &str) -> Result<PathBuf> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = named.get(&model.to_lowercase()) {
            return Ok(served.path.clone());
        }
        drop(named);
        Ok(self.allowed.check_input(Path::new(model))?)
    }
}
