//! What a plan is made from: who is up, what each tablet weighs, what is under way.

use crate::ids::{ServerId, TabletId};
use crate::meta::{AutoMerge, Duty, JobKind, Origin, State, TableSpec, Tablet};
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
    /// One is to take its place and its neighbour's.
    Merge,
    /// A copy takes another's place.
    Move {
        /// Where the copy that goes lies; none when one was lacking.
        from: Option<ServerId>,
        /// Where the new one goes.
        to: ServerId,
    },
}

/// What lies between a tablet and the one before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seam {
    /// Nothing: it is the first of its table.
    First,
    /// A boundary that people drew, and that stays.
    Drawn,
    /// A boundary of a table in which nothing is merged.
    Off,
    /// A boundary that may go: this tablet is before it.
    Loose(TabletId),
}

/// A tablet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TabletView {
    /// Size at which its table wants it split.
    pub split_bytes: u64,
    /// Requests per second at which its table wants it split; 0 for never.
    pub split_load: u64,
    /// What is between it and the tablet before it.
    pub seam: Seam,
    /// Copies that its table wants.
    pub wanted: usize,
    /// Bytes of its rows.
    pub bytes: u64,
    /// Requests per second, averaged over a quarter of an hour.
    pub requests: u64,
    /// Requests per second, averaged over seconds.
    pub recent: u64,
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
        let mut sizes = observed.sizes.iter().peekable();
        let tablets = state.tablets().filter_map(|tablet| {
            // Both are in the order of ids.
            while sizes.next_if(|(id, _)| **id < tablet.id).is_some() {}
            let size = sizes.next_if(|(id, _)| **id == tablet.id).map(|(_, size)| *size);
            Some((tablet.id, view(state, tablet, size.unwrap_or_default())?))
        });
        Self { servers: servers.collect(), tablets: tablets.collect() }
    }
}

fn view(state: &State, tablet: &Tablet, size: Size) -> Option<TabletView> {
    // What is being brought back from a backup stays as it is until it is whole.
    let spec = &state.table(tablet.table).filter(|table| table.restoring.is_none())?.spec;
    let leader = tablet.leader.filter(|leader| state.is_current(leader));
    let is_good = tablet.in_sync_replicas().filter(|copy| state.holds_data(copy));
    Some(TabletView {
        split_bytes: spec.split_bytes,
        split_load: spec.split_load,
        seam: seam(state, spec, tablet),
        wanted: usize::from(spec.replicas),
        bytes: size.bytes,
        requests: size.requests,
        recent: size.requests,
        leader: leader.map(|leader| leader.server),
        copies: tablet.replicas.iter().map(|copy| copy.server).collect(),
        in_sync: is_good.map(|copy| copy.server).collect(),
        work: work(state, tablet),
    })
}

fn seam(state: &State, spec: &TableSpec, tablet: &Tablet) -> Seam {
    if tablet.range.start().is_empty() {
        return Seam::First;
    }
    match (spec.auto_merge, tablet.drawn_by) {
        (AutoMerge::Off, _) => Seam::Off,
        (AutoMerge::Own, Origin::Operator) => Seam::Drawn,
        (AutoMerge::Own, Origin::Automatic) | (AutoMerge::All, _) => {
            state.tablet_before(tablet).map_or(Seam::First, |before| Seam::Loose(before.id))
        }
    }
}

fn work(state: &State, tablet: &Tablet) -> Option<Work> {
    let moving = tablet.moving.and_then(|moving| {
        let to = tablet.replica(moving.to)?.server;
        let from = moving.from.and_then(|from| tablet.replica(from)).map(|copy| copy.server);
        Some(Work::Move { from, to })
    });
    let job = state.job_of(tablet.id).and_then(|job| match &job.kind {
        JobKind::Split(_) => Some(Work::Split),
        JobKind::Merge(_) => Some(Work::Merge),
        JobKind::Move(copy) => Some(Work::Move { from: copy.from_server, to: copy.to_server }),
        JobKind::Backup(_) | JobKind::Restore(_) | JobKind::Transfer(_) => None,
    });
    moving.or(job)
}
