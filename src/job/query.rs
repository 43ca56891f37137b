//! The query of a job: one plan for all tasks that a process has, and the run of a single task.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float32Builder, Int64Array, ListBuilder, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow_quant_formats::full_name;
use arrow_quant_kernels::KernelError;
use arrow_quant_udfs::{RowError, quantize_with_feedback};
use datafusion::catalog::TableProvider;
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::execution::{FunctionRegistry, TaskContext};
use datafusion::logical_expr::{JoinType, LogicalPlanBuilder, col, lit, when};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use super::factors::JobFactors;
use super::task::{PartRecord, PartTask, TaskTensor};
use super::writer;
use crate::plan::{Choice, Feedback};
use crate::session::{session_config, with_config};
use crate::tables::{ChunkCursor, ModelParts, WeightsTable, table_of};
use crate::targets::{PartWriter, Written, WrittenTensor, add_written};
use crate::workers::blocking;
use crate::{Model, QuantError, Result};

/// Tasks that are ready to be run. To plan a query takes as long as to quantize a few million weights, so all tasks of a
/// process share one, of which each task is a partition: what comes of a task does not depend on the others.
pub(super) struct TaskQuery {
    model: Arc<Model>,
    tasks: Vec<PartTask>,
    /// The chunks of each task.
    parts: ModelParts,
    factors: Arc<JobFactors>,
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
}

impl TaskQuery {
    /// Plans the query of tasks of one job.
    ///
    /// # Errors
    /// If the tasks are of another model or program, or contradict each other.
    pub(super) async fn new(model: &Arc<Model>, tasks: Vec<PartTask>) -> Result<Self> {
        let opened = Arc::clone(model);
        let fingerprint = blocking(move || opened.fingerprint()).await?;
        check_origin(&tasks, model, &fingerprint)?;
        let parts = parts(model, &tasks)?;
        // Partitions are parts of the model, whatever the number of threads; one thread takes one at a time.
        let mut config = session_config(1);
        let optimizer = &mut config.options_mut().optimizer;
        optimizer.enable_dynamic_filter_pushdown = false;
        // The weights must stay on the side that streams past, also where few of them are of some task.
        optimizer.join_reordering = false;
        let ctx = with_config(config)?;
        let factors = Arc::new(JobFactors::new(&tasks));
        let plan = plan(&ctx, model, &tasks, &parts, &factors).await?;
        Ok(Self { model: Arc::clone(model), tasks, parts, factors, plan, context: ctx.task_ctx() })
    }

    /// Runs the task at an index: writes its part, and tells what each batch adds. A dropped run ends after the batch that
    /// is being written.
    ///
    /// # Errors
    /// If a weight cannot be quantized, or the part not be written.
    pub(super) async fn run(
        &self,
        index: usize,
        writer: Box<dyn PartWriter>,
        on_batch: impl Fn(&Written),
    ) -> Result<PartRecord> {
        let mut batches = self.plan.execute(index, Arc::clone(&self.context))?;
        let chunks = self.parts.chunks(index);
        let mut part = PartInWork { model: Arc::clone(&self.model), writer, chunks, tensors: Vec::new() };
        while let Some(batch) = batches.try_next().await.map_err(|error| part.with_tensor(error))? {
            let written;
            (part, written) = blocking(move || part.write(batch)).await?;
            on_batch(&written);
        }
        self.factors.ended(&self.tasks[index]);
        let PartTask { part: number, key, .. } = &self.tasks[index];
        let (number, key) = (*number, key.clone());
        blocking(move || {
            let file = part.writer.finish()?;
            // Kept weights are views until they are written.
            part.model.check()?;
            Ok(PartRecord { part: number, key, file, tensors: part.tensors })
        })
        .await
    }
}

/// A part that is being written.
struct PartInWork {
    model: Arc<Model>,
    writer: Box<dyn PartWriter>,
    /// The chunks that are still to come.
    chunks: ChunkCursor,
    tensors: Vec<WrittenTensor>,
}

impl PartInWork {
    /// Puts the tensor's name to the error of a row that cannot be quantized: the function that met it knows only the batch
    /// that comes after those that were written.
    fn with_tensor(&self, error: DataFusionError) -> QuantError {
        let DataFusionError::External(inner) = error.find_root() else { return error.into() };
        let Some(RowError { row, problem, .. }) = inner.downcast_ref() else { return error.into() };
        let Some(chunk) = self.chunks.chunk(*row) else { return error.into() };
        let tensor = &self.model.tensors()[chunk.tensor];
        let tensor = full_name(&tensor.component, &tensor.name);
        match problem.clone().within(chunk.start as usize) {
            problem @ (KernelError::NotFinite { .. } | KernelError::Range { .. }) => {
                QuantError::Weights { tensor, problem }
            }
            problem => {
                let message = format!("{tensor}: {problem}");
                QuantError::Quantization { tensor: Some(tensor), message }
            }
        }
    }

