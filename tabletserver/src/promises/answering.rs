//! The side of the followers: promises to servers that ask.
//!
//! Nothing is promised while the disk hangs, and nothing before the length of a promise is on
//! disk (m21).

use crate::disk::SyncWatch;
use crate::limits;
use crate::node::Node;
use crate::replicas::Replicas;
use ebla_kernel::ids::{Epoch, ServerRun, TabletId};
use ebla_kernel::limits::LEASE_MS;
use ebla_proto::v1;
use ebla_proto::v1::promise_request::Message;
use ebla_proto::v1::promise_service_server::PromiseService;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What answers are made with.
#[derive(Clone)]
pub struct Answering {
    /// The server.
    pub node: Arc<Node>,
    /// Where the length of a promise is stored.
    pub replicas: Arc<Replicas>,
    /// Whether the disk answers.
    pub syncs: Arc<SyncWatch>,
}

#[tonic::async_trait]
impl PromiseService for Answering {
    type PromiseStream = ReceiverStream<Result<v1::PromiseResponse, Status>>;

    async fn promise(
        &self,
        request: Request<Streaming<v1::PromiseRequest>>,
    ) -> Result<Response<Self::PromiseStream>, Status> {
        let mut questions = request.into_inner();
        let first = questions.message().await?.and_then(|request| request.message);
        let Some(Message::Greeting(greeting)) = first else {
            return Err(Status::invalid_argument("a stream of promises begins with a greeting"));
        };
        let asker = self.node.peers.check_greeting(&greeting)?;
        self.store_length().await?;
        let (answers, out) = mpsc::channel(limits::FRAMES_WAITING);
        let answering = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = questions.message().await {
                let Some(Message::Asked(asked)) = request.message else { break };
                if let Some(answer) = answering.answer(asker, asked)
                    && answers.send(Ok(answer)).await.is_err()
                {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

impl Answering {
    fn answer(&self, asker: ServerRun, asked: v1::PromiseAsked) -> Option<v1::PromiseResponse> {
        let node = &self.node;
        if let Some(peer) = node.peers.wanted().get(&asker.server) {
            peer.heard(&node.leases);
        }
        if self.syncs.hangs() {
            return None;
        }
        let own = node.peers.identity()?.run.incarnation;
        let given_up: Vec<_> =
            asked.given_up.iter().map(|e| (TabletId(e.tablet_id), Epoch(e.epoch))).collect();
        let promised = node.leases.promise(asker, &given_up)?;
        let wire =
            |(tablet, epoch): (TabletId, Epoch)| v1::PromiseException { tablet_id: tablet.0, epoch: epoch.0 };
        Some(v1::PromiseResponse {
            number: asked.number,
            lease_ms: promised.lease_ms,
            exceptions: promised.exceptions.into_iter().map(wire).collect(),
            incarnation: own.0,
        })
    }

    /// Puts the length of a promise on disk before the first is given (m21).
    async fn store_length(&self) -> Result<(), Status> {
        if self.node.leases.is_length_stored.load(Ordering::Acquire) {
            return Ok(());
        }
        let replicas = Arc::clone(&self.replicas);
        let stored = tokio::task::spawn_blocking(move || replicas.promise_lease(LEASE_MS)).await;
        match stored {
            Ok(Ok(())) => {
                self.node.leases.is_length_stored.store(true, Ordering::Release);
                Ok(())
            }
            Ok(Err(error)) => Err(Status::internal(error.to_string())),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}
