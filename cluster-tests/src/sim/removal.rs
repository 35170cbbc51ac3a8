//! How a copy goes, in the order that survives a crash at every step: its core, the tombstone,
//! its rows, a flush, the record.

use super::disk::{CopyState, RegistryChange};
use super::env::Env;
use super::server::{Internal, Server};
use ebla_kernel::ids::TabletId;
use ebla_kernel::mutated;
use ebla_kernel::range::KeyRange;
use ebla_kernel::tablet::Input;

/// How soon to look again whether something is still on its way.
const LOOK_AGAIN_US: u64 = 1_000;

impl Server {
    /// A copy is no longer wanted here.
    pub(super) fn remove(&mut self, env: &mut Env, id: TabletId) {
        let index = self.index;
        let Some(run) = &mut self.run else { return };
        run.building.remove(&id);
        if run.leaving.contains_key(&id) || !run.removing.insert(id) {
            return;
        }
        env.say(|| format!("server {index} lets its copy of {id} go"));
        self.step(env, id, Input::StepDown);
        let Some(run) = &mut self.run else { return };
        run.copies.remove(&id);
        run.cutting.remove(&id);
        run.gave_up.remove(&id);
        self.after(env, 1, Internal::Remove(id));
    }

    /// Whether something of a tablet is on its way to the log or into the rows.
    pub(super) fn is_busy(&self, id: TabletId) -> bool {
        let waits = self.run.as_ref().is_some_and(|run| run.log.has(id) || run.coming.contains_key(&id));
        waits || self.disk.log.is_writing(id)
    }

    /// Marks the copy as gone, once nothing of it is on its way any more.
    pub(super) fn entomb(&mut self, env: &mut Env, id: TabletId) {
        if self.is_busy(id) {
            self.after(env, LOOK_AGAIN_US, Internal::Remove(id));
        } else {
            self.write_registry(env, RegistryChange::Tombstone(id));
        }
    }

    /// The tombstone is durable: the rows are garbage.
    pub(super) fn goes(&mut self, env: &mut Env, id: TabletId) {
        let Some(run) = &mut self.run else { return };
        run.removing.insert(id);
        let delay = env.rng.between((10, 2_000));
        self.after(env, delay, Internal::Clear(id));
    }

    /// Clears the rows; no copy that stays may hold any of them.
    pub(super) fn clear(&mut self, env: &mut Env, id: TabletId) {
        let Some(gone) = self.disk.registry.replicas.get(&id) else { return };
        let mut range = gone.range.clone();
        let stays = |replica: &&super::disk::Replica| {
            replica.state == CopyState::Active && replica.range.overlaps(&range)
        };
        if let Some(stays) = self.disk.registry.replicas.values().find(stays) {
            let detail = format!("server {}: {id} {range} is cleared, {stays:?} stays", self.index);
            env.watch.fail("I9 a copy holds its keys alone", &detail);
        }
        if mutated!(ClearTouchesNeighbour) {
            range = KeyRange::new(range.start().clone(), None).expect("a range without an end");
        }
        self.disk.store.clear(&range);
        self.forget_cached();
        let mark = self.disk.store.mark();
        let delay = env.rng.between(env.profile.disk.flush_us);
        match mutated!(ForgottenBeforeFlush) {
            true => self.write_registry(env, RegistryChange::Forgotten(id)),
            false => self.after(env, delay, Internal::Cleared(id, mark)),
        }
    }

    /// The flush has returned.
    pub(super) fn cleared(&mut self, env: &mut Env, id: TabletId, mark: u64) {
        self.disk.store.flushed(mark);
        self.write_registry(env, RegistryChange::Forgotten(id));
    }

    /// Nothing is left of the copy: others may hold its keys.
    pub(super) fn gone(&mut self, env: &mut Env, id: TabletId) {
        let Some(run) = &mut self.run else { return };
        run.removing.remove(&id);
        self.create_wanted(env);
    }
}
