//! What can be fetched: descriptors become results with endpoints, tickets become rows.

use std::sync::Arc;
use std::time::SystemTime;

use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::sql::{Command, TicketStatementQuery};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use bytes::Bytes;
use datafusion::common::TableReference;
use datafusion::common::stats::Precision;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use prost_types::Timestamp;
use tonic::Status;
use uuid::Uuid;

use crate::metadata;
use crate::prepared::no_transaction;
use crate::queries::Query;
use crate::service::{Asked, Call, State, packed, schema_bytes};
use crate::stream::{Early, Messages, Run, small};
use crate::wire::wire_schema;

impl State {
    /// The result a descriptor asks for, with an endpoint for each of its partitions.
    pub(crate) async fn flight_info(&self, call: &Call, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        match asked(&descriptor)? {
            Asked::Sql(sql) => self.statement_info(call, &sql, descriptor).await,
            Asked::Command(Command::CommandStatementQuery(command)) => {
                no_transaction(command.transaction_id.as_ref())?;
                self.statement_info(call, &command.query, descriptor).await
            }
            Asked::Command(Command::CommandPreparedStatementQuery(command)) => {
                let query = self.query_prepared(call, &command.prepared_statement_handle).await?;
                self.info(&query, descriptor)
            }
            Asked::Command(Command::TicketStatementQuery(ticket)) => {
                let (query, _) = self.find(call, &ticket)?;
                self.info(&query, descriptor)
            }
            Asked::Command(command) => {
                let Some(schema) = metadata::schema_of(&command) else { return Err(unknown(&command)) };
                let ticket = Ticket { ticket: descriptor.cmd.clone() };
                let endpoint = FlightEndpoint { ticket: Some(ticket), ..Default::default() };
                Ok(FlightInfo {
                    schema: schema_bytes(&schema)?,
                    flight_descriptor: Some(descriptor),
                    endpoint: vec![endpoint],
                    total_records: -1,
                    total_bytes: -1,
                    ..Default::default()
                })
            }
        }
    }

    /// The schema of what a descriptor asks for; nothing is executed.
    pub(crate) async fn schema(&self, call: &Call, descriptor: FlightDescriptor) -> Result<SchemaRef, Status> {
        let sql = match asked(&descriptor)? {
            Asked::Sql(sql) => sql,
            Asked::Command(Command::CommandStatementQuery(command)) => {
                no_transaction(command.transaction_id.as_ref())?;
                command.query
            }
            Asked::Command(Command::CommandPreparedStatementQuery(command)) => {
                return self.prepared_schema(call, &command.prepared_statement_handle);
            }
            Asked::Command(Command::TicketStatementQuery(ticket)) => {
                return Ok(Arc::clone(&self.find(call, &ticket)?.0.schema));
            }
            Asked::Command(command) => return metadata::schema_of(&command).ok_or_else(|| unknown(&command)),
        };
        let plan = self.plan(call, &sql).await?;
        if crate::statements::has_effect(&plan) {
            return Ok(Arc::new(Schema::empty()));
        }
        let state = call.session.ctx.state();
        let physical = self.planned(async move { state.create_physical_plan(&plan).await }).await?;
        Ok(wire_schema(&physical.map_err(|error| self.status(&error, &sql))?.schema()))
    }

    /// The rows of a ticket.
    pub(crate) async fn fetch(&self, call: &Call, ticket: &[u8]) -> Result<Messages, Status> {
        let (query, partition) = match Asked::parse(ticket)? {
            Asked::Command(Command::TicketStatementQuery(ticket)) => self.find(call, &ticket)?,
            Asked::Command(Command::CommandPreparedStatementQuery(command)) => {
                return self.all(call, self.query_prepared(call, &command.prepared_statement_handle).await?).await;
            }
            Asked::Command(Command::CommandStatementQuery(command)) => {
                no_transaction(command.transaction_id.as_ref())?;
                return self.all(call, self.statement(call, &command.query).await?).await;
            }
            Asked::Sql(sql) => return self.all(call, self.statement(call, &sql).await?).await,
            Asked::Command(command) => {
                let Some(schema) = metadata::schema_of(&command) else { return Err(unknown(&command)) };
                let (ctx, read_only) = (call.session.ctx.clone(), self.read_only);
                let batch = self.on_threads(async move { metadata::answer(&ctx, read_only, command).await }).await?;
                let batch = batch.map_err(|error| self.status(&error, ""))?;
                return Ok(small(schema, vec![batch], self.classify));
            }
        };
        self.run(call, query, Some(partition)).await
    }

    async fn statement(&self, call: &Call, sql: &str) -> Result<Arc<Query>, Status> {
        let plan = self.plan(call, sql).await?;
        self.query(call, plan, sql).await
    }

    async fn statement_info(&self, call: &Call, sql: &str, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let query = self.statement(call, sql).await?;
        self.info(&query, descriptor)
    }

