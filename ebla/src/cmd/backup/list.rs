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
    let mut inventory = repository.inventory().await?;
    let mut objects = Vec::new();
    for id in inventory.ids() {
        let fault = inventory.fault(&id);
        if let Some(manifest) = inventory.manifest(&id) {
            let mut object = backup_json(manifest);
            if fault.is_some() {
                let parent = manifest.parent.as_ref().map_or("", |parent| &parent.id);
                note(&format!(
                    "warning: backup {id} adds to {parent}, which, or what that adds to, is not here: it cannot be restored"
                ));
                object["state"] = "parent missing".into();
            }
            objects.push(object);
        } else if let Some(error) = inventory.take_error(&id) {
            note(&format!("warning: backup {id}: {error}"));
            objects.push(damaged_json(&id, &error));
        }
    }
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
    let is_damaged = matches!(error, BackupError::Damaged(_) | BackupError::NewerFormat(_));
    let state = if is_damaged { "damaged" } else { "unreadable" };
    json!({ "id": id, "state": state, "error": error.to_string() })
}

/// The error of a target at which there is no backup.
pub fn none_there(url: &str) -> BackupError {
    BackupError::NoBackup(format!(
        "there is no backup at {url} that was finished: `ebla backup create --to URL` makes one, `ebla job list` shows those under way"
    ))
}
