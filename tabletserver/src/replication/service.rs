//! `ReplicationService`: the end of connections that other servers open.

use super::link::{Links, run_link};
use crate::limits;
use crate::promises::answering::Answering;
use ebla_proto::v1;
use ebla_proto::v1::replication_service_server::ReplicationService;
use ebla_proto::v1::{replicate_request as request, replicate_response as response};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

/// The service.
pub struct Replication {
    /// What connections work with.
    pub links: Links,
    /// What promises are made with.
    pub answering: Answering,
}

type Frames = mpsc::Sender<Result<v1::ReplicateResponse, Status>>;

#[tonic::async_trait]
impl ReplicationService for Replication {
    type ReplicateStream = ReceiverStream<Result<v1::ReplicateResponse, Status>>;
    type PromiseStream = ReceiverStream<Result<v1::PromiseResponse, Status>>;

    async fn replicate(
        &self,
        request: Request<Streaming<v1::ReplicateRequest>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|request| request.message);
        let Some(request::Message::Greeting(greeting)) = first else {
            return Err(Status::invalid_argument("a connection begins with a greeting"));
        };
        let (frames, out) = mpsc::channel(limits::FRAMES_WAITING);
        self.begin(&greeting, inbound, frames).await?;
        Ok(Response::new(ReceiverStream::new(out)))
    }

    async fn promise(
        &self,
        request: Request<Streaming<v1::PromiseRequest>>,
    ) -> Result<Response<Self::PromiseStream>, Status> {
        let answers = self.answering.clone().serve(request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

impl Replication {
    /// Checks and answers a greeting; from then on the connection lives by itself.
    async fn begin(
        &self,
        greeting: &v1::Greeting,
        mut inbound: Streaming<v1::ReplicateRequest>,
        frames: Frames,
    ) -> Result<(), Status> {
        let peers = &self.links.node.peers;
        let run = peers.check_greeting(greeting)?;
        let own = peers.identity().ok_or_else(|| Status::unavailable("not registered yet"))?;
        if run.server >= own.run.server {
            return Err(Status::failed_precondition("the server with the lower id connects"));
        }
        let peer = peers.wanted().get(&run.server).map(Arc::clone);
        let peer = peer.ok_or_else(|| Status::unavailable("no tablet is shared any more"))?;
        let greeting = response::Message::Greeting(own.greeting(run.server));
        let greeted = frames.send(Ok(v1::ReplicateResponse { message: Some(greeting) })).await;
        greeted.map_err(|_| Status::unavailable("the stream is closed"))?;
        let links = self.links.clone();
        tokio::spawn(async move {
            let wrap = |frame| Ok(v1::ReplicateResponse { message: Some(response::Message::Frame(frame)) });
            let next = async || match inbound.message().await?.and_then(|request| request.message) {
                Some(request::Message::Frame(frame)) => Ok(Some(frame)),
                Some(request::Message::Greeting(_)) => Err(Status::invalid_argument("greeted twice")),
                None => Ok(None),
            };
            let send = async |frame| frames.send(wrap(frame)).await.is_ok();
            if let Err(status) = run_link(&links, &peer, run, send, next).await {
                debug!(server = %run.server, %status, "a connection broke");
                // Nobody may be left to hear it.
                let _ = frames.send(Err(status)).await;
            }
        });
        Ok(())
    }
}