    /// The announcement of a result.
    pub(crate) fn info(&self, query: &Query, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let expires = self.expiration();
        let endpoint = (0..query.endpoints())
            .map(|partition| FlightEndpoint {
                ticket: Some(Ticket { ticket: packed(&handle(&query.id, partition)) }),
                expiration_time: Some(expires),
                ..Default::default()
            })
            .collect();
        let statistics = StatisticsContext::new().compute(query.physical().as_ref(), &StatisticsArgs::new());
        let rows = statistics.ok().and_then(|statistics| match statistics.num_rows {
            Precision::Exact(rows) => i64::try_from(rows).ok(),
            _ => None,
        });
        Ok(FlightInfo {
            schema: schema_bytes(&query.schema)?,
            flight_descriptor: Some(descriptor),
            endpoint,
            total_records: rows.unwrap_or(-1),
            total_bytes: -1,
            ordered: query.ordered(),
            ..Default::default()
        })
    }

    /// When a result that is announced now is forgotten.
    pub(crate) fn expiration(&self) -> Timestamp {
        Timestamp::from(SystemTime::now() + self.limits.result_lifetime)
    }

    /// The query and partition of a handle that one of the user's sessions holds.
    pub(crate) fn find(&self, call: &Call, ticket: &TicketStatementQuery) -> Result<(Arc<Query>, usize), Status> {
        let (id, partition) = parse_handle(&ticket.statement_handle)?;
        let query =
            call.session.queries.get(&id).or_else(|| {
                self.sessions.of_user(&call.caller.user).iter().find_map(|session| session.queries.get(&id))
            });
        match query {
            Some(query) => Ok((query, partition)),
            None => Err(Status::not_found(
                "no such result: it was cancelled, expired (result_lifetime), or its session ended",
            )),
        }
    }

    /// All rows of a result, partition after partition.
    async fn all(&self, call: &Call, query: Arc<Query>) -> Result<Messages, Status> {
        self.run(call, query, None).await
    }

    async fn run(&self, call: &Call, query: Arc<Query>, partition: Option<usize>) -> Result<Messages, Status> {
        let permit = query.admit(&self.admission).await?;
        let run = Run {
            id: query.id.to_string(),
            user: Arc::clone(&call.caller.user),
            sql: query.sql.clone(),
            schema: Arc::clone(&query.schema),
            cancelled: query.cancelled.clone(),
            deadline: permit.deadline(&self.limits),
            _place: permit,
            metrics: Arc::clone(&self.metrics),
            classify: self.classify,
            stop: {
                let query = Arc::clone(&query);
                Box::new(move |why| match why {
                    Early::Left => query.leave(),
                    Early::Ended => query.interrupt(),
                })
            },
        };
        Ok(run.messages(&self.threads, async move { query.rows(partition).await }))
    }
}

/// What a descriptor asks for: a path is a table.
pub(crate) fn asked(descriptor: &FlightDescriptor) -> Result<Asked, Status> {
    match descriptor.r#type() {
        DescriptorType::Path => {
            Ok(Asked::Sql(format!("SELECT * FROM {}", table(&descriptor.path)?.to_quoted_string())))
        }
        DescriptorType::Cmd => Asked::parse(&descriptor.cmd),
        DescriptorType::Unknown => Err(Status::invalid_argument("the descriptor has neither a path nor a command")),
    }
}

/// The table of a path: `[table]`, `[schema, table]` or `[catalog, schema, table]`.
pub(crate) fn table(path: &[String]) -> Result<TableReference, Status> {
    match path {
        [table] => Ok(TableReference::bare(table.as_str())),
        [schema, table] => Ok(TableReference::partial(schema.as_str(), table.as_str())),
        [catalog, schema, table] => Ok(TableReference::full(catalog.as_str(), schema.as_str(), table.as_str())),
        _ => Err(Status::invalid_argument(format!(
            "a path has 1 to 3 parts, [schema, table] as a rule; this one has {}",
            path.len()
        ))),
    }
}

fn unknown(command: &Command) -> Status {
    let name = command.type_url().rsplit(['/', '.']).next().unwrap_or_default().to_string();
    match command {
        Command::CommandStatementSubstraitPlan(_) => {
            Status::unimplemented("Substrait plans are not understood: send SQL")
        }
        _ => Status::unimplemented(format!("the command '{name}' is not understood here")),
    }
}

/// The handle of a partition: the query's identifier, then the partition's number.
pub(crate) fn handle(id: &Uuid, partition: usize) -> TicketStatementQuery {
    let mut bytes = id.as_bytes().to_vec();
    bytes.extend_from_slice(&(partition as u32).to_le_bytes());
    TicketStatementQuery { statement_handle: Bytes::from(bytes) }
}

/// The query and the partition of a handle.
pub(crate) fn parse_handle(bytes: &[u8]) -> Result<(Uuid, usize), Status> {
    let parsed = bytes.split_first_chunk::<16>().and_then(|(id, partition)| {
        Some((Uuid::from_bytes(*id), u32::from_le_bytes(partition.try_into().ok()?) as usize))
    });
    parsed.ok_or_else(|| Status::invalid_argument("the ticket is not one that this server gave"))
}
