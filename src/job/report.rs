//! The report of a quantized model directory.

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::calibration::StoredCalibration;
use crate::model::manifest_at;
use crate::report::ModelReport;
use crate::tables::QuantizedModel;

impl ModelReport {
    /// Reads the report of a quantized model, a directory or a file that has its manifest beside it, and checks the tables that its calibration became.
    ///
    /// # Errors
    /// If there is none at the path, a file has not the size that the manifest tells, or a table is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        if path.as_ref().is_file() {
            return manifest_at(path.as_ref()).map(Self::new);
        }
        let model = Arc::new(QuantizedModel::open(path.as_ref())?);
        StoredCalibration::read(&model)?;
        Ok(Self::new(model.manifest().clone()))
    }
}
