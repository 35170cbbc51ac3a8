//! A second opinion on linearizability that trusts no timestamp and no position: for each row it
//! searches an order of the operations in which every answer is right. Whatever nobody answered
//! may have happened at any time after it was asked, or never.
//!
//! The search goes from one end of an operation to the next and keeps every state that is
//! possible there, with the operations that are open and have taken effect already. It gives up
//! on a row when more than 30 operations are open at once or the states grow too many; and
//! a tablet of which a failover dropped a write is left to the checks that know positions.
//!
//! Source: Wing, Gong, "Testing and Verifying Concurrent Objects", JPDC 1993; Lowe, "Testing for
//! Linearizability", 2016 (just-in-time linearization).

use super::{End, Invariant};
use crate::oracle::{Asked, Operation, Outcome, Truth};
use bytes::Bytes;
use ebla_kernel::entry::Payload;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::{Action, Body, Condition, Op, OpResult};
use ebla_kernel::room::row::RoomRow;
use ebla_kernel::sequence::Reject;
use std::collections::{BTreeMap, BTreeSet};

/// Most operations that are open at once.
const OPEN_MAX: usize = 30;

/// Most states that are looked at for one row.
const STATES_MAX: usize = 20_000;

/// Rows that are looked at in one history.
const ROWS_MAX: usize = 4;

/// Nothing to remember.
#[derive(Debug)]
pub struct Search;

/// What an operation did, or may have done, to one row.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Deed {
    /// It saw this.
    Saw(Option<Body>),
    /// It ran these, with these results; none when nobody said.
    Ran(Vec<(Op, Option<OpResult>)>),
    /// It was refused because this condition did not hold.
    Refused(Condition),
}

/// A deed and when it can have happened; no end for what nobody answered.
#[derive(Clone, Debug)]
struct Interval {
    begin_us: u64,
    end_us: Option<u64>,
    deed: Deed,
}

impl Invariant for Search {
    fn name(&self) -> &'static str {
        "linearizable, by search"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        for truth in end.truths.iter().filter(|truth| is_whole(truth)) {
            let mut rows = rows(end, truth);
            rows.sort_by_key(|(_, intervals)| intervals.len());
            let sample = rows.into_iter().filter(|(_, intervals)| intervals.len() > 2).take(ROWS_MAX);
            for (key, mut intervals) in sample {
                let newest = truth.rows.get(&key).and_then(|versions| versions.values().next_back());
                let last = newest.and_then(|version| live(&version.body));
                intervals.push(Interval {
                    begin_us: u64::MAX,
                    end_us: Some(u64::MAX),
                    deed: Deed::Saw(last),
                });
                judge(&intervals).map_err(|why| format!("{}: {why}", key.escape_ascii()))?;
            }
        }
        Ok(())
    }
}

/// Whether no write was ever dropped.
fn is_whole(truth: &Truth<'_>) -> bool {
    let mut writes = truth.story.entries.values().filter(|entry| matches!(entry.payload, Payload::Write(_)));
    writes.all(|entry| truth.story.contains(truth.fate.end, entry.pos))
}

fn live(body: &Body) -> Option<Body> {
    match body {
        Body::Tombstone(_) => None,
        Body::Value(_) | Body::Counter(_) => Some(body.clone()),
    }
}

/// What happened to each row of a tablet.
fn rows(end: &End<'_>, truth: &Truth<'_>) -> Vec<(Bytes, Vec<Interval>)> {
    let keys: BTreeSet<&Bytes> =
        truth.story.entries.values().flat_map(|entry| entry.changes()).filter_map(super::key_of).collect();
    let keys = keys.into_iter().filter(|key| truth.fate.range.contains(key));
    let tablet = truth.fate.tablet;
    let inside = |operation: &&Operation| {
        operation.asked.touches(&truth.fate.range) && end.oracle.are_related(tablet, operation.tablet)
    };
    let operations: Vec<&Operation> = end.history.operations.iter().filter(inside).collect();
    let of_row = |key: &Bytes| {
        let all = operations.iter().flat_map(|operation| match is_here(truth, operation) {
            true => intervals(operation, key),
            false => open_end(operation, key).into_iter().collect(),
        });
        all.collect()
    };
    keys.map(|key| (key.clone(), of_row(key))).collect()
}

