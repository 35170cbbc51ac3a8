//! Every write in the surviving log is what its operations give on the rows before it, as if
//! what was taken back had never been: conditions held, counters added up, ranges emptied. A
//! second, naive sequencer that trusts nothing.

use super::{End, Invariant};
use crate::oracle::{Asked, Operation, Oracle, reverted};
use bytes::Bytes;
use ebla_kernel::entry::{Entry, Payload, WriteRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Pos, TabletId};
use ebla_kernel::op::{Action, Body, Cause, Change, Condition, Op, OpResult, Token};
use ebla_kernel::range::KeyRange;
use ebla_kernel::room::row::RoomRow;
use std::collections::BTreeMap;

/// Nothing to remember.
#[derive(Debug)]
pub struct Semantics;

/// Newest version of each row, tombstones included.
type Newest = BTreeMap<Bytes, (Hlc, Body)>;

impl Invariant for Semantics {
    fn name(&self) -> &'static str {
        "writes are what their operations give"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let operations = by_token(&end.history.operations);
        let ends: BTreeMap<TabletId, Pos> =
            end.truths.iter().map(|truth| (truth.fate.tablet, truth.fate.end)).collect();
        ends.into_iter().try_for_each(|ended| replay_all(end.oracle, &operations, ended).map(drop))
    }
}

/// Every write of a tablet's log that ends here, behind those of all that it was merged of.
fn replay_all(
    oracle: &Oracle,
    operations: &BTreeMap<Token, &[Op]>,
    (tablet, end): (TabletId, Pos),
) -> Result<Newest, String> {
    let mut rows = Newest::new();
    for (parent, seal) in oracle.merged(tablet) {
        let range = oracle.range(*parent);
        let older = replay_all(oracle, operations, (*parent, *seal))?;
        rows.extend(older.into_iter().filter(|(key, _)| range.contains(key)));
    }
    let log = oracle.story(tablet).lineage(end);
    let reverted = reverted(&log);
    for entry in log.into_iter().filter(|entry| !reverted.contains(&entry.pos)) {
        let Payload::Write(write) = &entry.payload else { continue };
        let asked = write.token.and_then(|token| operations.get(&token));
        let ops = asked.ok_or_else(|| format!("{entry:?} was asked by nobody"))?;
        replay(tablet, &oracle.range_at(tablet, entry.seq()), &mut rows, entry, write, ops)?;
    }
    Ok(rows)
}

fn by_token(operations: &[Operation]) -> BTreeMap<Token, &[Op]> {
    operations
        .iter()
        .filter_map(|operation| match &operation.asked {
            Asked::Write { ops, token, .. } => Some((*token, &ops[..])),
            Asked::Get { .. } | Asked::Snapshot { .. } | Asked::Bounded { .. } | Asked::InSession { .. } => {
                None
            }
        })
        .collect()
}

fn replay(
    tablet: TabletId,
    range: &KeyRange,
    rows: &mut Newest,
    entry: &Entry,
    write: &WriteRecord,
    ops: &[Op],
) -> Result<(), String> {
    let before = rows.clone();
    let results: Result<Vec<OpResult>, String> =
        ops.iter().map(|op| run(op, range, rows, entry.ts)).collect();
    let results = results.map_err(|why| format!("{tablet} {entry:?} of {ops:?}: {why}"))?;
    if results != write.results {
        return Err(format!("{tablet} {entry:?} should have given {results:?}"));
    }
    let put: BTreeMap<&Bytes, &Body> = write
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::Put { key, body, .. } => Some((key, body)),
            Change::RangeTombstone { .. } => None,
        })
        .collect();
    for (key, (ts, body)) in rows.iter().filter(|(_, (ts, _))| *ts == entry.ts) {
        if put.get(key) != Some(&body) {
            return Err(format!("{tablet} {entry:?} should have put {key:?} = {body:?} at {ts}"));
        }
    }
    for (key, body) in put {
        // A tombstone over a row that was dead already is no harm.
        let known = rows.get(key).is_some_and(|(ts, _)| *ts == entry.ts);
        let dead = before.get(key).is_none_or(|(_, body)| matches!(body, Body::Tombstone(_)));
        let harmless = dead && matches!(body, Body::Tombstone(_));
        if !known && !harmless {
            return Err(format!("{tablet} {entry:?} should not have put {key:?}"));
        }
        rows.insert(key.clone(), (entry.ts, body.clone()));
    }
    Ok(())
}

fn run(op: &Op, range: &KeyRange, rows: &mut Newest, ts: Hlc) -> Result<OpResult, String> {
    if let (Some(condition), Some(key)) = (&op.condition, op.action.key())
        && !holds(condition, live(rows, key))
    {
        return Err(format!("the condition {condition:?} does not hold"));
    }
    match &op.action {
        Action::Set { key, value, .. } => {
            rows.insert(key.clone(), (ts, Body::Value(value.clone())));
        }
        Action::Delete { key, cause } => {
            rows.insert(key.clone(), (ts, Body::Tombstone(*cause)));
        }
        Action::Add { key, delta } => {
            let sum = match live(rows, key) {
                None => *delta,
                Some((_, Body::Counter(value))) => value + delta,
                Some((_, Body::Value(_) | Body::Tombstone(_))) => return Err("the row is no counter".into()),
            };
            rows.insert(key.clone(), (ts, Body::Counter(sum)));
            return Ok(OpResult::Counter(sum));
        }
        Action::Room { key, change, runs } => {
            let mut room = RoomRow::of(live(rows, key).map(|(_, body)| body));
            if room.change(*change, runs) {
                rows.insert(key.clone(), (ts, room.into_body()));
            }
        }
        Action::DeleteRange { from, to } => {
            let asked = KeyRange::new(from.clone(), to.clone()).map_err(|_| "an inverted range")?;
            let Some(range) = asked.intersect(range) else { return Ok(OpResult::Done) };
            let gone = rows
                .iter_mut()
                .filter(|(key, (_, body))| range.contains(key) && !matches!(body, Body::Tombstone(_)));
            gone.for_each(|(_, version)| *version = (ts, Body::Tombstone(Cause::Deleted)));
        }
    }
    Ok(OpResult::Done)
}

fn live<'a>(rows: &'a Newest, key: &Bytes) -> Option<&'a (Hlc, Body)> {
    rows.get(key).filter(|(_, body)| !matches!(body, Body::Tombstone(_)))
}

fn holds(condition: &Condition, live: Option<&(Hlc, Body)>) -> bool {
    match (condition, live) {
        (Condition::Absent, live) => live.is_none(),
        (Condition::TsIs(expected) | Condition::NewestIs(expected), Some((ts, _))) => ts == expected,
        (Condition::ValueIs(expected), Some((_, Body::Value(value)))) => value == expected,
        (Condition::ValueIs(expected), Some((_, Body::Counter(value)))) => {
            value.to_be_bytes()[..] == expected[..]
        }
        (Condition::ValueIs(_), Some((_, Body::Tombstone(_)))) => false,
        (Condition::TsIs(_) | Condition::NewestIs(_) | Condition::ValueIs(_), None) => false,
    }
}
