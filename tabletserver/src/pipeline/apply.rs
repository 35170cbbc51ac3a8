//! The apply thread: the rows of a durable group into the store in one batch, then visible.

use super::sequencer::Control;
use super::{Group, TabletEntries};
use crate::store::cache::RowCache;
use crate::store::{Applied, Store, StoreError};
use crate::tablets::TabletHandle;
use crossbeam::channel::{Receiver, Sender};
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::op::{Body, Change, Version};
use ebla_kernel::range_tombstones::RangeTombstones;
use std::sync::Arc;

/// What the apply thread works with.
pub struct Apply {
    /// Where durable groups come from.
    pub durable: Receiver<Group>,
    /// Where completions go.
    pub control: Sender<Control>,
    /// The rows.
    pub store: Arc<dyn Store>,
    /// Newest rows for hot reads.
    pub cache: Arc<RowCache>,
}

impl Apply {
    /// Runs until the log thread is gone.
    ///
    /// # Errors
    /// When the store fails: nothing more can be said about it, the server must end.
    pub fn run(self) -> Result<(), StoreError> {
        while let Ok(group) = self.durable.recv() {
            self.apply(&group)?;
            if self.control.send(Control::Applied(group.ends())).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, group: &Group) -> Result<(), StoreError> {
        let changes: Vec<Applied<'_>> = group.parts.iter().flat_map(changes_of).collect();
        for part in &group.parts {
            self.cache.before_apply(part.handle.generation, keys_of(part));
        }
        self.store.apply(&changes)?;
        for part in &group.parts {
            add_range_tombstones(&part.handle, &part.entries);
            each_put(part, |handle, key, version| {
                let is_row = !matches!(version.body, Body::Tombstone);
                handle.size.put(is_row, key.len() + version.body.bytes());
                self.cache.after_apply(handle.generation, key, version);
            });
            let last = part.entries.last().expect("a group has no empty part");
            part.handle.set_applied(last.end());
        }
        Ok(())
    }
}

fn changes_of(part: &TabletEntries) -> impl Iterator<Item = Applied<'_>> {
    let table = part.handle.table;
    part.entries.iter().flat_map(move |entry| {
        changes(entry).iter().map(move |change| Applied { table, ts: entry.ts, change })
    })
}

/// The exact versions that an entry puts.
#[must_use]
pub fn changes(entry: &Entry) -> &[Change] {
    match &entry.payload {
        Payload::Write(write) => &write.changes,
        Payload::EpochStart { .. } | Payload::TokenFence { .. } => &[],
    }
}

fn keys_of(part: &TabletEntries) -> impl Iterator<Item = &[u8]> {
    part.entries.iter().flat_map(changes).filter_map(|change| match change {
        Change::Put { key, .. } => Some(&key[..]),
        Change::RangeTombstone { .. } => None,
    })
}

fn each_put(part: &TabletEntries, mut visit: impl FnMut(&TabletHandle, &[u8], &Version)) {
    for entry in &part.entries {
        for change in changes(entry) {
            if let Change::Put { key, body, expires_ms } = change {
                let version = Version { ts: entry.ts, body: body.clone(), expires_ms: *expires_ms };
                visit(&part.handle, key, &version);
            }
        }
    }
}

/// Publishes the range tombstones of `entries`, all at once.
pub fn add_range_tombstones(handle: &TabletHandle, entries: &[Entry]) {
    let is_range = |change: &&Change| matches!(change, Change::RangeTombstone { .. });
    if !entries.iter().flat_map(changes).any(|change| is_range(&change)) {
        return;
    }
    handle.size.is_stale.store(true, std::sync::atomic::Ordering::Relaxed);
    handle.tombstones.rcu(|known| {
        let mut known = RangeTombstones::clone(known);
        for entry in entries {
            for change in changes(entry).iter().filter(is_range) {
                if let Change::RangeTombstone { from, to } = change {
                    known.insert(from.clone(), to.clone(), entry.ts);
                }
            }
        }
        known
    });
}
