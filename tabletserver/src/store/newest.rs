//! The newest version of every row in memory, by hash: one step for a get where the skip list
//! takes many.
//!
//! The skip list has all versions in order and is what counts; here stands, of each row, the one
//! that the list has first. Whoever changes the list says so here *afterwards* and looks into the
//! list again while it holds the row's shard: of two that change a row at the same time the later
//! one to come here sees what the other has done to the list.

use super::memory::Held;
use crate::limits::NEWEST_SHARDS;
use ebla_kernel::key::TS_BYTES;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::sync::{PoisonError, RwLock};
use xxhash_rust::xxh3::xxh3_64;

/// What a row takes here: a pointer and its control byte, in a table that is between half and
/// nearly full.
pub(super) const ROW_BYTES: u64 = 16;

/// The newest versions.
pub(super) struct Newest {
    shards: Box<[RwLock<HashTable<Held>>]>,
}

impl Default for Newest {
    fn default() -> Self {
        Self { shards: (0..NEWEST_SHARDS).map(|_| RwLock::default()).collect() }
    }
}

impl Newest {
    /// What `read` makes of the newest version of the row whose stored keys begin with `row`.
    pub fn read<T>(&self, row: &[u8], read: impl FnOnce(&Held) -> T) -> Option<T> {
        let hash = xxh3_64(row);
        let shard = self.shard(hash).read().unwrap_or_else(PoisonError::into_inner);
        shard.find(hash, |held| held.row() == row).map(read)
    }

    /// A version was put into the list; `is_there` looks whether somebody has removed it since.
    /// Gives what was the newest of its row before.
    pub fn put(&self, new: &Held, is_there: impl FnOnce() -> bool) -> Option<Held> {
        let hash = xxh3_64(new.row());
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        if !is_there() {
            return None;
        }
        match shard.entry(hash, |held| held.row() == new.row(), |held| xxh3_64(held.row())) {
            // Newer versions come first.
            Entry::Occupied(known) if known.get() < new => Some(known.get().clone()),
            Entry::Occupied(mut known) => Some(std::mem::replace(known.get_mut(), new.clone())),
            Entry::Vacant(free) => {
                free.insert(new.clone());
                None
            }
        }
    }

    /// A version is not in the list any more; `first` looks there for the newest of its row.
    pub fn removed(&self, old: &Held, first: impl FnOnce() -> Option<Held>) {
        let hash = xxh3_64(old.row());
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        let Ok(mut known) = shard.find_entry(hash, |held| held.row() == old.row()) else { return };
        if known.get() != old {
            return;
        }
        match first() {
            Some(first) => *known.get_mut() = first,
            None => drop(known.remove()),
        }
    }

    fn shard(&self, hash: u64) -> &RwLock<HashTable<Held>> {
        // The table itself goes by the low and the highest bits.
        &self.shards[(hash >> 32) as usize % NEWEST_SHARDS]
    }
}

impl Held {
    /// What all versions of its row begin with.
    fn row(&self) -> &[u8] {
        let stored = self.stored_key();
        &stored[..stored.len().saturating_sub(TS_BYTES)]
    }
}
