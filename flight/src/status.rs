//! Errors of DataFusion as gRPC statuses: the right code, one line, and nothing of the server's file system.

use std::error::Error;

use arrow::error::ArrowError;
use arrow_quant_bounds::{QueryFault, TooLong};
use datafusion::error::DataFusionError;
use tonic::{Code, Status};

use crate::tables::IngestError;

/// Bytes of a message. Those that are not ASCII take three each in a header.
const MESSAGE_BYTES: usize = 2 << 10;

/// The code of an error that is not DataFusion's own; `None` if it is not known.
pub type Classify = fn(&(dyn Error + 'static)) -> Option<Code>;

/// The status of an error. Absolute paths in its message that `request`, the text the client sent, does not hold are
/// shortened to their last part.
pub(crate) fn status_of(error: &DataFusionError, classify: Classify, request: &str) -> Status {
    if let Some(status) = carried(error) {
        return status;
    }
    let (code, message) = match QueryFault::of_error(error) {
        Some(fault) => (Code::Internal, fault.to_string()),
        None => classified(error, classify),
    };
    let (code, message) = match code {
        _ if is_spill_limit(error) => (Code::ResourceExhausted, format!("spill_mb: {message}")),
        Code::ResourceExhausted if !is_too_long(error) => (code, format!("memory_mb: {message}")),
        _ => (code, message),
    };
    let mut message = without_paths(&message, request);
    // Statuses are headers, of which clients take 8 to 16 KiB.
    if message.len() > MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
        message.push('…');
    }
    Status::new(code, message)
}

/// Whether a query needs more disk than `spill_mb` allows. DataFusion's spill writer says so with an I/O error of no kind, whose
/// payload is text: its text alone tells it from other errors of files. Text of other kinds of errors is not looked at.
fn is_spill_limit(error: &DataFusionError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && error.kind() == std::io::ErrorKind::Other
            && error.get_ref().is_some_and(|said| said.to_string().contains("max_temp_directory_size"))
        {
            return true;
        }
        next = match error.downcast_ref::<DataFusionError>() {
            Some(DataFusionError::External(inner)) => Some(inner.as_ref()),
            _ => error.source(),
        };
    }
    false
}

/// A status that passed through a query as an error.
fn carried(error: &DataFusionError) -> Option<Status> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(status) = error.downcast_ref::<Status>() {
            return Some(Status::new(status.code(), status.message()));
        }
        next = match error.downcast_ref::<DataFusionError>() {
            Some(DataFusionError::External(inner)) => Some(inner.as_ref()),
            _ => error.source(),
        };
    }
    None
}

/// Whether a statement was refused before it was planned.
fn is_too_long(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::External(inner) if inner.is::<TooLong>())
}

fn classified(error: &DataFusionError, classify: Classify) -> (Code, String) {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => classified(inner, classify),
        DataFusionError::Shared(inner) => classified(inner, classify),
        DataFusionError::Collection(errors) => match errors.first() {
            Some(first) => classified(first, classify),
            None => (Code::Internal, "unknown error".to_string()),
        },
        DataFusionError::ArrowError(inner, _) => match inner.as_ref() {
            ArrowError::ExternalError(inner) => foreign(inner.as_ref(), classify),
            ArrowError::IoError(..) => (Code::Internal, inner.to_string()),
            ArrowError::NotYetImplemented(message) => (Code::Unimplemented, message.clone()),
            _ => (Code::InvalidArgument, inner.to_string()),
        },
        DataFusionError::External(inner) => foreign(inner.as_ref(), classify),
        DataFusionError::SQL(inner, _) => (Code::InvalidArgument, inner.to_string()),
        DataFusionError::Plan(message) | DataFusionError::Configuration(message) => {
            (Code::InvalidArgument, message.clone())
        }
        DataFusionError::SchemaError(inner, _) => (Code::InvalidArgument, inner.to_string()),
        DataFusionError::Execution(message) => (Code::InvalidArgument, message.clone()),
        DataFusionError::NotImplemented(message) => (Code::Unimplemented, message.clone()),
        DataFusionError::ResourcesExhausted(message) => (Code::ResourceExhausted, message.clone()),
        DataFusionError::ObjectStore(inner) => of_store(inner, classify),
        DataFusionError::IoError(inner) => foreign(inner, classify),
        DataFusionError::ParquetError(inner) => match foreign(inner.as_ref(), classify) {
            // The file is at fault, even if this server wrote it.
            (Code::Internal, message) => (Code::InvalidArgument, message),
            known => known,
        },
        other => (Code::Internal, other.strip_backtrace()),
    }
}

