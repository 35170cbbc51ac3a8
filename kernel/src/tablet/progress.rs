//! Who has what: durable positions of the copies, and the watermarks that follow.
//!
//! - a leader counts its own copy only when durable, in every count (m33);
//! - copies outside of the in-sync set never count (m3);
//! - while a change of the set is under way both outcomes must be safe: a member on its way
//!   out counts for nothing (m2), one on its way in counts for "all" (m8);
//! - Q counts entries of the leader's own epoch only (m13).

use crate::ids::{ConfigVersion, Epoch, Pos, ReplicaId, Seq};
use crate::mutated;
use crate::op::AckLevel;
use std::collections::{BTreeMap, BTreeSet};

/// A change of the in-sync set that was proposed and of which nothing is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The one that comes in, or the members that go out together.
    pub replicas: BTreeSet<ReplicaId>,
    /// Whether it comes in.
    pub add: bool,
}

impl Change {
    /// The set with the change applied.
    fn apply(&self, set: &BTreeSet<ReplicaId>) -> BTreeSet<ReplicaId> {
        if self.add { set | &self.replicas } else { set - &self.replicas }
    }
}

/// Durable positions in one epoch. A new leader starts with none.
#[derive(Clone, Debug)]
pub struct Progress {
    epoch: Epoch,
    own: ReplicaId,
    /// Last position that each copy has durably of the leader's log.
    durable: BTreeMap<ReplicaId, Pos>,
    in_sync: BTreeSet<ReplicaId>,
    version: ConfigVersion,
    change: Option<Change>,
    /// Durability factor D.
    min_in_sync: usize,
}

impl Progress {
    /// Nobody of `in_sync` is known to have anything.
    #[must_use]
    pub fn new(
        epoch: Epoch,
        own: ReplicaId,
        in_sync: BTreeSet<ReplicaId>,
        version: ConfigVersion,
        min_in_sync: u8,
    ) -> Self {
        let min_in_sync = usize::from(min_in_sync);
        Self { epoch, own, durable: BTreeMap::new(), in_sync, version, change: None, min_in_sync }
    }

