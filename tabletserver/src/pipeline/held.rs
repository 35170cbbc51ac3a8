//! What the apply stage holds of one tablet: entries that are durable and not applied yet.
//!
//! On a leader these are writes that wait for copies, with applied ones between and behind
//! them; on a follower it is everything above Q. Of entries that do not fit into memory only
//! their place is known; they are read again from the log.
//!
//! ```text
//!   applied │ held      │ applied at once │ held, not in memory │ ...  ▶ seen
//! ```

use super::Item;
use crate::oplog::Logged;
use ebla_kernel::entry::{Entry, LogEnd};
use ebla_kernel::ids::Seq;
use ebla_kernel::op::Change;
use ebla_kernel::tablet::ApplyWhen;
use std::collections::VecDeque;
use std::sync::Arc;

/// What an entry costs beside its rows, about.
const ENTRY_BYTES: usize = 256;

/// Entries of one tablet between the log and the store.
pub(super) struct Held {
    /// Everything up to here is applied.
    applied: LogEnd,
    /// The last durable entry that went by.
    seen: LogEnd,
    runs: VecDeque<Run>,
    bytes: usize,
}

/// Consecutive entries that are not applied.
struct Run {
    /// The entry before them.
    before: LogEnd,
    first: Seq,
    last: Seq,
    /// The entry, if it is one and in memory.
    logged: Option<Arc<Logged>>,
}

/// Entries to apply now.
pub(super) enum Window {
    /// All of them; some between them may be applied already.
    Here(Vec<Arc<Logged>>),
    /// They are to be read from the log, from this index on.
    InLog(Seq),
}

impl Held {
    /// A tablet of which everything up to `applied` is in the store, of a log that ends
    /// durably at `end`.
    pub(super) fn new(applied: LogEnd, end: LogEnd) -> Self {
        let mut runs = VecDeque::new();
        if end.pos.seq > applied.pos.seq {
            let first = applied.pos.seq.next();
            runs.push_back(Run { before: applied, first, last: end.pos.seq, logged: None });
        }
        Self { applied, seen: end, runs, bytes: 0 }
    }

    /// Everything up to here is applied.
    pub(super) fn applied(&self) -> LogEnd {
        self.applied
    }

    /// The last entry that came by.
    pub(super) fn seen(&self) -> Seq {
        self.seen.pos.seq
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes durable entries; gives those that are to be applied at once. The bounds move
    /// with [`Self::done`].
    pub(super) fn take<'a>(&mut self, items: &'a [Item]) -> Vec<&'a Arc<Logged>> {
        let mut now = Vec::new();
        for Item { logged, when } in items {
            // An order may have overtaken its group and read the entries from the log.
            if logged.entry.seq() <= self.seen.pos.seq {
                continue;
            }
            match when {
                ApplyWhen::Durable => now.push(logged),
                ApplyWhen::Safe => self.hold(logged),
            }
            self.seen = logged.entry.end();
        }
        now
    }

    fn hold(&mut self, logged: &Arc<Logged>) {
        let seq = logged.entry.seq();
        if let Some(run) = self.runs.back_mut().filter(|run| run.logged.is_none() && run.last.next() == seq) {
            run.last = seq;
            return;
        }
        self.bytes += bytes_of(&logged.entry);
        let (before, logged) = (self.seen, Some(Arc::clone(logged)));
        self.runs.push_back(Run { before, first: seq, last: seq, logged });
    }

    /// Forgets everything but the places.
    pub(super) fn spill(&mut self) {
        self.bytes = 0;
        let mut runs: VecDeque<Run> = VecDeque::new();
        for run in self.runs.drain(..) {
            match runs.back_mut().filter(|last| last.last.next() == run.first) {
                Some(last) => last.last = run.last,
                None => runs.push_back(Run { logged: None, ..run }),
            }
        }
        self.runs = runs;
    }

    /// The entries up to `upto` that are not applied.
    pub(super) fn window(&mut self, upto: Seq) -> Window {
        let mut here = Vec::new();
        let is_seen = upto <= self.seen.pos.seq;
        for run in self.runs.iter().take_while(|run| run.first <= upto) {
            match &run.logged {
                Some(logged) if is_seen => here.push(Arc::clone(logged)),
                Some(_) | None => return Window::InLog(self.applied.pos.seq.next()),
            }
        }
        if is_seen { Window::Here(here) } else { Window::InLog(self.applied.pos.seq.next()) }
    }

    /// Everything up to `end` is applied now.
    pub(super) fn settled(&mut self, end: LogEnd) {
        while let Some(run) = self.runs.front_mut().filter(|run| run.first <= end.pos.seq) {
            if run.last > end.pos.seq {
                (run.before, run.first) = (end, end.pos.seq.next());
                break;
            }
            let bytes = run.logged.as_ref().map_or(0, |logged| bytes_of(&logged.entry));
            self.bytes -= bytes;
            self.runs.pop_front();
        }
        if end.pos.seq > self.seen.pos.seq {
            self.seen = end;
        }
        if end.pos.seq > self.applied.pos.seq {
            self.applied = end;
        }
        self.done();
    }

    /// What was to be applied at once is in the store.
    pub(super) fn done(&mut self) {
        let upto = self.runs.front().map_or(self.seen, |first| first.before);
        if upto.pos.seq > self.applied.pos.seq {
            self.applied = upto;
        }
    }
}

