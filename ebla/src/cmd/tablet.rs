//! `ebla tablet`: tablets, their leaders and copies.

use super::job::time_text;
use super::server::resolve;
use super::{connect, output};
use crate::cli::{Global, Tablet, TransferLeader};
use crate::output::Output;
use crate::parse::ServerName;
use ebla_client::v1;
use serde_json::{Map, Value as Json, json};
use std::process::ExitCode;

/// Lists tablets, describes one or lets another copy lead it.
pub async fn run(global: &Global, command: Tablet) -> anyhow::Result<ExitCode> {
    let mut out = output(global);
    match command {
        Tablet::List(args) => {
            let table = args.table.unwrap_or_default();
            let tablets = connect(global, args.wait).await?.admin().list_tablets(&table).await?;
            let objects: Vec<_> = tablets.iter().map(|tablet| tablet_json(&out, tablet)).collect();
            let columns = [
                "id",
                "table",
                "start",
                "end",
                "state",
                "leader",
                "epoch",
                "replicas",
                "in_sync",
                "degraded",
                "awaiting",
                "rows_estimate",
                "bytes",
            ];
            out.list(&columns, &objects)?;
        }
        Tablet::Describe(args) => {
            let tablet = connect(global, args.wait).await?.admin().describe_tablet(args.id).await?;
            out.describe(&tablet_json(&out, &tablet))?;
        }
        Tablet::Split(args) => super::split::run(global, args, &mut out).await?,
        Tablet::Merge(args) => super::merge::run(global, args, &mut out).await?,
        Tablet::Move(args) => super::moves::move_tablet(global, args, &mut out).await?,
        Tablet::TransferLeader(args) => transfer_leader(global, args, &mut out).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn transfer_leader(global: &Global, args: TransferLeader, out: &mut Output) -> anyhow::Result<()> {
    let client = connect(global, args.wait).await?;
    let server = match args.to {
        // The masters know whether there is such a server.
        ServerName::Id(id) => id,
        ServerName::Address(_) => resolve(&client, &args.to).await?.id,
    };
    let answer = client.admin().transfer_leader(args.id, server).await?;
    let job = Some(answer.job_id).filter(|job| *job > 0);
    let tablet = answer.tablet.unwrap_or_default().tablet.unwrap_or_default();
    let (leader, epoch) = (tablet.leader_server_id, tablet.epoch);
    let object = json!({ "job": job, "tablet": tablet.id, "leader": leader, "epoch": epoch });
    out.one(&object, || format!("server {leader} leads tablet {} in epoch {epoch}", tablet.id))
}

fn state(state: v1::TabletState) -> &'static str {
    match state {
        v1::TabletState::Unspecified => "unknown",
        v1::TabletState::Serving => "serving",
        v1::TabletState::Recovering => "recovering",
        v1::TabletState::Splitting => "splitting",
        v1::TabletState::Merging => "merging",
    }
}

fn tablet_json(out: &Output, summary: &v1::TabletSummary) -> Json {
    let tablet = summary.tablet.clone().unwrap_or_default();
    let servers = |wanted: fn(&v1::Replica) -> bool| {
        tablet
            .replicas
            .iter()
            .filter(|replica| wanted(replica))
            .map(|replica| replica.server_id)
            .collect::<Vec<_>>()
    };
    let leader = (tablet.leader_server_id > 0).then_some(tablet.leader_server_id);
    let mut object = Map::new();
    let mut put = |name: &str, value: Json| object.insert(name.to_owned(), value);
    put("id", json!(tablet.id));
    put("table", json!(summary.table));
    put("start", json!(out.text(&tablet.start)));
    put("end", json!(out.text(&tablet.end)));
    put("state", json!(state(summary.state())));
    put("job", json!((summary.job_id > 0).then_some(summary.job_id)));
    put("leader", json!(leader));
    put("epoch", json!(tablet.epoch));
    put("replicas", json!(servers(|_| true)));
    put("in_sync", json!(servers(|replica| replica.in_sync)));
    put("lost", json!(servers(|replica| replica.lost)));
    put("diverged", json!(summary.diverged_server_ids));
    put("degraded", json!(tablet.degraded));
    put("awaiting", json!((tablet.awaited_server_id > 0).then_some(tablet.awaited_server_id)));
    put("lineage", json!(tablet.lineage));
    let emptied = tablet.emptied.map(|emptied| {
        json!({
            "time": time_text(emptied.time_ms),
            "time_ms": emptied.time_ms,
            "lineage_before": emptied.lineage_before,
            "times": emptied.times,
        })
    });
    put("emptied", json!(emptied));
    put("rows_estimate", json!(summary.rows_estimate));
    put("bytes", json!(summary.bytes));
    let drawn_by = if summary.automatic_boundary { "cluster" } else { "operator" };
    put("boundary", json!((!tablet.start.is_empty()).then_some(drawn_by)));
    if [&tablet.start, &tablet.end].iter().any(|key| std::str::from_utf8(key).is_err()) {
        put(out.mark_name(), json!(true));
    }
    object.into()
}
