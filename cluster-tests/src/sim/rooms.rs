//! Rooms on a server: the kernel's core of its own bits, rows that are led here, messages.
//!
//! ```text
//!  crowd ── join, leave ──▶ server ──(Bit)──▶ leader of the row: a write like any other
//!    ▲                        │ ◀──(Told)────────┘
//!    │ publish ───────────────┼─▶ leader reads the row ──(Deliver)──▶ servers with a present bit
//!    └── heard ◀──────────────┘
//! ```
//!
//! - What a server writes of its own accord, bits and evictions, is in the history like what clients
//!   ask, under the number of a client that does not exist.
//! - A room is a row behind all others; rooms split, merge and move with their tablets.
//! - Nobody is told everything at once: other runs, and who leads, come late.

use super::clock::EPOCH_MS;
use super::env::{Env, Route};
use super::network::{Address, Message, Reply, Request, RequestBody, Response};
use super::server::Server;
use crate::invariants::Observation;
use crate::oracle::{Asked, Outcome};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Incarnation, Lineage, Ordinal, TabletId, Tick};
use ebla_kernel::op::{AckLevel, Action, Cause, Condition, Op, Token};
use ebla_kernel::room::row::{BitChange, RoomRow};
use ebla_kernel::room::subscriptions::{Effect, Input, RoomId, Subscriptions};
use ebla_kernel::room::{ServerRuns, Stamp, SubSeq};
use ebla_kernel::tablet::{Answer, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long a change of a bit is waited for.
const CHANGE_US: u64 = 3_000_000;

/// How often a change is written that was taken back.
const TRIES: u32 = 2;

/// Of 1,000 looks at the map of the cluster, how many learn what is new.
const NEWS_PM: u64 = 200;

/// Tokens of servers are told from those of clients by this.
const TOKENS: u128 = 1_000;

/// The row of a room.
#[must_use]
pub fn room_key(room: RoomId) -> Bytes {
    format!("r{:03}", room.0).into()
}

/// What servers say to each other about rooms.
#[derive(Clone, Debug)]
pub enum RoomMessage {
    /// A server wants its own bit changed.
    Bit(BitOrder),
    /// What became of that.
    Told {
        /// The run that is told.
        run: Incarnation,
        /// The order's number.
        number: u64,
        /// Whether the bit is as it was wanted, on as many copies as the table asks for.
        holds: bool,
    },
    /// Somebody publishes.
    Publish {
        /// The room.
        room: RoomId,
        /// The message.
        number: u64,
    },
    /// For whoever is in the room.
    Deliver {
        /// The bit that says so.
        stamp: Stamp,
        /// The room.
        room: RoomId,
        /// The message.
        number: u64,
    },
}

/// A bit that is to be changed.
#[derive(Clone, Copy, Debug)]
pub struct BitOrder {
    from: usize,
    run: Incarnation,
    number: u64,
    room: RoomId,
    change: BitChange,
}

/// What became of messages, for whoever judges.
#[derive(Debug, Default)]
pub struct Published {
    /// Messages of which a leader has just decided who gets them.
    pub fanouts: Vec<Fanout>,
    /// Which message was heard by which subscriber.
    pub heard: BTreeSet<(u64, u64)>,
}

/// Who gets a message.
#[derive(Debug)]
pub struct Fanout {
    /// The room's tablet.
    pub tablet: TabletId,
    /// The room.
    pub room: RoomId,
    /// The message.
    pub number: u64,
    /// The runs that the leader knows.
    pub runs: Arc<ServerRuns>,
    /// The servers.
    pub to: BTreeMap<Ordinal, Stamp>,
}

/// What a server's own write is for.
#[derive(Clone, Debug)]
enum Purpose {
    Bit(BitOrder, u32),
    Eviction,
}

/// What a process knows of rooms, and what it writes of its own accord.
#[derive(Debug)]
pub(super) struct Rooms {
    core: Subscriptions,
    /// Subscribers, and whether they were told that they are in.
    members: BTreeMap<RoomId, BTreeMap<u64, bool>>,
    /// Runs of servers.
    runs: Arc<ServerRuns>,
    /// Who leads which history.
    leads: BTreeMap<TabletId, (Epoch, Lineage)>,
    /// What was said of bits, and until when it is waited for.
    said: BTreeMap<u64, (RoomId, SubSeq, u64)>,
    /// Own writes under way, by their place in the history.
    writes: BTreeMap<usize, Purpose>,
    written: u64,
}

impl Rooms {
    /// Nobody is in any room.
    pub fn new(now: Tick, jitter: u64) -> Self {
        Self {
            core: Subscriptions::new(now, jitter),
            members: BTreeMap::new(),
            runs: Arc::default(),
            leads: BTreeMap::new(),
            said: BTreeMap::new(),
            writes: BTreeMap::new(),
            written: 0,
        }
    }
}

impl Server {
    /// Subscribers of a room here, and whether they were told that they are in.
    #[must_use]
    pub fn members(&self, room: RoomId) -> Option<&BTreeMap<u64, bool>> {
        self.run.as_ref()?.rooms.members.get(&room)
    }

    /// Somebody subscribes.
    pub fn join(&mut self, env: &mut Env, room: RoomId, stay: u64) {
        let Some(run) = self.run.as_mut().filter(|run| run.identity.is_some()) else { return };
        run.rooms.members.entry(room).or_default().insert(stay, false);
        let index = self.index;
        env.say(|| format!("server {index} has subscriber {stay} of {room:?}"));
        self.room_step(env, Input::Join(room));
    }

    /// The first subscriber of a room leaves.
    pub fn leave(&mut self, env: &mut Env, room: RoomId) {
        let Some(run) = &mut self.run else { return };
        let left = run.rooms.members.get_mut(&room).and_then(BTreeMap::pop_first);
        if let Some((stay, _)) = left {
            let index = self.index;
            env.say(|| format!("subscriber {stay} of {room:?} leaves server {index}"));
            self.room_step(env, Input::Leave(room));
        }
    }

    /// Somebody publishes here.
    pub fn publish(&self, env: &mut Env, room: RoomId, number: u64) {
        if let Some(leader) = leader(env, room) {
            let message = Message::Room(RoomMessage::Publish { room, number });
            env.send(self.address(), Address::Server(leader), message);
        }
    }

    /// Time passes for rooms; news may have come.
    pub(super) fn look_after_rooms(&mut self, env: &mut Env) {
        if env.profile.rooms.is_none() || self.server_run().is_none() {
            return;
        }
        if env.rng.chance(NEWS_PM) {
            self.learn(env);
        }
        let Some(run) = &mut self.run else { return };
        let overdue = |(number, (_, _, until_us)): (&u64, &(RoomId, SubSeq, u64))| {
            (*until_us <= env.now_us).then_some(*number)
        };
        let overdue: Vec<u64> = run.rooms.said.iter().filter_map(overdue).collect();
        overdue.into_iter().for_each(|number| self.room_told(env, number, false));
        self.room_step(env, Input::Tick);
    }

    /// Learns which runs there are and who leads; what another leads is in doubt.
    fn learn(&mut self, env: &mut Env) {
        let Some(run) = &mut self.run else { return };
        let rooms = &mut run.rooms;
        rooms.runs = Arc::clone(&env.directory.runs);
        let routes = &env.directory.routes;
        let is_news = |route: &&Route| {
            rooms.leads.get(&route.tablet).is_none_or(|known| *known != (route.epoch, route.lineage))
        };
        let new = routes.iter().filter(is_news);
        let ranges: Vec<_> = new.map(|route| route.range.clone()).collect();
        rooms.leads = routes.iter().map(|route| (route.tablet, (route.epoch, route.lineage))).collect();
        let known: Vec<RoomId> = rooms.members.keys().copied().collect();
        let is_meant = |room: &RoomId| ranges.iter().any(|range| range.contains(&room_key(*room)));
        known.into_iter().filter(is_meant).for_each(|room| self.room_step(env, Input::Doubt(room)));
    }

    fn room_step(&mut self, env: &mut Env, input: Input) {
        let now = self.now(env);
        let Some(run) = &mut self.run else { return };
        let mut effects = Vec::new();
        run.rooms.core.step(now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Set(room, sub_seq) => self.say_bit(env, room, sub_seq, BitChange::Set),
                Effect::Clear(room, sub_seq) => self.say_bit(env, room, sub_seq, BitChange::Clear),
                Effect::Ready(room) => {
                    let members = self.run.as_mut().and_then(|run| run.rooms.members.get_mut(&room));
                    members.into_iter().flatten().for_each(|(_, told)| *told = true);
                }
                Effect::Forget(_) => {}
            }
        }
    }

    /// Says something of an own bit to whoever leads the row.
    fn say_bit(
        &mut self,
        env: &mut Env,
        room: RoomId,
        sub_seq: SubSeq,
        change: fn(Ordinal, Stamp) -> BitChange,
    ) {
        let Some(name) = self.server_run() else { return };
        let (own, leader) = (env.directory.ordinals.get(&self.index).copied(), leader(env, room));
        let Some(run) = &mut self.run else { return };
        run.rooms.written += 1;
        let number = run.rooms.written;
        let (Some(ordinal), Some(leader)) = (own, leader) else {
            // It fails at the next look.
            run.rooms.said.insert(number, (room, sub_seq, env.now_us));
            return;
        };
        run.rooms.said.insert(number, (room, sub_seq, env.now_us + CHANGE_US));
        let change = change(ordinal, Stamp { incarnation: name.incarnation, sub_seq });
        let index = self.index;
        env.say(|| format!("server {index} wants {change:?} in {room:?} of server {leader}"));
        let order = BitOrder { from: self.index, run: name.incarnation, number, room, change };
        env.send(self.address(), Address::Server(leader), Message::Room(RoomMessage::Bit(order)));
    }

    fn room_told(&mut self, env: &mut Env, number: u64, holds: bool) {
        let Some(run) = &mut self.run else { return };
        let Some((room, sub_seq, _)) = run.rooms.said.remove(&number) else { return };
        let input = if holds { Input::Done } else { Input::Failed };
        let index = self.index;
        env.say(|| format!("server {index} is told that {sub_seq:?} in {room:?} holds: {holds}"));
        self.room_step(env, input(room, sub_seq));
    }

    /// Takes what another server says about rooms.
    pub(super) fn room_message(&mut self, env: &mut Env, message: RoomMessage) {
        match message {
            RoomMessage::Bit(order) => self.change_bit(env, order, TRIES),
            RoomMessage::Told { run, number, holds } => {
                if self.server_run().is_some_and(|own| own.incarnation == run) {
                    self.room_told(env, number, holds);
                }
            }
            RoomMessage::Publish { room, number } => self.fan_out(env, room, number),
            RoomMessage::Deliver { stamp, room, number } => self.deliver(env, stamp, room, number),
        }
    }

    /// The tablet of a row, if it is served here now.
    fn serves_row(&self, env: &Env, key: &[u8]) -> Option<(TabletId, Epoch)> {
        let (run, now) = (self.run.as_ref()?, self.now(env));
        let home = run.copies.values().filter(|copy| copy.core.range().contains(key));
        home.map(|copy| copy.core.id()).find_map(|id| Some((id, run.lease(now, id)?)))
    }

    /// A bit in a row that may be led here. Most that is said again is so already.
    fn change_bit(&mut self, env: &mut Env, order: BitOrder, tries: u32) {
        let key = room_key(order.room);
        let Some((tablet, epoch)) = self.serves_row(env, &key) else {
            self.tell(env, order, false);
            return;
        };
        let Some(run) = &self.run else { return };
        let runs = Arc::clone(&run.rooms.runs);
        let newest = self.disk.store.newest(&key, Hlc::MAX);
        let is_news = RoomRow::of(newest.map(|version| &version.body)).change(order.change, &runs);
        if is_news {
            let action = Action::Room { key, change: order.change, runs };
            let level = AckLevel::Copies(env.profile.spec.min_in_sync);
            self.write_own(env, tablet, Op { condition: None, action }, level, Purpose::Bit(order, tries));
        } else {
            env.observe(&Observation::LeaseHeld { tablet, server: self.index, epoch });
            self.tell(env, order, true);
        }
    }

    fn tell(&self, env: &mut Env, order: BitOrder, holds: bool) {
        let BitOrder { from, run, number, .. } = order;
        let message = Message::Room(RoomMessage::Told { run, number, holds });
        env.send(self.address(), Address::Server(from), message);
    }

    /// Removes a row of a tablet that is led here, unless somebody writes it meanwhile.
    pub fn evict(&mut self, env: &mut Env, key: &Bytes) {
        let Some((tablet, _)) = self.serves_row(env, key) else { return };
        let newest = self.disk.store.newest(key, Hlc::MAX);
        let wall = Hlc::new(self.wall.ms(env.now_us), 0);
        let Some(version) = newest.filter(|version| version.is_live(wall)) else { return };
        let condition = Some(Condition::NewestIs(version.ts));
        let action = Action::Delete { key: key.clone(), cause: Cause::Evicted };
        self.write_own(env, tablet, Op { condition, action }, AckLevel::Leader, Purpose::Eviction);
    }

    /// Writes something that no client asked for.
    fn write_own(&mut self, env: &mut Env, tablet: TabletId, op: Op, level: AckLevel, purpose: Purpose) {
        // As clients' clocks are: one that is hours ahead would have every later token refused.
        let (client, issued_ms) = (env.profile.clients + self.index, EPOCH_MS + env.now_us / 1_000);
        let number = self.runs() << 32;
        let Some(run) = &mut self.run else { return };
        run.rooms.written += 1;
        let token = Token { issued_ms, client: TOKENS + self.index as u128, seq: number + run.rooms.written };
        let ops = vec![op];
        let asked = Asked::Write { ops: ops.clone(), token, level };
        let op = env.history.invoke(client, env.now_us, tablet, asked);
        env.history.sent(op, 1);
        run.rooms.writes.insert(op, purpose);
        self.request(env, Request { client, op, tablet, body: RequestBody::Write { ops, token, level } });
    }

    /// An own write has ended.
    pub(super) fn own_answered(&mut self, env: &mut Env, response: Response) {
        let Some(run) = &mut self.run else { return };
        let Some(purpose) = run.rooms.writes.remove(&response.op) else { return };
        let (outcome, by) = (outcome(response.reply), (response.tablet, response.epoch));
        let by = if outcome == Outcome::Unknown { (response.tablet, None) } else { by };
        env.history.end(response.op, env.now_us, outcome.clone(), by);
        match (purpose, outcome) {
            (Purpose::Bit(order, _), Outcome::Committed(_)) => self.tell(env, order, true),
            // It is gone for sure and never was.
            (Purpose::Bit(order, tries), Outcome::Reverted) if tries > 1 => {
                self.change_bit(env, order, tries - 1);
            }
            (Purpose::Bit(order, _), _) => self.tell(env, order, false),
            (Purpose::Eviction, _) => {}
        }
    }

    /// Whoever leads the row decides who gets a message.
    fn fan_out(&mut self, env: &mut Env, room: RoomId, number: u64) {
        let Some((tablet, epoch)) = self.serves_row(env, &room_key(room)) else { return };
        let Some(run) = &self.run else { return };
        let newest = self.disk.store.newest(&room_key(room), Hlc::MAX);
        let row = RoomRow::of(newest.map(|version| &version.body));
        let runs = Arc::clone(&run.rooms.runs);
        let to: BTreeMap<Ordinal, Stamp> = row.present(&runs).collect();
        env.observe(&Observation::LeaseHeld { tablet, server: self.index, epoch });
        let index = self.index;
        env.say(|| format!("server {index} sends message {number} of {room:?} to {to:?}"));
        for (ordinal, stamp) in &to {
            let place = env.directory.ordinals.iter().find(|(_, known)| *known == ordinal);
            let Some((place, _)) = place.map(|(place, ordinal)| (*place, ordinal)) else { continue };
            let message = Message::Room(RoomMessage::Deliver { stamp: *stamp, room, number });
            env.send(self.address(), Address::Server(place), message);
        }
        env.published.fanouts.push(Fanout { tablet, room, number, runs, to });
    }

    fn deliver(&mut self, env: &mut Env, stamp: Stamp, room: RoomId, number: u64) {
        if self.server_run().is_none_or(|own| own.incarnation != stamp.incarnation) {
            return;
        }
        let Some(run) = &self.run else { return };
        let members = run.rooms.members.get(&room);
        let mut stays = members.into_iter().flat_map(BTreeMap::keys).peekable();
        if stays.peek().is_none() {
            self.room_step(env, Input::Stray(room, stamp.sub_seq));
        } else {
            env.published.heard.extend(stays.map(|stay| (number, *stay)));
        }
    }
}

