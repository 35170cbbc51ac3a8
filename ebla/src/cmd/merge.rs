//! `ebla tablet merge`: one tablet of two.

use super::connect;
use crate::cli::{Global, MergeTablets};
use crate::exit::Failure;
use crate::output::Output;
use ebla_client::v1;
use serde_json::json;

/// Merges two neighbours, and waits until one tablet has taken their place.
pub async fn run(global: &Global, args: MergeTablets, out: &mut Output) -> anyhow::Result<()> {
    let admin = connect(global, args.wait).await?.admin();
    let merge = admin.merge_tablets(args.id, args.other).await?;
    let (id, tablet) = (merge.job_id, merge.child_tablet_id);
    let object = json!({ "job": id, "tablet": tablet });
    let both = format!("tablets {} and {}", args.id, args.other);
    if args.no_wait {
        return out.one(&object, || {
            format!("job {id} merges {both} into tablet {tablet}: follow `ebla job show {id}`")
        });
    }
    let job = admin.wait_for_job(id, args.wait.timeout).await?;
    match job.state() {
        v1::JobState::Done => out.one(&object, || format!("{both} are tablet {tablet} now")),
        v1::JobState::Cancelled => Err(Failure::job_not_done(id, "cancelled", &job.error).into()),
        v1::JobState::Failed | v1::JobState::Running | v1::JobState::Unspecified => {
            Err(Failure::job_not_done(id, "failed", &job.error).into())
        }
    }
}
