//! Results that were announced and are fetched piece by piece, and what is allowed to run at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_quant_bounds as bounds;
use datafusion::common::{Result, exec_err};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::future::{BoxFuture, WeakShared};
use futures::{FutureExt, StreamExt};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use uuid::Uuid;

use crate::interrupt::{Interrupt, Interruptible, renewed};
use crate::limits::Limits;
use crate::lock::locked;
use crate::metrics::Metrics;
use crate::spool::Spool;
use crate::wire::wire_schema;

type Entering = BoxFuture<'static, Result<Arc<Permit>, Status>>;

/// A planned query: nothing of it runs until its first partition is fetched.
pub(crate) struct Query {
    pub id: Uuid,
    /// What the client asked, for messages and logs.
    pub sql: String,
    /// The schema announced and streamed.
    pub schema: SchemaRef,
    pub cancelled: CancellationToken,
    plan: Arc<dyn ExecutionPlan>,
    /// The memory of the plan, about.
    _memory: MemoryReservation,
    /// What to plan again where a partition is fetched a second time: a physical plan runs once.
    again: Option<(SessionState, LogicalPlan)>,
    state: SessionState,
    /// The result, where polling had it computed beforehand.
    pub spool: OnceLock<Arc<Spool>>,
    fetched: Mutex<Vec<bool>>,
    interruptible: Interruptible,
    /// What stops the functions of the plans that were made, as long as they were not stopped.
    interrupts: Mutex<Vec<Interrupt>>,
    /// Set once the functions of the plan were stopped: who fetches of it again has it planned anew.
    spent: AtomicBool,
    used: Mutex<Instant>,
    running: Arc<Mutex<Weak<Permit>>>,
    /// The wait for the permission, for as long as a partition waits.
    entering: Mutex<Option<WeakShared<Entering>>>,
}

impl Query {
    /// A query of a session, planned.
    pub(crate) async fn plan(
        state: SessionState,
        logical: LogicalPlan,
        sql: String,
        interruptible: Interruptible,
    ) -> Result<Self> {
        let (state, interrupt) = renewed(state, interruptible);
        let (plan, bytes) = physical(&state, &logical).await?;
        let bytes = bytes.saturating_add(bounds::bytes(&logical)?);
        let query = Self::new(state.clone(), plan, bytes, Some((state, logical)), sql, interruptible)?;
        locked(&query.interrupts).push(interrupt);
        Ok(query)
    }

    /// What an executed statement gave.
    pub(crate) fn of_result(
        state: SessionState,
        batches: Vec<RecordBatch>,
        sql: String,
        interruptible: Interruptible,
    ) -> Result<Self> {
        let schema = batches.first().map_or_else(|| Arc::new(Schema::empty()), RecordBatch::schema);
        let bytes = batches.iter().map(RecordBatch::get_array_memory_size).sum();
        let plan = MemorySourceConfig::try_new_exec(&[batches], schema, None)?;
        Self::new(state, plan, bytes, None, sql, interruptible)
    }

    fn new(
        state: SessionState,
        plan: Arc<dyn ExecutionPlan>,
        bytes: usize,
        again: Option<(SessionState, LogicalPlan)>,
        sql: String,
        interruptible: Interruptible,
    ) -> Result<Self> {
        let partitions = plan.output_partitioning().partition_count();
        let memory = MemoryConsumer::new("results to be fetched").register(&state.runtime_env().memory_pool);
        memory.try_grow(bytes)?;
        Ok(Self {
            id: Uuid::new_v4(),
            sql,
            schema: wire_schema(&plan.schema()),
            cancelled: CancellationToken::new(),
            plan,
            _memory: memory,
            again,
            state,
            spool: OnceLock::new(),
            fetched: Mutex::new(vec![false; partitions]),
            interruptible,
            interrupts: Mutex::default(),
            spent: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
            running: Default::default(),
            entering: Default::default(),
        })
    }

    /// How many partitions can be fetched.
    pub(crate) fn endpoints(&self) -> usize {
        if self.spool.get().is_some() { 1 } else { self.plan.output_partitioning().partition_count() }
    }

    /// Whether the rows have an order that the endpoints, read one after the other, keep.
    pub(crate) fn ordered(&self) -> bool {
        self.endpoints() == 1 && self.plan.output_ordering().is_some()
    }

