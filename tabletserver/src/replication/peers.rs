//! The other servers that share tablets with this one: who they are, whether they are heard
//! from, and the way to each.

use crate::limits;
use crate::promises::Leases;
use crate::tablets::TabletHandle;
use arc_swap::ArcSwap;
use ebla_kernel::ids::{DiskGeneration, Incarnation, ServerId, ServerRun};
use ebla_kernel::tablet::Stream;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use tokio::sync::{Notify, mpsc};

/// Who this process is to other servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: String,
    /// The process.
    pub run: ServerRun,
    /// Its data directory.
    pub generation: DiskGeneration,
}

impl Identity {
    /// The first message to another server.
    #[must_use]
    pub fn greeting(&self, to: ServerId) -> v1::Greeting {
        v1::Greeting {
            cluster_id: self.cluster_id.clone(),
            server_id: self.run.server.0,
            incarnation: self.run.incarnation.0,
            to_server_id: to.0,
        }
    }
}

/// Something for another server.
pub enum Outgoing {
    /// Entries of a tablet; they are looked up when there is room for them.
    Entries(Arc<TabletHandle>, Stream),
    /// A small message.
    Message(v1::ReplicaMessage),
}

/// Another server.
pub struct Peer {
    server: ServerId,
    incarnation: AtomicU64,
    /// When something was last heard, by the holder's clock.
    heard_at: AtomicU64,
    way: Mutex<Way>,
}

/// The open connection, if there is one.
#[derive(Default)]
struct Way {
    /// Counts connections, so that the end of an old one does not close a new one.
    number: u64,
    to: Option<mpsc::UnboundedSender<Outgoing>>,
    waiting: Arc<AtomicUsize>,
}

/// An open connection's end here.
pub struct Opened {
    /// Which one it is.
    pub number: u64,
    /// What is to be sent.
    pub orders: mpsc::UnboundedReceiver<Outgoing>,
    /// How much of it waits.
    pub waiting: Arc<AtomicUsize>,
}

impl Peer {
    /// A server that counts as heard from now: silence begins to run.
    fn new(server: ServerId, now: u64) -> Self {
        Self { server, incarnation: AtomicU64::new(0), heard_at: AtomicU64::new(now), way: Mutex::default() }
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// The latest run of it that was met.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Acquire))
    }

    /// Meets a run; false when a later one is known.
    pub fn met(&self, incarnation: Incarnation) -> bool {
        self.incarnation.fetch_max(incarnation.0, Ordering::AcqRel) <= incarnation.0
    }

    /// Notes that it spoke.
    pub fn heard(&self, leases: &Leases) {
        self.heard_at.fetch_max(leases.holder_now().0, Ordering::AcqRel);
    }

    /// For how long it has been silent.
    #[must_use]
    pub fn silent_ms(&self, leases: &Leases) -> u64 {
        leases.holder_now().0.saturating_sub(self.heard_at.load(Ordering::Acquire))
    }

    /// Opens the way; an older connection is closed.
    #[must_use]
    pub fn open(&self) -> Opened {
        let mut way = self.way();
        let (to, orders) = mpsc::unbounded_channel();
        let (number, waiting) = (way.number + 1, Arc::default());
        *way = Way { number, to: Some(to), waiting: Arc::clone(&waiting) };
        Opened { number, orders, waiting }
    }

    /// Closes the way, unless a newer connection is open.
    pub fn close(&self, number: u64) {
        let mut way = self.way();
        if way.number == number {
            way.to = None;
        }
    }

    /// Whether a connection is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.way().to.is_some()
    }

    /// Queues something; gives it back when there is no way. A connection that cannot keep up
    /// with small messages is given up.
    fn send(&self, outgoing: Outgoing) -> Result<(), Outgoing> {
        let mut way = self.way();
        if way.waiting.fetch_add(1, Ordering::Relaxed) >= limits::MESSAGES_WAITING_MAX {
            way.to = None;
        }
        let Some(to) = &way.to else { return Err(outgoing) };
        to.send(outgoing).map_err(|error| error.0)
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().expect("no holder of this lock panics")
    }
}

