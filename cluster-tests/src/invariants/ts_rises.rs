//! I8: timestamps rise with positions, over failovers too.

use super::{Invariant, Observation};
use crate::oracle::Oracle;

/// Nothing to remember.
#[derive(Debug)]
pub struct TsRises;

impl Invariant for TsRises {
    fn name(&self) -> &'static str {
        "I8 timestamps rise with positions"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        let Observation::Durable { tablet, entry, .. } = observation else { return Ok(()) };
        match oracle.story(*tablet).entries.get(&entry.prev) {
            Some(before) if before.ts >= entry.ts => {
                Err(format!("{tablet} {} at {} after {}", entry.pos, entry.ts, before.ts))
            }
            Some(_) | None => Ok(()),
        }
    }
}
