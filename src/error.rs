//! What can go wrong, each with what was wrong, where, and what to do.
//!
//! An error is a value: [`QuantError::worded`] makes its sentence in the words of a front end, and `Display` that of YAML and
//! Rust.

mod about;
mod literals;
mod mismatches;
mod problems;
mod refused;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_quant_bounds::QueryFault;
use arrow_quant_formats::directory::Missing;
use arrow_quant_formats::gguf::language::LanguageError;
use arrow_quant_formats::manifest::Shortfall;
use arrow_quant_formats::{FormatError, shown};
use arrow_quant_kernels::KernelError;
use arrow_quant_stores::{Change, StoreError};
use datafusion::error::DataFusionError;

pub use about::{About, Kind};
pub use literals::Literals;
pub use mismatches::{ShapeProblem, ValidationProblem};
pub use problems::{Held, OutputProblem, SettingProblem};
pub use refused::{Allowed, Origin, Problem, Refused};
pub use words::{FieldNames, Words};

/// Why the engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// A setting is refused, whatever the model.
    Refused(Refused),
    /// An argument is not allowed.
    Configuration {
        /// The field of the configuration, where it is one that is wrong.
        field: Option<String>,
        /// The file or directory, where it is one that is wrong, or has the setting.
        path: Option<PathBuf>,
        /// What was found, and what is allowed.
        message: String,
    },
    /// A setting does not fit the model, the machine or another setting.
    Setting {
        /// The field of the configuration.
        field: &'static str,
        /// Why it does not fit.
        problem: Box<SettingProblem>,
    },
    /// Something is where an output should go.
    Output {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        problem: OutputProblem,
    },
    /// There is no readable model at a path.
    ModelNotFound {
        /// The path asked for.
        path: PathBuf,
        /// What is there instead.
        missing: Missing,
    },
    /// A file contradicts itself, or is not understood.
    Metadata {
        /// The file or directory.
        path: PathBuf,
        /// The tensor, where one is wrong.
        tensor: Option<String>,
        /// What is wrong with it.
        problem: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The files of a model do not tell what it makes.
    UnknownModality {
        /// The model.
        path: PathBuf,
    },
    /// A model cannot become a GGUF file of a language model.
    Language {
        /// The model.
        path: PathBuf,
        /// Why.
        problem: Box<LanguageError>,
    },
    /// Two models that should hold the same tensors do not, or values are not those of a tensor.
    ShapeMismatch {
        /// The tensor, if it has a name.
        tensor: Option<String>,
        /// What does not fit.
        problem: Box<ShapeProblem>,
    },
    /// A quantized model cannot be validated as was asked.
    Validation {
        /// The tensor, where it is one alone.
        tensor: Option<String>,
        /// What is wrong with it.
        problem: Box<ValidationProblem>,
    },
    /// A tensor is below the floor in a job that fails fast.
    BelowFloor {
        /// The tensor.
        tensor: String,
        /// The bits it was quantized to.
        bits: usize,
        /// What is below the floor.
        shortfall: Shortfall,
    },
    /// A tensor cannot be quantized, or the job cannot go on.
    Quantization {
        /// The tensor, where it is one that is to blame.
        tensor: Option<String>,
        /// What happened, and what to do.
        message: String,
    },
    /// A tensor of the model has weights that cannot be quantized.
    Weights {
        /// The tensor.
        tensor: String,
        /// The first such weight.
        problem: KernelError,
    },
    /// A file cannot be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A job failed, and another run can go on from the parts that are finished.
    Unfinished {
        /// Why it failed.
        #[source]
        problem: Box<QuantError>,
    },
    /// A file was modified while it was read, so what was made of it is of no use.
    Changed {
        /// The file.
        path: PathBuf,
        /// How it changed.
        change: Change,
    },
    /// The system starts no threads.
    Threads {
        /// What it said.
        source: std::io::Error,
    },
    /// A file or store is not one that clients of this server may reach.
    Access(StoreError),
    /// A query failed.
    Query(Box<DataFusionError>),
}

