//! The way of an entry: written to the log, synced with its group, applied to the rows,
//! flushed, purged. The twin of production's log, apply and flush threads.

use super::disk::{Record, RegistryChange};
use super::env::Env;
use super::server::{Copy, Internal, Server};
use crate::invariants::Observation;
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::ids::{Epoch, ReplicaId, Seq, TabletId};
use ebla_kernel::mutated;
use ebla_kernel::op::Token;
use ebla_kernel::tablet::{ApplyWhen, Input};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The log thread: one group at a time.
#[derive(Debug, Default)]
pub struct LogStage {
    waiting: Vec<(Record, When)>,
    /// When the rows of the group that is being written may go into the store.
    when: Vec<When>,
    writing: bool,
    /// Since when the group is being written.
    pub since_us: Option<u64>,
    /// Epochs of which an append failed: nothing more of them is written.
    refusing: BTreeMap<TabletId, Epoch>,
}

/// When the rows of an entry may go into the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum When {
    /// A leader's own entry.
    Own(ApplyWhen),
    /// A copied one: when it is told.
    Told,
}

impl LogStage {
    /// Whether entries of a tablet are on their way.
    #[must_use]
    pub fn has(&self, tablet: TabletId) -> bool {
        self.waiting.iter().any(|(record, _)| record.tablet == tablet)
    }
}

impl Server {
    /// A leader's own entry.
    pub(super) fn append_own(&mut self, env: &mut Env, id: TabletId, entry: Entry, when: ApplyWhen) {
        let index = self.index;
        env.mark(entry.hash);
        env.say(|| format!("server {index} {id} appends {} {:?}", entry.pos, entry.payload));
        env.observe(&Observation::Appended { tablet: id, server: index, entry: &entry });
        let entry = Rc::new(entry);
        if mutated!(ApplyBeforeDurable) {
            self.after(env, 0, Internal::Apply(vec![(id, Rc::clone(&entry))]));
        }
        let by = entry.pos.epoch;
        self.enqueue(id, by, entry, When::Own(when));
        self.write_if_idle(env);
    }

    /// Entries of the leader that a copy follows.
    pub(super) fn append_copies(&mut self, env: &mut Env, id: TabletId, entries: Vec<Entry>) {
        let by = self.run.as_ref().and_then(|run| run.copies.get(&id)).map_or(Epoch(0), |copy| copy.by);
        let index = self.index;
        env.say(|| format!("server {index} {id} copies {} entries of {by}", entries.len()));
        for entry in entries {
            self.enqueue(id, by, Rc::new(entry), When::Told);
        }
        self.write_if_idle(env);
    }

    fn enqueue(&mut self, id: TabletId, by: Epoch, entry: Rc<Entry>, when: When) {
        let Some(run) = &mut self.run else { return };
        // Whoever reads or writes here later is above everything in the log.
        if !mutated!(LogRaisesNoClock) {
            run.clock.raise(entry.ts);
        }
        if let Some(copy) = run.copies.get_mut(&id) {
            copy.tail.push_back(Rc::clone(&entry));
        }
        run.log.waiting.push((Record { tablet: id, by, entry }, when));
    }

