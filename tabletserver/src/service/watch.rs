//! `WatchService`: wire in, wire out; everything between is [`crate::watch`].

use crate::watch::{Watches, watch};
use ebla_proto::v1::watch_service_server::WatchService;
use ebla_proto::v1::{WatchRequest, WatchResponse};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service.
pub struct Watch {
    /// The watches of the server.
    pub watches: Arc<Watches>,
}

#[tonic::async_trait]
impl WatchService for Watch {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let responses = watch(&self.watches, request.get_ref()).await?;
        Ok(Response::new(responses.map(|response| response.map_err(Status::from)).boxed()))
    }
}
