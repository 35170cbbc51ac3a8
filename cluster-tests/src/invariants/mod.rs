//! What must always hold, one property per file, with the ids of `docs/invariants.md`.
//!
//! The simulator shows every invariant what happens ([`Observation`]) and at the end what
//! came of it ([`End`]). An invariant judges; it changes nothing and asks nobody.

mod acked_durable;
mod acked_survives;
mod acks_name_entries;
mod backups;
mod epoch_has_acks;
mod fence_is_final;
mod followers_wait;
mod in_sync_set;
mod known_copies;
mod lease;
mod linearizable;
mod log_matching;
mod lost_is_kept;
mod monotone;
mod one_leader;
mod q_is_durable;
mod quota_has_acks;
mod range_map;
mod reverts;
mod rows_are_log;
mod search;
mod semantics;
mod sessions;
mod snapshots;
mod tokens_once;
mod truth_is_told;
mod ts_rises;
mod watches;

#[cfg(test)]
mod bad_histories;
#[cfg(test)]
mod bad_steps;

use crate::oracle::{Fate, History, Members, Operation, Oracle, Past, Shown, Trust, Truth};
use crate::sim::disk::Rows;
use bytes::Bytes;
use ebla_kernel::entry::{Entry, LogEnd};
use ebla_kernel::ids::{Epoch, Generation, Incarnation, Pos, ReplicaId, Seq, ServerId, TabletId};
use ebla_kernel::meta::{State, Tablet};
use ebla_kernel::op::{Change, Committed, Token};
use ebla_kernel::tablet::FenceAnswer;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

/// Something that happened.
#[derive(Debug)]
pub enum Observation<'a> {
    /// A leader appended an entry of its own; it is not durable yet.
    Appended {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// The entry.
        entry: &'a Entry,
    },
    /// An entry is durable on a copy.
    Durable {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// The epoch whose leader sent it, or appended it.
        by: Epoch,
        /// The entry.
        entry: &'a Rc<Entry>,
    },
    /// The end of a copy's log is cut off for good.
    Cut {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// What stays.
        keep: LogEnd,
        /// Positions of dropped writes that the server's loss ledger names.
        kept: &'a [Pos],
    },
    /// A disk is lost.
    Wiped {
        /// Where.
        server: usize,
    },
    /// Rows of an entry go into the store of a copy, or are taken back by it.
    Applied {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// The entry.
        entry: &'a Entry,
    },
    /// A core answered a fence.
    FenceAnswered {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// What it said.
        answer: FenceAnswer,
    },
    /// A follower tells a leader what it has.
    AckSent {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// The leader's epoch.
        epoch: Epoch,
        /// What it has.
        pos: Pos,
    },
    /// A leader tells a client that its write stands.
    Acked {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// The leader's epoch.
        epoch: Epoch,
        /// What it says.
        committed: &'a Committed,
    },
    /// A leader tells a client that its write is gone.
    SaidReverted {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// The leader's epoch.
        epoch: Epoch,
        /// The write.
        token: Token,
    },
    /// A leader has, or would now have, answered under its lease.
    LeaseHeld {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// The leader's epoch.
        epoch: Epoch,
    },
    /// A copy came to life on a server.
    Opened {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// The copy.
        replica: ReplicaId,
        /// What its data lives and dies with.
        generation: Generation,
        /// Its promise.
        promised: Epoch,
    },
    /// A core took a step.
    Stepped(CoreView),
    /// A copy came, went or was divided, otherwise than by its log.
    Reshaped(Reshaped<'a>),
    /// Everything that is served now: by which server, which tablet, in which epoch.
    Leases(&'a [(usize, TabletId, Epoch)]),
    /// The metadata changed.
    Metadata(&'a State),
}

/// How copies come and go; each is said when it is durable.
#[derive(Clone, Copy, Debug)]
pub enum Reshaped<'a> {
    /// A copy is to be built: whatever is there of it counts for nothing.
    Begins {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// The copy.
        replica: ReplicaId,
    },
    /// A copy has everything of another's rows and log.
    Built {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
        /// Up to where.
        end: LogEnd,
    },
    /// Others have taken the place of tablets.
    Switched {
        /// The tablets and the ends of their logs, in key order.
        parents: &'a [(TabletId, LogEnd)],
        /// Where.
        server: usize,
        /// The others.
        children: &'a [TabletId],
    },
    /// A copy is gone for good.
    Removed {
        /// The tablet.
        tablet: TabletId,
        /// Where.
        server: usize,
    },
}

/// What a tablet's core says of itself, and what truly is on its disk.
#[derive(Clone, Copy, Debug)]
pub struct CoreView {
    /// The tablet.
    pub tablet: TabletId,
    /// Where.
    pub server: usize,
    /// The process.
    pub incarnation: Incarnation,
    /// The epoch below which it refuses everything.
    pub promised: Epoch,
    /// Durable end of the log, as it believes.
    pub durable: Pos,
    /// Everything up to here is in the rows.
    pub applied: Seq,
    /// Its Q, as a leader.
    pub q: Option<Pos>,
    /// The epoch that it serves.
    pub serving: Option<Epoch>,
    /// Durable end of the log on the disk.
    pub on_disk: Pos,
}

/// What came of a simulation after everything was healed and had come to rest.
#[derive(Debug)]
pub struct End<'a> {
    /// What truly happened.
    pub oracle: &'a Oracle,
    /// What clients were told.
    pub history: &'a History,
    /// The rows of each server.
    pub stores: Vec<&'a Rows>,
    /// What survived of each tablet, for each part of its keys that has a past of its own.
    pub truths: Vec<Truth<'a>>,
}

