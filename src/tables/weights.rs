//! The `weights` table of a model: one row a chunk, its bytes views of what the store gives.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryViewBuilder, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, StringArray,
};
use arrow::buffer::Buffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow_quant_udfs::{tensor_type, tensor_value};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DFSchema, Result, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};

use super::chunks::{Chunk, chunks};
use super::parts::{ModelParts, runs};
use super::shapes::{shape_type, shapes};
use crate::{Model, QuantError};

/// The payload's place in the schema; all columns before it are known from headers.
const WEIGHTS: usize = 6;

/// No batch references more bytes, however few rows that are.
const BATCH_BYTES: usize = 8 << 20;

/// The columns of the table.
pub(crate) fn weights_schema() -> SchemaRef {
    let text = |name| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![
        text("model"),
        text("component"),
        text("tensor"),
        Field::new("shape", shape_type(), false),
        Field::new("chunk", DataType::Int32, false),
        Field::new("start", DataType::Int64, false),
        Field::new("weights", tensor_type(), false),
    ]))
}

/// A model's weights. Filters on any column but `weights` are answered from the headers.
#[derive(Debug, Clone)]
pub(crate) struct WeightsTable {
    source: Source,
    chunks: Arc<[Chunk]>,
    /// The partitions, where they are not as many as the session wants.
    parts: Option<ModelParts>,
}

/// What rows are made from.
#[derive(Debug, Clone)]
struct Source {
    name: Arc<str>,
    model: Arc<Model>,
}

impl WeightsTable {
    pub(crate) fn new(name: &str, model: Arc<Model>) -> Self {
        let chunks = chunks(&model).into();
        Self { source: Source { name: name.into(), model }, chunks, parts: None }
    }

    /// The same table with these partitions, whatever the session: so that what is made of a partition does not depend on
    /// the machine.
    pub(crate) fn in_parts(self, parts: ModelParts) -> Self {
        Self { chunks: Arc::clone(parts.all_chunks()), parts: Some(parts), ..self }
    }

    /// The chunks that pass filters on the columns known from headers.
    fn select(&self, state: &dyn Session, filters: &[Expr]) -> Result<Arc<[Chunk]>> {
        if filters.is_empty() {
            return Ok(Arc::clone(&self.chunks));
        }
        let mut fields = weights_schema().fields()[..WEIGHTS].to_vec();
        let mut columns: Vec<ArrayRef> = (0..WEIGHTS).map(|column| self.source.header(&self.chunks, column)).collect();
        let schema = DFSchema::try_from(Schema::new(fields.clone()))?;
        fields.push(Arc::new(Field::new("__chunk", DataType::Int64, false)));
        columns.push(Arc::new(Int64Array::from_iter_values(0..self.chunks.len() as i64)));
        let mut headers = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        for filter in filters {
            let predicate = state.create_physical_expr(filter.clone(), &schema)?;
            let mask = predicate.evaluate(&headers)?.into_array(headers.num_rows())?;
            headers = filter_record_batch(&headers, mask.as_boolean())?;
        }
        let kept = headers.column(WEIGHTS).as_primitive::<Int64Type>();
        Ok(kept.values().iter().map(|&i| self.chunks[i as usize]).collect())
    }
}

#[async_trait]
impl TableProvider for WeightsTable {
    fn schema(&self) -> SchemaRef {
        weights_schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let from_headers =
            |filter: &Expr| !filter.is_volatile() && filter.column_refs().iter().all(|column| column.name != "weights");
        Ok(filters
            .iter()
            .map(|filter| {
                if from_headers(filter) {
                    TableProviderFilterPushDown::Exact
                } else {
                    TableProviderFilterPushDown::Unsupported
                }
            })
            .collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut chunks = self.select(state, filters)?;
        if let Some(limit) = limit.filter(|&limit| limit < chunks.len()) {
            chunks = chunks[..limit].into();
        }
        let partitions = match &self.parts {
            // Of some of the chunks, parts are not what they were.
            Some(parts) if chunks.len() == self.chunks.len() => parts.iter().cloned().collect(),
            _ => {
                let total: u64 = chunks.iter().map(|c| c.elements).sum();
                runs(&chunks, total.div_ceil(state.config().target_partitions().max(1) as u64))
            }
        };
        let projection = projection.cloned().unwrap_or_else(|| (0..=WEIGHTS).collect());
        Ok(Arc::new(WeightsExec::new(self.source.clone(), chunks, partitions, projection)?))
    }
}

impl Source {
    /// Bytes of a chunk.
    fn bytes(&self, chunk: &Chunk) -> usize {
        self.model.tensors()[chunk.tensor].stored_bytes(chunk.elements) as usize
    }

