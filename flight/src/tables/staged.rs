//! Parquet files that are being written: no table has them before they are whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use futures::StreamExt;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::basic::Compression;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use uuid::Uuid;

use super::incoming::{Columns, IngestError};

/// Bytes of a row group, about: what a writer holds in memory.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// A path that is removed unless its file was moved elsewhere.
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a file in the staging directory cannot be removed");
        }
    }
}

/// A whole file, on disk, that no table has yet.
#[derive(Debug)]
pub(super) struct Staged {
    file: Unfinished,
    /// As a reader of the file sees it.
    pub schema: SchemaRef,
    pub rows: u64,
    pub bytes: u64,
}

impl Staged {
    /// Writes a stream to a file of a directory, to its end.
    ///
    /// # Errors
    /// Those of the stream and of the disk; if a batch does not fit the columns, or Parquet has no such type.
    pub(crate) async fn write(
        directory: &Path,
        columns: &Columns,
        mut input: SendableRecordBatchStream,
        pool: &Arc<dyn MemoryPool>,
    ) -> Result<Self> {
        let path = directory.join(format!("{}.parquet", Uuid::new_v4()));
        let memory = MemoryConsumer::new("ingest").register(pool);
        let schema = Arc::clone(columns.schema());
        let mut writer = blocking(move || Writer::create(path, schema, memory)).await?;
        let mut next = input.next().await;
        while let Some(batch) = next {
            let batch = columns.batch(&batch?)?;
            let written = blocking(move || {
                writer.write(&batch)?;
                Ok(writer)
            });
            let (written, following) = futures::future::join(written, input.next()).await;
            (writer, next) = (written?, following);
        }
        blocking(move || writer.finish()).await
    }

    /// Moves the file to where it belongs.
    pub(crate) fn publish(self, path: &Path) -> std::io::Result<()> {
        fs::rename(&self.file.0, path)
    }
}

/// A file that is being written. Fields are dropped in this order: the file is closed, then removed.
struct Writer {
    parquet: ArrowWriter<File>,
    memory: MemoryReservation,
    rows: u64,
    file: Unfinished,
}

impl Writer {
    fn create(path: PathBuf, schema: SchemaRef, memory: MemoryReservation) -> Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let created = File::create_new(&path)?;
        let file = Unfinished(path);
        let properties = properties(&schema);
        let parquet = ArrowWriter::try_new(created, schema, Some(properties)).map_err(|error| {
            IngestError::Unsupported(format!(
                "a column cannot be stored as Parquet, a temporary table takes it: {error}"
            ))
        })?;
        Ok(Self { parquet, memory, rows: 0, file })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.parquet.write(batch)?;
        self.rows += batch.num_rows() as u64;
        // Without memory for more, the row group ends here.
        if self.memory.try_resize(self.parquet.memory_size()).is_err() {
            self.parquet.flush()?;
            self.memory.free();
        }
        Ok(())
    }

    fn finish(self) -> Result<Staged> {
        let Self { parquet, memory, rows, file } = self;
        let written = parquet.into_inner()?;
        drop(memory);
        written.sync_all()?;
        let bytes = written.metadata()?.len();
        Ok(Staged { schema: read_schema(&file.0)?, file, rows, bytes })
    }
}

/// Values of weights are neither compressed nor gathered in dictionaries nor compared: it would not be worth its time.
fn properties(schema: &Schema) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("arrow-quant ", env!("CARGO_PKG_VERSION")).to_string())
        .set_compression(Compression::SNAPPY)
        .set_dictionary_enabled(false)
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES));
    for field in schema.fields() {
        let column = ColumnPath::from(field.name().as_str());
        match field.data_type() {
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                properties = properties
                    .set_column_compression(column.clone(), Compression::UNCOMPRESSED)
                    .set_column_statistics_enabled(column, EnabledStatistics::None);
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
                properties = properties.set_column_dictionary_enabled(column, true);
            }
            other if other.is_integer() => {
                properties = properties.set_column_dictionary_enabled(column, true);
            }
            _ => {}
        }
    }
    properties.build()
}

/// The columns of a Parquet file.
pub(super) fn read_schema(path: &Path) -> Result<SchemaRef> {
    let metadata = ArrowReaderMetadata::load(&File::open(path)?, ArrowReaderOptions::default())?;
    Ok(Arc::new(Schema::new(metadata.schema().fields().clone())))
}

/// Work of the disk, on a thread that may wait for it. It goes on if nobody waits for its result.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))?
}
