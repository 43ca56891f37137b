//! Directories whose paths the file system's object store cannot spell: it refuses control characters, such as a line end.

use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::ContentHash;
use datafusion::catalog::Session;
use object_store::local::LocalFileSystem;
use url::Url;

use crate::QuantError;

/// A directory as an object store of its own, in which paths are relative to it.
#[derive(Debug, Clone)]
pub(super) struct Root {
    url: Url,
    store: Arc<LocalFileSystem>,
}

impl Root {
    /// The directory's store, if its path needs one.
    ///
    /// # Errors
    /// If the directory cannot be opened.
    pub(super) fn of(directory: &Path) -> crate::Result<Option<Self>> {
        let path = directory.to_string_lossy();
        if !path.chars().any(char::is_control) {
            return Ok(None);
        }
        let failed = |error: &dyn std::fmt::Display| {
            QuantError::configuration(format!("`{}` cannot be read: {error}", directory.display())).at(directory)
        };
        let store = LocalFileSystem::new_with_prefix(directory).map_err(|error| failed(&error))?;
        let hash = ContentHash::of(path.as_bytes());
        let url = Url::parse(&format!("directory://{hash}/")).map_err(|error| failed(&error))?;
        Ok(Some(Self { url, store: Arc::new(store) }))
    }

    /// The URL of a file.
    ///
    /// # Errors
    /// If its path is not one of a URL.
    pub(super) fn url(&self, relative: &str) -> crate::Result<Url> {
        self.url
            .join(relative)
            .map_err(|error| QuantError::configuration(format!("`{relative}` cannot be read: {error}")))
    }

    /// Makes the directory known to a session, so that its queries can read the files.
    pub(super) fn register(&self, state: &dyn Session) {
        state.runtime_env().register_object_store(&self.url, Arc::<LocalFileSystem>::clone(&self.store));
    }
}
