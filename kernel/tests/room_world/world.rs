//! The world: time, messages, servers, and the rows as their leader has them.

use ebla_kernel::ids::{Incarnation, Ordinal, Tick};
use ebla_kernel::limits::{ROOM_CLEAR_DELAY_MS, ROOM_REASSERT_MS};
use ebla_kernel::room::row::{BitChange, RoomRow};
use ebla_kernel::room::subscriptions::{Effect, Input, RoomId, Subscriptions};
use ebla_kernel::room::{ServerRuns, Stamp, SubSeq};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

const SERVERS: u32 = 3;
const ROOMS: u32 = 4;
const CLIENTS: u64 = 6;
const ACTIVE_MS: u64 = 60_000;

/// How long after the loss of all copies bits may be missing: news of it travel, and what was under
/// way first has to fail.
const LOSS_MS: u64 = 7_000;

/// How long a change of a bit is waited for, as the shell does.
const CHANGE_MS: u64 = 3_000;

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// How long a message takes: mostly little, at times very long.
    fn delay(&mut self) -> u64 {
        if self.below(20) == 0 { 100 + self.below(1_500) } else { 1 + self.below(30) }
    }
}

/// Something on its way.
#[derive(Clone, Debug)]
enum Event {
    /// A change of a bit comes to the leader.
    Change { server: Ordinal, run: Incarnation, room: RoomId, change: BitChange },
    /// Enough copies have the change; `epoch` is that in which it was made.
    Durable { server: Ordinal, run: Incarnation, room: RoomId, change: BitChange, epoch: u64 },
    /// The server of a bit hears what became of its change.
    Answer { server: Ordinal, run: Incarnation, room: RoomId, sub_seq: SubSeq, holds: bool },
    /// A message comes to a server.
    Deliver { server: Ordinal, stamp: Stamp, room: RoomId, number: u64 },
    /// By now it must have been heard by these clients of these servers.
    Judge { room: RoomId, number: u64, clients: BTreeSet<(Ordinal, u64)> },
    /// A server learns that another leads the rows.
    News { server: Ordinal },
    /// The leader learns of a server's run.
    Runs { server: Ordinal, run: Incarnation },
    /// A client does something.
    Client(u64),
    /// A server looks at its clock.
    Tick(Ordinal, Incarnation),
    /// Something goes wrong.
    Fault,
}

struct Server {
    run: Incarnation,
    core: Subscriptions,
    /// Clients in each room.
    members: BTreeMap<RoomId, BTreeMap<u64, Member>>,
}

/// One client in one room.
#[derive(Clone, Copy)]
struct Member {
    /// Names this stay: one that leaves and comes back may miss what was said between.
    stay: u64,
    is_told: bool,
}

/// What a storm of doubts did.
pub struct Storm {
    /// Most changes that were under way.
    pub longest_queue: usize,
    /// Bits that were said again.
    pub set: usize,
}

