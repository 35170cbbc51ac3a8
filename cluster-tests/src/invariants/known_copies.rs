//! I15, m16, m23: a copy comes to life only where the metadata has it, on data that is not lost,
//! and with a promise that no older leader can get under.

use super::{Invariant, Observation};
use crate::oracle::Oracle;
use ebla_kernel::ids::{Generation, ReplicaId, TabletId};
use std::collections::BTreeMap;

/// Where copies may live.
#[derive(Debug, Default)]
pub struct KnownCopies {
    copies: BTreeMap<(TabletId, ReplicaId), (usize, Generation, bool)>,
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
                        let known = (server, replica.generation, replica.lost);
                        self.copies.insert((tablet.id, replica.id), known);
                    }
                }
                Ok(())
            }
            Observation::Opened { tablet, server, replica, generation, .. } => {
                match self.copies.get(&(*tablet, *replica)) {
                    Some((at, has, false)) if at == server && has == generation => Ok(()),
                    known => Err(format!(
                        "{tablet} {replica} opens on server {server} with {generation:?}; known is {known:?}"
                    )),
                }
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
            | Observation::LeaseHeld { .. }
            | Observation::Stepped(_) => Ok(()),
        }
    }
}
