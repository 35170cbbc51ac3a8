//! The rows of a server: versions, and nothing but versions.
//!
//! A store maps (table, key, timestamp) to what a version says. It is a cache of the applied
//! log plus version history: nothing in it is durable before a [`Store::flush`] that began
//! later has returned, and replaying exact versions over it changes nothing. Two
//! implementations share the order of `kernel::key`: [`rocks`] on disk, [`memory`] in a skip
//! list. What is built on top of both: [`scan`], [`gc`], [`cache`].
//!
//! A store does not know tablets, logs, leases or range tombstones' meaning: it keeps range
//! tombstones as versions, and whoever reads a row compares it with them.

pub mod both;
pub mod cache;
pub mod changes;
pub mod expired;
mod format;
pub mod gc;
pub mod live;
pub mod memory;
pub mod memory_tables;
mod newest;
pub mod rocks;
pub mod scan;
pub mod split_points;
mod value;

#[cfg(test)]
pub(crate) mod tests;

use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key::{self, MalformedKey, StoredKey};
use ebla_kernel::op::{Change, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstone;
use std::path::{Path, PathBuf};

/// What went wrong in a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Bytes that no version of Ebla has written. Never answered from; the replicas of the
    /// file are lost here and rebuilt from good copies.
    #[error("corrupt data in the store: {what}; it is not answered from: restore the directory from a copy")]
    Corrupt {
        /// What was found.
        what: String,
    },
    /// The directory was written by a newer version.
    #[error("the store in {path} has format {found}, this ebla knows {known}: use a newer ebla")]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: String,
        /// The newest format that is understood.
        known: u32,
    },
    /// The engine failed; writes to this store are no longer to be trusted.
    #[error("the store failed to {tried}")]
    Engine {
        /// What was tried.
        tried: &'static str,
        /// What the engine said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }
}

/// One change at its timestamp.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    /// The table.
    pub table: TableId,
    /// The version's timestamp.
    pub ts: Hlc,
    /// What to put.
    pub change: &'a Change,
}

/// Names one version for ever.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum VersionName {
    /// A version of a row.
    Row {
        /// The table.
        table: TableId,
        /// The row.
        key: Bytes,
        /// When it was written.
        ts: Hlc,
    },
    /// A range tombstone.
    RangeTombstone {
        /// The table.
        table: TableId,
        /// First key that it covers.
        from: Bytes,
        /// When it was written.
        ts: Hlc,
    },
}

/// What a store says about itself, for admission control and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreHealth {
    /// Writes are stopped until compaction catches up.
    pub is_stopped: bool,
    /// Bytes per second to which writes are slowed down; 0: not at all.
    pub slowed_to_bytes_per_s: u64,
    /// Bytes that compactions have yet to rewrite.
    pub compaction_pending_bytes: u64,
    /// Flushes and compactions that failed since the store was opened. Above 0 the store
    /// takes no more writes.
    pub background_errors: u64,
    /// Bytes in memory that a crash would lose (and the log give back).
    pub memtable_bytes: u64,
}

/// A walk over the stored keys of one range, on one snapshot.
///
/// Stored keys are those of `kernel::key`: the versions of a row stand together, newest
/// first. A cursor begins nowhere: seek first.
pub trait Cursor {
    /// Goes to the first stored key at or after `stored`.
    fn seek(&mut self, stored: &[u8]);
    /// Goes to the last stored key at or before `stored`.
    fn seek_back(&mut self, stored: &[u8]);
    /// Goes to the first stored key of the range.
    fn seek_first(&mut self);
    /// Goes to the last stored key of the range.
    fn seek_last(&mut self);
    /// Goes one stored key forward; only from a stored key.
    fn step(&mut self);
    /// Goes one stored key back; only from a stored key.
    fn step_back(&mut self);
    /// The stored key here; none past either end of the range.
    ///
    /// # Errors
    /// `Corrupt` or `Engine` when the last move failed.
    fn stored_key(&self) -> Result<Option<&[u8]>, StoreError>;
    /// The stored value here; empty where there is no stored key.
    fn stored_value(&self) -> &[u8];
    /// The stored value here, to keep.
    fn stored_value_owned(&self) -> Bytes;
}

