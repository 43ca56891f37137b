//! Statements on threads of their own. A query that computes keeps its thread, so the main thread waits for signals. The
//! threads of a query that was cancelled are not waited for: it ends by itself soon after.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use arrow_quant_bounds::{on_planning_thread, parse, quiet_panics, streamed};
use arrow_quant_udfs::Cancellation;
use arrow_quant_v2::plan_statement;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use tokio::runtime::{Handle, Runtime};

use crate::failure::Failure;
use crate::runtime;

/// How long a cancelled query may keep all threads before the next one gets others.
const PATIENCE: Duration = Duration::from_millis(100);

/// A session and the threads that its statements run on.
pub(crate) struct Queries {
    ctx: SessionContext,
    threads: usize,
    /// Where statements are planned and computed.
    computing: RefCell<Computing>,
    /// Where signals are waited for, and rows written.
    waiting: Runtime,
    /// Whether a query was left behind, which may keep its threads.
    left_behind: Cell<bool>,
}

impl Queries {
    /// # Errors
    /// If the threads cannot be started.
    pub(crate) fn new(ctx: SessionContext, threads: usize) -> Result<Self, Failure> {
        quiet_panics(|name| name != Some("main"));
        let waiting = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::Message(format!("cannot wait for signals: {error}")))?;
        let computing = RefCell::new(Computing::start(threads)?);
        Ok(Self { ctx, threads, computing, waiting, left_behind: Cell::new(false) })
    }

    /// The session.
    pub(crate) fn ctx(&self) -> &SessionContext {
        &self.ctx
    }

    /// Does work until it ends, or a signal comes: then the queries in it are cancelled, and the failure says so at once.
    ///
    /// # Errors
    /// What the work says, and [`Failure::Interrupted`].
    pub(crate) fn until<T>(
        &self,
        signal: impl Future<Output = u8>,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.free_threads()?;
        let cancellation = Cancellation::default();
        self.ctx.state_ref().write().config_mut().options_mut().extensions.insert(cancellation.clone());
        self.waiting.block_on(async {
            tokio::select! {
                biased;
                status = signal => {
                    cancellation.cancel();
                    self.left_behind.set(true);
                    Err(Failure::Interrupted { status, message: "the query was cancelled".to_string() })
                }
                done = work => done,
            }
        })
    }

    /// Gives the next query other threads if a query that was cancelled keeps all of these.
    fn free_threads(&self) -> Result<(), Failure> {
        if !self.left_behind.take() {
            return Ok(());
        }
        let free = self.handle().spawn(async {});
        let freed = self.waiting.block_on(async { tokio::time::timeout(PATIENCE, free).await });
        if freed.is_err() {
            self.computing.replace(Computing::start(self.threads)?);
        }
        Ok(())
    }

    fn handle(&self) -> Handle {
        self.computing.borrow().runtime().handle().clone()
    }

    /// The statements of a text.
    ///
    /// # Errors
    /// If one cannot be parsed, or is too long.
    pub(crate) async fn parse(&self, text: &str) -> Result<VecDeque<Statement>, Failure> {
        let text = text.to_string();
        Ok(on_planning_thread(&self.handle(), async move { parse(&text) }).await?)
    }

    /// Runs a statement: the rows it gives, computed as they are read.
    ///
    /// # Errors
    /// If the statement is not valid, is too long, or names what is not there.
    pub(crate) async fn rows(&self, statement: Statement) -> Result<SendableRecordBatchStream, Failure> {
        let (threads, ctx) = (self.handle(), self.ctx.clone());
        let rows = on_planning_thread(&threads, async move {
            let plan = plan_statement(&ctx, statement).await?;
            ctx.execute_logical_plan(plan).await?.execute_stream().await
        });
        Ok(streamed(&threads, rows.await?))
    }

    /// Waits for what a session needs, on the threads that compute.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.computing.borrow().runtime().block_on(work)
    }
}

/// Threads that are not waited for when they are dropped: a query that was left behind may keep one.
struct Computing(Option<Runtime>);

impl Computing {
    fn start(threads: usize) -> Result<Self, Failure> {
        Ok(Self(Some(runtime(threads)?)))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("the threads are there until they are dropped")
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
