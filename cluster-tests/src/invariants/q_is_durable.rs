//! m2, m3, m13, m33: Q names an entry of the leader's own epoch that enough in-sync copies
//! truly have, with the leader's own or without; no core's durable end is ahead of its disk.

use super::{CoreView, Invariant, Observation};
use crate::oracle::Oracle;
use ebla_kernel::ids::{Epoch, Pos, TabletId};
use ebla_kernel::meta::Policy;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
struct Rules {
    epoch: Epoch,
    in_sync: Vec<usize>,
    min_in_sync: usize,
    policy: Option<Policy>,
}

/// Who is in sync, and the last Q of every leader.
#[derive(Debug, Default)]
pub struct QIsDurable {
    rules: BTreeMap<TabletId, Rules>,
    seen: BTreeMap<(TabletId, usize), Pos>,
}

impl Invariant for QIsDurable {
    fn name(&self) -> &'static str {
        "m2, m3, m13, m33 Q is durable on enough copies"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        if let Observation::Metadata(state) = observation {
            for tablet in state.tablets() {
                let spec = state.table(tablet.table).map(|table| &table.spec);
                let rules = Rules {
                    epoch: tablet.epoch,
                    in_sync: super::servers_in_sync(state, tablet),
                    min_in_sync: spec.map_or(1, |spec| usize::from(spec.min_in_sync)),
                    policy: spec.map(|spec| spec.policy),
                };
                self.rules.insert(tablet.id, rules);
            }
        }
        let Observation::Stepped(view) = observation else { return Ok(()) };
        if view.durable > view.on_disk || view.applied > view.on_disk.seq {
            return Err(format!("{} is ahead of its disk: {view:?}", view.tablet));
        }
        self.judge(oracle, view)
    }
}

impl QIsDurable {
    fn judge(&mut self, oracle: &Oracle, view: &CoreView) -> Result<(), String> {
        let Some(q) = view.q else {
            // Alone in the in-sync set of a degraded table a leader has no Q and serves.
            let is_strict =
                self.rules.get(&view.tablet).is_some_and(|rules| rules.policy == Some(Policy::Strict));
            return match view.serving {
                Some(_) if is_strict => Err(format!("{} serves without Q: {view:?}", view.tablet)),
                Some(_) | None => Ok(()),
            };
        };
        if self.seen.insert((view.tablet, view.server), q) == Some(q) {
            return Ok(());
        }
        if view.serving.is_some_and(|epoch| epoch != q.epoch) {
            return Err(format!("{} counts what is not its own: {view:?}", view.tablet));
        }
        let story = oracle.story(view.tablet);
        let Some(rules) = self.rules.get(&view.tablet) else { return Ok(()) };
        let copies = match rules.epoch == q.epoch {
            true => story.held_by(q, rules.in_sync.iter().copied()),
            // Replaced already: what it learns late was true while it led.
            false => story.held.get(&q).map_or(0, |mask| mask.count_ones() as usize),
        };
        if copies < rules.min_in_sync || story.starts.get(&q.epoch).is_none_or(|start| q <= *start) {
            return Err(format!("{} {q} is on {copies} copies of {rules:?}: {view:?}", view.tablet));
        }
        Ok(())
    }
}
