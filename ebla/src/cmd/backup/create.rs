//! `ebla backup create`.

use super::{author, watched};
use crate::cli::{CreateBackup, Global};
use crate::cmd::{connect, job, output};
use ebla_client::v1;
use serde_json::{Value as Json, json};

/// Begins a backup, and waits for it if that is wanted.
pub async fn run(global: &Global, args: CreateBackup) -> anyhow::Result<()> {
    let admin = connect(global, args.wait).await?.admin();
    let request = v1::CreateBackupRequest {
        url: args.to,
        tables: args.tables,
        at_ts: args.at.0.map_or(0, |ts| ts.0),
        parent_id: args.incremental_from.unwrap_or_default(),
        rate_bytes: args.rate.unwrap_or(0),
        encrypted: args.encrypt,
        by: author(),
    };
    let begun = admin.create_backup(request).await?;
    let done = if args.until_done {
        watched::wait(&admin, begun.id).await?
    } else {
        // The timestamp is what the caller may want to go on with.
        watched::wait_until(&admin, begun.id, |job| work(job).ts > 0).await?
    };
    let backup = work(&done);
    output(global).one(&backup_json(&done), || match done.state() {
        v1::JobState::Done => format!(
            "backup {} of {} tables at {}: {} rows, {} bytes in {} files",
            backup.backup_id, backup.tables, backup.ts, backup.rows, backup.bytes, backup.files
        ),
        v1::JobState::Unspecified
        | v1::JobState::Running
        | v1::JobState::Failed
        | v1::JobState::Cancelled => {
            format!("backup {} is under way: follow it with `ebla job wait {}`", backup.backup_id, done.id)
        }
    })
}

fn work(job: &v1::Job) -> v1::BackupWork {
    job.backup.clone().unwrap_or_default()
}

fn backup_json(job: &v1::Job) -> Json {
    let backup = work(job);
    json!({
        "id": backup.backup_id,
        "job": job.id,
        "ts": (backup.ts > 0).then(|| backup.ts.to_string()),
        "bytes": backup.bytes,
        "rows": backup.rows,
        "files": backup.files,
        "tables": backup.tables,
        "parent": (!backup.parent_id.is_empty()).then_some(backup.parent_id),
        "state": job::state(job),
        "url": backup.url,
    })
}
