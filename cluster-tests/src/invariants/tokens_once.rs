//! I6, I13: a token is decided at most once in a lineage, and never after its fence or its
//! revert; what a client was told is reverted does not stand.

use super::{End, Invariant, Observation};
use crate::oracle::{Asked, Operation, Oracle, Outcome, Trust};
use ebla_kernel::entry::Payload;
use ebla_kernel::ids::{Pos, TabletId};
use ebla_kernel::op::Token;
use std::collections::{BTreeMap, BTreeSet};

/// Where each token was decided.
#[derive(Debug, Default)]
pub struct TokensOnce {
    decided: BTreeMap<Token, BTreeSet<(TabletId, Pos)>>,
}

impl Invariant for TokensOnce {
    fn name(&self) -> &'static str {
        "I6, I13 a token takes effect at most once"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        let Observation::Durable { tablet, entry, .. } = observation else { return Ok(()) };
        let token = match &entry.payload {
            Payload::Write(write) => write.token,
            Payload::TokenFence { token } => Some(*token),
            Payload::EpochStart { .. }
            | Payload::Revert { .. }
            | Payload::Close
            | Payload::Seal(_)
            | Payload::Unseal { .. } => None,
        };
        let Some(token) = token else { return Ok(()) };
        let decided = self.decided.entry(token).or_default();
        if !decided.insert((*tablet, entry.pos)) {
            return Ok(()); // on another copy
        }
        let again = |(at, pos): &&(TabletId, Pos)| {
            let is_same = *pos == entry.pos && oracle.share_history(*at, *tablet);
            match (oracle.is_of(*tablet, *at), oracle.is_of(*at, *tablet)) {
                (true, _) => !is_same && oracle.goes_on_from((*tablet, entry.prev), (*at, *pos)),
                // A copy of the parent that is late with what the child has, or has not.
                (false, true) => !is_same && oracle.goes_on_from((*at, *pos), (*tablet, entry.pos)),
                // What was decided before every copy was lost is no part of what came after. A token of a
                // client whose clock is ahead looks as if it was issued then; others are refused.
                (false, false) => !oracle.family(*tablet).iter().any(|older| {
                    oracle.losses(*older) > 0 && token.issued_ms > oracle.history(*older).began_ts.ms()
                }),
            }
        };
        match decided.iter().find(again) {
            Some((_, before)) => {
                Err(format!("token {token} was decided at {before} and again at {}", entry.pos))
            }
            None => Ok(()),
        }
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let writes = end.oracle.writes();
        for operation in &end.history.operations {
            let Asked::Write { token, .. } = &operation.asked else { continue };
            if !never(operation) {
                continue;
            }
            let truth = end.home(operation).ok_or("a write to no tablet")?;
            let stands = |(tablet, entry): &&(TabletId, &ebla_kernel::entry::Entry)| {
                truth.was_in(*tablet) && truth.stands(entry.pos)
            };
            if truth.fate.trust == Trust::Copies
                && let Some((_, entry)) = writes.get(token).into_iter().flatten().find(stands)
            {
                return Err(format!("{operation:?} stands at {}", entry.pos));
            }
        }
        Ok(())
    }
}

/// Whether the client was told that its write will never be.
fn never(operation: &Operation) -> bool {
    match operation.outcome() {
        Some(Outcome::Reverted) => true,
        // A copy that is still under way may run later; a single one was refused.
        Some(Outcome::Rejected(_)) => operation.copies == 1,
        Some(
            Outcome::Committed(_)
            | Outcome::Unknown
            | Outcome::TokenTooOld
            | Outcome::WriteLost
            | Outcome::Row { .. },
        )
        | None => false,
    }
}