impl End<'_> {
    /// The tablet that an operation's row is in now.
    fn home(&self, operation: &Operation) -> Option<&Truth<'_>> {
        self.truths.iter().find(|truth| truth.fate.range.contains(operation.asked.key()))
    }
}

/// An invariant that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which, with its id.
    pub invariant: String,
    /// How.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.detail)
    }
}

/// A property of the whole system.
pub trait Invariant: fmt::Debug {
    /// Its id and name.
    fn name(&self) -> &'static str;

    /// Looks at something that happened; the oracle knows everything before it.
    ///
    /// # Errors
    /// How the property is broken.
    fn observe(&mut self, _: &Oracle, _: &Observation<'_>) -> Result<(), String> {
        Ok(())
    }

    /// Looks at the end.
    ///
    /// # Errors
    /// How the property is broken.
    fn finish(&self, _: &End<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// All invariants, and what truly happened so far.
#[derive(Debug)]
pub struct Watch {
    invariants: Vec<Box<dyn Invariant>>,
    /// What truly happened.
    pub oracle: Oracle,
    /// The first invariant that was broken.
    pub failure: Option<Violation>,
}

impl Watch {
    /// A watch that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        let invariants: Vec<Box<dyn Invariant>> = vec![
            Box::new(one_leader::OneLeader::default()),
            Box::new(lease::OneLease::default()),
            Box::new(log_matching::LogMatching::default()),
            Box::new(monotone::Monotone::default()),
            Box::new(ts_rises::TsRises),
            Box::new(fence_is_final::FenceIsFinal::default()),
            Box::new(q_is_durable::QIsDurable::default()),
            Box::new(acked_durable::AckedDurable::default()),
            Box::new(epoch_has_acks::EpochHasAcks::default()),
            Box::new(quota_has_acks::QuotaHasAcks::default()),
            Box::new(acks_name_entries::AcksNameEntries),
            Box::new(followers_wait::FollowersWait::default()),
            Box::new(reverts::Reverts::default()),
            Box::new(tokens_once::TokensOnce::default()),
            Box::new(range_map::RangeMap),
            Box::new(in_sync_set::InSyncSet::default()),
            Box::new(known_copies::KnownCopies::default()),
            Box::new(lost_is_kept::LostIsKept),
            Box::new(rows_are_log::RowsAreLog),
            Box::new(acked_survives::AckedSurvives),
            Box::new(truth_is_told::TruthIsTold),
            Box::new(semantics::Semantics),
            Box::new(snapshots::Snapshots),
            Box::new(sessions::Sessions),
            Box::new(watches::Watches),
            Box::new(backups::Backups),
            Box::new(linearizable::Linearizable),
            Box::new(search::Search),
        ];
        Self { invariants, oracle: Oracle::default(), failure: None }
    }

