//! `SplitService`: where a tablet could be split.

use crate::node::{Node, store_error};
use crate::store::split_points::split_points;
use ebla_kernel::ids::TabletId;
use ebla_kernel::limits::SPLIT_CHILDREN_MAX;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::split_service_server::SplitService;
use ebla_proto::v1::{SuggestSplitRequest, SuggestSplitResponse};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service.
pub struct Split {
    /// The server behind it.
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl SplitService for Split {
    async fn suggest_split(
        &self,
        request: Request<SuggestSplitRequest>,
    ) -> Result<Response<SuggestSplitResponse>, Status> {
        let SuggestSplitRequest { tablet_id, parts } = request.into_inner();
        let parts = usize::try_from(parts).unwrap_or(usize::MAX);
        if !(2..=SPLIT_CHILDREN_MAX).contains(&parts) {
            let hint = format!("one split makes 2 to {SPLIT_CHILDREN_MAX} tablets: give as many parts");
            return Err(ApiError::new(Reason::BadRequest, hint).into());
        }
        let tablet = self.node.directory.load().tablet(TabletId(tablet_id)).map(Arc::clone);
        let Some(tablet) = tablet.filter(|tablet| tablet.serving().is_some()) else {
            let hint = format!("tablet {tablet_id} is not served here any more: fetch the route again");
            return Err(ApiError::new(Reason::NotLeader, hint).with("tablet", tablet_id).into());
        };
        let store = Arc::clone(&self.node.reader.store);
        let find = move || split_points(&*store, tablet.table, &tablet.range, parts);
        let found = tokio::task::spawn_blocking(find).await;
        let found = found.map_err(|error| {
            ApiError::new(Reason::Internal, format!("the search for split points failed: {error}"))
        })?;
        let split_keys = found.map_err(store_error)?;
        Ok(Response::new(SuggestSplitResponse { split_keys }))
    }
}