    /// Says that some chunks are not needed any more, one run of chunks of a tensor after the other.
    fn release(&self, chunks: &[Chunk]) {
        for run in chunks.chunk_by(|a, b| a.tensor == b.tensor && a.start + a.elements == b.start) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                self.model.tensors()[first.tensor].release(first.start..last.start + last.elements);
            }
        }
    }

    /// A column of some chunks that is known from headers: one before [`WEIGHTS`].
    fn header(&self, chunks: &[Chunk], column: usize) -> ArrayRef {
        let tensors = self.model.tensors();
        let text = |f: fn(&crate::Tensor) -> &str| {
            Arc::new(StringArray::from_iter_values(chunks.iter().map(|c| f(&tensors[c.tensor])))) as ArrayRef
        };
        match column {
            0 => Arc::new(StringArray::from_iter_values(chunks.iter().map(|_| &*self.name))) as ArrayRef,
            1 => text(|tensor| &tensor.component),
            2 => text(|tensor| &tensor.name),
            3 => shapes(chunks.iter().map(|c| tensors[c.tensor].shape.as_slice())),
            4 => Arc::new(Int32Array::from_iter_values(chunks.iter().map(|c| c.number))),
            _ => Arc::new(Int64Array::from_iter_values(chunks.iter().map(|c| c.start as i64))),
        }
    }

    /// The rows of some chunks. Payloads are not copied where the store has them in memory.
    async fn batch(&self, chunks: &[Chunk], projection: &[usize]) -> Result<RecordBatch> {
        let mut columns = Vec::with_capacity(projection.len());
        for &column in projection {
            columns.push(if column < WEIGHTS { self.header(chunks, column) } else { self.payloads(chunks).await? });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(chunks.len()));
        Ok(RecordBatch::try_new_with_options(Arc::new(weights_schema().project(projection)?), columns, &options)?)
    }

    /// Tensor values that are views of what the stores give.
    async fn payloads(&self, chunks: &[Chunk]) -> Result<ArrayRef> {
        let tensors = self.model.tensors();
        let mut data = BinaryViewBuilder::with_capacity(chunks.len());
        // Chunks of one file are asked for together.
        for run in chunks.chunk_by(|a, b| Arc::ptr_eq(tensors[a.tensor].store(), tensors[b.tensor].store())) {
            let range = |chunk: &Chunk| tensors[chunk.tensor].byte_range(&(chunk.start..chunk.start + chunk.elements));
            let ranges: Vec<_> = run.iter().map(range).collect();
            let read = tensors[run[0].tensor].store().read(&ranges).await.map_err(QuantError::from)?;
            for bytes in read {
                // Views hold values of at most 12 bytes themselves.
                if bytes.len() <= 12 {
                    data.append_value(&bytes);
                    continue;
                }
                // One buffer a chunk, not one a file, so that memory accounting counts the chunk's bytes alone.
                let length = bytes.len() as u32;
                let block = data.append_block(Buffer::from(bytes));
                data.try_append_view(block, 0, length)?;
            }
        }
        let dtypes = StringArray::from_iter_values(chunks.iter().map(|c| tensors[c.tensor].dtype()));
        let rows = Int64Array::from_iter_values(chunks.iter().map(|c| c.row_length as i64));
        Ok(Arc::new(tensor_value(Arc::new(dtypes), Arc::new(rows), Arc::new(data.finish()), None)))
    }
}

/// The scan of chunks, each partition a run of them.
#[derive(Debug)]
pub(super) struct WeightsExec {
    source: Source,
    chunks: Arc<[Chunk]>,
    partitions: Vec<Range<usize>>,
    projection: Vec<usize>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl WeightsExec {
    fn new(
        source: Source,
        chunks: Arc<[Chunk]>,
        partitions: Vec<Range<usize>>,
        projection: Vec<usize>,
    ) -> Result<Self> {
        let schema = Arc::new(weights_schema().project(&projection)?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let (properties, metrics) = (Arc::new(properties), ExecutionPlanMetricsSet::new());
        Ok(Self { source, chunks, partitions, projection, properties, metrics })
    }
}

impl WeightsExec {
    /// The model whose bytes the rows are views of; `None` if they are made of headers alone.
    pub(super) fn viewed(&self) -> Option<&Arc<Model>> {
        Some(&self.source.model).filter(|_| self.projection.contains(&WEIGHTS))
    }
}

impl DisplayAs for WeightsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chunks, partitions) = (self.chunks.len(), self.partitions.len());
        write!(f, "WeightsExec: model={}, chunks={chunks}, partitions={partitions}", self.source.name)
    }
}

impl ExecutionPlan for WeightsExec {
    fn name(&self) -> &str {
        "WeightsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (source, chunks, projection) = (self.source.clone(), Arc::clone(&self.chunks), self.projection.clone());
        let rows = context.session_config().batch_size();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let scan = Scan {
            behind: self.partitions[partition].start..self.partitions[partition].start,
            rest: self.partitions[partition].clone(),
            source,
            chunks,
            projection,
            rows,
            metrics,
        };
        let batches = futures::stream::unfold(scan, |mut scan| async move { Some((scan.next().await?, scan)) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let chunks = match args.partition() {
            Some(partition) => &self.chunks[self.partitions[partition].clone()],
            None => &self.chunks[..],
        };
        let mut statistics = Statistics::new_unknown(&self.schema());
        statistics.num_rows = Precision::Exact(chunks.len());
        if self.projection.contains(&WEIGHTS) {
            let bytes = chunks.iter().map(|chunk| self.source.bytes(chunk));
            statistics.total_byte_size = Precision::Inexact(bytes.sum());
        }
        Ok(Arc::new(statistics))
    }
}

/// The scan of one partition.
struct Scan {
    source: Source,
    chunks: Arc<[Chunk]>,
    projection: Vec<usize>,
    /// Rows of a batch at most.
    rows: usize,
    metrics: BaselineMetrics,
    /// Chunks that are still to come.
    rest: Range<usize>,
    /// Chunks of the batch before.
    behind: Range<usize>,
}

impl Scan {
    async fn next(&mut self) -> Option<Result<RecordBatch>> {
        // The reader of a batch is done with the one before, as a rule; if not, the store has it still.
        self.source.release(&self.chunks[std::mem::take(&mut self.behind)]);
        if self.rest.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let run = self.chunks[self.rest.clone()].iter().take(self.rows).take_while(|chunk| {
            let fits = bytes < BATCH_BYTES;
            bytes += self.source.bytes(chunk);
            fits
        });
        let batch = self.rest.start..self.rest.start + run.count();
        let read = self.source.batch(&self.chunks[batch.clone()], &self.projection).await;
        self.metrics.record_output(batch.len());
        self.rest.start = batch.end;
        if self.projection.contains(&WEIGHTS) {
            self.behind = batch;
        }
        Some(read)
    }
}
