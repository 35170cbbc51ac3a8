//! I5: a copy that does not lead puts only what is at or below a published Q into its rows; a
//! leader its own tail too. Nobody applies what is not durable there (m38).

use super::{CoreView, Invariant, Observation};
use crate::oracle::Oracle;
use ebla_kernel::entry::Entry;
use ebla_kernel::ids::{Epoch, Pos, TabletId};
use std::collections::BTreeMap;

/// Who led which epoch, and the highest Q of each.
#[derive(Debug, Default)]
pub struct FollowersWait {
    led: BTreeMap<(TabletId, usize), Epoch>,
    q: BTreeMap<TabletId, Vec<Pos>>,
}

impl Invariant for FollowersWait {
    fn name(&self) -> &'static str {
        "I5, m38 rows wait for Q and for the log"
    }

    fn observe(&mut self, oracle: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        match observation {
            Observation::Metadata(state) => {
                for tablet in state.tablets() {
                    let Some(leader) = tablet.leader else { continue };
                    let Some(server) = super::server_index(state, leader.server) else { continue };
                    self.led.insert((tablet.id, server), tablet.epoch);
                }
                Ok(())
            }
            Observation::Stepped(view) => {
                self.stepped(view);
                Ok(())
            }
            Observation::Applied { tablet, server, entry } => self.applied(oracle, *tablet, *server, entry),
            Observation::Appended { .. }
            | Observation::Durable { .. }
            | Observation::Cut { .. }
            | Observation::Wiped { .. }
            | Observation::FenceAnswered { .. }
            | Observation::Reshaped(_)
            | Observation::Leases(_)
            | Observation::AckSent { .. }
            | Observation::Acked { .. }
            | Observation::SaidReverted { .. }
            | Observation::LeaseHeld { .. }
            | Observation::Opened { .. } => Ok(()),
        }
    }
}

impl FollowersWait {
    /// Remembers the highest Q of every epoch.
    fn stepped(&mut self, view: &CoreView) {
        let Some(q) = view.q else { return };
        let known = self.q.entry(view.tablet).or_default();
        match known.iter_mut().find(|known| known.epoch == q.epoch) {
            Some(known) => *known = q.max(*known),
            None => known.push(q),
        }
    }

    fn applied(&self, oracle: &Oracle, tablet: TabletId, server: usize, entry: &Entry) -> Result<(), String> {
        let story = oracle.story(tablet);
        if !story.has(server, entry.pos) {
            return Err(format!("{tablet}: server {server} applies {}, which is not in its log", entry.pos));
        }
        let leads = self.led.get(&(tablet, server)).is_some_and(|epoch| *epoch >= entry.pos.epoch);
        let family = oracle.family(tablet).into_iter().filter(|older| oracle.share_history(tablet, *older));
        let mut q = family.filter_map(|older| self.q.get(&older)).flatten();
        if leads || q.any(|q| story.contains(*q, entry.pos)) {
            return Ok(());
        }
        Err(format!("{tablet}: server {server} applies {}, which is at or below no Q", entry.pos))
    }
}
