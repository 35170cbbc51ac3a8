//! Repair: copies that are lost, too far behind, diverged, or on servers that stay away are replaced.
//!
//! Everything that was decided stands in the tablet's record ([`super::Tablet::moving`]), so any
//! master goes on with it; what is remembered here only paces it. Per tablet one change at a time,
//! per server a few copies at a time. The order of a replacement:
//!
//! 1. `Add` the new copy as a learner: on the same server if that is back with an empty
//!    directory, otherwise by zone and load;
//! 2. its leader takes it into the in-sync set when it has everything (m10);
//! 3. if the old copy leads, leadership is handed to the new one;
//! 4. the leader lets the old copy out of the in-sync set (m9);
//! 5. `Remove` it.
//!
//! When a third copy is lost between 2 and 4, the old copy may be needed: it stays instead.

use super::campaign::Batch;
use super::command::ReplicaChange;
use super::control::Control;
use super::drains::Drains;
use super::in_sync::is_at_its_least;
use super::merge::gathers;
use super::replicas::may_diverge;
use super::state::{Duty, Move, Replica, State, Tablet};
use crate::ids::{Epoch, ReplicaId, ServerId, TabletId, Tick};
use crate::limits::{COPIES_ON_THEIR_WAY_MAX, REPAIRS_RETRIED_MAX, REPLICA_CHANGE_RETRY_MS};
use std::collections::{BTreeMap, BTreeSet};

/// What paces repairs.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// Servers that are not connected, and since when as far as this master knows.
    away: BTreeMap<ServerId, Tick>,
    /// Servers that are away for good: for too long, or another has taken their address.
    gone: BTreeSet<ServerId>,
    /// When to do again what was proposed or ordered and not heard of.
    again: BTreeMap<TabletId, Tick>,
    /// Copies whose next entries their leaders no longer have.
    behind: BTreeMap<TabletId, (Epoch, ReplicaId)>,
    /// Copies that hold another history than their leaders.
    diverged: BTreeMap<TabletId, BTreeSet<ReplicaId>>,
    /// Tablets with a copy on its way, and where to.
    under_way: BTreeMap<TabletId, ServerId>,
    /// How many of them go to each server.
    coming: BTreeMap<ServerId, usize>,
    /// Tablets that would have one if there were room.
    waiting: BTreeSet<TabletId>,
    /// Leaderships that leave servers which are drained.
    drains: Drains,
}

impl Repairs {
    /// What was proposed of the tablet is decided.
    pub fn decided(&mut self, tablet: TabletId) {
        self.again.remove(&tablet);
    }

    /// The tablet is gone.
    pub fn forget(&mut self, tablet: TabletId) {
        self.again.remove(&tablet);
        self.behind.remove(&tablet);
        self.diverged.remove(&tablet);
        self.set_way(tablet, None);
        self.waiting.remove(&tablet);
        self.drains.look(tablet, None);
    }

    /// Notes whether a copy of the tablet is on its way. Whether that made room.
    fn note(&mut self, tablet: &Tablet) -> bool {
        let to = tablet.moving.and_then(|moving| tablet.replica(moving.to)).map(|copy| copy.server);
        self.set_way(tablet.id, to)
    }

    fn set_way(&mut self, tablet: TabletId, to: Option<ServerId>) -> bool {
        let before = match to {
            Some(to) => self.under_way.insert(tablet, to),
            None => self.under_way.remove(&tablet),
        };
        if before == to {
            return false;
        }
        if let Some(to) = to {
            *self.coming.entry(to).or_default() += 1;
        }
        if let Some(count) = before.and_then(|before| self.coming.get_mut(&before)) {
            *count -= 1;
        }
        before.is_some()
    }
}

impl Control {
    /// Servers that are not connected begin to be away.
    pub(super) fn note_away(&mut self, now: Tick, state: &State) {
        for server in state.servers().filter(|server| !self.sessions.contains_key(&server.id)) {
            self.repairs.away.entry(server.id).or_insert(now);
        }
    }

    /// When the next server has been away for too long.
    pub(super) fn next_overdue(&self) -> Option<Tick> {
        let after_ms = self.settings.replace_after_ms?;
        let open = self.repairs.away.iter().filter(|(server, _)| !self.repairs.gone.contains(server));
        open.map(|(_, since)| since.plus_ms(after_ms)).min()
    }

