//! Writes that nobody may see yet, and how they are taken back.
//!
//! A write above `leader` is pending until the published Q has reached it. When the wait of
//! its client fails before that, the leader takes it back by a `Revert`, which decides only
//! when it is itself at or below Q (m11): the write may be on another copy already.
//!
//! - one revert at a time: a second would hold Q back before the first, and so on for ever;
//! - only entries above the published Q are taken back, and no Q is published that lies
//!   between a write and its revert (m31);
//! - only entries of the leader's own epoch are: it knows what it has not acknowledged (m12);
//! - writes that were sequenced together on one row fall together.

use super::leader::{Leader, Wait, Waiter};
use super::{Answer, ApplyWhen, Context, Effect, Tablet};
use crate::entry::{Payload, RevertTarget};
use crate::ids::{Pos, Seq, Tick};
use crate::limits::ACK_SILENCE_MS;
use crate::mutated;
use crate::op::AckLevel;
use std::collections::{BTreeMap, BTreeSet};

/// Pending writes of one epoch, by index.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingWrites {
    writes: BTreeMap<Seq, PendingWrite>,
    /// The wait of none fails earlier.
    earliest: Option<Tick>,
}

/// A write above `leader`.
#[derive(Clone, Debug)]
pub(super) struct PendingWrite {
    /// Its name and what it put, should it be taken back.
    pub target: RevertTarget,
    /// First write of those that were sequenced together with it.
    pub group: Seq,
    /// When the wait for copies has failed.
    pub fails_at: Tick,
    /// A revert of it is in the log.
    pub is_reverted: bool,
    /// It is visible; only kept so with a seeded bug.
    is_settled: bool,
}

/// A revert that Q has not reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// The first write that it takes back.
    first: Seq,
    /// Where the revert stands.
    revert: Seq,
}

impl Window {
    /// The highest index up to `q` that may be published.
    pub(super) fn limit(self, q: Seq) -> Seq {
        let between = self.first <= q && q < self.revert;
        if between && !mutated!(QBetweenOpAndRevert) { Seq(self.first.0 - 1) } else { q }
    }

    /// Whether `q` has decided it.
    pub(super) fn is_closed_by(self, q: Seq) -> bool {
        q >= self.revert
    }
}

impl PendingWrites {
    pub(super) fn len(&self) -> usize {
        self.writes.len()
    }

    /// The first write that nobody may see.
    pub(super) fn first(&self) -> Option<Seq> {
        self.writes.iter().find(|(_, write)| !write.is_settled).map(|(seq, _)| *seq)
    }

    pub(super) fn is_hidden(&self, seq: Seq) -> bool {
        self.writes.get(&seq).is_some_and(|write| !write.is_settled)
    }

    pub(super) fn insert(&mut self, target: RevertTarget, group: Seq, fails_at: Tick) {
        self.earliest = Some(self.earliest.map_or(fails_at, |earliest| earliest.min(fails_at)));
        let (is_reverted, is_settled) = (false, false);
        let write = PendingWrite { group, fails_at, is_reverted, is_settled, target };
        self.writes.insert(write.target.pos.seq, write);
    }

