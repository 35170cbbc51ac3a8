//! The way of an entry: written to the log, synced with its group, applied to the rows,
//! flushed, purged. The twin of production's log, apply and flush threads.

use super::disk::RegistryChange;
use super::env::Env;
use super::server::{Internal, Server};
use crate::invariants::Observation;
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::ids::{Epoch, Seq, TabletId};
use ebla_kernel::mutated;
use ebla_kernel::op::Token;
use ebla_kernel::tablet::{Input, Tablet};
use std::collections::BTreeMap;

/// The log thread: one group at a time.
#[derive(Debug, Default)]
pub struct LogStage {
    waiting: Vec<(TabletId, Entry)>,
    writing: bool,
    /// Epochs of which an append failed: nothing more of them is written.
    refusing: BTreeMap<TabletId, Epoch>,
}

impl Server {
    pub(super) fn append(&mut self, env: &mut Env, id: TabletId, entry: Entry) {
        if mutated!(ApplyBeforeDurable) {
            self.after(env, 0, Internal::Apply(vec![(id, entry.clone())]));
        }
        let Some(run) = &mut self.run else { return };
        run.log.waiting.push((id, entry));
        if !run.log.writing {
            self.write_group(env);
        }
    }

    /// Writes everything that waits as one group, or refuses what must not be written.
    fn write_group(&mut self, env: &mut Env) {
        let faults = env.profile.disk.clone();
        let failed = env.rng.chance(faults.append_failure_pm);
        let Some(run) = &mut self.run else { return };
        let group = std::mem::take(&mut run.log.waiting);
        if failed {
            for (id, entry) in &group {
                run.log.refusing.insert(*id, entry.pos.epoch);
            }
        }
        let refusing = &run.log.refusing;
        let is_refused = |id: &TabletId, epoch| refusing.get(id).is_some_and(|refused| epoch <= *refused);
        let (refused, group): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|(id, entry)| is_refused(id, entry.pos.epoch));
        run.log.writing = !group.is_empty();
        for (id, entry) in refused {
            let (index, pos) = (self.index, entry.pos);
            env.say(|| format!("server {index} {id} refuses {pos}"));
            self.after(env, 1, Internal::Refused(id, entry.seq()));
        }
        if group.is_empty() {
            return;
        }
        self.disk.log.write(group);
        let span = if env.rng.chance(faults.hang_pm) { faults.hang_us } else { faults.sync_us };
        let delay = env.rng.between(span);
        self.after(env, delay, Internal::LogSynced);
    }

    pub(super) fn log_synced(&mut self, env: &mut Env) {
        let synced = self.disk.log.sync();
        let mut upto: BTreeMap<TabletId, Seq> = BTreeMap::new();
        for (tablet, entry) in &synced {
            env.observe(&Observation::Durable { tablet: *tablet, entry });
            upto.insert(*tablet, entry.seq());
        }
        let delay = env.rng.between((10, 500));
        let Some(run) = &mut self.run else { return };
        run.log.writing = false;
        run.apply_at_us = run.apply_at_us.max(env.now_us + delay);
        let delay = run.apply_at_us - env.now_us;
        if !mutated!(ApplyBeforeDurable) {
            self.after(env, delay, Internal::Apply(synced));
        }
        for (id, seq) in upto {
            self.step(env, id, Input::Persisted { upto: seq });
        }
        if self.run.as_ref().is_some_and(|run| !run.log.writing && !run.log.waiting.is_empty()) {
            self.write_group(env);
        }
    }

    pub(super) fn apply(&mut self, env: &mut Env, entries: &[(TabletId, Entry)]) {
        let mut upto: BTreeMap<TabletId, Seq> = BTreeMap::new();
        for (tablet, entry) in entries {
            let Some(run) = &mut self.run else { return };
            run.cache.change_begins(entry);
            self.disk.store.apply(entry);
            run.cache.change_ends(entry);
            upto.insert(*tablet, entry.seq());
        }
        for (id, seq) in upto {
            self.step(env, id, Input::Applied { upto: seq });
        }
    }

    /// Notes what is applied before the flush begins; that much is durable when it returns.
    pub(super) fn flush_begins(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let position = |tablet: &Tablet| (tablet.id(), tablet.applied_seq());
        let positions: Vec<(TabletId, Seq)> = run.tablets.values().map(position).collect();
        let count = self.disk.store.unflushed();
        if mutated!(FlushedBeforeFlush) {
            self.write_registry(env, RegistryChange::Flushed(positions.clone()));
        }
        let delay = env.rng.between(env.profile.disk.flush_us);
        self.after(env, delay, Internal::FlushReturns { count, positions });
    }

    pub(super) fn flush_returns(&mut self, env: &mut Env, count: usize, positions: Vec<(TabletId, Seq)>) {
        self.disk.store.flushed(count);
        self.write_registry(env, RegistryChange::Flushed(positions));
        let delay = env.rng.between(env.profile.disk.flush_every_us);
        self.after(env, delay, Internal::FlushBegins);
    }

    /// Purges logs that are above their size, once the floor of their tokens is durable.
    pub(super) fn flushed(&mut self, env: &mut Env, positions: &[(TabletId, Seq)]) {
        for (id, upto) in positions {
            let Some(run) = &mut self.run else { return };
            let Some(log) = self.disk.log.tablet(*id) else { continue };
            if log.entries.len() <= env.profile.log_entries_max || run.purging.contains_key(id) {
                continue;
            }
            let purged = log.entries.iter().take_while(|entry| entry.seq() <= *upto);
            let floor_ms = purged.filter_map(token).map(|token| token.issued_ms + 1).max();
            let floor_ms = floor_ms.filter(|_| !mutated!(TokenFloorForgotten)).unwrap_or_default();
            run.purging.insert(*id, *upto);
            self.write_registry(env, RegistryChange::TokenFloor(*id, floor_ms));
        }
    }

    pub(super) fn purge(&mut self, env: &mut Env, id: TabletId, floor_ms: u64) {
        self.step(env, id, Input::ForgetTokens { issued_before_ms: floor_ms });
        let Some(run) = &mut self.run else { return };
        if let Some(upto) = run.purging.remove(&id) {
            self.disk.log.purge(id, upto);
        }
    }
}

fn token(entry: &Entry) -> Option<Token> {
    match &entry.payload {
        Payload::EpochStart { .. } => None,
        Payload::Write(write) => write.token,
        Payload::TokenFence { token } => Some(*token),
    }
}
