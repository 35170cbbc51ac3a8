//! Where a watch goes on that comes with a position.

use super::token::Place;
use crate::ancestry::{Ancestry, Seen};
use crate::entry::LogEnd;
use crate::hlc::Hlc;
use crate::ids::{Epoch, Lineage, Pos, Seq};
use crate::mutated;

/// What the copy that is asked knows of its tablet's history.
#[derive(Clone, Debug)]
pub struct History<'a> {
    /// What it goes back to.
    pub ancestry: Ancestry,
    /// The end of the parents' logs that its log goes on from.
    pub base: LogEnd,
    /// Which epoch began where, oldest first; may begin later than the log did.
    pub epochs: &'a [(Epoch, Seq)],
    /// Everything up to here is at or below a published Q.
    pub safe: Seq,
    /// The first entry that the log still has; none when it has none.
    pub first: Option<FirstEntry>,
}

/// The first entry that a log still has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstEntry {
    /// Its index.
    pub seq: Seq,
    /// Its timestamp.
    pub ts: Hlc,
}

/// How a watch begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// With the log, after this index.
    Log(Seq),
    /// With the log, after the last entry up to this time.
    LogSince(Hlc),
    /// With the versions above this time, then with the log: that does not reach back so far.
    Versions(Hlc),
    /// With the rows as of this time; zero for now.
    Rows(Hlc),
    /// With a break, then the rows: what the watcher saw is no part of this history.
    Lost(LostWhy),
    /// Later: this leader does not know yet that the position is safe.
    Wait,
}

/// Why a position means nothing here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LostWhy {
    /// A failover cut the entry off.
    CutOff,
    /// The tablet's history began anew: all copies of a table in memory were lost.
    BeganAnew,
}

impl LostWhy {
    /// The word for programs and people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CutOff => "position lost in a failover",
            Self::BeganAnew => "history began anew",
        }
    }
}

