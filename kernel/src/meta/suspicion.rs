//! Silence: when the word of other copies is enough to start an election.
//!
//! A server reports the runs of servers from which it has heard nothing for a while. Such a
//! report from an in-sync copy is a poll in itself: the copy lives, reaches the master, and
//! will soon be free to answer a fence, as its promise was not renewed. When so many report
//! that an election would have its quota, one is started; fewer depose nobody. Nor does the
//! master's own silence with the leader. Only a degraded table goes on with fewer, when nobody else
//! is connected: its policy says that it may lose writes rather than wait.

use super::control::Control;
use super::election::tablet_quota;
use super::spec::Policy;
use super::state::{State, Tablet};
use crate::ids::{Incarnation, ServerId};
use std::collections::{BTreeMap, BTreeSet};

/// One run of a server.
pub(super) type Run = (ServerId, Incarnation);

/// Who has not heard of whom.
#[derive(Debug, Default)]
pub(super) struct Suspicions {
    /// By the server that reports; only runs that are current when they are reported.
    silent: BTreeMap<ServerId, BTreeSet<Run>>,
}

impl Suspicions {
    /// A session ended: what was said in it no longer counts.
    pub fn forget(&mut self, server: ServerId) {
        self.silent.remove(&server);
    }

    fn suspects(&self, server: ServerId, run: Run) -> bool {
        self.silent.get(&server).is_some_and(|silent| silent.contains(&run))
    }
}

impl Control {
    /// Replaces what `server` says of others.
    pub(super) fn on_silent(&mut self, state: &State, server: ServerId, leaders: BTreeSet<Run>) {
        if !self.sessions.contains_key(&server) {
            return;
        }
        let is_current = |(id, run): &Run| state.server(*id).is_some_and(|server| server.incarnation == *run);
        let silent: BTreeSet<Run> = leaders.into_iter().filter(is_current).collect();
        let known = self.suspicions.silent.get(&server);
        let news: BTreeSet<Run> =
            silent.iter().filter(|run| known.is_none_or(|known| !known.contains(run))).copied().collect();
        if !news.is_empty() {
            let led = |tablet: &&Tablet| {
                tablet.leader.is_some_and(|leader| news.contains(&(leader.server, leader.incarnation)))
            };
            self.dirty.extend(state.tablets_on(server).filter(led).map(|tablet| tablet.id));
        }
        if silent.is_empty() {
            self.suspicions.silent.remove(&server);
        } else {
            self.suspicions.silent.insert(server, silent);
        }
    }

    /// Whether so many in-sync copies on other servers have not heard of `run` that they could
    /// elect a leader without it.
    pub(super) fn is_suspected(&self, state: &State, tablet: &Tablet, run: Run) -> bool {
        let (server, _) = run;
        let suspecting = tablet.in_sync_replicas().filter(|replica| {
            replica.server != server
                && self.sessions.contains_key(&replica.server)
                && state.holds_data(replica)
                && self.suspicions.suspects(replica.server, run)
        });
        let suspecting = suspecting.count();
        suspecting >= tablet_quota(state, tablet)
            || (suspecting > 0 && self.is_left_alone(state, tablet, suspecting, server))
    }

    /// Whether a degraded table has nobody left to wait for: neither the leader nor any in-sync copy
    /// but those that suspect it is connected. The election still gives the others their time.
    fn is_left_alone(&self, state: &State, tablet: &Tablet, suspecting: usize, leader: ServerId) -> bool {
        let policy = state.table(tablet.table).map(|table| table.spec.policy);
        let connected = tablet
            .in_sync_replicas()
            .filter(|copy| state.holds_data(copy) && self.sessions.contains_key(&copy.server));
        policy == Some(Policy::Degraded)
            && !self.sessions.contains_key(&leader)
            && connected.count() == suspecting
    }
}
