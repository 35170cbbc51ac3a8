//! `ebla backup list`: what lies at a target.

use super::repository;
use crate::cli::{BackupsAt, Global};
use crate::cmd::{note, output};
use ebla_backup::{BackupError, Manifest};
use ebla_kernel::hlc::Hlc;
use ebla_proto::convert::time_text;
use serde_json::{Value as Json, json};

const COLUMNS: [&str; 10] =
    ["id", "ts", "time", "kind", "parent", "tables", "rows", "bytes", "files", "state"];

/// Lists the backups, oldest first.
pub async fn run(global: &Global, at: BackupsAt) -> anyhow::Result<()> {
    let repository = repository(&at.url).await?;
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for (id, manifest) in repository.survey().await? {
        match manifest {
            Ok(Some(manifest)) => whole.push(manifest),
            // Not finished: no backup.
            Ok(None) => {}
            Err(error @ (BackupError::Damaged(_) | BackupError::NewerFormat(_))) => {
                note(&format!("warning: {error}"));
                damaged.push(damaged_json(&id, &error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    whole.sort_by(|a, b| (a.ts, &a.id).cmp(&(b.ts, &b.id)));
    let objects: Vec<_> = whole.iter().map(backup_json).chain(damaged).collect();
    output(global).list(&COLUMNS, &objects)
}

/// A backup as an object.
pub fn backup_json(manifest: &Manifest) -> Json {
    let totals = manifest.totals();
    json!({
        "id": manifest.id,
        "ts": manifest.ts.to_string(),
        "time": time_text(Hlc(manifest.ts).ms()),
        "kind": if manifest.is_incremental() { "incremental" } else { "full" },
        "parent": manifest.parent.as_ref().map(|parent| &parent.id),
        "tables": manifest.tables.iter().map(|table| &table.name).collect::<Vec<_>>(),
        "rows": totals.rows,
        "versions": totals.versions,
        "bytes": totals.bytes,
        "stored_bytes": totals.stored_bytes,
        "files": totals.files,
        "encrypted": manifest.encryption.is_some(),
        "cluster_id": manifest.cluster_id,
        "state": "complete",
    })
}

/// What can be said of a backup whose manifest cannot be read.
fn damaged_json(id: &str, error: &BackupError) -> Json {
    json!({ "id": id, "state": "damaged", "error": error.to_string() })
}

/// The error of a target at which there is no backup.
pub fn none_there(url: &str) -> BackupError {
    BackupError::NoBackup(format!(
        "there is no backup at {url} that was finished: `ebla backup create --to URL` makes one, `ebla job list` shows those under way"
    ))
}
