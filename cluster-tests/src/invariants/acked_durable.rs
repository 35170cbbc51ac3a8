//! An acknowledgement is true when it is given: so many copies had the write durable then, as
//! its level says (m2, m3, m8, m33), and those that an election asks count among them.

use super::{Invariant, Observation};
use crate::oracle::Oracle;
use ebla_kernel::ids::{Epoch, TabletId};
use ebla_kernel::op::{AckLevel, Committed};
use std::collections::BTreeMap;

/// Who is in sync, by the metadata.
#[derive(Debug, Default)]
pub struct AckedDurable {
    in_sync: BTreeMap<TabletId, (Epoch, Vec<usize>)>,
}

impl Invariant for AckedDurable {
    fn name(&self) -> &'static str {
        "an acknowledgement is true when it is given"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::Metadata(state) => {
                for tablet in state.tablets() {
                    let members = super::servers_in_sync(state, tablet);
                    self.in_sync.insert(tablet.id, (tablet.epoch, members));
                }
                Ok(())
            }
            Observation::Acked { tablet, server, epoch, committed } => {
                self.acked(oracle, *tablet, *server, *epoch, committed)
            }
            Observation::Appended { .. }
            | Observation::Durable { .. }
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
        }
    }
}

impl AckedDurable {
    fn acked(
        &self,
        oracle: &Oracle,
        tablet: TabletId,
        server: usize,
        epoch: Epoch,
        committed: &Committed,
    ) -> Result<(), String> {
        let story = oracle.story(tablet);
        let pos = committed.pos;
        if !story.has(server, pos) {
            return Err(format!("{tablet}: {committed:?} is not durable on its leader, server {server}"));
        }
        // An entry of an older epoch was decided by Q of this one, not by its level.
        let Some((now, members)) = self.in_sync.get(&tablet).filter(|_| pos.epoch == epoch) else {
            return Ok(());
        };
        let held = story.held_by(pos, members.iter().copied());
        let everywhere = story.held.get(&pos).map_or(0, |mask| mask.count_ones() as usize);
        let (enough, wanted) = match committed.level {
            AckLevel::Leader => (true, 1),
            // A leader that was replaced may learn late of what is true already.
            AckLevel::Copies(n) if *now != epoch => (everywhere >= usize::from(n), usize::from(n)),
            // Q had decided it before a degraded table lost the members that it needs.
            AckLevel::Copies(n) if members.len() < usize::from(n) => {
                (everywhere >= usize::from(n), usize::from(n))
            }
            AckLevel::Copies(n) => (held >= usize::from(n), usize::from(n)),
            AckLevel::InSync => (*now != epoch || held == members.len(), members.len()),
        };
        if enough {
            return Ok(());
        }
        Err(format!("{tablet}: {committed:?} is on {held} of {members:?}, {wanted} are needed"))
    }
}
