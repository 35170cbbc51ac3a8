//! I4, at every step: whoever begins an epoch has everything that was acknowledged above level
//! `leader` before, and nothing is acknowledged later that an epoch has begun without. The same
//! holds for whatever a follower has applied, because that was safe.

use super::{Invariant, Observation};
use crate::oracle::{Oracle, Trust};
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::ids::{Epoch, Pos, TabletId};
use ebla_kernel::op::AckLevel;
use std::collections::BTreeMap;

/// What was acknowledged, and which epochs began.
#[derive(Debug, Default)]
pub struct EpochHasAcks {
    acked: BTreeMap<TabletId, BTreeMap<Pos, AckLevel>>,
    began: BTreeMap<TabletId, Vec<Epoch>>,
    /// How often each tablet has begun anew.
    losses: BTreeMap<TabletId, u64>,
}

impl Invariant for EpochHasAcks {
    fn name(&self) -> &'static str {
        "I4 an epoch begins with every acknowledged write"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::Appended { tablet, entry, .. } => self.begins(oracle, *tablet, entry),
            Observation::Acked { tablet, epoch, committed, .. } => {
                self.acked(oracle, (*tablet, *epoch), committed.pos, committed.level)
            }
            Observation::Durable { .. }
            | Observation::Cut { .. }
            | Observation::Wiped { .. }
            | Observation::Applied { .. }
            | Observation::Reshaped(_)
            | Observation::Leases(_)
            | Observation::FenceAnswered { .. }
            | Observation::AckSent { .. }
            | Observation::SaidReverted { .. }
            | Observation::LeaseHeld { .. }
            | Observation::Opened { .. }
            | Observation::Stepped(_) => Ok(()),
            Observation::Metadata(state) => {
                state.tablets().for_each(|tablet| self.forget(oracle, tablet.id));
                Ok(())
            }
        }
    }
}

impl EpochHasAcks {
    /// What was acknowledged before every copy was lost is not owed any more.
    fn forget(&mut self, oracle: &Oracle, tablet: TabletId) {
        let losses = oracle.losses(tablet);
        if losses > 0 && self.losses.insert(tablet, losses) != Some(losses) {
            self.acked.remove(&tablet);
            self.began.remove(&tablet);
        }
    }

    fn begins(&mut self, oracle: &Oracle, tablet: TabletId, entry: &Entry) -> Result<(), String> {
        let Payload::EpochStart { .. } = entry.payload else { return Ok(()) };
        self.began.entry(tablet).or_default().push(entry.pos.epoch);
        let trust = oracle.trust(tablet);
        let of = |id: TabletId| self.acked.get(&id).into_iter().flatten().map(move |acked| (id, acked));
        for (older, (pos, level)) in oracle.family(tablet).into_iter().flat_map(of) {
            let is_lost = || !oracle.goes_on_from((tablet, entry.prev), (older, *pos));
            if is_owed(*level, trust) && is_lost() {
                return Err(format!(
                    "{tablet} {} begins after {} without {pos}, acknowledged at {level}",
                    entry.pos, entry.prev
                ));
            }
        }
        Ok(())
    }

    /// An epoch that began before the one that acknowledges may have lacked it, and was lost.
    fn acked(
        &mut self,
        oracle: &Oracle,
        (tablet, by): (TabletId, Epoch),
        pos: Pos,
        level: AckLevel,
    ) -> Result<(), String> {
        self.acked.entry(tablet).or_default().insert(pos, level);
        if !is_owed(level, oracle.trust(tablet)) {
            return Ok(());
        }
        let lacks = |id: TabletId, epoch: Epoch| {
            let before = oracle.story(id).starts.get(&epoch).copied().unwrap_or(Pos::ZERO);
            epoch > by && !oracle.goes_on_from((id, before), (tablet, pos))
        };
        let began = |id: TabletId| self.began.get(&id).into_iter().flatten().map(move |epoch| (id, epoch));
        let heirs = oracle.descendants(tablet).filter(|heir| oracle.losses(*heir) == 0);
        let mut later = std::iter::once(tablet).chain(heirs).flat_map(began);
        match later.find(|(id, epoch)| lacks(*id, **epoch)) {
            Some((_, epoch)) => {
                Err(format!("{tablet} {pos} is acknowledged at {level}, and {epoch} began without it"))
            }
            None => Ok(()),
        }
    }
}

/// Whether a tablet still owes what it acknowledged at `level`.
pub(super) fn is_owed(level: AckLevel, trust: Trust) -> bool {
    match level {
        AckLevel::Leader => false,
        AckLevel::Copies(_) => trust == Trust::Copies,
        AckLevel::InSync => trust >= Trust::InSync,
    }
}
