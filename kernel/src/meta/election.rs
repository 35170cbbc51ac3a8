//! One election of one tablet, as the control core remembers it.
//!
//! ```text
//! needs a leader --Recover applied--> polling --quota of answers--> appointed
//!       ^                               |  ^
//!       |                               +--+ session lost: its answer is dropped, fence again
//!       +-- the appointed run ended
//! ```
//!
//! Answers are bound to the epoch, the copy, the disk generation and the session that gave
//! them (m15): a copy whose session ended answers again or does not count.

use super::state::{Replica, State, Tablet};
use crate::hlc::Hlc;
use crate::ids::{DiskGeneration, Epoch, Generation, Pos, ReplicaId, ServerId, TabletId, Tick};
use crate::limits::{ELECTION_RETRY_MS_MAX, ELECTION_RETRY_MS_MIN};
use std::collections::{BTreeMap, BTreeSet};

/// The order to store a promised epoch and to answer where the log ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fence {
    /// The tablet.
    pub tablet: TabletId,
    /// The copy that is asked.
    pub replica: ReplicaId,
    /// The epoch to promise.
    pub epoch: Epoch,
}

/// A copy's answer: everything up to `end` is durable, nothing of a lower epoch follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FenceAnswer {
    /// The tablet.
    pub tablet: TabletId,
    /// The copy that answers.
    pub replica: ReplicaId,
    /// The epoch that it promised.
    pub epoch: Epoch,
    /// The end of its durable log.
    pub end: Pos,
    /// Greatest timestamp of its log.
    pub ts_max: Hlc,
    /// The data directory that it lies in.
    pub disk_generation: DiskGeneration,
}

/// What an election knows so far.
#[derive(Debug, Default)]
pub(super) struct Election {
    /// The epoch that fences and answers are about.
    pub epoch: Epoch,
    /// Copies that were asked and have not answered.
    pub asked: BTreeSet<ReplicaId>,
    /// Answers of the epoch.
    pub answers: BTreeMap<ReplicaId, FenceAnswer>,
    /// When answers first were enough.
    pub enough_since: Option<Tick>,
    /// Whether a command about the tablet was proposed and its fate is open.
    pub proposed: bool,
    /// When to try the present step again.
    pub retry_at: Option<Tick>,
    /// Times that it was tried again.
    pub retries: u32,
}

impl Election {
    /// Starts over in `epoch` when it is another than before.
    pub fn enter(&mut self, epoch: Epoch) {
        if self.epoch != epoch {
            *self = Self { epoch, ..Self::default() };
        }
    }

    /// The next pause, doubling up to the limit.
    pub fn back_off(&mut self, now: Tick) -> Tick {
        let pause_ms = ELECTION_RETRY_MS_MIN << self.retries.min(5);
        self.retries += 1;
        let at = now.plus_ms(pause_ms.min(ELECTION_RETRY_MS_MAX));
        self.retry_at = Some(at);
        at
    }

    /// Forgets what a copy said and that it was asked, and what was proposed upon it: when
    /// its server is back it is asked at once, without the pauses so far.
    pub fn forget(&mut self, replica: ReplicaId) {
        let polled = self.asked.remove(&replica) | self.answers.remove(&replica).is_some();
        if polled {
            self.enough_since = None;
            self.proposed = false;
            self.retries = 0;
        }
    }
}

/// Answers that an election needs: any two sets of in-sync copies, one of this size and one
/// of D, share a member (m1).
pub(super) fn quota(in_sync: usize, min_in_sync: usize) -> usize {
    (in_sync + 1).saturating_sub(min_in_sync).max(1)
}

/// Whether an answer counts: right epoch, from a copy of the in-sync set that lies on the
/// answering server and still holds its data.
pub(super) fn counts(state: &State, tablet: &Tablet, server: ServerId, answer: &FenceAnswer) -> bool {
    let replica = tablet.in_sync_replicas().find(|replica| replica.id == answer.replica);
    replica.is_some_and(|replica| {
        replica.server == server
            && answer.epoch == tablet.epoch
            && answers_for(replica.generation, answer)
            && state.holds_data(replica)
    })
}

/// An answer names the directory that it was read from; of a copy in memory the session
/// names the process.
fn answers_for(generation: Generation, answer: &FenceAnswer) -> bool {
    match generation {
        Generation::Disk(disk) => answer.disk_generation == disk,
        Generation::Process(_) => true,
    }
}

/// The copy to appoint: the one with the greatest (last epoch, seq), never the longest log
/// (m6). Of equal ones the first by id, so that every run decides alike.
pub(super) fn best<'a>(
    tablet: &'a Tablet,
    answers: &BTreeMap<ReplicaId, FenceAnswer>,
) -> Option<(&'a Replica, FenceAnswer)> {
    let mut best: Option<FenceAnswer> = None;
    for answer in answers.values() {
        if best.is_none_or(|best| answer.end > best.end) {
            best = Some(*answer);
        }
    }
    let best = best?;
    tablet.replica(best.replica).map(|replica| (replica, best))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_meets_every_write_of_d_copies() {
        assert_eq!(quota(1, 1), 1);
        assert_eq!(quota(3, 2), 2);
        assert_eq!(quota(3, 1), 3);
        assert_eq!(quota(2, 2), 1);
        assert_eq!(quota(1, 2), 1);
    }

    #[test]
    fn pauses_double_up_to_the_limit() {
        let mut election = Election::default();
        let pauses: Vec<u64> = (0..7).map(|_| election.back_off(Tick(0)).0).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
    }
}
