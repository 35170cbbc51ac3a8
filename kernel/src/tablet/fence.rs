//! Promises: how a replica turns away old leaders, and how a leader gives up.

use super::{Answer, Effect, FenceAnswer, Tablet};
use crate::ids::{Epoch, Seq};
use crate::mutated;

impl Tablet {
    /// Metadata wants a promise. A polled leader first steps down for good, then answers.
    pub(super) fn fence(&mut self, epoch: Epoch, effects: &mut Vec<Effect>) {
        if epoch < self.promised.max(self.promising.unwrap_or_default()) || epoch <= self.led {
            return;
        }
        if self.appointment.as_ref().is_some_and(|appointment| appointment.epoch == epoch) {
            return; // an earlier answer has already led to an appointment
        }
        self.step_down(effects);
        self.fence = Some(epoch);
        self.promise(epoch, effects);
        self.proceed_fence(effects);
    }

    /// Asks for `epoch` to be made durable, once.
    pub(super) fn promise(&mut self, epoch: Epoch, effects: &mut Vec<Effect>) {
        if epoch > self.promised && Some(epoch) > self.promising {
            self.promising = Some(epoch);
            effects.push(Effect::PersistPromise { epoch });
        }
    }

    pub(super) fn promise_persisted(&mut self, epoch: Epoch, effects: &mut Vec<Effect>) {
        self.promised = self.promised.max(epoch);
        if self.promising.is_some_and(|promising| promising <= epoch) {
            self.promising = None;
        }
        self.proceed(effects);
    }

    /// Answers once the promise is durable and nothing appended before is in doubt (m32).
    pub(super) fn proceed_fence(&mut self, effects: &mut Vec<Effect>) {
        let Some(epoch) = self.fence else { return };
        let drained = self.queued.is_empty() || mutated!(FenceAnsweredUndrained);
        if self.promised < epoch || !drained {
            return;
        }
        self.fence = None;
        effects.push(Effect::AnswerFence(FenceAnswer { epoch, end: self.durable }));
    }

    /// An append that failed costs the epoch: entries may already be elsewhere.
    pub(super) fn append_failed(&mut self, from: Seq, effects: &mut Vec<Effect>) {
        self.queued.retain(|end| end.pos.seq < from);
        self.end = self.queued.back().copied().unwrap_or(self.durable);
        self.epochs.retain(|(_, start)| *start < from);
        self.tokens.cut(from);
        self.step_down(effects);
        self.proceed(effects);
    }

    /// Gives up the epoch for good; whoever waits is told that nobody can say yet.
    pub(super) fn step_down(&mut self, effects: &mut Vec<Effect>) {
        self.appointment = None;
        let Some(leader) = self.leader.take() else { return };
        effects.push(Effect::StopServing { epoch: leader.epoch() });
        for request in leader.into_waiting() {
            effects.push(Effect::Reply { request, answer: Answer::Unknown });
        }
    }
}
