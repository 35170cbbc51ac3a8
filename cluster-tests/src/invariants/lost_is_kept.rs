//! Whatever a copy cuts off its log is in the loss ledger of its server before: nothing that
//! was once written disappears without a trace. What is below a published Q is never cut.

use super::{Invariant, Observation};
use crate::oracle::Oracle;
use ebla_kernel::entry::Payload;

/// Nothing to remember.
#[derive(Debug)]
pub struct LostIsKept;

impl Invariant for LostIsKept {
    fn name(&self) -> &'static str {
        "what is dropped is in the loss ledger"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        let Observation::Cut { tablet, server, keep, kept } = observation else { return Ok(()) };
        let story = oracle.story(*tablet);
        let dropped = story.copies.get(server).into_iter().flatten().filter(|pos| pos.seq > keep.pos.seq);
        for pos in dropped {
            let is_write =
                story.entries.get(pos).is_some_and(|entry| matches!(entry.payload, Payload::Write(_)));
            if is_write && !kept.contains(pos) {
                return Err(format!("{tablet} server {server} drops {pos}, the ledger has {kept:?}"));
            }
        }
        Ok(())
    }
}
