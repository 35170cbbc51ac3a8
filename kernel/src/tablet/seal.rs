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
//! - m26: a copy stages children only for a seal at or below Q that it has applied;
//! - m28: a copy is ready for exactly the attempt that it has staged;
//! - m29: a seal is taken back only when metadata has shown that its attempt was aborted, and no
//!   attempt is sealed twice;
//! - m17: until the fate of a commit is known, the copies that it names count for the lease.

use super::leader::Leader;
use super::log_view::LogView;
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
    /// The copies of a commit of unknown fate.
    pub(super) fn named_ready(&self) -> Option<BTreeSet<ReplicaId>> {
        let commit = self.commit.as_ref()?;
        Some(commit.proposal.ready.iter().map(|(replica, _)| *replica).collect())
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
        let fits = cuts(&self.range, &seal) && names_copy(&seal, self.replica);
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch) else { return };
        if !leader.serving || leader.transfer.is_some() || !is_new || !is_free || !fits {
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
            Some((seal, end)) if seal.attempt != self.staged => {
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
        let proposal = SplitProposal { epoch: leader.epoch, attempt, seal: end, ready };
        leader.commit = Some(Commit { proposal: proposal.clone(), again: now.plus_ms(PROPOSAL_RETRY_MS) });
        self.tell_lease_terms(effects);
        effects.push(Effect::ProposeSplit(proposal));
    }

    /// Metadata has decided that the commit will never be: another may.
    pub(super) fn split_refused(
        &mut self,
        context: Context<'_>,
        epoch: Epoch,
        attempt: Attempt,
        effects: &mut Vec<Effect>,
    ) {
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch) else { return };
        if leader.commit.as_ref().is_some_and(|commit| commit.proposal.attempt == attempt) {
            leader.commit = None;
            leader.commit_after = context.now.plus_ms(PROPOSAL_RETRY_MS);
            self.tell_lease_terms(effects);
        }
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

    /// The copy of a child that goes on from this one, in the epoch that metadata gave it. What
    /// this process promised to the leader of this tablet binds the child too (m18).
    #[must_use]
    pub fn child(&self, child: &SealedChild, seal: LogEnd, epoch: Epoch, replica: ReplicaId) -> Self {
        let begun = self.log.epochs().iter().filter(|(_, first)| *first <= seal.pos.seq);
        let mut tokens = self.tokens.clone();
        tokens.cut(seal.pos.seq.next());
        if mutated!(ParentTokensForgotten) {
            tokens = TokenTable::default();
        }
        let mut safe_points = SafePoints::default();
        safe_points.note(seal.pos.seq);
        let attached = self.attached.filter(|_| !mutated!(ChildFenceNotHeld));
        Self {
            id: child.tablet,
            replica,
            range: child.range.clone(),
            promised: epoch,
            log: LogView::new(begun.copied().collect(), seal),
            applied: seal.pos.seq,
            safe: seal.pos.seq,
            safe_points,
            read_floor: self.read_floor,
            attached,
            base: seal,
            parent: attached.map(|attached| (self.id, attached.epoch)),
            ..Self::new(Recovered {
                id: child.tablet,
                replica,
                incarnation: self.incarnation,
                range: child.range.clone(),
                promised: epoch,
                epochs: Vec::new(),
                end: seal,
                applied: seal.pos.seq,
                tokens,
                base: seal,
                seals: Seals::default(),
                staged: Attempt(0),
            })
        }
    }
}

/// Whether the children cut `range` into parts without a gap.
fn cuts(range: &KeyRange, seal: &SealRecord) -> bool {
    let (Some(first), Some(last)) = (seal.children.first(), seal.children.last()) else { return false };
    first.range.start() == range.start()
        && last.range.end() == range.end()
        && seal.children.windows(2).all(|pair| pair[0].range.is_followed_by(&pair[1].range))
}

fn names_copy(seal: &SealRecord, replica: ReplicaId) -> bool {
    seal.children.iter().all(|child| child.replicas.contains_key(&replica))
}
