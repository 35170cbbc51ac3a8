//! Whoever is in rooms: subscribers come and go at servers of chance and publish at others, and who
//! was in must be among those who get a message (I16).
//!
//! - Messages get lost here as the network pleases: what is judged is whom the leader of the row
//!   sends them to. Only when everything is healed must they be heard.
//! - Where every copy of the rows was lost, bits may be missing for a while: nobody is judged by that
//!   before everything is healed, and then after seconds.
//!
//! Chance here has a source of its own, and only some seeds have rooms.

use super::env::{Env, Event, Route};
use super::fault::{SECOND_US, SpanUs};
use super::rng::Rng;
use super::rooms::{Fanout, room_key};
use super::server::Server;
use super::world::{LIVENESS_US, World};
use crate::invariants::Violation;
use crate::oracle::Trust;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::Ordinal;
use ebla_kernel::limits::ROOM_CLEAR_DELAY_MS;
use ebla_kernel::room::ServerRuns;
use ebla_kernel::room::row::RoomRow;
use ebla_kernel::room::subscriptions::RoomId;
use std::collections::{BTreeMap, BTreeSet};

/// After how long at rest bits that were lost are back.
const LOSS_US: u64 = 7 * SECOND_US;

/// How long what nobody is in is let go, and what a server was told of and nobody there wanted.
const CLEAR_US: u64 = 2 * ROOM_CLEAR_DELAY_MS * 1_000 + 2 * SECOND_US;

/// How long nobody gives up what is left of tablets after somebody did: an election, and the promises that
/// a restarted server may be bound by.
const GIVE_UP_EVERY_US: u64 = 5 * SECOND_US;

/// Most subscribers of a room at one server.
const MEMBERS_MAX: usize = 3;

/// What one seed's rooms are like.
#[derive(Clone, Debug)]
pub struct RoomFaults {
    /// Their own source of chance.
    pub rng: Rng,
    /// Rooms.
    pub rooms: u32,
    /// Pause between two things that somebody does.
    pub every_us: SpanUs,
}

impl RoomFaults {
    /// The mixture of one seed.
    #[must_use]
    pub fn draw(mut rng: Rng) -> Self {
        Self {
            rooms: 1 + u32::try_from(rng.below(5)).expect("few"),
            every_us: (1_000, 20_000 << rng.below(5)),
            rng,
        }
    }
}

/// What somebody does next.
#[derive(Clone, Copy, Debug)]
pub enum Deed {
    /// Somebody does something somewhere.
    Any,
    /// Somebody comes back to a room at a server.
    Return(usize, RoomId),
}

/// Subscribers, publishers, and what must become of their messages.
#[derive(Debug)]
pub struct Crowd {
    rng: Rng,
    rooms: u32,
    stays: u64,
    published: u64,
    /// Nobody is excused any more.
    is_strict: bool,
    /// Messages that must be heard, by whom.
    owed: Vec<(u64, BTreeSet<u64>)>,
    /// When the remains of tablets were last given up.
    gave_up_us: u64,
}

impl Crowd {
    /// Nobody is in any room.
    #[must_use]
    pub fn new(env: &Env) -> Option<Self> {
        let RoomFaults { rng, rooms, .. } = env.profile.rooms.clone()?;
        Some(Self { rng, rooms, stays: 0, published: 0, is_strict: false, owed: Vec::new(), gave_up_us: 0 })
    }
}

impl World {
    /// Somebody does something with rooms, and so on.
    pub(super) fn gather(&mut self, deed: Deed) {
        let Some(faults) = &self.env.profile.rooms else { return };
        let (every_us, servers) = (faults.every_us, self.servers.len());
        let Some(crowd) = self.crowd.as_mut().filter(|_| !self.is_healed) else { return };
        match deed {
            Deed::Return(server, room) => self.come(server, room),
            Deed::Any => {
                let pause = crowd.rng.between(every_us);
                let (server, room) = (crowd.rng.index(servers), RoomId(draw_room(crowd)));
                let (deed, returns) = (crowd.rng.below(4), crowd.rng.chance(250));
                let later_us = ROOM_CLEAR_DELAY_MS * 1_000 + crowd.rng.below(60_000);
                self.env.after(pause, Event::Crowd(Deed::Any));
                match deed {
                    0 => self.come(server, room),
                    1 => {
                        self.servers[server].leave(&mut self.env, room);
                        if returns {
                            self.env.after(later_us, Event::Crowd(Deed::Return(server, room)));
                        }
                    }
                    _ => self.publish(server, room),
                }
            }
        }
    }

    fn come(&mut self, server: usize, room: RoomId) {
        let Some(crowd) = &mut self.crowd else { return };
        let server = &mut self.servers[server];
        let is_awake = server.asleep_until_us <= self.env.now_us;
        if is_awake && server.members(room).is_none_or(|members| members.len() < MEMBERS_MAX) {
            crowd.stays += 1;
            server.join(&mut self.env, room, crowd.stays);
        }
    }

