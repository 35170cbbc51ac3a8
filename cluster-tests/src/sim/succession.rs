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

/// A tablet whose place others are about to take.
#[derive(Debug)]
pub struct Leaving {
    /// Its core, which has given up.
    core: Tablet,
    /// The epoch of the others.
    epoch: Epoch,
    /// All that they take the place of, in key order.
    parents: Vec<TabletId>,
}

impl Server {
    /// Metadata wants a tablet sealed.
    pub(super) fn seal_ordered(&mut self, env: &mut Env, order: &SealOrder) {
        let (id, epoch, until) = (order.tablet, order.epoch, self.now(env).plus_ms(SEAL_CONTACT_MS));
        self.step(env, id, Input::Seal { epoch, seal: order.seal(), until });
    }

    /// What takes a tablet's place is known to the registry, or nothing any more.
    pub(super) fn staged(&mut self, env: &mut Env, id: TabletId, seal: Option<SealRecord>) {
        let is_split = seal.as_ref().is_some_and(|seal| seal.children.len() > 1);
        if mutated!(StagedChildServes) && is_split {
            self.serve_staged(env, id);
            return;
        }
        self.step(env, id, Input::Staged { attempt: seal.map(|seal| seal.attempt) });
    }

    /// With the seeded bug a leader does not wait for the commit.
    fn serve_staged(&mut self, env: &mut Env, id: TabletId) {
        let copy = self.run.as_ref().and_then(|run| run.copies.get(&id));
        let Some(epoch) = copy.and_then(|copy| copy.core.leading()) else { return };
        self.retire(env, &[id], epoch.next());
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

    /// Metadata has committed what a tablet was made of: for exactly the attempt that is staged here
    /// in all of its parents it takes over, with its siblings (m30).
    pub(super) fn switch_committed(&mut self, env: &mut Env, parents: &[Parent]) {
        let Some(run) = &self.run else { return };
        let is_ready = |parent: &Parent| {
            let staged = self.disk.registry.staged.get(&parent.tablet);
            let is_meant =
                staged.is_some_and(|(seal, end)| (seal.attempt, *end) == (parent.attempt, parent.seal));
            is_meant && run.copies.contains_key(&parent.tablet)
        };
        let Some(first) = parents.first().filter(|_| parents.iter().all(is_ready)) else { return };
        let ids: Vec<TabletId> = parents.iter().map(|parent| parent.tablet).collect();
        self.retire(env, &ids, first.epoch);
    }

    /// The cores give up; what is on its way to the log comes to its end first.
    fn retire(&mut self, env: &mut Env, parents: &[TabletId], epoch: Epoch) {
        for id in parents {
            self.step(env, *id, Input::Retire);
            let Some(run) = &mut self.run else { return };
            let Some(copy) = run.copies.remove(id) else { return };
            run.gave_up.remove(id);
            run.leaving.insert(*id, Leaving { core: copy.core, epoch, parents: parents.to_vec() });
        }
        if let Some(first) = parents.first() {
            self.after(env, 1, Internal::TakeOver(*first));
        }
    }

    /// Writes the one batch that retires tablets and makes their children.
    pub(super) fn take_over(&mut self, env: &mut Env, first: TabletId) {
        let Some(leaving) = self.run.as_ref().and_then(|run| run.leaving.get(&first)) else { return };
        let (parents, epoch) = (leaving.parents.clone(), leaving.epoch);
        let is_cutting = |id: &TabletId| self.run.as_ref().is_some_and(|run| run.cutting.contains_key(id));
        if parents.iter().any(|id| self.is_busy(*id) || is_cutting(id)) {
            self.after(env, LOOK_AGAIN_US, Internal::TakeOver(first));
            return;
        }
        let Some(switch) = self.switch_of(&parents, epoch) else { return };
        if let Some(run) = &mut self.run {
            run.coming.extend(switch.children.iter().map(|(id, child)| (*id, child.range.clone())));
        }
        if mutated!(SwitchInTwoSteps) {
            let alone = Switch { children: Vec::new(), ..switch.clone() };
            self.write_registry(env, RegistryChange::Switch(alone));
        }
        self.write_registry(env, RegistryChange::Switch(switch));
    }

    /// What takes the place of tablets here, as their seals say.
    fn switch_of(&self, parents: &[TabletId], epoch: Epoch) -> Option<Switch> {
        let registry = &self.disk.registry;
        let of = |id: &TabletId| Some((registry.staged.get(id)?, registry.replicas.get(id)?));
        let known: Vec<(&(SealRecord, LogEnd), &Replica)> = parents.iter().map(of).collect::<Option<_>>()?;
        let ends: Vec<LogEnd> = known.iter().map(|((_, end), _)| *end).collect();
        let base = LogEnd::joined(&ends);
        let ((seal, _), first) = known.first()?;
        let floors = known.iter().map(|(_, record)| record.token_floor_ms);
        let token_floor_ms = floors.max().unwrap_or_default();
        let child = |child: &SealedChild| {
            let replica = Replica {
                id: *child.replicas.get(&first.id)?,
                range: child.range.clone(),
                state: CopyState::Active,
                base,
                parents: parents.to_vec(),
                promised: epoch,
                flushed: base.pos.seq,
                token_floor_ms,
                truncating: None,
            };
            Some((child.tablet, replica))
        };
        let children = seal.children.iter().filter_map(child).collect();
        Some(Switch { parents: parents.iter().copied().zip(ends).collect(), children })
    }

    /// The children go on.
    pub(super) fn switched(&mut self, env: &mut Env, switch: &Switch) {
        let index = self.index;
        let Some(run) = &mut self.run else { return };
        if switch.children.is_empty() {
            return;
        }
        let left: Vec<(Leaving, LogEnd)> =
            switch.parents.iter().filter_map(|(id, seal)| Some((run.leaving.remove(id)?, *seal))).collect();
        let Some((first, _)) = left.first().filter(|_| left.len() == switch.parents.len()) else { return };
        let cores: Vec<(&Tablet, LogEnd)> = left.iter().map(|(left, seal)| (&left.core, *seal)).collect();
        let (epoch, copy) = (first.epoch, first.core.replica());
        env.say(|| format!("server {index} switches to the children of {:?}", first.parents));
        for (id, replica) in &switch.children {
            let sealed = SealedChild {
                tablet: *id,
                range: replica.range.clone(),
                replicas: [(copy, replica.id)].into(),
            };
            if let Some(run) = &mut self.run {
                run.coming.remove(id);
            }
            let child = Tablet::successor(&cores, &sealed, epoch, replica.id);
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
