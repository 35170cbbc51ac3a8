//! I3: promised epoch, durable end, applied position and Q never go back; promises and
//! durable ends not even over a restart.

use super::{CoreView, Invariant, Observation};
use ebla_kernel::ids::{Epoch, TabletId};
use std::collections::BTreeMap;

/// The last view of every core.
#[derive(Debug, Default)]
pub struct Monotone {
    last: BTreeMap<TabletId, CoreView>,
    answered: BTreeMap<TabletId, Epoch>,
}

impl Invariant for Monotone {
    fn name(&self) -> &'static str {
        "I3 nothing goes back"
    }

    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::FenceAnswered { tablet, answer } => {
                let answered = self.answered.entry(*tablet).or_default();
                *answered = answer.epoch.max(*answered);
                Ok(())
            }
            Observation::Stepped(view) => self.stepped(view),
            Observation::Appended { .. } | Observation::Durable { .. } | Observation::Metadata(_) => Ok(()),
        }
    }
}

impl Monotone {
    fn stepped(&mut self, view: &CoreView) -> Result<(), String> {
        let tablet = view.tablet;
        if self.answered.get(&tablet).is_some_and(|answered| view.promised < *answered) {
            return Err(format!("{tablet} answered a fence above its promise {}", view.promised));
        }
        let Some(last) = self.last.insert(tablet, *view) else { return Ok(()) };
        if view.durable < last.durable || view.on_disk < last.on_disk {
            return Err(format!("{tablet} lost durable entries: {view:?} after {last:?}"));
        }
        if view.incarnation != last.incarnation {
            return Ok(());
        }
        let q_back = view.q.zip(last.q).is_some_and(|(q, last)| q < last);
        if q_back || view.promised < last.promised || view.applied < last.applied {
            return Err(format!("{tablet} went back: {view:?} after {last:?}"));
        }
        Ok(())
    }
}
