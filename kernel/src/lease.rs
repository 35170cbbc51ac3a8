//! Promises between servers, out of which the leases of all tablets are made.
//!
//! The server of a leader asks; the server of a follower promises not to answer a fence that
//! would depose that run of the leader's server for a while. Two clocks measure that while,
//! and the rule is that the leader's view ends first (m22):
//!
//! ```text
//! leader    ask ────┬───────────────── counted ─────────────┤ L(1-drift) - guard from sending
//!                   ╲              ╱
//! follower           promise ─────┬──────── given ─────────────────┤ L(1+drift) + guard from receiving
//! ```
//!
//! One promise covers every tablet of the pair of servers, but for the exceptions: tablets of
//! which the follower knows a higher epoch. They are listed until the leader's server says
//! that it has given those epochs up, which it does before it counts the promise (m20).
//!
//! Neither side stores anything but the longest lease ever promised: a restarted server waits
//! that long before it answers a fence (m21).

use crate::ids::{Epoch, ServerRun, TabletId, Tick};
use crate::limits::{
    LEASE_ASKS_OPEN_MAX, LEASE_DRIFT_PER_MILLE, LEASE_EXCEPTIONS_MAX, LEASE_GUARD_MS, LEASE_MS,
};
use crate::mutated;
use std::collections::{BTreeMap, VecDeque};

/// What a tablet's core asks about promises, of the server that it runs on.
pub trait Promises {
    /// Until when a promise that `run` gave to this process counts; tick 0 for none.
    fn counted_until(&self, run: ServerRun) -> Tick;

    /// The promiser's clock, by which the two below are measured.
    fn promiser_now(&self) -> Tick;

    /// Until when this process is bound by what it promised to `run`.
    fn given_until(&self, run: ServerRun) -> Tick;

    /// Until when this process may be bound by what an earlier run promised (m21).
    fn boot_until(&self) -> Tick;
}

/// Nobody promised anything: enough where one copy is all there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPromises;

impl Promises for NoPromises {
    fn counted_until(&self, _: ServerRun) -> Tick {
        Tick(0)
    }

    fn promiser_now(&self) -> Tick {
        Tick(0)
    }

    fn given_until(&self, _: ServerRun) -> Tick {
        Tick(0)
    }

    fn boot_until(&self) -> Tick {
        Tick(0)
    }
}

/// The time that a leader counts on, out of a lease of `lease_ms`.
#[must_use]
pub fn counted_ms(lease_ms: u64) -> u64 {
    if mutated!(FollowerLapsesFirst) {
        return given_ms(lease_ms) + 5 * LEASE_GUARD_MS;
    }
    (lease_ms - lease_ms * LEASE_DRIFT_PER_MILLE / 1_000).saturating_sub(LEASE_GUARD_MS)
}

/// The time that a follower is bound for, by a lease of `lease_ms`.
#[must_use]
pub fn given_ms(lease_ms: u64) -> u64 {
    lease_ms + lease_ms * LEASE_DRIFT_PER_MILLE / 1_000 + LEASE_GUARD_MS
}

/// A promise on its way to the leader's server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promised {
    /// How long it holds, in milliseconds.
    pub lease_ms: u64,
    /// Tablets for which it does not hold, and the higher epochs that are known of them.
    pub exceptions: Vec<(TabletId, Epoch)>,
}

/// The side of the followers: what this process has promised, by the promiser's clock.
#[derive(Clone, Debug)]
pub struct Promiser {
    /// Until then an earlier run may be bound.
    boot_until: Tick,
    given: BTreeMap<ServerRun, Given>,
}

#[derive(Clone, Debug, Default)]
struct Given {
    until: Tick,
    exceptions: BTreeMap<TabletId, Epoch>,
}

impl Promiser {
    /// A process that began at `started` on a server whose runs never promised for longer
    /// than `longest_lease_ms`.
    #[must_use]
    pub fn new(started: Tick, longest_lease_ms: u64) -> Self {
        let wait_ms =
            if longest_lease_ms == 0 || mutated!(NoBootWait) { 0 } else { given_ms(longest_lease_ms) };
        Self { boot_until: started.plus_ms(wait_ms), given: BTreeMap::new() }
    }

