//! Who has what: durable positions of the in-sync set, and the watermarks that follow.
//!
//! A leader counts its own copy only when durable, in every count (m33); copies outside of
//! the in-sync set never count (m3); Q counts entries of the leader's own epoch only (m13).

use crate::ids::{Epoch, Pos, ReplicaId, Seq};
use crate::mutated;
use crate::op::AckLevel;
use std::collections::BTreeMap;

/// Durable positions of the in-sync set in one epoch. A new leader starts with an empty one.
#[derive(Clone, Debug)]
pub struct Progress {
    epoch: Epoch,
    /// Every in-sync replica and its last durable position in the leader's log.
    durable: BTreeMap<ReplicaId, Pos>,
    /// Durability factor D.
    min_in_sync: usize,
}

impl Progress {
    /// Nobody of `in_sync` is known to have anything.
    #[must_use]
    pub fn new(epoch: Epoch, in_sync: impl IntoIterator<Item = ReplicaId>, min_in_sync: u8) -> Self {
        let durable = in_sync.into_iter().map(|replica| (replica, Pos::ZERO)).collect();
        Self { epoch, durable, min_in_sync: usize::from(min_in_sync) }
    }

    /// Notes that `replica` has everything up to `pos`; ignored outside of the in-sync set.
    pub fn durable(&mut self, replica: ReplicaId, pos: Pos) {
        if let Some(known) = self.durable.get_mut(&replica) {
            *known = pos.max(*known);
        }
    }

    /// Q: the highest position of this epoch that is durable on D in-sync copies.
    #[must_use]
    pub fn q(&self) -> Option<Pos> {
        self.durable_on(self.min_in_sync)
            .filter(|pos| pos.epoch == self.epoch || mutated!(QCountsOlderEpochs))
    }

    /// Whether enough copies have the entry at `seq` of this epoch.
    #[must_use]
    pub fn reached(&self, level: AckLevel, own: ReplicaId, seq: Seq) -> bool {
        let copies = match level {
            AckLevel::Leader => return self.durable.get(&own).is_some_and(|pos| pos.seq >= seq),
            AckLevel::Copies(copies) => usize::from(copies),
            AckLevel::InSync => self.durable.len().max(self.min_in_sync),
        };
        self.durable_on(copies).is_some_and(|pos| pos.seq >= seq)
    }

    /// Whether the in-sync set is large enough for `level` at all.
    #[must_use]
    pub fn can_reach(&self, level: AckLevel) -> bool {
        let copies = match level {
            AckLevel::Leader => 1,
            AckLevel::Copies(copies) => usize::from(copies),
            AckLevel::InSync => self.min_in_sync,
        };
        self.durable.len() >= copies
    }

    /// The position that the best `copies` members all have.
    fn durable_on(&self, copies: usize) -> Option<Pos> {
        let mut positions: Vec<Pos> = self.durable.values().copied().collect();
        positions.sort_unstable_by(|a, b| b.cmp(a));
        positions.get(copies.checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pos(epoch: u64, seq: u64) -> Pos {
        Pos::new(Epoch(epoch), Seq(seq))
    }

    #[test]
    fn q_is_the_dth_best_of_the_in_sync_set() {
        let mut progress = Progress::new(Epoch(2), [1, 2, 3].map(ReplicaId), 2);
        assert_eq!(progress.q(), None);
        progress.durable(ReplicaId(1), pos(2, 9));
        assert_eq!(progress.q(), None);
        progress.durable(ReplicaId(3), pos(2, 7));
        progress.durable(ReplicaId(4), pos(2, 99));
        assert_eq!(progress.q(), Some(pos(2, 7)));
        assert!(progress.reached(AckLevel::Copies(2), ReplicaId(1), Seq(7)));
        assert!(!progress.reached(AckLevel::InSync, ReplicaId(1), Seq(7)));
    }

    #[test]
    fn q_counts_no_entry_of_an_older_epoch() {
        let mut progress = Progress::new(Epoch(3), [ReplicaId(1)], 1);
        progress.durable(ReplicaId(1), pos(2, 9));
        assert_eq!(progress.q(), None);
        progress.durable(ReplicaId(1), pos(3, 10));
        assert_eq!(progress.q(), Some(pos(3, 10)));
    }
}
