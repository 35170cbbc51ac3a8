//! The latest entries of a tablet in memory: other copies are sent them before they are
//! durable here, and lagging ones without a look at the disk.
//!
//! Entries that are not durable always stay; durable ones as long as there is room, and no
//! longer than a second after the tablet was last written. Nothing is kept of tablets with
//! one copy.

use crate::limits::{TAIL_BYTES_MAX, TAIL_BYTES_PER_TABLET};
use crate::oplog::Logged;
use ebla_kernel::ids::Seq;
use ebla_kernel::op::Change;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of all tails of the process.
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// What an entry costs beside its rows, about.
const ENTRY_BYTES: usize = 256;

/// Consecutive entries up to the end of a tablet's log.
#[derive(Default)]
pub struct Tail {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: VecDeque<Arc<Logged>>,
    durable: Seq,
    bytes: usize,
    was_touched: bool,
}

impl Tail {
    /// Adds an entry behind the others; one that does not follow them begins a new tail.
    pub fn push(&self, entry: Arc<Logged>) {
        let mut kept = self.lock();
        if kept.entries.back().is_some_and(|last| last.entry.seq().next() != entry.entry.seq()) {
            kept.cut_from(Seq(0));
        }
        kept.was_touched = true;
        kept.add(bytes_of(&entry));
        kept.entries.push_back(entry);
    }

    /// Notes that entries up to `upto` are durable, and makes room.
    pub fn durable(&self, upto: Seq) {
        let mut kept = self.lock();
        kept.durable = kept.durable.max(upto);
        let is_full = BYTES.load(Ordering::Relaxed) > TAIL_BYTES_MAX;
        kept.shrink(if is_full { 0 } else { TAIL_BYTES_PER_TABLET });
    }

    /// Drops entries from `from` on: they were never written, or were cut.
    pub fn cut_from(&self, from: Seq) {
        self.lock().cut_from(from);
    }

    /// Drops durable entries unless there were new ones since the last call. Whether any
    /// entry is left.
    pub fn sweep(&self) -> bool {
        let mut kept = self.lock();
        if !std::mem::take(&mut kept.was_touched) {
            kept.shrink(0);
        }
        !kept.entries.is_empty()
    }

    /// Entries from `from` to `upto`, as many as fit `bytes_max` and at least one; none when
    /// the first of them is not here.
    #[must_use]
    pub fn take(&self, from: Seq, upto: Seq, bytes_max: usize) -> Option<Vec<Arc<Logged>>> {
        let kept = self.lock();
        let first = kept.entries.front()?.entry.seq();
        let skip = usize::try_from(from.0.checked_sub(first.0)?).ok()?;
        let mut bytes = 0;
        let mut taken = Vec::new();
        for entry in kept.entries.iter().skip(skip).take_while(|entry| entry.entry.seq() <= upto) {
            bytes += bytes_of(entry);
            if bytes > bytes_max && !taken.is_empty() {
                break;
            }
            taken.push(Arc::clone(entry));
        }
        (!taken.is_empty()).then_some(taken)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.lock().cut_from(Seq(0));
    }
}

impl Kept {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        BYTES.fetch_add(bytes, Ordering::Relaxed);
    }

    fn took(&mut self, entry: &Logged) {
        let bytes = bytes_of(entry);
        self.bytes -= bytes;
        BYTES.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn cut_from(&mut self, from: Seq) {
        while let Some(last) = self.entries.pop_back_if(|last| last.entry.seq() >= from) {
            self.took(&last);
        }
        self.durable = self.durable.min(Seq(from.0.saturating_sub(1)));
    }

    /// Drops durable entries, oldest first, while there are more than `bytes_max`.
    fn shrink(&mut self, bytes_max: usize) {
        let durable = self.durable;
        while self.bytes > bytes_max {
            let Some(first) = self.entries.pop_front_if(|first| first.entry.seq() <= durable) else { return };
            self.took(&first);
        }
    }
}

fn bytes_of(logged: &Logged) -> usize {
    ENTRY_BYTES + logged.entry.changes().iter().map(Change::bytes).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use ebla_kernel::entry::{LogEnd, Payload, WriteRecord};
    use ebla_kernel::ids::{Epoch, Pos};
    use ebla_kernel::op::{AckLevel, Body, OpResult};

    fn entry(seq: u64, bytes: usize) -> Arc<Logged> {
        let before = LogEnd { pos: Pos::new(Epoch(1), Seq(seq - 1)), ..LogEnd::default() };
        let body = Body::Value(Bytes::from(vec![7; bytes]));
        let change = Change::Put { key: Bytes::from_static(b"k"), body, expires_ms: None };
        let (changes, results) = (vec![change], vec![OpResult::Done]);
        let record = WriteRecord { token: None, level: AckLevel::Leader, changes, results };
        Arc::new(before.follow(Epoch(1), before.ts.next(), Payload::Write(record)).into())
    }

    fn seqs(tail: &Tail, from: u64, upto: u64, bytes_max: usize) -> Option<Vec<u64>> {
        let taken = tail.take(Seq(from), Seq(upto), bytes_max)?;
        Some(taken.iter().map(|logged| logged.entry.seq().0).collect())
    }

    #[test]
    fn what_is_not_durable_stays_and_the_rest_makes_room() {
        let tail = Tail::default();
        for seq in 3..=6 {
            tail.push(entry(seq, TAIL_BYTES_PER_TABLET));
        }
        assert_eq!(seqs(&tail, 3, 9, usize::MAX), Some(vec![3, 4, 5, 6]));
        tail.durable(Seq(4));
        assert_eq!(seqs(&tail, 4, 9, usize::MAX), None);
        assert_eq!(seqs(&tail, 5, 5, usize::MAX), Some(vec![5]));
        assert_eq!(seqs(&tail, 5, 9, 1), Some(vec![5]));
        assert_eq!(seqs(&tail, 7, 9, usize::MAX), None);
    }

    #[test]
    fn an_idle_tail_is_swept() {
        let tail = Tail::default();
        tail.push(entry(1, 10));
        tail.durable(Seq(1));
        assert!(tail.sweep());
        assert!(!tail.sweep());
        assert_eq!(seqs(&tail, 1, 1, 100), None);
    }

    #[test]
    fn what_was_cut_is_gone_and_may_be_written_anew() {
        let tail = Tail::default();
        for seq in 1..=4 {
            tail.push(entry(seq, 10));
        }
        tail.cut_from(Seq(3));
        assert_eq!(seqs(&tail, 1, 9, usize::MAX), Some(vec![1, 2]));
        tail.push(entry(3, 10));
        assert_eq!(seqs(&tail, 2, 9, usize::MAX), Some(vec![2, 3]));
        tail.push(entry(9, 10));
        assert_eq!(seqs(&tail, 3, 9, usize::MAX), None);
        assert_eq!(seqs(&tail, 9, 9, usize::MAX), Some(vec![9]));
    }
}