    /// The in-sync set as metadata last told.
    #[must_use]
    pub fn in_sync(&self) -> &BTreeSet<ReplicaId> {
        &self.in_sync
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> ConfigVersion {
        self.version
    }

    /// Durability factor D.
    #[must_use]
    pub fn min_in_sync(&self) -> usize {
        self.min_in_sync
    }

    /// Notes that a change was proposed; from now on both outcomes are reckoned with (m24).
    pub fn propose(&mut self, change: Change) {
        self.change = Some(change);
    }

    /// Notes that metadata refused the change for good.
    pub fn refused(&mut self) {
        self.change = None;
    }

    /// Takes the set as metadata tells it; any newer version decides the change under way.
    pub fn learn(&mut self, version: ConfigVersion, in_sync: BTreeSet<ReplicaId>) {
        if version > self.version {
            self.version = version;
            self.in_sync = in_sync;
            self.change = None;
        }
    }

    /// Notes that `replica` has everything up to `pos`.
    pub fn durable(&mut self, replica: ReplicaId, pos: Pos) {
        let known = self.durable.entry(replica).or_default();
        *known = pos.max(*known);
    }

    /// Forgets what `replica` has: it is another process now, or has cut its log (m15).
    pub fn reset(&mut self, replica: ReplicaId) {
        self.durable.remove(&replica);
    }

    /// What `replica` is known to have.
    #[must_use]
    pub fn of(&self, replica: ReplicaId) -> Pos {
        self.durable.get(&replica).copied().unwrap_or(Pos::ZERO)
    }

    /// Q: the highest position of this epoch that is durable on D in-sync copies.
    #[must_use]
    pub fn q(&self) -> Option<Pos> {
        self.best_of(self.min_in_sync).filter(|pos| pos.epoch == self.epoch || mutated!(QCountsOlderEpochs))
    }

    /// How many copies a change under way brings into the set.
    #[must_use]
    pub fn coming(&self) -> usize {
        self.change.as_ref().filter(|change| change.add).map_or(0, |change| change.replicas.len())
    }

    /// The leader's own copy.
    #[must_use]
    pub fn own(&self) -> ReplicaId {
        self.own
    }

    /// C: the position that every in-sync copy has durably.
    #[must_use]
    pub fn c(&self) -> Pos {
        self.all().map(|replica| self.of(replica)).min().unwrap_or(Pos::ZERO)
    }

    /// Whether enough copies have the entry at `seq` of this epoch.
    #[must_use]
    pub fn reached(&self, level: AckLevel, seq: Seq) -> bool {
        match level {
            AckLevel::Leader => self.of(self.own).seq >= seq,
            AckLevel::Copies(copies) => self.best_of(usize::from(copies)).is_some_and(|pos| pos.seq >= seq),
            AckLevel::InSync => self.in_sync.len() >= self.min_in_sync && self.c().seq >= seq,
        }
    }

    /// Whether the copies that `is_live` says are reachable suffice for `level` at all.
    #[must_use]
    pub fn can_reach(&self, level: AckLevel, is_live: impl Fn(ReplicaId) -> bool) -> bool {
        let live = |replica: &ReplicaId| *replica == self.own || is_live(*replica);
        match level {
            AckLevel::Leader => true,
            AckLevel::Copies(copies) => {
                self.counted().filter(|replica| live(replica)).count() >= usize::from(copies)
            }
            AckLevel::InSync => {
                self.in_sync.len() >= self.min_in_sync && self.all().all(|replica| live(&replica))
            }
        }
    }

    /// The sets that may be in force: the one learned, and that with the change applied.
    pub fn sets(&self) -> impl Iterator<Item = BTreeSet<ReplicaId>> {
        let changed = self.change.as_ref().map(|change| change.apply(&self.in_sync));
        std::iter::once(self.in_sync.clone()).chain(changed)
    }

    /// The in-sync members that no change under way takes out.
    #[must_use]
    pub fn counted_members(&self) -> BTreeSet<ReplicaId> {
        self.counted().collect()
    }

    /// Members that count for copies and Q.
    fn counted(&self) -> impl Iterator<Item = ReplicaId> {
        let leaving = self.change.as_ref().filter(|change| !change.add && !mutated!(RemovedMemberCounts));
        let outsiders = self.durable.keys().filter(|_| mutated!(OutsiderCounts));
        let members: BTreeSet<ReplicaId> = self.in_sync.iter().chain(outsiders).copied().collect();
        members
            .into_iter()
            .filter(move |replica| leaving.is_none_or(|change| !change.replicas.contains(replica)))
    }

    /// Members that count for "all".
    fn all(&self) -> impl Iterator<Item = ReplicaId> {
        let coming = self.change.as_ref().filter(|change| change.add && !mutated!(AddedMemberIgnored));
        self.in_sync.iter().chain(coming.into_iter().flat_map(|change| &change.replicas)).copied()
    }

    /// The position that the best `copies` counted members all have.
    fn best_of(&self, copies: usize) -> Option<Pos> {
        let mut positions: Vec<Pos> = self.counted().map(|replica| self.of(replica)).collect();
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

    fn progress(epoch: u64, members: &[u64], min_in_sync: u8) -> Progress {
        let in_sync = members.iter().copied().map(ReplicaId).collect();
        Progress::new(Epoch(epoch), ReplicaId(1), in_sync, ConfigVersion(1), min_in_sync)
    }

    #[test]
    fn q_is_the_dth_best_of_the_in_sync_set() {
        let mut progress = progress(2, &[1, 2, 3], 2);
        progress.durable(ReplicaId(1), pos(2, 9));
        assert_eq!(progress.q(), None);
        progress.durable(ReplicaId(3), pos(2, 7));
        progress.durable(ReplicaId(4), pos(2, 99));
        assert_eq!(progress.q(), Some(pos(2, 7)));
        assert!(progress.reached(AckLevel::Copies(2), Seq(7)));
        assert!(!progress.reached(AckLevel::InSync, Seq(7)));
        progress.durable(ReplicaId(2), pos(2, 7));
        assert!(progress.reached(AckLevel::InSync, Seq(7)));
    }

    #[test]
    fn q_counts_no_entry_of_an_older_epoch() {
        let mut progress = progress(3, &[1], 1);
        progress.durable(ReplicaId(1), pos(2, 9));
        assert_eq!(progress.q(), None);
        progress.durable(ReplicaId(1), pos(3, 10));
        assert_eq!(progress.q(), Some(pos(3, 10)));
    }

    #[test]
    fn a_change_under_way_counts_against_both_outcomes() {
        let mut progress = progress(2, &[1, 2], 2);
        progress.durable(ReplicaId(1), pos(2, 9));
        progress.durable(ReplicaId(2), pos(2, 9));
        progress.propose(Change { replicas: [ReplicaId(2)].into(), add: false });
        assert!(!progress.reached(AckLevel::Copies(2), Seq(9)));
        progress.refused();
        progress.propose(Change { replicas: [ReplicaId(3)].into(), add: true });
        assert!(progress.reached(AckLevel::Copies(2), Seq(9)));
        assert!(!progress.reached(AckLevel::InSync, Seq(9)));
        progress.learn(ConfigVersion(2), [1, 2, 3].map(ReplicaId).into());
        assert_eq!(progress.sets().count(), 1);
    }

    #[test]
    fn liveness_decides_what_can_be_reached() {
        let progress = progress(2, &[1, 2, 3], 2);
        assert!(progress.can_reach(AckLevel::Leader, |_| false));
        assert!(!progress.can_reach(AckLevel::Copies(2), |_| false));
        assert!(progress.can_reach(AckLevel::Copies(2), |replica| replica == ReplicaId(2)));
        assert!(!progress.can_reach(AckLevel::InSync, |replica| replica == ReplicaId(2)));
    }
}