/// Whether what an operation was told is about this row: a tablet answered that the row was in, and
/// if that was merged, the write was not one of its other parent.
fn is_here(truth: &Truth<'_>, operation: &Operation) -> bool {
    let stands = match (&operation.asked, operation.outcome()) {
        (Asked::Write { token, .. }, Some(Outcome::Committed(committed))) => {
            truth.story.write(committed.pos, *token).is_some()
        }
        _ => true,
    };
    truth.was_in(operation.tablet) && stands
}

/// What an operation may have done to a row at any time, or never: a sibling of the row's tablet
/// answered for it.
fn open_end(operation: &Operation, key: &Bytes) -> Option<Interval> {
    let Asked::Write { ops, .. } = &operation.asked else { return None };
    let ran: Vec<_> = ops.iter().filter(|op| touches(op, key)).map(|op| (op.clone(), None)).collect();
    let deed = Deed::Ran(ran);
    let is_empty = matches!(&deed, Deed::Ran(ran) if ran.is_empty());
    (!is_empty).then_some(Interval { begin_us: operation.invoked_us, end_us: None, deed })
}

/// What an operation did to a row. A refusal of one copy of a request says nothing of others.
fn intervals(operation: &Operation, key: &Bytes) -> Vec<Interval> {
    let mut found: Vec<Interval> = interval(operation, key).into_iter().collect();
    if let (Asked::Write { .. }, Some(Outcome::Rejected(_))) = (&operation.asked, operation.outcome())
        && operation.copies > 1
    {
        found.extend(open_end(operation, key));
    }
    found
}

fn interval(operation: &Operation, key: &Bytes) -> Option<Interval> {
    let ended = operation.ended.as_ref();
    let end_us = ended.map(|(at, _)| *at);
    let (end_us, deed) = match (&operation.asked, ended.map(|(_, outcome)| outcome)) {
        (Asked::Get { key: read }, Some(Outcome::Row { version, .. })) if read == key => {
            (end_us, Deed::Saw(version.as_ref().and_then(|version| live(&version.body))))
        }
        (Asked::Write { ops, .. }, Some(Outcome::Committed(committed))) => {
            let results = committed.results.iter().cloned().map(Some);
            let ran = ops.iter().cloned().zip(results).filter(|(op, _)| touches(op, key)).collect();
            (end_us, Deed::Ran(ran))
        }
        (Asked::Write { ops, .. }, None | Some(Outcome::Unknown | Outcome::TokenTooOld)) => {
            let ran = ops.iter().filter(|op| touches(op, key)).map(|op| (op.clone(), None)).collect();
            (None, Deed::Ran(ran))
        }
        (Asked::Write { ops, .. }, Some(Outcome::Rejected(Reject::ConditionFailed { op: 0, .. }))) => {
            let first = ops.first().filter(|op| op.action.key() == Some(key))?;
            (end_us, Deed::Refused(first.condition.clone()?))
        }
        _ => return None,
    };
    let is_empty = matches!(&deed, Deed::Ran(ran) if ran.is_empty());
    (!is_empty).then_some(Interval { begin_us: operation.invoked_us, end_us, deed })
}

fn touches(op: &Op, key: &Bytes) -> bool {
    match &op.action {
        Action::Set { key: row, .. }
        | Action::Delete { key: row, .. }
        | Action::Add { key: row, .. }
        | Action::Room { key: row, .. } => row == key,
        Action::DeleteRange { from, to } => from <= key && to.as_ref().is_none_or(|to| key < to),
    }
}