    /// Writes a batch, and gives the pages of its weights back.
    fn write(mut self, batch: RecordBatch) -> Result<(Self, Written)> {
        let written = add_written(&batch, &mut self.tensors)?;
        self.writer.write(&batch)?;
        let rows = batch.num_rows();
        // Views of the weights must be gone before their pages are given back.
        drop(batch);
        for (tensor, elements) in self.chunks.next_rows(rows) {
            self.model.tensors()[tensor].release(elements);
        }
        Ok((self, written))
    }
}

/// Checks that tasks are of this program and this model, which has the fingerprint.
fn check_origin(tasks: &[PartTask], model: &Model, fingerprint: &str) -> Result<()> {
    let program = writer();
    if let Some(task) = tasks.iter().find(|task| task.program != program) {
        let message = format!(
            "part {} was planned by {}, and this is {program}: run both with the same version",
            task.part, task.program
        );
        return Err(QuantError::configuration(message));
    }
    if let Some(task) = tasks.iter().find(|task| task.model.fingerprint != fingerprint) {
        let (path, planned) = (model.path().display(), task.model.location.display());
        let message =
            format!("`{path}` is not the model that was planned, or has changed since: plan `{planned}` again");
        return Err(QuantError::configuration(message).at(model.path()));
    }
    Ok(())
}

/// The chunks of each task.
fn parts(model: &Model, tasks: &[PartTask]) -> Result<ModelParts> {
    let tensors = model.tensors().iter().enumerate();
    let index: HashMap<_, _> = tensors.map(|(i, t)| ((t.component.as_str(), t.name.as_str()), i)).collect();
    let range = |tensor: &TaskTensor| -> Option<(usize, Range<usize>)> {
        let key = (tensor.component.as_str(), tensor.tensor.as_str());
        Some((*index.get(&key)?, tensor.chunks.clone()))
    };
    let ranges: Option<Vec<Vec<_>>> = tasks.iter().map(|task| task.tensors.iter().map(range).collect()).collect();
    ranges.and_then(|ranges| ModelParts::of_ranges(model, &ranges)).ok_or_else(|| {
        let path = model.path().display();
        QuantError::configuration(format!("`{path}` lacks tensors of a part: it is not the model that was planned"))
            .at(model.path())
    })
}

/// `SELECT ..., quantize(w.weights, p.type, p.group_size, p.scheme, method [, p.importance, p.smoothing]), CASE WHEN p.type IS
/// NULL THEN w.weights END FROM plan p JOIN weights w USING (component, tensor)`. If weights are rounded with error feedback,
/// `quantize` has one more argument, the name of the second moments.
async fn plan(
    ctx: &SessionContext,
    model: &Arc<Model>,
    tasks: &[PartTask],
    parts: &ModelParts,
    factors: &Arc<JobFactors>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let tensors = planned_tensors(tasks)?;
    let [scheme, method] = [shared(tasks, |task| task.scheme.name())?, shared(tasks, |task| task.method.of_grids())?];
    let weights = WeightsTable::new("", Arc::clone(model)).in_parts(parts.clone());
    let plan = LogicalPlanBuilder::scan("p", provider_as_source(plan_table(&tensors, scheme)?), None)?;
    let weights = LogicalPlanBuilder::scan("w", provider_as_source(Arc::new(weights)), None)?;
    let keys = (vec!["p.component", "p.tensor"], vec!["w.component", "w.tensor"]);
    let [of_type, group_size, of_scheme] = ["p.type", "p.group_size", "p.scheme"].map(col);
    let mut arguments = vec![col("w.weights"), of_type, group_size, of_scheme, lit(method)];
    if has_channels(&tensors) {
        arguments.extend([col("p.importance"), col("p.smoothing")]);
    }
    let quantize = if has_feedback(&tensors) {
        arguments.push(col("p.moments"));
        quantize_with_feedback(Arc::clone(factors) as Arc<_>).call(arguments)
    } else {
        ctx.udf("quantize")?.call(arguments)
    };
    let kept = when(col("p.type").is_null(), col("w.weights")).end()?;
    let headers = ["component", "tensor", "shape", "chunk", "start"].map(|name| col(format!("w.{name}")));
    let logical = plan
        .join(weights.build()?, JoinType::Inner, keys, None)?
        .project(headers.into_iter().chain([quantize.alias("quantized"), kept.alias("weights")]))?
        .build()?;
    Ok(ctx.state().create_physical_plan(&logical).await?)
}

