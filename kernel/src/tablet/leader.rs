//! A replica that leads one epoch: its start, what it waits for, and its end.

use super::pending::{PendingWrites, Window};
use super::progress::Progress;
use super::replicate::Peer;
use super::seal::{Commit, Sealing};
use super::{
    Answer, ApplyWhen, Appointment, Context, Effect, Membership, Proposal, Refusal, Tablet, WriteRequest,
};
use crate::entry::Payload;
use crate::ids::{Epoch, Pos, ReplicaId, RequestId, Seq, Tick};
use crate::lease::LeaseTerms;
use crate::limits::{CHILD_PROBE_RETRY_MS, LEASE_HEARTBEAT_MS, PROBE_RETRY_MS_MIN, STANDING_EVERY_MS};
use crate::mutated;
use crate::op::{AckLevel, Committed};
use crate::sequence::Recent;
use std::collections::{BTreeMap, BTreeSet};

/// What a client waits for.
#[derive(Clone, Debug)]
pub(super) enum Wait {
    /// A write at its level.
    Level(Committed),
    /// An older write of the same token, or a question for it: Q decides (m37).
    Decided(Answer),
    /// Everything up to a position in the store but for pending writes, then this.
    Rows(Answer),
    /// Everything up to a position in the store or taken back, then this.
    Settled(Answer),
}

#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub request: RequestId,
    pub wait: Wait,
    pub deadline: Tick,
}

/// Leadership on its way to another copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub to: ReplicaId,
    pub until: Tick,
}

/// A replica that leads one epoch.
#[derive(Debug)]
pub(super) struct Leader {
    pub epoch: Epoch,
    /// Position of its EpochStart.
    pub start: Seq,
    pub serving: bool,
    pub progress: Progress,
    /// The highest Q that anybody was told or that made anything visible.
    pub published: Pos,
    /// Highest index that was acknowledged above `leader` (A).
    pub acked: Seq,
    /// While fewer than D in-sync copies keep their data: what all of them had when that was last
    /// looked at.
    pub standing: Seq,
    standing_at: Tick,
    /// Every entry up to here that was to be applied when durable is in the store.
    pub rows: Seq,
    pub pending: PendingWrites,
    pub window: Option<Window>,
    /// Writes that wait for a pending one of the same row.
    pub parked: Vec<WriteRequest>,
    /// Who waits for rows only: the leader's own disk decides.
    pub fast: BTreeMap<Seq, Vec<Waiter>>,
    /// Who waits for Q or for copies.
    pub slow: BTreeMap<Seq, Vec<Waiter>>,
    /// No deadline of a waiter is earlier.
    pub earliest: Option<Tick>,
    pub peers: BTreeMap<ReplicaId, Peer>,
    /// The change of the in-sync set under way, and when to ask again.
    pub proposal: Option<(Proposal, Tick)>,
    /// The in-sync set does not shrink below this.
    pub shrink_floor: usize,
    /// A copy that is to leave the set, for good.
    pub leaving: Option<ReplicaId>,
    pub transfer: Option<Transfer>,
    /// The tablet is to be sealed once no write waits for copies.
    pub sealing: Option<Sealing>,
    /// The commit that was asked for and of which nothing is known (m24).
    pub commit: Option<Commit>,
    /// The copies of every commit that was asked for since the seal.
    pub named: BTreeSet<BTreeSet<ReplicaId>>,
    /// When so many copies were ready that a commit is possible.
    pub ready_since: Option<Tick>,
    /// No commit is asked for before.
    pub commit_after: Tick,
    /// What readers were last told of the lease.
    pub terms: LeaseTerms,
    /// Somebody waits for nothing but the lease: when to look again.
    pub lease_look: Option<Tick>,
    /// Nothing but the lease keeps the epoch from being served: when to look again.
    pub serve_look: Option<Tick>,
    /// When the epoch began here.
    pub began: Tick,
    /// When some copy last acknowledged something new.
    pub progressed_at: Tick,
    /// Bytes appended in this epoch, for telling how far a copy is behind.
    pub bytes: u64,
}

/// How long after the start of an epoch a copy counts as live without having promised: two
/// rounds of promises.
const UNHEARD_MS: u64 = 2 * LEASE_HEARTBEAT_MS;

/// How soon to look whether the lease is back.
const LEASE_LOOK_MS: u64 = 20;

