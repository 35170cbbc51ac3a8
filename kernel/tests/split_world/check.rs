//! What must hold at every moment, and in the end.

use super::server::standing;
use super::world::{KEYS, World};
use ebla_kernel::ids::TabletId;
use ebla_kernel::op::{AckLevel, Token};
use std::collections::BTreeMap;

impl World {
    /// After every turn: one lease for one key.
    pub fn look(&mut self) -> Result<(), String> {
        if let Some(violation) = self.violation.take() {
            return Err(violation);
        }
        let now = self.now;
        let mut held = Vec::new();
        for server in &self.servers {
            held.extend(server.leases(now).into_iter().map(|lease| (server.number, lease)));
        }
        for (at, (server, (id, epoch, range))) in held.iter().enumerate() {
            for (other, (other_id, other_epoch, other_range)) in &held[at + 1..] {
                if range.overlaps(other_range) {
                    return Err(format!(
                        "server {server} has the lease of {id} {range} in {epoch}, server {other} that of {other_id} {other_range} in {other_epoch}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether every tablet is served, in sync everywhere, and no job is under way.
    pub fn is_healed(&self) -> bool {
        let state = &self.meta.state;
        let is_quiet = state.jobs().all(|job| !job.is_running()) && self.meta.proposed.is_empty();
        let is_whole = |tablet: &ebla_kernel::meta::Tablet| {
            tablet.in_sync.len() == 3 && self.leader(tablet.id).is_some() && !self.is_sealed(tablet.id)
        };
        is_quiet && state.tablets().all(is_whole)
    }

    fn is_sealed(&self, id: TabletId) -> bool {
        let cores = self.servers.iter().filter_map(|server| server.cores.get(&id));
        cores.into_iter().any(|core| core.tablet.sealed().is_some())
    }

    /// The server that serves a tablet as metadata has it.
    fn leader(&self, id: TabletId) -> Option<usize> {
        let tablet = self.meta.state.tablet(id)?;
        let leader = tablet.leader?;
        let at = usize::try_from(leader.server.0).ok()? - 1;
        let core = self.servers[at].cores.get(&id)?;
        (core.tablet.serving() == Some(tablet.epoch)).then_some(at)
    }

    /// The history of each key is that of the leader of its tablet.
    pub fn check_end(&self) -> Result<(), String> {
        let state = &self.meta.state;
        let table = state.tables().next().ok_or("the table is gone")?.id;
        for key in KEYS {
            let tablet = state.tablet_at(table, key.as_bytes()).ok_or("no tablet")?.id;
            let at = self.leader(tablet).ok_or("nobody serves")?;
            let mut times: BTreeMap<Token, u64> = BTreeMap::new();
            let history = self.servers[at].history(tablet);
            for (token, keys) in history.iter().flat_map(|log| standing(log)) {
                if keys.iter().any(|written| written == key.as_bytes()) {
                    *times.entry(token).or_default() += 1;
                }
            }
            for (token, write) in self.writes.iter().filter(|(_, write)| write.key == key) {
                let times = times.get(token).copied().unwrap_or_default();
                let must = write.committed == Some(AckLevel::Copies(2));
                if times > 1 || (must && times == 0) || (write.reverted && times > 0) {
                    return Err(format!("{token} of {key} in {tablet}: {write:?} stands {times} times"));
                }
            }
        }
        Ok(())
    }
}
