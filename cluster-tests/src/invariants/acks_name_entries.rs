//! m35, 2.1: whatever a copy acknowledges is truly there: durable in its log, and, where it was
//! built out of another's rows, only after the record that says it is whole.

use super::{Invariant, Observation};
use crate::oracle::Oracle;
use ebla_kernel::ids::Pos;

/// Nothing to remember.
#[derive(Debug)]
pub struct AcksNameEntries;

impl Invariant for AcksNameEntries {
    fn name(&self) -> &'static str {
        "m35 an acknowledgement names what is there"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        let Observation::AckSent { tablet, server, epoch, pos } = observation else { return Ok(()) };
        if *pos == Pos::ZERO || oracle.story(*tablet).has(*server, *pos) {
            return Ok(());
        }
        Err(format!("{tablet} server {server} acknowledges {pos} in {epoch}, which it does not have"))
    }
}
