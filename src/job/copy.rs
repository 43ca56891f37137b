//! `COPY … TO 'model.gguf' STORED AS GGUF`: what a query gives, written as a target writes it.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{GetExt, Result, Statistics, exec_datafusion_err, not_impl_err, plan_err};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::{FileFormat, FileFormatFactory};
use datafusion::datasource::physical_plan::{ArrowSource, FileScanConfig, FileSinkConfig, FileSource};
use datafusion::datasource::sink::{DataSink, DataSinkExec};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::LexRequirement;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use object_store::{ObjectMeta, ObjectStore};

use super::{JobOptions, quantize_relation};
use crate::DiffusionQuantConfig;
use crate::config::{Format, value_of};

/// What DataFusion puts before the options of a format.
const PREFIX: &str = "format.";

/// The option that is no field of the configuration: a model whose configuration and tokenizer go with the weights.
const FILES: &str = "files";

/// Has `COPY query TO 'file' STORED AS GGUF` and `AS SAFETENSORS` quantize what the query gives, as
/// [`quantize_query`](crate::quantize_query) does. Options are fields of the configuration, such as `type`, and `files`: the model
/// whose configuration and tokenizer go with the weights. Safetensors keep the type of most weights unless one is asked for.
///
/// # Errors
/// If a format of the name is there already.
pub fn register_copy(ctx: &SessionContext) -> crate::Result<()> {
    let state = ctx.state_ref();
    let mut state = state.write();
    for format in [Format::Gguf, Format::Safetensors] {
        state.register_file_format(Arc::new(Factory(format)), false)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Factory(Format);

impl GetExt for Factory {
    fn get_ext(&self) -> String {
        self.0.name().to_string()
    }
}

impl FileFormatFactory for Factory {
    fn create(&self, _: &dyn Session, options: &HashMap<String, String>) -> Result<Arc<dyn FileFormat>> {
        let mut asked =
            Asked { config: DiffusionQuantConfig { format: Some(self.0), ..Default::default() }, ..Asked::default() };
        // In the order of their names, so that of several that are wrong the same one is told each time.
        let mut options: Vec<_> = options.iter().collect();
        options.sort();
        for (name, text) in options {
            let field = name.strip_prefix(PREFIX).unwrap_or(name);
            match field {
                FILES => asked.files = Some(PathBuf::from(text)),
                "format" => return plan_err!("the option format is decided by STORED AS"),
                _ => asked.config.set(field, &value_of(text))?,
            }
            asked.has_type |= matches!(field, "type" | "bit_width");
        }
        Ok(Arc::new(Written(asked)))
    }

    fn default(&self) -> Arc<dyn FileFormat> {
        let config = DiffusionQuantConfig { format: Some(self.0), ..Default::default() };
        Arc::new(Written(Asked { config, ..Asked::default() }))
    }
}

/// What a statement asks for.
#[derive(Debug, Clone, Default)]
struct Asked {
    config: DiffusionQuantConfig,
    files: Option<PathBuf>,
    /// Whether it says what weights become.
    has_type: bool,
}

/// A format that can be written. Its files are read as tables of models.
#[derive(Debug)]
struct Written(Asked);

impl Written {
    fn name(&self) -> &'static str {
        self.0.config.format.unwrap_or(Format::Gguf).name()
    }
}

#[async_trait]
impl FileFormat for Written {
    fn get_ext(&self) -> String {
        self.name().to_string()
    }

    fn get_ext_with_compression(&self, _: &FileCompressionType) -> Result<String> {
        Ok(self.get_ext())
    }

    fn compression_type(&self) -> Option<FileCompressionType> {
        None
    }

    async fn infer_schema(&self, _: &dyn Session, _: &Arc<dyn ObjectStore>, _: &[ObjectMeta]) -> Result<SchemaRef> {
        not_impl_err!("{0} is read with weights('path') or CREATE EXTERNAL TABLE … STORED AS SAFETENSORS", self.name())
    }

    async fn infer_stats(
        &self,
        _: &dyn Session,
        _: &Arc<dyn ObjectStore>,
        schema: SchemaRef,
        _: &ObjectMeta,
    ) -> Result<Statistics> {
        Ok(Statistics::new_unknown(&schema))
    }

    async fn create_physical_plan(&self, _: &dyn Session, _: FileScanConfig) -> Result<Arc<dyn ExecutionPlan>> {
        not_impl_err!("{} is read with weights('path')", self.name())
    }

    async fn create_writer_physical_plan(
        &self,
        input: Arc<dyn ExecutionPlan>,
        state: &dyn Session,
        to: FileSinkConfig,
        order: Option<LexRequirement>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if !to.table_partition_cols.is_empty() {
            return plan_err!("{} has no partitions: leave PARTITIONED BY out", self.name());
        }
        if to.original_url.contains("://") && !to.original_url.starts_with("file://") {
            return not_impl_err!("`{}`: models are written to local disks", to.original_url);
        }
        let path = PathBuf::from(to.original_url.trim_start_matches("file://"));
        let sink = Sink {
            asked: self.0.clone(),
            path,
            schema: Arc::clone(to.output_schema()),
            config: state.config().clone(),
        };
        Ok(Arc::new(DataSinkExec::new(input, Arc::new(sink), order)))
    }

    fn file_source(&self, schema: TableSchema) -> Arc<dyn FileSource> {
        // Files of the format are never scanned so: `create_physical_plan` refuses.
        Arc::new(ArrowSource::new_file_source(schema))
    }
}

/// Quantizes the rows that it is given.
struct Sink {
    asked: Asked,
    path: PathBuf,
    schema: SchemaRef,
    config: SessionConfig,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sink({})", self.path.display())
    }
}

impl DisplayAs for Sink {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuantizeSink(file={})", self.path.display())
    }
}

#[async_trait]
impl DataSink for Sink {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn write_all(&self, rows: SendableRecordBatchStream, _: &Arc<TaskContext>) -> Result<u64> {
        let count = Arc::new(AtomicU64::new(0));
        let table = StreamingTable::try_new(Arc::clone(&self.schema), vec![Arc::new(Once::new(rows, &count))])?;
        let ctx = SessionContext::new_with_config(self.config.clone());
        let relation = ctx.read_table(Arc::new(table) as Arc<dyn TableProvider>)?;
        let Asked { config, files, has_type } = self.asked.clone();
        let options = JobOptions { files, ..JobOptions::default() };
        let keeps_type = config.format == Some(Format::Safetensors) && !has_type;
        quantize_relation(relation, &self.path, &config, &options, keeps_type).await?;
        Ok(count.load(Ordering::Relaxed))
    }
}

/// Rows that can be read once.
struct Once {
    schema: SchemaRef,
    rows: Mutex<Option<SendableRecordBatchStream>>,
}

impl Once {
    /// `count` becomes the number of rows that were read.
    fn new(rows: SendableRecordBatchStream, count: &Arc<AtomicU64>) -> Self {
        let (schema, count) = (rows.schema(), Arc::clone(count));
        let counted = rows.inspect(move |batch| {
            if let Ok(batch) = batch {
                count.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            }
        });
        let rows = RecordBatchStreamAdapter::new(Arc::clone(&schema), counted);
        Self { schema, rows: Mutex::new(Some(Box::pin(rows))) }
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once")
    }
}

impl PartitionStream for Once {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner).take();
        rows.unwrap_or_else(|| {
            let again = futures::stream::once(async { Err(exec_datafusion_err!("the rows were read before")) });
            Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), again))
        })
    }
}
