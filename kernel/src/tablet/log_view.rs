//! What a replica knows of its own log without holding it: its ends and its epochs.

use crate::entry::{Entry, LogEnd, Payload};
use crate::ids::{Epoch, Pos, Seq};
use std::collections::VecDeque;

/// The ends of a log and which epoch began where.
#[derive(Clone, Debug)]
pub(super) struct LogView {
    /// Oldest first; the list may begin later than the log did.
    epochs: Vec<(Epoch, Seq)>,
    end: LogEnd,
    durable: LogEnd,
    /// Ends of the entries that are appended and not durable yet.
    queued: VecDeque<LogEnd>,
}

impl LogView {
    /// A log that ends durably at `end`.
    pub(super) fn new(epochs: Vec<(Epoch, Seq)>, end: LogEnd) -> Self {
        Self { epochs, end, durable: end, queued: VecDeque::new() }
    }

    /// Where the next entry goes.
    pub(super) fn end(&self) -> LogEnd {
        self.end
    }

    /// The last durable entry.
    pub(super) fn durable(&self) -> LogEnd {
        self.durable
    }

    pub(super) fn epochs(&self) -> &[(Epoch, Seq)] {
        &self.epochs
    }

    /// Whether everything that was appended is durable.
    pub(super) fn is_durable(&self) -> bool {
        self.queued.is_empty()
    }

    /// The position of index `seq`; none outside of what is known.
    pub(super) fn pos_at(&self, seq: Seq) -> Option<Pos> {
        pos_in(&self.epochs, self.end.pos, seq)
    }

    pub(super) fn append(&mut self, entry: &Entry) {
        assert!(self.end.is_followed_by(entry), "an entry follows the end of its log");
        self.end = entry.end();
        self.queued.push_back(entry.end());
        if let Payload::EpochStart { .. } = entry.payload {
            self.epochs.push((entry.pos.epoch, entry.seq()));
        }
    }

    pub(super) fn persisted(&mut self, upto: Seq) {
        while let Some(end) = self.queued.front().copied().filter(|end| end.pos.seq <= upto) {
            self.queued.pop_front();
            self.durable = end;
        }
    }

    /// Takes out entries from `from` on that were never written.
    pub(super) fn refuse(&mut self, from: Seq) {
        self.queued.retain(|end| end.pos.seq < from);
        self.end = self.queued.back().copied().unwrap_or(self.durable);
        self.epochs.retain(|(_, start)| *start < from);
    }

    /// The log was cut: it ends at `end`, durably.
    pub(super) fn cut(&mut self, end: LogEnd) {
        self.queued.clear();
        (self.end, self.durable) = (end, end);
        self.epochs.retain(|(_, start)| *start <= end.pos.seq);
    }
}

/// The position of index `seq` in a log that ends at `end` and whose epochs began as listed.
pub(super) fn pos_in(epochs: &[(Epoch, Seq)], end: Pos, seq: Seq) -> Option<Pos> {
    if seq == Seq(0) {
        return Some(Pos::ZERO);
    }
    if seq > end.seq {
        return None;
    }
    let begun = epochs.partition_point(|(_, start)| *start <= seq);
    let (epoch, _) = epochs.get(begun.checked_sub(1)?)?;
    Some(Pos::new(*epoch, seq))
}

/// The last index up to which two logs are the same (KIP-101, KIP-279): the end of the latest
/// epoch that both have, in whichever of them it ends first. None when the lists reach back
/// to nothing in common.
pub(super) fn agreed(ours: (&[(Epoch, Seq)], Pos), theirs: (&[(Epoch, Seq)], Pos)) -> Option<Seq> {
    let end_of = |(epochs, end): (&[(Epoch, Seq)], Pos), at: usize| {
        epochs.get(at + 1).map_or(end.seq, |(_, next)| Seq(next.0.saturating_sub(1)))
    };
    for (at, begun) in theirs.0.iter().enumerate().rev() {
        if let Some(own) = ours.0.iter().position(|known| known == begun) {
            return Some(end_of(ours, own).min(end_of(theirs, at)));
        }
    }
    let from_the_start = |(epochs, end): (&[(Epoch, Seq)], Pos)| {
        end.seq == Seq(0) || epochs.first().is_some_and(|(_, first)| *first == Seq(1))
    };
    (from_the_start(ours) && from_the_start(theirs)).then_some(Seq(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(epochs: &[(u64, u64)]) -> Vec<(Epoch, Seq)> {
        epochs.iter().map(|(epoch, seq)| (Epoch(*epoch), Seq(*seq))).collect()
    }

    fn agree(
        ours: &[(u64, u64)],
        own_end: (u64, u64),
        theirs: &[(u64, u64)],
        end: (u64, u64),
    ) -> Option<u64> {
        let pos = |(epoch, seq): (u64, u64)| Pos::new(Epoch(epoch), Seq(seq));
        agreed((&list(ours), pos(own_end)), (&list(theirs), pos(end))).map(|seq| seq.0)
    }

    #[test]
    fn logs_agree_up_to_the_shorter_end_of_their_latest_common_epoch() {
        let ours = [(1, 1), (3, 5)];
        assert_eq!(agree(&ours, (3, 9), &[(1, 1)], (1, 7)), Some(4));
        assert_eq!(agree(&ours, (3, 9), &[(1, 1)], (1, 2)), Some(2));
        assert_eq!(agree(&ours, (3, 9), &[(1, 1), (2, 3)], (2, 8)), Some(2));
        assert_eq!(agree(&ours, (3, 9), &[(1, 1), (3, 5)], (3, 6)), Some(6));
        assert_eq!(agree(&ours, (3, 9), &[], (0, 0)), Some(0));
        assert_eq!(agree(&ours, (3, 9), &[(2, 1)], (2, 4)), Some(0));
    }

    #[test]
    fn lists_without_a_beginning_may_have_nothing_in_common() {
        assert_eq!(agree(&[(5, 50)], (5, 60), &[(4, 40)], (4, 45)), None);
        assert_eq!(agree(&[(5, 50)], (5, 60), &[], (0, 0)), None);
        assert_eq!(agree(&[(5, 50)], (5, 60), &[(3, 30), (5, 50)], (5, 55)), Some(55));
    }

    #[test]
    fn positions_follow_from_the_list() {
        let epochs = list(&[(2, 3), (5, 7)]);
        let end = Pos::new(Epoch(5), Seq(9));
        let at = |seq| pos_in(&epochs, end, Seq(seq));
        assert_eq!(at(0), Some(Pos::ZERO));
        assert_eq!(at(2), None);
        assert_eq!(at(6), Some(Pos::new(Epoch(2), Seq(6))));
        assert_eq!(at(9), Some(end));
        assert_eq!(at(10), None);
    }
}
