//! I8: timestamps rise with positions.

use super::{Invariant, Observation};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TabletId;
use std::collections::BTreeMap;

/// The greatest durable timestamp of every tablet.
#[derive(Debug, Default)]
pub struct TsRises {
    last: BTreeMap<TabletId, Hlc>,
}

impl Invariant for TsRises {
    fn name(&self) -> &'static str {
        "I8 timestamps rise with positions"
    }

    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), String> {
        let Observation::Durable { tablet, entry } = observation else { return Ok(()) };
        match self.last.insert(*tablet, entry.ts) {
            Some(last) if last >= entry.ts => {
                Err(format!("{tablet} {} at {} after {last}", entry.pos, entry.ts))
            }
            Some(_) | None => Ok(()),
        }
    }
}