    pub(super) fn look_at_away(&mut self, now: Tick, state: &State) {
        if self.next_overdue().is_none_or(|at| at > now) {
            return;
        }
        let Some(after_ms) = self.settings.replace_after_ms else { return };
        let overdue = self.repairs.away.iter().filter(|(_, since)| since.plus_ms(after_ms) <= now);
        for server in overdue.map(|(server, _)| *server).collect::<Vec<_>>() {
            self.is_gone(state, server);
        }
    }

    /// A server that stays away: its copies are to be replaced.
    fn is_gone(&mut self, state: &State, server: ServerId) {
        if self.repairs.gone.insert(server) {
            self.dirty.extend(state.tablets_on(server).map(|tablet| tablet.id));
        }
    }

    /// A server is connected. One that had its address before and is not connected will not
    /// come back: its directory was wiped, or it was replaced.
    pub(super) fn came_back(&mut self, state: &State, id: ServerId) {
        self.repairs.away.remove(&id);
        self.repairs.gone.remove(&id);
        let Some(server) = state.server(id) else { return };
        let had_address = state.servers().filter(|other| other.id != id && other.address == server.address);
        let replaced = had_address.filter(|other| !self.sessions.contains_key(&other.id));
        for other in replaced.map(|other| other.id).collect::<Vec<_>>() {
            self.is_gone(state, other);
        }
        // Its copies may be lost, and there is one more server for those of others.
        self.dirty.extend(state.tablets_on(id).map(|tablet| tablet.id));
        self.retry_waiting();
    }

    /// A leader says which copies it cannot bring up from its log.
    pub(super) fn on_behind(
        &mut self,
        state: &State,
        server: ServerId,
        copies: Vec<(TabletId, Epoch, ReplicaId)>,
    ) {
        for (id, epoch, replica) in copies {
            let leads = |tablet: &&Tablet| {
                tablet.epoch == epoch && tablet.leader.is_some_and(|leader| leader.server == server)
            };
            if state.tablet(id).filter(leads).is_some() {
                self.repairs.behind.insert(id, (epoch, replica));
                self.dirty.insert(id);
            }
        }
    }

    /// A server says which of its copies are no copies of what their leaders have.
    pub(super) fn on_diverged(
        &mut self,
        state: &State,
        server: ServerId,
        copies: Vec<(TabletId, ReplicaId)>,
    ) {
        for (id, replica) in copies {
            let is_there =
                |tablet: &Tablet| tablet.replica(replica).is_some_and(|copy| copy.server == server);
            if state.tablet(id).is_some_and(is_there) {
                self.repairs.diverged.entry(id).or_default().insert(replica);
                self.dirty.insert(id);
            }
        }
    }

    /// Lets a copy that has diverged count as lost. Whether there was one.
    fn forsake(&mut self, state: &State, tablet: &Tablet, batch: &mut Batch) -> bool {
        let Some(here) = self.repairs.diverged.get_mut(&tablet.id) else { return false };
        here.retain(|replica| tablet.replica(*replica).is_some_and(|copy| !copy.lost));
        let follows = |replica: &ReplicaId| tablet.leader.is_some_and(|leader| leader.replica != *replica);
        let found = here.iter().copied().find(follows).filter(|_| may_diverge(state, tablet));
        let change = found.map(|replica| ReplicaChange::Forsake { tablet: tablet.id, replica });
        batch.replicas.extend(change);
        found.is_some()
    }

    /// Takes the next step towards as many good copies as the table wants.
    pub(super) fn repair(&mut self, now: Tick, state: &State, tablet: &Tablet, batch: &mut Batch) {
        if self.repairs.note(tablet) {
            self.retry_waiting();
        }
        let drained = tablet.leader.filter(|leader| duty_of(state, leader.server) != Duty::Serves);
        let left = self.repairs.drains.look(tablet.id, drained.map(|leader| leader.server));
        self.take_step(now, state, tablet, batch);
        // Whoever has left makes room, and so does whoever waited for room and needs none.
        self.dirty.extend(left.and_then(|server| self.repairs.drains.next(server)));
    }

    fn take_step(&mut self, now: Tick, state: &State, tablet: &Tablet, batch: &mut Batch) {
        if !self.settings.replaces_copies || self.is_repaired(now, tablet.id) {
            return;
        }
        let acted = match (tablet.moving, state.job_of(tablet.id)) {
            _ if self.forsake(state, tablet, batch) => true,
            (Some(moving), _) => self.go_on(state, tablet, moving, batch),
            // A merge brings its own copies together, as long as they are good.
            (None, Some(job)) if gathers(job) => self.begin(state, tablet, batch),
            // Another job is about the tablet.
            (None, Some(_)) => false,
            (None, None) => match self.drain(now, state, tablet, batch) {
                Some(ordered) => ordered,
                None => self.begin(state, tablet, batch),
            },
        };
        if acted {
            let at = now.plus_ms(REPLICA_CHANGE_RETRY_MS);
            self.repairs.again.insert(tablet.id, at);
            self.deadlines.insert((at, tablet.id));
        }
    }

