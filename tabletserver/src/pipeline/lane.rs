//! What gathers for one log thread while it is busy: a group that grows, and where each tablet's
//! entries stand in it. There are two lanes, one for tablets on disk and one for those in memory,
//! so that a write in memory never waits for a sync; a tablet stays in its lane, so its entries
//! stay in order.

use super::{Group, Item, TabletEntries};
use crate::tablets::TabletHandle;
use crossbeam::channel::{Sender, TrySendError};
use ebla_kernel::ids::{Seq, TabletId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// The way to one log thread.
pub(super) struct Lane {
    group: Group,
    /// Where a tablet's entries stand in `group`.
    parts: HashMap<TabletId, usize>,
    log: Sender<Group>,
}

impl Lane {
    pub(super) fn new(log: Sender<Group>) -> Self {
        Self { group: Group::default(), parts: HashMap::new(), log }
    }

    pub(super) fn log(&self) -> &Sender<Group> {
        &self.log
    }

    pub(super) fn is_empty(&self) -> bool {
        self.group.parts.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.group.bytes
    }

    /// Adds an entry whose changes have so many bytes.
    pub(super) fn push(&mut self, handle: &Arc<TabletHandle>, item: Item, bytes: usize) {
        self.group.bytes += bytes;
        let at = *self.parts.entry(handle.id).or_insert_with(|| {
            self.group.parts.push(TabletEntries { handle: Arc::clone(handle), items: Vec::new() });
            self.group.parts.len() - 1
        });
        self.group.parts[at].items.push(item);
    }

    /// Lets room go when what gathers is durable.
    pub(super) fn hold(&mut self, room: OwnedSemaphorePermit) {
        self.group.room.push(room);
    }

    /// Takes the group out, to be handed on.
    pub(super) fn take(&mut self) -> Group {
        self.parts.clear();
        std::mem::take(&mut self.group)
    }

    /// Hands the group on if the log is free; whether it was.
    pub(super) fn hand_on(&mut self) -> bool {
        if self.is_empty() {
            return false;
        }
        let group = self.take();
        match self.log.try_send(group) {
            Ok(()) => true,
            Err(TrySendError::Full(group) | TrySendError::Disconnected(group)) => {
                self.group = group;
                self.number();
                false
            }
        }
    }

    /// Entries that were sequenced after ones that could not be written are never written.
    pub(super) fn drop_after(&mut self, starts: &[(TabletId, Seq)]) {
        let failed: HashSet<TabletId> = starts.iter().map(|(id, _)| *id).collect();
        self.group.parts.retain(|part| !failed.contains(&part.handle.id));
        self.number();
    }

    fn number(&mut self) {
        self.parts = self.group.parts.iter().enumerate().map(|(at, part)| (part.handle.id, at)).collect();
    }
}
