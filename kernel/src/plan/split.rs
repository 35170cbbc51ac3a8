//! Which tablets have grown too large.
//!
//! The parts are smaller than what is wanted at most and, of a tablet that grows, larger than
//! half of it, so that the parts need no split at once.

use super::picture::{Picture, TabletView, Work};
use super::reason::{Action, Decision, Reason};
use crate::ids::{ServerId, TabletId};
use crate::limits::{AUTOMATIC_SPLITS_MAX, SPLIT_CHILDREN_MAX, SPLITS_PER_SERVER_MAX};
use std::collections::BTreeMap;

/// The splits to begin now, largest tablets first, as many as are under way at most.
pub(super) fn plan(picture: &Picture, is_refused: impl Fn(TabletId) -> bool) -> Vec<Decision> {
    let mut under_way = 0;
    let mut per_server: BTreeMap<ServerId, usize> = BTreeMap::new();
    for tablet in picture.tablets.values().filter(|tablet| tablet.work == Some(Work::Split)) {
        under_way += 1;
        if let Some(leader) = tablet.leader {
            *per_server.entry(leader).or_default() += 1;
        }
    }
    let too_large = |(id, tablet): &(&TabletId, &TabletView)| {
        is_too_large(tablet) && tablet.work.is_none() && !is_refused(**id)
    };
    let mut tablets: Vec<_> = picture.tablets.iter().filter(too_large).collect();
    tablets.sort_by_key(|(id, tablet)| (u64::MAX - tablet.bytes / tablet.split_bytes.max(1), **id));
    let mut decisions = Vec::new();
    for (id, tablet) in tablets {
        // Nobody splits what a server leads that is stopping or to be emptied.
        let Some(leader) = tablet.leader.filter(|leader| picture.servers.contains_key(leader)) else {
            continue;
        };
        let on_server = per_server.entry(leader).or_default();
        if under_way >= AUTOMATIC_SPLITS_MAX || *on_server >= SPLITS_PER_SERVER_MAX {
            continue;
        }
        (under_way, *on_server) = (under_way + 1, *on_server + 1);
        let reason = Reason::TooLarge { bytes: tablet.bytes, limit: tablet.split_bytes };
        decisions.push(Decision { tablet: *id, action: Action::Split { parts: parts(tablet) }, reason });
    }
    decisions
}

/// Whether its table wants it split.
pub(super) fn is_too_large(tablet: &TabletView) -> bool {
    tablet.bytes > tablet.split_bytes && tablet.split_bytes > 0
}

fn parts(tablet: &TabletView) -> u32 {
    let parts = tablet.bytes / tablet.split_bytes.max(1) + 1;
    u32::try_from(parts.clamp(2, SPLIT_CHILDREN_MAX as u64)).expect("the clamp bounds it")
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
        let splits = plan(&cluster.picture(), |_| false);
        let parts: Vec<_> = splits.iter().map(|split| (split.tablet.0, split.action)).collect();
        let into = |parts| Action::Split { parts };
        assert_eq!(parts, [(5, into(64)), (4, into(4)), (3, into(2))]);
        assert!(plan(&cluster.picture(), |tablet| tablet.0 > 2).is_empty());
    }

    #[test]
    fn few_are_split_at_once() {
        let mut cluster = Cluster::new(&["a"; 9]);
        cluster.split_bytes = 100;
        for tablet in 1..=90 {
            cluster.add(tablet, &[1 + tablet % 9], 200);
        }
        let first = plan(&cluster.picture(), |_| false);
        assert_eq!(first.len(), AUTOMATIC_SPLITS_MAX);
        let mut picture = cluster.picture();
        for tablet in picture.tablets.values_mut().filter(|tablet| tablet.leader == Some(ServerId(1))) {
            tablet.work = Some(Work::Split);
        }
        let more = plan(&picture, |_| false);
        let on_first = more.iter().filter(|split| picture.tablets[&split.tablet].leader == Some(ServerId(1)));
        assert_eq!(on_first.count(), 0);
        assert_eq!(more.len(), AUTOMATIC_SPLITS_MAX - 10);
    }
}