    /// Goes on with the change under way.
    fn go_on(&mut self, state: &State, tablet: &Tablet, moving: Move, batch: &mut Batch) -> bool {
        let id = tablet.id;
        let Some(copy) = tablet.replica(moving.to) else { return false };
        if !tablet.in_sync.contains(&copy.id) {
            if self.is_behind(tablet, copy.id) || (copy.lost && self.sessions.contains_key(&copy.server)) {
                let (server, instead_of) = (copy.server, Some(copy.id));
                batch.replicas.push(ReplicaChange::Add { tablet: id, server, instead_of });
                return true;
            }
            let is_hopeless = self.repairs.gone.contains(&copy.server);
            if is_hopeless {
                batch.replicas.push(ReplicaChange::Remove { tablet: id, replica: copy.id });
            }
            return is_hopeless;
        }
        let Some(from) = moving.from else {
            batch.replicas.push(ReplicaChange::Settle { tablet: id });
            return true;
        };
        if tablet.is_led_by(from) {
            return self.hand_over(state, tablet, copy, batch);
        }
        if !tablet.in_sync.contains(&from) {
            batch.replicas.push(ReplicaChange::Remove { tablet: id, replica: from });
            return true;
        }
        self.make_way(state, tablet, moving, batch)
    }

    /// The old copy cannot leave while the in-sync set would become too small. A third copy that
    /// will not come back by itself is not waited for: it goes, and when nobody is left who could
    /// come in, the old copy stays in its stead.
    fn make_way(&self, state: &State, tablet: &Tablet, moving: Move, batch: &mut Batch) -> bool {
        let id = tablet.id;
        let is_third = |copy: &&Replica| copy.id != moving.to && Some(copy.id) != moving.from;
        let mut out = tablet.replicas.iter().filter(|copy| !tablet.in_sync.contains(&copy.id));
        if let Some(ill) = out.clone().filter(is_third).find(|copy| self.is_ill(tablet, copy)) {
            batch.replicas.push(ReplicaChange::Remove { tablet: id, replica: ill.id });
            return true;
        }
        let is_stuck = out.next().is_none() && is_at_its_least(state, tablet);
        if is_stuck {
            batch.replicas.push(ReplicaChange::Settle { tablet: id });
        }
        is_stuck
    }

    /// Lets another copy lead when the leader's server is not to lead: whether that was ordered now,
    /// or waits. None when there is nothing to do or nobody to do it.
    fn drain(&mut self, now: Tick, state: &State, tablet: &Tablet, batch: &mut Batch) -> Option<bool> {
        let duty = |id: ServerId| duty_of(state, id);
        let leader = tablet.leader.filter(|leader| duty(leader.server) != Duty::Serves)?;
        let heirs = tablet.in_sync_replicas().filter(|copy| {
            copy.id != leader.replica
                && duty(copy.server) == Duty::Serves
                && self.sessions.contains_key(&copy.server)
        });
        let least = heirs.min_by_key(|copy| (batch.heirs.get(&copy.server).copied().unwrap_or(0), copy.id));
        let heir = least?;
        if !self.repairs.drains.begin(now, tablet.id, leader.server) {
            self.deadlines.insert((now.plus_ms(REPLICA_CHANGE_RETRY_MS), tablet.id));
            return Some(false);
        }
        *batch.heirs.entry(heir.server).or_default() += 1;
        Some(self.hand_over(state, tablet, heir, batch))
    }

    /// Orders the leader to hand over to `copy`.
    fn hand_over(&self, state: &State, tablet: &Tablet, copy: &Replica, batch: &mut Batch) -> bool {
        let Ok(replica) = self.heir(state, tablet.id, copy.server) else { return false };
        let Some(leader) = tablet.leader else { return false };
        batch.transfers.push((leader.server, tablet.id, tablet.epoch, replica));
        true
    }

