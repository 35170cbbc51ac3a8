//! Merges that an operator wants.

use super::Shared;
use super::admin::no_tablet;
use super::split::start;
use ebla_kernel::ids::TabletId;
use ebla_proto::error::ApiError;
use ebla_proto::v1::{MergeTabletsRequest, MergeTabletsResponse};

/// Begins to merge two tablets.
pub(super) async fn merge_tablets(
    shared: &Shared,
    request: MergeTabletsRequest,
) -> Result<MergeTabletsResponse, ApiError> {
    shared.confirm_leading().await?;
    let (one, other) = (TabletId(request.tablet_id), TabletId(request.other_tablet_id));
    for tablet in [one, other] {
        let state = shared.raft.view().state();
        if state.tablet(tablet).is_none() {
            return Err(no_tablet(&state, tablet));
        }
    }
    let job = start(shared, shared.liveness.merge_of(one, other)).await?;
    let child_tablet_id = job.children().first().map_or(0, |child| child.0);
    Ok(MergeTabletsResponse { job_id: job.id.0, child_tablet_id })
}
