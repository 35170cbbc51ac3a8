//! I1: an epoch of a tablet belongs to exactly one process of one copy (m7, m36), in the
//! metadata and in the logs.

use super::{Invariant, Observation};
use crate::oracle::Oracle;
use ebla_kernel::entry::Payload;
use ebla_kernel::ids::{Epoch, Incarnation, ReplicaId, TabletId};
use std::collections::BTreeMap;

type Leader = (ReplicaId, Incarnation);

/// Who led which epoch.
#[derive(Debug, Default)]
pub struct OneLeader {
    appointed: BTreeMap<(TabletId, Epoch), Leader>,
    began: BTreeMap<(TabletId, Epoch), Leader>,
}

impl Invariant for OneLeader {
    fn name(&self) -> &'static str {
        "I1 one leader per tablet and epoch"
    }

    fn observe(&mut self, _: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        if let Observation::Metadata(state) = observation {
            for tablet in state.tablets() {
                let Some(leader) = tablet.leader else { continue };
                let key = (tablet.id, tablet.epoch);
                only(&mut self.appointed, key, (leader.replica, leader.incarnation))?;
            }
        }
        if let Observation::Appended { tablet, entry, .. } = observation
            && let Payload::EpochStart { replica, incarnation } = entry.payload
        {
            return self.begin(*tablet, entry.pos.epoch, (replica, incarnation));
        }
        Ok(())
    }
}

impl OneLeader {
    fn begin(&mut self, tablet: TabletId, epoch: Epoch, leader: Leader) -> Result<(), String> {
        let key = (tablet, epoch);
        if self.began.contains_key(&key) {
            return Err(format!("{tablet} {epoch} begins a second time, under {leader:?}"));
        }
        only(&mut self.began, key, leader)?;
        match self.appointed.get(&key) {
            Some(appointed) if *appointed == leader => Ok(()),
            appointed => {
                Err(format!("{tablet} {epoch} begins under {leader:?}, appointed was {appointed:?}"))
            }
        }
    }
}

fn only(
    known: &mut BTreeMap<(TabletId, Epoch), Leader>,
    key: (TabletId, Epoch),
    leader: Leader,
) -> Result<(), String> {
    match known.insert(key, leader) {
        Some(before) if before != leader => {
            Err(format!("{} {} has two leaders: {before:?} and {leader:?}", key.0, key.1))
        }
        Some(_) | None => Ok(()),
    }
}