    /// Finds the copy that is worst off and a place for its successor.
    fn begin(&mut self, state: &State, tablet: &Tablet, batch: &mut Batch) -> bool {
        self.repairs.waiting.remove(&tablet.id);
        let wanted = state.table(tablet.table).map_or(0, |table| usize::from(table.spec.replicas));
        let leaves = |copy: &&Replica| duty_of(state, copy.server) == Duty::Leaves;
        let ill = tablet.replicas.iter().find(|copy| self.is_ill(tablet, copy));
        let ill = ill.or_else(|| tablet.replicas.iter().find(leaves));
        if let Some(copy) = ill.filter(|_| tablet.replicas.len() > wanted) {
            batch.replicas.push(ReplicaChange::Shed { tablet: tablet.id, replica: copy.id });
            return true;
        }
        let place = match ill {
            // A copy whose data is lost, and one that is behind, begins anew where it was.
            Some(copy) if self.sessions.contains_key(&copy.server) && !leaves(&copy) => Some(copy.server),
            Some(copy) => self.place(state, tablet, Some(copy.id), batch),
            None if tablet.replicas.len() < wanted => self.place(state, tablet, None, batch),
            None => return false,
        };
        let Some(server) = place.filter(|server| self.has_room(*server, batch)) else {
            self.repairs.waiting.insert(tablet.id);
            return false;
        };
        let instead_of = ill.map(|copy| copy.id);
        *batch.coming.entry(server).or_default() += 1;
        batch.replicas.push(ReplicaChange::Add { tablet: tablet.id, server, instead_of });
        true
    }

    /// Whether a copy will not come back by itself.
    fn is_ill(&self, tablet: &Tablet, copy: &Replica) -> bool {
        let is_back = self.sessions.contains_key(&copy.server);
        let is_out = !tablet.in_sync.contains(&copy.id) && !tablet.is_led_by(copy.id);
        self.repairs.gone.contains(&copy.server)
            || (copy.lost && is_back)
            || (is_out && is_back && self.is_behind(tablet, copy.id))
    }

    fn is_behind(&self, tablet: &Tablet, copy: ReplicaId) -> bool {
        self.repairs.behind.get(&tablet.id) == Some(&(tablet.epoch, copy))
    }

    /// A connected server without a copy, with room for one: in a zone that has no copy that
    /// stays if there is such a server, and then it is waited for; of several the one that holds
    /// least, of equal ones the first.
    fn place(
        &self,
        state: &State,
        tablet: &Tablet,
        goes: Option<ReplicaId>,
        batch: &Batch,
    ) -> Option<ServerId> {
        let zone = |id: ServerId| state.server(id).map(|server| server.zone.as_str());
        let stays = |copy: &&Replica| {
            let is_emptied = duty_of(state, copy.server) == Duty::Leaves;
            Some(copy.id) != goes && !copy.lost && !is_emptied && !self.repairs.gone.contains(&copy.server)
        };
        let zones: BTreeSet<_> = tablet.replicas.iter().filter(stays).map(|copy| zone(copy.server)).collect();
        let is_free = |id: &ServerId| {
            duty_of(state, *id) == Duty::Serves && tablet.replicas.iter().all(|copy| copy.server != *id)
        };
        let free: Vec<ServerId> = self.sessions.keys().copied().filter(is_free).collect();
        let has_none = |id: &ServerId| !zones.contains(&zone(*id));
        let is_any = free.iter().any(has_none);
        let places = free.into_iter().filter(|id| has_none(id) == is_any && self.has_room(*id, batch));
        places.min_by_key(|id| (state.tablet_count_on(*id) + coming(*id, batch), *id))
    }

    /// Whether a change of the tablet's copies was proposed and not heard of.
    pub(super) fn is_repaired(&self, now: Tick, tablet: TabletId) -> bool {
        self.repairs.again.get(&tablet).is_some_and(|again| *again > now)
    }

    pub(super) fn has_room(&self, server: ServerId, batch: &Batch) -> bool {
        let on_their_way = self.repairs.coming.get(&server).copied().unwrap_or(0);
        on_their_way + coming(server, batch) < COPIES_ON_THEIR_WAY_MAX
    }

    /// There may be room for some of those who wait.
    fn retry_waiting(&mut self) {
        let some = self.repairs.waiting.iter().take(REPAIRS_RETRIED_MAX).copied();
        self.dirty.extend(some.collect::<Vec<_>>());
    }
}

/// What a server is wanted for.
fn duty_of(state: &State, server: ServerId) -> Duty {
    state.server(server).map_or(Duty::Serves, |server| server.duty)
}

/// Copies that this step sends to a server.
fn coming(server: ServerId, batch: &Batch) -> usize {
    batch.coming.get(&server).copied().unwrap_or(0)
}
