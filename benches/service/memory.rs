//! A Flight service with nothing but one stream of batches, all held in memory.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaResult, Ticket,
};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::process::{LISTENING, connect};
use crate::{Result, WEIGHTS, decoded};

/// The argument that makes a process this service.
pub(crate) const FLAG: &str = "--memory-stream";

/// Fetches the weights of a server, then serves them and prints where.
pub(crate) async fn serve(address: &str) -> Result<()> {
    let answer = connect(address).await?.do_get(Ticket::new(WEIGHTS)).await?.into_inner();
    let batches: Vec<_> = decoded(answer.map_err(FlightError::from)).try_collect().await?;
    let schema = batches.first().ok_or("the server has no weights")?.schema();
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?.with_nodelay(Some(true));
    println!("{LISTENING}{}", incoming.local_addr()?);
    let service = FlightServiceServer::new(Batches { schema, batches }).max_encoding_message_size(usize::MAX);
    let mut server = tonic::transport::Server::builder().tcp_nodelay(true);
    Ok(server.add_service(service).serve_with_incoming(incoming).await?)
}

struct Batches {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

fn absent<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("there is DoGet alone"))
}

#[tonic::async_trait]
impl FlightService for Batches {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn do_get(&self, _: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let messages = FlightDataEncoderBuilder::new()
            .with_schema(Arc::clone(&self.schema))
            // Batches are as the other server cut them.
            .with_max_flight_data_size(usize::MAX)
            .build(stream::iter(self.batches.clone()).map(Ok));
        Ok(Response::new(messages.map_err(Status::from).boxed()))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        absent()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        absent()
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        absent()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        absent()
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        absent()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        absent()
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        absent()
    }

    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        absent()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        absent()
    }
}
