//! One replica of one tablet: what it promises, what it appends, what it answers.
//!
//! ```text
//!                Fence(e): promise e, drain        Appoint(e): promise e, apply the tail
//!   ┌──────────┐ ──────────────────────▶ ┌───────┐ ─────────────────▶ ┌──────────┐
//!   │ Follower │                         │ fenced│                    │ Starting │ EpochStart
//!   └──────────┘ ◀────────────────────── └───────┘                    └────┬─────┘
//!     ▲      ▲    answered                                 Q ≥ EpochStart  │ and applied
//!     │      │                                                        ┌────▼─────┐
//!     │      └── any higher epoch, a failed append, StepDown ──────── │ Serving  │
//!     │                                                               └──────────┘
//!     └─ Probe(e) of a leader: promise e, say Hello; Append(e): cut what differs, append,
//!        acknowledge when durable, apply up to Q
//! ```
//!
//! Rules that hold here (ids of the design):
//! - m5, m34: nothing of an epoch below the durable promise is accepted, and a promise is
//!   durable before anything of its epoch is appended or answered;
//! - m7, m36: only an appointment that names this process's incarnation makes a leader;
//! - m18: a fence waits for the end of what this process promised to the leader it followed;
//! - m32: a fence is answered when everything appended before is durable or refused;
//! - m33, m38: own copies count when durable, and rows are applied only after that;
//! - a replica that gave up an epoch never leads it again.
//!
//! Above Q only a leader applies, and only what clients wrote at level `leader`: everything
//! else is pending, and no reader sees it before Q has reached it.
//!
//! A replica does not know other servers' addresses, or how entries become durable.

mod effect;
mod fence;
mod follower;
mod input;
mod leader;
mod log_view;
mod membership;
mod outcome;
mod pending;
mod progress;
mod replicate;
mod safe;
mod seal;
pub mod token;
pub mod truncate;
mod write;

pub use effect::{Answer, ApplyWhen, Effect, FenceAnswer, Proposal, Refusal, SplitProposal, Stream};
pub use input::{Appointment, Input, Membership, PeerInput, PeerMessage, PeerRun, WriteRequest};
pub use progress::Change;
pub use seal::Seals;

use crate::entry::{Entry, LogEnd};
use crate::hlc::Hlc;
use crate::ids::{Attempt, Epoch, Incarnation, Pos, ReplicaId, Seq, TabletId, Tick};
use crate::lease::Promises;
use crate::mutated;
use crate::range::KeyRange;
use crate::sequence::Recent;
use follower::Following;
use leader::Leader;
use log_view::LogView;
use outcome::Question;
use pending::PendingWrites;
use safe::SafePoints;
use std::collections::VecDeque;
use token::TokenTable;

/// One replica of one tablet.
#[derive(Debug)]
pub struct Tablet {
    id: TabletId,
    replica: ReplicaId,
    incarnation: Incarnation,
    range: KeyRange,
    /// Durable: everything of a lower epoch is refused.
    promised: Epoch,
    /// A promise on its way to the registry.
    promising: Option<Epoch>,
    log: LogView,
    /// Every entry up to here is in the store, or was taken back.
    applied: Seq,
    /// How far an `Apply` that is under way goes.
    settling: Option<Seq>,
    /// Entries on their way into the store that nobody has to ask for.
    immediate: VecDeque<Seq>,
    /// Everything up to here is known to be at or below a Q: it is never cut.
    safe: Seq,
    safe_points: SafePoints,
    tokens: TokenTable,
    /// Somebody has read, or is about to read, everything up to here.
    read_floor: Hlc,
    recent: Recent,
    /// A fence that waits for the promise, for queued appends, and for what was promised to
    /// the leader that it ends.
    fence: Option<fence::Fence>,
    /// An appointment that waits for the promise and for the whole tail to be applied.
    appointment: Option<Appointment>,
    leader: Option<Leader>,
    /// The leader whose log this replica copies.
    following: Option<Following>,
    /// The process that this replica's last append came from (m18).
    attached: Option<follower::Attachment>,
    /// A cut that is under way, by the end that is to stay.
    cutting: Option<Seq>,
    /// The log disagrees with a leader's below what was safe: for good, nothing is taken any more,
    /// no poll is answered.
    diverged: bool,
    /// Highest epoch that this process has led; never again.
    led: Epoch,
    /// The end of the parents' logs that this one goes on from; zero for one that was created.
    base: LogEnd,
    /// The tablets that this one was made of in this process, and whom they followed.
    parents: Vec<(TabletId, follower::Attachment)>,
    /// The seals of the log.
    seals: Seals,
    /// The attempt whose children are staged here, 0 for none.
    staged: Attempt,
    /// What is staged, or no longer, is on its way to the registry.
    is_staging: bool,
    /// Metadata has shown that no attempt up to this one is ever committed.
    aborted: Attempt,
    /// With the seeded bug of m12: what an older epoch of this process left pending.
    left_pending: PendingWrites,
}

