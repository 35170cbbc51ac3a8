//! The rooms of this server: their names, who is in them, and the core that decides about their
//! bits. One lock, held for lookups and steps of the core and never while something is sent.

use super::mailbox::Mailbox;
use super::members::{Members, Message, Parcel, Subscriber};
use crate::limits;
use ebla_kernel::ids::Tick;
use ebla_kernel::room::SubSeq;
use ebla_kernel::room::subscriptions::{Effect, Input, RoomId, Subscriptions};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// The name of a room, kept once.
pub type Name = Arc<[u8]>;

/// Something to be said of a bit.
#[derive(Clone, Debug)]
pub struct BitOrder {
    /// The room.
    pub room: RoomId,
    /// Its name.
    pub name: Name,
    /// The sequence that it is about.
    pub sub_seq: SubSeq,
    /// Whether the bit is to be cleared.
    pub is_clear: bool,
}

/// A request of a subscriber that waits for bits.
pub struct JoinRequest {
    id: u64,
    waits: AtomicU32,
    mailbox: Arc<Mailbox<Parcel>>,
    deadline: Tick,
}

impl JoinRequest {
    fn answer(&self, error: Option<ApiError>) {
        let answer = v1::SubscribeAnswer { id: self.id, error: error.map(Into::into) };
        self.mailbox.put_or_end(Parcel::Answer(answer), super::PARCEL_BYTES);
    }

    /// One room less to wait for.
    fn arrived(&self) {
        if self.waits.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.answer(None);
        }
    }
}

/// What one stream is subscribed to.
#[derive(Default)]
pub struct Joined {
    rooms: HashSet<RoomId>,
}

/// Bounds of subscriptions.
#[derive(Clone, Copy, Debug)]
pub struct RoomLimits {
    /// Subscriptions of one stream.
    pub per_stream: usize,
    /// Subscriptions of one server.
    pub per_server: usize,
}

/// All rooms of this server.
pub struct Registry {
    state: Mutex<State>,
    limits: RoomLimits,
    next_subscriber: AtomicU64,
    /// Told when there is something to say of bits.
    pub ordered: Notify,
}

struct State {
    by_name: HashMap<Name, RoomId>,
    rooms: Vec<Room>,
    free: Vec<RoomId>,
    core: Subscriptions,
    effects: Vec<Effect>,
    orders: Vec<BitOrder>,
    waiting: HashMap<RoomId, Vec<Arc<JoinRequest>>>,
    /// When it was last looked for who waits too long.
    waiting_seen: Tick,
    subscriptions: usize,
}

#[derive(Default)]
struct Room {
    name: Name,
    members: Members,
}

