//! Which tablets have grown too large, or have too many requests.
//!
//! The parts are smaller than what is wanted at most and, of a tablet that grows, larger than
//! half of it, so that the parts need no split at once. It is the same with requests.

use super::picture::{Picture, TabletView, Work};
use super::reason::{Action, Decision, Measure, Reason};
use crate::ids::{ServerId, TabletId};
use crate::limits::{AUTOMATIC_SPLITS_MAX, LOAD_SPLIT_PARTS_MAX, SPLIT_CHILDREN_MAX, SPLITS_PER_SERVER_MAX};
use std::collections::BTreeMap;

/// The splits to begin now, as many as are under way at most: those above their limit by the
/// greatest factor first. `is_busy` says which tablets have had too many requests for long
/// enough, `is_refused` which could not be split lately.
pub(super) fn plan(
    picture: &Picture,
    is_busy: impl Fn(TabletId) -> bool,
    is_refused: impl Fn(TabletId) -> bool,
) -> Vec<Decision> {
    let mut room = Room::left(picture);
    let wanted = picture.tablets.iter().filter_map(|(id, tablet)| {
        let by = measure(tablet, is_busy(*id))?;
        // Nobody splits what a server leads that is stopping or to be emptied.
        let leader = tablet.leader.filter(|leader| picture.servers.contains_key(leader))?;
        (tablet.work.is_none() && !is_refused(*id)).then_some((*id, tablet, by, leader))
    });
    let mut wanted: Vec<_> = wanted.collect();
    wanted.sort_by_key(|(id, tablet, by, _)| (u64::MAX - excess(tablet, *by), *id));
    let mut decisions = Vec::new();
    for (tablet, view, by, leader) in wanted {
        if room.take(leader) {
            let action = Action::Split { parts: parts(view, by), by };
            decisions.push(Decision { tablet, action, reason: reason(view, by) });
        }
    }
    decisions
}

/// How many splits more may be under way.
struct Room {
    under_way: usize,
    per_server: BTreeMap<ServerId, usize>,
}

impl Room {
    fn left(picture: &Picture) -> Self {
        let mut room = Self { under_way: 0, per_server: BTreeMap::new() };
        for tablet in picture.tablets.values().filter(|tablet| tablet.work == Some(Work::Split)) {
            room.under_way += 1;
            tablet.leader.into_iter().for_each(|leader| *room.per_server.entry(leader).or_default() += 1);
        }
        room
    }

    fn take(&mut self, leader: ServerId) -> bool {
        let on_server = self.per_server.entry(leader).or_default();
        let is_room = self.under_way < AUTOMATIC_SPLITS_MAX && *on_server < SPLITS_PER_SERVER_MAX;
        if is_room {
            (self.under_way, *on_server) = (self.under_way + 1, *on_server + 1);
        }
        is_room
    }
}

/// By what it is to be split, if at all. Bytes first: they do not pass.
fn measure(tablet: &TabletView, is_busy: bool) -> Option<Measure> {
    let busy = is_busy.then_some(Measure::Load);
    is_too_large(tablet).then_some(Measure::Bytes).or(busy)
}

/// Whether its table wants it split for its bytes.
pub(super) fn is_too_large(tablet: &TabletView) -> bool {
    tablet.bytes > tablet.split_bytes && tablet.split_bytes > 0
}

/// How many times as much it has as is wanted at most.
fn excess(tablet: &TabletView, by: Measure) -> u64 {
    match by {
        Measure::Bytes => tablet.bytes / tablet.split_bytes.max(1),
        Measure::Load => tablet.recent / tablet.split_load.max(1),
    }
}

fn parts(tablet: &TabletView, by: Measure) -> u32 {
    let most = match by {
        Measure::Bytes => SPLIT_CHILDREN_MAX as u64,
        Measure::Load => LOAD_SPLIT_PARTS_MAX,
    };
    let parts = excess(tablet, by).saturating_add(1).clamp(2, most);
    u32::try_from(parts).expect("the clamp bounds it")
}

fn reason(tablet: &TabletView, by: Measure) -> Reason {
    match by {
        Measure::Bytes => Reason::TooLarge { bytes: tablet.bytes, limit: tablet.split_bytes },
        Measure::Load => Reason::TooBusy { requests: tablet.recent, limit: tablet.split_load },
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulated::Cluster;
    use super::*;

    #[test]
    fn only_what_is_too_large_is_split_and_into_parts_that_are_not() {
        let mut cluster = Cluster::new(&["a", "a", "a"]);
        cluster.split_bytes = 100;
        for (tablet, bytes) in (1..).zip([99, 100, 101, 350, 1_000_000]) {
            cluster.add(tablet, &[1], bytes);
        }
        let splits = plan(&cluster.picture(), |_| false, |_| false);
        let parts: Vec<_> = splits.iter().map(|split| (split.tablet.0, split.action)).collect();
        let into = |parts| Action::Split { parts, by: Measure::Bytes };
        assert_eq!(parts, [(5, into(64)), (4, into(4)), (3, into(2))]);
        assert!(plan(&cluster.picture(), |_| false, |tablet| tablet.0 > 2).is_empty());
    }

    #[test]
    fn what_is_busy_is_split_into_parts_that_are_not() {
        let mut cluster = Cluster::new(&["a"]);
        (cluster.split_bytes, cluster.split_load) = (1_000, 100);
        for (tablet, bytes) in (1..).zip([1, 5_000, 1, 1]) {
            cluster.add(tablet, &[1], bytes);
        }
        let mut picture = cluster.picture();
        for (tablet, recent) in picture.tablets.values_mut().zip([150, 990, 340, 9_999]) {
            tablet.recent = recent;
        }
        let splits = plan(&picture, |tablet| tablet.0 < 4, |_| false);
        let parts: Vec<_> = splits.iter().map(|split| (split.tablet.0, split.action)).collect();
        let into = |parts, by| Action::Split { parts, by };
        let wanted = [(2, into(6, Measure::Bytes)), (3, into(4, Measure::Load)), (1, into(2, Measure::Load))];
        assert_eq!(parts, wanted);
    }

    #[test]
    fn few_are_split_at_once() {
        let mut cluster = Cluster::new(&["a"; 9]);
        cluster.split_bytes = 100;
        for tablet in 1..=90 {
            cluster.add(tablet, &[1 + tablet % 9], 200);
        }
        let first = plan(&cluster.picture(), |_| false, |_| false);
        assert_eq!(first.len(), AUTOMATIC_SPLITS_MAX);
        let mut picture = cluster.picture();
        for tablet in picture.tablets.values_mut().filter(|tablet| tablet.leader == Some(ServerId(1))) {
            tablet.work = Some(Work::Split);
        }
        let more = plan(&picture, |_| false, |_| false);
        let on_first = more.iter().filter(|split| picture.tablets[&split.tablet].leader == Some(ServerId(1)));
        assert_eq!(on_first.count(), 0);
        assert_eq!(more.len(), AUTOMATIC_SPLITS_MAX - 10);
    }
}
