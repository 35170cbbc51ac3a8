//! `ebla job`: what is under way in the cluster, and what became of it.

use super::{connect, output};
use crate::cli::{Global, Job};
use crate::exit::Failure;
use ebla_client::v1;
use ebla_proto::convert;
use serde_json::{Value as Json, json};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const COLUMNS: [&str; 12] =
    ["id", "kind", "state", "tablet", "other", "children", "from", "to", "progress", "eta_s", "by", "error"];

/// Lists jobs, shows one, waits for it or ends it.
pub async fn run(global: &Global, command: Job) -> anyhow::Result<ExitCode> {
    let mut out = output(global);
    match command {
        Job::List(args) => {
            let jobs = connect(global, args.wait).await?.admin().list_jobs(args.running).await?;
            out.list(&COLUMNS, &jobs.iter().map(job_json).collect::<Vec<_>>())?;
        }
        Job::Show(args) => {
            let job = connect(global, args.wait).await?.admin().describe_job(args.id).await?;
            out.describe(&job_json(&job))?;
        }
        Job::Wait(args) => {
            let client = connect(global, args.wait).await?;
            let job = client.admin().wait_for_job(args.id, args.wait.timeout).await?;
            out.describe(&job_json(&job))?;
            if job.state() != v1::JobState::Done {
                return Err(Failure::job_not_done(job.id, state(&job), &job.error).into());
            }
        }
        Job::Cancel(args) => {
            let job = connect(global, args.wait).await?.admin().cancel_job(args.id).await?;
            out.one(&job_json(&job), || format!("job {} is cancelled", job.id))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The word for where a job stands.
pub fn state(job: &v1::Job) -> &'static str {
    match job.state() {
        v1::JobState::Unspecified => "unknown",
        v1::JobState::Running => "running",
        v1::JobState::Done => "done",
        v1::JobState::Failed => "failed",
        v1::JobState::Cancelled => "cancelled",
    }
}

/// Now, milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970 for people; none for never.
pub fn time_text(ms: u64) -> Option<String> {
    let text = (ms > 0).then(|| convert::time_text(ms))?;
    text.split_once('.').map(|(seconds, _)| format!("{seconds}Z"))
}

fn job_json(job: &v1::Job) -> Json {
    let kind = match job.kind() {
        v1::JobKind::Unspecified => "unknown",
        v1::JobKind::Split => "split",
        v1::JobKind::Move => "move",
        v1::JobKind::Merge => "merge",
        v1::JobKind::Backup => "backup",
        v1::JobKind::Restore => "restore",
        v1::JobKind::Transfer => "transfer",
    };
    let time = |ms: u64| (ms > 0).then_some(ms);
    json!({
        "id": job.id,
        "kind": kind,
        "state": state(job),
        "by": if job.automatic { "cluster" } else { "operator" },
        "tablet": (job.tablet_id > 0).then_some(job.tablet_id),
        "other": (job.other_tablet_id > 0).then_some(job.other_tablet_id),
        "children": job.child_tablet_ids,
        "from": (job.from_server_id > 0).then_some(job.from_server_id),
        "to": (job.to_server_id > 0).then_some(job.to_server_id),
        "progress": f64::from(job.progress_per_mille) / 1_000.0,
        "bytes": (job.bytes_total > 0).then_some(job.bytes),
        "bytes_total": (job.bytes_total > 0).then_some(job.bytes_total),
        "backup": job.backup.as_ref().map(|backup| &backup.backup_id),
        "waits_for": (!job.waits_for.is_empty()).then_some(&job.waits_for),
        "error": (!job.error.is_empty()).then_some(&job.error),
        "started_ms": time(job.started_ms),
        "ended_ms": time(job.ended_ms),
        "expected_ms": time(job.expected_ms),
        "eta_s": time(job.expected_ms).map(|at| at.saturating_sub(now_ms()) / 1_000),
    })
}
