//! Sealing: the end of a tablet whose place others take, and the way back.
//!
//! ```text
//!            Seal order: hold writes, let pending ones end
//!  serving ──────────────────────────────────────────────▶ Seal in the log
//!     ▲                                                        │ <= Q and applied, on each copy
//!     │ Unseal, once metadata shows the abort                  ▼
//!     └───────────────────────────────────────────────── children staged ──▶ ready
//!                                                              │ leader: D are, itself among them
//!                                          metadata commits    ▼
//!                    retired, the children begin ◀──── commit asked for, again and again
//! ```
//!
//! - m25: a seal is the last data entry; only `EpochStart` and its own `Unseal` follow. A leader
//!   whose log ends sealed holds writes, whoever wrote the seal;
//! - m26: a copy stages children only for a seal at or below Q that it has applied, and never for
//!   an earlier attempt than those it has;
//! - m28: a copy is ready for exactly the attempt that it has staged;
//! - m29: a seal is taken back only when metadata has shown that its attempt was aborted, and no
//!   attempt is sealed twice;
//! - m17: the copies that a commit names count for the lease until the seal is taken back: what was
//!   asked for once may yet be committed.
//!
//! A merge seals two tablets for one attempt, each with a log and a leader of its own, and the
//! one child of both seals covers more keys than either.

use super::leader::Leader;
use super::replicate::Peer;
use super::safe::SafePoints;
use super::token::TokenTable;
use super::{Answer, Context, Effect, PeerRun, Recovered, Refusal, SplitProposal, Tablet};
use crate::entry::{Entry, LogEnd, Payload, SealRecord, SealedChild};
use crate::ids::{Attempt, Epoch, ReplicaId, Seq, Tick};
use crate::limits::{PROPOSAL_RETRY_MS, SPLIT_READY_PATIENCE_MS};
use crate::mutated;
use crate::range::KeyRange;
use std::collections::BTreeSet;

/// Marks that are remembered. At most one lies above Q, and of those below only the last says
/// anything.
const MARKS_MAX: usize = 4;

/// A seal, or one that was taken back.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Mark {
    Seal(SealRecord),
    Unseal(Attempt),
}

/// The seals of a log, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seals {
    marks: Vec<(LogEnd, Mark)>,
}

impl Seals {
    /// A log whose last mark is this seal.
    #[must_use]
    pub fn staged(seal: SealRecord, end: LogEnd) -> Self {
        Self { marks: vec![(end, Mark::Seal(seal))] }
    }

    /// Remembers what an entry says of seals; one that is known changes nothing.
    pub fn note(&mut self, entry: &Entry) {
        let mark = match &entry.payload {
            Payload::Seal(seal) => Mark::Seal(seal.clone()),
            Payload::Unseal { attempt } => Mark::Unseal(*attempt),
            Payload::EpochStart { .. }
            | Payload::Write(_)
            | Payload::TokenFence { .. }
            | Payload::Revert { .. }
            | Payload::Close => return,
        };
        if self.marks.last().is_some_and(|(end, _)| end.pos.seq >= entry.seq()) {
            return;
        }
        if self.marks.len() == MARKS_MAX {
            self.marks.remove(0);
        }
        self.marks.push((entry.end(), mark));
    }

    /// Forgets what entries from `from` on said.
    pub fn cut(&mut self, from: Seq) {
        self.marks.retain(|(end, _)| end.pos.seq < from);
    }

    /// The seal that the log ends with, and where it stands.
    #[must_use]
    pub fn sealed(&self) -> Option<(&SealRecord, LogEnd)> {
        self.sealed_at(Seq(u64::MAX))
    }

    /// The seal that the log up to `upto` ends with.
    fn sealed_at(&self, upto: Seq) -> Option<(&SealRecord, LogEnd)> {
        match self.marks.iter().rfind(|(end, _)| end.pos.seq <= upto)? {
            (end, Mark::Seal(seal)) => Some((seal, *end)),
            (_, Mark::Unseal(_)) => None,
        }
    }

    /// The latest attempt that the log knows of.
    fn latest(&self) -> Attempt {
        let attempt = |(_, mark): &(LogEnd, Mark)| match mark {
            Mark::Seal(seal) => seal.attempt,
            Mark::Unseal(attempt) => *attempt,
        };
        self.marks.iter().map(attempt).max().unwrap_or_default()
    }
}

/// A seal that waits for pending writes.
#[derive(Clone, Debug)]
pub(super) struct Sealing {
    seal: SealRecord,
    until: Tick,
}

/// A commit of unknown fate.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    proposal: SplitProposal,
    again: Tick,
}

