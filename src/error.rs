//! What can go wrong, each with what was wrong, where, and what to do.

use std::path::{Path, PathBuf};

use arrow_quant_formats::directory::Missing;
use arrow_quant_formats::{FormatError, shown};
use arrow_quant_kernels::KernelError;
use arrow_quant_stores::StoreError;
use datafusion::error::DataFusionError;

/// Why the engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// A setting, flag or argument is not allowed.
    #[error("{message}")]
    Configuration {
        /// The field of the configuration, where it is one that is wrong.
        field: Option<String>,
        /// The file or directory, where it is one that is wrong, or has the setting.
        path: Option<PathBuf>,
        /// What was found, and what is allowed.
        message: String,
    },
    /// There is no readable model at a path.
    #[error("{}", missing.at(path))]
    ModelNotFound {
        /// The path asked for.
        path: PathBuf,
        /// What is there instead.
        missing: Missing,
    },
    /// A file contradicts itself, or is not understood.
    #[error("{}: {}{problem}", path.display(), of_tensor(tensor.as_deref()))]
    Metadata {
        /// The file or directory.
        path: PathBuf,
        /// The tensor, where one is wrong.
        tensor: Option<String>,
        /// What is wrong with it.
        problem: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Two models that should hold the same tensors do not.
    #[error("{message}")]
    ShapeMismatch {
        /// The tensor.
        tensor: String,
        /// Both shapes.
        message: String,
    },
    /// Quality below the floor.
    #[error("{message}")]
    Validation {
        /// The tensor, where it is one alone.
        tensor: Option<String>,
        /// Which tensors, and their figures.
        message: String,
    },
    /// A tensor cannot be quantized, or the job cannot go on.
    #[error("{message}")]
    Quantization {
        /// The tensor, where it is one that is to blame.
        tensor: Option<String>,
        /// What happened, and what to do.
        message: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {message}", path = path.display(), message = io_message(.source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or store is not one that clients of this server may reach.
    #[error(transparent)]
    Access(StoreError),
    /// A query failed.
    #[error("{}", query_message(.0))]
    Query(Box<DataFusionError>),
}

/// The result of the engine's operations.
pub type Result<T, E = QuantError> = std::result::Result<T, E>;

impl QuantError {
    /// A setting or argument that is not allowed.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::Configuration { field: None, path: None, message: message.into() }
    }

    /// A field of the configuration that is not allowed.
    pub fn field(field: &str, message: impl Into<String>) -> Self {
        Self::Configuration { field: Some(field.to_string()), path: None, message: message.into() }
    }

    /// The same, with the file or directory that it is about.
    pub fn at(self, at: &Path) -> Self {
        match self {
            Self::Configuration { field, message, .. } => {
                Self::Configuration { field, path: Some(at.to_path_buf()), message }
            }
            other => other,
        }
    }

    /// The same, about the path that was asked for instead of the one it led to.
    pub(crate) fn asked_as(mut self, real: &Path, asked: &Path) -> Self {
        let (Self::Configuration { path: Some(path), .. }
        | Self::ModelNotFound { path, .. }
        | Self::Metadata { path, .. }
        | Self::Io { path, .. }) = &mut self
        else {
            return self;
        };
        if let Ok(rest) = path.strip_prefix(real) {
            *path = if rest.as_os_str().is_empty() { asked.to_path_buf() } else { asked.join(rest) };
        }
        self
    }

    /// That there is no readable model at a path.
    pub fn missing(path: &Path, missing: Missing) -> Self {
        Self::ModelNotFound { path: path.to_path_buf(), missing }
    }

    /// That a file is wrong, or a tensor in it.
    pub fn defect(
        path: &Path,
        tensor: Option<String>,
        problem: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Metadata { path: path.to_path_buf(), tensor, problem: problem.into() }
    }

    /// That a file of weights is wrong.
    pub(crate) fn format(path: &Path, error: FormatError) -> Self {
        Self::defect(path, error.tensor, error.problem)
    }

    /// A failed operation on a file.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }
}

impl From<KernelError> for QuantError {
    fn from(error: KernelError) -> Self {
        Self::configuration(error.to_string())
    }
}

impl From<StoreError> for QuantError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { path, source } => Self::Io { path, source },
            StoreError::Allow { ref text, .. } => {
                let path = PathBuf::from(text);
                Self::Configuration { field: Some("allow".to_string()), path: Some(path), message: error.to_string() }
            }
            StoreError::Outside { .. } | StoreError::TooManyDirectories { .. } => Self::Access(error),
            other => Self::configuration(other.to_string()),
        }
    }
}

impl From<DataFusionError> for QuantError {
    /// One of our own errors that passed through a query comes out as it went in.
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(source) => match source.downcast::<Self>() {
                Ok(own) => *own,
                Err(source) => Self::Query(Box::new(DataFusionError::External(source))),
            },
            DataFusionError::Context(_, inner) => Self::from(*inner),
            DataFusionError::Diagnostic(_, inner) => Self::from(*inner),
            other => Self::Query(Box::new(other)),
        }
    }
}

impl From<QuantError> for DataFusionError {
    fn from(error: QuantError) -> Self {
        match error {
            QuantError::Query(error) => *error,
            other => Self::External(Box::new(other)),
        }
    }
}

impl From<arrow::error::ArrowError> for QuantError {
    fn from(error: arrow::error::ArrowError) -> Self {
        DataFusionError::from(error).into()
    }
}

/// `tensor 'x': `, where there is one.
fn of_tensor(tensor: Option<&str>) -> String {
    tensor.map_or_else(String::new, |tensor| format!("tensor '{}': ", shown(tensor)))
}

/// What the system said, and what to do about it where that is clear.
fn io_message(error: &std::io::Error) -> String {
    use std::io::ErrorKind;

    let advice = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the disk is full: free space, or choose an output elsewhere"
        }
        ErrorKind::FileTooLarge => "the file would be larger than is allowed here: raise the limit (ulimit -f)",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "permission denied: check who may read and write it"
        }
        _ => {
            let message = error.to_string();
            return match message.split_once(" (os error") {
                Some((said, _)) => said.to_lowercase(),
                None => message,
            };
        }
    };
    // An error that carries its own advice keeps it.
    if error.raw_os_error().is_some() { advice.to_string() } else { error.to_string() }
}

/// The innermost message, without the names of the layers it came through.
fn query_message(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::SQL(error, _) => error.to_string(),
        DataFusionError::Execution(message) | DataFusionError::Plan(message) => argument_message(message).to_string(),
        root => argument_message(&root.strip_backtrace()).to_string(),
    }
}

/// What a function said of its arguments, where DataFusion put words before and after it.
fn argument_message(message: &str) -> &str {
    let Some((_, said)) = message.split_once("user-defined coercion failed with: ") else { return message };
    let said = said.strip_prefix("Error during planning: ").unwrap_or(said);
    said.split_once(" No function matches").map_or(said, |(said, _)| said.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_function_says_of_its_arguments_stands_alone() {
        let wrapped = "Function 'f' user-defined coercion failed with: Error during planning: f expects a, found b. No function \
                       matches the given name. Candidate functions: f(UserDefined)";
        assert_eq!(argument_message(wrapped), "f expects a, found b");
        assert_eq!(argument_message("other"), "other");
    }

    #[test]
    fn our_own_errors_come_through_a_query_as_they_went_in() {
        let own = QuantError::configuration("bits is 3");
        let through = DataFusionError::from(own).context("while planning");
        assert_eq!(QuantError::from(through).to_string(), "bits is 3");
    }
}
