//! How functions of a query learn that it is not wanted any more. A function that computes cannot be stopped from outside.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::execution::SessionState;
use datafusion::prelude::SessionContext;

/// Stops the functions of a query.
pub type Interrupt = Arc<dyn Fn() + Send + Sync>;

/// Puts what functions look at into the configuration of a query, and gives what stops them.
pub type Interruptible = fn(&mut ConfigOptions) -> Interrupt;

/// The state of a session for one query, and what stops the functions of that query.
pub(crate) fn for_query(ctx: &SessionContext, interruptible: Interruptible) -> (SessionState, Interrupt) {
    renewed(ctx.state(), interruptible)
}

/// The same for a query that is planned anew.
pub(crate) fn renewed(mut state: SessionState, interruptible: Interruptible) -> (SessionState, Interrupt) {
    let interrupt = interruptible(state.config_mut().options_mut());
    // Functions are planned with the options of the execution, which are older.
    let options = Arc::clone(state.config().options());
    state.execution_props_mut().config_options = Some(options);
    (state, interrupt)
}

/// Stops the functions of a query when it is dropped.
pub(crate) struct InterruptOnDrop(pub Interrupt);

impl Drop for InterruptOnDrop {
    fn drop(&mut self) {
        (self.0)();
    }
}