impl Leader {
    /// The copies of every commit that was asked for.
    pub(super) fn named_ready(&self) -> impl Iterator<Item = &BTreeSet<ReplicaId>> {
        self.named.iter()
    }

    /// When something about the seal is due.
    pub(super) fn seal_deadline(&self) -> Option<Tick> {
        let sealing = self.sealing.as_ref().map(|sealing| sealing.until);
        let commit = self.commit.as_ref().map(|commit| commit.again);
        let patience = self.ready_since.filter(|_| commit.is_none());
        let patience = patience.map(|since| since.plus_ms(SPLIT_READY_PATIENCE_MS).max(self.commit_after));
        [sealing, commit, patience].into_iter().flatten().min()
    }

    /// The in-sync copies that have staged the children of `attempt`, and how they are known.
    fn ready(&self, own: ReplicaId, attempt: Attempt) -> SplitReady {
        let is_ready =
            |peer: &Peer| peer.ready == attempt || (mutated!(ReadyOfAnyAttempt) && peer.ready > Attempt(0));
        let counted = self.progress.counted_members();
        let peers = self.peers.iter().filter(|(id, peer)| counted.contains(id) && is_ready(peer));
        let peers = peers.filter_map(|(id, peer)| Some((*id, Some(peer.run?))));
        std::iter::once((own, None)).chain(peers).collect()
    }
}

/// Ready copies and how the leader knows them; none for its own.
type SplitReady = Vec<(ReplicaId, Option<PeerRun>)>;

impl Tablet {
    /// The seal that the log ends with, and where it stands.
    #[must_use]
    pub fn sealed(&self) -> Option<(&SealRecord, LogEnd)> {
        self.seals.sealed()
    }

    /// The attempt whose children are staged here, 0 for none.
    #[must_use]
    pub fn staged(&self) -> Attempt {
        self.staged
    }

    /// What this copy says it is ready for.
    pub(super) fn ready(&self) -> Attempt {
        if self.is_staging { Attempt(0) } else { self.staged }
    }

    /// Whether writes wait: the tablet is sealed, or about to be.
    pub(super) fn holds_writes(&self) -> bool {
        let is_sealing = self.leader.as_ref().is_some_and(|leader| leader.sealing.is_some());
        (is_sealing || self.seals.sealed().is_some()) && !mutated!(WritesAfterSeal)
    }

    pub(super) fn assert_may_follow_seal(&self, entry: &Entry) {
        let Some((seal, _)) = self.seals.sealed() else { return };
        let may_follow = match &entry.payload {
            Payload::EpochStart { .. } => true,
            Payload::Unseal { attempt } => *attempt == seal.attempt,
            Payload::Write(_)
            | Payload::TokenFence { .. }
            | Payload::Revert { .. }
            | Payload::Close
            | Payload::Seal(_) => mutated!(WritesAfterSeal),
        };
        assert!(may_follow, "m25: a seal is the last data entry");
    }