/// All of them.
#[derive(Default)]
pub struct Peers {
    identity: OnceLock<Identity>,
    wanted: ArcSwap<BTreeMap<ServerId, Arc<Peer>>>,
    /// Every server that was ever wanted: one that is wanted again is the same, so that
    /// connections and tasks that did not notice go on serving it.
    known: Mutex<BTreeMap<ServerId, Arc<Peer>>>,
    silent_leaders: Mutex<Vec<ServerRun>>,
    /// Told when the list of silent leaders changes.
    pub silence_changed: Notify,
    /// Told when the servers that are wanted change.
    pub wanted_changed: Notify,
}

impl Peers {
    /// Who this process is, once the masters have said.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// Sets who this process is; only the first registration does.
    pub fn set_identity(&self, identity: Identity) {
        let _ = self.identity.set(identity);
    }

    /// The servers that share tablets with this one.
    #[must_use]
    pub fn wanted(&self) -> Arc<BTreeMap<ServerId, Arc<Peer>>> {
        self.wanted.load_full()
    }

    /// Sets the servers that share tablets with this one.
    pub fn want(&self, servers: &BTreeSet<ServerId>, leases: &Leases) {
        let wanted = self.wanted.load();
        if wanted.len() == servers.len() && wanted.keys().all(|server| servers.contains(server)) {
            return;
        }
        let now = leases.holder_now().0;
        let mut known = self.known.lock().expect("no holder of this lock panics");
        let mut peer = |server: &ServerId| {
            let peer = known.entry(*server).or_insert_with(|| Arc::new(Peer::new(*server, now)));
            if !wanted.contains_key(server) {
                peer.heard(leases);
            }
            Arc::clone(peer)
        };
        self.wanted.store(Arc::new(servers.iter().map(|server| (*server, peer(server))).collect()));
        self.wanted_changed.notify_waiters();
    }

    /// Queues something for a server; false when there is no way to it.
    pub fn send(&self, server: ServerId, outgoing: Outgoing) -> bool {
        self.wanted.load().get(&server).is_some_and(|peer| peer.send(outgoing).is_ok())
    }

    /// Checks that another server belongs to the cluster and means this one.
    ///
    /// # Errors
    /// `WRONG_CLUSTER`, `STALE_ROUTE`, `UNAVAILABLE` before this server has registered.
    pub fn check_address(&self, greeting: &v1::Greeting) -> Result<ServerRun, ApiError> {
        let hint = "this server has not registered yet: try again";
        let own = self.identity().ok_or_else(|| ApiError::new(Reason::Unavailable, hint))?;
        if greeting.cluster_id != own.cluster_id {
            let hint = format!(
                "server {} belongs to cluster {}, this one to {}: check the addresses that both advertise",
                greeting.server_id, greeting.cluster_id, own.cluster_id
            );
            return Err(ApiError::new(Reason::WrongCluster, hint));
        }
        if greeting.to_server_id != own.run.server.0 {
            let hint = format!(
                "the greeting is for server {}, this is server {}: its address is out of date",
                greeting.to_server_id, own.run.server.0
            );
            return Err(ApiError::new(Reason::StaleRoute, hint));
        }
        Ok(ServerRun { server: ServerId(greeting.server_id), incarnation: Incarnation(greeting.incarnation) })
    }

    /// Checks who opens a stream about tablets to this server.
    ///
    /// # Errors
    /// As [`Self::check_address`]; `SUPERSEDED` for an old process, `UNAVAILABLE` while one of both
    /// does not know yet that they share tablets.
    pub fn check_greeting(&self, greeting: &v1::Greeting) -> Result<ServerRun, ApiError> {
        let run = self.check_address(greeting)?;
        let hint = "no tablet is shared between these servers as far as this one knows: try again";
        let wanted = self.wanted.load();
        let peer = wanted.get(&run.server).ok_or_else(|| ApiError::new(Reason::Unavailable, hint))?;
        if !peer.met(run.incarnation) {
            let hint = format!("a later run of server {} is known", run.server.0);
            return Err(ApiError::new(Reason::Superseded, hint));
        }
        Ok(run)
    }

