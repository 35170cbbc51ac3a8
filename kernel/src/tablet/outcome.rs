//! Questions: how a write ended, and when everything up to now can be read.

use super::leader::{Leader, Wait, Waiter};
use super::token::{TokenLookup, TokenRecord};
use super::{Answer, Context, Effect, PeerMessage, Refusal, Tablet};
use crate::entry::Payload;
use crate::hlc::Hlc;
use crate::ids::{RequestId, Tick};
use crate::mutated;
use crate::op::Token;

/// A question for the outcome of a write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub request: RequestId,
    pub token: Token,
    pub wall_ms: u64,
    pub ts: Hlc,
    pub deadline: Tick,
}

impl Tablet {
    pub(super) fn look_up(&self, token: Token, wall_ms: u64) -> TokenLookup<'_> {
        match self.tokens.look_up(token, wall_ms) {
            TokenLookup::Known(record)
                if mutated!(QueuedTokensIgnored) && record.pos().seq > self.log.durable().pos.seq =>
            {
                TokenLookup::New
            }
            known => known,
        }
    }

    pub(super) fn barrier(&mut self, request: RequestId, ts: Hlc, deadline: Tick, effects: &mut Vec<Effect>) {
        self.read_floor = self.read_floor.max(ts);
        if self.serving_leader().is_none() {
            let answer = Answer::Refused(Refusal::NotLeader);
            effects.push(Effect::Reply { request, answer });
        } else if self.applied == self.log.end().pos.seq {
            effects.push(Effect::Reply { request, answer: Answer::Reached });
        } else {
            let waiter = Waiter { request, wait: Wait::Settled(Answer::Reached), deadline };
            self.wait_at(self.log.end().pos.seq, waiter);
        }
    }

    pub(super) fn get_outcome(
        &mut self,
        context: Context<'_>,
        question: Question,
        effects: &mut Vec<Effect>,
    ) {
        let Question { request, deadline, .. } = question;
        let Some(epoch) = self.serving_leader().map(Leader::epoch) else {
            let answer = Answer::Refused(Refusal::NotLeader);
            effects.push(Effect::Reply { request, answer });
            return;
        };
        let (seq, answer) = match self.look_up(question.token, question.wall_ms) {
            TokenLookup::Known(record) => (record.pos().seq, outcome(record)),
            TokenLookup::TooOld => {
                let answer = Answer::Refused(Refusal::TokenTooOld);
                effects.push(Effect::Reply { request, answer });
                return;
            }
            TokenLookup::New if self.holds_writes() => {
                // Nothing follows a seal; whoever takes the tablet's place knows its tokens.
                effects.push(Effect::Reply { request, answer: Answer::Refused(Refusal::Sealed) });
                return;
            }
            TokenLookup::New => {
                let payload = Payload::TokenFence { token: question.token };
                let end = self.log.end();
                let entry = end.follow(epoch, question.ts.max(end.ts.next()), payload);
                let seq = entry.seq();
                self.append_immediate(entry, effects);
                (seq, Answer::Reverted)
            }
        };
        self.wait_at(seq, Waiter { request, wait: Wait::Decided(answer), deadline });
        self.answer_waiting(context, effects);
    }

    /// A leader closes the past with an entry that says nothing else, unless one will do it
    /// anyway; a follower asks its leader to.
    pub(super) fn close_wanted(&mut self, ts: Hlc, fresh: Hlc, effects: &mut Vec<Effect>) {
        if let Some(leader) = &self.leader {
            let end = self.log.end();
            if end.ts < ts && self.seals.sealed().is_none() {
                let entry = end.follow(leader.epoch, fresh.max(ts).max(end.ts.next()), Payload::Close);
                self.append_immediate(entry, effects);
            }
        } else if let Some(following) = &self.following {
            let (to, epoch) = (following.leader, following.epoch);
            effects.push(Effect::Send { to, epoch, message: PeerMessage::CloseWanted { ts } });
        }
    }
}

fn outcome(record: &TokenRecord) -> Answer {
    record.committed().map_or(Answer::Reverted, Answer::Committed)
}