    /// Metadata wants the tablet sealed. Writes are held from now on.
    pub(super) fn seal(
        &mut self,
        context: Context<'_>,
        epoch: Epoch,
        seal: SealRecord,
        until: Tick,
        effects: &mut Vec<Effect>,
    ) {
        let is_new = seal.attempt > self.aborted.max(self.seals.latest()).max(self.staged);
        let is_free = self.seals.sealed().is_none() && self.staged == Attempt(0) && !self.is_staging;
        let fits =
            (cuts(&self.range, &seal) || merges(&self.range, &seal)) && names_copy(&seal, self.replica);
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch) else { return };
        // Below D no copy would ever stage it, and writes would wait for nothing.
        let can_publish = !leader.is_below_min();
        if !leader.serving || leader.transfer.is_some() || !is_new || !is_free || !fits || !can_publish {
            return;
        }
        leader.sealing = Some(Sealing { seal, until });
        self.proceed_seal(context, effects);
    }

    /// Goes on with whatever waited for pending writes, for Q, for the registry or for copies.
    pub(super) fn proceed_seal(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        self.append_seal(context, effects);
        self.stage(effects);
        self.unseal(context, effects);
        self.ask_for_commit(context, effects);
    }

    fn append_seal(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let Some(leader) = &mut self.leader else { return };
        let Some(sealing) = &leader.sealing else { return };
        if context.now > sealing.until || sealing.seal.attempt <= self.aborted {
            // The order comes again, if it still stands.
            leader.sealing = None;
            self.run_parked(context, effects);
            return;
        }
        let is_quiet = leader.pending.len() == 0 && leader.window.is_none();
        if !is_quiet || !leader.holds_lease(context) {
            return;
        }
        let Some(Sealing { seal, .. }) = leader.sealing.take() else { return };
        let end = self.log.end();
        let ts = end.ts.next().max(self.read_floor.next());
        let entry = end.follow(leader.epoch, ts, Payload::Seal(seal));
        self.append_immediate(entry, effects);
    }

    /// Stages the children of a seal, or forgets them when it was taken back (m26).
    fn stage(&mut self, effects: &mut Vec<Effect>) {
        if self.is_staging {
            return;
        }
        let upto = match mutated!(SealAppliedEarly) {
            true => self.log.durable().pos.seq,
            false => self.applied.min(self.safe),
        };
        match self.seals.sealed_at(upto) {
            // After a restart the log is gone through again: what it was sealed for before is over.
            Some((seal, end))
                if seal.attempt > self.staged
                    || (mutated!(EarlierSealStaged) && seal.attempt < self.staged) =>
            {
                self.is_staging = true;
                effects.push(Effect::Stage { seal: seal.clone(), end });
            }
            None if self.staged > Attempt(0) && self.has_unsealed(upto) => {
                self.is_staging = true;
                effects.push(Effect::Unstage);
            }
            Some(_) | None => {}
        }
    }

    /// Whether the log up to `upto` takes back what is staged. Only the latest marks are known: one
    /// of a later attempt says that this one is long over.
    fn has_unsealed(&self, upto: Seq) -> bool {
        let is_it = |(end, mark): &(LogEnd, Mark)| {
            end.pos.seq <= upto && matches!(mark, Mark::Unseal(attempt) if *attempt >= self.staged)
        };
        self.seals.marks.iter().any(is_it)
    }

    pub(super) fn note_staged(
        &mut self,
        context: Context<'_>,
        attempt: Option<Attempt>,
        effects: &mut Vec<Effect>,
    ) {
        self.is_staging = false;
        self.staged = attempt.unwrap_or_default();
        self.note_acknowledgement();
        self.proceed(context, effects);
    }

    /// Metadata will never commit what the log is sealed for.
    pub(super) fn split_aborted(
        &mut self,
        context: Context<'_>,
        attempt: Attempt,
        effects: &mut Vec<Effect>,
    ) {
        self.aborted = attempt.max(self.aborted);
        self.proceed_seal(context, effects);
    }

    /// Takes the seal back, once metadata has shown that its attempt is over (m29).
    fn unseal(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let Some((seal, _)) = self.seals.sealed() else { return };
        let attempt = seal.attempt;
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.serving) else { return };
        let by_itself = mutated!(UnsealedByItself) && leader.commit.is_some();
        if attempt > self.aborted && !by_itself {
            return;
        }
        (leader.commit, leader.ready_since) = (None, None);
        leader.named.clear();
        let end = self.log.end();
        let entry = end.follow(leader.epoch, end.ts.next(), Payload::Unseal { attempt });
        self.append_immediate(entry, effects);
        self.tell_lease_terms(effects);
        self.run_parked(context, effects);
    }

    /// Asks metadata for the commit once enough copies are ready, and again until it answers.
    fn ask_for_commit(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let (own, now) = (self.replica, context.now);
        let Some((seal, end)) = self.seals.sealed() else { return };
        let attempt = seal.attempt;
        // The bugs of the commit's guard leave out what a core checks by itself too.
        if self.ready() != attempt && !mutated!(CommitWithoutLeader) {
            return;
        }
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.serving) else { return };
        if let Some(commit) = &mut leader.commit {
            if commit.again <= now {
                commit.again = now.plus_ms(PROPOSAL_RETRY_MS);
                effects.push(Effect::ProposeSplit(commit.proposal.clone()));
            }
            return;
        }
        let mut ready = leader.ready(own, attempt);
        if mutated!(CommitWithoutLeader) && ready.len() > leader.progress.min_in_sync() {
            ready.retain(|(id, _)| *id != own);
        }
        if ready.len() < leader.progress.min_in_sync() && !mutated!(CommitTooFew) {
            return;
        }
        let since = *leader.ready_since.get_or_insert(now);
        let is_ready = |id: &ReplicaId| ready.iter().any(|(ready, _)| ready == id);
        let all = leader.progress.in_sync().iter().all(is_ready);
        let waits = !all && now < since.plus_ms(SPLIT_READY_PATIENCE_MS) && !mutated!(CommitTooFew);
        if waits || now < leader.commit_after {
            return;
        }
        leader.named.insert(ready.iter().map(|(replica, _)| *replica).collect());
        let proposal = SplitProposal { epoch: leader.epoch, attempt, seal: end, ready };
        leader.commit = Some(Commit { proposal: proposal.clone(), again: now.plus_ms(PROPOSAL_RETRY_MS) });
        self.tell_lease_terms(effects);
        effects.push(Effect::ProposeSplit(proposal));
    }

    /// Metadata has decided that the commit will never be: another may.
    pub(super) fn split_refused(&mut self, context: Context<'_>, epoch: Epoch, attempt: Attempt) {
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch) else { return };
        if leader.commit.as_ref().is_some_and(|commit| commit.proposal.attempt == attempt) {
            leader.commit = None;
            leader.commit_after = context.now.plus_ms(PROPOSAL_RETRY_MS);
        }
    }

    /// Whether the tablet is sealed together with a neighbour: then no copy joins, because the
    /// same ones must be in sync in both.
    pub(super) fn is_merging(&self) -> bool {
        self.seals.sealed().is_some_and(|(seal, _)| merges(&self.range, seal))
    }

    /// Others have taken the tablet's place: whoever waits is sent to them.
    pub(super) fn retire(&mut self, effects: &mut Vec<Effect>) {
        if let Some(leader) = &mut self.leader {
            for write in std::mem::take(&mut leader.parked) {
                let answer = Answer::Refused(Refusal::Retired);
                effects.push(Effect::Reply { request: write.request, answer });
            }
        }
        self.step_down(effects);
    }

    /// The copy of a child that goes on from these copies and their seals, in key order, in the
    /// epoch that metadata gave it. What this process promised to the leaders of the parents
    /// binds the child too (m18).
    ///
    /// # Panics
    /// Without a parent.
    #[must_use]
    pub fn successor(
        parents: &[(&Self, LogEnd)],
        child: &SealedChild,
        epoch: Epoch,
        replica: ReplicaId,
    ) -> Self {
        let ends: Vec<LogEnd> = parents.iter().map(|(_, seal)| *seal).collect();
        let base = LogEnd::joined(&ends);
        assert!(ends.iter().all(|end| end.ts <= base.ts), "timestamps rise over a merge");
        let (first, _) = parents.first().expect("a child has a parent");
        let mut safe_points = SafePoints::default();
        safe_points.note(base.pos.seq);
        let attached: Vec<_> =
            parents.iter().filter_map(|(parent, _)| Some((parent.id, parent.attached?))).collect();
        let bound = attached.iter().map(|(_, attached)| *attached);
        // Both leaders are one process; the promise that has no end yet binds longest.
        let bound = bound.max_by_key(|attached| (attached.ends.is_none(), attached.epoch));
        let read_floor = parents.iter().map(|(parent, _)| parent.read_floor).max().unwrap_or_default();
        Self {
            safe: base.pos.seq,
            safe_points,
            read_floor,
            attached: bound.filter(|_| !mutated!(ChildFenceNotHeld)),
            parents: attached,
            ..Self::new(Recovered {
                id: child.tablet,
                replica,
                incarnation: first.incarnation,
                range: child.range.clone(),
                promised: epoch,
                epochs: epochs_at(parents, base),
                end: base,
                applied: base.pos.seq,
                tokens: tokens_of(parents),
                base,
                seals: Seals::default(),
                staged: Attempt(0),
            })
        }
    }
}