    fn write_if_idle(&mut self, env: &mut Env) {
        if self.run.as_ref().is_some_and(|run| !run.log.writing && !run.log.waiting.is_empty()) {
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
            for (record, _) in &group {
                run.log.refusing.insert(record.tablet, record.by);
            }
        }
        let refusing = &run.log.refusing;
        let is_refused =
            |record: &Record| refusing.get(&record.tablet).is_some_and(|refused| record.by <= *refused);
        let (refused, group): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|(record, _)| is_refused(record));
        run.log.writing = !group.is_empty();
        run.log.since_us = run.log.writing.then_some(env.now_us);
        for (record, _) in refused {
            let (index, pos) = (self.index, record.entry.pos);
            env.say(|| format!("server {index} {} refuses {pos}", record.tablet));
            self.after(env, 1, Internal::Refused(record.tablet, record.entry.seq()));
        }
        if group.is_empty() {
            return;
        }
        let (records, when) = group.into_iter().unzip();
        self.disk.log.write(records);
        let Some(run) = &mut self.run else { return };
        run.log.when = when;
        let span = if env.rng.chance(faults.hang_pm) { faults.hang_us } else { faults.sync_us };
        let delay = env.rng.between(span);
        self.after(env, delay, Internal::LogSynced);
    }

    /// Nothing from `from` on was written; the copy may be sent it again in a later epoch.
    pub(super) fn refused(&mut self, env: &mut Env, id: TabletId, from: Seq) {
        let Some(run) = &mut self.run else { return };
        let Some(copy) = run.copies.get_mut(&id) else { return };
        copy.tail.retain(|entry| entry.seq() < from);
        let follows = copy.core.leading().is_none();
        self.step(env, id, Input::AppendFailed { from });
        // A follower is sent the same entries by the same leader again.
        if let Some(run) = self.run.as_mut().filter(|_| follows) {
            let waits = run.log.waiting.iter().any(|(record, _)| record.tablet == id);
            if !waits {
                run.log.refusing.remove(&id);
            }
        }
    }

    pub(super) fn log_synced(&mut self, env: &mut Env) {
        let synced = self.disk.log.sync();
        let Some(run) = &mut self.run else { return };
        let when = std::mem::take(&mut run.log.when);
        (run.log.writing, run.log.since_us) = (false, None);
        let mut upto: BTreeMap<TabletId, Seq> = BTreeMap::new();
        let mut own = Vec::new();
        for (record, when) in synced.into_iter().zip(when) {
            let Record { tablet, by, entry } = record;
            env.observe(&Observation::Durable { tablet, server: self.index, by, entry: &entry });
            upto.insert(tablet, entry.seq());
            if let Some(copy) = run.copies.get_mut(&tablet) {
                copy.tail.retain(|known| known.seq() > entry.seq());
            }
            if when == When::Own(ApplyWhen::Durable) {
                own.push((tablet, entry));
            }
        }
        if !mutated!(ApplyBeforeDurable) && !own.is_empty() {
            self.apply_later(env, Internal::Apply(own));
        }
        for (id, seq) in upto {
            self.step(env, id, Input::Persisted { upto: seq });
        }
        self.write_if_idle(env);
    }

    /// The apply thread does one thing after another.
    fn apply_later(&mut self, env: &mut Env, event: Internal) {
        let delay = env.rng.between((10, 500));
        let Some(run) = &mut self.run else { return };
        run.apply_at_us = run.apply_at_us.max(env.now_us + delay);
        let delay = run.apply_at_us - env.now_us;
        self.after(env, delay, event);
    }

    /// Rows of a leader's own entries, as soon as they are durable.
    pub(super) fn apply(&mut self, env: &mut Env, entries: &[(TabletId, Rc<Entry>)]) {
        let mut upto: BTreeMap<TabletId, Seq> = BTreeMap::new();
        for (tablet, entry) in entries {
            self.apply_entry(env, *tablet, entry);
            upto.insert(*tablet, entry.seq());
        }
        for (id, seq) in upto {
            self.step(env, id, Input::Applied { upto: seq });
        }
    }

    fn apply_entry(&mut self, env: &mut Env, tablet: TabletId, entry: &Rc<Entry>) {
        let Some(run) = &mut self.run else { return };
        let Some(copy) = run.copies.get(&tablet) else { return };
        env.observe(&Observation::Applied { tablet, server: self.index, entry });
        run.cache.change_begins(entry);
        self.disk.store.apply(entry, copy.core.range());
        run.cache.change_ends(entry);
    }

    pub(super) fn apply_upto(&mut self, env: &mut Env, id: TabletId, upto: Seq) {
        self.apply_later(env, Internal::Settle(id, upto));
    }

    /// Rows of everything up to an entry, in order; what a revert among them takes back is
    /// left out, or put and removed again, which must be the same.
    pub(super) fn settle(&mut self, env: &mut Env, id: TabletId, upto: Seq) {
        let skips = env.rng.chance(500) && !mutated!(RevertIgnored);
        let Some(copy) = self.run.as_mut().and_then(|run| run.copies.get_mut(&id)) else { return };
        let from = copy.settled.max(copy.core.applied_seq());
        copy.settled = upto.max(copy.settled);
        let log = self.disk.log.tablet(id);
        let window = log.into_iter().flat_map(|log| log.after(from)).take_while(|entry| entry.seq() <= upto);
        let window: Vec<Rc<Entry>> = window.cloned().collect();
        let index = self.index;
        env.say(|| format!("server {index} {id} applies {from} to {upto}"));
        let taken: Vec<_> =
            window.iter().flat_map(|entry| entry.reverts()).map(|target| target.pos).collect();
        for entry in window {
            if mutated!(RevertIgnored) && !entry.reverts().is_empty() {
                continue;
            }
            if !(skips && taken.contains(&entry.pos)) {
                self.apply_entry(env, id, &entry);
            }
        }
        self.step(env, id, Input::Settled { upto });
    }

    /// Notes what is applied before the flush begins; that much is durable when it returns.
    pub(super) fn flush_begins(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        // Rows of a log that is being cut are going away again.
        let is_whole = |copy: &&Copy| !run.cutting.contains_key(&copy.core.id()) || mutated!(FlushedOverCut);
        let position = |copy: &Copy| (copy.core.id(), copy.core.applied_seq(), copy.cuts);
        let positions: Vec<(TabletId, Seq, u64)> =
            run.copies.values().filter(is_whole).map(position).collect();
        let mark = self.disk.store.mark();
        if mutated!(FlushedBeforeFlush) {
            self.record_flushed(env, &positions);
        }
        let retired = self.retired_unflushed();
        let delay = env.rng.between(env.profile.disk.flush_us);
        self.after(env, delay, Internal::FlushReturns { mark, positions, retired });
    }

    /// A flush has returned. What is retired counts as durable before its children do.
    pub(super) fn flush_returns(
        &mut self,
        env: &mut Env,
        mark: u64,
        positions: Vec<(TabletId, Seq, u64)>,
        retired: Vec<TabletId>,
    ) {
        self.disk.store.flushed(mark);
        if !retired.is_empty() {
            self.write_registry(env, RegistryChange::RetiredFlushed(retired));
        }
        let Some(run) = &self.run else { return };
        // A cut since then has taken rows away that this flush may have kept.
        let is_true = |(id, _, cuts): &&(TabletId, Seq, u64)| {
            run.copies.get(id).is_some_and(|copy| copy.cuts == *cuts) || mutated!(FlushedOverCut)
        };
        let positions: Vec<_> = positions.iter().filter(is_true).copied().collect();
        self.record_flushed(env, &positions);
        self.release_retired(env);
        let delay = env.rng.between(env.profile.disk.flush_every_us);
        self.after(env, delay, Internal::FlushBegins);
    }

    /// Purges logs that are above their size, once the floor of their tokens is durable: never
    /// what is not safe, and never what another copy lacks.
    pub(super) fn flushed(&mut self, env: &mut Env, positions: &[(TabletId, ReplicaId, Seq)]) {
        for (id, replica, flushed) in positions {
            let lacked = self.lacked(env, *id);
            let Some(run) = &mut self.run else { return };
            let copy = run.copies.get(id).filter(|copy| copy.core.replica() == *replica);
            let (Some(copy), Some(log)) = (copy, self.disk.log.tablet(*id)) else { continue };
            let safe = lacked.min(copy.core.standing());
            let upto = if mutated!(PurgeUnchecked) { *flushed } else { safe.min(*flushed) };
            if log.entries.len() <= env.profile.log_entries_max || run.purging.contains_key(id) {
                continue;
            }
            let purged = log.entries.iter().take_while(|entry| entry.seq() <= upto);
            let floor_ms = floor_above(purged.map(|entry| &**entry));
            let floor_ms = if mutated!(TokenFloorForgotten) { 0 } else { floor_ms };
            run.purging.insert(*id, upto);
            self.write_registry(env, RegistryChange::TokenFloor(*id, floor_ms));
        }
    }

    fn record_flushed(&mut self, env: &mut Env, positions: &[(TabletId, Seq, u64)]) {
        let Some(run) = &self.run else { return };
        let named =
            |(id, seq, _): &(TabletId, Seq, u64)| Some((*id, run.copies.get(id)?.core.replica(), *seq));
        let positions = positions.iter().filter_map(named).collect();
        self.write_registry(env, RegistryChange::Flushed(positions));
    }

    /// Up to where the log may go as far as other copies are concerned. Of those in sync a real
    /// leader knows what they have, and other copies keep what is younger than the token window;
    /// the simulator looks. Where copies are not built anew, none may ever lack what goes.
    fn lacked(&self, env: &mut Env, id: TabletId) -> Seq {
        let Some(route) = env.directory.route(id) else { return Seq(0) };
        let story = env.watch.oracle.story(id);
        let own = story.end_of(self.index);
        let common = |server: &usize| {
            let log = story.copies.get(server);
            log.and_then(|log| log.iter().rev().find(|pos| story.contains(own, **pos)))
                .map_or(Seq(0), |pos| pos.seq)
        };
        let in_sync = |id: &ReplicaId| route.in_sync.contains(id);
        let all = route.copies.values().map(common).min();
        let counted =
            route.copies.iter().filter(|(id, _)| in_sync(id)).map(|(_, server)| common(server)).min();
        // Above the size limit the copies that are not in sync lose: they are built anew.
        let is_full = env.profile.repairs && env.rng.chance(env.profile.log_full_pm);
        if is_full { counted } else { all }.unwrap_or(Seq(0))
    }

    pub(super) fn purge(&mut self, env: &mut Env, id: TabletId, floor_ms: u64) {
        self.step(env, id, Input::ForgetTokens { issued_before_ms: floor_ms });
        let Some(run) = &mut self.run else { return };
        if let Some(upto) = run.purging.remove(&id) {
            self.disk.log.purge(id, upto);
        }
    }
}

/// Above every token of these entries.
pub fn floor_above<'a>(entries: impl Iterator<Item = &'a Entry>) -> u64 {
    entries.filter_map(token).map(|token| token.issued_ms + 1).max().unwrap_or_default()
}

fn token(entry: &Entry) -> Option<Token> {
    match &entry.payload {
        Payload::EpochStart { .. }
        | Payload::Revert { .. }
        | Payload::Close
        | Payload::Seal(_)
        | Payload::Unseal { .. } => None,
        Payload::Write(write) => write.token,
        Payload::TokenFence { token } => Some(*token),
    }
}