/// What a deed makes of a row; none if it cannot have happened to it.
fn run(deed: &Deed, row: &Option<Body>) -> Option<Option<Body>> {
    match deed {
        Deed::Saw(seen) => (seen == row).then(|| row.clone()),
        Deed::Refused(condition) => (!holds(condition, row)).then(|| row.clone()),
        Deed::Ran(ops) => ops.iter().try_fold(row.clone(), |row, (op, result)| {
            let fits =
                op.condition.as_ref().is_none_or(|condition| holds(condition, &row) || is_ts(condition));
            if !fits {
                return None;
            }
            match &op.action {
                Action::Set { value, .. } => Some(Some(Body::Value(value.clone()))),
                Action::Delete { .. } | Action::DeleteRange { .. } => Some(None),
                Action::Add { delta, .. } => {
                    let sum = match row {
                        None => *delta,
                        Some(Body::Counter(value)) => value.checked_add(*delta)?,
                        Some(Body::Value(_) | Body::Tombstone(_)) => return None,
                    };
                    let fits = result.as_ref().is_none_or(|result| *result == OpResult::Counter(sum));
                    fits.then_some(Some(Body::Counter(sum)))
                }
                Action::Room { change, runs, .. } => {
                    let mut room = RoomRow::of(row.as_ref());
                    room.change(*change, runs);
                    Some(Some(room.into_body()).filter(|body| !matches!(body, Body::Tombstone(_))))
                }
            }
        }),
    }
}

/// Whether a condition holds, timestamps aside.
fn holds(condition: &Condition, row: &Option<Body>) -> bool {
    match (condition, row) {
        (Condition::Absent, row) => row.is_none(),
        (Condition::ValueIs(expected), Some(Body::Value(value))) => value == expected,
        (Condition::ValueIs(expected), Some(Body::Counter(value))) => value.to_be_bytes()[..] == expected[..],
        (Condition::ValueIs(_), None | Some(Body::Tombstone(_))) => false,
        // Only servers ask for the newest version, of rows that expire.
        (Condition::TsIs(ts) | Condition::NewestIs(ts), None) => *ts == Hlc::MAX,
        (Condition::TsIs(_) | Condition::NewestIs(_), Some(_)) => false,
    }
}

fn is_ts(condition: &Condition) -> bool {
    matches!(condition, Condition::TsIs(_) | Condition::NewestIs(_))
}

/// A possible state: the row, and a bit for each open operation that has taken effect.
type Config = (usize, u32);

/// The search over one row.
struct Searcher<'a> {
    intervals: &'a [Interval],
    /// States of the row, by number.
    rows: Vec<Option<Body>>,
    /// The open operations, by slot.
    open: [Option<usize>; OPEN_MAX],
    steps: usize,
}

fn judge(intervals: &[Interval]) -> Result<(), String> {
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (index, interval) in intervals.iter().enumerate() {
        moments.push((interval.begin_us, false, index));
        // An end at the same moment as a beginning does not come before it.
        moments.extend(interval.end_us.map(|end_us| (end_us, true, index)));
    }
    moments.sort_unstable();
    let mut search = Searcher { intervals, rows: vec![None], open: [None; OPEN_MAX], steps: 0 };
    let mut configs: BTreeSet<Config> = BTreeSet::from([(0, 0)]);
    let mut slots: BTreeMap<usize, usize> = BTreeMap::new();
    for (_, is_end, index) in moments {
        if !is_end {
            let Some(slot) = search.open.iter().position(Option::is_none) else { return Ok(()) };
            search.open[slot] = Some(index);
            slots.insert(index, slot);
            continue;
        }
        let slot = slots[&index];
        let Some(next) = search.end(&configs, slot) else { return Ok(()) };
        if next.is_empty() {
            let last: Vec<_> = configs.iter().map(|(row, _)| &search.rows[*row]).collect();
            return Err(format!(
                "nothing explains {:?}; before it the row was one of {last:?}",
                intervals[index]
            ));
        }
        configs = next;
        search.open[slot] = None;
    }
    Ok(())
}

