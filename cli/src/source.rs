//! What a command quantizes or plans.

use std::path::Path;

/// The source of a job or plan.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// The model at a path.
    Model(&'a Path),
    /// What a query gives.
    Query(&'a str),
}
