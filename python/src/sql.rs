//! SQL over models and tables of Python.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_quant_bounds::{on_planning_thread, parse_one};
use arrow_quant_v2::{plan_statement, register_copy, register_model, session};
use datafusion::common::TableReference;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{DataFrame, SessionContext};
use futures::TryStreamExt;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyMapping};
use pyo3_arrow::ffi::to_schema_pycapsule;
use tokio::sync::RwLock;

use crate::arrow_objects::{Table, names, stream_capsule, to_pandas, to_polars, to_pyarrow};
use crate::errors::{Result, argument};
use crate::html;
use crate::import::batches;
use crate::runtime::{Threads, cores, executed};

/// Opens a session in which models are schemas and functions quantize.
///
/// Args:
///     models: from names to paths of models: safetensors files, directories and pipelines, or quantized models. Each is a
///         schema with the tables tensors, weights and, if it is quantized, quantized; if that was with a calibration, also
///         activations, time_groups and, where layers were smoothed, smoothing.
///     tables: from names to Arrow tables, as Connection.register takes them.
///     num_threads: cores to use; 0 for all.
///
/// Raises:
///     ModelNotFoundError: if there is no readable model at a path.
///     ConfigurationError: if an argument is not allowed.
///
/// Example:
///     >>> import arrow_quant_v2
///     >>> connection = arrow_quant_v2.connect(models={"dream": "dream-7b/"})
///     >>> connection.sql("SELECT count(*) AS tensors FROM dream.tensors").to_pyarrow().to_pylist()
///     [{'tensors': 52}]
#[pyfunction]
#[pyo3(signature = (models = None, *, tables = None, num_threads = None))]
fn connect(
    py: Python<'_>,
    models: Option<&Bound<'_, PyAny>>,
    tables: Option<&Bound<'_, PyAny>>,
    num_threads: Option<&Bound<'_, PyAny>>,
) -> Result<Connection> {
    let threads = cores(num_threads)?;
    let ctx = session(threads)?;
    register_copy(&ctx)?;
    let connection = Connection { ctx, threads: Threads::start(threads)?, replacing: Arc::default() };
    for (name, path) in named("models", models)? {
        let path = path.extract().map_err(|_| argument("models", format!("models has no path for '{name}'")))?;
        connection.register_model(py, name, path)?;
    }
    for (name, table) in named("tables", tables)? {
        connection.register(py, name, &table)?;
    }
    Ok(connection)
}

/// The entries of an argument that is a mapping from names.
fn named<'py>(argument_name: &str, mapping: Option<&Bound<'py, PyAny>>) -> Result<Vec<(String, Bound<'py, PyAny>)>> {
    let Some(mapping) = mapping else { return Ok(Vec::new()) };
    let refused = || argument(argument_name, format!("{argument_name} is {mapping}, allowed: a mapping from names"));
    let items = mapping.cast::<PyMapping>().map_err(|_| refused())?.items()?;
    items.iter().map(|item| item.extract().map_err(|_| refused())).collect()
}

/// A session: models and tables by name, and SQL over them. Made by connect.
///
/// Example:
///     >>> import arrow_quant_v2, pyarrow as pa
///     >>> connection = arrow_quant_v2.connect()
///     >>> connection.register("widths", pa.table({"bits": [2, 4, 8]}))
///     >>> connection.sql("SELECT max(bits) AS most FROM widths").to_pyarrow().to_pylist()
///     [{'most': 8}]
#[pyclass(module = "arrow_quant_v2", frozen)]
pub struct Connection {
    ctx: SessionContext,
    threads: Arc<Threads>,
    /// Held while a table is replaced, so that no query finds neither the old nor the new one.
    replacing: Arc<RwLock<()>>,
}

impl Connection {
    /// Its session, for a job.
    pub fn context(&self) -> SessionContext {
        self.ctx.clone()
    }
}

#[pymethods]
impl Connection {
    /// Makes a model a schema: the tables name.tensors, name.weights and, for a quantized model, name.quantized; for one that
    /// was quantized with a calibration also name.activations, name.time_groups and, if it was smoothed, name.smoothing.
    ///
    /// Raises:
    ///     ModelNotFoundError: if there is no readable model at the path.
    ///     ConfigurationError: if the name is taken.
    fn register_model(&self, py: Python<'_>, name: String, path: PathBuf) -> Result<()> {
        let ctx = self.ctx.clone();
        self.threads.wait(py, async move { register_model(&ctx, &name, path).await })
    }

    /// Makes an Arrow object a table: anything with the Arrow PyCapsule interface, such as a pyarrow.Table or a polars or
    /// pandas DataFrame. It is not copied; a stream is read to its end. A table of that name is replaced.
    ///
    /// Raises:
    ///     ConfigurationError: if it is no Arrow table.
    fn register(&self, py: Python<'_>, name: String, table: &Bound<'_, PyAny>) -> Result<()> {
        let (schema, batches) = batches("table", &format!("the table '{name}'"), table)?;
        let table = Arc::new(MemTable::try_new(schema, vec![batches])?);
        // The name as it is, however it is spelled.
        let name = TableReference::bare(name);
        let (ctx, replacing) = (self.ctx.clone(), Arc::clone(&self.replacing));
        self.threads.wait(py, async move {
            let _alone = replacing.write().await;
            ctx.deregister_table(name.clone())?;
            ctx.register_table(name, table)?;
            Ok(())
        })
    }