impl History<'_> {
    /// How a watch goes on that has seen everything up to `place`.
    #[must_use]
    pub fn start(&self, place: &Place) -> Start {
        match place {
            Place::Entry { lineage, pos, ts } => self.start_after(*lineage, *pos, *ts),
            Place::Time(ts) if !self.ancestry.reaches(*ts) && !mutated!(ResumeUnchecked) => {
                Start::Lost(LostWhy::BeganAnew)
            }
            Place::Time(ts) => self.start_since(*ts),
            Place::Rows(at) => Start::Rows(*at),
        }
    }

    fn start_after(&self, lineage: Lineage, pos: Pos, ts: Hlc) -> Start {
        match self.ancestry.judge(lineage, ts) {
            Seen::Here => {}
            Seen::InAncestor => return self.start_since(ts),
            Seen::Elsewhere => return Start::Lost(LostWhy::BeganAnew),
        }
        let pos = if self.is_behind_seal(pos) { self.base.pos } else { pos };
        match self.epoch_at(pos.seq) {
            Some(epoch) if epoch != pos.epoch && !mutated!(ResumeUnchecked) => {
                return Start::Lost(LostWhy::CutOff);
            }
            // Older than the list reaches, which is as old as the log: its time says enough.
            None if pos.seq > Seq(0) && pos != self.base.pos => return self.start_since(ts),
            Some(_) | None => {}
        }
        if pos.seq > self.safe {
            return Start::Wait;
        }
        if self.has_log_after(pos.seq) { Start::Log(pos.seq) } else { self.start_since(ts) }
    }

    /// Whether a position of a parent lies behind the seal that this tablet's log goes on from.
    /// Only epochs begin there, and theirs lie between the seal's and the first one here: whoever
    /// has seen them has seen everything up to the seal and nothing else.
    fn is_behind_seal(&self, pos: Pos) -> bool {
        let base = self.base.pos;
        let own = self.epochs.iter().find(|(_, first)| *first > base.seq);
        let is_before_own = own.is_none_or(|(epoch, _)| pos.epoch < *epoch);
        base > Pos::ZERO && pos.seq > base.seq && pos.epoch >= base.epoch && is_before_own
    }

    fn start_since(&self, ts: Hlc) -> Start {
        let is_whole = self.begins() == self.base.pos.seq.next() && self.base.ts <= ts;
        let reaches = self.first.is_some_and(|first| first.ts <= ts);
        if is_whole || reaches || mutated!(ChildFeedSkips) {
            Start::LogSince(ts)
        } else {
            Start::Versions(ts)
        }
    }

    /// Whether the log here has every entry after `seq`.
    fn has_log_after(&self, seq: Seq) -> bool {
        self.begins() <= seq.next() || mutated!(ChildFeedSkips)
    }

    /// Index of the first entry that the log has, or will have when everything was purged.
    fn begins(&self) -> Seq {
        self.first.map_or(self.base.pos.seq.max(self.safe).next(), |first| first.seq)
    }

    fn epoch_at(&self, seq: Seq) -> Option<Epoch> {
        let begun = self.epochs.partition_point(|(_, first)| *first <= seq);
        self.epochs.get(begun.checked_sub(1)?).map(|(epoch, _)| *epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCHS: &[(Epoch, Seq)] = &[(Epoch(1), Seq(1)), (Epoch(3), Seq(5))];

    const OURS: Ancestry = Ancestry { lineage: Lineage(7), joined_ts: Hlc(0), began_ts: Hlc(0) };

    fn history() -> History<'static> {
        History {
            ancestry: OURS,
            base: LogEnd::default(),
            epochs: EPOCHS,
            safe: Seq(9),
            first: Some(FirstEntry { seq: Seq(1), ts: Hlc(10) }),
        }
    }

    fn entry(lineage: u64, epoch: u64, seq: u64, ts: u64) -> Place {
        Place::Entry { lineage: Lineage(lineage), pos: Pos::new(Epoch(epoch), Seq(seq)), ts: Hlc(ts) }
    }

    #[test]
    fn a_position_of_this_history_goes_on_in_the_log() {
        assert_eq!(history().start(&entry(7, 1, 4, 40)), Start::Log(Seq(4)));
        assert_eq!(history().start(&entry(7, 3, 9, 90)), Start::Log(Seq(9)));
        assert_eq!(history().start(&entry(7, 3, 10, 100)), Start::Wait);
    }

    #[test]
    fn a_position_that_a_failover_cut_off_is_lost() {
        assert_eq!(history().start(&entry(7, 1, 5, 50)), Start::Lost(LostWhy::CutOff));
        assert_eq!(history().start(&entry(7, 2, 12, 120)), Start::Lost(LostWhy::CutOff));
    }

    #[test]
    fn another_history_counts_by_time_up_to_the_join() {
        let merged = History { ancestry: Ancestry { joined_ts: Hlc(45), ..OURS }, ..history() };
        assert_eq!(merged.start(&entry(6, 9, 99, 45)), Start::LogSince(Hlc(45)));
        assert_eq!(merged.start(&entry(6, 9, 99, 46)), Start::Lost(LostWhy::BeganAnew));
    }

    #[test]
    fn a_watch_that_has_seen_no_entry_is_told_of_a_new_beginning_too() {
        let anew = History { ancestry: Ancestry { began_ts: Hlc(45), ..OURS }, ..history() };
        assert_eq!(anew.start(&Place::Time(Hlc(44))), Start::Lost(LostWhy::BeganAnew));
        assert_eq!(anew.start(&Place::Time(Hlc(45))), Start::LogSince(Hlc(45)));
        assert_eq!(anew.start(&Place::Rows(Hlc(44))), Start::Rows(Hlc(44)));
    }

    #[test]
    fn versions_tell_what_the_log_no_longer_has() {
        let first = Some(FirstEntry { seq: Seq(6), ts: Hlc(60) });
        let purged = History { first, ..history() };
        assert_eq!(purged.start(&entry(7, 3, 5, 50)), Start::Log(Seq(5)));
        assert_eq!(purged.start(&entry(7, 1, 4, 40)), Start::Versions(Hlc(40)));
        assert_eq!(purged.start(&Place::Time(Hlc(60))), Start::LogSince(Hlc(60)));
        assert_eq!(purged.start(&Place::Time(Hlc(59))), Start::Versions(Hlc(59)));
    }

    #[test]
    fn a_log_that_was_purged_as_a_whole_has_nothing() {
        let purged = History { first: None, ..history() };
        assert_eq!(purged.start(&entry(7, 3, 9, 90)), Start::Log(Seq(9)));
        assert_eq!(purged.start(&entry(7, 3, 8, 80)), Start::Versions(Hlc(80)));
        assert_eq!(purged.start(&Place::Time(Hlc(200))), Start::Versions(Hlc(200)));
    }

    #[test]
    fn a_parents_epochs_behind_the_seal_are_no_loss() {
        let base = LogEnd { pos: Pos::new(Epoch(3), Seq(6)), hash: 1, ts: Hlc(60) };
        let epochs = &[(Epoch(1), Seq(1)), (Epoch(3), Seq(5)), (Epoch(6), Seq(7))];
        let first = Some(FirstEntry { seq: Seq(7), ts: Hlc(70) });
        let child = History { base, epochs, first, ..history() };
        assert_eq!(child.start(&entry(7, 4, 7, 70)), Start::Log(Seq(6)));
        assert_eq!(child.start(&entry(7, 5, 8, 80)), Start::Log(Seq(6)));
        assert_eq!(child.start(&entry(7, 2, 7, 70)), Start::Lost(LostWhy::CutOff));
        assert_eq!(child.start(&entry(7, 7, 9, 90)), Start::Lost(LostWhy::CutOff));
    }

    #[test]
    fn a_child_that_has_written_nothing_goes_on_from_its_base() {
        let base = LogEnd { pos: Pos::new(Epoch(3), Seq(9)), hash: 1, ts: Hlc(90) };
        let child = History { base, first: None, ..history() };
        assert_eq!(child.start(&entry(7, 3, 9, 90)), Start::Log(Seq(9)));
        assert_eq!(child.start(&entry(7, 3, 8, 80)), Start::Versions(Hlc(80)));
        assert_eq!(child.start(&Place::Time(Hlc(95))), Start::LogSince(Hlc(95)));
    }
}
