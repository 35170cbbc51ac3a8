//! I15, m16, m23: a copy comes to life only where the metadata has it, on data that is not lost,
//! and with a promise that no older leader can get under.

use super::{Invariant, Observation, Reshaped};
use crate::oracle::Oracle;
use ebla_kernel::ids::{Epoch, Generation, ReplicaId, TabletId};
use std::collections::BTreeMap;

/// Where copies may live.
#[derive(Debug, Default)]
pub struct KnownCopies {
    copies: BTreeMap<(TabletId, ReplicaId), Known>,
}

/// A copy by the metadata.
#[derive(Clone, Copy, Debug)]
struct Known {
    server: usize,
    generation: Generation,
    is_lost: bool,
    is_in_sync: bool,
    /// The tablet's epoch when the copy was first named.
    since: Epoch,
}

impl Invariant for KnownCopies {
    fn name(&self) -> &'static str {
        "I15, m16 no message creates a copy"
    }

    fn observe(&mut self, _: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::Metadata(state) => {
                for tablet in state.tablets() {
                    for replica in &tablet.replicas {
                        let Some(server) = super::server_index(state, replica.server) else { continue };
                        let (generation, is_lost) = (replica.generation, replica.lost);
                        let is_in_sync = tablet.in_sync.contains(&replica.id);
                        let key = (tablet.id, replica.id);
                        let since = self.copies.get(&key).map_or(tablet.epoch, |known| known.since);
                        self.copies.insert(key, Known { server, generation, is_lost, is_in_sync, since });
                    }
                }
                Ok(())
            }
            Observation::Opened { tablet, server, replica, generation, promised } => {
                match self.copies.get(&(*tablet, *replica)) {
                    Some(known)
                        if known.server == *server
                            && known.generation == *generation
                            && !known.is_lost
                            && *promised >= known.since =>
                    {
                        Ok(())
                    }
                    known => Err(format!(
                        "{tablet} {replica} opens on server {server} with {generation:?}, {promised}; known is {known:?}"
                    )),
                }
            }
            // Whoever is counted on has its data, or has lost it with its disk.
            Observation::Reshaped(Reshaped::Begins { tablet, server, replica }) => {
                match self.copies.get(&(*tablet, *replica)) {
                    Some(known) if known.server == *server && !known.is_in_sync => Ok(()),
                    known => {
                        Err(format!("{tablet} {replica} begins anew on server {server}; known is {known:?}"))
                    }
                }
            }
            Observation::Reshaped(
                Reshaped::Built { .. } | Reshaped::Switched { .. } | Reshaped::Removed { .. },
            ) => Ok(()),
            Observation::Appended { .. }
            | Observation::Durable { .. }
            | Observation::Cut { .. }
            | Observation::Wiped { .. }
            | Observation::Applied { .. }
            | Observation::Leases(_)
            | Observation::FenceAnswered { .. }
            | Observation::AckSent { .. }
            | Observation::Acked { .. }
            | Observation::SaidReverted { .. }
            | Observation::LeaseHeld { .. }
            | Observation::Stepped(_) => Ok(()),
        }
    }
}
