//! The log of the tablets that live in memory: as long as the process, and not longer.
//!
//! Entries are kept as the pipeline made them, encoded for other copies or not. "Durable" is
//! what is here; nothing waits for a disk. It is purged like the log on disk, only sooner:
//! see [`crate::limits::MEMORY_LOG_BYTES_MAX`].

use super::{Append, Logged, OplogError, Tail};
use ebla_kernel::entry::Entry;
use ebla_kernel::ids::{Seq, TabletId};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// What an entry takes beside its changes: the record, its places in queues, its token.
const ENTRY_BYTES: u64 = 256;

/// The log of one tablet: consecutive entries.
#[derive(Default)]
struct TabletLog {
    entries: Mutex<VecDeque<Arc<Logged>>>,
}

/// The logs of all tablets in memory.
#[derive(Default)]
pub struct MemoryLog {
    tablets: RwLock<HashMap<TabletId, Arc<TabletLog>>>,
    bytes: AtomicU64,
}

impl MemoryLog {
    /// Keeps the log of `tablet` here from now on.
    pub fn add(&self, tablet: TabletId) {
        self.tablets.write().unwrap_or_else(PoisonError::into_inner).entry(tablet).or_default();
    }

    /// Whether the log of `tablet` is here.
    pub fn has(&self, tablet: TabletId) -> bool {
        self.tablets.read().unwrap_or_else(PoisonError::into_inner).contains_key(&tablet)
    }

    fn log(&self, tablet: TabletId) -> Option<Arc<TabletLog>> {
        self.tablets.read().unwrap_or_else(PoisonError::into_inner).get(&tablet).cloned()
    }

    /// Bytes of all entries, about.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// First and last sequence number of a tablet; none when it has no entries.
    pub fn bounds(&self, tablet: TabletId) -> Option<(Seq, Seq)> {
        let log = self.log(tablet)?;
        let entries = log.lock();
        Some((entries.front()?.entry.seq(), entries.back()?.entry.seq()))
    }

    /// Puts checked entries behind those that are there, or in the place of a tail.
    pub fn append(&self, append: &Append<'_>) {
        let (Some(log), Some(first)) = (self.log(append.tablet), append.entries.first()) else { return };
        let mut entries = log.lock();
        if append.tail == Tail::Cut {
            self.cut(&mut entries, first.entry.seq());
        }
        for logged in &append.entries {
            self.bytes.fetch_add(size(&logged.entry), Ordering::Relaxed);
            entries.push_back(Arc::clone(logged));
        }
    }

    /// The entries from `from` on, up to about `bytes_max` and at least one.
    ///
    /// # Errors
    /// `Purged` when `from` is gone.
    pub fn read(&self, tablet: TabletId, from: Seq, bytes_max: usize) -> Result<Vec<Entry>, OplogError> {
        let Some(log) = self.log(tablet) else { return Ok(Vec::new()) };
        let entries = log.lock();
        let Some(first) = entries.front().map(|first| first.entry.seq()) else { return Ok(Vec::new()) };
        if from < first {
            return Err(OplogError::Purged { tablet, from, first });
        }
        let skipped = usize::try_from(from.0 - first.0).unwrap_or(usize::MAX);
        let (mut bytes, mut read) = (0, Vec::new());
        for logged in entries.iter().skip(skipped) {
            bytes += size(&logged.entry);
            if !read.is_empty() && bytes > bytes_max as u64 {
                break;
            }
            read.push(logged.entry.clone());
        }
        Ok(read)
    }

    /// Cuts the log of a tablet after `keep`.
    pub fn cut_after(&self, tablet: TabletId, keep: Seq) {
        if let Some(log) = self.log(tablet) {
            self.cut(&mut log.lock(), keep.next());
        }
    }

    /// Forgets the entries of a tablet below `keep_from`.
    pub fn compact_to(&self, tablet: TabletId, keep_from: Seq) {
        let Some(log) = self.log(tablet) else { return };
        let mut entries = log.lock();
        while entries.front().is_some_and(|first| first.entry.seq() < keep_from) {
            self.forget(entries.pop_front());
        }
        if entries.len() < entries.capacity() / 4 {
            entries.shrink_to_fit();
        }
    }

    /// Forgets everything about a tablet but that it lives here.
    pub fn clear(&self, tablet: TabletId) {
        self.cut_after(tablet, Seq(0));
    }

    /// Forgets a tablet.
    pub fn remove(&self, tablet: TabletId) {
        self.clear(tablet);
        self.tablets.write().unwrap_or_else(PoisonError::into_inner).remove(&tablet);
    }

    fn cut(&self, entries: &mut VecDeque<Arc<Logged>>, from: Seq) {
        while entries.back().is_some_and(|last| last.entry.seq() >= from) {
            self.forget(entries.pop_back());
        }
    }

    fn forget(&self, logged: Option<Arc<Logged>>) {
        if let Some(logged) = logged {
            self.bytes.fetch_sub(size(&logged.entry), Ordering::Relaxed);
        }
    }
}

impl TabletLog {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Logged>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(entry: &Entry) -> u64 {
    let changes = entry.changes().iter().map(|change| change.bytes() as u64);
    ENTRY_BYTES + changes.sum::<u64>()
}
