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
    /// The first epoch of each tablet, and the server that led it.
    first: BTreeMap<TabletId, (Epoch, usize)>,
}

impl Invariant for OneLease {
    fn name(&self) -> &'static str {
        "I1 no lease outlives an appointment"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::Metadata(state) => {
                for tablet in state.tablets() {
                    let Some(leader) = tablet.leader else { continue };
                    let Some(server) = super::server_index(state, leader.server) else { continue };
                    self.appointed.insert(tablet.id, tablet.epoch);
                    self.first.entry(tablet.id).or_insert((tablet.epoch, server));
                }
                Ok(())
            }
            Observation::LeaseHeld { tablet, server, epoch } => self.held(oracle, *tablet, *server, *epoch),
            Observation::Leases(leases) => one_for_each_key(oracle, leases),
            Observation::Appended { .. }
            | Observation::Durable { .. }
            | Observation::Cut { .. }
            | Observation::Wiped { .. }
            | Observation::Applied { .. }
            | Observation::Reshaped(_)
            | Observation::FenceAnswered { .. }
            | Observation::AckSent { .. }
            | Observation::Acked { .. }
            | Observation::SaidReverted { .. }
            | Observation::Opened { .. }
            | Observation::Stepped(_) => Ok(()),
        }
    }
}

impl OneLease {
    fn held(&self, oracle: &Oracle, tablet: TabletId, server: usize, epoch: Epoch) -> Result<(), String> {
        if oracle.trust(tablet) < Trust::Copies {
            return Ok(());
        }
        let Some(appointed) = self.appointed.get(&tablet).copied() else {
            return Err(format!("{tablet}: server {server} serves what the metadata does not know"));
        };
        if appointed > epoch {
            return Err(format!(
                "{tablet}: server {server} holds the lease of {epoch}, but {appointed} is appointed"
            ));
        }
        // The process that led when others took the tablet's place leads those; it may not know yet.
        let later = oracle.descendants(tablet).find(|child| {
            let appointed = self.appointed.get(child).copied().unwrap_or_default();
            self.first.get(child).is_some_and(|(first, at)| appointed > *first || *at != server)
        });
        match later {
            Some(child) => Err(format!(
                "{tablet}: server {server} holds the lease of {epoch}, but {child} has another leader"
            )),
            None => Ok(()),
        }
    }
}

/// I9: a key is served by one server, for one tablet.
fn one_for_each_key(oracle: &Oracle, leases: &[(usize, TabletId, Epoch)]) -> Result<(), String> {
    for (at, (server, tablet, epoch)) in leases.iter().enumerate() {
        for (other, other_tablet, other_epoch) in &leases[at + 1..] {
            let (Some(range), Some(other_range)) =
                (oracle.ranges.get(tablet), oracle.ranges.get(other_tablet))
            else {
                continue;
            };
            let is_owed = oracle.trust(*tablet).min(oracle.trust(*other_tablet)) == Trust::Copies;
            if range.overlaps(other_range) && is_owed {
                return Err(format!(
                    "server {server} serves {tablet} {range} in {epoch}, server {other} {other_tablet} {other_range} in {other_epoch}"
                ));
            }
        }
    }
    Ok(())
}
