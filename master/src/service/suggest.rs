//! Asks a tablet server where a tablet that it leads could be split.

use crate::limits::SUGGEST_SPLIT_TIMEOUT;
use crate::raft::transport::endpoint;
use ebla_kernel::ids::TabletId;
use ebla_kernel::plan::Measure;
use ebla_proto::v1::split_service_client::SplitServiceClient;
use ebla_proto::v1::{SuggestSplitRequest, SuggestSplitResponse};
use tokio::time::timeout;

/// Keys that cut a tablet into parts of about the same size or load, or why there are none.
pub(crate) async fn suggest_split(
    address: &str,
    tablet: TabletId,
    parts: u32,
    by: Measure,
) -> Result<SuggestSplitResponse, String> {
    let ask = async {
        let endpoint = endpoint(address).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        let by_load = by == Measure::Load;
        let request = SuggestSplitRequest { tablet_id: tablet.0, parts, by_load };
        let answer = SplitServiceClient::new(channel).suggest_split(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    };
    let late = |_| format!("the server at {address} did not say where within {SUGGEST_SPLIT_TIMEOUT:?}");
    timeout(SUGGEST_SPLIT_TIMEOUT, ask).await.map_err(late)?
}
