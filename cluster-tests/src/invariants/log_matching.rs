//! I2: the same position means the same prefix, on every copy and for ever; a copy's durable
//! log grows at its end only.

use super::{Invariant, Observation, Reshaped};
use crate::oracle::Oracle;
use ebla_kernel::entry::LogEnd;
use ebla_kernel::ids::TabletId;
use std::collections::BTreeMap;

/// The durable end of every copy's log.
#[derive(Debug, Default)]
pub struct LogMatching {
    ends: BTreeMap<(TabletId, usize), LogEnd>,
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "I2 same position, same prefix"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::Durable { tablet, server, entry, .. } => {
                let end = self.ends.entry((*tablet, *server)).or_default();
                if !end.is_followed_by(entry) {
                    return Err(format!(
                        "{tablet} server {server}: {} became durable after {}",
                        entry.pos, end.pos
                    ));
                }
                *end = entry.end();
                match oracle.story(*tablet).entries.get(&entry.pos) {
                    Some(known) if known.hash != entry.hash => {
                        Err(format!("{tablet} {} is two entries: {known:?} and {entry:?}", entry.pos))
                    }
                    Some(_) | None => Ok(()),
                }
            }
            Observation::Cut { tablet, server, keep, .. } => {
                self.ends.insert((*tablet, *server), *keep);
                Ok(())
            }
            Observation::Wiped { server } => {
                self.ends.retain(|(_, copy), _| copy != server);
                Ok(())
            }
            Observation::Reshaped(reshaped) => {
                self.reshaped(reshaped);
                Ok(())
            }
            Observation::Appended { .. }
            | Observation::Applied { .. }
            | Observation::Leases(_)
            | Observation::FenceAnswered { .. }
            | Observation::AckSent { .. }
            | Observation::Acked { .. }
            | Observation::SaidReverted { .. }
            | Observation::LeaseHeld { .. }
            | Observation::Opened { .. }
            | Observation::Stepped(_)
            | Observation::Metadata(_) => Ok(()),
        }
    }
}

impl LogMatching {
    fn reshaped(&mut self, reshaped: &Reshaped<'_>) {
        match reshaped {
            Reshaped::Built { tablet, server, end } => {
                self.ends.insert((*tablet, *server), *end);
            }
            Reshaped::Switched { parents, server, children } => {
                let ends: Vec<LogEnd> = parents.iter().map(|(_, seal)| *seal).collect();
                let base = LogEnd::joined(&ends);
                self.ends.extend(children.iter().map(|child| ((*child, *server), base)));
            }
            Reshaped::Begins { tablet, server, .. } | Reshaped::Removed { tablet, server } => {
                self.ends.remove(&(*tablet, *server));
            }
        }
    }
}
