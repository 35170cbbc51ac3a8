//! I3: promised epoch, Q, applied position and the durable end never go back within a run;
//! promises, and the durable end unless it was cut on purpose, not even over a restart.

use super::{CoreView, Invariant, Observation, Reshaped};
use crate::oracle::Oracle;
use ebla_kernel::ids::{Epoch, TabletId};
use std::collections::BTreeMap;

/// The last view of every core.
#[derive(Debug, Default)]
pub struct Monotone {
    last: BTreeMap<(TabletId, usize), CoreView>,
    answered: BTreeMap<(TabletId, usize), Epoch>,
}

impl Invariant for Monotone {
    fn name(&self) -> &'static str {
        "I3 nothing goes back"
    }

    fn observe(&mut self, _: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::FenceAnswered { tablet, server, answer } => {
                let answered = self.answered.entry((*tablet, *server)).or_default();
                *answered = answer.epoch.max(*answered);
                Ok(())
            }
            // Whoever acknowledges an append of an epoch has promised that epoch (m34).
            Observation::AckSent { tablet, server, epoch, .. } => {
                let answered = self.answered.entry((*tablet, *server)).or_default();
                *answered = (*epoch).max(*answered);
                Ok(())
            }
            Observation::Stepped(view) => self.stepped(view),
            Observation::Cut { tablet, server, .. } => {
                self.last.remove(&(*tablet, *server));
                Ok(())
            }
            Observation::Wiped { server } => {
                self.last.retain(|(_, copy), _| copy != server);
                self.answered.retain(|(_, copy), _| copy != server);
                Ok(())
            }
            Observation::Reshaped(reshaped) => self.reshaped(reshaped),
            Observation::Appended { .. }
            | Observation::Durable { .. }
            | Observation::Leases(_)
            | Observation::Applied { .. }
            | Observation::Acked { .. }
            | Observation::SaidReverted { .. }
            | Observation::LeaseHeld { .. }
            | Observation::Opened { .. }
            | Observation::Metadata(_) => Ok(()),
        }
    }
}

impl Monotone {
    /// What takes a tablet's place goes on from where that was: all of it was in the rows.
    fn reshaped(&mut self, reshaped: &Reshaped<'_>) -> Result<(), String> {
        match reshaped {
            Reshaped::Switched { parents, server, .. } => {
                for (parent, seal) in *parents {
                    let last = self.last.remove(&(*parent, *server));
                    if let Some(last) = last.filter(|last| last.applied < seal.pos.seq) {
                        return Err(format!("others take over at {} from {last:?}", seal.pos));
                    }
                }
                Ok(())
            }
            Reshaped::Begins { tablet, server, .. } | Reshaped::Removed { tablet, server } => {
                self.last.remove(&(*tablet, *server));
                self.answered.remove(&(*tablet, *server));
                Ok(())
            }
            Reshaped::Built { tablet, server, .. } => {
                self.last.remove(&(*tablet, *server));
                Ok(())
            }
        }
    }

    fn stepped(&mut self, view: &CoreView) -> Result<(), String> {
        let copy = (view.tablet, view.server);
        if self.answered.get(&copy).is_some_and(|answered| view.promised < *answered) {
            return Err(format!("{copy:?} answered in an epoch above its promise {}", view.promised));
        }
        let Some(last) = self.last.insert(copy, *view) else { return Ok(()) };
        if view.on_disk < last.on_disk {
            return Err(format!("{copy:?} lost durable entries: {view:?} after {last:?}"));
        }
        if view.incarnation != last.incarnation {
            return Ok(());
        }
        let same_epoch =
            |(q, last): (ebla_kernel::ids::Pos, ebla_kernel::ids::Pos)| q.epoch == last.epoch && q < last;
        let q_back = view.q.zip(last.q).is_some_and(same_epoch);
        let back = view.durable < last.durable || view.applied < last.applied;
        if q_back || back || view.promised < last.promised {
            return Err(format!("{copy:?} went back: {view:?} after {last:?}"));
        }
        Ok(())
    }
}
