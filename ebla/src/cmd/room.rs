//! `ebla room`: subscribe, publish, who, list.

use super::{connect, note, output};
use crate::cli::{Global, ListRooms, PublishRoom, Room, RoomName, SubscribeRooms};
use crate::output::{Output, argument_bytes, counted};
use bytes::Bytes;
use ebla_client::{Reason, RoomEvent, RoomMessage, RoomSubscriber, Scan, Value, v1};
use ebla_kernel::ids::{Incarnation, Ordinal};
use ebla_kernel::room::row::RoomRow;
use ebla_kernel::room::{ROOMS_TABLE, ServerRuns};
use futures::StreamExt as _;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

/// Runs one of the commands about rooms.
pub async fn run(global: &Global, command: Room) -> anyhow::Result<ExitCode> {
    let mut out = output(global);
    match command {
        Room::Subscribe(args) => subscribe(global, args, &mut out).await?,
        Room::Publish(args) => publish(global, args, &mut out).await?,
        Room::Who(args) => who(global, args, &mut out).await?,
        Room::List(args) => list(global, args, &mut out).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn subscribe(global: &Global, args: SubscribeRooms, out: &mut Output) -> anyhow::Result<()> {
    let rooms: BTreeSet<Bytes> = args.rooms.iter().map(|room| argument_bytes(room, global.hex)).collect();
    let mut subscriber = connect(global, args.wait).await?.subscriber().await?;
    subscriber.join(rooms.iter().cloned()).await?;
    let at = subscriber.address().unwrap_or("no server");
    note(&format!("subscribed to {} at {at}", counted(rooms.len() as u64, "room", "rooms")));
    let mut printed = 0;
    while args.limit.is_none_or(|limit| printed < limit) {
        let Some(message) = next(&mut subscriber).await? else { continue };
        print(out, &message)?;
        printed += 1;
    }
    Ok(())
}

/// The next message; none when something else happened, which people are told.
async fn next(subscriber: &mut RoomSubscriber) -> anyhow::Result<Option<RoomMessage>> {
    match subscriber.next().await {
        Ok(RoomEvent::Message(message)) => Ok(Some(message)),
        Ok(RoomEvent::Rejoined(address)) => {
            note(&format!("the connection broke; subscribed again at {address}, messages may be missing"));
            Ok(None)
        }
        Err(error) if error.reason() == Reason::SubscriberTooSlow => {
            note(&format!("warning: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn print(out: &mut Output, message: &RoomMessage) -> anyhow::Result<()> {
    let RoomMessage { room, message, seq } = message;
    let object = out.bytes_json(&[("room", room), ("message", message)], json!({ "seq": seq }));
    let line = format!("{}\t{}", out.text(room), out.text(message));
    out.one(&object, || line)
}

async fn publish(global: &Global, args: PublishRoom, out: &mut Output) -> anyhow::Result<()> {
    let (room, message) = (argument_bytes(&args.room, global.hex), args.content.read(global.hex)?);
    let published = connect(global, args.wait).await?.publish(room, message).await?;
    out.one(&json!({ "delivered": published.delivered }), || {
        format!("delivered to {}", counted(published.delivered, "subscriber", "subscribers"))
    })
}

async fn who(global: &Global, args: RoomName, out: &mut Output) -> anyhow::Result<()> {
    let room = argument_bytes(&args.room, global.hex);
    let who = connect(global, args.wait).await?.who(room.clone()).await?;
    let mut others = json!({ "subscribers": who.subscribers, "servers": who.server_ids });
    if who.partial {
        others["partial"] = true.into();
    }
    let object = out.bytes_json(&[("room", &room)], others);
    let some = if who.partial { " at least: a server did not answer" } else { "" };
    let subscribers = counted(who.subscribers, "subscriber", "subscribers");
    let servers = counted(who.server_ids.len() as u64, "server", "servers");
    out.one(&object, || format!("{subscribers} at {servers}{some}"))
}

async fn list(global: &Global, args: ListRooms, out: &mut Output) -> anyhow::Result<()> {
    let prefix = args.prefix.as_ref().map(|prefix| argument_bytes(prefix, global.hex)).unwrap_or_default();
    let client = connect(global, args.wait).await?;
    let servers = client.admin().list_servers().await?.into_iter().filter_map(|summary| summary.server);
    let servers: BTreeMap<Ordinal, v1::Server> =
        servers.map(|server| (Ordinal(server.ordinal), server)).collect();
    let run = |(ordinal, server): (&Ordinal, &v1::Server)| (*ordinal, Incarnation(server.incarnation));
    let runs = ServerRuns { runs: servers.iter().map(run).collect() };
    client.route(ROOMS_TABLE, &prefix).await?;
    let mut rows = client.scan(ROOMS_TABLE, Scan { prefix, ..Scan::default() })?;
    while let Some(row) = rows.next().await {
        let row = row?;
        let Value::Bytes(value) = &row.value else { continue };
        let room = RoomRow::decode(value)?;
        let present = room.present(&runs).filter_map(|(ordinal, _)| servers.get(&ordinal));
        let ids: Vec<u64> = present.map(|server| server.id).collect();
        if !ids.is_empty() {
            let object = out.bytes_json(&[("room", &row.key)], json!({ "servers": ids }));
            let line = format!("{}\t{}", out.text(&row.key), counted(ids.len() as u64, "server", "servers"));
            out.stream(&object, || line)?;
        }
    }
    out.end_stream()
}
