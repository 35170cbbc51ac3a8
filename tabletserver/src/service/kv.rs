//! `KvService`: wire in, wire out; everything between is [`crate::node`].

use super::{pipe, scan};
use crate::node::Node;
use ebla_proto::v1::kv_service_server::KvService;
use ebla_proto::v1::{
    GetOutcomeRequest, GetOutcomeResponse, GetRequest, GetResponse, PipeRequest, PipeResponse, ScanRequest,
    ScanResponse, WriteRequest, WriteResponse,
};
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The service.
pub struct Kv {
    /// The server behind it.
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl KvService for Kv {
    type ScanStream = ReceiverStream<Result<ScanResponse, Status>>;
    type PipeStream = ReceiverStream<Result<PipeResponse, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Ok(Response::new(self.node.get(request.get_ref()).await?))
    }

    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        let write = match self.node.prepare_write(request.into_inner()) {
            Ok(write) => write,
            Err(unplaced) => self.node.place_later(unplaced).await?,
        };
        Ok(Response::new(self.node.write(write).await?))
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let pages = scan::scan(Arc::clone(&self.node), request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(pages)))
    }

    async fn pipe(
        &self,
        request: Request<Streaming<PipeRequest>>,
    ) -> Result<Response<Self::PipeStream>, Status> {
        let answers = pipe::serve(Arc::clone(&self.node), request.into_inner());
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn get_outcome(
        &self,
        request: Request<GetOutcomeRequest>,
    ) -> Result<Response<GetOutcomeResponse>, Status> {
        Ok(Response::new(self.node.outcome(request.get_ref()).await?))
    }
}
