//! Scenarios that chance seldom brings about: a quiet cluster in which somebody does one thing
//! after another at chosen moments. What comes of it is judged as after any other run.

use super::fault::{Profile, SECOND_US};
use super::network::Address;
use super::rng::Rng;
use super::workload::row_key;
use super::world::World;
use crate::invariants::Violation;
use ebla_kernel::ids::{ServerId, TabletId};
use ebla_kernel::meta::{Command, Policy, Wish};

/// How long a scenario waits for what it brought about.
const PATIENCE_US: u64 = 20 * SECOND_US;

/// A quiet cluster of a table with three copies, two of which decide.
#[derive(Debug)]
pub struct Directed {
    world: World,
}

/// How a scenario ends early.
pub type Step = Result<(), Violation>;

impl Directed {
    /// A cluster in which every tablet is served.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn begin(seed: u64, suit: impl FnOnce(&mut Profile)) -> Result<Self, Violation> {
        let mut rng = Rng::new(seed);
        let mut profile = Profile::draw(&mut rng);
        profile.heal();
        (profile.servers, profile.tablets, profile.keys) = (4, 1, 12);
        (profile.spec.replicas, profile.spec.min_in_sync) = (3, 2);
        profile.spec.policy = Policy::Strict;
        (profile.skew_ms_max, profile.repairs, profile.replace_after_ms) = (0, true, None);
        (profile.think_us, profile.wait_pm) = ((0, 20_000), 500);
        profile.disk.flush_every_us = (2 * SECOND_US, 4 * SECOND_US);
        suit(&mut profile);
        let mut directed = Self { world: World::new(rng, profile) };
        directed.world.start();
        directed.wait("a first leader", |directed| directed.leader_of_row(0).is_some())?;
        directed.play(300_000)?;
        Ok(directed)
    }

    /// Lets things happen for a while.
    ///
    /// # Errors
    /// The first invariant that was broken.
    pub fn play(&mut self, us: u64) -> Step {
        let until = self.world.env.now_us + us;
        self.world.run_until(until, |_| false)?;
        // Time passes although nothing happens.
        self.world.env.now_us = until;
        Ok(())
    }

    /// Lets things happen until something has come about.
    ///
    /// # Errors
    /// When it does not, or an invariant is broken.
    pub fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Step {
        let until = self.world.env.now_us + PATIENCE_US;
        while !done(self) {
            if self.world.env.now_us >= until {
                let Violation { detail, .. } = self.world.not_alive(what);
                return Err(Violation { invariant: "a scenario goes on".into(), detail });
            }
            self.play(1_000)?;
        }
        Ok(())
    }

    /// Heals everything and judges.
    ///
    /// # Errors
    /// The first invariant that was broken.
    pub fn end(mut self) -> Step {
        self.world.finish()
    }

    /// The tablet that a row is in.
    #[must_use]
    pub fn tablet_of_row(&self, n: u64) -> TabletId {
        let mut routes = self.world.env.directory.routes.iter();
        routes.find(|route| route.range.contains(&row_key(n))).map_or(TabletId(0), |route| route.tablet)
    }

    /// The server that leads the tablet of a row.
    #[must_use]
    pub fn leader_of_row(&self, n: u64) -> Option<usize> {
        let mut routes = self.world.env.directory.routes.iter();
        routes.find(|route| route.range.contains(&row_key(n)))?.leader
    }

    /// Whether a server leads the tablet of a row and holds the lease.
    #[must_use]
    pub fn serves_row(&self, server: usize, n: u64) -> bool {
        self.world.servers[server].leads(self.world.env.now_us, self.tablet_of_row(n))
    }

    /// A server that holds a copy of a row's tablet and does not lead it.
    #[must_use]
    pub fn follower_of_row(&self, n: u64) -> Option<usize> {
        let leader = self.leader_of_row(n)?;
        let mut routes = self.world.env.directory.routes.iter();
        let route = routes.find(|route| route.range.contains(&row_key(n)))?;
        route.copies.values().copied().find(|server| *server != leader)
    }

    /// Copies that count as lost because they had diverged from their leaders.
    #[must_use]
    pub fn forsaken(&self) -> u64 {
        self.world.meta.wishes().forsaken
    }

    /// Tablets.
    #[must_use]
    pub fn tablets(&self) -> usize {
        self.world.env.directory.routes.len()
    }

    /// Whether a server's log of a row's tablet ends sealed.
    #[must_use]
    pub fn is_sealed(&self, server: usize, n: u64) -> bool {
        let copy = self.world.servers[server].run.as_ref();
        let copy = copy.and_then(|run| run.copies.get(&self.tablet_of_row(n)));
        copy.is_some_and(|copy| copy.core.sealed().is_some())
    }

    /// Somebody wants the tablet of a row split in front of it.
    pub fn split_at(&mut self, n: u64) {
        let (tablet, at) = (self.tablet_of_row(n), vec![row_key(n)]);
        self.world.meta.wish(&mut self.world.env, Wish::Split { tablet, at });
    }

    /// Somebody wants the tablet of a row and the one in front of it made one.
    pub fn merge_at(&mut self, n: u64) {
        let comes = self.tablet_of_row(n);
        let routes = &self.world.env.directory.routes;
        let place = routes.iter().position(|route| route.tablet == comes);
        let Some(stays) = place.and_then(|place| routes.get(place.checked_sub(1)?)) else { return };
        let wish = Wish::Merge { stays: stays.tablet, comes };
        self.world.meta.wish(&mut self.world.env, wish);
    }

    /// Somebody wants a copy of the tablet of a row on the server that has none.
    pub fn move_row(&mut self, n: u64, from: usize) {
        let tablet = self.tablet_of_row(n);
        let route = self.world.env.directory.route(tablet).cloned();
        let free =
            (0..self.world.servers.len()).find(|server| route.as_ref().is_some_and(|r| !r.is_on(*server)));
        let id = |place: usize| self.world.env.directory.servers.iter().find(|(_, at)| **at == place);
        let (Some((from, _)), Some((to, _))) = (id(from), free.and_then(id)) else { return };
        let (from, to): (ServerId, ServerId) = (*from, *to);
        self.world.meta.wish(&mut self.world.env, Wish::Move { tablet, from, to });
    }

    /// Somebody gives up the job that is under way.
    pub fn cancel(&mut self) {
        self.world.meta.cancel(&mut self.world.env);
    }

    /// Raises the epoch of the tablet of a row.
    pub fn depose(&mut self, n: u64) {
        let tablet = self.tablet_of_row(n);
        let epoch = self.world.meta.state().and_then(|state| state.tablet(tablet)).map(|tablet| tablet.epoch);
        if let Some(epoch) = epoch {
            let command = Command::Recover { tablets: vec![(tablet, epoch)] };
            self.world.meta.command(&mut self.world.env, command);
        }
    }

    /// A server loses power.
    pub fn crash(&mut self, server: usize) {
        if self.world.servers[server].is_up() {
            self.world.servers[server].crash(&mut self.world.env);
        }
    }

    /// A server comes back.
    pub fn start(&mut self, server: usize) {
        if !self.world.servers[server].is_up() {
            self.world.servers[server].start(&mut self.world.env);
        }
    }

    /// All servers lose power and come back.
    pub fn blackout(&mut self) {
        (0..self.world.servers.len()).for_each(|server| self.crash(server));
        (0..self.world.servers.len()).for_each(|server| self.start(server));
    }

    /// Flushes come soon, on servers that start from now on.
    pub fn flush_often(&mut self) {
        self.world.env.profile.disk.flush_every_us = (100_000, 300_000);
    }

    /// The leading master dies, and another takes over.
    pub fn fail_over_masters(&mut self) {
        self.world.meta.crash(&mut self.world.env);
        self.world.meta.start(&mut self.world.env);
    }

    /// A server does nothing for a while.
    pub fn suspend(&mut self, server: usize, us: u64) {
        self.world.servers[server].asleep_until_us = self.world.env.now_us + us;
    }

    /// Cuts a server off from other servers, and where asked from the masters too.
    pub fn cut_off(&mut self, server: usize, masters: Masters) {
        let own = Address::Server(server);
        let mut others: Vec<Address> = (0..self.world.servers.len()).map(Address::Server).collect();
        if masters == Masters::Cut {
            others.push(Address::Meta);
        }
        for other in others.into_iter().filter(|other| *other != own) {
            self.world.env.network.cut(own, other);
            self.world.env.network.cut(other, own);
        }
    }

    /// Joins every link.
    pub fn join(&mut self) {
        self.world.env.network.heal();
    }
}

/// Whether a server that is cut off reaches the masters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Masters {
    /// It does.
    Reached,
    /// It does not.
    Cut,
}
