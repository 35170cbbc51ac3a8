//! `ebla tablet`: tablets, their leaders and copies.

use super::{connect, output};
use crate::cli::{Global, Tablet};
use crate::output::Output;
use ebla_client::v1;
use serde_json::{Map, Value as Json, json};
use std::process::ExitCode;

/// Lists tablets or describes one.
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
                "leader",
                "epoch",
                "replicas",
                "in_sync",
                "rows_estimate",
                "bytes",
            ];
            out.list(&columns, &objects)?;
        }
        Tablet::Describe(args) => {
            let tablet = connect(global, args.wait).await?.admin().describe_tablet(args.id).await?;
            out.describe(&tablet_json(&out, &tablet))?;
        }
    }
    Ok(ExitCode::SUCCESS)
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
    put("leader", json!(leader));
    put("epoch", json!(tablet.epoch));
    put("replicas", json!(servers(|_| true)));
    put("in_sync", json!(servers(|replica| replica.in_sync)));
    put("rows_estimate", json!(summary.rows_estimate));
    put("bytes", json!(summary.bytes));
    if [&tablet.start, &tablet.end].iter().any(|key| std::str::from_utf8(key).is_err()) {
        put(out.mark_name(), json!(true));
    }
    object.into()
}
