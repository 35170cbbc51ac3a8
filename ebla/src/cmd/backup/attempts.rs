//! `ebla backup log`: what was tried, by whom, and what became of it.

use crate::cli::{Global, Wait};
use crate::cmd::{connect, job, output};
use ebla_client::v1;
use serde_json::{Value as Json, json};

const COLUMNS: [&str; 12] =
    ["job", "kind", "id", "url", "state", "by", "started", "duration_ms", "ts", "rows", "bytes", "error"];

/// Prints the attempts that the cluster remembers, oldest first.
pub async fn run(global: &Global, wait: Wait) -> anyhow::Result<()> {
    let attempts = connect(global, wait).await?.admin().list_backup_attempts().await?;
    output(global).list(&COLUMNS, &attempts.iter().map(attempt_json).collect::<Vec<_>>())
}

fn attempt_json(attempt: &v1::Job) -> Json {
    let work = attempt.backup.clone().unwrap_or_default();
    let kind = if attempt.kind() == v1::JobKind::Restore { "restore" } else { "backup" };
    json!({
        "job": attempt.id,
        "kind": kind,
        "id": work.backup_id,
        "url": work.url,
        "parent": (!work.parent_id.is_empty()).then_some(work.parent_id),
        "state": job::state(attempt),
        "by": work.by,
        "scheduled": work.scheduled,
        "started": job::time_text(attempt.started_ms),
        "started_ms": attempt.started_ms,
        "ended_ms": (attempt.ended_ms > 0).then_some(attempt.ended_ms),
        "duration_ms": (attempt.ended_ms > 0).then(|| attempt.ended_ms.saturating_sub(attempt.started_ms)),
        "ts": (work.ts > 0).then(|| work.ts.to_string()),
        "tables": work.tables,
        "rows": work.rows,
        "bytes": work.bytes,
        "error": (!attempt.error.is_empty()).then_some(&attempt.error),
    })
}