impl Leader {
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) fn is_serving(&self) -> bool {
        self.serving
    }

    pub(super) fn published(&self) -> Pos {
        self.published
    }

    pub(super) fn next_deadline(&self) -> Option<Tick> {
        let parked = self.parked.iter().map(|write| write.deadline).min();
        let peers = self.peers.iter().filter_map(|(id, peer)| self.peer_deadline(*id, peer)).min();
        let proposal = self.proposal.as_ref().map(|(_, again)| *again);
        let transfer = self.transfer.map(|transfer| transfer.until);
        let pending = self.pending.next_deadline();
        let (lease, serve, seal) = (self.lease_look, self.serve_look, self.seal_deadline());
        let own = [self.earliest, parked, peers, proposal, transfer, pending, lease, serve, seal];
        own.into_iter().flatten().min()
    }

    /// Whether copies that can be reached suffice for `level`.
    pub(super) fn can_reach(&self, context: Context<'_>, level: AckLevel) -> bool {
        self.progress.can_reach(level, |replica| self.is_live(context, replica))
    }

    /// A copy that has had no time yet to be heard from in this epoch counts as live.
    pub(super) fn is_live(&self, context: Context<'_>, replica: ReplicaId) -> bool {
        let is_new = context.now.ms_since(self.began) < UNHEARD_MS;
        let run = self.peers.get(&replica).and_then(|peer| peer.attached);
        is_new || run.is_some_and(|run| context.promises.counted_until(run) > context.now)
    }

    pub(super) fn holds_lease(&self, context: Context<'_>) -> bool {
        self.terms.hold(context.now, context.promises)
    }

    pub(super) fn wait(&mut self, seq: Seq, waiter: Waiter) {
        let deadline = waiter.deadline;
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        let is_fast = match &waiter.wait {
            Wait::Level(committed) => committed.level == AckLevel::Leader,
            Wait::Rows(_) => true,
            Wait::Decided(_) | Wait::Settled(_) => false,
        };
        let waiting = if is_fast { &mut self.fast } else { &mut self.slow };
        waiting.entry(seq).or_default().push(waiter);
    }

    /// Takes out whoever waits for nothing any more.
    fn take_ready(&mut self, context: Context<'_>, applied: Seq) -> Vec<(RequestId, Answer)> {
        let mut ready = Vec::new();
        self.take_fast(context, &mut ready);
        let upto = self.published.seq.max(applied);
        if self.slow.first_key_value().is_some_and(|(seq, _)| *seq <= upto) {
            let later = self.slow.split_off(&upto.next());
            let reached = std::mem::replace(&mut self.slow, later);
            for (seq, waiters) in reached {
                let (done, open): (Vec<_>, Vec<_>) =
                    waiters.into_iter().partition(|waiter| self.is_done(seq, &waiter.wait, applied));
                ready.extend(done.into_iter().map(|waiter| (waiter.request, self.answer(seq, waiter.wait))));
                if !open.is_empty() {
                    self.slow.insert(seq, open);
                }
            }
        }
        if self.fast.is_empty() && self.slow.is_empty() {
            self.earliest = None;
        }
        ready
    }

    /// The lease is looked at after the work, before the answer.
    fn take_fast(&mut self, context: Context<'_>, ready: &mut Vec<(RequestId, Answer)>) {
        self.lease_look = None;
        let is_due = |(seq, _): (&Seq, _)| *seq <= self.rows;
        if !self.fast.first_key_value().is_some_and(is_due) {
            return;
        }
        if !self.holds_lease(context) && !mutated!(LeaseUncheckedAtAck) {
            self.lease_look = Some(context.now.plus_ms(LEASE_LOOK_MS));
            return;
        }
        let later = self.fast.split_off(&self.rows.next());
        let due = std::mem::replace(&mut self.fast, later);
        let answers = due.into_values().flatten().map(|waiter| (waiter.request, waiter.wait.into_answer()));
        ready.extend(answers);
    }

    fn is_done(&mut self, seq: Seq, wait: &Wait, applied: Seq) -> bool {
        let is_visible = self.rows >= seq && (!self.pending.is_hidden(seq) || mutated!(PendingShown));
        match wait {
            Wait::Level(committed) => {
                let done = is_visible && self.progress.reached(committed.level, seq);
                if done {
                    self.acked = self.acked.max(seq);
                }
                done
            }
            Wait::Decided(Answer::Committed(_)) => is_visible && seq <= self.published.seq,
            Wait::Decided(_) => seq <= self.published.seq,
            Wait::Rows(_) => self.rows >= seq,
            Wait::Settled(_) => applied >= seq,
        }
    }

    /// What to say to a waiter for `seq`. Q decides that a write stands, and says of its level
    /// only that D copies have it.
    fn answer(&self, seq: Seq, wait: Wait) -> Answer {
        match wait {
            Wait::Decided(Answer::Committed(committed)) if !self.progress.reached(committed.level, seq) => {
                let copies = u8::try_from(self.progress.min_in_sync()).unwrap_or(u8::MAX);
                Answer::Committed(Committed { level: AckLevel::Copies(copies), ..committed })
            }
            wait => wait.into_answer(),
        }
    }

    fn take_expired(&mut self, now: Tick) -> Vec<RequestId> {
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        let mut expired = Vec::new();
        for waiting in [&mut self.fast, &mut self.slow] {
            for waiters in waiting.values_mut() {
                expired.extend(waiters.extract_if(.., |w| w.deadline <= now).map(|w| w.request));
            }
            waiting.retain(|_, waiters| !waiters.is_empty());
        }
        let left = self.fast.values().chain(self.slow.values()).flatten();
        self.earliest = left.map(|waiter| waiter.deadline).min();
        expired
    }

    /// One of the set whose data is lost has no peer. It answers no poll (m16), so nobody is ever
    /// elected for what it lacks.
    pub(super) fn is_lost(&self, replica: ReplicaId) -> bool {
        replica != self.progress.own() && !self.peers.contains_key(&replica)
    }

    /// The position that every in-sync copy has durably, of those that keep their data.
    pub(super) fn held_by_all(&self) -> Pos {
        let held = |replica: &ReplicaId| (!self.is_lost(*replica)).then(|| self.progress.of(*replica));
        self.progress.in_sync().iter().filter_map(held).min().unwrap_or(Pos::ZERO)
    }

    /// Whether no set that may be in force has D members that keep their data.
    pub(super) fn is_below_min(&self) -> bool {
        let live = self.progress.in_sync().iter().filter(|id| !self.is_lost(**id)).count();
        live + self.progress.coming() < self.progress.min_in_sync()
    }

    /// The in-sync copy that has everything, if there is one.
    fn successor(&self, end: Pos) -> Option<ReplicaId> {
        let peers = self.peers.keys().filter(|replica| self.progress.in_sync().contains(replica));
        peers.copied().find(|replica| self.progress.of(*replica) == end)
    }
}