    /// Publishes which leaders are silent; the masters are told when the list changes.
    pub fn tell_silent_leaders(&self, silent: Vec<ServerRun>) {
        let mut known = self.silent();
        if *known != silent {
            *known = silent;
            self.silence_changed.notify_one();
        }
    }

    /// Runs that lead tablets of which copies are here and from which nothing is heard.
    #[must_use]
    pub fn silent_leaders(&self) -> Vec<ServerRun> {
        self.silent().clone()
    }

    fn silent(&self) -> MutexGuard<'_, Vec<ServerRun>> {
        self.silent_leaders.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elapsed::Elapsed;

    fn peers() -> (Peers, Leases) {
        let peers = Peers::default();
        let run = ServerRun { server: ServerId(2), incarnation: Incarnation(5) };
        peers.set_identity(Identity { cluster_id: "c".into(), run, generation: DiskGeneration(1) });
        let leases = Leases::new(Elapsed::start(), 0);
        peers.want(&BTreeSet::from([ServerId(1), ServerId(3)]), &leases);
        (peers, leases)
    }

    fn greeting(cluster: &str, server: u64, incarnation: u64, to: u64) -> v1::Greeting {
        v1::Greeting { cluster_id: cluster.into(), server_id: server, incarnation, to_server_id: to }
    }

    #[test]
    fn strangers_and_old_runs_are_turned_away() {
        let (peers, _) = peers();
        let reason = |greeting| peers.check_greeting(&greeting).map_err(|error| error.reason);
        assert_eq!(reason(greeting("x", 1, 4, 2)), Err(Reason::WrongCluster));
        assert_eq!(reason(greeting("c", 1, 4, 9)), Err(Reason::StaleRoute));
        assert_eq!(reason(greeting("c", 7, 4, 2)), Err(Reason::Unavailable));
        assert!(reason(greeting("c", 1, 4, 2)).is_ok());
        assert!(reason(greeting("c", 1, 4, 2)).is_ok());
        assert_eq!(reason(greeting("c", 1, 3, 2)), Err(Reason::Superseded));
    }

    #[test]
    fn a_server_that_is_wanted_again_is_the_same() {
        let (peers, leases) = peers();
        let before = Arc::clone(&peers.wanted()[&ServerId(1)]);
        let mut opened = before.open();
        peers.want(&BTreeSet::from([ServerId(3)]), &leases);
        assert!(!peers.send(ServerId(1), Outgoing::Message(v1::ReplicaMessage::default())));
        peers.want(&BTreeSet::from([ServerId(1)]), &leases);
        assert!(peers.send(ServerId(1), Outgoing::Message(v1::ReplicaMessage::default())));
        assert!(opened.orders.try_recv().is_ok(), "the connection that stayed open serves it");
    }

    #[test]
    fn a_new_connection_takes_the_place_of_the_old_one() {
        let (peers, _) = peers();
        let message = || Outgoing::Message(v1::ReplicaMessage::default());
        assert!(!peers.send(ServerId(1), message()));
        let peer = Arc::clone(&peers.wanted()[&ServerId(1)]);
        let mut first = peer.open();
        assert!(peers.send(ServerId(1), message()));
        let mut second = peer.open();
        peer.close(first.number);
        assert!(peers.send(ServerId(1), message()));
        assert!(first.orders.try_recv().is_ok() && first.orders.try_recv().is_err());
        assert!(second.orders.try_recv().is_ok());
        peer.close(second.number);
        assert!(!peers.send(ServerId(1), message()) && !peer.is_open());
    }
}
