//! The leader's side of copying: probing, streaming, and what acknowledgements say.
//!
//! ```text
//!   ┌─────────┐  Hello: the logs agree up to n   ┌───────────┐
//!   │ Probing │ ───────────────────────────────▶ │ Streaming │ n+1, n+2, ..
//!   └─────────┘ ◀─────────────────────────────── └───────────┘
//!        connection lost, no acknowledgement for a second, another run, a failed read
//! ```
//!
//! A copy whose next entries the log no longer has is *behind*: metadata is told, and gives its
//! server a new copy, which is built from the rows and begins where those end.
//!
//! Progress is bound to the process and the data that reported it: with another run, or after
//! a cut, a copy begins anew with nothing (m15).

use super::leader::Leader;
use super::log_view::agreed;
use super::{Context, Effect, PeerMessage, PeerRun, Stream, Tablet};
use crate::ids::{Attempt, Epoch, Pos, ReplicaId, Seq, ServerId, ServerRun, Tick};
use crate::lease::{LeaseSet, LeaseTerms};
use crate::limits::{
    ACK_SILENCE_MS, IN_SYNC_LAG_BYTES, IN_SYNC_LAG_MS, IN_SYNC_REJOIN_MS, PROBE_RETRY_MS_MAX,
    PROBE_RETRY_MS_MIN, STREAM_WINDOW_ENTRIES,
};
use crate::mutated;

/// Another copy of the tablet, as its leader knows it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub server: ServerId,
    /// Whom the leader talks with.
    pub run: Option<PeerRun>,
    /// The process that has acknowledged an append of this epoch (m19).
    pub attached: Option<ServerRun>,
    /// Nothing was heard from its server for too long.
    pub is_silent: bool,
    /// The attempt whose children it has staged, 0 for none.
    pub ready: Attempt,
    /// Not taken into the in-sync set before.
    pub rejoins_at: Tick,
    /// The log cannot bring it up.
    is_behind: bool,
    state: PeerState,
    /// The first thing that it has not acknowledged.
    owed: Option<Owed>,
    q_sent: Seq,
    q_heard: Seq,
}