    /// Promises to `to`, which has given up the epochs `given_up` of its own. None when the
    /// list of exceptions is too long to be told: then nothing is promised.
    pub fn promise(&mut self, now: Tick, to: ServerRun, given_up: &[(TabletId, Epoch)]) -> Option<Promised> {
        // What an earlier run of that server was promised ends with the run.
        self.given.retain(|run, _| run.server != to.server || run.incarnation >= to.incarnation);
        if self.given.keys().any(|run| run.server == to.server && run.incarnation > to.incarnation) {
            return None;
        }
        let given = self.given.entry(to).or_default();
        for (tablet, epoch) in given_up {
            if given.exceptions.get(tablet).is_some_and(|known| known <= epoch) {
                given.exceptions.remove(tablet);
            }
        }
        if given.exceptions.len() > LEASE_EXCEPTIONS_MAX {
            return None;
        }
        given.until = now.plus_ms(given_ms(LEASE_MS)).max(given.until);
        let exceptions = match mutated!(ExceptionsForgotten) {
            true => Vec::new(),
            false => given.exceptions.iter().map(|(tablet, epoch)| (*tablet, *epoch)).collect(),
        };
        Some(Promised { lease_ms: LEASE_MS, exceptions })
    }

    /// Lists a tablet in every promise to `to` from now on: a higher epoch of it is known.
    pub fn except(&mut self, to: ServerRun, tablet: TabletId, epoch: Epoch) {
        let known = self.given.entry(to).or_default().exceptions.entry(tablet).or_default();
        *known = epoch.max(*known);
    }

    /// Until when this process is bound to `run`; tick 0 for never.
    #[must_use]
    pub fn given_until(&self, run: ServerRun) -> Tick {
        self.given.get(&run).map_or(Tick(0), |given| given.until)
    }

    /// Until when an earlier run of this process may be bound.
    #[must_use]
    pub fn boot_until(&self) -> Tick {
        self.boot_until
    }

    /// Forgets promises that have ended and have nothing to list.
    pub fn forget_ended(&mut self, now: Tick) {
        self.given.retain(|_, given| given.until > now || !given.exceptions.is_empty());
    }
}

/// The side of the leaders: what was promised to this process, by the holder's clock.
#[derive(Clone, Debug, Default)]
pub struct Holder {
    held: BTreeMap<ServerRun, Held>,
    asked: u64,
}

#[derive(Clone, Debug, Default)]
struct Held {
    counted: Tick,
    /// Questions that were sent and not answered: number and time of sending.
    open: VecDeque<(u64, Tick)>,
}

impl Holder {
    /// Begins a question to `of`; gives its number.
    pub fn ask(&mut self, now: Tick, of: ServerRun) -> u64 {
        self.asked += 1;
        let open = &mut self.held.entry(of).or_default().open;
        if open.len() == LEASE_ASKS_OPEN_MAX {
            open.pop_front();
        }
        open.push_back((self.asked, now));
        self.asked
    }

    /// Counts a promise, from the time at which its question was sent. Every exception that
    /// came with it has been acted on before (m20).
    pub fn promised(&mut self, of: ServerRun, number: u64, lease_ms: u64) {
        let Some(held) = self.held.get_mut(&of) else { return };
        let Some(at) = held.open.iter().position(|(open, _)| *open == number) else { return };
        let (_, sent) = held.open[at];
        held.open.drain(..=at);
        held.counted = sent.plus_ms(counted_ms(lease_ms)).max(held.counted);
    }

    /// Until when the promises of `of` count; tick 0 for never.
    #[must_use]
    pub fn counted_until(&self, of: ServerRun) -> Tick {
        self.held.get(&of).map_or(Tick(0), |held| held.counted)
    }

    /// Forgets runs other than those that tablets are shared with.
    pub fn retain(&mut self, keep: impl Fn(ServerRun) -> bool) {
        self.held.retain(|run, _| keep(*run));
    }
}

/// Under which promises a leader holds its lease: in every set of copies that may be in force
/// enough of them must have promised, the leader included (m17).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeaseTerms {
    /// The sets; none when the epoch is over.
    pub sets: Vec<LeaseSet>,
}

