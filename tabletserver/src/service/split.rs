//! `SplitService`: where a tablet could be split.

use crate::node::{Node, store_error};
use crate::store::split_points::split_points;
use ebla_kernel::ids::TabletId;
use ebla_kernel::limits::SPLIT_CHILDREN_MAX;
use ebla_kernel::plan::{LoadCut, cut_load};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::split_service_server::SplitService;
use ebla_proto::v1::{SplitFinding, SuggestSplitRequest, SuggestSplitResponse};
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
        let SuggestSplitRequest { tablet_id, parts, by_load } = request.into_inner();
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
        if by_load {
            let sample = tablet.load.sampler().map(|sampler| sampler.sample()).unwrap_or_default();
            return Ok(Response::new(load_cut_to_wire(cut_load(sample, &tablet.range, parts))));
        }
        let store = Arc::clone(&self.node.reader.store);
        let find = move || split_points(&*store, tablet.table, &tablet.range, parts);
        let found = tokio::task::spawn_blocking(find).await;
        let found = found.map_err(|error| {
            ApiError::new(Reason::Internal, format!("the search for split points failed: {error}"))
        })?;
        let split_keys = found.map_err(store_error)?;
        let finding = if split_keys.is_empty() { SplitFinding::TooFewRows } else { SplitFinding::Cut };
        Ok(Response::new(SuggestSplitResponse { split_keys, ..found_nothing(finding) }))
    }
}

fn found_nothing(finding: SplitFinding) -> SuggestSplitResponse {
    SuggestSplitResponse { finding: finding.into(), ..SuggestSplitResponse::default() }
}

fn load_cut_to_wire(cut: LoadCut) -> SuggestSplitResponse {
    match cut {
        LoadCut::At(split_keys) => SuggestSplitResponse { split_keys, ..found_nothing(SplitFinding::Cut) },
        LoadCut::HotKey { key, percent } => SuggestSplitResponse {
            hot_key: key,
            hot_key_percent: percent,
            ..found_nothing(SplitFinding::HotKey)
        },
        LoadCut::Wandering => found_nothing(SplitFinding::Wandering),
        LoadCut::TooFew => found_nothing(SplitFinding::TooFewSamples),
    }
}