/// An error that came through DataFusion from elsewhere: the innermost reason that has a code tells it best.
fn foreign(error: &(dyn Error + 'static), classify: Classify) -> (Code, String) {
    if let Some(inner) = error.downcast_ref::<DataFusionError>() {
        return classified(inner, classify);
    }
    if error.is::<TooLong>() {
        return (Code::ResourceExhausted, error.to_string());
    }
    if let Some(inner) = error.downcast_ref::<IngestError>() {
        return (inner.code(), inner.to_string());
    }
    if let Some(inner) = error.downcast_ref::<object_store::Error>() {
        return of_store(inner, classify);
    }
    if let Some(inner) = reason(error) {
        let (code, message) = foreign(inner, classify);
        if code != Code::Internal {
            return (code, message);
        }
    }
    (classify(error).unwrap_or(Code::Internal), error.to_string())
}

/// An error of an object store. Their messages hold whole paths.
fn of_store(error: &object_store::Error, classify: Classify) -> (Code, String) {
    let file = |path: &str| path.rsplit('/').next().unwrap_or_default().to_string();
    match error {
        object_store::Error::NotFound { path, .. } => (Code::NotFound, format!("there is no file '{}'", file(path))),
        object_store::Error::AlreadyExists { path, .. } => {
            (Code::AlreadyExists, format!("the file '{}' is there already", file(path)))
        }
        object_store::Error::PermissionDenied { .. } => (Code::PermissionDenied, error.to_string()),
        object_store::Error::Generic { source, .. } => foreign(source.as_ref(), classify),
        _ => (Code::Internal, error.to_string()),
    }
}

/// What an error was made of. That of an I/O error is not its source, but its source's source may be it.
fn reason<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<std::io::Error>() {
        Some(error) => error.get_ref().map(|inner| inner as _),
        None => error.source(),
    }
}

/// A message in which absolute paths that the client did not write are their last part alone.
fn without_paths(message: &str, request: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find('/') {
        let (before, path) = rest.split_at(at);
        shown.push_str(before);
        // One in quotes may have spaces.
        let quote = before.chars().next_back().filter(|c| "'\"`".contains(*c));
        let quoted = quote.and_then(|quote| path.find(quote));
        let end = quoted.or_else(|| path.find(|c: char| c.is_whitespace() || "'\"`:,;()[]{}<>|".contains(c)));
        let end = end.unwrap_or(path.len());
        let (path, after) = path.split_at(end);
        // A path begins a word: what stands in the middle of one is a quotient or a relative path.
        let begins = !before.ends_with(|c: char| c.is_alphanumeric() || "._-/*".contains(c));
        let parts = path.split('/').filter(|part| !part.is_empty()).count();
        if begins && parts >= 2 && !request.contains(path) {
            shown.push_str(path.trim_end_matches('/').rsplit('/').next().unwrap_or_default());
        } else {
            shown.push_str(path);
        }
        rest = after;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &(dyn Error + 'static)) -> Option<Code> {
        None
    }

    #[test]
    fn codes() {
        let code = |error: DataFusionError| status_of(&error, nothing, "").code();
        assert_eq!(code(DataFusionError::Plan("no table 'x'".into())), Code::InvalidArgument);
        assert_eq!(code(DataFusionError::NotImplemented("MERGE".into())), Code::Unimplemented);
        assert_eq!(code(DataFusionError::Internal("bug".into())), Code::Internal);
        let pool = DataFusionError::ResourcesExhausted("pool".into());
        let wrapped = DataFusionError::Context("while".into(), Box::new(pool));
        let status = status_of(&wrapped, nothing, "");
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "memory_mb: pool"));
        let carried = DataFusionError::External(Box::new(Status::deadline_exceeded("query_timeout: 1 s")));
        assert_eq!(code(DataFusionError::Shared(std::sync::Arc::new(carried))), Code::DeadlineExceeded);
    }

    #[test]
    fn the_limit_of_disk_is_known_by_an_io_error() {
        let said = "exceeded: increase `datafusion.runtime.max_temp_directory_size`";
        let limit = || std::io::Error::other(said);
        let status = |error: DataFusionError| status_of(&error, nothing, "");
        for error in [limit().into(), arrow::error::ArrowError::IoError(String::new(), limit()).into()] {
            let status = status(error);
            assert!(status.message().starts_with("spill_mb: "), "{status}");
            assert_eq!(status.code(), Code::ResourceExhausted);
        }
        // The words can be those of a statement, too.
        assert_eq!(status(DataFusionError::Plan(said.into())).code(), Code::InvalidArgument);
    }

    #[test]
    fn files_that_are_gone_are_named_without_their_directory() {
        let path = "srv/my models/part 1.parquet".to_string();
        let gone = || object_store::Error::NotFound { path: path.clone(), source: "os error 2".into() };
        let parquet = datafusion::parquet::errors::ParquetError::External(Box::new(gone()));
        for error in [DataFusionError::from(gone()), DataFusionError::ParquetError(Box::new(parquet))] {
            let status = status_of(&error, nothing, "");
            assert_eq!((status.code(), status.message()), (Code::NotFound, "there is no file 'part 1.parquet'"));
        }
    }

    #[test]
    fn paths_of_the_server_are_shortened() {
        let shown = |message| without_paths(message, "SELECT * FROM weights('/home/me/model')");
        assert_eq!(shown("cannot open `/srv/models/a/x.safetensors`: gone"), "cannot open `x.safetensors`: gone");
        assert_eq!(shown("no model at /home/me/model"), "no model at /home/me/model");
        assert_eq!(shown("1/2 of a/b, and / too"), "1/2 of a/b, and / too");
        assert_eq!(shown("file:///srv/models/x"), "file:x");
        assert_eq!(shown("'/srv/my models/a b.parquet': gone"), "'a b.parquet': gone");
        assert_eq!(shown("it's at /srv/models/x, isn't it"), "it's at x, isn't it");
    }
}
