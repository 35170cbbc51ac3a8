//! I6, I7: a row that was read was written, exactly so; and no read shows a write that was taken
//! back in the log it was read from. This holds however many disks were lost.

use super::{End, Invariant};
use crate::oracle::{Asked, Operation, Outcome, Truth, reverted};
use bytes::Bytes;
use ebla_kernel::entry::Entry;
use ebla_kernel::ids::{Epoch, Pos};
use ebla_kernel::op::{Change, Version};
use std::collections::{BTreeMap, BTreeSet};

/// Nothing to remember.
#[derive(Debug)]
pub struct TruthIsTold;

/// Entries by row and timestamp; two only if a failover dropped one.
type Written<'a> = BTreeMap<(&'a Bytes, u64), Vec<(&'a Entry, &'a Change)>>;

impl Invariant for TruthIsTold {
    fn name(&self) -> &'static str {
        "I6, I7 reads show what was written, and nothing that was taken back"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let mut written = BTreeMap::new();
        let mut taken: BTreeMap<(&Bytes, Epoch), BTreeSet<Pos>> = BTreeMap::new();
        for operation in &end.history.operations {
            let Some(Outcome::Row { version: Some(version), .. }) = operation.outcome() else { continue };
            let Some(truth) = end.home(operation) else { continue };
            let written = written.entry(truth.fate.range.start()).or_insert_with(|| writes(truth));
            let known = written.get(&(row(operation)?, version.ts.0)).into_iter().flatten();
            let mut shown =
                known.filter(|(_, change)| is(change, version)).map(|(entry, _)| *entry).peekable();
            if shown.peek().is_none() {
                return Err(format!("{operation:?} shows what was never written"));
            }
            let upto = operation.epoch.map_or(truth.fate.end, |epoch| truth.story.last_of(epoch));
            let taken = taken
                .entry((truth.fate.range.start(), upto.epoch))
                .or_insert_with(|| reverted(&truth.story.lineage(upto)));
            if shown.all(|entry| taken.contains(&entry.pos)) {
                return Err(format!("{operation:?} shows a write that was taken back"));
            }
        }
        Ok(())
    }
}

fn row(operation: &Operation) -> Result<&Bytes, String> {
    match &operation.asked {
        Asked::Get { key }
        | Asked::Snapshot { key }
        | Asked::Bounded { key, .. }
        | Asked::InSession { key, .. } => Ok(key),
        Asked::Write { .. } => Err(format!("{operation:?} was answered with a row")),
    }
}

fn writes<'a>(truth: &Truth<'a>) -> Written<'a> {
    let mut written = Written::new();
    for entry in truth.story.entries.values() {
        for change in entry.changes() {
            let Some(key) = super::key_of(change) else { continue };
            written.entry((key, entry.ts.0)).or_default().push((entry, change));
        }
    }
    written
}

fn is(change: &Change, version: &Version) -> bool {
    match change {
        Change::Put { body, expires_ms, .. } => *body == version.body && *expires_ms == version.expires_ms,
        Change::RangeTombstone { .. } => false,
    }
}
