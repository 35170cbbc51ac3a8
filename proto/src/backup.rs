//! Backups and restores, to the wire.

use crate::v1;
use ebla_kernel::meta::{BackupJob, JobKind, RestoreJob};

/// What a job is about, if it is a backup or a restore.
#[must_use]
pub fn backup_work(kind: &JobKind) -> Option<v1::BackupWork> {
    match kind {
        JobKind::Backup(backup) => Some(backup_to_wire(backup)),
        JobKind::Restore(restore) => Some(restore_to_wire(restore)),
        JobKind::Split(_) | JobKind::Merge(_) | JobKind::Move(_) | JobKind::Transfer(_) => None,
    }
}

fn backup_to_wire(backup: &BackupJob) -> v1::BackupWork {
    let wish = &backup.wish;
    v1::BackupWork {
        backup_id: wish.backup.clone(),
        url: wish.url.clone(),
        ts: backup.ts.map_or(0, |ts| ts.0),
        parent_id: wish.parent.as_ref().map(|(id, _)| id.clone()).unwrap_or_default(),
        by: wish.by.clone(),
        scheduled: wish.scheduled,
        tables: backup.totals.tables,
        rows: backup.totals.rows,
        bytes: backup.totals.bytes,
        files: backup.totals.files,
        restored_tables: Vec::new(),
    }
}

fn restore_to_wire(restore: &RestoreJob) -> v1::BackupWork {
    let wish = &restore.wish;
    v1::BackupWork {
        backup_id: wish.backup.clone(),
        url: wish.url.clone(),
        ts: wish.ts.0,
        parent_id: String::new(),
        by: wish.by.clone(),
        scheduled: false,
        tables: restore.totals.tables,
        rows: restore.totals.rows,
        bytes: restore.totals.bytes,
        files: restore.totals.files,
        restored_tables: wish.tables.iter().map(|(_, name)| name.clone()).collect(),
    }
}