impl Searcher<'_> {
    /// All states in which the operation of `slot` has taken effect; none when they are too many.
    fn end(&mut self, configs: &BTreeSet<Config>, slot: usize) -> Option<BTreeSet<Config>> {
        let mut reached = BTreeSet::new();
        let mut seen: BTreeSet<Config> = configs.clone();
        let mut todo: Vec<Config> = configs.iter().copied().collect();
        while let Some((row, done)) = todo.pop() {
            self.steps += 1;
            if self.steps > STATES_MAX {
                return None;
            }
            if done & (1 << slot) != 0 {
                reached.insert((row, done & !(1 << slot)));
                continue;
            }
            for next in self.steps_from(row, done) {
                if seen.insert(next) {
                    todo.push(next);
                }
            }
        }
        Some(reached)
    }

    fn steps_from(&mut self, row: usize, done: u32) -> Vec<Config> {
        let mut next = Vec::new();
        for slot in 0..OPEN_MAX {
            let Some(index) = self.open[slot].filter(|_| done & (1 << slot) == 0) else { continue };
            if let Some(after) = run(&self.intervals[index].deed, &self.rows[row]) {
                next.push((self.number(after), done | (1 << slot)));
            }
        }
        next
    }

    fn number(&mut self, row: Option<Body>) -> usize {
        if let Some(known) = self.rows.iter().position(|known| *known == row) {
            return known;
        }
        self.rows.push(row);
        self.rows.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<Body> {
        Some(Body::Value(Bytes::copy_from_slice(text.as_bytes())))
    }

    fn key() -> Bytes {
        Bytes::from_static(b"k")
    }

    fn set(text: &str) -> Op {
        let value = Bytes::copy_from_slice(text.as_bytes());
        Op { condition: None, action: Action::Set { key: key(), value, ttl_ms: None } }
    }

    fn add(delta: i64) -> Op {
        Op { condition: None, action: Action::Add { key: key(), delta } }
    }

    fn ran(begin_us: u64, end_us: Option<u64>, op: Op, result: Option<OpResult>) -> Interval {
        Interval { begin_us, end_us, deed: Deed::Ran(vec![(op, result)]) }
    }

    fn saw(begin_us: u64, end_us: u64, row: Option<Body>) -> Interval {
        Interval { begin_us, end_us: Some(end_us), deed: Deed::Saw(row) }
    }

    fn check(intervals: &[Interval], good: bool) {
        let verdict = judge(intervals);
        assert_eq!(verdict.is_ok(), good, "{intervals:?}: {verdict:?}");
    }

    #[test]
    fn overlapping_operations_have_an_order() {
        let x = ran(0, Some(10), set("x"), None);
        let y = ran(0, Some(10), set("y"), None);
        check(&[x.clone(), y.clone(), saw(1, 9, value("x")), saw(11, 12, value("y"))], true);
        check(&[x.clone(), y.clone(), saw(11, 12, value("x")), saw(13, 14, value("y"))], false);
        check(&[x, y, saw(11, 12, None)], false);
    }

    #[test]
    fn what_nobody_answered_may_happen_late_but_once() {
        let maybe = ran(0, None, set("x"), None);
        check(&[maybe.clone(), saw(5, 6, None), saw(7, 8, value("x"))], true);
        check(&[maybe.clone(), saw(5, 6, value("x")), saw(7, 8, None)], false);
        check(&[maybe, saw(1, 2, value("z"))], false);
        let maybe = ran(0, None, add(1), None);
        check(&[maybe.clone(), saw(1, 2, Some(Body::Counter(1)))], true);
        check(&[maybe, saw(1, 2, Some(Body::Counter(2)))], false);
    }

    #[test]
    fn counters_are_added_up_once() {
        let two = ran(0, Some(1), add(2), Some(OpResult::Counter(2)));
        let lost = ran(2, Some(3), add(3), Some(OpResult::Counter(3)));
        let good = ran(2, Some(3), add(3), Some(OpResult::Counter(5)));
        check(&[two.clone(), lost], false);
        check(&[two, good, saw(4, 5, Some(Body::Counter(5)))], true);
    }

    #[test]
    fn conditions_and_refusals_bind() {
        let absent = Op { condition: Some(Condition::Absent), ..set("y") };
        let x = ran(0, Some(1), set("x"), None);
        check(&[x.clone(), ran(2, Some(3), absent.clone(), None)], false);
        check(&[x.clone(), ran(1, Some(3), absent, None)], true);
        let refused = Interval { begin_us: 0, end_us: Some(2), deed: Deed::Refused(Condition::Absent) };
        check(std::slice::from_ref(&refused), false);
        check(&[x, refused], true);
    }

    #[test]
    fn a_read_does_not_go_back() {
        let x = ran(0, Some(20), set("x"), None);
        check(&[x.clone(), saw(1, 2, value("x")), saw(3, 4, None)], false);
        check(&[x, saw(1, 4, value("x")), saw(3, 5, None)], true);
    }
}
