//! What every node of a simulation is given: time, chance, the queue of events, the network,
//! and the watch that looks on.

use super::clock::tick;
use super::fault::Profile;
use super::network::{Address, Message, Network};
use super::rng::Rng;
use super::rooms::Published;
use crate::invariants::{Observation, Watch};
use crate::oracle::History;
use ebla_kernel::ids::{Attempt, Epoch, Lineage, Ordinal, ReplicaId, ServerId, TabletId, Tick};
use ebla_kernel::meta::{Server, State};
use ebla_kernel::range::KeyRange;
use ebla_kernel::room::ServerRuns;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Something that is going to happen.
#[derive(Debug)]
pub enum Event {
    /// A message arrives.
    Deliver(Address, Message),
    /// Something inside a run of a server.
    Server {
        /// Which server.
        server: usize,
        /// Which of its runs; an event of an earlier run is void.
        run: u64,
        /// What.
        event: super::server::Internal,
    },
    /// Something inside a run of the metadata node.
    Meta {
        /// Which of its runs.
        run: u64,
        /// What.
        event: super::meta::Internal,
    },
    /// A client's own timer.
    Client(usize, super::workload::Timer),
    /// Something breaks or comes back.
    Fault(super::world::Fault),
    /// Backups go on.
    Backup,
    /// Somebody does something with rooms.
    Crowd(super::crowd::Deed),
}

impl Event {
    /// A number for each kind and node, for the hash of the trace.
    fn code(&self) -> u64 {
        let node = |address: &Address| match address {
            Address::Meta => 1,
            Address::Server(index) => 100 + *index as u64,
            Address::Client(index) => 200 + *index as u64,
        };
        match self {
            Self::Deliver(to, _) => 1_000 + node(to),
            Self::Server { server, run, .. } => 2_000 + *server as u64 + (run << 16),
            Self::Meta { run, .. } => 3_000 + (run << 16),
            Self::Client(client, _) => 4_000 + *client as u64,
            Self::Fault(_) => 5_000,
            Self::Backup => 6_000,
            Self::Crowd(_) => 7_000,
        }
    }
}

/// Where a tablet is.
#[derive(Clone, Debug)]
pub struct Route {
    /// The tablet.
    pub tablet: TabletId,
    /// Its keys.
    pub range: KeyRange,
    /// The server that leads it, if any does.
    pub leader: Option<usize>,
    /// The copies that are not lost, and their servers.
    pub copies: BTreeMap<ReplicaId, usize>,
    /// Which of them are in sync.
    pub in_sync: Vec<ReplicaId>,
    /// No attempt up to this one to retire it will be committed.
    pub aborted: Attempt,
    /// The latest epoch.
    pub epoch: Epoch,
    /// Its history.
    pub lineage: Lineage,
}

impl Route {
    /// Whether a server holds a copy.
    #[must_use]
    pub fn is_on(&self, server: usize) -> bool {
        self.copies.values().any(|copy| *copy == server)
    }
}

/// What everybody is told of the metadata.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// The tablets, in key order.
    pub routes: Vec<Route>,
    /// Where each server is.
    pub servers: BTreeMap<ServerId, usize>,
    /// Each server's bit in a room, by where it is.
    pub ordinals: BTreeMap<usize, Ordinal>,
    /// Each server's run, by its bit.
    pub runs: Arc<ServerRuns>,
}