    /// The physical plan.
    pub(crate) fn physical(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// The rows of a partition, or of all, one after the other.
    pub(crate) async fn rows(&self, partition: Option<usize>) -> Result<SendableRecordBatchStream> {
        self.touch();
        match (self.spool.get(), partition) {
            (Some(spool), _) => spool.rows(),
            (None, Some(partition)) => self.partition(partition).await,
            (None, None) => self.computed().await,
        }
    }

    /// The rows of all partitions, one after the other, as the plan gives them.
    pub(crate) async fn computed(&self) -> Result<SendableRecordBatchStream> {
        let partitions = 0..self.plan.output_partitioning().partition_count();
        let streams = futures::future::try_join_all(partitions.map(|partition| self.partition(partition))).await?;
        let rows = futures::stream::iter(streams).flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.plan.schema(), rows)))
    }

    async fn partition(&self, partition: usize) -> Result<SendableRecordBatchStream> {
        let seen = {
            let mut fetched = locked(&self.fetched);
            let Some(fetched) = fetched.get_mut(partition) else {
                return exec_err!("the result has no partition {partition}");
            };
            std::mem::replace(fetched, true)
        };
        let plan = match &self.again {
            Some((state, logical)) if seen || self.spent.load(Ordering::Acquire) => {
                let (state, interrupt) = renewed(state.clone(), self.interruptible);
                locked(&self.interrupts).push(interrupt);
                physical(&state, logical).await?.0
            }
            _ => Arc::clone(&self.plan),
        };
        if partition >= plan.output_partitioning().partition_count() {
            return exec_err!("the tables of this query have changed: ask for it anew");
        }
        plan.execute(partition, self.state.task_ctx())
    }

    /// Stops the functions of all that is computed of it.
    pub(crate) fn interrupt(&self) {
        self.spent.store(true, Ordering::Release);
        for interrupt in locked(&self.interrupts).drain(..) {
            interrupt();
        }
    }

    /// A client takes no more of a partition: if no other partition is being computed, its functions stop.
    pub(crate) fn leave(&self) {
        if locked(&self.running).strong_count() <= 1 {
            self.interrupt();
        }
    }

    pub(crate) fn touch(&self) {
        *locked(&self.used) = Instant::now();
    }

    fn is_over(&self) -> bool {
        self.cancelled.is_cancelled() || locked(&self.fetched).iter().all(|&fetched| fetched)
    }

    /// Whether any part of it is being computed or delivered.
    pub(crate) fn runs(&self) -> bool {
        locked(&self.running).strong_count() > 0
    }

    /// The permission to run, which all partitions of a query share, as they share the wait for it and its refusal.
    pub(crate) async fn admit(&self, admission: &Admission) -> Result<Arc<Permit>, Status> {
        let entering = {
            let mut entering = locked(&self.entering);
            if let Some(permit) = locked(&self.running).upgrade() {
                return Ok(permit);
            }
            entering.as_ref().and_then(WeakShared::upgrade).unwrap_or_else(|| {
                let (admission, running) = (admission.clone(), Arc::clone(&self.running));
                let enter = async move {
                    let permit = Arc::new(admission.enter().await?);
                    *locked(&running) = Arc::downgrade(&permit);
                    Ok(permit)
                };
                let shared = enter.boxed().shared();
                *entering = shared.downgrade();
                shared
            })
        };
        tokio::select! {
            permit = entering => permit,
            () = self.cancelled.cancelled() => Err(cancelled()),
        }
    }
}

/// What a cancelled query ends with.
pub(crate) fn cancelled() -> Status {
    Status::cancelled("the query was cancelled")
}

/// What computes a plan, and the bytes that it takes besides: the expressions of the optimized plan once more.
async fn physical(state: &SessionState, logical: &LogicalPlan) -> Result<(Arc<dyn ExecutionPlan>, usize)> {
    let optimized = state.optimize(logical)?;
    let bytes = bounds::bytes(&optimized)?.saturating_mul(2);
    let plan = state.query_planner().create_physical_plan(&optimized, state).await?;
    Ok((if feeds_itself(&plan) { gathered(plan) } else { plan }, bytes))
}

/// Whether partitions can only be read together. A client that read them one after the other would make the server hold
/// all the others.
fn feeds_itself(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.output_partitioning().partition_count() > 1
        && (plan.is::<RepartitionExec>() || plan.children().into_iter().any(feeds_itself))
}

fn gathered(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    match plan.output_ordering().cloned() {
        Some(ordering) => Arc::new(SortPreservingMergeExec::new(ordering, plan)),
        None => Arc::new(CoalescePartitionsExec::new(plan)),
    }
}

/// The results of a session.
pub(crate) struct Queries {
    limit: usize,
    open: Mutex<HashMap<Uuid, Arc<Query>>>,
}

