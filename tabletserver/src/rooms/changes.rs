//! Changes of tables as messages: of a table with `--publish-changes`, each committed change of key K is
//! published to the room `TABLE/K` by whoever leads the key's tablet.
//!
//! What is published is what a watch shows: entries at or below Q, never one that was taken back. An
//! epoch is published from its first entry on; when leadership changes, the last changes of the
//! former epoch may not be, and none is published twice. Where the room's row is led here and
//! nobody is in, a change costs one look at that row.

use super::Rooms;
use super::publish::{Leader, Publication, Publisher};
use crate::limits;
use crate::oplog::Oplog;
use crate::tablets::TabletHandle;
use crate::watch::feed::{Feed, FeedError};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Seq, TableId, TabletId};
use ebla_kernel::limits::ROOM_NAME_BYTES_MAX;
use ebla_kernel::op::{Body, Cause};
use ebla_kernel::text::escape;
use ebla_kernel::watch::{Event, events_of};
use serde_json::{Map, Value as Json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

/// Which tables are published, as the map says.
#[derive(Default)]
struct Tables {
    published: BTreeMap<TableId, Arc<str>>,
    /// Tables that were there and not published: one that is turned on begins with what comes.
    silent: HashSet<TableId>,
}

/// Tablets whose changes are being published.
type Followed = HashMap<TabletId, (Epoch, JoinHandle<()>)>;

impl Rooms {
    /// Publishes the changes of tables that want it, for ever.
    pub(super) async fn publish_changes(self: Arc<Self>, oplog: Arc<Oplog>) {
        let (_, mut news) = self.node.routes.watch();
        let (mut tables, mut followed) = (Tables::default(), Followed::new());
        loop {
            self.look_at_tables(&mut tables);
            self.follow_all(&oplog, &tables, &mut followed);
            let changed = tokio::select! {
                changed = news.recv() => changed,
                () = tokio::time::sleep(limits::PUBLISHED_LOOK_EVERY), if !tables.published.is_empty() => continue,
            };
            match changed {
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn look_at_tables(&self, tables: &mut Tables) {
        let routes = self.node.routes.now();
        tables.published.clear();
        for info in routes.tables() {
            if info.publish_changes {
                tables.published.insert(info.id, Arc::from(&*info.table.name));
            } else {
                tables.silent.insert(info.id);
            }
        }
    }

    fn follow_all(self: &Arc<Self>, oplog: &Arc<Oplog>, tables: &Tables, followed: &mut Followed) {
        let directory = self.node.directory.load_full();
        followed.retain(|id, (_, task)| {
            let stays =
                directory.tablet(*id).is_some_and(|tablet| tables.published.contains_key(&tablet.table));
            if !stays {
                task.abort();
            }
            stays
        });
        let published =
            tables.published.iter().filter_map(|(id, table)| Some((directory.table(*id)?, table)));
        for (tablet, table) in
            published.flat_map(|(tablets, table)| tablets.iter().map(move |tablet| (tablet, table)))
        {
            let Some(epoch) = tablet.serving() else { continue };
            if followed.get(&tablet.id).is_some_and(|(known, _)| *known == epoch) {
                continue;
            }
            let after =
                if tables.silent.contains(&tablet.table) { tablet.safe_seq() } else { before(tablet, epoch) };
            let feed = Feed::after(Arc::clone(oplog), Arc::clone(tablet), after);
            let (rooms, tablet) = (Arc::clone(self), Arc::clone(tablet));
            let table = Arc::clone(table);
            let id = tablet.id;
            let task = tokio::spawn(async move { rooms.follow(&tablet, epoch, &table, feed).await });
            if let Some((_, former)) = followed.insert(id, (epoch, task)) {
                former.abort();
            }
        }
    }

    /// Publishes the changes of a tablet for as long as it is led here in this epoch.
    async fn follow(&self, tablet: &TabletHandle, epoch: Epoch, table: &str, mut feed: Feed) {
        while tablet.serving() == Some(epoch) {
            let batch = match feed.next().await {
                Ok(batch) => batch,
                Err(FeedError::Purged) => {
                    tracing::warn!(tablet = %tablet.id, "changes to be published are no longer in the log");
                    return;
                }
                Err(FeedError::Failed(error)) => {
                    tracing::warn!(tablet = %tablet.id, %error, "changes to be published cannot be read");
                    return;
                }
            };
            for logged in &batch.entries {
                for event in events_of(&logged.entry, &tablet.range) {
                    self.publish_change(table, &event, logged.entry.ts);
                }
            }
            if batch.upto.is_none() {
                feed.wait(limits::PUBLISHED_PATIENCE).await;
            }
        }
    }

    fn publish_change(&self, table: &str, event: &Event, ts: Hlc) {
        // A range that is gone names no rows, so no rooms.
        let (Event::Set { key, .. } | Event::Gone { key, .. }) = event else { return };
        let room = [table.as_bytes(), b"/", key].concat();
        if room.len() > ROOM_NAME_BYTES_MAX || self.is_known_empty(&room) {
            return;
        }
        self.publish(Publication {
            room: room.into(),
            message: document(event, ts),
            publisher: Publisher::Nobody,
            deadline: Instant::now() + limits::PUBLISHED_CHANGE_TIMEOUT,
        });
    }

    /// Whether nobody is in a room, as far as can be told here.
    fn is_known_empty(&self, room: &[u8]) -> bool {
        matches!(self.leader(room), Ok(Leader::Here))
            && self.read_row(room).is_ok_and(|(row, _)| row.present(&self.servers().runs).next().is_none())
    }
}

/// The entry before the first of an epoch.
fn before(tablet: &TabletHandle, epoch: Epoch) -> Seq {
    let epochs = tablet.epochs.load();
    let begun = epochs.iter().find(|(known, _)| *known == epoch);
    begun.map_or(tablet.safe_seq(), |(_, first)| Seq(first.0.saturating_sub(1)))
}

/// A change as the object that `ebla watch -o jsonl` prints, without a token.
fn document(event: &Event, ts: Hlc) -> Bytes {
    let mut object = Map::new();
    let mut is_text = true;
    let mut put = |object: &mut Map<String, Json>, name: &str, bytes: &[u8]| {
        let text = std::str::from_utf8(bytes);
        is_text &= text.is_ok();
        object.insert(name.to_owned(), text.map_or_else(|_| escape(bytes), str::to_owned).into());
    };
    match event {
        Event::Set { key, body, .. } => {
            object.insert("type".to_owned(), "set".into());
            put(&mut object, "key", key);
            match body {
                Body::Value(value) => put(&mut object, "value", value),
                Body::Counter(count) => drop(object.insert("value".to_owned(), (*count).into())),
                Body::Tombstone(_) => {}
            }
        }
        Event::Gone { key, cause } => {
            let kind = if *cause == Cause::Expired { "expire" } else { "delete" };
            object.insert("type".to_owned(), kind.into());
            put(&mut object, "key", key);
            if *cause == Cause::Evicted {
                object.insert("reason".to_owned(), "evicted".into());
            }
        }
        Event::RangeGone { .. } => {}
    }
    object.insert("ts".to_owned(), ts.0.to_string().into());
    if !is_text {
        object.insert("escaped".to_owned(), true.into());
    }
    Json::from(object).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_look_like_those_of_a_watch() {
        let key = Bytes::from_static(b"k");
        let set =
            Event::Set { key: key.clone(), body: Body::Value(Bytes::from_static(b"v")), expires_ms: None };
        assert_eq!(document(&set, Hlc(7)), r#"{"type":"set","key":"k","value":"v","ts":"7"}"#);
        let count =
            Event::Set { key: Bytes::from_static(b"\xff"), body: Body::Counter(-2), expires_ms: None };
        let text = r#"{"type":"set","key":"\\xff","value":-2,"ts":"7","escaped":true}"#;
        assert_eq!(document(&count, Hlc(7)), text);
        let gone = Event::Gone { key, cause: Cause::Evicted };
        assert_eq!(document(&gone, Hlc(7)), r#"{"type":"delete","key":"k","reason":"evicted","ts":"7"}"#);
    }
}