impl Registry {
    /// No room. `jitter` is a random number.
    #[must_use]
    pub fn new(now: Tick, jitter: u64, limits: RoomLimits) -> Self {
        let state = State {
            by_name: HashMap::new(),
            rooms: Vec::new(),
            free: Vec::new(),
            core: Subscriptions::new(now, jitter),
            effects: Vec::new(),
            orders: Vec::new(),
            waiting: HashMap::new(),
            waiting_seen: now,
            subscriptions: 0,
        };
        let next_subscriber = AtomicU64::new(1);
        Self { state: Mutex::new(state), limits, next_subscriber, ordered: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// A new stream.
    #[must_use]
    pub fn subscriber(&self) -> Arc<Subscriber> {
        let number = self.next_subscriber.fetch_add(1, Ordering::Relaxed);
        Arc::new(Subscriber { number, mailbox: Mailbox::new(limits::SUBSCRIBER_BYTES_WAITING_MAX) })
    }

    /// Takes a request of a stream whose names were checked; it is answered when all bits are set.
    pub fn request(
        &self,
        now: Tick,
        subscriber: &Arc<Subscriber>,
        joined: &mut Joined,
        request: &v1::SubscribeRequest,
    ) {
        let mut state = self.state();
        for name in &request.leave {
            state.leave(now, subscriber.number, joined, name);
        }
        let answer = Arc::new(JoinRequest {
            id: request.id,
            // One for the request itself, so that it is not answered half way.
            waits: AtomicU32::new(1),
            mailbox: Arc::clone(&subscriber.mailbox),
            deadline: now.plus_ms(limits::ROOM_JOIN_TIMEOUT_MS),
        });
        let more = request.join.iter().filter(|name| !state.is_in(joined, name)).count();
        match state.check_limits(self.limits, joined, more) {
            Err(error) => answer.answer(Some(error)),
            Ok(()) => {
                for name in &request.join {
                    state.join(now, subscriber, joined, name, &answer);
                }
                answer.arrived();
            }
        }
        self.tell(&state);
    }

    /// A stream is gone, with all of its subscriptions.
    pub fn gone(&self, now: Tick, subscriber: &Subscriber, joined: Joined) {
        let rooms: Vec<RoomId> = joined.rooms.into_iter().collect();
        for some in rooms.chunks(limits::ROOMS_PER_LOCK) {
            let mut state = self.state();
            some.iter().for_each(|room| state.leave_room(now, subscriber.number, *room));
            self.tell(&state);
        }
    }

    /// Hands a message to everybody who is in its room here; none when the room has nobody.
    #[must_use]
    pub fn deliver(&self, message: &Message) -> Option<u64> {
        let members = {
            let state = self.state();
            let room = state.by_name.get(&message.room[..])?;
            state.rooms[room.0 as usize].members.clone()
        };
        match members {
            Members::None => None,
            members @ (Members::One(_) | Members::Many(_)) => Some(members.deliver(message)),
        }
    }

    /// How many are in a room here.
    #[must_use]
    pub fn count(&self, room: &[u8]) -> usize {
        let state = self.state();
        state.by_name.get(room).map_or(0, |room| state.rooms[room.0 as usize].members.count())
    }

    /// A message came for a room that nobody is in.
    pub fn stray(&self, now: Tick, room: &[u8], sub_seq: SubSeq) {
        let mut state = self.state();
        let room = state.number(room);
        state.step(now, Input::Stray(room, sub_seq));
        self.tell(&state);
    }

    /// What was said of bits: whether each holds now.
    pub fn told(&self, now: Tick, orders: &[(BitOrder, bool)]) {
        let mut state = self.state();
        for (order, holds) in orders {
            let input = if *holds { Input::Done } else { Input::Failed };
            state.step(now, input(order.room, order.sub_seq));
        }
        self.tell(&state);
    }

    /// Another leads the rows that `is_meant` names, or their history broke.
    pub fn doubt(&self, now: Tick, is_meant: impl Fn(&[u8]) -> bool) {
        let mut state = self.state();
        let numbered = state.by_name.iter();
        let meant: Vec<RoomId> = numbered.filter(|(name, _)| is_meant(name)).map(|(_, room)| *room).collect();
        meant.into_iter().for_each(|room| state.step(now, Input::Doubt(room)));
        self.tell(&state);
    }

    /// Time passes. Gives what is to be said of bits, and when to look again.
    #[must_use]
    pub fn look(&self, now: Tick) -> (Vec<BitOrder>, Option<Tick>) {
        let mut state = self.state();
        state.step(now, Input::Tick);
        state.give_up_waiting(now);
        (std::mem::take(&mut state.orders), state.core.next_deadline())
    }

    /// Subscriptions and rooms.
    #[must_use]
    pub fn totals(&self) -> (usize, usize) {
        let state = self.state();
        (state.subscriptions, state.by_name.len())
    }

    fn tell(&self, state: &State) {
        if !state.orders.is_empty() {
            self.ordered.notify_one();
        }
    }
}

impl State {
    fn is_in(&self, joined: &Joined, name: &[u8]) -> bool {
        self.by_name.get(name).is_some_and(|room| joined.rooms.contains(room))
    }

    fn check_limits(&self, limits: RoomLimits, joined: &Joined, more: usize) -> Result<(), ApiError> {
        let reached = |whose: &str, max: usize, hint: &str| {
            let hint = format!("{whose} has {max} subscriptions, which is the limit: {hint}");
            Err(ApiError::new(Reason::LimitReached, hint))
        };
        if joined.rooms.len() + more > limits.per_stream {
            return reached("this stream", limits.per_stream, "use another stream, or leave rooms first");
        }
        if self.subscriptions + more > limits.per_server {
            return reached("this server", limits.per_server, "subscribe at another server");
        }
        Ok(())
    }

    /// The number of a room, a new one if need be.
    fn number(&mut self, name: &[u8]) -> RoomId {
        if let Some(room) = self.by_name.get(name) {
            return *room;
        }
        let name: Name = Arc::from(name);
        let room = self.free.pop().unwrap_or_else(|| {
            self.rooms.push(Room::default());
            let count = u32::try_from(self.rooms.len()).expect("subscriptions are bounded below that");
            RoomId(count - 1)
        });
        self.rooms[room.0 as usize].name = Arc::clone(&name);
        self.by_name.insert(name, room);
        room
    }

    fn join(
        &mut self,
        now: Tick,
        subscriber: &Arc<Subscriber>,
        joined: &mut Joined,
        name: &[u8],
        request: &Arc<JoinRequest>,
    ) {
        let room = self.number(name);
        if joined.rooms.insert(room) {
            self.subscriptions += 1;
            self.rooms[room.0 as usize].members.insert(Arc::clone(subscriber));
            self.step(now, Input::Join(room));
        }
        if !self.core.is_set(room) {
            request.waits.fetch_add(1, Ordering::AcqRel);
            self.waiting.entry(room).or_default().push(Arc::clone(request));
        }
    }

    fn leave(&mut self, now: Tick, subscriber: u64, joined: &mut Joined, name: &[u8]) {
        let Some(room) = self.by_name.get(name).copied() else { return };
        if joined.rooms.remove(&room) {
            self.leave_room(now, subscriber, room);
        }
    }

    fn leave_room(&mut self, now: Tick, subscriber: u64, room: RoomId) {
        self.subscriptions -= 1;
        self.rooms[room.0 as usize].members.remove(subscriber);
        self.step(now, Input::Leave(room));
    }

    fn step(&mut self, now: Tick, input: Input) {
        let mut effects = std::mem::take(&mut self.effects);
        self.core.step(now, input, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Set(room, sub_seq) => self.order(room, sub_seq, false),
                Effect::Clear(room, sub_seq) => self.order(room, sub_seq, true),
                Effect::Ready(room) => {
                    for request in self.waiting.remove(&room).into_iter().flatten() {
                        request.arrived();
                    }
                }
                Effect::Forget(room) => self.forget(room),
            }
        }
        self.effects = effects;
    }

    fn order(&mut self, room: RoomId, sub_seq: SubSeq, is_clear: bool) {
        let name = Arc::clone(&self.rooms[room.0 as usize].name);
        self.orders.push(BitOrder { room, name, sub_seq, is_clear });
    }

    fn forget(&mut self, room: RoomId) {
        let gone = std::mem::take(&mut self.rooms[room.0 as usize]);
        self.by_name.remove(&gone.name);
        self.waiting.remove(&room);
        self.free.push(room);
    }

    /// Whoever waited too long is told; its subscriptions stay and are tried on until it leaves.
    fn give_up_waiting(&mut self, now: Tick) {
        if self.waiting.is_empty() || now.ms_since(self.waiting_seen) < limits::ROOM_JOINS_LOOK_MS {
            return;
        }
        self.waiting_seen = now;
        let mut late: Vec<Arc<JoinRequest>> = Vec::new();
        self.waiting.retain(|_, requests| {
            requests.retain(|request| {
                let is_late = request.deadline <= now;
                if is_late {
                    late.push(Arc::clone(request));
                }
                !is_late
            });
            !requests.is_empty()
        });
        for request in late {
            // Only the first of its rooms tells.
            if request.waits.swap(u32::MAX / 2, Ordering::AcqRel) < u32::MAX / 4 {
                let hint = "the leader of the rooms' rows did not answer in time; the rooms stay subscribed and \
                            messages may come: wait and join them again to be sure, or leave them";
                request.answer(Some(ApiError::new(Reason::Unavailable, hint)));
            }
        }
    }
}
