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
use crate::mutated;
use std::cmp::Reverse;
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
    /// Every leader of an epoch up to this has given the tablet up or its process is over: a
    /// promise to it binds nobody (m18). Zero for none.
    pub gone: Epoch,
}

/// An epoch that its leader gave up for good while its process lives on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GaveUp {
    /// The tablet.
    pub tablet: TabletId,
    /// What it led.
    pub epoch: Epoch,
    /// The copy that has everything of that epoch and should lead next.
    pub successor: Option<ReplicaId>,
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
    /// What the fences said of former leaders.
    pub gone: Epoch,
    /// Copies that were asked and have not answered.
    pub asked: BTreeSet<ReplicaId>,
    /// Answers of the epoch.
    pub answers: BTreeMap<ReplicaId, FenceAnswer>,
    /// When the first of the answers came.
    pub answered_since: Option<Tick>,
    /// When answers first were enough.
    pub enough_since: Option<Tick>,
    /// Since when every copy is known to be lost.
    pub bereft_since: Option<Tick>,
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

    /// Takes the answer of a copy.
    pub fn take(&mut self, now: Tick, answer: FenceAnswer) {
        self.asked.remove(&answer.replica);
        self.answers.insert(answer.replica, answer);
        self.answered_since.get_or_insert(now);
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
            if self.answers.is_empty() {
                self.answered_since = None;
            }
            self.proposed = false;
            self.retries = 0;
        }
    }
}

/// Answers that an election needs: any two sets of in-sync copies, one of this size and one
/// of D, share a member (m1).
pub(super) fn quota(in_sync: usize, min_in_sync: usize) -> usize {
    let answers = (in_sync + 1).saturating_sub(min_in_sync);
    if mutated!(ElectionQuotaShort) { answers.saturating_sub(1).max(1) } else { answers.max(1) }
}

/// The answers that an election of `tablet` needs. A copy whose data is lost counts as one
/// that may have been needed (m14).
pub(super) fn tablet_quota(state: &State, tablet: &Tablet) -> usize {
    let min_in_sync = state.table(tablet.table).map_or(1, |table| usize::from(table.spec.min_in_sync));
    let counted = |replica: &&Replica| !mutated!(LostLeavesQuota) || state.holds_data(replica);
    quota(tablet.in_sync_replicas().filter(counted).count(), min_in_sync)
}

/// Whether an answer counts: right epoch, from a copy of the in-sync set that lies on the
/// answering server and still holds its data.
pub(super) fn counts(state: &State, tablet: &Tablet, server: ServerId, answer: &FenceAnswer) -> bool {
    let replica = tablet.in_sync_replicas().find(|replica| replica.id == answer.replica);
    replica.is_some_and(|replica| {
        replica.server == server
            && answer.epoch == tablet.epoch
            && (answers_for(replica.generation, answer) || mutated!(AnyGenerationCounts))
            && may_answer(state, replica)
    })
}

/// Whether a copy may answer and lead: never under the id of one whose data is gone (m16).
pub(super) fn may_answer(state: &State, replica: &Replica) -> bool {
    state.holds_data(replica) || mutated!(LostCopyAnswers)
}

/// An answer names the directory that it was read from; of a copy in memory the session
/// names the process.
fn answers_for(generation: Generation, answer: &FenceAnswer) -> bool {
    match generation {
        Generation::Disk(disk) => answer.disk_generation == disk,
        Generation::Process(_) => true,
    }
}

/// Whom to take among copies that have the same.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Preference {
    /// The last leader's choice.
    pub successor: Option<ReplicaId>,
    /// The last leader, when it gave up: it had a reason.
    pub gave_up: Option<ReplicaId>,
}

/// The answer of the copy to appoint: the one with the greatest (last epoch, seq), never the
/// longest log (m6). Of equal ones the one that is preferred, then the first by id, so that
/// every run decides alike.
pub(super) fn best<'a>(
    answers: impl Iterator<Item = &'a FenceAnswer>,
    preference: Preference,
) -> Option<FenceAnswer> {
    let rank = |answer: &FenceAnswer| {
        let end = if mutated!(LongestLogWins) { Pos::new(Epoch(0), answer.end.seq) } else { answer.end };
        let is_successor = Some(answer.replica) == preference.successor;
        let gave_up = Some(answer.replica) == preference.gave_up;
        (end, is_successor, !gave_up, Reverse(answer.replica))
    };
    answers.max_by_key(|answer| rank(answer)).copied()
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
    fn the_best_has_the_last_epoch_and_of_equals_the_successor_leads() {
        let answer = |replica, epoch, seq| FenceAnswer {
            tablet: TabletId(1),
            replica: ReplicaId(replica),
            epoch: Epoch(9),
            end: Pos::new(Epoch(epoch), crate::ids::Seq(seq)),
            ts_max: Hlc::MIN,
            disk_generation: DiskGeneration(1),
        };
        let leads = |successor: Option<u64>, gave_up: Option<u64>| {
            let answers = [answer(1, 5, 10), answer(2, 5, 10), answer(3, 4, 900)];
            let preference =
                Preference { successor: successor.map(ReplicaId), gave_up: gave_up.map(ReplicaId) };
            best(answers.iter(), preference).map(|answer| answer.replica.0)
        };
        assert_eq!(leads(None, None), Some(1));
        assert_eq!(leads(Some(2), None), Some(2));
        assert_eq!(leads(None, Some(1)), Some(2));
        assert_eq!(leads(Some(3), Some(2)), Some(1));
        assert!(best([].iter(), Preference::default()).is_none());
    }

    #[test]
    fn pauses_double_up_to_the_limit() {
        let mut election = Election::default();
        let pauses: Vec<u64> = (0..7).map(|_| election.back_off(Tick(0)).0).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
    }
}
