//! Acknowledged writes are found after any crash, where and as the client was told.

use super::{End, Invariant};
use crate::oracle::{Asked, Outcome};
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::op::Committed;

/// Nothing to remember.
#[derive(Debug)]
pub struct AckedDurable;

impl Invariant for AckedDurable {
    fn name(&self) -> &'static str {
        "acknowledged writes are durable"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let writes = end.oracle.writes();
        for operation in &end.history.operations {
            let (Asked::Write { token, .. }, Some(Outcome::Committed(committed))) =
                (&operation.asked, operation.outcome())
            else {
                continue;
            };
            let entry = writes.get(token).and_then(|entries| entries.first());
            if !entry.is_some_and(|entry| is_as_told(entry, committed)) {
                return Err(format!("{operation:?} stands in the log as {entry:?}"));
            }
        }
        Ok(())
    }
}

fn is_as_told(entry: &Entry, committed: &Committed) -> bool {
    let same_results = match &entry.payload {
        Payload::Write(write) => write.results == committed.results,
        Payload::EpochStart { .. } | Payload::TokenFence { .. } => false,
    };
    entry.pos == committed.pos && entry.ts == committed.ts && same_results
}
