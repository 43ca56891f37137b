//! The rows of a query on disk, computed before a client fetches them.

use std::fs::File;
use std::io::BufReader;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::DiskManager;
use datafusion::execution::spill_file::SpillFile;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};
use tokio::sync::Notify;
use tonic::Status;

use crate::lock::locked;
use crate::wire::Pieces;

/// How long a poll waits for the end before it tells the progress.
const PATIENCE: Duration = Duration::from_millis(500);

/// The rows of a query on disk.
pub(crate) struct Spool {
    schema: SchemaRef,
    file: Arc<dyn SpillFile>,
    ended: AtomicBool,
    failure: Mutex<Option<Status>>,
    changed: Notify,
}

impl Spool {
    /// An empty file among those that queries spill to.
    pub(crate) fn new(schema: SchemaRef, disk: &Arc<DiskManager>) -> Result<Self> {
        let file = disk.create_tmp_file("keeping a result until it is fetched")?;
        let (ended, failure) = (AtomicBool::new(false), Mutex::default());
        Ok(Self { schema, file, ended, failure, changed: Notify::new() })
    }

    /// Writes the rows; a file that was not written to its end is never read.
    pub(crate) async fn fill(&self, mut rows: SendableRecordBatchStream) -> Result<()> {
        let mut file = self.file.open_writer()?;
        let mut writer = StreamWriter::try_new(&mut file, &self.schema)?;
        while let Some(batch) = rows.next().await {
            for piece in Pieces::new(batch?, Arc::clone(&self.schema)) {
                writer.write(&piece?)?;
            }
        }
        writer.finish()?;
        drop(writer);
        file.finish()
    }

    /// Tells those that wait that all rows are there, or why they will not be.
    pub(crate) fn end(&self, failure: Option<Status>) {
        *locked(&self.failure) = failure;
        self.ended.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// True once all rows are there; false if they are not yet after a while.
    pub(crate) async fn wait(&self) -> Result<bool, Status> {
        let changed = self.changed.notified();
        if !self.ended.load(Ordering::Acquire) {
            let _ = tokio::time::timeout(PATIENCE, changed).await;
        }
        match locked(&self.failure).as_ref() {
            Some(status) => Err(status.clone()),
            None => Ok(self.ended.load(Ordering::Acquire)),
        }
    }

    /// Reads the rows.
    pub(crate) fn rows(&self) -> Result<SendableRecordBatchStream> {
        if !self.ended.load(Ordering::Acquire) {
            let early = Status::failed_precondition("the result is not computed yet: poll until it is");
            return Err(DataFusionError::External(Box::new(early)));
        }
        let Some(path) = self.file.path() else {
            return Err(DataFusionError::NotImplemented("results that are kept elsewhere than on disk".to_string()));
        };
        let reader = StreamReader::try_new(BufReader::with_capacity(1 << 20, File::open(path)?), None)?;
        // The file lives as long as the reader does.
        let file = Arc::clone(&self.file);
        let rows = stream::iter(reader).map(move |batch| {
            let _ = &file;
            batch.map_err(DataFusionError::from)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows)))
    }
}
