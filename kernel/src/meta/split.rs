//! Splits: one tablet retires, several take its place, and no row moves.

use super::job::JobKind;
use super::rejection::Rejection;
use super::state::State;
use super::succession::{Succession, present};
use crate::ids::{ReplicaId, TabletId};
use crate::limits::{KEY_BYTES_MAX, SPLIT_CHILDREN_MAX, TABLETS_MAX};
use crate::range::KeyRange;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Checks that `keys` cut `range` into parts that all hold a key.
#[must_use]
pub fn check_split_keys(range: &KeyRange, keys: &[Bytes]) -> bool {
    let is_inside = |key: &Bytes| range.contains(key) && key != range.start() && key.len() <= KEY_BYTES_MAX;
    keys.iter().all(is_inside) && keys.windows(2).all(|pair| pair[0] < pair[1])
}

/// Whether a split of the tablet makes sense.
pub(super) fn check(state: &State, id: TabletId, at: &[Bytes]) -> Result<(), Rejection> {
    let tablet = present(state, id)?;
    if at.is_empty() || at.len() >= SPLIT_CHILDREN_MAX {
        return Err(Rejection::BadSplitCount);
    }
    if !check_split_keys(&tablet.range, at) {
        return Err(Rejection::BadSplitPoint(Box::new(tablet.clone())));
    }
    if state.tablets.len() + at.len() > TABLETS_MAX {
        return Err(Rejection::LimitReached("tablets"));
    }
    Ok(())
}

/// Names the children and their copies.
pub(super) fn plan(state: &mut State, id: TabletId, at: &[Bytes]) -> Result<JobKind, Rejection> {
    let tablet = present(state, id)?;
    let copies: Vec<ReplicaId> = tablet.replicas.iter().map(|replica| replica.id).collect();
    let cut = KeyRange::cut_at(at).map_err(|_| Rejection::BadSplitPoint(Box::new(tablet.clone())))?;
    let ranges: Vec<KeyRange> = cut.iter().filter_map(|part| part.intersect(&tablet.range)).collect();
    let mut children = Vec::with_capacity(ranges.len());
    for range in ranges {
        children.push((state.next.tablet, range));
        state.next.tablet = state.next.tablet.next();
    }
    let mut replicas: BTreeMap<ReplicaId, Vec<ReplicaId>> = BTreeMap::new();
    for copy in copies {
        for _ in &children {
            replicas.entry(copy).or_default().push(state.next.replica);
            state.next.replica = state.next.replica.next();
        }
    }
    Ok(JobKind::Split(Succession { parents: vec![id], children, replicas }))
}
