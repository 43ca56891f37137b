//! Calibration tables as they are given: by a path, or as Arrow data.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_quant_v2::Calibration;
use pyo3::prelude::*;

use crate::errors::Result;
use crate::import;

/// What the argument is called.
const ARGUMENT: &str = "calibration";

/// A calibration table that nobody has looked at yet.
pub(crate) enum CalibrationTable {
    /// A file of it.
    File(PathBuf),
    /// Its rows.
    Rows(Vec<RecordBatch>),
}

impl CalibrationTable {
    /// The table that an argument stands for. A stream is read to its end, and not copied.
    ///
    /// # Errors
    /// If it is neither a path nor an Arrow table, or reading it fails.
    pub(crate) fn of(argument: Option<&Bound<'_, PyAny>>) -> Result<Option<Self>> {
        let Some(argument) = argument else { return Ok(None) };
        if let Ok(path) = argument.extract::<PathBuf>() {
            return Ok(Some(Self::File(path)));
        }
        let (_, rows) = import::batches(ARGUMENT, ARGUMENT, argument)?;
        Ok(Some(Self::Rows(rows)))
    }

    /// Reads and checks it; at most `samples` of each layer and timestep are used.
    ///
    /// # Errors
    /// If it cannot be read, or contradicts itself.
    pub(crate) async fn open(self, samples: i64) -> arrow_quant_v2::Result<Arc<Calibration>> {
        let read = move || match self {
            Self::File(path) => Calibration::open(path, samples),
            Self::Rows(rows) => Calibration::from_batches(ARGUMENT, &rows, samples),
        };
        // Elsewhere, for a job may be cancelled meanwhile.
        match tokio::task::spawn_blocking(read).await {
            Ok(calibration) => Ok(Arc::new(calibration?)),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