/// The result of the engine's operations.
pub type Result<T, E = QuantError> = std::result::Result<T, E>;

impl fmt::Display for QuantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.worded(&FieldNames).fmt(f)
    }
}

/// An error in the words of a front end.
struct Worded<'a> {
    error: &'a QuantError,
    words: &'a dyn Words,
}

impl fmt::Display for Worded<'_> {
    // Long because: a match with a sentence for each error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.words;
        match self.error {
            QuantError::Configuration { message, .. } | QuantError::Quantization { message, .. } => {
                f.write_str(message)
            }
            QuantError::ShapeMismatch { tensor, problem } => problem.write(tensor.as_deref(), f),
            QuantError::Validation { tensor, problem } => problem.write(tensor.as_deref(), words, f),
            QuantError::Refused(refused) => refused.write(words, f),
            QuantError::Setting { field, problem } => problem.write(field, words, f),
            QuantError::Output { path, problem } => problem.write(path, words, f),
            QuantError::ModelNotFound { path, missing } => missing.at(path).fmt(f),
            QuantError::Metadata { path, tensor, problem } => {
                write!(f, "{}: {}{problem}", path.display(), of_tensor(tensor.as_deref()))
            }
            QuantError::Language { path, problem } => {
                write!(f, "{}: {problem}", path.display())?;
                match problem.setting() {
                    Some(setting) if problem.is_of_setting() => write!(f, " ({})", words.setting(setting)),
                    Some(setting) => {
                        write!(f, "; if it is like one of llama.cpp's, name that with {}", words.advised(setting))
                    }
                    None => Ok(()),
                }
            }
            QuantError::UnknownModality { path } => write!(
                f,
                "{}: what the model makes cannot be told from its files: give {} as text, code, image or audio, or write \
                 `modality` into its config.json",
                path.display(),
                words.advised("modality")
            ),
            QuantError::BelowFloor { tensor, bits, shortfall } => {
                let shortfall = shortfall.worded(&|field| words.setting(field));
                write!(f, "{tensor} quantized to {bits} bits has {shortfall}: give it more bits, or leave out ")?;
                write!(f, "{} to have that done", words.setting("fail_fast"))
            }
            QuantError::Weights { tensor, problem } => write!(
                f,
                "{tensor}: {problem}; repair the model, or keep the tensor as it is: name it in {}",
                words.advised("sensitive_layer_names")
            ),
            QuantError::Io { path, source } => write!(f, "{}: {}", path.display(), io_message(source)),
            QuantError::Unfinished { problem } => {
                write!(f, "{}; the finished parts are kept: continue with ", problem.worded(words))?;
                f.write_str(&words.switched("resume", true))
            }
            QuantError::Changed { path, change } => write!(
                f,
                "{}: {change}, so what was read of it cannot be trusted: open it again once it stays as it is, and replace files by \
                 renaming",
                path.display()
            ),
            QuantError::Threads { source } => write!(
                f,
                "threads cannot be started ({source}): allow more processes (ulimit -u, or the limit of the container), or more \
                 memory (ulimit -v)"
            ),
            QuantError::Access(error) => error.fmt(f),
            QuantError::Query(error) => f.write_str(&query_message(error)),
        }
    }
}

impl QuantError {
    /// The sentence of the error, in which settings have the names that a front end gives them.
    pub fn worded<'a>(&'a self, words: &'a dyn Words) -> impl fmt::Display + 'a {
        Worded { error: self, words }
    }