/// Versions on their way in: a whole range, as another server has it.
///
/// Nothing is seen of them before [`Self::install`]. What does not belong to the range, or does
/// not rise, is refused: it would be a neighbour's.
pub trait Incoming: Send {
    /// Adds a version, which must be above all before it.
    ///
    /// # Errors
    /// `Corrupt` for what is no version of the range, `Engine`.
    fn add(&mut self, stored_key: &[u8], stored_value: &[u8]) -> Result<(), StoreError>;

    /// Clears the range, then puts in what was added and `tombstones`; durable on return. In
    /// this order: clear, **flush**, ingest, range tombstones, **flush**. Files that are put in
    /// are durable at once and would otherwise be overtaken by the clearing.
    ///
    /// # Errors
    /// `Engine`: the range holds garbage; begin again.
    fn install(self: Box<Self>, tombstones: &[RangeTombstone]) -> Result<(), StoreError>;
}

/// What makes sure that versions on their way in belong to their range and rise.
struct Rising {
    table: TableId,
    range: KeyRange,
    last: Vec<u8>,
}

impl Rising {
    fn new(table: TableId, range: &KeyRange) -> Self {
        Self { table, range: range.clone(), last: Vec::new() }
    }

    fn check(&mut self, stored_key: &[u8], stored_value: &[u8]) -> Result<(), StoreError> {
        let is_ours = match key::decode(stored_key) {
            Ok(StoredKey::Row { table, key, .. }) => table == self.table && self.range.contains(&key),
            Ok(StoredKey::RangeTombstone { .. }) | Err(MalformedKey) => false,
        };
        if !is_ours {
            let what = format!("a version that is none of the range: {}", stored_key.escape_ascii());
            return Err(StoreError::corrupt(what));
        }
        if stored_key <= &self.last[..] {
            return Err(StoreError::corrupt("versions that do not rise"));
        }
        value::Head::read(stored_value)?;
        self.last.clear();
        self.last.extend_from_slice(stored_key);
        Ok(())
    }
}

/// Versions of rows under the order of `kernel::key`.
pub trait Store: Send + Sync {
    /// The newest stored version of `key` with a timestamp up to `at`, tombstones included.
    /// Range tombstones are not looked at.
    ///
    /// # Errors
    /// `Corrupt` or `Engine`.
    fn get(&self, table: TableId, key: &[u8], at: Hlc) -> Result<Option<Version>, StoreError>;

