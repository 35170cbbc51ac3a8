//! m5, m32: after a copy answered a fence, nothing from a leader of a lower epoch is appended,
//! becomes durable or is acknowledged there: everything of it is inside the reported end. An
//! acknowledgement is such an answer too (m34).

use super::{Invariant, Observation, Reshaped};
use crate::oracle::Oracle;
use ebla_kernel::ids::{Epoch, Pos, TabletId};
use std::collections::BTreeMap;

/// The highest epoch in which each copy answered a fence or acknowledged something.
#[derive(Debug, Default)]
pub struct FenceIsFinal {
    answered: BTreeMap<(TabletId, usize), Epoch>,
}

impl Invariant for FenceIsFinal {
    fn name(&self) -> &'static str {
        "m5, m32, m34 an answer is final"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::FenceAnswered { tablet, server, answer } => {
                let answered = self.answered.entry((*tablet, *server)).or_default();
                *answered = answer.epoch.max(*answered);
                let end = oracle.story(*tablet).end_of(*server);
                if end != answer.end.pos {
                    return Err(format!("{tablet} server {server} ends at {end}, but said {answer:?}"));
                }
                Ok(())
            }
            Observation::Appended { tablet, server, entry } => {
                self.judge((*tablet, *server), entry.pos.epoch, entry.pos)
            }
            Observation::Durable { tablet, server, by, entry } => {
                self.judge((*tablet, *server), *by, entry.pos)
            }
            Observation::AckSent { tablet, server, epoch, pos } => {
                self.judge((*tablet, *server), *epoch, *pos)?;
                let answered = self.answered.entry((*tablet, *server)).or_default();
                *answered = (*epoch).max(*answered);
                Ok(())
            }
            Observation::Wiped { server } => {
                self.answered.retain(|(_, copy), _| copy != server);
                Ok(())
            }
            Observation::Reshaped(
                Reshaped::Begins { tablet, server, .. } | Reshaped::Removed { tablet, server },
            ) => {
                self.answered.remove(&(*tablet, *server));
                Ok(())
            }
            Observation::Reshaped(Reshaped::Built { .. } | Reshaped::Switched { .. })
            | Observation::Leases(_)
            | Observation::Cut { .. }
            | Observation::Applied { .. }
            | Observation::Acked { .. }
            | Observation::SaidReverted { .. }
            | Observation::LeaseHeld { .. }
            | Observation::Opened { .. }
            | Observation::Stepped(_)
            | Observation::Metadata(_) => Ok(()),
        }
    }
}

impl FenceIsFinal {
    fn judge(&self, copy: (TabletId, usize), by: Epoch, pos: Pos) -> Result<(), String> {
        match self.answered.get(&copy) {
            Some(answered) if by < *answered => {
                let (tablet, server) = copy;
                Err(format!("{tablet} server {server}: {pos} of {by} comes after an answer in {answered}"))
            }
            Some(_) | None => Ok(()),
        }
    }
}
