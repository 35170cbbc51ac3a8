//! Which entries of a log may be shown.
//!
//! ```text
//!   shown │ looked through for reverts, to be shown │ not looked at │ not safe
//!         next                                   horizon          safe
//! ```
//!
//! The horizon is always at or below a published Q, and only reverts up to that can name entries up
//! to it. So whoever has looked through all entries up to the horizon knows which of them are void.
//!
//! The beginning of an epoch is shown together with what follows it. Behind the seal of a tablet
//! that is split or merged nothing but beginnings follows, and its children go on from the seal:
//! a watch that had gone further would come to them with a place that they do not have.

use crate::entry::{Entry, Payload};
use crate::ids::Seq;
use crate::mutated;
use std::collections::BTreeSet;

/// Where a watch is in a log.
#[derive(Clone, Debug)]
pub struct Window {
    next: Seq,
    horizon: Seq,
    /// The last entry that was looked at and is more than the beginning of an epoch.
    followed: Seq,
    reverted: BTreeSet<Seq>,
}

/// What becomes of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// It stands, for ever.
    Yes,
    /// It was taken back and never stood.
    Void,
    /// Nobody can say yet, or reads would not see it yet.
    NotYet,
}

impl Window {
    /// A watch that has seen everything up to `seen`.
    #[must_use]
    pub fn after(seen: Seq) -> Self {
        Self { next: seen.next(), horizon: seen, followed: seen, reverted: BTreeSet::new() }
    }

    /// Index of the first entry that is not shown yet.
    #[must_use]
    pub fn next(&self) -> Seq {
        self.next
    }

    /// How far entries are to be looked through before more can be shown, none while what was
    /// looked through is not used up. `safe` is a published Q.
    #[must_use]
    pub fn wants(&self, safe: Seq) -> Option<Seq> {
        (self.next > self.horizon && safe > self.horizon).then_some(safe)
    }

    /// Notes what `entry`, on the way to a new horizon, takes back.
    pub fn look(&mut self, entry: &Entry) {
        if !matches!(entry.payload, Payload::EpochStart { .. }) {
            self.followed = self.followed.max(entry.seq());
        }
        if mutated!(FeedShowsReverted) {
            return;
        }
        let targets = entry.reverts().iter().map(|target| target.pos.seq);
        self.reverted.extend(targets.filter(|seq| *seq >= self.next));
    }

    /// Every entry up to `safe` was looked through.
    pub fn looked(&mut self, safe: Seq) {
        self.horizon = self.horizon.max(safe.min(self.followed));
    }

    /// Takes the next entry, of a copy that is applied up to `applied`.
    pub fn show(&mut self, entry: &Entry, applied: Seq) -> Shown {
        let seq = entry.seq();
        let is_safe = seq <= self.horizon || mutated!(FeedAboveQ);
        if seq != self.next || !is_safe || seq > applied {
            return Shown::NotYet;
        }
        self.next = seq.next();
        if self.reverted.remove(&seq) { Shown::Void } else { Shown::Yes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{LogEnd, Payload, RevertTarget};
    use crate::ids::{Epoch, Incarnation, ReplicaId};

    fn log() -> Vec<Entry> {
        let first = LogEnd::default().follow(Epoch(1), crate::hlc::Hlc(1), Payload::Close);
        let second = first.end().follow(Epoch(1), crate::hlc::Hlc(2), Payload::Close);
        let (pos, ts) = (first.pos, first.ts);
        let target = RevertTarget { pos, ts, token: None, rows: Vec::new() };
        let third =
            second.end().follow(Epoch(1), crate::hlc::Hlc(3), Payload::Revert { targets: vec![target] });
        vec![first, second, third]
    }

    #[test]
    fn what_is_taken_back_is_never_shown() {
        let (log, mut window) = (log(), Window::after(Seq(0)));
        assert_eq!(window.show(&log[0], Seq(3)), Shown::NotYet);
        assert_eq!(window.wants(Seq(3)), Some(Seq(3)));
        log.iter().for_each(|entry| window.look(entry));
        window.looked(Seq(3));
        let shown: Vec<Shown> = log.iter().map(|entry| window.show(entry, Seq(3))).collect();
        assert_eq!(shown, [Shown::Void, Shown::Yes, Shown::Yes]);
        assert_eq!((window.wants(Seq(3)), window.next()), (None, Seq(4)));
    }

    #[test]
    fn the_beginning_of_an_epoch_is_shown_with_what_follows_it() {
        let (mut log, mut window) = (log(), Window::after(Seq(2)));
        let start = |end: LogEnd, epoch: u64| {
            let payload = Payload::EpochStart { replica: ReplicaId(1), incarnation: Incarnation(1) };
            end.follow(Epoch(epoch), end.ts.next(), payload)
        };
        log.push(start(log[2].end(), 2));
        let shown = |log: &[Entry], window: &mut Window| -> Vec<Shown> {
            let safe = log.last().map(Entry::seq).unwrap_or_default();
            assert_eq!(window.wants(safe), Some(safe));
            log[2..].iter().for_each(|entry| window.look(entry));
            window.looked(safe);
            let next = usize::try_from(window.next().0 - 1).unwrap();
            log[next..].iter().map(|entry| window.show(entry, safe)).collect()
        };
        assert_eq!(shown(&log, &mut window), [Shown::Yes, Shown::NotYet]);
        let end = log[3].end();
        log.push(start(end, 3));
        assert_eq!(shown(&log, &mut window), [Shown::NotYet, Shown::NotYet]);
        let end = log[4].end();
        log.push(end.follow(Epoch(3), end.ts.next(), Payload::Close));
        assert_eq!(shown(&log, &mut window), [Shown::Yes; 3]);
    }

    #[test]
    fn what_readers_do_not_see_yet_is_not_shown() {
        let (log, mut window) = (log(), Window::after(Seq(1)));
        window.look(&log[1]);
        window.looked(Seq(2));
        assert_eq!(window.show(&log[1], Seq(1)), Shown::NotYet);
        assert_eq!(window.show(&log[1], Seq(2)), Shown::Yes);
        assert_eq!(window.show(&log[2], Seq(9)), Shown::NotYet);
    }
}
