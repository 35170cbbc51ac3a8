//! How a copy drops the end of its log, in the order that survives a crash at every step:
//! the intent, the loss ledger, the undo of rows, a flush, the cut.

use super::disk::{Intent, RegistryChange};
use super::env::Env;
use super::server::{Internal, Server};
use crate::invariants::Observation;
use ebla_kernel::entry::{Entry, LogEnd, Payload};
use ebla_kernel::ids::{Seq, TabletId};
use ebla_kernel::mutated;
use ebla_kernel::tablet::Input;
use ebla_kernel::tablet::truncate::Cut;
use std::rc::Rc;

impl Server {
    pub(super) fn located(&mut self, env: &mut Env, id: TabletId, seq: Seq) {
        let log = self.disk.log.tablet(id);
        let end = if seq == Seq(0) { Some(LogEnd::default()) } else { log.and_then(|log| log.end_at(seq)) };
        match end {
            Some(end) => self.step(env, id, Input::Located { end }),
            None => {
                let detail = format!("{id} on server {} would have to cut at {seq}", self.index);
                env.watch.fail("what is purged is never cut", &detail);
            }
        }
    }

    /// The core wants the log to end at `keep`.
    pub(super) fn truncate(&mut self, env: &mut Env, id: TabletId, keep: LogEnd) {
        let index = self.index;
        env.say(|| format!("server {index} {id} cuts its log after {}", keep.pos));
        let tail: Vec<Entry> = self.tail(id, keep).iter().map(|entry| Entry::clone(entry)).collect();
        let applied = if mutated!(CutRevertForgotten) { keep.pos.seq } else { Cut::of(&tail).applied_max };
        let intent = Intent { keep, applied };
        // A flush that began before this says nothing of the copy any more.
        self.cut_began(id);
        if let Some(run) = &mut self.run {
            run.cutting.insert(id, intent);
        }
        match mutated!(CutIntentSkipped) {
            true => self.truncation_intended(env, id),
            false => self.write_registry(env, RegistryChange::Truncating(id, intent)),
        }
    }

    /// Entries that are about to go.
    fn tail(&self, id: TabletId, keep: LogEnd) -> Vec<Rc<Entry>> {
        let log = self.disk.log.tablet(id);
        log.into_iter().flat_map(|log| log.after(keep.pos.seq)).cloned().collect()
    }

    fn intent(&self, id: TabletId) -> Option<Intent> {
        let noted = self.disk.registry.replicas.get(&id)?.truncating;
        noted.or_else(|| self.run.as_ref()?.cutting.get(&id).copied())
    }

    fn cut_began(&mut self, id: TabletId) {
        if let Some(copy) = self.run.as_mut().and_then(|run| run.copies.get_mut(&id)) {
            copy.cuts += 1;
        }
    }

    /// A cut that a crash interrupted begins again behind its intent.
    pub(super) fn truncate_again(&mut self, env: &mut Env, id: TabletId) {
        let index = self.index;
        env.say(|| format!("server {index} {id} goes on cutting its log"));
        self.truncation_intended(env, id);
    }

    pub(super) fn truncation_intended(&mut self, env: &mut Env, id: TabletId) {
        if let Some(intent) = self.intent(id) {
            self.note_loss(env, id, intent.keep);
        }
    }

    fn note_loss(&mut self, env: &mut Env, id: TabletId, keep: LogEnd) {
        let named = self.disk.registry.lost_of(id);
        let is_new =
            |entry: &Rc<Entry>| matches!(entry.payload, Payload::Write(_)) && !named.contains(&entry.pos);
        let lost = match mutated!(LossLedgerSkipped) {
            true => Vec::new(),
            false => self.tail(id, keep).into_iter().filter(is_new).collect(),
        };
        self.write_registry(env, RegistryChange::Lost(id, lost));
    }

    pub(super) fn loss_noted(&mut self, env: &mut Env, id: TabletId) {
        let delay = env.rng.between((10, 2_000));
        self.after(env, delay, Internal::Undo(id));
    }

    /// Exactly the versions of the tail leave the rows; then they are flushed.
    pub(super) fn undo(&mut self, env: &mut Env, id: TabletId) {
        let Some(Intent { keep, .. }) = self.intent(id) else { return };
        let tail: Vec<Entry> = self.tail(id, keep).iter().map(|entry| Entry::clone(entry)).collect();
        if !mutated!(TruncationUndoForgotten) {
            if let Some(run) = &mut self.run {
                tail.iter().for_each(|entry| run.cache.change_begins(entry));
            }
            self.disk.store.remove(Cut::of(&tail).undo);
            if let Some(run) = &mut self.run {
                tail.iter().for_each(|entry| run.cache.change_ends(entry));
            }
        }
        let mark = self.disk.store.mark();
        let delay = if mutated!(CutBeforeFlush) { 0 } else { env.rng.between(env.profile.disk.flush_us) };
        self.after(env, delay, Internal::Undone(id, mark));
    }

    pub(super) fn undone(&mut self, env: &mut Env, id: TabletId, mark: u64) {
        let Some(intent) = self.intent(id) else { return };
        if !mutated!(CutBeforeFlush) {
            self.disk.store.flushed(mark);
        }
        self.write_registry(env, RegistryChange::Cut(id, intent));
    }

    /// The log ends where it should; the core, if it waits, is told.
    pub(super) fn log_cut(&mut self, env: &mut Env, id: TabletId, intent: Intent) {
        let Intent { keep, applied } = intent;
        let Some(run) = &mut self.run else { return };
        run.cutting.remove(&id);
        let Some(copy) = run.copies.get_mut(&id) else {
            self.open(env, id, None);
            return;
        };
        copy.settled = applied.min(copy.core.applied_seq());
        self.step(env, id, Input::Truncated { end: keep, applied });
    }

    pub(super) fn show_cut(&self, env: &mut Env, id: TabletId, keep: LogEnd) {
        let kept = self.disk.registry.lost_of(id);
        env.observe(&Observation::Cut { tablet: id, server: self.index, keep, kept: &kept });
    }
}
