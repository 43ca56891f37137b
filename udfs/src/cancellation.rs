//! Whether a query is still wanted. A function that is called cannot be stopped from outside, and one row can hold a GiB of
//! weights, so the functions look at this between slices of a row.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::Result;
use datafusion::common::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};
use datafusion::common::config_err;
use datafusion::error::DataFusionError;

/// Stops the functions of a query. It is an extension of the configuration that the query is planned with.
///
/// ```
/// # use arrow_quant_udfs::Cancellation;
/// # use datafusion::prelude::SessionContext;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> datafusion::error::Result<()> {
/// let mut ctx = SessionContext::new();
/// arrow_quant_udfs::register_all(&mut ctx)?;
/// let cancellation = Cancellation::default();
/// ctx.state_ref().write().config_mut().options_mut().extensions.insert(cancellation.clone());
/// cancellation.cancel();
/// let stopped = ctx.sql("SELECT sqnr(quantize([random(), 2.0], 4, 64))").await?.collect().await;
/// assert!(stopped.is_err_and(|error| error.to_string().contains("cancelled")));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    /// Says that the query is not wanted any more. Functions that run end with an error within milliseconds.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether that was said.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The one of a query's configuration; without one, the query cannot be cancelled.
    pub(crate) fn of(options: &ConfigOptions) -> Self {
        options.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Called between pieces of work that nothing else can stop.
    ///
    /// # Errors
    /// [`Cancelled`] if the query is not wanted any more.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(DataFusionError::External(Box::new(Cancelled))) } else { Ok(()) }
    }
}

impl ConfigExtension for Cancellation {
    const PREFIX: &'static str = "arrow_quant_cancellation";
}

/// It has no settings: a value of the program, not of its users.
impl ExtensionOptions for Cancellation {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, _: &str) -> Result<()> {
        config_err!("there is no setting '{}.{key}'", Self::PREFIX)
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        Vec::new()
    }
}

/// A function ended because its query was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the query was cancelled")
    }
}

impl std::error::Error for Cancelled {}