    /// Everything up to `upto` is decided and visible, or was taken back.
    pub(super) fn settled(&mut self, upto: Seq) {
        if mutated!(RevertBelowQ) {
            self.writes.range_mut(..=upto).for_each(|(_, write)| write.is_settled = true);
            return;
        }
        self.writes = self.writes.split_off(&upto.next());
        if self.writes.is_empty() {
            self.earliest = None;
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Tick> {
        self.earliest
    }

    /// Writes above `published` whose wait has failed, and those that fall with them.
    fn failed(&self, now: Tick, published: Seq) -> Vec<Seq> {
        let above = |seq: Seq| seq > published || mutated!(RevertBelowQ);
        let open = || self.writes.iter().filter(|(seq, write)| above(**seq) && !write.is_reverted);
        let groups: BTreeSet<Seq> =
            open().filter(|(_, write)| write.fails_at <= now).map(|(_, write)| write.group).collect();
        open().filter(|(_, write)| groups.contains(&write.group)).map(|(seq, _)| *seq).collect()
    }

    /// Looks at waits that have failed again at `at`.
    fn postpone(&mut self, now: Tick, at: Tick) {
        for write in self.writes.values_mut().filter(|write| write.fails_at <= now) {
            write.fails_at = at;
        }
        self.reckon();
    }

    fn mark_reverted(&mut self, seqs: &[Seq]) -> Vec<RevertTarget> {
        let mut targets = Vec::with_capacity(seqs.len());
        for seq in seqs {
            if let Some(write) = self.writes.get_mut(seq) {
                write.is_reverted = true;
                targets.push(write.target.clone());
            }
        }
        self.reckon();
        targets
    }

    fn reckon(&mut self) {
        let open = self.writes.values().filter(|write| !write.is_reverted);
        self.earliest = open.map(|write| write.fails_at).min();
    }
}

impl Tablet {
    /// Takes back the writes whose wait for copies has failed, if that is what failed.
    pub(super) fn revert_failed(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let Some(leader) = &mut self.leader else { return };
        if leader.pending.next_deadline().is_none_or(|at| context.now < at) {
            return;
        }
        let again = context.now.plus_ms(ACK_SILENCE_MS / 2);
        if leader.window.is_some() || leader.is_only_slow(context) {
            leader.pending.postpone(context.now, again);
            return;
        }
        let seqs = leader.pending.failed(context.now, leader.published.seq);
        if seqs.is_empty() {
            leader.pending.postpone(context.now, again);
            return;
        }
        self.revert(context, &seqs, effects);
    }

    fn revert(&mut self, context: Context<'_>, seqs: &[Seq], effects: &mut Vec<Effect>) {
        let Some(leader) = &mut self.leader else { return };
        let targets = leader.pending.mark_reverted(seqs);
        let Some(first) = seqs.first().copied() else { return };
        for target in &targets {
            self.recent.revert(target.pos.seq, &target.rows);
        }
        let ts = self.log.end().ts.next();
        let entry = self.log.end().follow(leader.epoch, ts, Payload::Revert { targets });
        let revert = entry.seq();
        leader.window = Some(Window { first, revert });
        let told = leader.redirect(seqs, revert);
        for request in told {
            effects.push(Effect::Reply { request, answer: Answer::Reverted });
        }
        self.append(entry, ApplyWhen::Safe, effects);
        self.run_parked(context, effects);
    }
}

impl Leader {
    /// The copies that are needed can be reached and acknowledge: patience, not a revert.
    fn is_only_slow(&self, context: Context<'_>) -> bool {
        let needed = u8::try_from(self.progress.min_in_sync()).unwrap_or(u8::MAX);
        self.can_reach(context, AckLevel::Copies(needed))
            && context.now.ms_since(self.progressed_at) < ACK_SILENCE_MS
    }

    /// Lets whoever waits for one of `targets` wait for the revert instead. With the seeded
    /// bug of m11 they are told at once.
    fn redirect(&mut self, targets: &[Seq], revert: Seq) -> Vec<crate::ids::RequestId> {
        let mut told = Vec::new();
        for seq in targets {
            for waiter in self.slow.remove(seq).unwrap_or_default() {
                if mutated!(RevertedSaidEarly) {
                    told.push(waiter.request);
                    continue;
                }
                let wait = match waiter.wait {
                    Wait::Settled(answer) => Wait::Settled(answer),
                    Wait::Level(_) | Wait::Decided(_) | Wait::Rows(_) => Wait::Decided(Answer::Reverted),
                };
                self.slow.entry(revert).or_default().push(Waiter { wait, ..waiter });
            }
        }
        told
    }

    /// Notes that everything up to `q` is published; a revert that it reached is decided.
    pub(super) fn note_published(&mut self, q: Pos) {
        self.published = q;
        if self.window.is_some_and(|window| window.is_closed_by(q.seq)) {
            self.window = None;
        }
    }
}
