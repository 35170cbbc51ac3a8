//! `ebla backup describe`: one backup and what is in it.

use super::list::{backup_json, none_there};
use super::repository;
use crate::cli::{DescribeBackup, Global};
use crate::cmd::output;
use ebla_backup::{Manifest, TableEntry};
use ebla_proto::convert::time_text;
use serde_json::{Value as Json, json};

const COLUMNS: [&str; 10] =
    ["name", "id", "since_ts", "kind", "replicas", "parts", "rows", "versions", "bytes", "files"];

/// Describes one backup, the newest if none is named.
pub async fn run(global: &Global, args: DescribeBackup) -> anyhow::Result<()> {
    let repository = repository(&args.at.url).await?;
    let manifest = match args.id.or(args.id_flag) {
        Some(id) => repository.manifest(&id).await?,
        None => repository.list().await?.pop().ok_or_else(|| none_there(&args.at.url))?,
    };
    let tables: Vec<_> = manifest.tables.iter().map(table_json).collect();
    let mut object = described_json(&manifest);
    let mut out = output(global);
    if out.is_table() {
        out.describe(&object)?;
        return out.list(&COLUMNS, &tables);
    }
    object["tables"] = tables.into();
    out.describe(&object)
}

fn described_json(manifest: &Manifest) -> Json {
    let mut object = backup_json(manifest);
    let created = &manifest.created;
    object["format"] = json!(manifest.format);
    object["key_id"] = json!(manifest.encryption.as_ref().map(|encryption| &encryption.key_id));
    object["by"] = json!(created.by);
    object["started"] = json!(time_text(created.started_ms));
    object["ended"] = json!(time_text(created.ended_ms));
    object["duration_ms"] = json!(created.ended_ms.saturating_sub(created.started_ms));
    object["version"] = json!(created.version);
    object
}

fn table_json(table: &TableEntry) -> Json {
    let totals = table.totals();
    let settings = &table.settings;
    json!({
        "name": table.name,
        "id": table.id,
        "since_ts": table.since_ts.to_string(),
        "parts": table.parts.len(),
        "rows": totals.rows,
        "versions": totals.versions,
        "bytes": totals.bytes,
        "stored_bytes": totals.stored_bytes,
        "files": totals.files,
        "kind": settings.kind,
        "replicas": settings.replicas,
        "min_in_sync": settings.min_in_sync,
        "policy": settings.policy,
        "ack": settings.ack,
        "retention_ms": settings.retention_ms,
        "split_bytes": settings.split_bytes,
        "split_load": settings.split_load,
        "auto_merge": settings.auto_merge,
        "publish_changes": settings.publish_changes,
        "max_memory": settings.memory_bytes_max,
        "eviction": settings.eviction,
    })
}
