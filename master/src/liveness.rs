//! Which tablet servers are alive and what they report: the leading master's memory.
//!
//! Nothing here is stored or replicated. A new leader knows nothing and counts silence from
//! the moment it led. Reports of tablets that are gone go with them, so the memory is bounded
//! by the metadata.

use crate::limits::{ARRIVALS_PER_SERVER_MAX, SUSPECT_SILENCE, UP_SILENCE};
use ebla_kernel::ids::{Epoch, ReplicaId, ServerId, TabletId};
use ebla_kernel::meta::{State, Tablet, Wish};
use ebla_proto::split::Copied;
use ebla_proto::v1::{ArrivalReport, Heartbeat, ServerState, TabletReport};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the leader remembers of one server.
#[derive(Clone, Copy, Debug)]
struct Seen {
    heard: Instant,
    connected: bool,
    draining: bool,
    disk_bytes: u64,
    disk_bytes_free: u64,
}

/// What a server said of one tablet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Report {
    server: ServerId,
    serving: Epoch,
    rows: u64,
    bytes: u64,
    requests: u64,
}

/// What is known of a tablet that the plan needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Counted {
    /// Whose word it is.
    pub server: ServerId,
    pub bytes: u64,
    /// Requests since the copy was opened there.
    pub requests: u64,
}

/// Health of one server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Health {
    pub state: ServerState,
    pub silent: Duration,
    pub connected: bool,
    pub disk_bytes: u64,
    pub disk_bytes_free: u64,
}

/// Size of one tablet as last reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Size {
    pub rows: u64,
    pub bytes: u64,
}

struct Inner {
    since: Instant,
    servers: BTreeMap<ServerId, Seen>,
    reports: BTreeMap<TabletId, Report>,
    /// Copies that hold another history than their leaders.
    diverged: BTreeSet<(TabletId, ServerId)>,
    /// By the last heartbeat of each server.
    arrivals: BTreeMap<ServerId, BTreeMap<ReplicaId, Copied>>,
}

/// The leading master's memory of its servers.
pub(crate) struct Liveness {
    inner: Mutex<Inner>,
}

impl Liveness {
    pub fn new() -> Self {
        let (servers, reports, arrivals) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (since, diverged) = (Instant::now(), BTreeSet::new());
        Self { inner: Mutex::new(Inner { since, servers, reports, diverged, arrivals }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything: a new term begins.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.since = Instant::now();
        inner.servers.clear();
        inner.reports.clear();
        inner.diverged.clear();
        inner.arrivals.clear();
    }

    pub fn opened(&self, server: ServerId) {
        let mut inner = self.lock();
        let seen = Seen {
            heard: Instant::now(),
            connected: true,
            draining: false,
            disk_bytes: 0,
            disk_bytes_free: 0,
        };
        inner.servers.insert(server, seen);
        // The first heartbeat of a session names every tablet.
        inner.reports.retain(|_, report| report.server != server);
        inner.diverged.retain(|(_, at)| *at != server);
    }

    pub fn closed(&self, server: ServerId) {
        let mut inner = self.lock();
        inner.arrivals.remove(&server);
        if let Some(seen) = inner.servers.get_mut(&server) {
            seen.connected = false;
        }
    }

    /// Takes a heartbeat; reports of tablets that `state` does not have on this server are
    /// ignored.
    pub fn heartbeat(&self, state: &State, server: ServerId, heartbeat: &Heartbeat) {
        let mut inner = self.lock();
        let Some(seen) = inner.servers.get_mut(&server) else { return };
        seen.heard = Instant::now();
        seen.draining = heartbeat.draining;
        seen.disk_bytes = heartbeat.disk_bytes;
        seen.disk_bytes_free = heartbeat.disk_bytes_free;
        for report in &heartbeat.tablets {
            inner.report(state, server, report);
        }
        let received = |arrival: &ArrivalReport| {
            let copied = Copied { bytes: arrival.bytes, bytes_total: arrival.bytes_total, waits_for: None };
            (ReplicaId(arrival.replica_id), copied)
        };
        let arrivals = heartbeat.arrivals.iter().take(ARRIVALS_PER_SERVER_MAX).map(received);
        inner.arrivals.insert(server, arrivals.collect());
    }

    /// How much of a copy on `server` has come in, while it does.
    pub fn copied(&self, server: ServerId, replica: ReplicaId) -> Option<Copied> {
        self.lock().arrivals.get(&server)?.get(&replica).cloned()
    }

    /// The wish to merge two tablets: the copies of the one with fewer bytes go to the others.
    pub fn merge_of(&self, one: TabletId, other: TabletId) -> Wish {
        let bytes = |tablet| self.size(tablet).bytes;
        let (stays, comes) = if bytes(one) < bytes(other) { (other, one) } else { (one, other) };
        Wish::Merge { stays, comes }
    }

    /// Forgets tablets that are gone.
    pub fn forget<'a>(&self, tablets: impl Iterator<Item = &'a TabletId>) {
        let gone: BTreeSet<&TabletId> = tablets.collect();
        let mut inner = self.lock();
        for tablet in &gone {
            inner.reports.remove(tablet);
        }
        inner.diverged.retain(|(tablet, _)| !gone.contains(tablet));
    }

    pub fn health(&self, server: ServerId) -> Health {
        self.lock().health(server)
    }

    pub fn size(&self, tablet: TabletId) -> Size {
        let inner = self.lock();
        inner
            .reports
            .get(&tablet)
            .map_or_else(Size::default, |report| Size { rows: report.rows, bytes: report.bytes })
    }

    /// What is known of every tablet that was reported.
    pub fn counted(&self) -> BTreeMap<TabletId, Counted> {
        let inner = self.lock();
        let counted = |report: &Report| Counted {
            server: report.server,
            bytes: report.bytes,
            requests: report.requests,
        };
        inner.reports.iter().map(|(id, report)| (*id, counted(report))).collect()
    }

    /// Servers whose copies of a tablet hold another history than its leader, by their own word.
    pub fn diverged(&self, tablet: &Tablet) -> Vec<ServerId> {
        let inner = self.lock();
        let said = |server: &ServerId| inner.diverged.contains(&(tablet.id, *server));
        let copies = tablet.replicas.iter().filter(|copy| !copy.lost);
        copies.map(|copy| copy.server).filter(said).collect()
    }

    /// How many copies hold another history than their leaders.
    pub fn diverged_count(&self) -> usize {
        self.lock().diverged.len()
    }

    /// How many of `tablets` are served by the leader of their present epoch, by its own word.
    pub fn count_reported<'a>(&self, tablets: impl Iterator<Item = &'a Tablet>) -> usize {
        let inner = self.lock();
        tablets.filter(|tablet| inner.is_reported(tablet)).count()
    }