impl Wait {
    fn into_answer(self) -> Answer {
        match self {
            Self::Level(committed) => Answer::Committed(committed),
            Self::Decided(answer) | Self::Rows(answer) | Self::Settled(answer) => answer,
        }
    }
}

impl Tablet {
    pub(super) fn appoint(
        &mut self,
        context: Context<'_>,
        appointment: Appointment,
        effects: &mut Vec<Effect>,
    ) {
        let own_run = appointment.incarnation == self.incarnation || mutated!(AnyIncarnationLeads);
        let mine = appointment.replica == self.replica && own_run;
        if !mine || self.is_stale(appointment.epoch) {
            return;
        }
        self.step_down(effects);
        self.following = None;
        self.promise(appointment.epoch, effects);
        self.appointment = Some(appointment);
        self.proceed(context, effects);
    }

    /// Whether `epoch` must not begin here: a later one is promised, even if that promise is
    /// still on its way to the registry (m5, m32), or it began already, in this process or,
    /// as the log says, in an earlier one (m7).
    fn is_stale(&self, epoch: Epoch) -> bool {
        let promising = self.promising.filter(|_| !mutated!(PromiseInFlightIgnored)).unwrap_or_default();
        (epoch < self.promised.max(promising) && !mutated!(LowerEpochAccepted))
            || epoch <= self.led.max(self.log.end().pos.epoch)
    }

    /// Begins the epoch once the promise is durable and the whole old tail is applied.
    pub(super) fn proceed_appointment(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let is_promised =
            self.appointment.as_ref().is_some_and(|appointment| appointment.epoch <= self.promised);
        if !is_promised || self.cutting.is_some() || !self.log.is_durable() {
            self.serve_when_started(context, effects);
            return;
        }
        let end = self.log.durable().pos.seq;
        if self.applied < end {
            self.apply_upto(end, effects);
        } else if self.settling.is_none()
            && self.immediate.is_empty()
            && let Some(appointment) = self.appointment.take()
        {
            self.start_epoch(context, appointment, effects);
        }
    }

