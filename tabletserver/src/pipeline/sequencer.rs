//! The sequencer thread: owns the tablet cores and feeds them. What they want done is done in
//! `effects.rs`.
//!
//! A round takes everything that waits, steps the cores, lets them say what gathered for other
//! servers (`Input::Flush`), and only then hands the group to the log: entries are on their way
//! to other copies before the sync here begins.

use super::Group;
use super::apply::Order;
use super::cut::Work;
use super::early::EarlyProbes;
use super::effects::Marks;
use super::lane::Lane;
use super::messages::{Appointed, Ask, Control, Fenced, Outward, PeerMessages, Reply, Request};
use crate::clock::Clock;
use crate::limits;
use crate::promises::Leases;
use crate::replication::Peers;
use crate::succession::Staging;
use crate::tablets::TabletHandle;
use crossbeam::channel::{Receiver, Select, Sender};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, ReplicaId, RequestId, Seq, ServerId, TabletId, Tick};
use ebla_kernel::limits::{SEAL_CONTACT_MS, TOKEN_WINDOW_MS, TOKENS_PER_SERVER_MAX};
use ebla_kernel::tablet::{
    Answer, Appointment, Effect, FenceAnswer, Input, Membership, PeerInput, PeerMessage, Proposal, Refusal,
    SplitProposal, Tablet, WriteRequest,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::error;

/// One replica here.
pub(super) struct Slot {
    pub(super) tablet: Tablet,
    pub(super) handle: Arc<TabletHandle>,
    /// Where the other copies are.
    pub(super) servers: BTreeMap<ReplicaId, ServerId>,
    /// The in-sync set as metadata last told it.
    in_sync: BTreeSet<ReplicaId>,
    /// There are other copies.
    pub(super) has_peers: bool,
    pub(super) standing: Marks,
    pub(super) safe: Marks,
    /// Stepped in this round.
    is_touched: bool,
}

/// What a sequencer begins with.
pub struct SequencerParts {
    /// Requests of clients.
    pub requests: Receiver<Request>,
    /// Everything else that comes in.
    pub control: Receiver<Control>,
    /// Where groups of tablets on disk go.
    pub log: Sender<Group>,
    /// Where groups of tablets in memory go: they never wait for a disk.
    pub memory_log: Sender<Group>,
    /// Where orders to the apply thread go.
    pub orders: Sender<Order>,
    /// Where questions to the log go.
    pub cuts: Sender<Work>,
    /// Where news for the rest of the server go.
    pub outward: mpsc::UnboundedSender<Outward>,
    /// Timestamps.
    pub clock: Arc<Clock>,
    /// Promises between servers.
    pub leases: Arc<Leases>,
    /// The ways to other servers.
    pub peers: Arc<Peers>,
}

/// What the sequencer thread works with.
pub struct Sequencer {
    requests: Receiver<Request>,
    control: Receiver<Control>,
    /// What gathers for the log on disk.
    pub(super) disk: Lane,
    /// What gathers for the log in memory.
    pub(super) memory: Lane,
    pub(super) orders: Sender<Order>,
    pub(super) cuts: Sender<Work>,
    outward: mpsc::UnboundedSender<Outward>,
    pub(super) clock: Arc<Clock>,
    pub(super) leases: Arc<Leases>,
    pub(super) peers: Arc<Peers>,
    pub(super) slots: HashMap<TabletId, Slot>,
    pub(super) waiting: HashMap<RequestId, Reply>,
    next_request: RequestId,
    /// Groups handed on and not applied yet, and those who wait for none to be.
    in_flight: usize,
    drained: Vec<oneshot::Sender<()>>,
    /// Retired cores that wait for the same.
    leaving: Vec<Leaving>,
    /// Tablets whose cores have a deadline.
    timed: HashSet<TabletId>,
    /// Tablets that remember tokens, and how many there are in all.
    with_tokens: HashSet<TabletId>,
    tokens: usize,
    tokens_checked: Tick,
    draining: Option<oneshot::Sender<()>>,
    stopped: bool,
    effects: Vec<Effect>,
    /// Tablets that were stepped in this round.
    touched: Vec<TabletId>,
    /// Tablets that keep entries in memory for other copies.
    pub(super) with_tails: HashSet<TabletId>,
    tails_swept: Tick,
    /// Until then timers are looked at often: tablets have just taken another's place, and their
    /// copies on other servers appear any moment.
    hurry_until: Tick,
    /// Questions for copies that may be about to come.
    early: EarlyProbes,
    /// Streams for which there was no way.
    pub(super) unsent: Vec<(TabletId, ReplicaId)>,
    pub(super) promises: Vec<(TabletId, Epoch)>,
    pub(super) fence_answers: Vec<(TabletId, ReplicaId, FenceAnswer)>,
    pub(super) proposals: Vec<(TabletId, Proposal)>,
    pub(super) stagings: Vec<Staging>,
    pub(super) commits: Vec<(TabletId, SplitProposal)>,
    pub(super) serving_changed: bool,
}

/// A core on its way out.
struct Leaving {
    core: Box<Tablet>,
    to: oneshot::Sender<Option<Box<Tablet>>>,
}

enum Wake {
    Control(Control),
    Request(Request),
    Handed,
    Timeout,
    Stopped,
}

impl Sequencer {
    /// A sequencer of no tablets.
    #[must_use]
    pub fn new(parts: SequencerParts) -> Self {
        let SequencerParts {
            requests,
            control,
            log,
            memory_log,
            orders,
            cuts,
            outward,
            clock,
            leases,
            peers,
        } = parts;
        Self {
            requests,
            control,
            disk: Lane::new(log),
            memory: Lane::new(memory_log),
            orders,
            cuts,
            outward,
            clock,
            leases,
            peers,
            slots: HashMap::new(),
            waiting: HashMap::new(),
            next_request: RequestId(0),
            in_flight: 0,
            drained: Vec::new(),
            leaving: Vec::new(),
            timed: HashSet::new(),
            with_tokens: HashSet::new(),
            tokens: 0,
            tokens_checked: Tick(0),
            draining: None,
            stopped: false,
            effects: Vec::new(),
            touched: Vec::new(),
            with_tails: HashSet::new(),
            tails_swept: Tick(0),
            hurry_until: Tick(0),
            early: EarlyProbes::default(),
            unsent: Vec::new(),
            promises: Vec::new(),
            fence_answers: Vec::new(),
            proposals: Vec::new(),
            stagings: Vec::new(),
            commits: Vec::new(),
            serving_changed: false,
        }
    }

    /// Runs until every way in is closed.
    pub fn run(mut self) {
        loop {
            match self.wait() {
                Wake::Control(control) => self.control(control),
                Wake::Request(request) => self.request(request),
                Wake::Handed | Wake::Timeout => {}
                Wake::Stopped => return,
            }
            self.drain();
            self.tick();
            self.flush();
            self.hand_on();
            self.finish_drain();
            self.send_outward();
            if self.stopped {
                return;
            }
        }
    }

    /// Waits for whatever comes first; hands the pending group on when the log is free.
    fn wait(&mut self) -> Wake {
        // Clones: the lanes change while the selection still holds these.
        let (disk_log, memory_log) = (self.disk.log().clone(), self.memory.log().clone());
        let mut select = Select::new();
        let control = select.recv(&self.control);
        let requests = self.takes_requests().then(|| select.recv(&self.requests));
        let disk = (!self.disk.is_empty()).then(|| select.send(&disk_log));
        let memory = (!self.memory.is_empty()).then(|| select.send(&memory_log));
        let Ok(ready) = select.select_timeout(self.patience()) else { return Wake::Timeout };
        let index = ready.index();
        if index == control {
            return ready.recv(&self.control).map_or(Wake::Stopped, Wake::Control);
        }
        if Some(index) == requests {
            return ready.recv(&self.requests).map_or(Wake::Stopped, Wake::Request);
        }
        debug_assert!(Some(index) == disk || Some(index) == memory);
        self.in_flight += 1;
        let (group, log) = match Some(index) == disk {
            true => (self.disk.take(), &disk_log),
            false => (self.memory.take(), &memory_log),
        };
        match ready.send(log, group) {
            Ok(()) => Wake::Handed,
            Err(_) => Wake::Stopped,
        }
    }

    /// Takes what else is waiting, up to a full group.
    fn drain(&mut self) {
        for _ in 0..limits::SEQUENCER_DRAIN_MAX {
            if let Ok(control) = self.control.try_recv() {
                self.control(control);
            } else if !self.takes_requests() {
                break;
            } else if let Ok(request) = self.requests.try_recv() {
                self.request(request);
            } else {
                break;
            }
        }
    }

    fn takes_requests(&self) -> bool {
        self.disk.bytes() + self.memory.bytes() < limits::GROUP_BYTES_MAX
            && self.waiting.len() < limits::REQUESTS_IN_FLIGHT_MAX
    }

    fn patience(&self) -> Duration {
        match (self.timed.is_empty(), self.clock.tick() < self.hurry_until) {
            (true, _) => limits::SEQUENCER_IDLE_WAIT,
            (false, true) => limits::SEQUENCER_TIMER_HURRY,
            (false, false) => limits::SEQUENCER_TIMER,
        }
    }

    fn hand_on(&mut self) {
        for lane in [&mut self.memory, &mut self.disk] {
            self.in_flight += usize::from(lane.hand_on());
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Stop => self.stopped = true,
            Control::Install(tablet, handle) => self.install(*tablet, handle),
            Control::Remove(tablet, done) => self.remove(tablet, done),
            Control::Fence(fences) => self.fence(fences),
            Control::Appoint(appointed) => self.appoint(appointed),
            Control::ProposalsRefused(refused) => {
                let refused = refused.into_iter().map(|(id, epoch, version)| (id, (epoch, version)));
                self.each(refused, |(epoch, version)| Input::ProposalRefused { epoch, version });
            }
            Control::Transfer(transfers) => {
                let until = self.clock.tick().plus_ms(limits::TRANSFER_PATIENCE_MS);
                let transfers = transfers.into_iter().map(|(id, epoch, to)| (id, (epoch, to)));
                self.each(transfers, |(epoch, to)| Input::Transfer { epoch, to, until });
            }
            Control::Seal(orders) => {
                // The order is the last word of the masters.
                let until = self.clock.tick().plus_ms(SEAL_CONTACT_MS);
                let orders = orders.into_iter().map(|(id, epoch, seal)| (id, (epoch, seal)));
                for (id, (epoch, seal)) in orders {
                    self.step(id, Input::Seal { epoch, seal, until });
                }
            }
            Control::Staged(staged) => self.each(staged, |attempt| Input::Staged { attempt }),
            Control::SplitRefused(refused) => {
                let refused = refused.into_iter().map(|(id, epoch, attempt)| (id, (epoch, attempt)));
                self.each(refused, |(epoch, attempt)| Input::SplitRefused { epoch, attempt });
            }
            Control::Retire(tablet, core) => self.retire(tablet, core),
            Control::PromisePersisted(promises) => {
                self.each(promises, |epoch| Input::PromisePersisted { epoch });
            }
            Control::Peers(messages) => self.peers_say(messages),
            Control::Connected(server) => self.all(|| Input::Connected { server }),
            Control::Silent(server) => self.all(|| Input::Silent { server }),
            Control::Superseded(epochs, done) => {
                self.each(epochs, |epoch| Input::Superseded { epoch });
                // Whoever waited is gone with its connection.
                let _ = done.send(());
            }
            Control::Sent(sent) => {
                let sent = sent.into_iter().map(|(id, to, upto)| (id, (to, upto)));
                self.each(sent, |(to, upto)| Input::Sent { to, upto });
            }
            Control::StreamFailed(failed) => self.each(failed, |to| Input::StreamFailed { to }),
            Control::Purged(copies) => self.each(copies, |to| Input::Purged { to }),
            Control::Tokens(tablet, upto, answer) => {
                // What is sealed is about to be retired: its successors are sent.
                let slot = self.slots.get(&tablet).filter(|slot| slot.tablet.sealed().is_none());
                let tokens = slot.map(|slot| slot.tablet.tokens_upto(upto));
                // Whoever asked may have gone.
                let _ = answer.send(tokens);
            }
            Control::CloseWanted(tablet, ts) => self.close_wanted(tablet, ts),
            Control::Persisted(ends) => self.persisted(ends),
            Control::Applied { groups, ends } => {
                self.in_flight -= groups;
                self.each(ends, |upto| Input::Applied { upto });
                self.tell_drained();
            }
            Control::Settled(ends) => self.each(ends, |upto| Input::Settled { upto }),
            Control::Located(ends) => self.each(ends, |end| Input::Located { end }),
            Control::Truncated(ends) => {
                let ends = ends.into_iter().map(|(id, end, applied)| (id, (end, applied)));
                self.each(ends, |(end, applied)| Input::Truncated { end, applied });
            }
            Control::AppendFailed(starts) => self.append_failed(starts),
            Control::HandOver(done) => self.hand_over(done),
            Control::Drain(done) => self.draining = Some(done),
        }
    }

    fn install(&mut self, tablet: Tablet, handle: Arc<TabletHandle>) {
        let id = tablet.id();
        if handle.base.pos.seq > Seq(0) {
            self.hurry_until = self.clock.tick().plus_ms(limits::HURRY_MS);
        }
        self.tokens += tablet.token_count();
        if tablet.token_count() > 0 {
            self.with_tokens.insert(id);
        }
        let slot = Slot {
            tablet,
            handle,
            servers: BTreeMap::new(),
            in_sync: BTreeSet::new(),
            has_peers: false,
            standing: Marks::default(),
            safe: Marks::default(),
            is_touched: false,
        };
        let replica = slot.tablet.replica();
        self.slots.insert(id, slot);
        // Readers learn at once what of a child is safe already.
        self.step(id, Input::Tick);
        if let Some(probe) = self.early.take(self.clock.tick(), (id, replica)) {
            self.peer_says(id, replica, probe);
        }
    }

    /// Gives a tablet up whose place others take. Its core is handed over when it is known that
    /// no entry of it is under way.
    fn retire(&mut self, id: TabletId, core: oneshot::Sender<Option<Box<Tablet>>>) {
        self.step(id, Input::Retire);
        let Some(tablet) = self.forget(id) else {
            let _ = core.send(None);
            return;
        };
        let end = tablet.end().pos.seq;
        if tablet.durable_end().pos.seq == end && tablet.applied_seq() == end {
            // Whoever waited is gone with its session.
            let _ = core.send(Some(Box::new(tablet)));
        } else {
            self.leaving.push(Leaving { core: Box::new(tablet), to: core });
            self.tell_drained();
        }
    }

    fn remove(&mut self, id: TabletId, done: oneshot::Sender<()>) {
        self.step(id, Input::StepDown);
        drop(self.forget(id));
        self.drained.push(done);
        self.tell_drained();
    }

    /// Takes a replica out.
    fn forget(&mut self, id: TabletId) -> Option<Tablet> {
        let slot = self.slots.remove(&id)?;
        self.tokens -= slot.tablet.token_count();
        self.timed.remove(&id);
        self.with_tokens.remove(&id);
        self.with_tails.remove(&id);
        let _ = self.orders.send(Order::Forget(id));
        Some(slot.tablet)
    }

    fn fence(&mut self, fences: Vec<Fenced>) {
        for Fenced { tablet, replica, epoch, gone } in fences {
            let is_ours = self.slots.get(&tablet).is_some_and(|slot| slot.tablet.replica() == replica);
            if is_ours {
                self.step(tablet, Input::Fence { epoch, gone });
            }
        }
    }

    fn appoint(&mut self, appointed: Vec<(TabletId, Appointed)>) {
        for (tablet, appointed) in appointed {
            let Ok(ts) = self.clock.issue() else {
                error!("the timestamp bound cannot be persisted; appointments are refused");
                return;
            };
            let Appointed { epoch, replica, incarnation, membership, min_in_sync, shrink_floor, aborted } =
                appointed;
            if let Some(slot) = self.slots.get_mut(&tablet) {
                slot.learn(&membership);
            }
            let news = membership.clone();
            let appointment =
                Appointment { epoch, replica, incarnation, membership, min_in_sync, shrink_floor, ts };
            // The core takes an appointment once; afterwards only the set is news.
            self.step(tablet, Input::Appoint(appointment));
            self.step(tablet, Input::InSync { epoch, membership: news });
            self.step(tablet, Input::SplitAborted { attempt: aborted });
        }
    }

    fn peers_say(&mut self, said: PeerMessages) {
        for (tablet, to, peer) in said.messages {
            self.peer_says(tablet, to, peer);
        }
        let lane = if self.disk.is_empty() { &mut self.memory } else { &mut self.disk };
        if !lane.is_empty() {
            lane.hold(said.room);
        }
    }

    fn peer_says(&mut self, tablet: TabletId, to: ReplicaId, peer: PeerInput) {
        // A message for a copy that is not here creates nothing.
        let Some(slot) = self.slots.get_mut(&tablet).filter(|slot| slot.tablet.replica() == to) else {
            self.early.keep(self.clock.tick(), (tablet, to), peer);
            return;
        };
        slot.servers.insert(peer.from, peer.run.server.server);
        slot.has_peers = true;
        match peer.message {
            PeerMessage::CloseWanted { ts } => self.close_wanted(tablet, ts),
            PeerMessage::Probe
            | PeerMessage::Hello { .. }
            | PeerMessage::Append { .. }
            | PeerMessage::Ack { .. }
            | PeerMessage::Refuse => self.step(tablet, Input::Peer(peer)),
        }
    }

    /// A fresh timestamp above the wanted one closes it, if its entry is needed. A timestamp
    /// far ahead of this clock is not believed.
    fn close_wanted(&mut self, tablet: TabletId, ts: Hlc) {
        if self.clock.observe(ts).is_ok()
            && let Ok(fresh) = self.clock.issue()
        {
            self.step(tablet, Input::CloseWanted { ts, fresh });
        }
    }

    fn persisted(&mut self, ends: Vec<(TabletId, Seq)>) {
        for (id, upto) in &ends {
            if let Some(slot) = self.slots.get(id).filter(|slot| slot.has_peers) {
                slot.handle.tail.durable(*upto);
            }
        }
        self.each(ends, |upto| Input::Persisted { upto });
    }

    fn append_failed(&mut self, starts: Vec<(TabletId, Seq)>) {
        self.in_flight -= 1;
        self.drop_pending(&starts);
        for (id, from) in &starts {
            if let Some(slot) = self.slots.get(id) {
                slot.handle.tail.cut_from(*from);
            }
        }
        self.each(starts, |from| Input::AppendFailed { from });
        self.tell_drained();
    }

    /// Hands over what is led here and can be; the server is about to stop.
    fn hand_over(&mut self, done: oneshot::Sender<Vec<TabletId>>) {
        let until = self.clock.tick().plus_ms(limits::TRANSFER_PATIENCE_MS);
        let wanted = self.peers.wanted();
        let heir = |slot: &Slot| {
            let epoch = slot.tablet.leading()?;
            let is_open = |replica: &&ReplicaId| {
                let server = slot.servers.get(replica);
                server.and_then(|server| wanted.get(server)).is_some_and(|peer| peer.is_open())
            };
            let others = slot.in_sync.iter().filter(|replica| **replica != slot.handle.replica);
            others.copied().find(|replica| is_open(&replica)).map(|to| (epoch, to))
        };
        let heirs: Vec<_> = self.slots.iter().filter_map(|(id, slot)| Some((*id, heir(slot)?))).collect();
        let handed = heirs.iter().map(|(id, _)| *id).collect();
        self.each(heirs, |(epoch, to)| Input::Transfer { epoch, to, until });
        // Whoever waited is gone.
        let _ = done.send(handed);
    }

    /// Lets what gathered for other servers leave, and tells readers how far the tablets are.
    fn flush(&mut self) {
        while !self.touched.is_empty() || !self.unsent.is_empty() {
            for id in std::mem::take(&mut self.touched) {
                let Some(slot) = self.slots.get_mut(&id) else { continue };
                slot.is_touched = false;
                self.step_quietly(id, Input::Flush);
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.publish();
                }
            }
            for (id, to) in std::mem::take(&mut self.unsent) {
                self.step_quietly(id, Input::StreamFailed { to });
            }
        }
    }

    /// Entries that were sequenced after ones that could not be written are never written.
    fn drop_pending(&mut self, starts: &[(TabletId, Seq)]) {
        self.disk.drop_after(starts);
        self.memory.drop_after(starts);
    }

    fn tell_drained(&mut self) {
        if self.in_flight == 0 && self.disk.is_empty() && self.memory.is_empty() {
            for done in self.drained.drain(..) {
                let _ = done.send(());
            }
            for Leaving { core, to } in self.leaving.drain(..) {
                let _ = to.send(Some(core));
            }
        }
    }

    /// Steps down once every request that was taken is answered.
    fn finish_drain(&mut self) {
        let has_groups = self.in_flight > 0 || !self.disk.is_empty() || !self.memory.is_empty();
        let is_busy = has_groups || !self.waiting.is_empty();
        if is_busy || !self.requests.is_empty() {
            return;
        }
        if let Some(done) = self.draining.take() {
            let all: Vec<TabletId> = self.slots.keys().copied().collect();
            self.each(all.into_iter().map(|id| (id, ())), |()| Input::StepDown);
            let _ = done.send(());
        }
    }

    fn request(&mut self, request: Request) {
        let Request { tablet, ask, deadline, reply } = request;
        if !self.slots.contains_key(&tablet) {
            return reply.send(Answer::Refused(Refusal::NotLeader));
        }
        let id = self.next_request.next();
        self.next_request = id;
        let input = match ask {
            Ask::Barrier => {
                let Ok(ts) = self.clock.issue() else {
                    return reply.send(Answer::Refused(Refusal::NotLeader));
                };
                Input::Barrier { request: id, ts, deadline }
            }
            Ask::Write { ops, level, token, evidence } => {
                let Ok(ts) = self.clock.issue() else {
                    return reply.send(Answer::Refused(Refusal::NotLeader));
                };
                let wall_ms = Clock::wall_ms();
                let write = WriteRequest { request: id, ops, level, token, evidence, ts, wall_ms, deadline };
                Input::Write(write)
            }
            Ask::GetOutcome { token } => {
                let Ok(ts) = self.clock.issue() else {
                    return reply.send(Answer::Refused(Refusal::NotLeader));
                };
                Input::GetOutcome { request: id, token, wall_ms: Clock::wall_ms(), ts, deadline }
            }
        };
        self.waiting.insert(id, reply);
        self.step(tablet, input);
    }

    fn each<T>(&mut self, what: impl IntoIterator<Item = (TabletId, T)>, input: impl Fn(T) -> Input) {
        for (tablet, value) in what {
            self.step(tablet, input(value));
        }
    }

    /// Steps every core.
    fn all(&mut self, input: impl Fn() -> Input) {
        let ids: Vec<TabletId> = self.slots.keys().copied().collect();
        ids.into_iter().for_each(|id| self.step(id, input()));
    }

    fn step(&mut self, id: TabletId, input: Input) {
        if let Some(slot) = self.slots.get_mut(&id)
            && !std::mem::replace(&mut slot.is_touched, true)
        {
            self.touched.push(id);
        }
        self.step_quietly(id, input);
    }

    /// Steps a core without marking it for a flush.
    fn step_quietly(&mut self, id: TabletId, input: Input) {
        let now = self.clock.tick();
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let tokens_before = slot.tablet.token_count();
        let mut effects = std::mem::take(&mut self.effects);
        slot.tablet.step(now, &*self.leases, input, &mut effects);
        let tokens = slot.tablet.token_count();
        self.tokens = self.tokens + tokens - tokens_before;
        if tokens_before == 0 && tokens > 0 {
            self.with_tokens.insert(id);
        }
        if slot.tablet.next_deadline().is_some() {
            self.timed.insert(id);
        }
        for effect in effects.drain(..) {
            self.carry_out(id, effect);
        }
        self.effects = effects;
    }

    fn tick(&mut self) {
        let now = self.clock.tick();
        let due: Vec<TabletId> = self.timed.iter().copied().filter(|id| self.is_due(*id, now)).collect();
        for id in due {
            self.step(id, Input::Tick);
            let next = self.slots.get(&id).and_then(|slot| slot.tablet.next_deadline());
            if next.is_none() {
                self.timed.remove(&id);
            }
        }
        if now.ms_since(self.tails_swept) >= limits::TAIL_SWEEP_MS && !self.with_tails.is_empty() {
            self.tails_swept = now;
            let slots = &self.slots;
            self.with_tails.retain(|id| slots.get(id).is_some_and(|slot| slot.handle.tail.sweep()));
        }
        if now.ms_since(self.tokens_checked) >= limits::TOKENS_CHECK_MS || self.tokens > TOKENS_PER_SERVER_MAX
        {
            self.tokens_checked = now;
            self.forget_tokens();
        }
    }

    fn is_due(&self, id: TabletId, now: Tick) -> bool {
        let deadline = self.slots.get(&id).and_then(|slot| slot.tablet.next_deadline());
        deadline.is_none_or(|deadline| deadline <= now)
    }

    /// Drops tokens that left the window, and more of the oldest while there are too many.
    fn forget_tokens(&mut self) {
        let wall_ms = Clock::wall_ms();
        let mut window_ms = TOKEN_WINDOW_MS;
        loop {
            let issued_before_ms = wall_ms.saturating_sub(window_ms);
            let tablets: Vec<TabletId> = self.with_tokens.iter().copied().collect();
            self.each(tablets.into_iter().map(|id| (id, ())), |()| Input::ForgetTokens { issued_before_ms });
            let slots = &self.slots;
            self.with_tokens.retain(|id| slots.get(id).is_some_and(|slot| slot.tablet.token_count() > 0));
            if self.tokens <= TOKENS_PER_SERVER_MAX || window_ms == 0 {
                return;
            }
            window_ms /= 2;
        }
    }

    /// Tells the rest of the server, one message for all tablets.
    fn send_outward(&mut self) {
        let promises = std::mem::take(&mut self.promises);
        let answers = std::mem::take(&mut self.fence_answers);
        let proposals = std::mem::take(&mut self.proposals);
        let stagings = std::mem::take(&mut self.stagings);
        let commits = std::mem::take(&mut self.commits);
        let serving = std::mem::take(&mut self.serving_changed);
        let tell = |is_empty: bool, message: Outward| {
            if !is_empty {
                let _ = self.outward.send(message);
            }
        };
        tell(promises.is_empty(), Outward::PersistPromises(promises));
        tell(answers.is_empty(), Outward::FenceAnswers(answers));
        tell(!serving, Outward::ServingChanged);
        tell(proposals.is_empty(), Outward::Proposals(proposals));
        tell(stagings.is_empty(), Outward::Stage(stagings));
        tell(commits.is_empty(), Outward::Commits(commits));
    }
}

impl Slot {
    fn learn(&mut self, membership: &Membership) {
        self.in_sync.clone_from(&membership.in_sync);
        self.servers.extend(&membership.members);
        self.has_peers |= membership.members.len() > 1;
    }
}