    /// Puts exact versions, all or none. Putting a version again changes nothing.
    ///
    /// # Errors
    /// `Engine`: nothing can be said about what was put; the store is not to be written again.
    fn apply(&self, changes: &[Applied<'_>]) -> Result<(), StoreError>;

    /// Removes exact versions, all or none; absent ones are none.
    ///
    /// A version above the garbage floor of its table must not be removed while that floor
    /// may still pass it: see [`gc`].
    ///
    /// # Errors
    /// As `apply`.
    fn remove(&self, versions: &[VersionName]) -> Result<(), StoreError>;

    /// A cursor over all versions of the rows in `range`, on a snapshot of now.
    ///
    /// # Errors
    /// `Engine`.
    fn cursor(&self, table: TableId, range: &KeyRange) -> Result<Box<dyn Cursor + '_>, StoreError>;

    /// As [`Self::cursor`], for a long walk that nobody repeats: what it reads takes no room in
    /// caches.
    ///
    /// # Errors
    /// `Engine`.
    fn cold_cursor(&self, table: TableId, range: &KeyRange) -> Result<Box<dyn Cursor + '_>, StoreError> {
        self.cursor(table, range)
    }

    /// The range tombstones of `table` that overlap `range`, whole, not clamped, in any order.
    ///
    /// # Errors
    /// `Corrupt` or `Engine`.
    fn load_range_tombstones(
        &self,
        table: TableId,
        range: &KeyRange,
    ) -> Result<Vec<RangeTombstone>, StoreError>;

    /// Makes everything durable that was applied or removed before the call.
    ///
    /// # Errors
    /// `Engine`: nothing more may be taken for durable.
    fn flush(&self) -> Result<(), StoreError>;

    /// Removes every version and every range tombstone that begins in `range`, and makes
    /// that durable before it returns. No replica here may hold a key of the range.
    ///
    /// # Errors
    /// `Engine`: the range holds garbage; call again.
    fn clear_range(&self, table: TableId, range: &KeyRange) -> Result<(), StoreError>;

    /// Begins to take in a whole range of another server's versions. Files that are needed
    /// before [`Incoming::install`] go to `dir`, which exists and is empty.
    ///
    /// # Errors
    /// `Engine`.
    fn take_in(
        &self,
        table: TableId,
        range: &KeyRange,
        dir: &Path,
    ) -> Result<Box<dyn Incoming + '_>, StoreError>;

    /// Works the rows of `range` through: what was removed from it is gone from the files, and
    /// what the floors allow with it. Slow; for after an undo, see [`gc`].
    fn compact(&self, table: TableId, range: &KeyRange);

    /// Bytes that the rows of `range` take in files (in memory: at all); an estimate. On disk
    /// the engine does not tell what of its memtable belongs to a range: a caller that wants
    /// unflushed rows included adds what it has applied since the last flush.
    fn approximate_bytes(&self, table: TableId, range: &KeyRange) -> u64;

    /// How the store fares.
    fn health(&self) -> StoreHealth;
}

impl VersionName {
    fn stored_key(&self) -> Vec<u8> {
        match self {
            Self::Row { table, key, ts } => key::encode_row(*table, key, *ts),
            Self::RangeTombstone { table, from, ts } => key::encode_range_tombstone(*table, from, *ts),
        }
    }
}

/// The row's prefix and the timestamp of a stored key.
pub(crate) fn split_stored(stored: &[u8]) -> Result<(&[u8], Hlc), StoreError> {
    key::split_ts(stored).map_err(|_| malformed_key(stored))
}

/// The user's key of a stored key of a row.
pub(crate) fn user_key(stored: &[u8]) -> Result<Bytes, StoreError> {
    match key::decode(stored) {
        Ok(StoredKey::Row { key, .. }) => Ok(key.into()),
        Ok(StoredKey::RangeTombstone { .. }) | Err(MalformedKey) => Err(malformed_key(stored)),
    }
}

fn read_range_tombstone(stored_key: &[u8], stored_value: &[u8]) -> Result<RangeTombstone, StoreError> {
    let Ok(StoredKey::RangeTombstone { from, ts, .. }) = key::decode(stored_key) else {
        return Err(malformed_key(stored_key));
    };
    let to = value::decode_upper_end(stored_value)?;
    let range = KeyRange::new(from.into(), to);
    let range = range.map_err(|_| StoreError::corrupt("range tombstone whose end is not above its start"))?;
    Ok(RangeTombstone { range, ts })
}

/// The stored keys, as `[from, to)`, of the range tombstones of `table` that begin in `range`.
fn range_tombstone_bounds(table: TableId, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    // After the table's id the order is that of the rows: borrow their bounds.
    let tag = key::range_tombstones_of(table);
    let (from, to) = key::row_bounds(table, range);
    let system = &tag[..tag.len() - table.0.to_be_bytes().len()];
    ([system, &from].concat(), [system, &to].concat())
}

fn malformed_key(stored: &[u8]) -> StoreError {
    StoreError::corrupt(format!("malformed stored key {}", stored.escape_ascii()))
}

/// The stored key of the row `prefix` at `ts`.
fn with_ts(prefix: &[u8], ts: Hlc) -> Vec<u8> {
    [prefix, &(!ts.0).to_be_bytes()].concat()
}

/// Above every stored key of the row `prefix`, below those of every later row.
fn after_row(prefix: &[u8]) -> Vec<u8> {
    let mut above = Vec::with_capacity(prefix.len() + key::TS_BYTES + 1);
    above.extend_from_slice(prefix);
    above.resize(prefix.len() + key::TS_BYTES, 0xFF);
    above.push(0);
    above
}

/// The timestamp of the version where `cursor` is, if it is one of the row `prefix`.
fn ts_of(cursor: &dyn Cursor, prefix: &[u8]) -> Result<Option<Hlc>, StoreError> {
    let Some(stored) = cursor.stored_key()? else { return Ok(None) };
    let (own, ts) = split_stored(stored)?;
    Ok((own == prefix).then_some(ts))
}
