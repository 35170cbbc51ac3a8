//! Between masters: Raft messages, and the question whether one may take part.

use super::{Shared, stopped};
use crate::raft::node::Input;
use crate::raft::transport::decode;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::meta_raft_service_server::MetaRaftService;
use ebla_proto::v1::{HelloRequest, HelloResponse, SendRequest, SendResponse};
use tonic::{Request, Response, Status, Streaming};

/// The service.
pub(crate) struct MetaRaft {
    pub shared: Shared,
    /// Random number of this master's data directory.
    pub directory_id: u64,
    /// Whether this master had taken part in the group before it was started.
    pub joined: bool,
}

impl MetaRaft {
    fn take(&self, request: &SendRequest) -> Result<(), ApiError> {
        let ours = self.shared.raft.view().state().cluster_id().map(|id| id.to_string());
        if let Some(ours) = ours.filter(|ours| !request.cluster_id.is_empty() && *ours != request.cluster_id)
        {
            let hint = format!(
                "a master of cluster {} speaks to one of {ours}: check its --peers",
                request.cluster_id
            );
            return Err(ApiError::new(Reason::WrongCluster, hint));
        }
        let message = decode(&request.message)
            .ok_or_else(|| ApiError::new(Reason::BadRequest, "not a message of the metadata group"))?;
        if message.to != self.shared.id || !self.shared.peers.contains_key(&message.from) {
            let hint = format!(
                "a message from master {} to {} reached master {}: check --peers on both",
                message.from, message.to, self.shared.id
            );
            return Err(ApiError::new(Reason::BadRequest, hint));
        }
        // A full inbox drops: Raft sends again.
        let _ = self.shared.raft.send(Input::Message(Box::new(message)));
        Ok(())
    }

    /// What the asker is told. While this master does not know whether the cluster is formed
    /// it says nothing: a wrong "not formed" would let a wiped master vote twice.
    fn greet(&self, request: &HelloRequest) -> Result<HelloResponse, ApiError> {
        let state = self.shared.raft.view().state();
        let formed = state.cluster_id();
        if formed.is_none() && (self.joined || self.shared.role().term > 0) {
            let hint = "this master does not know yet whether the cluster is formed: ask again";
            return Err(ApiError::new(Reason::Unavailable, hint));
        }
        let known = state.masters().get(&request.id).copied();
        let refusal = match formed {
            Some(cluster) if known != Some(request.directory_id) => format!(
                "master {} of cluster {cluster} had another data directory: its id is never reused with an empty one; bring the directory back",
                request.id
            ),
            Some(_) | None => String::new(),
        };
        Ok(HelloResponse {
            id: self.shared.id,
            cluster_id: formed.map(|id| id.to_string()).unwrap_or_default(),
            directory_id: self.directory_id,
            refusal,
        })
    }
}

#[tonic::async_trait]
impl MetaRaftService for MetaRaft {
    async fn send(&self, request: Request<Streaming<SendRequest>>) -> Result<Response<SendResponse>, Status> {
        let mut requests = request.into_inner();
        let mut stop = std::pin::pin!(stopped(self.shared.stopping.clone()));
        loop {
            let next = tokio::select! {
                () = &mut stop => return Ok(Response::new(SendResponse {})),
                next = requests.message() => next?,
            };
            match next {
                Some(request) => self.take(&request)?,
                None => return Ok(Response::new(SendResponse {})),
            }
        }
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        Ok(Response::new(self.greet(request.get_ref())?))
    }
}