    fn publish(&mut self, server: usize, room: RoomId) {
        let Some(crowd) = &mut self.crowd else { return };
        crowd.published += 1;
        let server = &self.servers[server];
        if server.is_up() && server.asleep_until_us <= self.env.now_us {
            server.publish(&mut self.env, room, crowd.published);
        }
    }

    /// Judges whom leaders have just sent messages to.
    pub(super) fn look_at_rooms(&mut self) {
        for fanout in std::mem::take(&mut self.env.published.fanouts) {
            if let Err(detail) = self.judge_fanout(&fanout) {
                self.env.watch.fail("I16 who is in a room gets its messages", &detail);
            }
        }
    }

    fn judge_fanout(&mut self, fanout: &Fanout) -> Result<(), String> {
        let Fanout { tablet, room, number, runs, to } = fanout;
        for (ordinal, stamp) in to {
            if !runs.is_present(*ordinal, stamp.incarnation) {
                return Err(format!(
                    "{room:?} {number} goes to {ordinal} in {}, which is over",
                    stamp.incarnation
                ));
            }
        }
        let Some(crowd) = &mut self.crowd else { return Ok(()) };
        let oracle = &self.env.watch.oracle;
        let is_excused = oracle.losses_of_all() > 0 || oracle.trust(*tablet) < Trust::Copies;
        if is_excused && !crowd.is_strict {
            return Ok(());
        }
        let told = told(&self.env, &self.servers, *room, runs);
        if let Some((ordinal, _)) = told.iter().find(|(ordinal, _)| !to.contains_key(ordinal)) {
            return Err(format!("{room:?} {number} goes to {to:?} and not to {ordinal}: {told:?} are in"));
        }
        crowd.owed.push((*number, told.into_values().flatten().collect()));
        Ok(())
    }

    /// A tablet of chance loses every copy, if it is in memory: the processes that hold it end.
    pub(super) fn bereave(&mut self) {
        let routes = &self.env.directory.routes;
        let victim = self.env.rng.index(routes.len().max(1));
        let holders: Vec<usize> =
            routes.get(victim).into_iter().flat_map(|route| route.copies.values().copied()).collect();
        holders.into_iter().for_each(|server| self.crash(server));
    }

    /// A tablet in memory has lost so many copies that nobody may lead it: somebody restarts the whole
    /// cluster, and what is there begins anew. Were only its own servers restarted, the other tablets
    /// there would be the next.
    pub(super) fn give_up_remains(&mut self) {
        let now_us = self.env.now_us;
        if self.crowd.as_ref().is_none_or(|crowd| now_us < crowd.gave_up_us + GIVE_UP_EVERY_US) {
            return;
        }
        let spare = usize::from(self.env.profile.spec.min_in_sync) - 1;
        let is_stuck = |route: &Route| {
            let lost = route.in_sync.iter().filter(|copy| !route.copies.contains_key(copy)).count();
            let leads = |leader: usize| self.servers[leader].leads(now_us, route.tablet);
            lost > spare.min(route.in_sync.len().saturating_sub(spare + 1))
                && !route.leader.is_some_and(leads)
        };
        if self.env.directory.routes.iter().any(is_stuck) {
            self.crowd.iter_mut().for_each(|crowd| crowd.gave_up_us = now_us);
            (0..self.servers.len()).for_each(|server| self.crash(server));
        }
    }

    /// I16, when everything is healed: what was lost is said again in seconds, long before the round
    /// in which everything is; messages are heard.
    ///
    /// # Errors
    /// The first thing that is not so.
    pub(super) fn be_in_rooms(&mut self) -> Result<(), Violation> {
        let Some(crowd) = &self.crowd else { return Ok(()) };
        let rooms = crowd.rooms;
        for server in 0..self.servers.len() {
            (0..rooms)
                .filter(|room| (server as u32 + room).is_multiple_of(2))
                .for_each(|room| self.come(server, RoomId(room)));
        }
        self.rest(LOSS_US)?;
        if self.env.profile.bereave_us.is_some() {
            self.bereave_rooms();
            self.be_led()?;
            self.rest(LOSS_US)?;
        }
        self.be_heard()?;
        self.rest(CLEAR_US)?;
        self.have_bits()?;
        self.be_heard()
    }

    /// E2: what begins anew is led again, in time.
    fn be_led(&mut self) -> Result<(), Violation> {
        let until = self.env.now_us + LIVENESS_US;
        let is_led = |world: &Self| {
            let mut routes = world.env.directory.routes.iter();
            let leads = |route: &Route| {
                route.leader.is_some_and(|leader| world.servers[leader].leads(world.env.now_us, route.tablet))
            };
            world.servers.iter().all(Server::is_up) && routes.all(leads)
        };
        match self.run_until(until, is_led)? {
            true => Ok(()),
            false => Err(self.not_alive("a tablet that lost everything is not led")),
        }
    }

