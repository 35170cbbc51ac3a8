//! The leader's part: the start of an epoch, writes into the log, answers out of it.

use super::progress::Progress;
use super::token::{TokenLookup, TokenRecord};
use super::{Answer, Appointment, Effect, Refusal, Tablet, WriteRequest};
use crate::entry::{Payload, WriteRecord};
use crate::hlc::Hlc;
use crate::ids::{Epoch, Pos, ReplicaId, RequestId, Seq, Tick};
use crate::mutated;
use crate::op::{Action, Committed, Op, Token};
use crate::range::KeyRange;
use crate::sequence::{Recent, Reject, sequence};
use std::collections::BTreeMap;

/// A question for the outcome of a write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) request: RequestId,
    pub(super) token: Token,
    pub(super) wall_ms: u64,
    pub(super) ts: Hlc,
    pub(super) deadline: Tick,
}

/// What a client waits for.
#[derive(Clone, Debug)]
enum Wait {
    /// A write at its level.
    Level(Committed),
    /// An older write of the same token, or a question for it: Q decides (m37).
    Decided(Answer),
    /// Everything up to a position in the store, then this.
    Applied(Answer),
}

#[derive(Clone, Debug)]
struct Waiter {
    request: RequestId,
    wait: Wait,
    deadline: Tick,
}

/// A replica that leads one epoch.
#[derive(Debug)]
pub(super) struct Leader {
    epoch: Epoch,
    /// Position of its EpochStart.
    start: Seq,
    serving: bool,
    progress: Progress,
    /// Who waits for which position.
    waiting: BTreeMap<Seq, Vec<Waiter>>,
    /// No deadline of a waiter is earlier.
    earliest: Option<Tick>,
}

impl Leader {
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) fn is_serving(&self) -> bool {
        self.serving
    }

    pub(super) fn q(&self) -> Option<Pos> {
        self.progress.q()
    }

    pub(super) fn next_deadline(&self) -> Option<Tick> {
        self.earliest
    }

    pub(super) fn durable(&mut self, replica: ReplicaId, pos: Pos) {
        self.progress.durable(replica, pos);
    }

    pub(super) fn into_waiting(self) -> impl Iterator<Item = RequestId> {
        self.waiting.into_values().flatten().map(|waiter| waiter.request)
    }

    fn wait(&mut self, seq: Seq, waiter: Waiter) {
        let deadline = waiter.deadline;
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        self.waiting.entry(seq).or_default().push(waiter);
    }

    /// Takes out the waiters up to `applied` whose condition holds.
    fn take_ready(&mut self, own: ReplicaId, applied: Seq) -> Vec<(RequestId, Answer)> {
        let q = self.q().map_or(Seq(0), |pos| pos.seq);
        let mut ready = Vec::new();
        let mut waiting_on = self.waiting.split_off(&applied.next());
        std::mem::swap(&mut waiting_on, &mut self.waiting);
        for (seq, waiters) in waiting_on {
            for waiter in waiters {
                let done = match &waiter.wait {
                    Wait::Level(committed) => self.progress.reached(committed.level, own, seq),
                    Wait::Decided(_) => seq <= q,
                    Wait::Applied(_) => true,
                };
                if done {
                    ready.push((waiter.request, waiter.wait.into_answer()));
                } else {
                    self.waiting.entry(seq).or_default().push(waiter);
                }
            }
        }
        if self.waiting.is_empty() {
            self.earliest = None;
        }
        ready
    }

    fn take_expired(&mut self, now: Tick) -> Vec<RequestId> {
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        let mut expired = Vec::new();
        for waiters in self.waiting.values_mut() {
            expired.extend(waiters.extract_if(.., |w| w.deadline <= now).map(|w| w.request));
        }
        self.waiting.retain(|_, waiters| !waiters.is_empty());
        self.earliest = self.waiting.values().flatten().map(|waiter| waiter.deadline).min();
        expired
    }
}

impl Wait {
    fn into_answer(self) -> Answer {
        match self {
            Self::Level(committed) => Answer::Committed(committed),
            Self::Decided(answer) | Self::Applied(answer) => answer,
        }
    }
}

impl Tablet {
    pub(super) fn appoint(&mut self, appointment: Appointment, effects: &mut Vec<Effect>) {
        let own_run = appointment.incarnation == self.incarnation || mutated!(AnyIncarnationLeads);
        let mine = appointment.replica == self.replica && own_run;
        if !mine || self.is_stale(appointment.epoch) {
            return;
        }
        self.step_down(effects);
        self.promise(appointment.epoch, effects);
        self.appointment = Some(appointment);
        self.proceed_appointment(effects);
    }

