//! A session reads its own writes on any copy, and is told so when a failover dropped them.

use super::{End, Invariant};
use crate::oracle::{Asked, Operation, Outcome, Session, Trust, Truth};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::Committed;

/// Nothing to remember.
#[derive(Debug)]
pub struct Sessions;

impl Invariant for Sessions {
    fn name(&self) -> &'static str {
        "a session reads its own writes"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        for operation in &end.history.operations {
            let Some(truth) = end.home(operation) else { continue };
            judge(end, truth, operation)?;
        }
        Ok(())
    }
}

fn judge(end: &End<'_>, truth: &Truth<'_>, operation: &Operation) -> Result<(), String> {
    let Asked::InSession { key, session } = &operation.asked else { return Ok(()) };
    match operation.outcome() {
        Some(Outcome::WriteLost)
            if written(end, operation, session).is_some_and(|(at, _)| at.stands(session.pos)) =>
        {
            Err(format!("{operation:?}, but the write stands"))
        }
        Some(Outcome::Row { .. }) if operation.epoch.is_none() && is_lost(end, operation, session) => {
            Err(format!("{operation:?}, although the write was dropped"))
        }
        Some(Outcome::Row { version, .. }) => {
            let seen = version.as_ref().map_or(Hlc::MIN, |version| version.ts);
            let mut older = end.history.operations.iter().filter(|write| is_older(end, operation, write));
            let missed = older.find_map(|write| own_write(truth, operation, write, key, seen));
            missed.map_or(Ok(()), |write| Err(format!("{operation:?} misses {write:?}")))
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether a write went to the tablet that was read, or to one that it was made of.
fn is_older(end: &End<'_>, read: &Operation, write: &Operation) -> bool {
    end.oracle.is_of(read.tablet, write.tablet)
}

/// The write that a session remembers, and what became of its keys.
fn written<'a>(
    end: &'a End<'_>,
    read: &Operation,
    session: &Session,
) -> Option<(&'a Truth<'a>, &'a Operation)> {
    let is_it = |write: &&Operation| {
        let told = |committed: &Committed| (committed.pos, committed.ts) == (session.pos, session.ts);
        write.client == read.client
            && write.tablet == session.tablet
            && matches!(write.outcome(), Some(Outcome::Committed(committed)) if told(committed))
    };
    let write = end.history.operations.iter().find(is_it)?;
    Some((end.home(write)?, write))
}

/// Whether a failover dropped what a session remembers. A position of another history is compared
/// by its time only, and says nothing of that.
fn is_lost(end: &End<'_>, read: &Operation, session: &Session) -> bool {
    let Some((truth, _)) = written(end, read, session) else { return false };
    let is_known = end.oracle.share_history(read.tablet, session.tablet)
        && !end.oracle.is_inherited(session.tablet, session.pos);
    is_known && truth.fate.trust == Trust::Copies && !truth.story.contains(truth.fate.end, session.pos)
}

/// A write of the same client that the read should have seen and did not.
fn own_write<'a>(
    truth: &Truth<'_>,
    read: &Operation,
    write: &'a Operation,
    key: &bytes::Bytes,
    seen: Hlc,
) -> Option<&'a Operation> {
    let Some((ended_us, Outcome::Committed(committed))) = &write.ended else { return None };
    let before = write.client == read.client && *ended_us < read.invoked_us;
    let Asked::Write { token, .. } = &write.asked else { return None };
    let entry = truth.story.write(committed.pos, *token).filter(|_| before)?;
    let put = entry.changes().iter().any(|change| super::key_of(change) == Some(key));
    // What a failover dropped later may have been gone already when it was read.
    let stands = truth.stands(committed.pos) && truth.fate.trust == Trust::Copies;
    (put && stands && seen < committed.ts).then_some(write)
}
