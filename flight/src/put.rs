//! DoPut: updates, values bound to prepared statements, bulk ingest, and tables of plain Flight clients.

use std::sync::Arc;

use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::sql::{Command, CommandStatementIngest, DoPutPreparedStatementResult, DoPutUpdateResult};
use arrow_flight::{FlightData, PutResult};
use datafusion::common::TableReference;
use futures::Stream;
use prost::Message;
use tonic::Status;

use crate::ingest::{self, Target};
use crate::input::{Input, one_ahead};
use crate::prepared::no_transaction;
use crate::queries::cancelled;
use crate::results::table;
use crate::service::{Asked, Call, State};
use crate::stream::too_late;
use crate::tables::Mode;

impl State {
    pub(crate) async fn put(
        &self,
        call: &Call,
        messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
    ) -> Result<PutResult, Status> {
        let opened = tokio::time::timeout(self.limits.query_timeout, Input::open(one_ahead(messages)));
        let input = opened.await.map_err(|_| too_late())??;
        if input.descriptor.r#type() == DescriptorType::Path {
            let target = Target::replacing(table(&input.descriptor.path)?);
            return self.store(call, target, input).await.map(counted);
        }
        match Asked::parse(&input.descriptor.cmd)? {
            Asked::Command(Command::CommandStatementUpdate(command)) => {
                no_transaction(command.transaction_id.as_ref())?;
                let plan = self.plan(call, &command.query).await?;
                self.update(call, plan, &command.query).await.map(counted)
            }
            Asked::Command(Command::CommandStatementIngest(command)) => {
                no_transaction(command.transaction_id.as_ref())?;
                let target = ingest_target(command)?;
                self.store(call, target, input).await.map(counted)
            }
            Asked::Command(Command::CommandPreparedStatementQuery(command)) => {
                let handle = command.prepared_statement_handle;
                self.bind(call, &handle, input.values().await?)?;
                let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) };
                Ok(PutResult { app_metadata: result.encode_to_vec().into() })
            }
            Asked::Command(Command::CommandPreparedStatementUpdate(command)) => {
                let values = input.values().await?;
                self.update_prepared(call, &command.prepared_statement_handle, values).await.map(counted)
            }
            Asked::Command(other) => {
                Err(Status::unimplemented(format!("'{}' cannot be put to this server", other.type_url())))
            }
            Asked::Sql(_) => Err(Status::invalid_argument(
                "DoPut takes the path of a table, [\"name\"], or a command of Flight SQL, not SQL as text",
            )),
        }
    }

    /// Stores a client's rows as a table.
    async fn store(&self, call: &Call, target: Target, input: Input) -> Result<i64, Status> {
        self.permit_write(call)?;
        let _place = self.admission.enter().await?;
        let name = target.table.clone();
        let session = Arc::clone(&call.session);
        let work = self.on_threads(async move {
            let rows = input.rows().await?;
            Ok::<_, Status>(ingest::ingest(&session.ctx, &session.tables, target, rows).await)
        });
        let stored = tokio::select! {
            stored = work => stored.flatten().and_then(|stored| stored.map_err(|error| self.status(&error, ""))),
            () = tokio::time::sleep(self.limits.query_timeout) => Err(too_late()),
            () = call.session.cancelled.cancelled() => Err(cancelled()),
        };
        call.session.queries.forget_fetched();
        tracing::info!(user = %call.caller.user, table = name, rows = stored.as_ref().ok(), "ingest");
        stored
    }
}

fn counted(record_count: i64) -> PutResult {
    PutResult { app_metadata: DoPutUpdateResult { record_count }.encode_to_vec().into() }
}

fn ingest_target(command: CommandStatementIngest) -> Result<Target, Status> {
    let mode = Mode::of(command.table_definition_options.as_ref())
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(Target {
        catalog: command.catalog,
        schema: command.schema,
        table: command.table,
        temporary: command.temporary,
        mode,
    })
}

impl Target {
    /// The table of a plain Flight client: what was there is replaced.
    fn replacing(table: TableReference) -> Self {
        Self {
            catalog: table.catalog().map(str::to_string),
            schema: table.schema().map(str::to_string),
            table: table.table().to_string(),
            temporary: false,
            mode: Mode::Replace,
        }
    }
}