    /// Whether `epoch` must not begin here: a later one is promised, even if that promise is
    /// still on its way to the registry (m5, m32), or it began already, in this process or,
    /// as the log says, in an earlier one (m7).
    fn is_stale(&self, epoch: Epoch) -> bool {
        let promising = self.promising.filter(|_| !mutated!(PromiseInFlightIgnored)).unwrap_or_default();
        (epoch < self.promised.max(promising) && !mutated!(LowerEpochAccepted))
            || epoch <= self.led.max(self.end.pos.epoch)
    }

    /// Begins the epoch once the promise is durable and the whole old tail is applied.
    pub(super) fn proceed_appointment(&mut self, effects: &mut Vec<Effect>) {
        let ready = self.is_drained()
            && self.appointment.as_ref().is_some_and(|appointment| appointment.epoch <= self.promised);
        if ready && let Some(appointment) = self.appointment.take() {
            self.start_epoch(appointment, effects);
        } else if self.leader.as_ref().is_some_and(|leader| !leader.serving) {
            self.serve_when_started(effects);
        }
    }

    fn start_epoch(&mut self, appointment: Appointment, effects: &mut Vec<Effect>) {
        let Appointment { epoch, in_sync, min_in_sync, ts, .. } = appointment;
        if epoch != self.promised && !mutated!(LowerEpochAccepted) {
            return; // promised to a later epoch meanwhile
        }
        let payload = Payload::EpochStart { replica: self.replica, incarnation: self.incarnation };
        let entry = self.end.follow(epoch, ts.max(self.end.ts.next()), payload);
        self.led = epoch;
        self.recent = Recent::new(self.applied);
        self.leader = Some(Leader {
            epoch,
            start: entry.seq(),
            serving: false,
            progress: Progress::new(epoch, in_sync, min_in_sync),
            waiting: BTreeMap::new(),
            earliest: None,
        });
        if mutated!(QCountsOlderEpochs) {
            self.count_own_copy(self.durable.pos);
        }
        self.append(entry, effects);
    }

    /// Default reads start when Q has reached EpochStart and it is applied.
    fn serve_when_started(&mut self, effects: &mut Vec<Effect>) {
        let applied = self.applied;
        let Some(leader) = &mut self.leader else { return };
        if applied >= leader.start && leader.q().is_some_and(|q| q.seq >= leader.start) {
            leader.serving = true;
            effects.push(Effect::Serve { epoch: leader.epoch });
        }
    }

    pub(super) fn write(&mut self, write: WriteRequest, effects: &mut Vec<Effect>) {
        let request = write.request;
        if let Err(answer) = self.try_write(write, effects) {
            effects.push(Effect::Reply { request, answer });
        }
    }

    fn try_write(&mut self, write: WriteRequest, effects: &mut Vec<Effect>) -> Result<(), Answer> {
        let epoch = self.check_write(&write)?;
        if let Some(token) = write.token
            && self.is_retry(token, &write)?
        {
            self.answer_waiting(effects);
            return Ok(());
        }
        let ts = write.ts.max(self.end.ts.next());
        let sequenced = match sequence(&write.ops, ts, &self.range, &self.recent, &write.evidence) {
            Ok(sequenced) => sequenced,
            Err(reject) => return self.reject(&write, reject),
        };
        let record = WriteRecord {
            token: write.token,
            level: write.level,
            changes: sequenced.changes,
            results: sequenced.results.clone(),
        };
        let seq = self.end.pos.seq.next();
        self.recent.note(seq, ts, &record.changes);
        let entry = self.end.follow(epoch, ts, Payload::Write(record));
        let committed = Committed { pos: entry.pos, ts, level: write.level, results: sequenced.results };
        self.append(entry, effects);
        self.wait(seq, write.request, Wait::Level(committed), write.deadline);
        Ok(())
    }

    /// A refusal may rest on a write in flight, which may still be lost: it is told when
    /// everything sequenced so far is applied, so that nobody sees what never was.
    fn reject(&mut self, write: &WriteRequest, reject: Reject) -> Result<(), Answer> {
        let answer = Answer::Refused(Refusal::Rejected(reject));
        let waits = answer != Answer::Refused(Refusal::Rejected(Reject::ReadAgain));
        if !waits || mutated!(RefusalBeforeDurable) || self.applied == self.end.pos.seq {
            return Err(answer);
        }
        self.wait(self.end.pos.seq, write.request, Wait::Applied(answer), write.deadline);
        Ok(())
    }

    /// The epoch to write in, or why not: everything that can be known before writing.
    fn check_write(&self, write: &WriteRequest) -> Result<Epoch, Answer> {
        let leader = self.serving_leader().ok_or(Answer::Refused(Refusal::NotLeader))?;
        if !leader.progress.can_reach(write.level) {
            return Err(Answer::Refused(Refusal::NotEnoughReplicas));
        }
        if !write.ops.iter().all(|op| touches_only(op, &self.range)) {
            return Err(Answer::Refused(Refusal::OutOfRange));
        }
        Ok(leader.epoch)
    }