/// One set of copies that may be in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseSet {
    /// Promises that are needed besides the leader's own.
    pub needed: usize,
    /// Processes of copies that count: attached in this epoch (m19).
    pub runs: Vec<ServerRun>,
}

impl LeaseTerms {
    /// Whether the lease is held at `now`. To be asked after the work, before the answer.
    #[must_use]
    pub fn hold(&self, now: Tick, promises: &dyn Promises) -> bool {
        let is_held = |set: &LeaseSet| {
            let live = set.runs.iter().filter(|run| promises.counted_until(**run) > now);
            live.count() >= set.needed
        };
        !self.sets.is_empty() && self.sets.iter().all(is_held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, ServerId};

    fn run(server: u64, incarnation: u64) -> ServerRun {
        ServerRun { server: ServerId(server), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn the_leader_stops_counting_before_the_follower_is_free() {
        let mut holder = Holder::default();
        let mut promiser = Promiser::new(Tick(0), 0);
        let number = holder.ask(Tick(10), run(2, 1));
        let promised = promiser.promise(Tick(15), run(1, 1), &[]).unwrap();
        holder.promised(run(2, 1), number, promised.lease_ms);
        let counted = holder.counted_until(run(2, 1));
        assert_eq!(counted, Tick(10 + 890));
        assert_eq!(promiser.given_until(run(1, 1)), Tick(15 + 1_110));
    }

    #[test]
    fn an_answer_counts_once_and_late_ones_shorten_nothing() {
        let mut holder = Holder::default();
        let first = holder.ask(Tick(0), run(2, 1));
        let second = holder.ask(Tick(200), run(2, 1));
        holder.promised(run(2, 1), second, LEASE_MS);
        let counted = holder.counted_until(run(2, 1));
        holder.promised(run(2, 1), first, LEASE_MS);
        holder.promised(run(2, 1), second, LEASE_MS);
        assert_eq!(holder.counted_until(run(2, 1)), counted);
        assert_eq!(holder.counted_until(run(2, 2)), Tick(0));
    }

    #[test]
    fn exceptions_are_listed_until_they_are_given_up() {
        let mut promiser = Promiser::new(Tick(0), 0);
        promiser.except(run(1, 1), TabletId(7), Epoch(3));
        let listed = |promiser: &mut Promiser, given_up: &[(TabletId, Epoch)]| {
            promiser.promise(Tick(0), run(1, 1), given_up).unwrap().exceptions
        };
        assert_eq!(listed(&mut promiser, &[]), [(TabletId(7), Epoch(3))]);
        assert_eq!(listed(&mut promiser, &[(TabletId(7), Epoch(2))]), [(TabletId(7), Epoch(3))]);
        assert_eq!(listed(&mut promiser, &[(TabletId(7), Epoch(3))]), []);
    }

    #[test]
    fn a_restarted_server_waits_and_old_runs_get_nothing() {
        let mut promiser = Promiser::new(Tick(100), LEASE_MS);
        assert_eq!(promiser.boot_until(), Tick(1_210));
        assert!(promiser.promise(Tick(0), run(1, 2), &[]).is_some());
        assert!(promiser.promise(Tick(0), run(1, 1), &[]).is_none());
    }

    #[test]
    fn a_lease_needs_enough_promises_in_every_set() {
        struct Only(ServerRun);
        impl Promises for Only {
            fn counted_until(&self, run: ServerRun) -> Tick {
                Tick(if run == self.0 { 100 } else { 0 })
            }
            fn promiser_now(&self) -> Tick {
                Tick(0)
            }
            fn given_until(&self, _: ServerRun) -> Tick {
                Tick(0)
            }
            fn boot_until(&self) -> Tick {
                Tick(0)
            }
        }
        let set = |runs: &[ServerRun]| LeaseSet { needed: 1, runs: runs.to_vec() };
        let both = LeaseTerms { sets: vec![set(&[run(2, 1), run(3, 1)]), set(&[run(2, 1)])] };
        assert!(both.hold(Tick(99), &Only(run(2, 1))));
        assert!(!both.hold(Tick(100), &Only(run(2, 1))));
        assert!(!both.hold(Tick(99), &Only(run(3, 1))));
        assert!(!LeaseTerms::default().hold(Tick(0), &Only(run(2, 1))));
    }
}