/// Which epoch began where in a log that goes on from others. Several parents have numbered
/// apart: nothing below the base is a position of the child.
fn epochs_at(parents: &[(&Tablet, LogEnd)], base: LogEnd) -> Vec<(Epoch, Seq)> {
    match parents {
        [(parent, seal)] => {
            parent.log.epochs().iter().filter(|(_, first)| *first <= seal.pos.seq).copied().collect()
        }
        _ => vec![(base.pos.epoch, base.pos.seq)],
    }
}

/// The tokens of the parents up to their seals.
fn tokens_of(parents: &[(&Tablet, LogEnd)]) -> TokenTable {
    let upto_seal = |(parent, seal): &(&Tablet, LogEnd)| parent.tokens_upto(seal.pos.seq);
    let tokens = parents.iter().map(upto_seal).reduce(TokenTable::join).unwrap_or_default();
    if mutated!(ParentTokensForgotten) { TokenTable::default() } else { tokens }
}

/// Whether the children cut `range` into parts without a gap.
fn cuts(range: &KeyRange, seal: &SealRecord) -> bool {
    let (Some(first), Some(last)) = (seal.children.first(), seal.children.last()) else { return false };
    first.range.start() == range.start()
        && last.range.end() == range.end()
        && seal.children.windows(2).all(|pair| pair[0].range.is_followed_by(&pair[1].range))
}

/// Whether one child takes the place of more than `range`.
fn merges(range: &KeyRange, seal: &SealRecord) -> bool {
    match &seal.children[..] {
        [child] => child.range != *range && child.range.covers(range),
        _ => false,
    }
}

fn names_copy(seal: &SealRecord, replica: ReplicaId) -> bool {
    seal.children.iter().all(|child| child.replicas.contains_key(&replica))
}
