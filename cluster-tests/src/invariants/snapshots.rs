//! A read at a timestamp gives what the log says for that timestamp, for ever: on a leader the
//! log of its epoch, on any other copy the log that survives. Where there has always been one copy, every
//! later epoch begins above what was read: its clock starts above its bound.

use super::{End, Invariant};
use crate::oracle::{Operation, Outcome, Trust, Truth, reverted};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Pos};
use ebla_kernel::op::{Change, Version};
use std::collections::{BTreeMap, BTreeSet};

/// Nothing to remember.
#[derive(Debug)]
pub struct Snapshots;

impl Invariant for Snapshots {
    fn name(&self) -> &'static str {
        "reads at a timestamp are repeatable"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let mut lineages = BTreeMap::new();
        for operation in &end.history.operations {
            let Some(truth) = end.home(operation) else { continue };
            let Some(Outcome::Row { version, at: Some(at) }) = operation.outcome() else { continue };
            let places = truth.story.held.values().fold(0, |all, held| all | held).count_ones();
            let is_alone = places == 1 && truth.fate.trust == Trust::Copies;
            let upto = match operation.epoch {
                Some(_) if is_alone => truth.fate.end,
                Some(epoch) => truth.story.last_of(epoch),
                None if truth.fate.trust < Trust::Copies => continue,
                None => truth.fate.end,
            };
            let taken = lineages
                .entry((truth.fate.range.start(), upto.epoch))
                .or_insert_with(|| reverted(&truth.story.lineage(upto)));
            let expected = newest(truth, upto, taken, operation, *at);
            if expected.as_ref() != version.as_ref() {
                return Err(format!("{operation:?} should have been {expected:?}"));
            }
        }
        Ok(())
    }
}

/// The version that the lineage up to `upto` gives at `at`.
fn newest(
    truth: &Truth<'_>,
    upto: Pos,
    taken: &BTreeSet<Pos>,
    operation: &Operation,
    at: Hlc,
) -> Option<Version> {
    let key = operation.asked.key();
    let of_lineage = |epoch: Epoch| truth.story.limit(upto, epoch);
    let entries = truth.story.entries.values().rev();
    let standing = entries.filter(|entry| {
        entry.ts <= at
            && of_lineage(entry.pos.epoch).is_some_and(|limit| entry.pos.seq <= limit)
            && !taken.contains(&entry.pos)
    });
    let versions = standing.flat_map(|entry| {
        entry.changes().iter().filter_map(|change| match change {
            Change::Put { key: put, body, expires_ms } if put == key => {
                Some(Version { ts: entry.ts, body: body.clone(), expires_ms: *expires_ms })
            }
            Change::Put { .. } | Change::RangeTombstone { .. } => None,
        })
    });
    versions.max_by_key(|version| version.ts)
}
