//! Promises: how a replica turns away old leaders, and how a leader gives up.
//!
//! A fence is answered when three things hold: the promise is durable; everything that was
//! appended before is durable or refused (m32); and nothing that this process promised to the
//! leader that is being deposed is in force any more (m18). The last needs no waiting when
//! metadata knows that leader to be gone.

use super::{Context, Effect, FenceAnswer, Tablet};
use crate::ids::{Epoch, Seq, Tick};
use crate::mutated;

/// A fence that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence {
    epoch: Epoch,
    /// Leaders of epochs up to this are gone.
    gone: Epoch,
    /// When to see whether promises have ended.
    pub look_again: Option<Tick>,
}

impl Fence {
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl Tablet {
    /// Metadata wants a promise. A polled leader first steps down for good, then answers.
    pub(super) fn fence(
        &mut self,
        context: Context<'_>,
        epoch: Epoch,
        gone: Epoch,
        effects: &mut Vec<Effect>,
    ) {
        let is_old = epoch < self.promised.max(self.promising.unwrap_or_default()) || epoch <= self.led;
        if is_old || self.diverged {
            return;
        }
        if self.appointment.as_ref().is_some_and(|appointment| appointment.epoch == epoch) {
            return; // an earlier answer has already led to an appointment
        }
        if self.following.as_ref().is_some_and(|following| following.epoch >= epoch) {
            return; // the leader of that epoch has been met
        }
        self.step_down(effects);
        self.following = None; // m32: nothing of a lower epoch is taken or acknowledged from now on
        self.fence = Some(Fence { epoch, gone, look_again: None });
        self.promise(epoch, effects);
        self.proceed_fence(context, effects);
    }

    /// Asks for `epoch` to be made durable, once. From now on the leader that is attached
    /// hears of it with every promise (m20).
    pub(super) fn promise(&mut self, epoch: Epoch, effects: &mut Vec<Effect>) {
        if epoch > self.promised && Some(epoch) > self.promising {
            self.promising = Some(epoch);
            if let Some(attached) = self.attached.filter(|attached| attached.epoch < epoch) {
                effects.push(Effect::Except { tablet: self.id, to: attached.run, epoch });
                let is_inherited = self.parents.iter().any(|(_, led)| led.epoch == attached.epoch);
                for (parent, led) in self.parents.iter().filter(|_| is_inherited) {
                    // That process may not have heard that its tablet is retired.
                    effects.push(Effect::Except { tablet: *parent, to: led.run, epoch: led.epoch.next() });
                }
            }
            effects.push(Effect::PersistPromise { epoch });
        }
    }

    pub(super) fn promise_persisted(
        &mut self,
        context: Context<'_>,
        epoch: Epoch,
        effects: &mut Vec<Effect>,
    ) {
        self.promised = self.promised.max(epoch);
        if self.promising.is_some_and(|promising| promising <= epoch) {
            self.promising = None;
        }
        // Promises given from now on list the tablet; what was given before ends here.
        if let Some(attached) = self.attached.as_mut().filter(|attached| attached.epoch < epoch) {
            attached.ends.get_or_insert_with(|| context.promises.given_until(attached.run));
        }
        self.proceed(context, effects);
    }

    /// Answers once nothing is in the way.
    pub(super) fn proceed_fence(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let Some(fence) = self.fence else { return };
        let drained = self.log.is_durable() || mutated!(FenceAnsweredUndrained);
        if self.promised < fence.epoch || !drained || self.cutting.is_some() {
            return;
        }
        let left_ms = self.bound_until(context, fence.gone).ms_since(context.promises.promiser_now());
        if left_ms > 0 && !mutated!(FenceNotHeld) {
            self.fence = Some(Fence { look_again: Some(context.now.plus_ms(left_ms)), ..fence });
            return;
        }
        self.fence = None;
        let (epoch, end) = (fence.epoch, self.log.durable());
        effects.push(Effect::AnswerFence(FenceAnswer { epoch, end }));
    }

    /// Until when this process is bound, by the promiser's clock: by what it promised to the
    /// leader it followed, and by what an earlier run of it may have promised (m21).
    fn bound_until(&self, context: Context<'_>, gone: Epoch) -> Tick {
        let attached = self.attached.filter(|attached| attached.epoch > gone);
        let given = attached.map_or(Tick(0), |attached| {
            attached.ends.unwrap_or_else(|| context.promises.given_until(attached.run))
        });
        let boot = if gone > Epoch(0) { Tick(0) } else { context.promises.boot_until() };
        given.max(boot)
    }

    /// A promise told of a higher epoch: the epoch is given up for ever before it counts (m20).
    pub(super) fn superseded(&mut self, epoch: Epoch, effects: &mut Vec<Effect>) {
        let led = self.leader.as_ref().map(super::Leader::epoch);
        let waits = self.appointment.as_ref().map(|appointment| appointment.epoch);
        if led.max(waits).is_some_and(|own| own < epoch) {
            self.step_down(effects);
        }
    }

    /// An append that failed costs the epoch: entries may already be elsewhere.
    pub(super) fn append_failed(&mut self, context: Context<'_>, from: Seq, effects: &mut Vec<Effect>) {
        self.log.refuse(from);
        self.tokens.cut(from);
        self.seals.cut(from);
        self.immediate.retain(|seq| *seq < from);
        self.step_down(effects);
        self.greet_again();
        self.proceed(context, effects);
    }
}
