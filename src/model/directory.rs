//! A location as the layouts of model directories see it.

use std::path::{Path, PathBuf};

use arrow_quant_formats::directory::{Directory, DirectoryError, Entry, EntryKind};
use arrow_quant_stores::{ListedKind, Location, StoreError};

use crate::error::{QuantError, SettingProblem};

/// The directory of a model.
pub(super) struct ModelDirectory<'a>(pub &'a Location);

impl Directory for ModelDirectory<'_> {
    type Error = StoreError;

    fn list(&self, directory: &Path) -> Result<Vec<Entry>, StoreError> {
        let entry = |listed: arrow_quant_stores::Listed| Entry {
            path: directory.join(listed.name),
            kind: match listed.kind {
                ListedKind::File => EntryKind::File,
                ListedKind::Directory(identity) => EntryKind::Directory(identity),
                ListedKind::Special => EntryKind::Special,
            },
        };
        Ok(self.0.list(directory)?.into_iter().map(entry).collect())
    }

    fn identity(&self) -> Result<PathBuf, StoreError> {
        self.0.identity()
    }

    fn read(&self, file: &Path) -> Result<Vec<u8>, StoreError> {
        self.0.read(file)
    }
}

impl ModelDirectory<'_> {
    /// An error of the layout with the path of the model.
    pub(super) fn explain(&self, error: DirectoryError<StoreError>) -> QuantError {
        match error {
            DirectoryError::Store(error) => error.into(),
            DirectoryError::Missing(missing) => QuantError::missing(self.0.path(), missing),
            DirectoryError::Variant { directory, asked, there } => {
                let path = if directory.as_os_str().is_empty() {
                    self.0.path().to_path_buf()
                } else {
                    self.0.path().join(directory)
                };
                QuantError::setting("variant", SettingProblem::Variant { path, asked, there })
            }
            DirectoryError::File { file, tensor, problem } => {
                QuantError::defect(&self.0.path().join(file), tensor, problem)
            }
        }
    }
}