/// What the registry and the log say of a replica at start.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The tablet.
    pub id: TabletId,
    /// Its copy here.
    pub replica: ReplicaId,
    /// This run of the process.
    pub incarnation: Incarnation,
    /// Its keys.
    pub range: KeyRange,
    /// The durable promise.
    pub promised: Epoch,
    /// Which epoch began where, oldest first.
    pub epochs: Vec<(Epoch, Seq)>,
    /// Durable end of the log.
    pub end: LogEnd,
    /// Every entry up to here is in the store.
    pub applied: Seq,
    /// The tokens of the log.
    pub tokens: TokenTable,
    /// The end of the parents' logs that this one goes on from; zero for one that was created.
    pub base: LogEnd,
    /// The seals of the log.
    pub seals: Seals,
    /// The attempt whose children are staged, 0 for none.
    pub staged: Attempt,
}

/// The time and the promises between servers as a step finds them.
#[derive(Clone, Copy)]
struct Context<'a> {
    now: Tick,
    promises: &'a dyn Promises,
}

impl Tablet {
    /// A replica as it was found on disk.
    #[must_use]
    pub fn new(recovered: Recovered) -> Self {
        let Recovered { id, replica, incarnation, range, promised, epochs, end, applied, tokens, .. } =
            recovered;
        Self {
            id,
            replica,
            incarnation,
            range,
            // m34: the log may know of a higher epoch than the registry.
            promised: if mutated!(PromiseInMemoryOnly) { promised } else { promised.max(end.pos.epoch) },
            promising: None,
            log: LogView::new(epochs, end),
            applied,
            settling: None,
            immediate: VecDeque::new(),
            safe: Seq(0),
            safe_points: SafePoints::default(),
            tokens: if mutated!(TokensNotRebuilt) { TokenTable::default() } else { tokens },
            read_floor: Hlc::MIN,
            recent: Recent::new(applied),
            fence: None,
            appointment: None,
            leader: None,
            following: None,
            attached: None,
            cutting: None,
            diverged: false,
            led: Epoch(0),
            base: recovered.base,
            parents: Vec::new(),
            seals: recovered.seals,
            staged: recovered.staged,
            is_staging: false,
            aborted: Attempt(0),
            left_pending: PendingWrites::default(),
        }
    }

    /// Lets one thing happen. `now` is a clock that stops for nothing.
    pub fn step(&mut self, now: Tick, promises: &dyn Promises, input: Input, effects: &mut Vec<Effect>) {
        let context = Context { now, promises };
        match input {
            Input::Fence { epoch, gone } => self.fence(context, epoch, gone, effects),
            Input::Appoint(appointment) => self.appoint(context, appointment, effects),
            Input::InSync { epoch, membership } => self.learn_in_sync(context, epoch, membership, effects),
            Input::ProposalRefused { epoch, version } => {
                self.proposal_refused(context, epoch, version, effects);
            }
            Input::PromisePersisted { epoch } => self.promise_persisted(context, epoch, effects),
            Input::Peer(peer) => self.peer(context, peer, effects),
            Input::Connected { server } => self.connected(context, server, effects),
            Input::Silent { server } => self.silent(context, server, effects),
            Input::Superseded { epoch } => self.superseded(epoch, effects),
            Input::Flush => self.flush(context, effects),
            Input::Sent { to, upto } => self.sent(to, upto),
            Input::StreamFailed { to } => self.stream_failed(context, to),
            Input::Purged { to } => self.purged(context, to),
            Input::Write(request) => self.write(context, request, effects),
            Input::Barrier { request, ts, deadline } => self.barrier(request, ts, deadline, effects),
            Input::CloseWanted { ts, fresh } => self.close_wanted(ts, fresh, effects),
            Input::GetOutcome { request, token, wall_ms, ts, deadline } => {
                self.get_outcome(context, Question { request, token, wall_ms, ts, deadline }, effects);
            }
            Input::Transfer { epoch, to, until } => self.transfer(epoch, to, until, effects),
            Input::Seal { epoch, seal, until } => self.seal(context, epoch, seal, until, effects),
            Input::Staged { attempt } => self.note_staged(context, attempt, effects),
            Input::SplitRefused { epoch, attempt } => self.split_refused(context, epoch, attempt),
            Input::SplitAborted { attempt } => self.split_aborted(context, attempt, effects),
            Input::Retire => self.retire(effects),
            Input::Persisted { upto } => self.persisted(context, upto, effects),
            Input::Applied { upto } => self.applied_when_durable(context, upto, effects),
            Input::Settled { upto } => self.settled(context, upto, effects),
            Input::Located { end } => self.located(end, effects),
            Input::Truncated { end, applied } => self.truncated(context, end, applied, effects),
            Input::AppendFailed { from } => self.append_failed(context, from, effects),
            Input::ForgetTokens { issued_before_ms } => self.tokens.forget_before(issued_before_ms),
            Input::StepDown => self.step_down(effects),
            Input::Tick => self.tick(context, effects),
        }
    }