    fn rest(&mut self, us: u64) -> Result<(), Violation> {
        let until = self.env.now_us + us;
        self.run_until(until, |_| false)?;
        Ok(())
    }

    /// The rows of rooms are lost with every copy, and not every server with them.
    fn bereave_rooms(&mut self) {
        let mut routes = self.env.directory.routes.iter();
        let home = routes.find(|route| route.range.contains(&room_key(RoomId(0))));
        let holders: Vec<usize> = home.into_iter().flat_map(|route| route.copies.values().copied()).collect();
        if holders.len() < self.servers.len() {
            holders.into_iter().for_each(|server| self.crash(server));
        }
    }

    /// Everybody publishes in every room, and whoever is in hears it.
    fn be_heard(&mut self) -> Result<(), Violation> {
        let Some(crowd) = &mut self.crowd else { return Ok(()) };
        crowd.is_strict = true;
        crowd.owed.clear();
        let (rooms, before) = (crowd.rooms, crowd.published);
        for (server, room) in
            (0..self.servers.len()).flat_map(|server| (0..rooms).map(move |room| (server, room)))
        {
            self.publish(server, RoomId(room));
        }
        self.rest(SECOND_US)?;
        let Some(crowd) = &mut self.crowd else { return Ok(()) };
        let decided = crowd.owed.iter().filter(|(number, _)| *number > before).count() as u64;
        if decided != crowd.published - before {
            return Err(broken(&format!(
                "{decided} of {} messages found a leader",
                crowd.published - before
            )));
        }
        let heard = &self.env.published.heard;
        for (number, stays) in std::mem::take(&mut crowd.owed) {
            if let Some(stay) = stays.iter().find(|stay| !heard.contains(&(number, **stay))) {
                return Err(broken(&format!("{stay} has not heard message {number}")));
            }
        }
        Ok(())
    }

    /// Bits stand where there are subscribers, and all of those know that they are in.
    fn have_bits(&self) -> Result<(), Violation> {
        let rooms = self.crowd.as_ref().map_or(0, |crowd| crowd.rooms);
        let runs = &self.env.directory.runs;
        for room in (0..rooms).map(RoomId) {
            let row = self.row(room);
            for server in &self.servers {
                let Some(ordinal) = self.env.directory.ordinals.get(&server.index) else { continue };
                let stands = row.present(runs).any(|(bit, _)| bit == *ordinal);
                let members = server.members(room);
                let is_wanted = members.is_some_and(|members| !members.is_empty());
                if stands != is_wanted {
                    return Err(broken(&format!(
                        "{room:?}: the bit of {ordinal} is {stands} in {row:?} and should be {is_wanted}"
                    )));
                }
                if let Some((stay, _)) = members.into_iter().flatten().find(|(_, told)| !**told) {
                    return Err(broken(&format!(
                        "{room:?}: {stay} at {ordinal} was never told that it is in"
                    )));
                }
            }
        }
        Ok(())
    }

    /// After everybody has lost power no bit counts.
    pub(super) fn have_no_bits(&self) -> Result<(), Violation> {
        let rooms = self.crowd.as_ref().map_or(0, |crowd| crowd.rooms);
        let rows = (0..rooms).map(|room| (room, self.row(RoomId(room))));
        for (room, row) in rows {
            if let Some((ordinal, stamp)) = row.present(&self.env.directory.runs).next() {
                return Err(broken(&format!(
                    "room {room}: {ordinal} has no subscriber, and {stamp:?} counts"
                )));
            }
        }
        Ok(())
    }

    /// The row of a room, where it is led.
    fn row(&self, room: RoomId) -> RoomRow {
        let key = room_key(room);
        let mut routes = self.env.directory.routes.iter();
        let leader = routes.find(|route| route.range.contains(&key)).and_then(|route| route.leader);
        let newest = leader.and_then(|leader| self.servers[leader].disk.store.newest(&key, Hlc::MAX));
        RoomRow::of(newest.map(|version| &version.body))
    }
}

fn broken(detail: &str) -> Violation {
    Violation { invariant: "I16 bits stand where subscribers are".into(), detail: detail.into() }
}

fn draw_room(crowd: &mut Crowd) -> u32 {
    u32::try_from(crowd.rng.below(u64::from(crowd.rooms))).expect("few rooms")
}

/// Who was told to be in a room, at servers of which these runs are the present ones.
fn told(env: &Env, servers: &[Server], room: RoomId, runs: &ServerRuns) -> BTreeMap<Ordinal, Vec<u64>> {
    let mut all = BTreeMap::new();
    for server in servers {
        let (Some(name), Some(ordinal)) = (server.server_run(), env.directory.ordinals.get(&server.index))
        else {
            continue;
        };
        let members = server.members(room).into_iter().flatten();
        let stays: Vec<u64> = members.filter(|(_, told)| **told).map(|(stay, _)| *stay).collect();
        if !stays.is_empty() && runs.is_present(*ordinal, name.incarnation) {
            all.insert(*ordinal, stays);
        }
    }
    all
}
