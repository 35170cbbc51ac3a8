//! `ReplicationService`: the end of connections that other servers open.

use super::link::{Links, not_a_frame, run_link};
use crate::limits;
use ebla_proto::v1;
use ebla_proto::v1::replication_service_server::ReplicationService;
use ebla_proto::v1::{replicate_request as request, replicate_response as response};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

/// The service.
pub struct Replication {
    /// What connections work with.
    pub links: Links,
}

type Responses = Pin<Box<dyn Stream<Item = Result<v1::ReplicateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ReplicationService for Replication {
    type ReplicateStream = Responses;

    async fn replicate(
        &self,
        request: Request<Streaming<v1::ReplicateRequest>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|request| request.message);
        let Some(request::Message::Greeting(greeting)) = first else {
            return Err(Status::invalid_argument("a connection begins with a greeting"));
        };
        self.begin(&greeting, inbound).map(Response::new)
    }
}

impl Replication {
    /// Checks and answers a greeting; from then on the connection lives by itself.
    fn begin(
        &self,
        greeting: &v1::Greeting,
        inbound: Streaming<v1::ReplicateRequest>,
    ) -> Result<Responses, Status> {
        let peers = &self.links.node.peers;
        let run = peers.check_greeting(greeting)?;
        let own = peers.identity().ok_or_else(|| Status::unavailable("not registered yet"))?;
        if run.server >= own.run.server {
            return Err(Status::failed_precondition("the server with the lower id connects"));
        }
        let peer = peers.wanted().get(&run.server).map(Arc::clone);
        let peer = peer.ok_or_else(|| Status::unavailable("no tablet is shared any more"))?;
        let (frames, out) = mpsc::channel(limits::FRAMES_WAITING);
        let wrap = |message| Ok(v1::ReplicateResponse { message: Some(message) });
        let greeting = wrap(response::Message::Greeting(own.greeting(run.server)));
        let links = self.links.clone();
        tokio::spawn(async move {
            let inbound = inbound.map(|request| match request?.message {
                Some(request::Message::Frame(frame)) => Ok(frame),
                Some(request::Message::Greeting(_)) | None => Err(not_a_frame()),
            });
            if let Err(status) = run_link(&links, &peer, run, frames, inbound).await {
                debug!(server = %run.server, %status, "a connection broke");
            }
        });
        let out = ReceiverStream::new(out).map(move |frame| wrap(response::Message::Frame(frame)));
        Ok(Box::pin(tokio_stream::once(greeting).chain(out)))
    }
}
