//! `WatchService`: wire in, wire out; everything between is [`crate::watch`].

use crate::watch::{Responses, Watches, watch};
use ebla_proto::v1::WatchRequest;
use ebla_proto::v1::watch_service_server::WatchService;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service.
pub struct Watch {
    /// The watches of the server.
    pub watches: Arc<Watches>,
}

#[tonic::async_trait]
impl WatchService for Watch {
    type WatchStream = Responses;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(watch(&self.watches, request.get_ref()).await?))
    }
}
