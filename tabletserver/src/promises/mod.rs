//! Promises between this server and others, out of which leases are made.
//!
//! The decisions are `kernel::lease`. Here are the clocks, the locks and the two ends of the
//! wire: [`asking`] asks every server that shares tablets, [`answering`] promises in return.
//! Both run on one thread with a runtime of its own, so that a busy server loses no lease: it
//! reads atomics and takes short locks. Readers and cores look at [`Leases`] without waiting
//! for anybody. Neither end knows tablets, but for the exceptions that travel with a promise.

pub mod answering;
pub mod asking;

use self::answering::Answering;
use self::asking::Asking;
use crate::error::Error;
use crate::front_door::{FrontDoor, PromiseConnections};

use crate::elapsed::Elapsed;
use crate::limits;
use arc_swap::ArcSwap;
use ebla_kernel::ids::{Epoch, ServerRun, TabletId, Tick};
use ebla_kernel::lease::{Holder, Promised, Promiser, Promises};
use ebla_proto::v1::promise_service_server::PromiseServiceServer;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// What the thread of promises does.
pub struct PromiseThread {
    /// Lets connections in, those of the main runtime too.
    pub door: FrontDoor,
    /// Connections of servers that ask.
    pub connections: PromiseConnections,
    /// The side of the leaders.
    pub asking: Asking,
    /// The side of the followers.
    pub answering: Answering,
}

impl PromiseThread {
    /// Runs until the server stops.
    ///
    /// # Errors
    /// When connections cannot be accepted or served any more.
    pub fn run(self) -> Result<(), Error> {
        let Self { door, connections, asking, answering } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("the system gives a runtime").block_on(async {
            let answering = tonic::transport::Server::builder()
                .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
                .add_service(PromiseServiceServer::new(answering))
                .serve_with_incoming(connections.into_stream());
            tokio::select! {
                () = asking.run() => Ok(()),
                served = answering => served.map_err(Error::from),
                accepted = door.run() => {
                    accepted.map_err(|error| Error::Fatal { what: format!("the listener ({error})") })
                }
            }
        })
    }
}

/// What was promised to this process, and what it promised.
pub struct Leases {
    clock: Elapsed,
    holder: Mutex<Holder>,
    promiser: Mutex<Promiser>,
    boot_until: Tick,
    /// Until when each run's promises count, for readers: they take no lock.
    counted: ArcSwap<HashMap<ServerRun, Arc<AtomicU64>>>,
    /// The longest lease is on disk (m21).
    is_length_stored: AtomicBool,
    /// When this server was last asked for a promise, by the promiser's clock.
    asked_at: AtomicU64,
}

impl Leases {
    /// A process whose server never promised for longer than `longest_lease_ms`.
    #[must_use]
    pub fn new(clock: Elapsed, longest_lease_ms: u64) -> Self {
        let promiser = Promiser::new(clock.promiser(), longest_lease_ms);
        Self {
            clock,
            holder: Mutex::default(),
            boot_until: promiser.boot_until(),
            promiser: Mutex::new(promiser),
            counted: ArcSwap::default(),
            is_length_stored: AtomicBool::new(longest_lease_ms >= ebla_kernel::limits::LEASE_MS),
            asked_at: AtomicU64::new(0),
        }
    }

    /// The clock by which promises to this process are counted.
    #[must_use]
    pub fn holder_now(&self) -> Tick {
        self.clock.holder()
    }

    /// Begins a question to `of`; gives its number.
    fn ask(&self, of: ServerRun) -> u64 {
        // The time is taken before the question leaves (m22).
        let now = self.clock.holder();
        self.holder().ask(now, of)
    }

    /// Counts a promise whose exceptions have been acted on.
    fn promised(&self, of: ServerRun, number: u64, lease_ms: u64) {
        let mut holder = self.holder();
        holder.promised(of, number, lease_ms);
        let until = holder.counted_until(of).0;
        drop(holder);
        if let Some(counted) = self.counted.load().get(&of) {
            counted.fetch_max(until, Ordering::AcqRel);
            return;
        }
        self.counted.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.insert(of, Arc::new(AtomicU64::new(until)));
            known
        });
    }

    /// Forgets what other runs than those that `keep` names have promised.
    fn retain(&self, keep: impl Fn(ServerRun) -> bool) {
        self.holder().retain(&keep);
        if self.counted.load().keys().any(|run| !keep(*run)) {
            self.counted.rcu(|known| {
                let kept = known.iter().filter(|(run, _)| keep(**run));
                kept.map(|(run, counted)| (*run, Arc::clone(counted))).collect::<HashMap<_, _>>()
            });
        }
        self.promiser().forget_ended(self.clock.promiser());
    }

    /// Promises to `to`; none when too much would have to be excepted.
    fn promise(&self, to: ServerRun, given_up: &[(TabletId, Epoch)]) -> Option<Promised> {
        let now = self.clock.promiser();
        self.asked_at.store(now.0.max(1), Ordering::Relaxed);
        self.promiser().promise(now, to, given_up)
    }

    /// From now on every promise to `to` lists the tablet (m20).
    pub fn except(&self, to: ServerRun, tablet: TabletId, epoch: Epoch) {
        self.promiser().except(to, tablet, epoch);
    }

    /// Whether some server relies on promises of this one.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        let asked_at = self.asked_at.load(Ordering::Relaxed);
        asked_at > 0 && self.clock.promiser().ms_since(Tick(asked_at)) < ebla_kernel::limits::LEASE_MS
    }

    fn holder(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().expect("no holder of this lock panics")
    }

    fn promiser(&self) -> MutexGuard<'_, Promiser> {
        self.promiser.lock().expect("no holder of this lock panics")
    }
}

impl Promises for Leases {
    fn counted_until(&self, run: ServerRun) -> Tick {
        self.counted.load().get(&run).map_or(Tick(0), |counted| Tick(counted.load(Ordering::Acquire)))
    }

    fn promiser_now(&self) -> Tick {
        self.clock.promiser()
    }

    fn given_until(&self, run: ServerRun) -> Tick {
        self.promiser().given_until(run)
    }

    fn boot_until(&self) -> Tick {
        self.boot_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_kernel::ids::{Incarnation, ServerId};
    use ebla_kernel::lease::{LeaseSet, LeaseTerms};
    use ebla_kernel::limits::LEASE_MS;

    fn run(server: u64) -> ServerRun {
        ServerRun { server: ServerId(server), incarnation: Incarnation(1) }
    }

    #[test]
    fn a_promise_is_seen_by_readers_and_ends_with_its_run() {
        let leases = Leases::new(Elapsed::start(), 0);
        let terms = LeaseTerms { sets: vec![LeaseSet { needed: 1, runs: vec![run(2)] }] };
        assert!(!terms.hold(leases.holder_now(), &leases));
        let number = leases.ask(run(2));
        leases.promised(run(2), number, LEASE_MS);
        assert!(terms.hold(leases.holder_now(), &leases));
        leases.retain(|run| run != self::run(2));
        assert!(!terms.hold(leases.holder_now(), &leases));
    }

    #[test]
    fn who_is_asked_is_bound_and_says_what_is_excepted() {
        let leases = Leases::new(Elapsed::start(), 0);
        assert!(!leases.is_asked());
        leases.except(run(2), TabletId(7), Epoch(3));
        let promised = leases.promise(run(2), &[]).unwrap();
        assert_eq!(promised.exceptions, [(TabletId(7), Epoch(3))]);
        assert!(leases.given_until(run(2)) > leases.promiser_now());
        assert!(leases.is_asked());
    }
}
