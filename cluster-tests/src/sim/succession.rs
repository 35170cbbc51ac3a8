//! Tablets whose place others take, on one server: sealed, staged, switched; and the logs of
//! those that are no more, until nobody needs them.

use super::disk::{CopyState, RegistryChange, Replica, Switch};
use super::env::Env;
use super::network::{Address, Message};
use super::pipeline::floor_above;
use super::server::{Internal, Server};
use ebla_kernel::entry::{LogEnd, SealRecord, SealedChild};
use ebla_kernel::ids::{Epoch, TabletId};
use ebla_kernel::limits::SEAL_CONTACT_MS;
use ebla_kernel::meta::{Parent, SealOrder, SplitCommit};
use ebla_kernel::mutated;
use ebla_kernel::tablet::{Appointment, Input, Membership, SplitProposal, Tablet};

/// How soon to look again whether something is still on its way.
const LOOK_AGAIN_US: u64 = 1_000;

impl Server {
    /// Metadata wants a tablet sealed.
    pub(super) fn seal_ordered(&mut self, env: &mut Env, order: &SealOrder) {
        let (id, epoch, until) = (order.tablet, order.epoch, self.now(env).plus_ms(SEAL_CONTACT_MS));
        self.step(env, id, Input::Seal { epoch, seal: order.seal(), until });
    }

    /// What takes a tablet's place is known to the registry, or nothing any more.
    pub(super) fn staged(&mut self, env: &mut Env, id: TabletId, seal: Option<SealRecord>) {
        let attempt = seal.map(|seal| seal.attempt);
        if mutated!(StagedChildServes) && attempt.is_some() {
            self.serve_staged(env, id);
            return;
        }
        self.step(env, id, Input::Staged { attempt });
    }

    /// With the seeded bug a leader does not wait for the commit.
    fn serve_staged(&mut self, env: &mut Env, id: TabletId) {
        let copy = self.run.as_ref().and_then(|run| run.copies.get(&id));
        let Some(epoch) = copy.and_then(|copy| copy.core.leading()) else { return };
        self.retire(env, id, epoch.next());
    }

    pub(super) fn propose_split(&mut self, env: &mut Env, id: TabletId, proposal: SplitProposal) {
        let Some(run) = self.server_run() else { return };
        let index = self.index;
        env.say(|| format!("server {index} {id} asks for the commit {proposal:?}"));
        let own = self.generation(env);
        let ready = proposal.ready.iter().map(|(id, run)| (*id, run.map_or(own, |run| run.generation)));
        let (attempt, epoch, seal) = (proposal.attempt, proposal.epoch, proposal.seal);
        let commit = SplitCommit { tablet: id, attempt, epoch, seal, ready: ready.collect() };
        env.send(self.address(), Address::Meta, Message::ProposeSplit { run, commit });
    }

    /// Metadata has committed a split: for exactly the attempt that is staged here the children
    /// take over (m30).
    pub(super) fn switch_committed(&mut self, env: &mut Env, parent: Parent) {
        let is_meant =
            |(seal, end): &&(SealRecord, LogEnd)| (seal.attempt, *end) == (parent.attempt, parent.seal);
        if self.disk.registry.staged.get(&parent.tablet).filter(is_meant).is_some() {
            self.retire(env, parent.tablet, parent.epoch);
        }
    }

    /// The core gives up; what is on its way to the log comes to its end first.
    fn retire(&mut self, env: &mut Env, id: TabletId, epoch: Epoch) {
        let is_here = self.run.as_ref().is_some_and(|run| run.copies.contains_key(&id));
        if !is_here {
            return;
        }
        self.step(env, id, Input::Retire);
        let Some(run) = &mut self.run else { return };
        let Some(copy) = run.copies.remove(&id) else { return };
        run.gave_up.remove(&id);
        run.leaving.insert(id, (copy.core, epoch));
        self.after(env, 1, Internal::TakeOver(id));
    }

