//! PollFlightInfo: a query is computed without anybody fetching it, its progress told, its rows kept on disk until they are
//! asked for.

use std::sync::Arc;

use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::sql::Command;
use arrow_flight::{FlightDescriptor, PollInfo};
use datafusion::common::stats::Precision;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::statistics::StatisticsArgs;
use tonic::Status;

use crate::prepared::no_transaction;
use crate::queries::{Query, cancelled};
use crate::results::{asked, handle};
use crate::service::{Asked, Call, State, packed};
use crate::spool::Spool;
use crate::stream::too_late;

impl State {
    /// Begins a query, or tells how far one that was begun has come.
    pub(crate) async fn poll(self: &Arc<Self>, call: &Call, descriptor: FlightDescriptor) -> Result<PollInfo, Status> {
        let sql = match asked(&descriptor)? {
            Asked::Sql(sql) => sql,
            Asked::Command(Command::CommandStatementQuery(command)) => {
                no_transaction(command.transaction_id.as_ref())?;
                command.query
            }
            Asked::Command(Command::CommandPreparedStatementQuery(command)) => {
                let query = self.query_prepared(call, &command.prepared_statement_handle).await?;
                return self.begin(call, query, descriptor).await;
            }
            Asked::Command(Command::TicketStatementQuery(ticket)) => {
                let (query, _) = self.find(call, &ticket)?;
                return self.progress(&query, descriptor).await;
            }
            Asked::Command(_) => {
                let info = self.flight_info(call, descriptor).await?;
                return Ok(PollInfo { info: Some(info), progress: Some(1.0), ..Default::default() });
            }
        };
        let plan = self.plan(call, &sql).await?;
        let query = self.query(call, plan, &sql).await?;
        self.begin(call, query, descriptor).await
    }

    async fn begin(
        self: &Arc<Self>,
        call: &Call,
        query: Arc<Query>,
        descriptor: FlightDescriptor,
    ) -> Result<PollInfo, Status> {
        let disk = Arc::clone(&call.session.ctx.runtime_env().disk_manager);
        let spool = Spool::new(Arc::clone(&query.schema), &disk).map_err(|error| self.status(&error, &query.sql))?;
        let spool = Arc::new(spool);
        let work = Arc::clone(self).compute(Arc::clone(&query), Arc::clone(&spool));
        if query.spool.set(spool).is_ok() {
            // It waits on a thread of the network, so that it can end a computation that keeps all others busy.
            tokio::spawn(work);
        }
        self.progress(&query, descriptor).await
    }

    /// Computes a query to its end, so that its result can be fetched later.
    async fn compute(self: Arc<Self>, query: Arc<Query>, spool: Arc<Spool>) {
        let work = async {
            let place = query.admit(&self.admission).await?;
            let deadline = place.deadline(&self.limits);
            let filled = {
                let (query, spool) = (Arc::clone(&query), Arc::clone(&spool));
                self.on_threads(async move {
                    let rows = query.computed().await?;
                    spool.fill(rows).await
                })
            };
            tokio::select! {
                biased;
                () = query.cancelled.cancelled() => Err(cancelled()),
                () = tokio::time::sleep_until(deadline.into()) => Err(too_late()),
                filled = filled => filled?.map_err(|error| self.status(&error, &query.sql)),
            }
        };
        let result: Result<(), Status> = work.await;
        if result.is_err() {
            query.interrupt();
        }
        query.touch();
        spool.end(result.err());
    }

    async fn progress(&self, query: &Query, descriptor: FlightDescriptor) -> Result<PollInfo, Status> {
        query.touch();
        let ended = match query.spool.get() {
            Some(spool) => spool.wait().await?,
            None => true,
        };
        let mut info = self.info(query, descriptor)?;
        if ended {
            return Ok(PollInfo {
                info: Some(info),
                flight_descriptor: None,
                progress: Some(1.0),
                expiration_time: Some(self.expiration()),
            });
        }
        let again = FlightDescriptor {
            r#type: DescriptorType::Cmd.into(),
            cmd: packed(&handle(&query.id, 0)),
            path: Vec::new(),
        };
        info.endpoint.clear();
        info.flight_descriptor = Some(again.clone());
        Ok(PollInfo {
            info: Some(info),
            flight_descriptor: Some(again),
            progress: read(query.physical()),
            expiration_time: Some(self.expiration()),
        })
    }
}

/// Which part of the rows that a plan reads it has read; `None` if it is not known how many there are.
fn read(plan: &Arc<dyn ExecutionPlan>) -> Option<f64> {
    let (mut done, mut total) = (0, 0);
    count(plan, &mut done, &mut total)?;
    (total > 0).then(|| (done as f64 / total as f64).min(1.0))
}

fn count(plan: &Arc<dyn ExecutionPlan>, done: &mut usize, total: &mut usize) -> Option<()> {
    let children = plan.children();
    if children.is_empty() {
        let statistics = plan.statistics_from_inputs(&[], &StatisticsArgs::new()).ok()?;
        let (Precision::Exact(rows) | Precision::Inexact(rows)) = statistics.num_rows else { return None };
        *total += rows;
        *done += plan.metrics().and_then(|metrics| metrics.output_rows()).unwrap_or(0);
    }
    children.into_iter().try_for_each(|child| count(child, done, total))
}