    /// Shows something to every invariant.
    pub fn observe(&mut self, observation: &Observation<'_>) {
        // What tablets are made of is known before what is made of them is judged.
        if let Observation::Metadata(state) = observation {
            state.tablets().for_each(|tablet| self.oracle.shown(shown(state, tablet)));
        }
        for invariant in &mut self.invariants {
            if let Err(detail) = invariant.observe(&self.oracle, observation) {
                let invariant = invariant.name().to_string();
                self.failure.get_or_insert(Violation { invariant, detail });
            }
        }
        let oracle = &mut self.oracle;
        match observation {
            Observation::Appended { tablet, entry, .. } => oracle.appended(*tablet, entry),
            Observation::Durable { tablet, server, entry, .. } => oracle.durable(*tablet, *server, entry),
            Observation::Cut { tablet, server, keep, .. } => oracle.cut(*tablet, *server, keep.pos.seq),
            Observation::Wiped { server } => oracle.wiped(*server),
            Observation::Reshaped(reshaped) => match reshaped {
                Reshaped::Begins { tablet, server, .. } | Reshaped::Removed { tablet, server } => {
                    oracle.removed(*tablet, *server);
                }
                Reshaped::Built { tablet, server, end } => oracle.built(*tablet, *server, end.pos),
                Reshaped::Switched { parents, server, children } => {
                    oracle.switched(*server, parents, children);
                }
            },
            Observation::Metadata(_)
            | Observation::Leases(_)
            | Observation::Applied { .. }
            | Observation::FenceAnswered { .. }
            | Observation::AckSent { .. }
            | Observation::Acked { .. }
            | Observation::SaidReverted { .. }
            | Observation::LeaseHeld { .. }
            | Observation::Opened { .. }
            | Observation::Stepped(_) => {}
        }
    }

    /// Whether a tablet was given more than it bears, so that copies may rightly disagree.
    #[must_use]
    pub fn is_excused(&self, tablet: TabletId) -> bool {
        self.oracle.trust(tablet) < Trust::Copies
    }

    /// Notes a broken rule that has no file of its own.
    pub fn fail(&mut self, invariant: &str, detail: &str) {
        let violation = Violation { invariant: invariant.into(), detail: detail.into() };
        self.failure.get_or_insert(violation);
    }

    /// Shows the end to every invariant.
    #[must_use]
    pub fn finish(
        &self,
        history: &History,
        stores: Vec<&Rows>,
        fates: &BTreeMap<TabletId, Fate>,
    ) -> Option<Violation> {
        let pasts = told(&self.oracle, fates);
        let truths = pasts.iter().map(|(fate, past)| Truth::new(fate, past)).collect();
        let history = Oracle::still_owed(history);
        let end = End { oracle: &self.oracle, history: &history, stores, truths };
        self.invariants.iter().find_map(|invariant| {
            let detail = invariant.finish(&end).err()?;
            Some(Violation { invariant: invariant.name().to_string(), detail })
        })
    }
}

/// How every part of every tablet came out of it, and what happened to it.
pub(crate) fn told<'a>(oracle: &'a Oracle, fates: &BTreeMap<TabletId, Fate>) -> Vec<(Fate, Past<'a>)> {
    let part = |fate: &Fate, past: Past<'a>| (Fate { range: past.range.clone(), ..fate.clone() }, past);
    let parts = |fate| oracle.pasts(fate).into_iter();
    fates.values().flat_map(|fate| parts(fate.tablet).map(|past| part(fate, past))).collect()
}

/// The simulated server of this id; its address says which.
fn server_index(state: &State, id: ServerId) -> Option<usize> {
    state.server(id)?.address.strip_prefix("server-")?.parse().ok()
}

/// A tablet as the oracle wants to know it.
fn shown(state: &State, tablet: &Tablet) -> Shown {
    let place = |id: &ReplicaId| Some((*id, server_index(state, tablet.replica(*id)?.server)?));
    let all = tablet.replicas.iter().filter_map(|replica| place(&replica.id)).collect();
    let copies = tablet.in_sync.iter().filter_map(place).collect();
    let d = state.table(tablet.table).map_or(1, |table| usize::from(table.spec.min_in_sync));
    Shown {
        id: tablet.id,
        range: tablet.range.clone(),
        members: Members { all, copies, spare: d.saturating_sub(1) },
        is_degraded: tablet.degraded,
        parents: tablet.parents.iter().map(|parent| (parent.tablet, parent.seal)).collect(),
        history: tablet.ancestry(),
        losses: tablet.emptied.map_or(0, |emptied| emptied.times),
    }
}

/// The servers of a tablet's in-sync copies.
fn servers_in_sync(state: &State, tablet: &Tablet) -> Vec<usize> {
    tablet.in_sync_replicas().filter_map(|replica| server_index(state, replica.server)).collect()
}

/// The row that a change puts; none for a range.
fn key_of(change: &Change) -> Option<&Bytes> {
    match change {
        Change::Put { key, .. } => Some(key),
        Change::RangeTombstone { .. } => None,
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}