#[derive(Clone, Copy, Debug)]
enum PeerState {
    Probing {
        again: Tick,
        pause_ms: u64,
    },
    Streaming {
        next: Seq,
        is_sending: bool,
        since: Tick,
        /// Where the logs agreed when it began.
        agreed: Seq,
        /// Nothing was sent since: the copy is to say once what it has, even if it has all.
        is_new: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Owed {
    since: Tick,
    upto: Seq,
    q: Seq,
    /// Bytes of the epoch when it was noted.
    bytes: u64,
}

impl Peer {
    /// A copy that is asked at once where its log ends.
    pub(super) fn new(server: ServerId, now: Tick) -> Self {
        Self::probed_every(server, now, PROBE_RETRY_MS_MIN)
    }

    /// A copy that is asked at once, and soon again.
    pub(super) fn probed_every(server: ServerId, now: Tick, pause_ms: u64) -> Self {
        let state = PeerState::Probing { again: now, pause_ms };
        Self {
            server,
            run: None,
            attached: None,
            is_silent: false,
            ready: Attempt(0),
            rejoins_at: now,
            is_behind: false,
            state,
            owed: None,
            q_sent: Seq(0),
            q_heard: Seq(0),
        }
    }

    /// Whether it has been behind for too long to be called in sync.
    pub(super) fn lags(&self, now: Tick, bytes: u64) -> bool {
        self.owed.is_some_and(|owed| {
            now.ms_since(owed.since) >= IN_SYNC_LAG_MS || bytes - owed.bytes >= IN_SYNC_LAG_BYTES
        })
    }

    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Entries above this are needed for it, which has those up to `has`; none when it is not
    /// there to take them.
    pub(super) fn wants_above(&self, has: Seq, is_in_sync: bool) -> Option<Seq> {
        if self.is_silent || self.is_behind {
            return None;
        }
        match self.state {
            PeerState::Streaming { agreed, .. } => Some(has.max(agreed)),
            PeerState::Probing { .. } => is_in_sync.then_some(has),
        }
    }

    /// Asks it where its log ends, now and then until it says so.
    pub(super) fn probe_soon(&mut self, now: Tick) {
        self.state = PeerState::Probing { again: now, pause_ms: PROBE_RETRY_MS_MIN };
    }
}

impl Leader {
    /// When something about `peer` is due.
    pub(super) fn peer_deadline(&self, id: ReplicaId, peer: &Peer) -> Option<Tick> {
        let in_sync = self.progress.in_sync().contains(&id);
        let lag = peer.owed.filter(|_| in_sync && self.proposal.is_none());
        let lag = lag.map(|owed| owed.since.plus_ms(IN_SYNC_LAG_MS));
        let rejoin = (!in_sync && self.may_join(id, peer)).then_some(peer.rejoins_at);
        let turn = match peer.state {
            PeerState::Probing { again, .. } => Some(again),
            PeerState::Streaming { since, .. } => {
                peer.owed.map(|owed| owed.since.max(since).plus_ms(ACK_SILENCE_MS))
            }
        };
        [lag, rejoin, turn].into_iter().flatten().min()
    }

    /// What the lease rests on now.
    fn lease_terms(&self, own: ReplicaId) -> LeaseTerms {
        let views = if mutated!(LeaseOwnViewOnly) { 1 } else { usize::MAX };
        let named = self.named_ready().filter(|_| !mutated!(ReadySetIgnored));
        let sets = self.progress.sets().take(views).chain(named.cloned()).map(|set| {
            let needed = self.progress.min_in_sync().min(set.len()).saturating_sub(1);
            let others = set.iter().filter(|replica| **replica != own);
            let runs = others.filter_map(|replica| self.peers.get(replica)?.attached).collect();
            LeaseSet { needed, runs }
        });
        LeaseTerms { sets: sets.collect() }
    }
}

impl Tablet {
    /// Asks every copy where its log ends.
    pub(super) fn probe_all(&mut self, effects: &mut Vec<Effect>) {
        let Some(leader) = &self.leader else { return };
        let epoch = leader.epoch;
        for to in leader.peers.keys() {
            effects.push(Effect::Send { to: *to, epoch, message: PeerMessage::Probe });
        }
    }

    /// The way to a server is open again: whatever was on it may be lost.
    pub(super) fn connected(&mut self, context: Context<'_>, server: ServerId, effects: &mut Vec<Effect>) {
        let Some(leader) = &mut self.leader else {
            self.greet_again_to(server);
            self.greet(effects);
            return;
        };
        let epoch = leader.epoch;
        for (to, peer) in leader.peers.iter_mut().filter(|(_, peer)| peer.server == server) {
            peer.probe_soon(context.now.plus_ms(PROBE_RETRY_MS_MIN));
            effects.push(Effect::Send { to: *to, epoch, message: PeerMessage::Probe });
        }
    }

    fn greet_again_to(&mut self, server: ServerId) {
        if self.following.as_ref().is_some_and(|following| following.run.server.server == server) {
            self.greet_again();
        }
    }

    /// A copy says where its log ends: from there on it is sent what it lacks.
    pub(super) fn hello(
        &mut self,
        context: Context<'_>,
        from: ReplicaId,
        run: PeerRun,
        epoch: Epoch,
        theirs: (Pos, Vec<(Epoch, Seq)>),
        effects: &mut Vec<Effect>,
    ) {
        let (end, epochs) = theirs;
        let agreed = agreed((self.log.epochs(), self.log.end().pos), (&epochs, end));
        // What lies below is in the log of another tablet, and full of others' rows.
        let agreed = agreed.filter(|agreed| *agreed >= self.base.pos.seq);
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch) else { return };
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        if peer.server != run.server.server || peer.run.is_some_and(|known| known.server > run.server) {
            return;
        }
        let is_other = peer.run != Some(run);
        peer.run = Some(run);
        if is_other && !mutated!(ProgressSurvivesRun) {
            peer.attached = None;
        }
        if !mutated!(ProgressSurvivesRun) {
            leader.progress.reset(from);
        }
        peer.is_silent = false;
        peer.ready = Attempt(0);
        (peer.q_sent, peer.q_heard) = (Seq(0), Seq(0));
        // Nothing in common is left to begin at.
        peer.is_behind |= agreed.is_none();
        peer.state = match agreed {
            Some(agreed) => {
                let (next, since) = (agreed.next(), context.now);
                PeerState::Streaming { next, is_sending: false, since, agreed, is_new: true }
            }
            None => PeerState::Probing {
                again: context.now.plus_ms(PROBE_RETRY_MS_MAX),
                pause_ms: PROBE_RETRY_MS_MAX,
            },
        };
        self.tell_lease_terms(effects);
    }

    /// A copy says what it has durably.
    pub(super) fn acknowledged(
        &mut self,
        context: Context<'_>,
        (from, run): (ReplicaId, PeerRun),
        epoch: Epoch,
        (pos, q, ready): (Pos, Seq, Attempt),
        effects: &mut Vec<Effect>,
    ) {
        let own = self.log.pos_at(pos.seq).filter(|own| *own == pos || mutated!(AckByLength));
        let Some(leader) = &mut self.leader else { return };
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        if mutated!(UnattachedPromiseCounts) {
            peer.attached = Some(run.server);
        }
        let is_known = peer.run == Some(run) || mutated!(ProgressSurvivesRun);
        let Some(own) = own.filter(|_| is_known && epoch == leader.epoch) else { return };
        peer.attached = Some(run.server);
        peer.is_silent = false;
        peer.q_heard = peer.q_heard.max(q);
        peer.ready = ready;
        if let PeerState::Streaming { next, .. } = &mut peer.state {
            *next = own.seq.next().max(*next);
        }
        if own > leader.progress.of(from) {
            peer.is_behind = false;
            leader.progressed_at = context.now;
        }
        leader.progress.durable(from, own);
        let has = leader.progress.of(from).seq;
        if peer.owed.is_some_and(|owed| has >= owed.upto && peer.q_heard >= owed.q) {
            peer.owed = None;
        }
        self.tell_lease_terms(effects);
        self.proceed(context, effects);
        self.review_membership(context, effects);
    }

    /// Tells readers what the lease rests on, if that has changed.
    pub(super) fn tell_lease_terms(&mut self, effects: &mut Vec<Effect>) {
        let own = self.replica;
        let Some(leader) = &mut self.leader else { return };
        let terms = leader.lease_terms(own);
        if terms != leader.terms {
            leader.terms = terms.clone();
            effects.push(Effect::Lease(terms));
        }
    }

    /// Lets what gathered for other copies leave.
    pub(super) fn flush(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        self.acknowledge(effects);
        let end = self.log.end().pos.seq;
        let Some(leader) = &mut self.leader else { return };
        let (epoch, q, bytes) = (leader.epoch, leader.published, leader.bytes);
        for (to, peer) in &mut leader.peers {
            let has = leader.progress.of(*to).seq;
            if has >= end && peer.q_heard >= q.seq {
                continue;
            }
            let owed = Owed { since: context.now, upto: end, q: q.seq, bytes };
            peer.owed.get_or_insert(owed);
            let PeerState::Streaming { next, is_sending: is_sending @ false, agreed, is_new, .. } =
                &mut peer.state
            else {
                continue;
            };
            let upto = end.min(Seq(has.max(*agreed).0 + STREAM_WINDOW_ENTRIES));
            let Some(prev) = self.log.pos_at(Seq(next.0 - 1)) else { continue };
            if *next <= upto || peer.q_sent < q.seq || *is_new {
                (*is_sending, *is_new) = (true, false);
                peer.q_sent = q.seq;
                effects.push(Effect::Stream(Stream { to: *to, epoch, prev, from: *next, upto, q }));
            }
        }
    }

    pub(super) fn sent(&mut self, to: ReplicaId, upto: Seq) {
        let peer = self.leader.as_mut().and_then(|leader| leader.peers.get_mut(&to));
        if let Some(PeerState::Streaming { next, is_sending, .. }) = peer.map(|peer| &mut peer.state) {
            *is_sending = false;
            *next = upto.next().max(*next);
        }
    }

    pub(super) fn stream_failed(&mut self, context: Context<'_>, to: ReplicaId) {
        if let Some(peer) = self.leader.as_mut().and_then(|leader| leader.peers.get_mut(&to)) {
            peer.probe_soon(context.now.plus_ms(PROBE_RETRY_MS_MAX));
        }
    }

    /// The log cannot bring the copy up any more.
    pub(super) fn purged(&mut self, context: Context<'_>, to: ReplicaId) {
        if let Some(peer) = self.leader.as_mut().and_then(|leader| leader.peers.get_mut(&to)) {
            peer.is_behind = true;
        }
        self.stream_failed(context, to);
    }

    /// Probes copies that say nothing, and looks whether the in-sync set still is one.
    pub(super) fn watch_peers(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let now = context.now;
        let Some(leader) = &mut self.leader else { return };
        let epoch = leader.epoch;
        for (to, peer) in &mut leader.peers {
            if let (PeerState::Streaming { since, .. }, Some(owed)) = (peer.state, peer.owed)
                && now.ms_since(owed.since.max(since)) >= ACK_SILENCE_MS
            {
                peer.probe_soon(now);
            }
            if let PeerState::Probing { again, pause_ms } = &mut peer.state
                && *again <= now
            {
                *again = now.plus_ms(*pause_ms);
                *pause_ms = (*pause_ms * 2).min(PROBE_RETRY_MS_MAX);
                effects.push(Effect::Send { to: *to, epoch, message: PeerMessage::Probe });
            }
        }
        self.review_membership(context, effects);
    }
}

impl Leader {
    /// Whether a copy outside of the in-sync set has all that a member must have (m10).
    pub(super) fn may_join(&self, id: ReplicaId, peer: &Peer) -> bool {
        let has_all = self.progress.of(id).seq >= self.must_have() || mutated!(ExpandUnchecked);
        let is_here = peer.attached.is_some() && !peer.is_silent && self.proposal.is_none();
        is_here && has_all && self.transfer.is_none()
    }

    /// What every member of the in-sync set must have: everything that was acknowledged above
    /// `leader`, that was published, that stands, and the beginning of the epoch.
    pub(super) fn must_have(&self) -> Seq {
        self.acked.max(self.published.seq).max(self.standing).max(self.start)
    }

    /// After how long a copy that left may come back.
    pub(super) fn rejoin_at(now: Tick) -> Tick {
        now.plus_ms(IN_SYNC_REJOIN_MS)
    }
}
