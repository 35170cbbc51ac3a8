//! `ebla lost`: what failovers took from the logs of deposed leaders.

use super::server::resolve;
use super::{connect, note, output};
use crate::cli::{Global, ListLost, Lost, ShowLost};
use crate::output::Output;
use bytes::Bytes;
use ebla_client::v1;
use ebla_proto::convert::time_text;
use futures::TryStreamExt as _;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Lists the records of all servers or shows the rows of one.
pub async fn run(global: &Global, command: Lost) -> anyhow::Result<ExitCode> {
    match command {
        Lost::List(args) => list(global, args).await?,
        Lost::Show(args) => show(global, args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Records of servers that answer; a row for each leader that has not come back and may yet
/// have something to record.
async fn list(global: &Global, args: ListLost) -> anyhow::Result<()> {
    let client = connect(global, args.wait).await?;
    let table = args.table.unwrap_or_default();
    let lost = client.list_lost(&table).await?;
    let tablets = client.admin().list_tablets(&table).await?;
    let names: BTreeMap<u32, String> =
        client.admin().list_tables().await?.into_iter().filter_map(name_of).collect();
    for (server, error) in &lost.unreachable {
        note(&format!(
            "server {} at {} did not answer ({error}): its records are missing here",
            server.id, server.address
        ));
    }
    let mut objects: Vec<Json> = lost.records.iter().map(|record| record_json(record, &names)).collect();
    objects.extend(tablets.iter().filter_map(awaited_json));
    objects.extend(tablets.iter().filter_map(emptied_json));
    let columns = ["id", "server", "table", "tablet", "state", "first", "last", "writes", "rows", "time"];
    output(global).list(&columns, &objects)
}

fn name_of(summary: v1::TableSummary) -> Option<(u32, String)> {
    summary.table.map(|table| (table.id, table.name))
}

fn record_json(record: &v1::LostRecord, names: &BTreeMap<u32, String>) -> Json {
    json!({
        "id": record.id,
        "server": record.server_id,
        // A table that is dropped has no name any more.
        "table": names.get(&record.table_id),
        "tablet": record.tablet_id,
        "replica": record.replica_id,
        "state": "dropped",
        "first": format!("{}:{}", record.first_epoch, record.first_seq),
        "last": format!("{}:{}", record.last_epoch, record.last_seq),
        "writes": record.writes,
        "rows": record.rows,
        "time": time_text(record.time_ms),
    })
}

/// A tablet whose last leader is away: what it alone had is not known.
fn awaited_json(summary: &v1::TabletSummary) -> Option<Json> {
    let tablet = summary.tablet.as_ref().filter(|tablet| tablet.awaited_server_id > 0)?;
    let replica = tablet.replicas.iter().find(|replica| replica.server_id == tablet.awaited_server_id);
    Some(json!({
        "id": null,
        "server": tablet.awaited_server_id,
        "table": summary.table,
        "tablet": tablet.id,
        "replica": replica.map(|replica| replica.replica_id),
        "state": "awaiting server",
        "first": format!("{}:?", tablet.awaited_epoch),
        "last": null,
        "writes": null,
        "rows": null,
        "time": null,
    }))
}

/// A tablet of a table in memory that lost every copy: whatever was in it is gone.
fn emptied_json(summary: &v1::TabletSummary) -> Option<Json> {
    let tablet = summary.tablet.as_ref()?;
    let emptied = tablet.emptied?;
    Some(json!({
        "id": null,
        "server": null,
        "table": summary.table,
        "tablet": tablet.id,
        "replica": null,
        "state": "all copies lost",
        "first": null,
        "last": null,
        "writes": null,
        "rows": null,
        "time": time_text(emptied.time_ms),
    }))
}

/// The rows in log order.
async fn show(global: &Global, args: ShowLost) -> anyhow::Result<()> {
    let client = connect(global, args.wait).await?;
    let server = resolve(&client, &args.server).await?;
    let mut entries = client.show_lost(&server, args.id).await?;
    let mut out = output(global);
    while let Some(entry) = entries.try_next().await? {
        for row in &entry.rows {
            let object = row_json(&out, &entry, row);
            let line = row_line(&out, &entry, row);
            out.stream(&object, || line)?;
        }
    }
    out.end_stream()
}

fn row_json(out: &Output, entry: &v1::LostEntry, row: &v1::LostRow) -> Json {
    use v1::lost_row::Change;
    let mut object = Map::new();
    let mut is_text = std::str::from_utf8(&row.key).is_ok();
    let mut bytes = |bytes: &Bytes| {
        is_text &= std::str::from_utf8(bytes).is_ok();
        Json::from(out.text(bytes))
    };
    object.insert("key".to_owned(), bytes(&row.key));
    let (name, value) = match &row.change {
        Some(Change::Value(value)) => ("value", bytes(value)),
        Some(Change::Counter(value)) => ("value", json!(value)),
        Some(Change::Deleted(_)) | None => ("deleted", json!(true)),
        Some(Change::DeletedTo(to)) => ("deleted_to", bytes(to)),
    };
    object.insert(name.to_owned(), value);
    object.insert("ts".to_owned(), entry.ts.to_string().into());
    object.insert("epoch".to_owned(), entry.epoch.into());
    object.insert("seq".to_owned(), entry.seq.into());
    if !is_text {
        object.insert(out.mark_name().to_owned(), true.into());
    }
    object.into()
}

fn row_line(out: &Output, entry: &v1::LostEntry, row: &v1::LostRow) -> String {
    use v1::lost_row::Change;
    let change = match &row.change {
        Some(Change::Value(value)) => out.text(value),
        Some(Change::Counter(value)) => value.to_string(),
        Some(Change::Deleted(_)) | None => "(deleted)".to_owned(),
        Some(Change::DeletedTo(to)) if to.is_empty() => "(deleted, and all keys above)".to_owned(),
        Some(Change::DeletedTo(to)) => format!("(deleted up to {})", out.text(to)),
    };
    out.fit(format!("{}:{}\t{}\t{change}", entry.epoch, entry.seq, out.text(&row.key)))
}