    /// Whether the write is a retry of one that the log holds; then its client waits for that.
    fn is_retry(&mut self, token: Token, write: &WriteRequest) -> Result<bool, Answer> {
        let (pos, committed) = match self.look_up(token, write.wall_ms) {
            TokenLookup::New => return Ok(false),
            TokenLookup::TooOld => return Err(Answer::Refused(Refusal::TokenTooOld)),
            TokenLookup::Known(record) => (record.pos(), record.committed()),
        };
        // An entry of an older epoch counts only through one of this epoch (m13, m37), and a
        // fence may be lost like any entry until it is <= Q.
        let own_epoch = self.leader.as_ref().map(|leader| leader.epoch) == Some(pos.epoch);
        let wait = match committed {
            None => Wait::Decided(Answer::Refused(Refusal::TokenFenced)),
            Some(committed) if own_epoch => Wait::Level(committed),
            Some(committed) => Wait::Decided(Answer::Committed(committed)),
        };
        self.wait(pos.seq, write.request, wait, write.deadline);
        Ok(true)
    }

    fn look_up(&self, token: Token, wall_ms: u64) -> TokenLookup<'_> {
        match self.tokens.look_up(token, wall_ms) {
            TokenLookup::Known(record)
                if mutated!(QueuedTokensIgnored) && record.pos().seq > self.durable.pos.seq =>
            {
                TokenLookup::New
            }
            known => known,
        }
    }

    pub(super) fn barrier(&mut self, request: RequestId, deadline: Tick, effects: &mut Vec<Effect>) {
        if self.serving_leader().is_none() {
            let answer = Answer::Refused(Refusal::NotLeader);
            effects.push(Effect::Reply { request, answer });
        } else if self.applied == self.end.pos.seq {
            effects.push(Effect::Reply { request, answer: Answer::Reached });
        } else {
            self.wait(self.end.pos.seq, request, Wait::Applied(Answer::Reached), deadline);
        }
    }

    pub(super) fn get_outcome(&mut self, question: Question, effects: &mut Vec<Effect>) {
        let Some(epoch) = self.serving_leader().map(|leader| leader.epoch) else {
            let answer = Answer::Refused(Refusal::NotLeader);
            effects.push(Effect::Reply { request: question.request, answer });
            return;
        };
        let (seq, answer) = match self.look_up(question.token, question.wall_ms) {
            TokenLookup::Known(record) => (record.pos().seq, outcome(record)),
            TokenLookup::TooOld => {
                let answer = Answer::Refused(Refusal::TokenTooOld);
                effects.push(Effect::Reply { request: question.request, answer });
                return;
            }
            TokenLookup::New => {
                let payload = Payload::TokenFence { token: question.token };
                let entry = self.end.follow(epoch, question.ts.max(self.end.ts.next()), payload);
                let seq = entry.seq();
                self.append(entry, effects);
                (seq, Answer::Reverted)
            }
        };
        self.wait(seq, question.request, Wait::Decided(answer), question.deadline);
        self.answer_waiting(effects);
    }

    /// Answers everyone whose condition has come true.
    pub(super) fn answer_waiting(&mut self, effects: &mut Vec<Effect>) {
        let (replica, applied) = (self.replica, self.applied);
        let Some(leader) = &mut self.leader else { return };
        for (request, answer) in leader.take_ready(replica, applied) {
            effects.push(Effect::Reply { request, answer });
        }
    }

    pub(super) fn expire(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let Some(leader) = &mut self.leader else { return };
        for request in leader.take_expired(now) {
            effects.push(Effect::Reply { request, answer: Answer::Unknown });
        }
    }

    fn wait(&mut self, seq: Seq, request: RequestId, wait: Wait, deadline: Tick) {
        let leader = self.leader.as_mut().expect("only a serving leader lets clients wait");
        leader.wait(seq, Waiter { request, wait, deadline });
    }

    fn serving_leader(&self) -> Option<&Leader> {
        self.leader.as_ref().filter(|leader| leader.serving)
    }
}

fn outcome(record: &TokenRecord) -> Answer {
    record.committed().map_or(Answer::Reverted, Answer::Committed)
}

/// Rows must lie in the tablet; a delete range is cut to it, but must begin in it.
fn touches_only(op: &Op, range: &KeyRange) -> bool {
    match &op.action {
        Action::Set { key, .. } | Action::Delete { key } | Action::Add { key, .. } => range.contains(key),
        Action::DeleteRange { from, to } => {
            KeyRange::new(from.clone(), to.clone()).ok().and_then(|asked| asked.intersect(range)).is_some()
        }
    }
}
