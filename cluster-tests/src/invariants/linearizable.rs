//! Linearizable per key: whoever begins after another ended sees what that one did or saw.
//!
//! Replies carry positions and those give the order, so nothing has to be searched: every
//! operation that ended shows versions of rows (it put them or saw them), and one that begins
//! later must come out above (a write) or not below (a read) all of those that its own epoch's
//! log holds. A version of a *later* epoch that was known before means that a leader answered
//! which had been replaced. A version that the log of its epoch does not hold was lost by a
//! failover; whether that was allowed is judged elsewhere.

use super::{End, Invariant};
use crate::oracle::{Asked, Operation, Outcome, Story, Trust, Truth};
use bytes::Bytes;
use ebla_kernel::entry::Entry;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Pos, Seq, TabletId};
use ebla_kernel::sequence::Reject;
use std::collections::BTreeMap;

/// Nothing to remember.
#[derive(Debug)]
pub struct Linearizable;

/// What an operation shows about one row.
#[derive(Clone, Copy, Debug)]
struct Sight {
    /// The version's entry; none when there was no version.
    pos: Option<Pos>,
    ts: Hlc,
    /// Whether the operation put it.
    put: bool,
    /// The epoch in which it was shown.
    epoch: Epoch,
}

/// Versions of one row of one epoch, in the order in which they became known: when, and the
/// greatest up to then.
type Known = BTreeMap<Epoch, Vec<(u64, Seq, Hlc)>>;

impl Invariant for Linearizable {
    fn name(&self) -> &'static str {
        "linearizable per key"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        for truth in &end.truths {
            let is_here = |operation: &&Operation| {
                operation.ended.is_some()
                    && operation.asked.touches(&truth.fate.range)
                    && truth.was_in(operation.tablet)
            };
            let operations: Vec<&Operation> = end.history.operations.iter().filter(is_here).collect();
            in_order(truth.fate.tablet, truth, &operations)?;
        }
        Ok(())
    }
}

/// Sweeps over the ends in time: what is known when an operation ends has a time of its own,
/// and counts for those that began later.
fn in_order(tablet: TabletId, truth: &Truth<'_>, operations: &[&Operation]) -> Result<(), String> {
    let rows = positions(truth);
    let mut by_end: Vec<&Operation> = operations.to_vec();
    by_end.sort_by_key(|operation| operation.ended.as_ref().map(|(at, _)| *at));
    let mut known: BTreeMap<Bytes, Known> = BTreeMap::new();
    for operation in by_end {
        let Some((ended_us, _)) = &operation.ended else { continue };
        let seen = sights(truth, &rows, operation);
        for (key, sight) in seen.into_iter().filter(|(key, _)| truth.fate.range.contains(key)) {
            let before = known.entry(key.clone()).or_default();
            judge(truth, before, operation, &sight)
                .map_err(|why| format!("{tablet} {} {operation:?}: {why}", key.escape_ascii()))?;
            if let Some(pos) = sight.pos {
                note(before.entry(pos.epoch).or_default(), *ended_us, pos.seq, sight.ts);
            }
        }
    }
    Ok(())
}

fn note(list: &mut Vec<(u64, Seq, Hlc)>, at_us: u64, seq: Seq, ts: Hlc) {
    list.push((at_us, seq, ts));
}

fn judge(truth: &Truth<'_>, known: &Known, operation: &Operation, sight: &Sight) -> Result<(), String> {
    for (epoch, list) in known {
        let earlier = list.partition_point(|(at_us, ..)| *at_us < operation.invoked_us);
        if earlier == 0 {
            continue;
        }
        if *epoch > sight.epoch {
            if truth.fate.trust < Trust::Copies {
                continue; // a degraded election makes reads under the old lease void
            }
            return Err(format!("{} answers after {epoch} had", sight.epoch));
        }
        let Some(limit) = limit(truth.story, sight.epoch, *epoch) else { continue };
        let floor = list[..earlier]
            .iter()
            .filter(|(_, seq, _)| *seq <= limit && !truth.reverted.contains(&Pos::new(*epoch, *seq)))
            .map(|(_, seq, ts)| (*ts, *seq))
            .max();
        let Some((floor, seq)) = floor else { continue };
        let own = sight.pos == Some(Pos::new(*epoch, seq));
        let holds = if sight.put { sight.ts > floor || own } else { sight.ts >= floor };
        if !holds {
            return Err(format!("began after {epoch}:{seq} at {floor} was known"));
        }
    }
    Ok(())
}

/// Up to where the log of `reader` holds entries of `epoch`.
fn limit(story: &Story, reader: Epoch, epoch: Epoch) -> Option<Seq> {
    story.limit(Pos::new(reader, Seq(u64::MAX)), epoch)
}

/// Where each version of each row stands; two places only if a failover dropped one.
type Positions<'a> = BTreeMap<(&'a Bytes, Hlc), Vec<Pos>>;

fn positions<'a>(truth: &Truth<'a>) -> Positions<'a> {
    let mut found = Positions::new();
    for entry in truth.story.entries.values() {
        for key in entry.changes().iter().filter_map(super::key_of) {
            found.entry((key, entry.ts)).or_default().push(entry.pos);
        }
    }
    found
}

fn sights(truth: &Truth<'_>, rows: &Positions<'_>, operation: &Operation) -> Vec<(Bytes, Sight)> {
    let saw = |key: &Bytes, ts: Option<Hlc>| {
        let epoch = operation.epoch?;
        let end = Pos::new(epoch, Seq(u64::MAX));
        let places = ts.and_then(|ts| rows.get(&(key, ts)));
        let pos = places.into_iter().flatten().copied().find(|pos| truth.story.contains(end, *pos));
        Some((key.clone(), Sight { pos, ts: ts.unwrap_or(Hlc::MIN), put: false, epoch }))
    };
    match (&operation.asked, operation.outcome()) {
        (Asked::Get { key } | Asked::Snapshot { key }, Some(Outcome::Row { version, .. })) => {
            saw(key, version.as_ref().map(|version| version.ts)).into_iter().collect()
        }
        (Asked::Write { token, .. }, Some(Outcome::Committed(committed))) => {
            truth.story.write(committed.pos, *token).map(|entry| puts(entry)).unwrap_or_default()
        }
        // The first operation of a batch sees nothing of the batch itself.
        (
            Asked::Write { ops, .. },
            Some(Outcome::Rejected(Reject::ConditionFailed { op: 0, actual: Some(actual) })),
        ) => {
            let key = ops.first().and_then(|op| op.action.key());
            key.and_then(|key| saw(key, Some(*actual))).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn puts(entry: &Entry) -> Vec<(Bytes, Sight)> {
    let sight = Sight { pos: Some(entry.pos), ts: entry.ts, put: true, epoch: entry.pos.epoch };
    entry.changes().iter().filter_map(super::key_of).map(|key| (key.clone(), sight)).collect()
}
