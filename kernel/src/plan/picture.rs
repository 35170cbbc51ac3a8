//! What a plan is made from: who is up, what each tablet weighs, what is under way.

use crate::ids::{ServerId, TabletId};
use crate::meta::{Duty, JobKind, State, Tablet};
use std::collections::BTreeMap;

/// How a server that is up stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Whether its disk has room for more copies.
    pub takes_copies: bool,
}

/// What the leader of a tablet reports of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Size {
    /// Bytes of its rows.
    pub bytes: u64,
    /// Requests per second, of late.
    pub requests: u64,
}

/// What is known besides the metadata.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// Servers that are connected and not stopping.
    pub up: BTreeMap<ServerId, Room>,
    /// Sizes of tablets, as far as they are known.
    pub sizes: BTreeMap<TabletId, Size>,
}

/// A server that may lead and hold copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerView {
    /// Its failure zone.
    pub zone: String,
    /// Whether its disk has room for more copies.
    pub takes_copies: bool,
}

/// What is under way with a tablet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Others are to take its place.
    Split,
    /// One tablet is to take its place and that of a neighbour.
    Merge,
    /// A copy takes another's place.
    Move {
        /// Where the copy that goes lies; none when one was lacking.
        from: Option<ServerId>,
        /// Where the new one goes.
        to: ServerId,
    },
}

/// A tablet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TabletView {
    /// Size at which its table wants it split.
    pub split_bytes: u64,
    /// Copies that its table wants.
    pub wanted: usize,
    /// Bytes of its rows.
    pub bytes: u64,
    /// Requests per second.
    pub requests: u64,
    /// The server that leads it.
    pub leader: Option<ServerId>,
    /// Servers of its copies.
    pub copies: Vec<ServerId>,
    /// Those of them that are in sync and not lost.
    pub in_sync: Vec<ServerId>,
    /// What is under way with it.
    pub work: Option<Work>,
}

impl TabletView {
    /// Whether it is led, has all of its copies, and nothing is under way with it.
    pub(super) fn is_at_rest(&self) -> bool {
        let is_whole = self.copies.len() == self.wanted && self.in_sync.len() == self.wanted;
        is_whole && self.leader.is_some() && self.work.is_none()
    }
}

/// Everything that a plan is made from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Picture {
    /// Servers that are up and not to be emptied.
    pub servers: BTreeMap<ServerId, ServerView>,
    /// All tablets.
    pub tablets: BTreeMap<TabletId, TabletView>,
}

impl Picture {
    /// The picture that metadata and observation give. One pass over all tablets.
    #[must_use]
    pub fn of(state: &State, observed: &Observed) -> Self {
        let serves = state.servers().filter(|server| server.duty == Duty::Serves);
        let servers = serves.filter_map(|server| {
            let room = observed.up.get(&server.id)?;
            let view = ServerView { zone: server.zone.clone(), takes_copies: room.takes_copies };
            Some((server.id, view))
        });
        let tablets = state.tablets().filter_map(|tablet| {
            let size = observed.sizes.get(&tablet.id).copied().unwrap_or_default();
            Some((tablet.id, view(state, tablet, size)?))
        });
        Self { servers: servers.collect(), tablets: tablets.collect() }
    }
}

fn view(state: &State, tablet: &Tablet, size: Size) -> Option<TabletView> {
    let spec = &state.table(tablet.table)?.spec;
    let leader = tablet.leader.filter(|leader| state.is_current(leader));
    let is_good = tablet.in_sync_replicas().filter(|copy| state.holds_data(copy));
    Some(TabletView {
        split_bytes: spec.split_bytes,
        wanted: usize::from(spec.replicas),
        bytes: size.bytes,
        requests: size.requests,
        leader: leader.map(|leader| leader.server),
        copies: tablet.replicas.iter().map(|copy| copy.server).collect(),
        in_sync: is_good.map(|copy| copy.server).collect(),
        work: work(state, tablet),
    })
}

fn work(state: &State, tablet: &Tablet) -> Option<Work> {
    let moving = tablet.moving.and_then(|moving| {
        let to = tablet.replica(moving.to)?.server;
        let from = moving.from.and_then(|from| tablet.replica(from)).map(|copy| copy.server);
        Some(Work::Move { from, to })
    });
    let job = state.job_of(tablet.id).map(|job| match &job.kind {
        JobKind::Split(_) => Work::Split,
        JobKind::Merge(_) => Work::Merge,
        JobKind::Move(copy) => Work::Move { from: copy.from_server, to: copy.to_server },
    });
    moving.or(job)
}
