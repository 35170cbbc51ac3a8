//! I6, I13: a token takes effect at most once, never after its fence; what a client was told
//! is reverted is in no log.

use super::{End, Invariant, Observation};
use crate::oracle::{Asked, Outcome};
use ebla_kernel::entry::Payload;
use ebla_kernel::ids::Pos;
use ebla_kernel::op::Token;
use std::collections::BTreeMap;

/// Where each token was decided.
#[derive(Debug, Default)]
pub struct TokensOnce {
    decided: BTreeMap<Token, Pos>,
}

impl Invariant for TokensOnce {
    fn name(&self) -> &'static str {
        "I6, I13 a token takes effect at most once"
    }

    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), String> {
        let Observation::Durable { entry, .. } = observation else { return Ok(()) };
        let token = match &entry.payload {
            Payload::EpochStart { .. } => None,
            Payload::Write(write) => write.token,
            Payload::TokenFence { token } => Some(*token),
        };
        let Some(token) = token else { return Ok(()) };
        match self.decided.insert(token, entry.pos) {
            Some(before) => Err(format!("token {token} was decided at {before} and again at {}", entry.pos)),
            None => Ok(()),
        }
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let writes = end.oracle.writes();
        for operation in &end.history.operations {
            let Asked::Write { token, .. } = &operation.asked else { continue };
            let never = match operation.outcome() {
                Some(Outcome::Reverted) => true,
                // A copy that is still under way may run later; a single one was refused.
                Some(Outcome::Rejected(_)) => operation.copies == 1,
                Some(
                    Outcome::Committed(_) | Outcome::Unknown | Outcome::TokenTooOld | Outcome::Row { .. },
                )
                | None => false,
            };
            if never && writes.contains_key(token) {
                return Err(format!("{operation:?} is in the log"));
            }
        }
        Ok(())
    }
}