    /// A setting or argument that is not allowed.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::Configuration { field: None, path: None, message: message.into() }
    }

    /// A setting that does not fit the model or the rest of the configuration.
    pub fn setting(field: &'static str, problem: SettingProblem) -> Self {
        Self::Setting { field, problem: Box::new(problem) }
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
        if let Self::Unfinished { problem } = self {
            return Self::Unfinished { problem: Box::new(problem.asked_as(real, asked)) };
        }
        if let Self::Setting { problem, .. } = &mut self {
            if let SettingProblem::Variant { path, .. } = &mut **problem {
                *path = as_asked(path, real, asked);
            }
            return self;
        }
        let (Self::Configuration { path: Some(path), .. }
        | Self::ModelNotFound { path, .. }
        | Self::Metadata { path, .. }
        | Self::UnknownModality { path }
        | Self::Language { path, .. }
        | Self::Output { path, .. }
        | Self::Changed { path, .. }
        | Self::Io { path, .. }) = &mut self
        else {
            return self;
        };
        *path = as_asked(path, real, asked);
        self
    }

    /// That values are not those of a tensor, which may have a name.
    pub fn shape(tensor: Option<&str>, problem: ShapeProblem) -> Self {
        let tensor = tensor.filter(|name| !name.is_empty()).map(str::to_string);
        Self::ShapeMismatch { tensor, problem: Box::new(problem) }
    }

    /// That a quantized model cannot be validated, because of one tensor or as a whole.
    pub(crate) fn validation(tensor: Option<&str>, problem: ValidationProblem) -> Self {
        Self::Validation { tensor: tensor.map(str::to_string), problem: Box::new(problem) }
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
            StoreError::Changed { path, change } => Self::Changed { path, change },
            StoreError::Allow { .. } => Self::setting("allow", SettingProblem::Allow(error)),
            StoreError::Outside { .. } | StoreError::TooManyDirectories { .. } => Self::Access(error),
            StoreError::NotALocation { ref text } => Self::configuration(error.to_string()).at(Path::new(text)),
            other => Self::configuration(other.to_string()),
        }
    }
}

impl From<DataFusionError> for QuantError {
    /// One of our own errors that passed through a query comes out as it went in.
    fn from(error: DataFusionError) -> Self {
        match QueryFault::named(error) {
            DataFusionError::External(source) => match source.downcast::<Self>() {
                Ok(own) => *own,
                Err(source) => Self::Query(Box::new(DataFusionError::External(source))),
            },
            DataFusionError::Context(_, inner) => Self::from(*inner),
            DataFusionError::Diagnostic(_, inner) => Self::from(*inner),
            DataFusionError::Shared(inner) => match Arc::try_unwrap(inner) {
                Ok(inner) => Self::from(inner),
                Err(shared) => Self::Query(Box::new(DataFusionError::Shared(shared))),
            },
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

/// A path below `real` as one below the path that was asked for.
fn as_asked(path: &Path, real: &Path, asked: &Path) -> PathBuf {
    match path.strip_prefix(real) {
        Ok(rest) if rest.as_os_str().is_empty() => asked.to_path_buf(),
        Ok(rest) => asked.join(rest),
        Err(_) => path.to_path_buf(),
    }
}

/// `tensor 'x': `, where there is one.
fn of_tensor(tensor: Option<&str>) -> String {
    tensor.map_or_else(String::new, |tensor| format!("tensor '{}': ", shown(tensor)))
}

/// What the system said, and what to do about it where that is clear.
fn io_message(error: &std::io::Error) -> String {
    use std::io::ErrorKind;

    // An error that is not the system's has a message of its own.
    if error.raw_os_error().is_none() {
        return error.to_string();
    }
    let message = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the disk is full: free space, or choose an output elsewhere"
        }
        ErrorKind::FileTooLarge => "the file would be larger than is allowed here: raise the limit (ulimit -f)",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "permission denied: check who may read and write it"
        }
        ErrorKind::StaleNetworkFileHandle => "it is not on its server any more (stale file handle): open it again",
        ErrorKind::NotFound => "no such file or directory",
        ErrorKind::NotADirectory => "not a directory",
        ErrorKind::IsADirectory => "is a directory",
        ErrorKind::AlreadyExists => "file exists",
        _ => return error.to_string(),
    };
    message.to_string()
}

/// The innermost message, without the names of the layers it came through.
fn query_message(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::SQL(error, _) => error.to_string(),
        DataFusionError::SchemaError(error, _) => error.to_string(),
        DataFusionError::Execution(message) | DataFusionError::Plan(message) => message.clone(),
        DataFusionError::External(error) => error.to_string(),
        root => root.strip_backtrace(),
    }
}