    /// How many of `tablets` have a leader that is alive, as far as is known, and so many live
    /// copies in sync that it can hold its lease.
    pub fn count_serving<'a>(&self, state: &State, tablets: impl Iterator<Item = &'a Tablet>) -> usize {
        let inner = self.lock();
        let mut alive: BTreeMap<ServerId, bool> = BTreeMap::new();
        let mut is_alive = |server: ServerId| *alive.entry(server).or_insert_with(|| inner.is_alive(server));
        let serving = tablets.filter(|tablet| {
            let leader = tablet.leader.filter(|leader| state.is_current(leader));
            let in_sync: Vec<_> = tablet.in_sync_replicas().collect();
            let min_in_sync = state.table(tablet.table).map_or(1, |table| table.spec.min_in_sync);
            let live = in_sync.iter().filter(|copy| !copy.lost && is_alive(copy.server)).count();
            live >= in_sync.len().min(usize::from(min_in_sync))
                && leader.is_some_and(|leader| is_alive(leader.server))
        });
        serving.count()
    }
}

impl Inner {
    fn report(&mut self, state: &State, server: ServerId, report: &TabletReport) {
        let id = TabletId(report.tablet_id);
        let Some(tablet) = state.tablet(id).filter(|tablet| tablet.replica_on(server).is_some()) else {
            return;
        };
        let is_diverged = tablet.replicas.iter().any(|copy| copy.id.0 == report.diverged_replica_id);
        if is_diverged {
            self.diverged.insert((id, server));
        } else {
            self.diverged.remove(&(id, server));
        }
        // Of several copies the leader's word counts, and after it that of the last leader.
        let leads = tablet.leader.is_some_and(|leader| leader.server == server);
        if !leads && self.reports.get(&id).is_some_and(|known| known.server != server) {
            return;
        }
        let serving = Epoch(report.serving_epoch);
        let (rows, bytes, requests) = (report.rows_estimate, report.bytes, report.requests);
        let report = Report { server, serving, rows, bytes, requests };
        self.reports.insert(id, report);
    }

    fn is_reported(&self, tablet: &Tablet) -> bool {
        let Some(leader) = tablet.leader else { return false };
        self.reports
            .get(&tablet.id)
            .is_some_and(|report| report.server == leader.server && report.serving == tablet.epoch)
    }

    fn is_alive(&self, server: ServerId) -> bool {
        match self.health(server).state {
            ServerState::Up | ServerState::Draining => true,
            ServerState::Suspect | ServerState::Down | ServerState::Unspecified => false,
        }
    }

    fn health(&self, server: ServerId) -> Health {
        let seen = self.servers.get(&server);
        let silent = seen.map_or(self.since, |seen| seen.heard).elapsed();
        let connected = seen.is_some_and(|seen| seen.connected);
        let draining = seen.is_some_and(|seen| seen.draining);
        let state = match (draining, connected) {
            (true, true) => ServerState::Draining,
            // It said that it would stop, and then it went.
            (true, false) => ServerState::Down,
            (false, _) if silent < UP_SILENCE => ServerState::Up,
            (false, _) if silent < SUSPECT_SILENCE => ServerState::Suspect,
            (false, _) => ServerState::Down,
        };
        Health {
            state,
            silent,
            connected,
            disk_bytes: seen.map_or(0, |seen| seen.disk_bytes),
            disk_bytes_free: seen.map_or(0, |seen| seen.disk_bytes_free),
        }
    }
}
