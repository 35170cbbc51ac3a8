//! m13, m33, m38: Q names an entry of the served epoch, and neither Q nor the rows nor the
//! core's own durable end is ahead of the disk.

use super::{Invariant, Observation};
use ebla_kernel::ids::Pos;

/// Nothing to remember.
#[derive(Debug)]
pub struct QIsDurable;

impl Invariant for QIsDurable {
    fn name(&self) -> &'static str {
        "m13, m33, m38 nothing counts before it is durable"
    }

    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), String> {
        let Observation::Stepped(view) = observation else { return Ok(()) };
        let disk = view.on_disk;
        if view.durable > disk || view.q.is_some_and(|q: Pos| q > disk) || view.applied > disk.seq {
            return Err(format!("{} is ahead of its disk: {view:?}", view.tablet));
        }
        let Some(q) = view.q else {
            return match view.serving {
                Some(_) => Err(format!("{} serves without Q: {view:?}", view.tablet)),
                None => Ok(()),
            };
        };
        if view.serving.is_some_and(|epoch| epoch != q.epoch) || q.epoch < view.promised {
            return Err(format!("{} counts entries of an older epoch: {view:?}", view.tablet));
        }
        Ok(())
    }
}
