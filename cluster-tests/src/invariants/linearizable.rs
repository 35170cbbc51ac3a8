//! Linearizable per key: whoever begins after another ended sees what that one did or saw.
//!
//! Replies carry timestamps and timestamps give the order, so nothing has to be searched:
//! at its end every operation raises the floor of its rows, at its beginning it notes the
//! floor, and it must come out above (a write) or not below (a read) what it noted.

use super::{End, Invariant};
use crate::oracle::{Asked, Operation, Outcome};
use bytes::Bytes;
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::{Change, Token};
use ebla_kernel::sequence::Reject;
use std::collections::BTreeMap;

/// Nothing to remember.
#[derive(Debug)]
pub struct Linearizable;

/// What an operation shows about one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sight {
    /// It put a version with this timestamp.
    Put(Hlc),
    /// It saw the version of this timestamp as the newest; `MIN`: there was none.
    Saw(Hlc),
}

impl Invariant for Linearizable {
    fn name(&self) -> &'static str {
        "linearizable per key"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let writes = end.oracle.writes();
        let rows = end.oracle.rows();
        let sights: Vec<Vec<(Bytes, Sight)>> =
            end.history.operations.iter().map(|operation| sights(operation, &writes)).collect();
        for (operation, sights) in end.history.operations.iter().zip(&sights) {
            for (key, sight) in sights {
                let (Sight::Saw(ts) | Sight::Put(ts)) = sight;
                let exists = rows.get(key).is_some_and(|versions| versions.contains_key(ts));
                if *ts != Hlc::MIN && !exists {
                    return Err(format!("{operation:?} shows a version that never was"));
                }
            }
            values_are_true(operation, &rows)?;
        }
        in_order(&end.history.operations, &sights)
    }
}

fn values_are_true(operation: &Operation, rows: &crate::sim::disk::Rows) -> Result<(), String> {
    let (Asked::Get { key }, Some(Outcome::Row { version: Some(version), .. })) =
        (&operation.asked, operation.outcome())
    else {
        return Ok(());
    };
    match rows.get(key).and_then(|versions| versions.get(&version.ts)) {
        Some(written) if written == version => Ok(()),
        written => Err(format!("{operation:?} differs from what was written: {written:?}")),
    }
}

/// Sweeps over beginnings and ends in time.
fn in_order(operations: &[Operation], sights: &[Vec<(Bytes, Sight)>]) -> Result<(), String> {
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        let Some((ended_us, _)) = &operation.ended else { continue };
        moments.push((operation.invoked_us, false, index));
        // An end at the same moment as a beginning does not come before it.
        moments.push((*ended_us, true, index));
    }
    moments.sort_unstable();
    let mut floors: BTreeMap<&Bytes, Hlc> = BTreeMap::new();
    let mut noted: BTreeMap<usize, Vec<Hlc>> = BTreeMap::new();
    for (_, is_end, index) in moments {
        let floor = |key: &Bytes| floors.get(key).copied().unwrap_or(Hlc::MIN);
        if !is_end {
            noted.insert(index, sights[index].iter().map(|(key, _)| floor(key)).collect());
            continue;
        }
        for ((key, sight), floor) in sights[index].iter().zip(&noted[&index]) {
            let (ts, holds) = match *sight {
                Sight::Put(ts) => (ts, ts > *floor),
                Sight::Saw(ts) => (ts, ts >= *floor),
            };
            if !holds {
                let operation = &operations[index];
                return Err(format!("{operation:?} began after {floor} of {} was known", key.escape_ascii()));
            }
            let known = floors.entry(key).or_default();
            *known = ts.max(*known);
        }
    }
    Ok(())
}

fn sights(operation: &Operation, writes: &BTreeMap<Token, Vec<&Entry>>) -> Vec<(Bytes, Sight)> {
    match (&operation.asked, operation.outcome()) {
        (Asked::Get { key } | Asked::Snapshot { key }, Some(Outcome::Row { version, .. })) => {
            let ts = version.as_ref().map_or(Hlc::MIN, |version| version.ts);
            vec![(key.clone(), Sight::Saw(ts))]
        }
        (Asked::Write { token, .. }, Some(Outcome::Committed(_))) => {
            writes.get(token).and_then(|entries| entries.first()).map(|entry| puts(entry)).unwrap_or_default()
        }
        // The first operation of a batch sees nothing of the batch itself.
        (
            Asked::Write { ops, .. },
            Some(Outcome::Rejected(Reject::ConditionFailed { op: 0, actual: Some(actual) })),
        ) => {
            let key = ops.first().and_then(|op| op.action.key());
            key.map(|key| (key.clone(), Sight::Saw(*actual))).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn puts(entry: &Entry) -> Vec<(Bytes, Sight)> {
    let Payload::Write(write) = &entry.payload else { return Vec::new() };
    let put = |change: &Change| match change {
        Change::Put { key, .. } => Some((key.clone(), Sight::Put(entry.ts))),
        Change::RangeTombstone { .. } => None,
    };
    write.changes.iter().filter_map(put).collect()
}
