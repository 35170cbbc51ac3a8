//! `ebla backup restore`.

use super::{author, watched};
use crate::cli::{Global, RestoreBackup};
use crate::cmd::{connect, job, output};
use ebla_client::v1;
use serde_json::{Value as Json, json};

/// Begins a restore, and waits for it unless that is not wanted.
pub async fn run(global: &Global, args: RestoreBackup) -> anyhow::Result<()> {
    let admin = connect(global, args.wait).await?.admin();
    let request = v1::RestoreBackupRequest {
        url: args.from,
        backup_id: args.id.unwrap_or_default(),
        table: args.table.unwrap_or_default(),
        new_name: args.new_name.unwrap_or_default(),
        replicas: args.replicas.map_or(0, u32::from),
        rate_bytes: args.rate.unwrap_or(0),
        by: author(),
    };
    let begun = admin.restore_backup(request).await?;
    let done = if args.no_wait { begun } else { watched::wait(&admin, begun.id).await? };
    let restored = done.backup.clone().unwrap_or_default();
    output(global).one(&restore_json(&done, &restored), || {
        let names = restored.restored_tables.join(", ");
        match done.state() {
            v1::JobState::Done => format!("restored {names} as of {}: {} rows", restored.ts, restored.rows),
            v1::JobState::Unspecified
            | v1::JobState::Running
            | v1::JobState::Failed
            | v1::JobState::Cancelled => {
                format!("{names} are being restored: follow it with `ebla job wait {}`", done.id)
            }
        }
    })
}

fn restore_json(job: &v1::Job, restored: &v1::BackupWork) -> Json {
    let table = match &restored.restored_tables[..] {
        [one] => Json::from(one.clone()),
        _ => Json::Null,
    };
    json!({
        "job": job.id,
        "table": table,
        "tables": restored.restored_tables,
        "rows": restored.rows,
        "bytes": restored.bytes,
        "ts": restored.ts.to_string(),
        "id": restored.backup_id,
        "state": job::state(job),
    })
}
