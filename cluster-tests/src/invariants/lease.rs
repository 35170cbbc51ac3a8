//! I1, the second half: no two leaders of a tablet serve at the same true time. Nobody holds a
//! lease once a higher epoch was appointed (m17 to m22). A degraded election breaks this by
//! its nature, and says so.

use super::{Invariant, Observation};
use crate::oracle::{Oracle, Trust};
use ebla_kernel::ids::{Epoch, TabletId};
use std::collections::BTreeMap;

/// The highest epoch that was given to a leader.
#[derive(Debug, Default)]
pub struct OneLease {
    appointed: BTreeMap<TabletId, Epoch>,
}

impl Invariant for OneLease {
    fn name(&self) -> &'static str {
        "I1 no lease outlives an appointment"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::Metadata(state) => {
                for tablet in state.tablets().filter(|tablet| tablet.leader.is_some()) {
                    self.appointed.insert(tablet.id, tablet.epoch);
                }
                Ok(())
            }
            Observation::LeaseHeld { tablet, server, epoch } => {
                let appointed = self.appointed.get(tablet).copied().unwrap_or_default();
                if appointed > *epoch && oracle.trust(*tablet) == Trust::Copies {
                    return Err(format!(
                        "{tablet}: server {server} holds the lease of {epoch}, but {appointed} is appointed"
                    ));
                }
                Ok(())
            }
            Observation::Appended { .. }
            | Observation::Durable { .. }
            | Observation::Cut { .. }
            | Observation::Wiped { .. }
            | Observation::Applied { .. }
            | Observation::FenceAnswered { .. }
            | Observation::AckSent { .. }
            | Observation::Acked { .. }
            | Observation::SaidReverted { .. }
            | Observation::Opened { .. }
            | Observation::Stepped(_) => Ok(()),
        }
    }
}