impl Queries {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, open: Mutex::default() }
    }

    /// Keeps a result until it is fetched. Where there are too many, those that were fetched go first.
    pub(crate) fn insert(&self, query: Query) -> Result<Arc<Query>, Status> {
        let mut open = locked(&self.open);
        if open.len() >= self.limit {
            drop(open);
            self.forget_fetched();
            open = locked(&self.open);
        }
        if open.len() >= self.limit {
            return Err(Status::resource_exhausted(format!(
                "statements: this session has {} results that were not fetched; fetch or cancel them",
                open.len()
            )));
        }
        let query = Arc::new(query);
        open.insert(query.id, Arc::clone(&query));
        Ok(query)
    }

    pub(crate) fn get(&self, id: &Uuid) -> Option<Arc<Query>> {
        locked(&self.open).get(id).cloned()
    }

    /// Stops a query and forgets its result.
    pub(crate) fn cancel(&self, id: &Uuid) -> bool {
        let query = locked(&self.open).remove(id);
        if let Some(query) = &query {
            query.cancelled.cancel();
        }
        query.is_some()
    }

    pub(crate) fn cancel_all(&self) {
        for (_, query) in locked(&self.open).drain() {
            query.cancelled.cancel();
        }
    }

    pub(crate) fn sweep(&self, lifetime: Duration) {
        locked(&self.open).retain(|_, query| query.runs() || locked(&query.used).elapsed() < lifetime);
    }

    /// Forgets results that were fetched, and what they hold of tables: after a change they would not be the same again.
    pub(crate) fn forget_fetched(&self) {
        locked(&self.open).retain(|_, query| !query.is_over() || query.runs());
    }

    pub(crate) fn any_runs(&self) -> bool {
        locked(&self.open).values().any(|query| query.runs())
    }

    pub(crate) fn len(&self) -> usize {
        locked(&self.open).len()
    }
}

/// Who may run, and who waits.
#[derive(Clone)]
pub(crate) struct Admission {
    limits: Limits,
    metrics: Arc<Metrics>,
    running: Arc<Semaphore>,
    planning: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// The place of a running query, given back when it is dropped.
pub(crate) struct Permit {
    since: Instant,
    _counted: Counted,
    _place: OwnedSemaphorePermit,
}

impl Permit {
    /// The moment from which it is too late.
    pub(crate) fn deadline(&self, limits: &Limits) -> Instant {
        self.since + limits.query_timeout
    }
}

/// One of those that a gauge counts, until it is dropped.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Admission {
    pub(crate) fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        let places = |number| Arc::new(Semaphore::new(number));
        let (running, planning) = (places(limits.concurrent_queries), places(limits.concurrent_queries));
        let waiting = places(limits.queued_queries);
        Self { limits, metrics, running, planning, waiting }
    }

    /// A place to run, at once or after waiting for one.
    pub(crate) async fn enter(&self) -> Result<Permit, Status> {
        let place = self.place(&self.running, "run").await?;
        Ok(Permit { since: Instant::now(), _counted: Counted::new(&self.metrics.queries_running), _place: place })
    }

    /// A place to plan. There are as many as to run, but they are others: results that clients are slow to take keep nobody from
    /// planning.
    pub(crate) async fn plan(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.place(&self.planning, "are planned").await
    }

    async fn place(&self, places: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Status> {
        match Arc::clone(places).try_acquire_owned() {
            Ok(place) => Ok(place),
            Err(_) => self.wait(Arc::clone(places), what).await,
        }
    }

    /// `what` the queries do that have the places.
    async fn wait(&self, places: Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Status> {
        let Limits { concurrent_queries, queued_queries, queue_timeout, .. } = self.limits;
        let Ok(_waiting) = self.waiting.try_acquire() else {
            return Err(Status::resource_exhausted(format!(
                "concurrent_queries: {concurrent_queries} queries {what} and {queued_queries} wait; try again later"
            )));
        };
        // Who leaves while waiting no longer waits.
        let _counted = Counted::new(&self.metrics.queries_queued);
        match tokio::time::timeout(queue_timeout, places.acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(Status::unavailable("the server stops")),
            Err(_) => Err(Status::resource_exhausted(format!(
                "queue_timeout: after {} s {concurrent_queries} queries (concurrent_queries) still {what}; try again later",
                queue_timeout.as_secs_f64()
            ))),
        }
    }
}

/// What is said of work that panicked, or was stopped.
pub(crate) fn failed(error: JoinError) -> Status {
    match bounds::QueryFault::of_task(error) {
        Some(fault) => {
            tracing::error!(%fault, "a query failed");
            Status::internal(fault.to_string())
        }
        None => cancelled(),
    }
}
