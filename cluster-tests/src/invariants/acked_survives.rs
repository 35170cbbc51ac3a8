//! I4, E: an acknowledged write is found in the log that survived, where and as its client was
//! told. Only a write at level `leader` may be gone, and only because an epoch began without it;
//! of what a degraded election leaves, only `in_sync` is owed.

use super::epoch_has_acks::is_owed;
use super::{End, Invariant};
use crate::oracle::{Asked, Operation, Outcome, Trust, Truth};
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::ids::Pos;
use ebla_kernel::op::Committed;

/// Nothing to remember.
#[derive(Debug)]
pub struct AckedSurvives;

impl Invariant for AckedSurvives {
    fn name(&self) -> &'static str {
        "I4 acknowledged writes survive"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        for operation in &end.history.operations {
            if let (Asked::Write { .. }, Some(Outcome::Committed(committed))) =
                (&operation.asked, operation.outcome())
            {
                let truth = end.home(operation);
                let truth = truth.ok_or_else(|| format!("{operation:?} has no tablet"))?;
                judge(truth, operation, committed)?;
            }
        }
        Ok(())
    }
}

fn judge(truth: &Truth<'_>, operation: &Operation, committed: &Committed) -> Result<(), String> {
    let Asked::Write { token, .. } = &operation.asked else { return Ok(()) };
    let entry = truth.story.write(committed.pos, *token);
    if !entry.is_some_and(|entry| is_as_told(entry, committed)) {
        return Err(format!("{operation:?} stands in the log as {entry:?}"));
    }
    if truth.fate.trust == Trust::Nothing {
        return Ok(());
    }
    if truth.reverted.contains(&committed.pos) {
        return Err(format!("{operation:?} was taken back"));
    }
    if is_owed(committed.level, truth.fate.trust) && !truth.stands(committed.pos) {
        return Err(format!("{operation:?} is lost: the log that survived ends at {}", truth.fate.end));
    }
    if !truth.stands(committed.pos) && !was_left_behind(truth, committed.pos) {
        return Err(format!("{operation:?} is gone, and no epoch began without it"));
    }
    Ok(())
}

/// Whether a later epoch of the surviving log began on a log that lacked `pos`.
fn was_left_behind(truth: &Truth<'_>, pos: Pos) -> bool {
    let later = |entry: &&&Entry| {
        matches!(entry.payload, Payload::EpochStart { .. })
            && entry.pos.epoch > pos.epoch
            && !truth.story.contains(entry.prev, pos)
    };
    truth.log.iter().find(later).is_some()
}

fn is_as_told(entry: &Entry, committed: &Committed) -> bool {
    let same = match &entry.payload {
        Payload::Write(write) => write.results == committed.results,
        Payload::EpochStart { .. }
        | Payload::TokenFence { .. }
        | Payload::Revert { .. }
        | Payload::Close
        | Payload::Seal(_)
        | Payload::Unseal { .. } => false,
    };
    entry.pos == committed.pos && entry.ts == committed.ts && same
}