    fn start_epoch(&mut self, context: Context<'_>, appointment: Appointment, effects: &mut Vec<Effect>) {
        let Appointment { epoch, membership, min_in_sync, shrink_floor, ts, .. } = appointment;
        if epoch != self.promised && !mutated!(LowerEpochAccepted) {
            return; // promised to a later epoch meanwhile
        }
        let payload = Payload::EpochStart { replica: self.replica, incarnation: self.incarnation };
        let end = self.log.end();
        let entry = end.follow(epoch, ts.max(end.ts.next()), payload);
        let Membership { version, in_sync, members, leaving } = membership;
        self.led = epoch;
        self.following = None;
        self.attached = None;
        self.recent = Recent::new(self.applied);
        let (own, pending) = (self.replica, self.take_left_pending());
        let peers = members.into_iter().filter(|(replica, _)| *replica != own);
        // Beside a child that begins here the others begin at the same time.
        let is_new = end == self.base && end.pos.seq > Seq(0);
        let pause_ms = if is_new { CHILD_PROBE_RETRY_MS } else { PROBE_RETRY_MS_MIN };
        let peer = |(replica, server)| (replica, Peer::probed_every(server, context.now, pause_ms));
        self.leader = Some(Leader {
            epoch,
            start: entry.seq(),
            serving: false,
            progress: Progress::new(epoch, own, in_sync, version, min_in_sync),
            published: Pos::ZERO,
            acked: Seq(0),
            standing: Seq(0),
            standing_at: Tick(0),
            rows: self.applied,
            pending,
            window: None,
            parked: Vec::new(),
            fast: BTreeMap::new(),
            slow: BTreeMap::new(),
            earliest: None,
            peers: peers.map(peer).collect(),
            proposal: None,
            shrink_floor: usize::from(shrink_floor).max(1),
            leaving,
            transfer: None,
            sealing: None,
            commit: None,
            named: BTreeSet::new(),
            ready_since: None,
            commit_after: Tick(0),
            terms: LeaseTerms::default(),
            lease_look: None,
            serve_look: None,
            began: context.now,
            progressed_at: context.now,
            bytes: 0,
        });
        if mutated!(QCountsOlderEpochs) {
            self.count_own_copy(self.log.durable().pos);
        }
        self.append_immediate(entry, effects);
        self.tell_lease_terms(effects);
        self.probe_all(effects);
    }

    /// Default reads start when Q has reached EpochStart and it is applied. A leader whose
    /// in-sync set is below D (a degraded table) has no Q and serves alone. Whoever is told that
    /// the tablet serves can write to it, so the lease is waited for as well.
    fn serve_when_started(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let durable = self.log.durable().pos.seq;
        let Some(leader) = &mut self.leader else { return };
        let is_alone = leader.progress.in_sync().len() < leader.progress.min_in_sync();
        let is_safe = leader.published.seq >= leader.start || (is_alone && durable >= leader.start);
        if leader.serving || leader.rows < leader.start || !is_safe {
            return;
        }
        if leader.holds_lease(context) {
            leader.serving = true;
            leader.serve_look = None;
            effects.push(Effect::Serve { epoch: leader.epoch });
        } else {
            leader.serve_look = Some(context.now.plus_ms(LEASE_LOOK_MS));
        }
    }

    /// Publishes Q: everything at or below it is decided, here and for whoever is told.
    pub(super) fn publish(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let Some(leader) = &mut self.leader else { return };
        let Some(mut q) = leader.progress.q() else { return };
        if let Some(window) = leader.window {
            match self.log.pos_at(window.limit(q.seq)) {
                Some(limited) => q = limited,
                None => return,
            }
        }
        if q > leader.published && (q.epoch == leader.epoch || mutated!(QCountsOlderEpochs)) {
            leader.note_published(q);
            self.safe = self.safe.max(q.seq);
            self.safe_points.note(q.seq);
            self.serve_when_started(context, effects);
            self.review_membership(context, effects);
        }
    }