impl Directory {
    /// What the metadata says now.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let index = |id| state.server(id)?.address.strip_prefix("server-")?.parse().ok();
        let servers: BTreeMap<ServerId, usize> =
            state.servers().filter_map(|server| Some((server.id, index(server.id)?))).collect();
        let route = |tablet: &ebla_kernel::meta::Tablet| Route {
            tablet: tablet.id,
            range: tablet.range.clone(),
            leader: tablet.leader.and_then(|leader| servers.get(&leader.server).copied()),
            copies: tablet
                .replicas
                .iter()
                .filter(|replica| !replica.lost)
                .filter_map(|replica| Some((replica.id, *servers.get(&replica.server)?)))
                .collect(),
            in_sync: tablet.in_sync.iter().copied().collect(),
            aborted: tablet.aborted,
            epoch: tablet.epoch,
            lineage: tablet.lineage,
        };
        let ordinal = |server: &Server| Some((index(server.id)?, server.ordinal));
        let ordinals = state.servers().filter_map(ordinal).collect();
        let runs = state.servers().map(|server| (server.ordinal, server.incarnation)).collect();
        let runs = Arc::new(ServerRuns { runs });
        Self { routes: state.tablets().map(route).collect(), servers, ordinals, runs }
    }

    /// The route of a tablet.
    #[must_use]
    pub fn route(&self, tablet: TabletId) -> Option<&Route> {
        self.routes.iter().find(|route| route.tablet == tablet)
    }
}

/// The world as one node sees it.
#[derive(Debug)]
pub struct Env {
    /// Simulated time in microseconds.
    pub now_us: u64,
    /// The one source of chance.
    pub rng: Rng,
    /// What happens in this seed.
    pub profile: Profile,
    /// Links.
    pub network: Network,
    /// The invariants.
    pub watch: Watch,
    /// What became of messages to rooms.
    pub published: Published,
    /// What clients asked and were told.
    pub history: History,
    /// Where the tablets are.
    pub directory: Directory,
    /// The metadata changed since somebody looked.
    pub metadata_changed: bool,
    /// Somebody serves that did not before.
    pub leases_changed: bool,
    /// A server has just ended in good order.
    pub has_stopped: bool,
    /// Hash over everything that happened.
    pub trace: u64,
    /// What happened, in words, if somebody wants to read it.
    pub log: Option<Vec<String>>,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
}

impl Env {
    /// A world in which nothing has happened.
    #[must_use]
    pub fn new(rng: Rng, profile: Profile) -> Self {
        Self {
            now_us: 0,
            rng,
            profile,
            network: Network::default(),
            watch: Watch::new(),
            history: History::default(),
            directory: Directory::default(),
            metadata_changed: false,
            leases_changed: false,
            has_stopped: false,
            published: Published::default(),
            trace: 0,
            log: None,
            queue: BTreeMap::new(),
            queued: 0,
        }
    }

    /// The monotonic clock of the metadata node.
    #[must_use]
    pub fn tick(&self) -> Tick {
        tick(self.now_us)
    }

    /// Lets `event` happen in `delay_us`.
    pub fn after(&mut self, delay_us: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now_us + delay_us, self.queued), event);
    }

    /// Takes the next event up to `until_us` and moves time to it.
    pub fn next(&mut self, until_us: u64) -> Option<Event> {
        let first = self.queue.first_entry()?;
        if first.key().0 > until_us {
            return None;
        }
        let ((at, number), event) = first.remove_entry();
        self.now_us = at;
        self.mark(at ^ (number << 32) ^ event.code());
        Some(event)
    }

    /// Hands a message to the network. Whether any of it arrives.
    pub fn send(&mut self, from: Address, to: Address, message: Message) -> bool {
        let link = (from, to);
        let arrivals = self.network.deliveries(&mut self.rng, &self.profile.network, link, self.now_us);
        if let Message::Request(request) = &message {
            self.history.sent(request.op, arrivals.len());
        }
        let arrives = !arrivals.is_empty();
        if let Some((last, others)) = arrivals.split_last() {
            for at_us in others {
                self.after(at_us - self.now_us, Event::Deliver(to, message.clone()));
            }
            self.after(last - self.now_us, Event::Deliver(to, message));
        }
        arrives
    }

    /// Shows something to the invariants; the watch keeps the first that is broken.
    pub fn observe(&mut self, observation: &Observation<'_>) {
        self.watch.observe(observation);
    }

    /// Mixes a number into the trace's hash.
    pub fn mark(&mut self, value: u64) {
        self.trace = (self.trace.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    /// Notes a line for people, if somebody reads it.
    pub fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now_us;
        if let Some(log) = &mut self.log {
            log.push(format!("{:>10}.{:03} ms  {}", now / 1_000, now % 1_000, line()));
        }
    }
}
