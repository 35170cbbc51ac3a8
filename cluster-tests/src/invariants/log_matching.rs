//! I2: the same position means the same prefix, and what is durable is never replaced.

use super::{Invariant, Observation};
use ebla_kernel::entry::LogEnd;
use ebla_kernel::ids::TabletId;
use std::collections::BTreeMap;

/// The durable end of every log.
#[derive(Debug, Default)]
pub struct LogMatching {
    ends: BTreeMap<TabletId, LogEnd>,
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "I2 same position, same prefix"
    }

    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), String> {
        let Observation::Durable { tablet, entry } = observation else { return Ok(()) };
        let end = self.ends.entry(*tablet).or_default();
        if !end.is_followed_by(entry) {
            return Err(format!("{tablet}: {} became durable after {}", entry.pos, end.pos));
        }
        *end = entry.end();
        Ok(())
    }
}
