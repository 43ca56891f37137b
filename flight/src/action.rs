//! An action that the embedding program adds.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::prelude::SessionContext;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;

/// What an action answers: one message after the other.
pub type ActionStream = BoxStream<'static, datafusion::error::Result<Bytes>>;

/// Something clients can ask for that is not a query.
#[async_trait]
pub trait Action: Send + Sync {
    /// The type of the action, by which it is called.
    fn name(&self) -> &'static str;
    /// One line for `ListActions`: what it does, and what its body holds.
    fn description(&self) -> &'static str;
    /// Whether it changes something: read-only servers and users refuse it.
    fn writes(&self) -> bool;
    /// Whether it takes so long that its first answer is `{"id": "..."}`, by which `cancel` stops it.
    fn is_job(&self) -> bool {
        self.writes()
    }
    /// Does it.
    ///
    /// # Errors
    /// If the body is not understood, or what it asks for cannot be done.
    async fn run(&self, call: ActionCall) -> datafusion::error::Result<ActionStream>;
}

/// One call of an action.
#[non_exhaustive]
pub struct ActionCall {
    /// What the client sent.
    pub body: Bytes,
    /// Who calls.
    pub user: Arc<str>,
    /// The session that is served: what is registered here is there for everyone.
    pub base: SessionContext,
    /// Fires when the client cancels, or is gone.
    pub cancelled: CancellationToken,
    /// What the call is known by, in logs and to `cancel`.
    pub id: String,
}
