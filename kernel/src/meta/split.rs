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
use std::fmt;

/// A key at which a tablet cannot be cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadSplitPoint {
    /// The tablet.
    pub tablet: TabletId,
    /// Its keys.
    pub range: KeyRange,
    /// The key that is refused.
    pub key: Bytes,
}

impl fmt::Display for BadSplitPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tablet, range, key } = self;
        match range.contains(key) && key != range.start() {
            true => write!(f, "tablet {} cannot be split at \"{}\": ", tablet.0, key.escape_ascii())?,
            false => {
                write!(
                    f,
                    "\"{}\" is not strictly inside of tablet {} {range}: ",
                    key.escape_ascii(),
                    tablet.0
                )?;
            }
        }
        write!(f, "split points lie strictly inside, rise, and have at most {KEY_BYTES_MAX} bytes")
    }
}

impl std::error::Error for BadSplitPoint {}

/// Checks that `keys` cut a tablet into parts that all hold a key.
///
/// # Errors
/// The first key that does not.
pub fn check_split_keys(tablet: TabletId, range: &KeyRange, keys: &[Bytes]) -> Result<(), BadSplitPoint> {
    let mut below = range.start();
    for key in keys {
        if !range.contains(key) || key <= below || key.len() > KEY_BYTES_MAX {
            return Err(BadSplitPoint { tablet, range: range.clone(), key: key.clone() });
        }
        below = key;
    }
    Ok(())
}

/// Whether a split of the tablet makes sense.
pub(super) fn check(state: &State, id: TabletId, at: &[Bytes]) -> Result<(), Rejection> {
    let tablet = present(state, id)?;
    if at.is_empty() || at.len() >= SPLIT_CHILDREN_MAX {
        return Err(Rejection::BadSplitCount);
    }
    check_split_keys(id, &tablet.range, at).map_err(|bad| Rejection::BadSplitPoint(Box::new(bad)))?;
    if state.tablets.len() + at.len() > TABLETS_MAX {
        return Err(Rejection::LimitReached("tablets"));
    }
    Ok(())
}

/// Names the children and their copies.
pub(super) fn plan(state: &mut State, id: TabletId, at: &[Bytes]) -> Result<JobKind, Rejection> {
    let tablet = present(state, id)?;
    let copies: Vec<ReplicaId> = tablet.replicas.iter().map(|replica| replica.id).collect();
    let cut = KeyRange::cut_at(at).map_err(|_| Rejection::BadSplitCount)?;
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
