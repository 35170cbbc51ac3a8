//! What a cut of a log's tail takes with it.
//!
//! Rows of the tail may be in the store (a leader applies ahead of Q), so exactly its versions
//! are removed. A revert that is cut no longer holds: its target, if it stays, is applied
//! again, so the position from which rows are applied falls below it. Nothing is put back by
//! hand: applying again gives the same rows.

use crate::entry::{Entry, RevertedRow};
use crate::hlc::Hlc;
use crate::ids::Seq;

/// The consequences of cutting some entries off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Versions to remove from the store, latest first.
    pub undo: Vec<(Hlc, RevertedRow)>,
    /// Nothing above this counts as applied any more.
    pub applied_max: Seq,
}

impl Cut {
    /// What follows from cutting `tail` off, consecutive entries up to the end of the log.
    #[must_use]
    pub fn of(tail: &[Entry]) -> Self {
        let keep = tail.first().map_or(Seq(u64::MAX), |first| Seq(first.seq().0 - 1));
        let targets = tail.iter().flat_map(Entry::reverts).map(|target| Seq(target.pos.seq.0 - 1));
        let undo = tail
            .iter()
            .rev()
            .flat_map(|entry| entry.changes().iter().map(|change| (entry.ts, RevertedRow::of(change))));
        Self { undo: undo.collect(), applied_max: targets.min().map_or(keep, |seq| seq.min(keep)) }
    }

    /// Joins the consequences of a part of the tail with those of the part before it.
    #[must_use]
    pub fn join(mut self, earlier: Self) -> Self {
        self.undo.extend(earlier.undo);
        self.applied_max = self.applied_max.min(earlier.applied_max);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{LogEnd, Payload, RevertTarget, WriteRecord};
    use crate::ids::{Epoch, Pos};
    use crate::op::{AckLevel, Body, Cause, Change, OpResult};
    use bytes::Bytes;

    fn write(key: &'static str) -> Payload {
        let change = Change::Put {
            key: Bytes::from_static(key.as_bytes()),
            body: Body::Tombstone(Cause::Deleted),
            expires_ms: None,
        };
        Payload::Write(WriteRecord {
            token: None,
            level: AckLevel::Leader,
            changes: vec![change],
            results: vec![OpResult::Done],
        })
    }

    #[test]
    fn a_cut_undoes_its_writes_and_forgets_its_reverts() {
        let start = LogEnd { pos: Pos::new(Epoch(1), Seq(4)), ..LogEnd::default() };
        let first = start.follow(Epoch(1), Hlc(5), write("a"));
        let target =
            RevertTarget { pos: Pos::new(Epoch(1), Seq(3)), ts: Hlc(3), token: None, rows: Vec::new() };
        let second = first.end().follow(Epoch(1), Hlc(6), Payload::Revert { targets: vec![target] });
        let third = second.end().follow(Epoch(1), Hlc(7), write("b"));
        let row = |key: &'static str| RevertedRow::Row { key: Bytes::from_static(key.as_bytes()) };
        let cut = Cut::of(&[first, second, third]);
        assert_eq!(cut.undo, [(Hlc(7), row("b")), (Hlc(5), row("a"))]);
        assert_eq!(cut.applied_max, Seq(2));
    }
}