/// What all tasks have in common.
fn shared<T: PartialEq + Default>(tasks: &[PartTask], of: impl Fn(&PartTask) -> T) -> Result<T> {
    let first = tasks.first().map(&of).unwrap_or_default();
    if tasks.iter().all(|task| of(task) == first) { Ok(first) } else { Err(contradiction("of different jobs")) }
}

/// The tensors of all tasks, each once.
fn planned_tensors(tasks: &[PartTask]) -> Result<Vec<&TaskTensor>> {
    let mut tensors: Vec<&TaskTensor> = Vec::new();
    let mut index: HashMap<(&str, &str), usize> = HashMap::new();
    for tensor in tasks.iter().flat_map(|task| &task.tensors) {
        let at = *index.entry((&tensor.component, &tensor.tensor)).or_insert(tensors.len());
        match tensors.get(at) {
            None => tensors.push(tensor),
            Some(other) if other.choice == tensor.choice && other.channels == tensor.channels => {}
            Some(_) => {
                let name = full_name(&tensor.component, &tensor.tensor);
                return Err(contradiction(&format!("of different plans for {name}")));
            }
        }
    }
    Ok(tensors)
}

fn contradiction(what: &str) -> QuantError {
    QuantError::configuration(format!("the parts to be written are {what}: write them one after the other"))
}

/// What tensors become as a table to join with; `type` is NULL for those that are kept, `group_size` and `scheme` also where
/// it is one of blocks. There are `importance` and
/// `smoothing` if some tensor has either; empty lists for the others; and `moments` if some have error feedback.
fn plan_table(tensors: &[&TaskTensor], scheme: &'static str) -> Result<Arc<dyn TableProvider>> {
    let mut fields = vec![
        Field::new("component", DataType::Utf8, false),
        Field::new("tensor", DataType::Utf8, false),
        Field::new("type", DataType::Utf8, true),
        Field::new("group_size", DataType::Int64, true),
        Field::new("scheme", DataType::Utf8, true),
    ];
    let types = tensors.iter().map(|plan| plan.choice.map(|choice| choice.weight_type().name()));
    let group_sizes = || tensors.iter().map(|plan| plan.choice.and_then(Choice::group_size));
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(tensors.iter().map(|plan| &plan.component))),
        Arc::new(StringArray::from_iter_values(tensors.iter().map(|plan| &plan.tensor))),
        Arc::new(types.collect::<StringArray>()),
        Arc::new(group_sizes().map(|size| size.map(|size| size.get() as i64)).collect::<Int64Array>()),
        Arc::new(group_sizes().map(|size| size.map(|_| scheme)).collect::<StringArray>()),
    ];
    if has_channels(tensors) {
        let importance = lists(tensors.iter().map(|plan| plan.channels.as_ref().map(|channels| &channels.importance)));
        let smoothing = lists(tensors.iter().map(|plan| plan.channels.as_ref().map(|channels| &channels.smoothing)));
        for (name, lists) in [("importance", importance), ("smoothing", smoothing)] {
            fields.push(Field::new(name, lists.data_type().clone(), false));
            columns.push(lists);
        }
    }
    if has_feedback(tensors) {
        let feedback = tensors.iter().map(|plan| plan.channels.as_ref()?.feedback.as_ref());
        let names: StringArray = feedback.map(|feedback| feedback.map(Feedback::factor_name)).collect();
        fields.push(Field::new("moments", DataType::Utf8, true));
        columns.push(Arc::new(names));
    }
    table_of(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// Whether a calibration has to say something on some tensor.
fn has_channels(tensors: &[&TaskTensor]) -> bool {
    tensors.iter().any(|tensor| tensor.channels.is_some())
}

/// Whether some tensor is rounded with error feedback.
fn has_feedback(tensors: &[&TaskTensor]) -> bool {
    tensors.iter().any(|tensor| tensor.channels.as_ref().is_some_and(|channels| channels.feedback.is_some()))
}

fn lists<'a>(lists: impl Iterator<Item = Option<&'a Vec<f32>>>) -> ArrayRef {
    let mut builder =
        ListBuilder::new(Float32Builder::new()).with_field(Field::new_list_field(DataType::Float32, false));
    for list in lists {
        builder.values().append_slice(list.map_or(&[], Vec::as_slice));
        builder.append(true);
    }
    Arc::new(builder.finish())
}
