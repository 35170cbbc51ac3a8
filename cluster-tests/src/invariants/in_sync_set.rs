//! I10: in-sync copies are copies of the tablet, the leader is one of them, and a strict table
//! never has fewer than min(D, R). Epochs and config versions only rise; an election leaves
//! the in-sync set as it is (m4).

use super::{Invariant, Observation};
use crate::oracle::Oracle;
use ebla_kernel::ids::{ConfigVersion, Epoch, ReplicaId, TabletId};
use ebla_kernel::meta::{Policy, State, Tablet};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
struct Known {
    epoch: Epoch,
    config_version: ConfigVersion,
    in_sync: BTreeSet<ReplicaId>,
}

/// The last record of every tablet.
#[derive(Debug, Default)]
pub struct InSyncSet {
    last: BTreeMap<TabletId, Known>,
}

impl Invariant for InSyncSet {
    fn name(&self) -> &'static str {
        "I10, m4 the in-sync set"
    }

    fn observe(&mut self, _: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        let Observation::Metadata(state) = observation else { return Ok(()) };
        state.tablets().try_for_each(|tablet| self.judge(state, tablet))
    }
}

impl InSyncSet {
    fn judge(&mut self, state: &State, tablet: &Tablet) -> Result<(), String> {
        let (epoch, config_version) = (tablet.epoch, tablet.config_version);
        let known = Known { epoch, config_version, in_sync: tablet.in_sync.clone() };
        let last = self.last.insert(tablet.id, known);
        if last.as_ref().is_some_and(|last| (epoch, config_version) == (last.epoch, last.config_version)) {
            return Ok(());
        }
        let strangers = tablet.in_sync.iter().any(|id| tablet.replica(*id).is_none());
        let leads_alone = tablet.leader.is_some_and(|leader| !tablet.in_sync.contains(&leader.replica));
        if strangers || leads_alone {
            return Err(format!("in-sync copies that are none: {tablet:?}"));
        }
        let spec = state.table(tablet.table).map(|table| &table.spec);
        let floor = spec.map_or(1, |spec| match spec.policy {
            Policy::Strict => spec.min_in_sync.min(spec.replicas),
            Policy::Degraded => 1,
        });
        if tablet.in_sync.len() < usize::from(floor) {
            return Err(format!("fewer than {floor} in-sync copies: {tablet:?}"));
        }
        let Some(last) = last else { return Ok(()) };
        if epoch < last.epoch || config_version < last.config_version {
            return Err(format!("{tablet:?} comes after {last:?}"));
        }
        if epoch != last.epoch && tablet.in_sync != last.in_sync && tablet.recovering {
            return Err(format!("an election edits the in-sync set: {tablet:?} after {last:?}"));
        }
        Ok(())
    }
}
