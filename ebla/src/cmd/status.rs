//! `ebla status`: the cluster at a glance.

use super::backup::schedule_json;
use super::server::server_json;
use super::{connect, output};
use crate::cli::{Global, Wait};
use ebla_client::v1;
use serde_json::{Value as Json, json};
use std::process::ExitCode;

/// Prints who is there, what they serve, and what to look at.
pub async fn run(global: &Global, wait: Wait) -> anyhow::Result<ExitCode> {
    let status = connect(global, wait).await?.admin().status().await?;
    let mut out = output(global);
    let object = status_json(&status);
    if !out.is_table() {
        out.one(&object, String::new)?;
        return Ok(ExitCode::SUCCESS);
    }
    let serving = format!(
        "cluster {}: {} tables, {} of {} tablets serve",
        status.cluster_id, status.tables, status.tablets_serving, status.tablets
    );
    out.one(&object, || serving)?;
    let list = |name: &str| object[name].as_array().cloned().unwrap_or_default();
    out.list(&["id", "address", "leader"], &list("masters"))?;
    out.list(&["id", "address", "zone", "state", "duty", "tablets", "leaders"], &list("servers"))?;
    if !status.backup_schedules.is_empty() {
        out.list(&["url", "every_s", "last_id", "next", "failures"], &list("backup_schedules"))?;
    }
    for warning in &status.warnings {
        out.one(&object, || format!("look at: {warning}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn status_json(status: &v1::GetStatusResponse) -> Json {
    let masters: Vec<_> = status
        .masters
        .iter()
        .map(|master| json!({ "id": master.id, "address": master.address, "leader": master.leader }))
        .collect();
    json!({
        "cluster_id": status.cluster_id,
        "masters": masters,
        "servers": status.servers.iter().map(server_json).collect::<Vec<_>>(),
        "tables": status.tables,
        "tablets": status.tablets,
        "tablets_serving": status.tablets_serving,
        "version": status.version,
        "warnings": status.warnings,
        "backup_schedules": status.backup_schedules.iter().map(schedule_json).collect::<Vec<_>>(),
    })
}
