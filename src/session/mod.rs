//! DataFusion sessions in which models are tables.

mod joins;
mod names;
mod statements;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use arrow_quant_bounds::{YieldOften, bounded};
use arrow_quant_stores::{AllowedPaths, GuardedStores};
use datafusion::catalog::{CatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::common::plan_datafusion_err;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreRegistry;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use object_store::ObjectStore;
use url::Url;

use crate::tables::{self, AnyModel, CheckSources, Files, SafetensorsFactory};
use crate::workers::blocking;
use crate::{QuantError, Result, calibration};
use joins::StopJoins;
use names::AnyCase;
pub use names::model_name;

pub use statements::plan_statement;

/// Rows of a batch. Rows of the `weights` table hold up to a few hundred KiB, and filters and joins gather rows by number
/// alone: DataFusion's 8,192 would be 2 GiB.
const BATCH_ROWS: usize = 64;

/// How many of those that hold the most memory are named when there is none left.
const NAMED_CONSUMERS: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// The configuration that queries over weights need.
pub(crate) fn session_config(threads: usize) -> SessionConfig {
    let mut config =
        SessionConfig::new().with_target_partitions(threads).with_batch_size(BATCH_ROWS).with_information_schema(true);
    let options = config.options_mut();
    // Without this, a function that returns a struct is evaluated once for each field that is read.
    options.optimizer.enable_leaf_expression_pushdown = false;
    config
}

/// A session with ArrowQuant's functions, the table functions `tensors`, `weights`, `quantized`, `time_groups` and `importance`, and
/// `CREATE EXTERNAL TABLE ... STORED AS SAFETENSORS`. Queries use `threads` partitions.
///
/// # Errors
/// If a function cannot be registered.
pub fn session(threads: usize) -> Result<SessionContext> {
    Ok(bounded(&with_config(session_config(threads))?))
}

/// A session for clients that are not trusted: all its queries together take `memory_bytes` of memory and `spill_bytes` of disk
/// at most, and no statement reaches a file but those that are allowed.
///
/// # Errors
/// If a function cannot be registered.
pub fn service_session(
    threads: usize,
    memory_bytes: usize,
    spill_bytes: u64,
    allowed: &Arc<AllowedPaths>,
) -> Result<SessionContext> {
    let pool = TrackConsumersPool::new(FairSpillPool::new(memory_bytes), NAMED_CONSUMERS);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_max_temp_directory_size(spill_bytes)
        .with_object_store_registry(Arc::new(StoreRegistry(GuardedStores::new(Arc::clone(allowed)))))
        .build_arc()?;
    build(session_config(threads), runtime, Some(allowed))
}

/// The stores of a session, each operation of which is checked.
#[derive(Debug)]
struct StoreRegistry(GuardedStores);

impl ObjectStoreRegistry for StoreRegistry {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.0.register(url, store)
    }

    fn deregister_store(&self, url: &Url) -> datafusion::common::Result<Arc<dyn ObjectStore>> {
        self.0.deregister(url).ok_or_else(|| plan_datafusion_err!("there is no object store {url}"))
    }

    fn get_store(&self, url: &Url) -> datafusion::common::Result<Arc<dyn ObjectStore>> {
        Ok(self.0.get(url).map_err(QuantError::from)?)
    }
}

/// A session of another configuration.
pub(crate) fn with_config(config: SessionConfig) -> Result<SessionContext> {
    build(config, Arc::default(), None)
}

/// A session in which files are bounded to those allowed, if that is said.
fn build(
    config: SessionConfig,
    runtime: Arc<RuntimeEnv>,
    allowed: Option<&Arc<AllowedPaths>>,
) -> Result<SessionContext> {
    let files = Files(allowed.cloned());
    let catalog = config.options().catalog.clone();
    let mut rules = YieldOften::with_default_rules();
    rules.push(Arc::new(StopJoins));
    rules.push(Arc::new(CheckSources));
    let mut state = SessionStateBuilder::new_with_default_features()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_physical_optimizer_rules(rules)
        .with_table_factory("SAFETENSORS".to_string(), Arc::new(SafetensorsFactory(files.clone())))
        .build();
    arrow_quant_udfs::register_all(&mut state)?;
    let ctx = SessionContext::new_with_state(state);
    let models = AnyCase::default();
    models.register_schema(&catalog.default_schema, Arc::new(MemorySchemaProvider::new()))?;
    ctx.register_catalog(catalog.default_catalog, Arc::new(models));
    for function in tables::table_functions(&files).into_iter().chain(calibration::table_functions(&files)) {
        ctx.register_udtf(function.name(), Arc::clone(function.function()));
    }
    Ok(ctx)
}

/// Makes a model a schema: the tables `name.tensors`, `name.weights` and, for a quantized model, `name.quantized`; for one that
/// was quantized with a calibration also `name.activations`, `name.time_groups` and, if it was smoothed, `name.smoothing`.
///
/// # Errors
/// If there is no readable model at the path, or the name is taken or not allowed ([`model_name`]).
pub async fn register_model(ctx: &SessionContext, name: &str, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref().to_path_buf();
    register(ctx, name, &blocking(move || AnyModel::open(&path)).await?)
}

/// The same for a model that is open.
pub fn register(ctx: &SessionContext, name: &str, model: &AnyModel) -> Result<()> {
    let name = model_name(name)?;
    let name = name.as_str();
    let mut tables = vec![("tensors", model.tensors(name)?), ("weights", model.weights(name)?)];
    tables.extend(model.quantized(name)?.map(|quantized| ("quantized", quantized)));
    tables.extend(model.calibrated()?);
    register_tables(ctx, name, tables)
}

/// Registers tables as a schema of this name.
pub(crate) fn register_tables(
    ctx: &SessionContext,
    name: &str,
    tables: impl IntoIterator<Item = (&'static str, Arc<dyn TableProvider>)>,
) -> Result<()> {
    let default_catalog = ctx.state().config_options().catalog.default_catalog.clone();
    let Some(catalog) = ctx.catalog(&default_catalog) else {
        return Err(QuantError::configuration(format!("the session has no catalog '{default_catalog}'")));
    };
    if catalog.schema(name).is_some() || name == "information_schema" {
        return Err(QuantError::configuration(format!("the name '{name}' is taken, name the model otherwise")));
    }
    let schema = Arc::new(MemorySchemaProvider::new());
    for (table, provider) in tables {
        schema.register_table(table.to_string(), provider)?;
    }
    catalog.register_schema(name, schema)?;
    Ok(())
}