    /// Writes the one batch that retires a tablet and makes its children.
    pub(super) fn take_over(&mut self, env: &mut Env, id: TabletId) {
        let is_busy = self.is_busy(id);
        let Some(run) = &mut self.run else { return };
        if is_busy || run.cutting.contains_key(&id) {
            self.after(env, LOOK_AGAIN_US, Internal::TakeOver(id));
            return;
        }
        let Some((_, epoch)) = run.leaving.get(&id) else { return };
        let (Some((staged, seal)), Some(record)) =
            (self.disk.registry.staged.get(&id).cloned(), self.disk.registry.replicas.get(&id))
        else {
            return;
        };
        let child = |child: &SealedChild| {
            let replica = Replica {
                id: *child.replicas.get(&record.id)?,
                range: child.range.clone(),
                state: CopyState::Active,
                base: seal,
                parent: Some(id),
                promised: *epoch,
                flushed: seal.pos.seq,
                token_floor_ms: record.token_floor_ms,
                truncating: None,
            };
            Some((child.tablet, replica))
        };
        let children: Vec<(TabletId, Replica)> = staged.children.iter().filter_map(child).collect();
        run.coming.extend(children.iter().map(|(id, _)| *id));
        let switch = Switch { parent: id, seal, children };
        if mutated!(SwitchInTwoSteps) {
            let alone = Switch { parent: id, seal, children: Vec::new() };
            self.write_registry(env, RegistryChange::Switch(alone));
        }
        self.write_registry(env, RegistryChange::Switch(switch));
    }

    /// The children go on.
    pub(super) fn switched(&mut self, env: &mut Env, switch: &Switch) {
        let index = self.index;
        let Some(run) = &mut self.run else { return };
        if switch.children.is_empty() {
            return;
        }
        let Some((core, epoch)) = run.leaving.remove(&switch.parent) else { return };
        env.say(|| format!("server {index} switches to the children of {}", switch.parent));
        for (id, replica) in &switch.children {
            let sealed = SealedChild {
                tablet: *id,
                range: replica.range.clone(),
                replicas: [(core.replica(), replica.id)].into(),
            };
            if let Some(run) = &mut self.run {
                run.coming.remove(id);
            }
            let child = Tablet::successor(&[(&core, switch.seal)], &sealed, epoch, replica.id);
            self.install(env, child);
            if mutated!(StagedChildServes) {
                self.appoint_itself(env, *id, epoch);
            }
        }
        env.leases_changed = true;
        self.create_wanted(env);
    }

    /// With the seeded bug a child begins without metadata's word.
    fn appoint_itself(&mut self, env: &mut Env, id: TabletId, epoch: Epoch) {
        let Some(name) = self.server_run() else { return };
        let Some(copy) = self.run.as_ref().and_then(|run| run.copies.get(&id)) else { return };
        let (replica, ts) = (copy.core.replica(), copy.core.end().ts.next());
        let membership = Membership {
            version: ebla_kernel::ids::ConfigVersion(1),
            in_sync: [replica].into(),
            members: [(replica, name.server)].into(),
            leaving: None,
        };
        let (incarnation, min_in_sync, shrink_floor) = (name.incarnation, 1, 1);
        let appointment =
            Appointment { epoch, replica, incarnation, membership, min_in_sync, shrink_floor, ts };
        self.step(env, id, Input::Appoint(appointment));
    }

    /// Retired tablets of which rows may not be durable yet.
    pub(super) fn retired_unflushed(&self) -> Vec<TabletId> {
        // A start has not put their rows again before its copies are open.
        if self.server_run().is_none() {
            return Vec::new();
        }
        let retired = self.disk.registry.retired.iter();
        let is_open = retired.filter(|(_, retired)| retired.flushed < retired.seal.pos.seq);
        is_open.map(|(id, _)| *id).collect()
    }

    /// Lets the logs of retired tablets go that nothing needs: whose rows are durable and whose
    /// tokens are out of their window, or that nothing here goes on from.
    pub(super) fn release_retired(&mut self, env: &mut Env) {
        let (now_us, window_us) = (env.now_us, env.profile.retired_us);
        let without_heirs = self.disk.registry.without_heirs();
        let mut gone = Vec::new();
        for (id, retired) in &mut self.disk.registry.retired {
            if retired.flushed < retired.seal.pos.seq && !mutated!(RetiredDroppedEarly) {
                continue;
            }
            let since_us = *retired.since_us.get_or_insert(now_us);
            if now_us - since_us >= window_us || mutated!(RetiredDroppedEarly) {
                gone.push(*id);
            }
        }
        gone.extend(without_heirs.into_iter().filter(|id| !gone.contains(id)).collect::<Vec<_>>());
        if gone.is_empty() {
            return;
        }
        let floor = |id: TabletId| {
            let log = self.disk.log.tablet(id);
            (id, floor_above(log.into_iter().flat_map(|log| &log.entries).map(|entry| &**entry)))
        };
        let gone = gone.into_iter().map(floor).collect();
        self.write_registry(env, RegistryChange::RetiredForgotten(gone));
    }
}