/// The server that leads the row of a room, as everybody is told.
fn leader(env: &Env, room: RoomId) -> Option<usize> {
    let key = room_key(room);
    env.directory.routes.iter().find(|route| route.range.contains(&key))?.leader
}

/// What an answer says of a write that is asked once.
fn outcome(reply: Reply) -> Outcome {
    match reply {
        Reply::Answer(Answer::Committed(committed)) => Outcome::Committed(committed),
        Reply::Answer(Answer::Reverted | Answer::Refused(Refusal::TokenFenced)) => Outcome::Reverted,
        Reply::Answer(Answer::Refused(Refusal::TokenTooOld)) => Outcome::TokenTooOld,
        Reply::Answer(Answer::Refused(Refusal::Rejected(reject))) => Outcome::Rejected(reject),
        Reply::Answer(
            Answer::Unknown
            | Answer::Reached
            | Answer::Refused(
                Refusal::NotLeader
                | Refusal::NoLease
                | Refusal::Transferring
                | Refusal::Sealed
                | Refusal::Retired
                | Refusal::NotEnoughReplicas
                | Refusal::Busy
                | Refusal::WaitTimedOut
                | Refusal::OutOfRange,
            ),
        )
        | Reply::Busy
        | Reply::Row { .. }
        | Reply::WriteLost => Outcome::Unknown,
    }
}