    /// A query. It runs when its result is read; a statement (COPY, INSERT, CREATE, SET) runs at once.
    ///
    /// Raises:
    ///     QuantizationError: if it is no valid SQL, or names what is not there.
    ///     ArrowQuantError: what a statement meets.
    fn sql(&self, py: Python<'_>, query: String) -> Result<QueryResult> {
        let (ctx, replacing) = (self.ctx.clone(), Arc::clone(&self.replacing));
        let answer = self.threads.wait(py, async move {
            let planning = replacing.read().await;
            let frame = planned(&ctx, query).await?;
            drop(planning);
            if !matches!(frame.logical_plan(), LogicalPlan::Dml(_) | LogicalPlan::Copy(_)) {
                return Ok(Answer::Query(Box::new(frame)));
            }
            let schema = Arc::clone(frame.schema().inner());
            let (rows, _stop) = executed(frame).await?;
            Ok(Answer::Done(schema, rows.try_collect().await?))
        })?;
        Ok(QueryResult { answer, threads: Arc::clone(&self.threads) })
    }
}

/// A statement, planned; what defines tables and sets variables has run.
async fn planned(ctx: &SessionContext, query: String) -> arrow_quant_v2::Result<DataFrame> {
    let (ctx, threads) = (ctx.clone(), tokio::runtime::Handle::current());
    let planned = on_planning_thread(&threads, async move {
        let plan = plan_statement(&ctx, parse_one(&ctx.state(), &query)?).await?;
        ctx.execute_logical_plan(plan).await
    });
    Ok(planned.await?)
}

/// What a query gives.
enum Answer {
    /// It has yet to run.
    Query(Box<DataFrame>),
    /// It was a statement.
    Done(SchemaRef, Vec<RecordBatch>),
}

/// The result of a query: an Arrow stream for any library that knows the Arrow PyCapsule interface. Each reading runs the
/// query anew, and stops it when it is given up.
///
/// Example:
///     >>> import arrow_quant_v2, pyarrow as pa
///     >>> result = arrow_quant_v2.connect().sql("SELECT cosine_similarity([1.0, 2.0], [2.0, 4.0]) AS cosine")
///     >>> pa.table(result).to_pylist()
///     [{'cosine': 1.0}]
#[pyclass(name = "Result", module = "arrow_quant_v2", frozen)]
pub struct QueryResult {
    answer: Answer,
    threads: Arc<Threads>,
}

impl QueryResult {
    fn schema(&self) -> SchemaRef {
        match &self.answer {
            Answer::Query(frame) => Arc::clone(frame.schema().inner()),
            Answer::Done(schema, _) => Arc::clone(schema),
        }
    }

    fn stream(&self, py: Python<'_>, frame: &DataFrame) -> Result<crate::runtime::Batches> {
        let frame = frame.clone();
        let (rows, stop) = self.threads.wait(py, executed(frame))?;
        Ok(self.threads.stream(rows, stop)?)
    }
}

#[pymethods]
impl QueryResult {
    /// Names of the columns.
    #[getter]
    fn column_names(&self) -> Vec<String> {
        names(&self.schema())
    }

    /// Runs the query and gathers its result in memory.
    ///
    /// Raises:
    ///     ArrowQuantError: what the query meets.
    fn collect(&self, py: Python<'_>) -> Result<Table> {
        let frame = match &self.answer {
            Answer::Query(frame) => frame,
            Answer::Done(schema, batches) => return Ok(Table { schema: Arc::clone(schema), batches: batches.clone() }),
        };
        let mut stream = self.stream(py, frame)?;
        let mut batches = Vec::new();
        while let Some(batch) = stream.wait(py)? {
            batches.push(batch);
        }
        Ok(Table { schema: arrow::record_batch::RecordBatchReader::schema(&stream), batches })
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyCapsule>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let reader: Box<dyn arrow::record_batch::RecordBatchReader + Send> = match &self.answer {
            Answer::Query(frame) => Box::new(self.stream(py, frame)?),
            Answer::Done(schema, batches) => {
                let batches = batches.clone().into_iter().map(Ok);
                Box::new(arrow::record_batch::RecordBatchIterator::new(batches, Arc::clone(schema)))
            }
        };
        Ok(stream_capsule(py, reader, requested_schema)?)
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        Ok(to_schema_pycapsule(py, self.schema().as_ref())?)
    }

    /// Runs the query; as a pyarrow.Table.
    fn to_pyarrow<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        Ok(to_pyarrow(Bound::new(py, self.collect(py)?)?.as_any())?)
    }

    /// Runs the query; as a pandas.DataFrame. Needs pyarrow and pandas.
    fn to_pandas<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        Ok(to_pandas(Bound::new(py, self.collect(py)?)?.as_any())?)
    }

    /// Runs the query; as a polars.DataFrame.
    fn to_polars<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        Ok(to_polars(Bound::new(py, self.collect(py)?)?.as_any())?)
    }

    /// The first rows, as a notebook shows them: the query runs until it has given them.
    fn _repr_html_(&self, py: Python<'_>) -> Result<String> {
        let frame = match &self.answer {
            Answer::Query(frame) => frame,
            Answer::Done(schema, batches) => {
                let rows = batches.iter().map(RecordBatch::num_rows).sum();
                return Ok(html::table(schema, batches, Some(rows))?);
            }
        };
        let first = DataFrame::clone(frame).limit(0, Some(html::ROWS + 1))?;
        let mut stream = self.stream(py, &first)?;
        let mut batches = Vec::new();
        while let Some(batch) = stream.wait(py)? {
            batches.push(batch);
        }
        Ok(html::table(&self.schema(), &batches, None)?)
    }

    fn __repr__(&self) -> String {
        format!("Result({})", self.column_names().join(", "))
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Connection>()?;
    module.add_class::<QueryResult>()?;
    module.add_function(wrap_pyfunction!(connect, module)?)
}
