//! m5, m32: after a fence was answered, nothing of a lower epoch is appended or becomes
//! durable: everything of it is inside the reported end.

use super::{Invariant, Observation};
use ebla_kernel::entry::Entry;
use ebla_kernel::ids::{Epoch, TabletId};
use std::collections::BTreeMap;

/// The highest fence that each tablet answered.
#[derive(Debug, Default)]
pub struct FenceIsFinal {
    answered: BTreeMap<TabletId, Epoch>,
}

impl Invariant for FenceIsFinal {
    fn name(&self) -> &'static str {
        "m32 a fence answer is final"
    }

    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::FenceAnswered { tablet, answer } => {
                let answered = self.answered.entry(*tablet).or_default();
                *answered = answer.epoch.max(*answered);
                Ok(())
            }
            Observation::Appended { tablet, entry } | Observation::Durable { tablet, entry } => {
                self.judge(*tablet, entry)
            }
            Observation::Stepped(_) | Observation::Metadata(_) => Ok(()),
        }
    }
}

impl FenceIsFinal {
    fn judge(&self, tablet: TabletId, entry: &Entry) -> Result<(), String> {
        match self.answered.get(&tablet) {
            Some(answered) if entry.pos.epoch < *answered => {
                Err(format!("{tablet} {} comes after the fence of {answered} was answered", entry.pos))
            }
            Some(_) | None => Ok(()),
        }
    }
}