    /// When `Input::Tick` has something to do; none while the tablet is idle.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let leading = self.leader.as_ref().and_then(Leader::next_deadline);
        let held = self.fence.as_ref().and_then(|fence| fence.look_again);
        [leading, held, self.recent.next_deadline()].into_iter().flatten().min()
    }

    /// The tablet.
    #[must_use]
    pub fn id(&self) -> TabletId {
        self.id
    }

    /// Its copy here.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Its keys.
    #[must_use]
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    /// The epoch below which everything is refused.
    #[must_use]
    pub fn promised(&self) -> Epoch {
        self.promised
    }

    /// Which epoch began where, oldest first.
    #[must_use]
    pub fn epochs(&self) -> &[(Epoch, Seq)] {
        self.log.epochs()
    }

    /// The end of the log, durable or not.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        self.log.end()
    }

    /// Durable end of the log.
    #[must_use]
    pub fn durable_end(&self) -> LogEnd {
        self.log.durable()
    }

    /// Every entry up to here is in the store, or was taken back.
    #[must_use]
    pub fn applied_seq(&self) -> Seq {
        self.applied
    }

    /// Everything up to here is at or below a Q: it is never cut nor taken back.
    #[must_use]
    pub fn safe(&self) -> Seq {
        self.safe
    }

    /// Everything up to here is never cut nor taken back while an in-sync copy keeps its data: it is
    /// safe, or fewer than D in-sync copies keep theirs and all of them had it.
    #[must_use]
    pub fn standing(&self) -> Seq {
        self.leader.as_ref().map_or(self.safe, |leader| leader.standing.max(self.safe))
    }

    /// The epoch that this replica leads and serves.
    #[must_use]
    pub fn serving(&self) -> Option<Epoch> {
        self.leader.as_ref().filter(|leader| leader.is_serving()).map(Leader::epoch)
    }

    /// The epoch that this replica leads, serving or not.
    #[must_use]
    pub fn leading(&self) -> Option<Epoch> {
        self.leader.as_ref().map(Leader::epoch)
    }

    /// The published Q of the epoch that this replica leads.
    #[must_use]
    pub fn q(&self) -> Option<Pos> {
        self.leader.as_ref().map(Leader::published).filter(|pos| *pos > Pos::ZERO)
    }

    /// The leader's process that this replica follows, its copy and its epoch.
    #[must_use]
    pub fn follows(&self) -> Option<(Epoch, ReplicaId, PeerRun)> {
        self.following.as_ref().map(|following| (following.epoch, following.leader, following.run))
    }

    /// What every in-sync copy of the epoch that this replica leads has durably, of those that keep
    /// their data.
    #[must_use]
    pub fn everywhere(&self) -> Option<Pos> {
        self.leader.as_ref().map(Leader::held_by_all)
    }

    /// Entries above this are on their way to copies that are there and take them: in sync, or
    /// catching up. None when this replica does not lead.
    #[must_use]
    pub fn wanted_above(&self) -> Option<Seq> {
        let leader = self.leader.as_ref()?;
        let in_sync = leader.progress.in_sync();
        let wants = |(id, peer): (&ReplicaId, &replicate::Peer)| {
            peer.wants_above(leader.progress.of(*id).seq, in_sync.contains(id))
        };
        Some(leader.peers.iter().filter_map(wants).min().unwrap_or(Seq(u64::MAX)))
    }

    /// Copies in sync with this leader, as it knows them.
    #[must_use]
    pub fn in_sync_count(&self) -> Option<usize> {
        self.leader.as_ref().map(|leader| leader.progress.in_sync().len())
    }

    /// Whether the log disagrees with a leader's below what was safe. Such a copy is over: its
    /// rows are not to be read, and it neither follows nor votes.
    #[must_use]
    pub fn is_diverged(&self) -> bool {
        self.diverged
    }

    /// Copies that this leader cannot bring up from its log.
    pub fn behind(&self) -> impl Iterator<Item = ReplicaId> {
        let peers = self.leader.iter().flat_map(|leader| &leader.peers);
        peers.filter(|(_, peer)| peer.is_behind()).map(|(id, _)| *id)
    }

    /// The write tokens of the log up to `upto`, for a copy that begins there.
    #[must_use]
    pub fn tokens_upto(&self, upto: Seq) -> TokenTable {
        let mut tokens = self.tokens.clone();
        tokens.cut(upto.next());
        tokens
    }

    /// How many write tokens are remembered.
    #[must_use]
    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }

    /// Puts an entry of this replica's own epoch behind the log.
    fn append(&mut self, entry: Entry, when: ApplyWhen, effects: &mut Vec<Effect>) {
        let allowed = entry.pos.epoch >= self.promised || mutated!(LowerEpochAccepted);
        assert!(allowed, "m5: nothing below the promise is appended");
        self.assert_may_follow_seal(&entry);
        self.log.append(&entry);
        self.tokens.note_entry(&entry);
        self.seals.note(&entry);
        if mutated!(OwnCopyCountedEarly) {
            self.count_own_copy(entry.pos);
        }
        effects.push(Effect::Append { entry, when });
    }

    /// The leader's own copy counts like any other, once it is durable (m33).
    fn count_own_copy(&mut self, pos: Pos) {
        let own = self.replica;
        if let Some(leader) = &mut self.leader {
            leader.progress.durable(own, pos);
        }
    }

    fn persisted(&mut self, context: Context<'_>, upto: Seq, effects: &mut Vec<Effect>) {
        self.log.persisted(upto);
        self.count_own_copy(self.log.durable().pos);
        self.note_acknowledgement();
        self.proceed(context, effects);
    }

    fn applied_when_durable(&mut self, context: Context<'_>, upto: Seq, effects: &mut Vec<Effect>) {
        let allowed = upto <= self.log.durable().pos.seq || mutated!(ApplyBeforeDurable);
        assert!(allowed, "m38: rows come from the durable log only");
        while self.immediate.front().is_some_and(|seq| *seq <= upto) {
            self.immediate.pop_front();
        }
        if let Some(leader) = &mut self.leader {
            leader.rows = leader.rows.max(upto);
        }
        self.note_applied(context.now);
        self.proceed(context, effects);
    }

    fn settled(&mut self, context: Context<'_>, upto: Seq, effects: &mut Vec<Effect>) {
        self.settling = self.settling.filter(|settling| *settling > upto);
        if let Some(leader) = &mut self.leader {
            leader.pending.settled(upto);
            leader.rows = leader.rows.max(upto);
        } else {
            self.applied = self.applied.max(upto);
        }
        self.recent.settled(upto);
        self.note_applied(context.now);
        self.run_parked(context, effects);
        self.proceed(context, effects);
    }

    /// What a leader has applied without a gap: up to its first pending write.
    fn note_applied(&mut self, now: Tick) {
        if let Some(leader) = &self.leader {
            let upto = leader.pending.first().map_or(leader.rows, |first| leader.rows.min(Seq(first.0 - 1)));
            self.applied = self.applied.max(upto);
        }
        self.recent.applied(now, self.applied);
    }

    fn tick(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        self.recent.tick(context.now);
        self.expire(context, effects);
        self.watch_peers(context, effects);
        self.proceed(context, effects);
    }

    /// Goes on with whatever waited for a promise, for the log, for rows or for other copies.
    fn proceed(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        self.greet(effects);
        self.proceed_fence(context, effects);
        self.proceed_appointment(context, effects);
        self.publish(context, effects);
        self.note_standing(context.now);
        self.apply_safe(effects);
        self.answer_waiting(context, effects);
        self.proceed_seal(context, effects);
        self.proceed_transfer(effects);
    }

    /// Lets rows be applied: of a follower what is safe, of a leader the pending ones that are.
    fn apply_safe(&mut self, effects: &mut Vec<Effect>) {
        let durable = self.log.durable().pos.seq;
        let reached = match mutated!(SafeSplitByDisk) {
            true => Some(self.safe.min(durable)),
            false => self.safe_points.reached(durable),
        };
        let limit = match (&self.leader, reached) {
            (None, _) if mutated!(FollowerAppliesEarly) => durable,
            (_, None) => return,
            (Some(leader), Some(reached)) if leader.pending.first().is_none_or(|first| first > reached) => {
                return;
            }
            (Some(_) | None, Some(reached)) => reached,
        };
        if self.leader.is_none() && self.appointment.is_some() {
            return; // the whole tail is applied, safe or not
        }
        self.apply_upto(limit, effects);
    }

    fn apply_upto(&mut self, upto: Seq, effects: &mut Vec<Effect>) {
        if self.settling.is_none() && self.cutting.is_none() && upto > self.applied {
            debug_assert!(upto <= self.log.durable().pos.seq, "m38: rows come from the durable log only");
            self.settling = Some(upto);
            effects.push(Effect::Apply { upto });
        }
    }
}
