//! Which neighbours have been idle for so long that one tablet is enough.
//!
//! Each half must be far below what it is split at, so that what was merged is not split again
//! before it has grown several times; and for an hour, so that a load that comes and goes does
//! not split and merge in turns.

use super::picture::{Picture, Seam, TabletView, Work};
use super::reason::{Action, Decision, Reason};
use crate::ids::{TabletId, Tick};
use crate::limits::{AUTOMATIC_MERGES_MAX, IDLE_PERCENT, MERGE_CALM_TIMES, SPLIT_LOAD_DEFAULT};
use std::collections::BTreeSet;

/// Since when tablets have been idle without a break, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Calm {
    since: Vec<(TabletId, Tick)>,
}

impl Calm {
    /// Takes in who is idle now.
    pub fn note(&mut self, now: Tick, picture: &Picture) {
        let mut known = std::mem::take(&mut self.since).into_iter().peekable();
        for (id, _) in picture.tablets.iter().filter(|(_, tablet)| is_idle(tablet)) {
            // Both are in the order of ids.
            while known.next_if(|(other, _)| other < id).is_some() {}
            let before = known.next_if(|(other, _)| other == id).map(|(_, since)| since);
            self.since.push((*id, before.unwrap_or(now)));
        }
    }

    /// For how many milliseconds a tablet has been idle.
    pub fn lasting_ms(&self, now: Tick, tablet: TabletId) -> Option<u64> {
        let at = self.since.binary_search_by_key(&tablet, |(id, _)| *id).ok()?;
        Some(now.ms_since(self.since[at].1))
    }
}

/// How long both halves must have been idle.
pub(super) fn patience_ms(lasts_ms: u64) -> u64 {
    lasts_ms.saturating_mul(MERGE_CALM_TIMES)
}

/// Neighbours between which the boundary may go.
fn seams(picture: &Picture) -> impl Iterator<Item = (TabletId, TabletId)> {
    picture.tablets.iter().filter_map(|(id, tablet)| match tablet.seam {
        Seam::Loose(before) => Some((before, *id)),
        Seam::First | Seam::Drawn | Seam::Off => None,
    })
}

/// Bytes and requests per second up to which a tablet counts as idle.
pub(super) fn idle_limits(tablet: &TabletView) -> (u64, u64) {
    let load = if tablet.split_load == 0 { SPLIT_LOAD_DEFAULT } else { tablet.split_load };
    let share = |limit: u64| limit / 100 * IDLE_PERCENT + limit % 100 * IDLE_PERCENT / 100;
    (share(tablet.split_bytes), share(load))
}

/// Whether it is small, and neither of late nor on average anybody asks for much of it.
pub(super) fn is_idle(tablet: &TabletView) -> bool {
    let (bytes, load) = idle_limits(tablet);
    tablet.bytes <= bytes && tablet.recent <= load && tablet.requests <= load
}

/// The merges to begin now, in the order of ids, as many as are under way at most.
pub(super) fn plan(
    picture: &Picture,
    is_calm: impl Fn(TabletId) -> bool,
    is_refused: impl Fn(TabletId) -> bool,
) -> Vec<Decision> {
    // Each merge under way shows on two tablets.
    let under_way = picture.tablets.values().filter(|tablet| tablet.work == Some(Work::Merge)).count() / 2;
    let mut taken: BTreeSet<TabletId> = BTreeSet::new();
    let mut decisions = Vec::new();
    for (left, right) in seams(picture).filter(|(left, right)| is_calm(*right) && is_calm(*left)) {
        if under_way + decisions.len() >= AUTOMATIC_MERGES_MAX {
            break;
        }
        let view = |id: TabletId| {
            picture.tablets.get(&id).filter(|tablet| tablet.is_at_rest() && is_led_well(picture, tablet))
        };
        let (Some(first), Some(second)) = (view(left), view(right)) else { continue };
        if is_refused(left) || taken.contains(&left) || taken.contains(&right) {
            continue;
        }
        taken.extend([left, right]);
        let reason = Reason::Idle { bytes: first.bytes + second.bytes, limit: first.split_bytes };
        decisions.push(Decision { tablet: left, action: Action::Merge { right }, reason });
    }
    decisions
}

/// Nobody merges what a server leads that is stopping or to be emptied.
fn is_led_well(picture: &Picture, tablet: &TabletView) -> bool {
    tablet.leader.is_some_and(|leader| picture.servers.contains_key(&leader))
}

#[cfg(test)]
mod tests {
    use super::super::simulated::Cluster;
    use super::*;

    /// Tablets in key order on one server, each of so many bytes, with loose boundaries.
    fn row(bytes: &[u64]) -> Picture {
        let mut cluster = Cluster::new(&["a", "a"]);
        (cluster.split_bytes, cluster.split_load) = (1_000, 100);
        for (id, bytes) in (1..).zip(bytes) {
            cluster.add(id, &[1], *bytes);
        }
        let mut picture = cluster.picture();
        for (id, tablet) in picture.tablets.iter_mut().skip(1) {
            tablet.seam = Seam::Loose(TabletId(id.0 - 1));
        }
        picture
    }

    fn merged(picture: &Picture) -> Vec<(u64, u64)> {
        let idle = |id: TabletId| is_idle(&picture.tablets[&id]);
        let right = |decision: &Decision| match decision.action {
            Action::Merge { right } => right.0,
            other => panic!("{other}"),
        };
        plan(picture, idle, |_| false).iter().map(|one| (one.tablet.0, right(one))).collect()
    }

    #[test]
    fn neighbours_that_are_small_and_idle_are_merged_in_pairs() {
        assert_eq!(merged(&row(&[1, 1, 1, 1, 1])), [(1, 2), (3, 4)]);
        assert_eq!(merged(&row(&[1, 101, 100, 100])), [(3, 4)], "above a tenth of the split size");
        assert_eq!(merged(&row(&[0; 40])).len(), AUTOMATIC_MERGES_MAX);
        let mut busy = row(&[1, 1, 1]);
        busy.tablets.get_mut(&TabletId(1)).unwrap().recent = 11;
        assert_eq!(merged(&busy), [(2, 3)]);
        busy.tablets.get_mut(&TabletId(3)).unwrap().requests = 11;
        assert_eq!(merged(&busy), []);
    }

    #[test]
    fn boundaries_of_people_and_tablets_with_work_are_left_alone() {
        let mut picture = row(&[1, 1, 1, 1]);
        picture.tablets.get_mut(&TabletId(2)).unwrap().seam = Seam::Drawn;
        assert_eq!(merged(&picture), [(2, 3)]);
        picture.tablets.get_mut(&TabletId(3)).unwrap().work = Some(Work::Split);
        assert_eq!(merged(&picture), []);
        picture.tablets.get_mut(&TabletId(3)).unwrap().work = None;
        picture.tablets.get_mut(&TabletId(3)).unwrap().in_sync.clear();
        assert_eq!(merged(&picture), [], "a copy is missing");
    }

    #[test]
    fn a_table_without_a_split_load_still_tells_idle_from_busy() {
        let mut picture = row(&[1, 1]);
        for tablet in picture.tablets.values_mut() {
            (tablet.split_load, tablet.recent) = (0, 500);
        }
        assert_eq!(merged(&picture), [(1, 2)]);
        picture.tablets.get_mut(&TabletId(1)).unwrap().recent = 501;
        assert_eq!(merged(&picture), []);
    }
}
