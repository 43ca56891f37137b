//! Panics of the engine as errors of the query.

use std::any::Any;
use std::panic;
use std::sync::Arc;

use datafusion::error::DataFusionError;
use tokio::task::JoinError;

/// A query ended with a panic. The query engine is at fault, neither the data nor the statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the query engine failed: {message}; this is a fault in the query engine, not in the statement: please report it"
)]
pub struct QueryFault {
    message: String,
}

impl QueryFault {
    /// The fault that a panic's payload tells of.
    pub fn of_panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| text.to_string());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        let message = text.unwrap_or_else(|| "it stopped without a reason".to_string());
        Self { message: message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ") }
    }

    /// What became of a task: its panic as a fault. `None` if it was cancelled.
    pub fn of_task(error: JoinError) -> Option<Self> {
        error.try_into_panic().ok().map(|payload| Self::of_panic(payload.as_ref()))
    }

    /// The fault that an error tells of, if it came of a panic.
    pub fn of_error(error: &DataFusionError) -> Option<Self> {
        let join = match error.find_root() {
            DataFusionError::ExecutionJoin(join) => Some(join.as_ref()),
            // A repartition hands the panic of its input to each of its partitions.
            DataFusionError::External(inner) => {
                inner.downcast_ref::<JoinError>().or_else(|| inner.downcast_ref::<Arc<JoinError>>().map(Arc::as_ref))
            }
            _ => None,
        };
        // A borrowed error gives its message as text alone.
        let text = join.filter(|join| join.is_panic())?.to_string();
        let message = text.split_once(" with message ").map_or(text.as_str(), |(_, message)| message);
        let message = message.trim_matches('"').replace("\\n", " ").replace("\\\"", "\"");
        Some(Self { message: message.split_whitespace().collect::<Vec<_>>().join(" ") })
    }

    /// The same error, in which the panic of a task of the engine is a fault.
    pub fn named(error: DataFusionError) -> DataFusionError {
        match error {
            DataFusionError::ExecutionJoin(join) if join.is_panic() => match Self::of_task(*join) {
                Some(fault) => fault.into(),
                None => DataFusionError::Internal("a task of the query was cancelled".to_string()),
            },
            // Within others, or held by several partitions: its text says as much.
            other => match Self::of_error(&other) {
                Some(fault) => fault.into(),
                None => other,
            },
        }
    }
}

impl From<QueryFault> for DataFusionError {
    fn from(fault: QueryFault) -> Self {
        Self::External(Box::new(fault))
    }
}

/// Keeps panics of threads whose names `is_query` accepts from being printed: they become errors, which are reported.
/// The panic itself is logged at the level `debug`.
pub fn quiet_panics(is_query: fn(Option<&str>) -> bool) {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if is_query(std::thread::current().name()) {
            log::debug!("a query failed: {info}");
        } else {
            print(info);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_one_line_that_says_whose_fault_it_is() {
        let panicked = async || tokio::spawn(async { panic!("left\n  right") }).await.unwrap_err();
        let fault = QueryFault::of_task(panicked().await).expect("it panicked").to_string();
        assert!(
            fault.starts_with("the query engine failed: left right; this is a fault in the query engine"),
            "{fault}"
        );
        let nested = DataFusionError::ExecutionJoin(Box::new(panicked().await)).context("while sorting");
        assert_eq!(QueryFault::named(nested).find_root().strip_backtrace(), format!("External error: {fault}"));
        let external = DataFusionError::External(Box::new(panicked().await));
        assert_eq!(QueryFault::named(external).find_root().strip_backtrace(), format!("External error: {fault}"));
        let of_all = DataFusionError::External(Box::new(Arc::new(panicked().await))).context("Join Error");
        assert_eq!(QueryFault::named(of_all).find_root().strip_backtrace(), format!("External error: {fault}"));
        let shared = Arc::new(DataFusionError::ExecutionJoin(Box::new(panicked().await)));
        let other = Arc::clone(&shared);
        let shared = QueryFault::named(DataFusionError::Shared(other)).find_root().strip_backtrace();
        assert_eq!(shared, format!("External error: {fault}"));
        let plan = DataFusionError::Plan("no such table".to_string());
        assert!(matches!(QueryFault::named(plan), DataFusionError::Plan(_)));
    }
}