/// Everything.
pub struct World {
    now: u64,
    chance: Chance,
    events: BTreeMap<(u64, u64), Event>,
    sent: u64,
    servers: BTreeMap<Ordinal, Server>,
    /// Runs as the leader knows them.
    known: ServerRuns,
    epoch: u64,
    /// Changes that enough copies have, and those that only the leader has.
    rows: BTreeMap<RoomId, RoomRow>,
    pending: Vec<(RoomId, BitChange)>,
    lost_at: Option<u64>,
    published: u64,
    stays: u64,
    heard: BTreeSet<(u64, u64)>,
    is_calm: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut world = Self {
            now: 0,
            chance: Chance(seed),
            events: BTreeMap::new(),
            sent: 0,
            servers: BTreeMap::new(),
            known: ServerRuns::default(),
            epoch: 1,
            rows: BTreeMap::new(),
            pending: Vec::new(),
            lost_at: None,
            published: 0,
            stays: 0,
            heard: BTreeSet::new(),
            is_calm: false,
        };
        for ordinal in 0..SERVERS {
            world.start(Ordinal(ordinal), Incarnation(1));
            world.known.runs.insert(Ordinal(ordinal), Incarnation(1));
        }
        (0..CLIENTS).for_each(|client| world.send_in(client, Event::Client(client)));
        world.send_in(500, Event::Fault);
        world
    }

    /// Messages that were heard.
    pub fn heard(&self) -> usize {
        self.heard.len()
    }

    fn start(&mut self, ordinal: Ordinal, run: Incarnation) {
        let core = Subscriptions::new(Tick(self.now), self.chance.next());
        self.servers.insert(ordinal, Server { run, core, members: BTreeMap::new() });
        self.send_in(1, Event::Tick(ordinal, run));
    }

    fn send_in(&mut self, delay: u64, event: Event) {
        self.sent += 1;
        self.events.insert((self.now + delay, self.sent), event);
    }

    fn send(&mut self, event: Event) {
        let delay = self.chance.delay();
        self.send_in(delay, event);
    }

    /// Chances first, then calm, then the check of the whole.
    pub fn run(&mut self) -> Result<(), String> {
        self.run_until(ACTIVE_MS)?;
        self.is_calm = true;
        self.run_until(ACTIVE_MS + ROOM_REASSERT_MS + 2 * ROOM_CLEAR_DELAY_MS + 2 * LOSS_MS)?;
        self.check_bits()
    }

    fn run_until(&mut self, end: u64) -> Result<(), String> {
        while let Some(((at, number), event)) = self.events.pop_first() {
            if at > end {
                self.events.insert((at, number), event);
                break;
            }
            self.now = at;
            self.happen(event).map_err(|what| format!("at {at} ms: {what}"))?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Change { server, run, room, change } => self.change(server, run, room, change),
            Event::Durable { server, run, room, change, epoch } => {
                self.durable(server, run, room, change, epoch);
            }
            Event::Answer { server, run, room, sub_seq, holds } => {
                let input = if holds { Input::Done } else { Input::Failed };
                self.step(server, run, input(room, sub_seq));
            }
            Event::Deliver { server, stamp, room, number } => self.deliver(server, stamp, room, number),
            Event::Judge { room, number, clients } => return self.judge(room, number, &clients),
            Event::News { server } => {
                let run = self.servers[&server].run;
                (0..ROOMS).for_each(|room| self.step(server, run, Input::Doubt(RoomId(room))));
            }
            Event::Runs { server, run } => drop(self.known.runs.insert(server, run)),
            Event::Client(client) => return self.client(client),
            Event::Tick(server, run) => {
                self.step(server, run, Input::Tick);
                if self.servers[&server].run == run {
                    self.send_in(50, Event::Tick(server, run));
                }
            }
            Event::Fault => self.fault(),
        }
        Ok(())
    }

    /// Lets a core take an input, unless its run is over, and carries its effects out.
    fn step(&mut self, ordinal: Ordinal, run: Incarnation, input: Input) {
        let now = Tick(self.now);
        let server = self.servers.get_mut(&ordinal).expect("servers stay");
        if server.run != run {
            return;
        }
        let mut effects = Vec::new();
        server.core.step(now, input, &mut effects);
        for effect in effects {
            let change = |sub_seq, change: fn(Ordinal, Stamp) -> BitChange| {
                change(ordinal, Stamp { incarnation: run, sub_seq })
            };
            match effect {
                Effect::Set(room, sub_seq) => {
                    let change = change(sub_seq, BitChange::Set);
                    self.send(Event::Change { server: ordinal, run, room, change });
                }
                Effect::Clear(room, sub_seq) => {
                    let change = change(sub_seq, BitChange::Clear);
                    self.send(Event::Change { server: ordinal, run, room, change });
                }
                Effect::Ready(room) => {
                    let server = self.servers.get_mut(&ordinal).expect("servers stay");
                    let members = server.members.entry(room).or_default();
                    members.values_mut().for_each(|member| member.is_told = true);
                }
                Effect::Forget(_) => {}
            }
        }
    }

    fn change(&mut self, server: Ordinal, run: Incarnation, room: RoomId, change: BitChange) {
        self.pending.push((room, change));
        let (delay, epoch) = (self.chance.delay(), self.epoch);
        self.send_in(delay, Event::Durable { server, run, room, change, epoch });
    }

    /// A change of an epoch that is over was taken back; its server hears of it late.
    fn durable(&mut self, server: Ordinal, run: Incarnation, room: RoomId, change: BitChange, epoch: u64) {
        let holds = epoch == self.epoch;
        if holds {
            let at = self.pending.iter().position(|pending| *pending == (room, change));
            self.pending.remove(at.expect("what is not lost is pending"));
            let row = self.rows.entry(room).or_default();
            row.change(change, &self.known);
        }
        let (BitChange::Set(_, stamp) | BitChange::Clear(_, stamp)) = change else { return };
        let answer = Event::Answer { server, run, room, sub_seq: stamp.sub_seq, holds };
        let delay = if holds { self.chance.delay() } else { CHANGE_MS };
        self.send_in(delay, answer);
    }

    fn client(&mut self, client: u64) -> Result<(), String> {
        if self.is_calm {
            return Ok(());
        }
        let pause = 20 + self.chance.below(2_000);
        self.send_in(pause, Event::Client(client));
        let server = Ordinal(u32::try_from(self.chance.below(u64::from(SERVERS))).expect("few servers"));
        let room = RoomId(u32::try_from(self.chance.below(u64::from(ROOMS))).expect("few rooms"));
        match self.chance.below(3) {
            0 => self.join(server, room, client),
            1 => self.leave(server, room, client),
            _ => return self.publish(room),
        }
        // Many leave for about as long as a bit is kept.
        if self.chance.below(4) == 0 {
            self.leave(server, room, client);
            self.send_in(ROOM_CLEAR_DELAY_MS + self.chance.0 % 60, Event::Client(client));
        }
        Ok(())
    }

    fn join(&mut self, ordinal: Ordinal, room: RoomId, client: u64) {
        self.stays += 1;
        let member = Member { stay: self.stays, is_told: false };
        let server = self.servers.get_mut(&ordinal).expect("servers stay");
        let members = server.members.entry(room).or_default();
        if let Entry::Vacant(place) = members.entry(client) {
            place.insert(member);
            let run = server.run;
            self.step(ordinal, run, Input::Join(room));
        }
    }

    fn leave(&mut self, ordinal: Ordinal, room: RoomId, client: u64) {
        let server = self.servers.get_mut(&ordinal).expect("servers stay");
        if server.members.entry(room).or_default().remove(&client).is_some() {
            let run = server.run;
            self.step(ordinal, run, Input::Leave(room));
        }
    }

    /// The leader sends a message to every server with a bit that counts.
    fn publish(&mut self, room: RoomId) -> Result<(), String> {
        self.published += 1;
        let number = self.published;
        let row = self.rows.get(&room).cloned().unwrap_or_default();
        let present: Vec<_> = row.present(&self.known).collect();
        for (server, stamp) in present {
            if self.known.runs.get(&server) != Some(&stamp.incarnation) {
                return Err(format!("a message goes to {server} in {}, which is over", stamp.incarnation));
            }
            self.send(Event::Deliver { server, stamp, room, number });
        }
        let is_after_a_loss = self.lost_at.is_some_and(|lost| self.now < lost + LOSS_MS);
        // The leader does not know every run yet.
        let known =
            self.servers.iter().filter(|(ordinal, server)| self.known.runs.get(ordinal) == Some(&server.run));
        let told = known.flat_map(|(ordinal, server)| {
            let members = server.members.get(&room).into_iter().flat_map(BTreeMap::values);
            members.filter(|member| member.is_told).map(|member| (*ordinal, member.stay))
        });
        let clients: BTreeSet<_> = told.collect();
        if !is_after_a_loss {
            self.send_in(2_000, Event::Judge { room, number, clients });
        }
        Ok(())
    }

    fn deliver(&mut self, ordinal: Ordinal, stamp: Stamp, room: RoomId, number: u64) {
        let server = self.servers.get_mut(&ordinal).expect("servers stay");
        if server.run != stamp.incarnation {
            return;
        }
        let members = server.members.entry(room).or_default();
        if members.is_empty() {
            self.step(ordinal, stamp.incarnation, Input::Stray(room, stamp.sub_seq));
        } else {
            self.heard.extend(members.values().map(|member| (number, member.stay)));
        }
    }

    /// Everybody who was in when a message was published, and still is, has heard it.
    fn judge(&self, room: RoomId, number: u64, clients: &BTreeSet<(Ordinal, u64)>) -> Result<(), String> {
        for (ordinal, stay) in clients {
            let members = self.servers[ordinal].members.get(&room);
            let is_there = members.is_some_and(|all| all.values().any(|member| member.stay == *stay));
            if is_there && !self.heard.contains(&(number, *stay)) {
                return Err(format!("stay {stay} at {ordinal} missed message {number} of {room:?}"));
            }
        }
        Ok(())
    }

    fn fault(&mut self) {
        if self.is_calm {
            return;
        }
        let pause = 500 + self.chance.below(9_000);
        self.send_in(pause, Event::Fault);
        match self.chance.below(3) {
            0 => self.restart(),
            1 => self.fail_over(),
            _ => {
                self.rows.clear();
                self.lost_at = Some(self.now);
                self.fail_over();
            }
        }
    }

    /// A server comes back at once, under the same ordinal.
    fn restart(&mut self) {
        let ordinal = Ordinal(u32::try_from(self.chance.below(u64::from(SERVERS))).expect("few servers"));
        let run = self.servers[&ordinal].run.next();
        self.start(ordinal, run);
        self.send_in(1 + self.chance.0 % 100, Event::Runs { server: ordinal, run });
    }

    /// Another leads: what only the former leader had is gone.
    fn fail_over(&mut self) {
        self.epoch += 1;
        self.pending.clear();
        // What was said again after a loss may be lost again.
        if self.lost_at.is_some_and(|lost| self.now < lost + LOSS_MS) {
            self.lost_at = Some(self.now);
        }
        for ordinal in 0..SERVERS {
            let delay = 1 + self.chance.below(300);
            self.send_in(delay, Event::News { server: Ordinal(ordinal) });
        }
    }

    /// I16.
    fn check_bits(&self) -> Result<(), String> {
        for room in (0..ROOMS).map(RoomId) {
            let row = self.rows.get(&room).cloned().unwrap_or_default();
            for (ordinal, server) in &self.servers {
                let stands =
                    row.bits().any(|(bit, stamp)| bit == *ordinal && stamp.incarnation == server.run);
                let is_wanted = server.members.get(&room).is_some_and(|members| !members.is_empty());
                if stands != is_wanted {
                    return Err(format!("{room:?}: bit of {ordinal} is {stands} and should be {is_wanted}"));
                }
                let members = server.members.get(&room).into_iter().flatten();
                let untold = members.into_iter().find(|(_, member)| !member.is_told);
                if let Some((client, _)) = untold {
                    return Err(format!(
                        "{room:?}: client {client} at {ordinal} was never told that it is in"
                    ));
                }
            }
        }
        Ok(())
    }

    /// One server has many rooms, and all of their rows are lost.
    pub fn storm(&mut self, rooms: u32) -> Result<Storm, String> {
        let mut core = Subscriptions::new(Tick(0), 0);
        let mut effects = Vec::new();
        let (mut longest_queue, mut said) = (0, Vec::new());
        for input in [Input::Join as fn(RoomId) -> Input, Input::Doubt] {
            said.clear();
            for room in (0..rooms).map(RoomId) {
                core.step(Tick(1), input(room), &mut effects);
                said.extend(effects.drain(..).filter(|effect| matches!(effect, Effect::Set(..))));
            }
            longest_queue = longest_queue.max(said.len());
            let mut at = 0;
            while let Some(Effect::Set(room, sub_seq)) = said.get(at).cloned() {
                core.step(Tick(2), Input::Done(room, sub_seq), &mut effects);
                said.extend(effects.drain(..).filter(|effect| matches!(effect, Effect::Set(..))));
                at += 1;
            }
        }
        if !(0..rooms).all(|room| core.is_set(RoomId(room))) {
            return Err("a bit was not set".to_owned());
        }
        Ok(Storm { longest_queue, set: said.len() })
    }
}
