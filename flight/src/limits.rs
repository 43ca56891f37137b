//! What a server allows, so that no client takes it from the others.

use std::time::Duration;

/// The limits of a server. A request beyond one is refused with a status that names it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Queries that run at once; the others wait.
    pub concurrent_queries: usize,
    /// Queries that wait; more are refused.
    pub queued_queries: usize,
    /// How long a query waits before it is refused.
    pub queue_timeout: Duration,
    /// How long a query runs, from the first result asked for to the last one delivered.
    pub query_timeout: Duration,
    /// Bytes of one message that a client sends.
    pub message_bytes: usize,
    /// Bytes of a request's metadata (headers).
    pub metadata_bytes: usize,
    /// Bytes of one SQL statement.
    pub statement_bytes: usize,
    /// Sessions there are at once.
    pub sessions: usize,
    /// How long a session is kept that is not used.
    pub session_lifetime: Duration,
    /// How long a result is kept that is not fetched.
    pub result_lifetime: Duration,
    /// Prepared statements, and results not yet fetched, of one session.
    pub statements: usize,
    /// How long queries may go on once the server was told to stop.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent_queries: 8,
            queued_queries: 256,
            queue_timeout: Duration::from_secs(30),
            query_timeout: Duration::from_secs(3600),
            message_bytes: 256 << 20,
            metadata_bytes: 16 << 10,
            statement_bytes: 1 << 20,
            sessions: 1000,
            session_lifetime: Duration::from_secs(3600),
            result_lifetime: Duration::from_secs(600),
            statements: 1000,
            drain_timeout: Duration::from_secs(30),
        }
    }
}