fn bytes_of(entry: &Entry) -> usize {
    ENTRY_BYTES + entry.changes().iter().map(Change::bytes).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::entry::Payload;
    use ebla_kernel::ids::Epoch;

    /// A log of `count` entries.
    fn log(count: u64) -> Vec<Arc<Logged>> {
        let mut end = LogEnd::default();
        let mut next = || {
            let entry = end.follow(Epoch(1), end.ts.next(), Payload::Close);
            end = entry.end();
            Arc::new(entry.into())
        };
        (0..count).map(|_| next()).collect()
    }

    /// `S` waits to be safe, `D` is applied when durable.
    fn items(log: &[Arc<Logged>], pattern: &str) -> Vec<Item> {
        let when = |letter| if letter == 'S' { ApplyWhen::Safe } else { ApplyWhen::Durable };
        let letters = pattern.chars().map(when);
        log.iter().zip(letters).map(|(logged, when)| Item { logged: Arc::clone(logged), when }).collect()
    }

    fn here(held: &mut Held, upto: u64) -> Option<Vec<u64>> {
        match held.window(Seq(upto)) {
            Window::Here(entries) => Some(entries.iter().map(|logged| logged.entry.seq().0).collect()),
            Window::InLog(_) => None,
        }
    }

    #[test]
    fn what_is_applied_reaches_to_the_first_that_is_held() {
        let log = log(6);
        let mut held = Held::new(LogEnd::default(), LogEnd::default());
        let items = items(&log, "DSDSDD");
        let now: Vec<u64> = held.take(&items).iter().map(|logged| logged.entry.seq().0).collect();
        held.done();
        assert_eq!(now, [1, 3, 5, 6]);
        assert_eq!(held.applied(), log[0].entry.end());
        assert_eq!(here(&mut held, 3), Some(vec![2]));
        held.settled(log[2].entry.end());
        assert_eq!(held.applied(), log[2].entry.end());
        assert_eq!(here(&mut held, 4), Some(vec![4]));
        held.settled(log[3].entry.end());
        assert_eq!(held.applied(), log[5].entry.end());
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn what_was_spilled_is_in_the_log() {
        let log = log(6);
        let mut held = Held::new(LogEnd::default(), LogEnd::default());
        held.take(&items(&log[..4], "DSSD"));
        held.done();
        held.spill();
        assert_eq!(held.bytes(), 0);
        assert!(matches!(held.window(Seq(2)), Window::InLog(Seq(2))));
        held.settled(log[1].entry.end());
        assert_eq!(held.applied(), log[1].entry.end());
        held.settled(log[2].entry.end());
        assert_eq!(held.applied(), log[3].entry.end());
        held.take(&items(&log[4..], "SS"));
        assert_eq!(here(&mut held, 6), Some(vec![5, 6]));
    }

    #[test]
    fn an_order_may_overtake_its_group() {
        let log = log(3);
        let mut held = Held::new(LogEnd::default(), log[0].entry.end());
        assert!(matches!(held.window(Seq(3)), Window::InLog(Seq(1))));
        held.settled(log[2].entry.end());
        assert!(held.take(&items(&log[1..], "SD")).is_empty());
        assert_eq!(held.applied(), log[2].entry.end());
    }
}