    /// With fewer than D copies that keep their data nothing is published. What all of them have stands
    /// as well: nobody else can be elected, and whoever comes in must have it. Without that no copy
    /// could be built, and log and old versions would grow for as long as copies are lacking.
    pub(super) fn note_standing(&mut self, now: Tick) {
        let Some(leader) = &mut self.leader else { return };
        let is_due = leader.standing < leader.start || now.ms_since(leader.standing_at) >= STANDING_EVERY_MS;
        if !is_due || !leader.is_below_min() {
            return;
        }
        let decided = leader.pending.first().map_or(Seq(u64::MAX), |first| Seq(first.0.saturating_sub(1)));
        let held = leader.held_by_all().seq.min(leader.rows).min(decided);
        let held = leader.window.map_or(held, |window| window.limit(held));
        if held >= leader.start && held > leader.standing {
            (leader.standing, leader.standing_at) = (held, now);
        }
    }

    /// Answers everyone whose condition has come true.
    pub(super) fn answer_waiting(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let applied = self.applied;
        let Some(leader) = &mut self.leader else { return };
        for (request, answer) in leader.take_ready(context, applied) {
            effects.push(Effect::Reply { request, answer });
        }
    }

    pub(super) fn expire(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        self.revert_failed(context, effects);
        let Some(leader) = &mut self.leader else { return };
        for request in leader.take_expired(context.now) {
            effects.push(Effect::Reply { request, answer: Answer::Unknown });
        }
        let is_late = |write: &mut WriteRequest| write.deadline <= context.now;
        for write in leader.parked.extract_if(.., is_late) {
            let answer = Answer::Refused(Refusal::WaitTimedOut);
            effects.push(Effect::Reply { request: write.request, answer });
        }
        if leader.transfer.is_some_and(|transfer| transfer.until <= context.now) {
            leader.transfer = None;
        }
    }

    /// Takes no more writes and hands over once the successor has everything.
    pub(super) fn transfer(&mut self, epoch: Epoch, to: ReplicaId, until: Tick, effects: &mut Vec<Effect>) {
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch) else { return };
        if !leader.progress.in_sync().contains(&to) || !leader.peers.contains_key(&to) {
            return;
        }
        leader.transfer = Some(Transfer { to, until });
        for write in std::mem::take(&mut leader.parked) {
            let answer = Answer::Refused(Refusal::Transferring);
            effects.push(Effect::Reply { request: write.request, answer });
        }
        // An idle tablet is handed over at once: nothing else would come by.
        self.proceed_transfer(effects);
    }

    pub(super) fn proceed_transfer(&mut self, effects: &mut Vec<Effect>) {
        let end = self.log.end().pos;
        let Some(leader) = &self.leader else { return };
        let Some(transfer) = leader.transfer else { return };
        let is_quiet = leader.fast.is_empty() && leader.slow.is_empty() && self.log.is_durable();
        if is_quiet && leader.progress.of(transfer.to) == end {
            self.end_epoch(Some(transfer.to), effects);
        }
    }

    /// Gives up the epoch for good; whoever waits is told that nobody can say yet.
    pub(super) fn step_down(&mut self, effects: &mut Vec<Effect>) {
        self.appointment = None;
        let end = self.log.end().pos;
        let successor = self.leader.as_ref().and_then(|leader| leader.successor(end));
        self.end_epoch(successor, effects);
    }

    fn end_epoch(&mut self, successor: Option<ReplicaId>, effects: &mut Vec<Effect>) {
        let Some(leader) = self.leader.take() else { return };
        effects.push(Effect::StopServing { epoch: leader.epoch, successor });
        for waiter in leader.fast.into_values().chain(leader.slow.into_values()).flatten() {
            let answer = match waiter.wait {
                Wait::Rows(_) | Wait::Settled(_) => Answer::Refused(Refusal::NotLeader),
                Wait::Level(_) | Wait::Decided(_) => Answer::Unknown,
            };
            effects.push(Effect::Reply { request: waiter.request, answer });
        }
        for write in leader.parked {
            let answer = Answer::Refused(Refusal::NotLeader);
            effects.push(Effect::Reply { request: write.request, answer });
        }
        self.leave_pending(leader.pending);
    }

    /// With the seeded bug of m12 a later epoch of this process takes back what this one left.
    fn leave_pending(&mut self, pending: PendingWrites) {
        if mutated!(OlderEpochReverted) {
            self.left_pending = pending;
        }
    }

    fn take_left_pending(&mut self) -> PendingWrites {
        std::mem::take(&mut self.left_pending)
    }

    /// Appends an entry whose rows, if any, go into the store when it is durable.
    pub(super) fn append_immediate(&mut self, entry: crate::entry::Entry, effects: &mut Vec<Effect>) {
        self.immediate.push_back(entry.seq());
        self.append(entry, ApplyWhen::Durable, effects);
    }
}
