//! How the control core brings the tablets of a merge together: first the copies, one move at a
//! time, then the leaders. When both lie on the same servers under one process, it asks for the
//! intent to seal.
//!
//! Everything follows from the records: which copies are where, and which tablet comes to which.
//! What is remembered only paces it. A copy that is lost meanwhile is replaced first, like that of
//! any tablet ([`super::repair`]).

use super::campaign::Batch;
use super::command::{Command, ReplicaChange};
use super::control::{Control, Effect};
use super::job::Job;
use super::merge::{MergeJob, MergeStep, is_gathered, servers};
use super::state::{Leader, State, Tablet};
use crate::ids::{JobId, Tick};
use crate::limits::{MERGE_PAUSE_MS, MERGE_SETTLE_MS, REPLICA_CHANGE_RETRY_MS, SPLIT_ORDER_RETRY_MS};
use std::collections::BTreeMap;

/// What paces merges.
#[derive(Debug, Default)]
pub(super) struct Merges {
    /// When to do again what was proposed or ordered and not heard of.
    again: BTreeMap<JobId, Tick>,
    /// Not before: the last attempt was taken back.
    pauses: BTreeMap<JobId, Tick>,
    /// Since when the tablets lie together and nothing about them has changed.
    gathered: BTreeMap<JobId, Tick>,
}

impl Merges {
    /// Something about the job's tablets was decided.
    pub fn decided(&mut self, job: JobId) {
        self.again.remove(&job);
        self.gathered.remove(&job);
    }
}

impl Control {
    /// Takes the next step towards two tablets that lie together.
    pub(super) fn gather(
        &mut self,
        now: Tick,
        state: &State,
        job: &Job,
        merge: &MergeJob,
        batch: &mut Batch,
        effects: &mut Vec<Effect>,
    ) {
        let waits = |until: Option<&Tick>| until.is_some_and(|until| *until > now);
        if waits(self.merges.again.get(&job.id)) || waits(self.merges.pauses.get(&job.id)) {
            return;
        }
        let (Some(stays), Some(comes)) = (state.tablet(merge.stays()), state.tablet(merge.comes)) else {
            return;
        };
        if [stays, comes].iter().any(|tablet| tablet.moving.is_some() || self.is_repaired(now, tablet.id)) {
            return;
        }
        let pause_ms = if is_gathered(state, merge) {
            let since = *self.merges.gathered.entry(job.id).or_insert(now);
            let until = since.plus_ms(MERGE_SETTLE_MS);
            if until > now {
                self.deadlines.insert((until, merge.left));
                return;
            }
            let step = MergeStep::Seal;
            effects.push(Effect::Propose(Command::ChangeMerge { job: job.id, attempt: job.attempt, step }));
            SPLIT_ORDER_RETRY_MS
        } else if let Some(change) = self.next_move(stays, comes, batch) {
            batch.replicas.push(change);
            REPLICA_CHANGE_RETRY_MS
        } else if servers(stays) == servers(comes) && self.bring_leaders(state, stays, comes, batch) {
            SPLIT_ORDER_RETRY_MS
        } else {
            return;
        };
        let again = now.plus_ms(pause_ms);
        self.merges.again.insert(job.id, again);
        self.deadlines.insert((again, merge.left));
    }

    /// The next copy of `comes` that goes to a server of the other, and the one in whose place
    /// it goes: rather a copy that does not lead.
    fn next_move(&self, stays: &Tablet, comes: &Tablet, batch: &Batch) -> Option<ReplicaChange> {
        let (wanted, held) = (servers(stays), servers(comes));
        let is_open = |id: &crate::ids::ServerId| self.sessions.contains_key(id) && self.has_room(*id, batch);
        let server = wanted.difference(&held).copied().find(is_open)?;
        let goes = comes.replicas.iter().filter(|copy| !wanted.contains(&copy.server));
        let goes = goes.min_by_key(|copy| (comes.is_led_by(copy.id), copy.id))?;
        Some(ReplicaChange::Add { tablet: comes.id, server, instead_of: Some(goes.id) })
    }

    /// Orders the one leader to hand over to where the other leads, whichever can. False while
    /// neither can, or one process leads both.
    fn bring_leaders(&self, state: &State, stays: &Tablet, comes: &Tablet, batch: &mut Batch) -> bool {
        let leader = |tablet: &Tablet| tablet.leader.filter(|leader| state.is_current(leader));
        let (Some(one), Some(other)) = (leader(stays), leader(comes)) else { return false };
        if one.server == other.server {
            return false;
        }
        let mut hand_over = |tablet: &Tablet, from: Leader, to: Leader| {
            let Ok(replica) = self.heir(state, tablet.id, to.server) else { return false };
            batch.transfers.push((from.server, tablet.id, tablet.epoch, replica));
            true
        };
        hand_over(comes, other, one) || hand_over(stays, one, other)
    }

    /// An attempt of the merge is taken back: the next one waits for what was in the way.
    pub(super) fn pause_merge(&mut self, now: Tick, job: JobId, merge: &MergeJob) {
        let until = now.plus_ms(MERGE_PAUSE_MS * (u64::from(merge.tries) + 1));
        self.merges.pauses.insert(job, until);
        self.deadlines.insert((until, merge.left));
    }

    /// A merge has changed.
    pub(super) fn note_merge(&mut self, job: &Job) {
        self.merges.decided(job.id);
        if !job.is_running() {
            self.merges.pauses.remove(&job.id);
        }
    }
}
