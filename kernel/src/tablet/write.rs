//! Clients' writes: what is checked before anything is written, and the way into the log.

use super::leader::{Leader, Wait, Waiter};
use super::{Answer, ApplyWhen, Context, Effect, Refusal, Tablet, WriteRequest};
use crate::entry::{Entry, Payload, RevertTarget, RevertedRow, WriteRecord};
use crate::hlc::Hlc;
use crate::ids::{Epoch, Seq, Tick};
use crate::limits::{PARKED_WRITES_MAX, PENDING_WRITES_MAX, REVERT_MARGIN_MS_MAX};
use crate::mutated;
use crate::op::{AckLevel, Action, Change, Committed, Op, Token};
use crate::range::KeyRange;
use crate::sequence::{Reject, Sequenced, sequence};

use super::token::TokenLookup;

/// Why a write did not go into the log.
enum Stopped {
    /// Tell its client.
    Told(Answer),
    /// It waits for a pending write of the same row.
    Parks(Box<WriteRequest>),
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self::Told(Answer::Refused(refusal))
    }
}

impl Tablet {
    pub(super) fn write(&mut self, context: Context<'_>, write: WriteRequest, effects: &mut Vec<Effect>) {
        self.write_in_group(context, write, None, effects);
    }

    /// Writes from `group` on were sequenced together: they may rest on each other.
    fn write_in_group(
        &mut self,
        context: Context<'_>,
        write: WriteRequest,
        group: Option<Seq>,
        effects: &mut Vec<Effect>,
    ) {
        let request = write.request;
        match self.try_write(context, write, group, effects) {
            Ok(()) => {}
            Err(Stopped::Told(answer)) => effects.push(Effect::Reply { request, answer }),
            Err(Stopped::Parks(write)) => {
                if let Some(leader) = &mut self.leader {
                    leader.parked.push(*write);
                }
            }
        }
    }

    fn try_write(
        &mut self,
        context: Context<'_>,
        write: WriteRequest,
        group: Option<Seq>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Stopped> {
        let epoch = self.check_write(context, &write)?;
        if let Some(token) = write.token
            && self.is_retry(token, &write)?
        {
            self.answer_waiting(context, effects);
            return Ok(());
        }
        if self.holds_writes() {
            return Err(self.park(write));
        }
        // A write that waited for another has an old timestamp, and somebody may have read since.
        let floor = if mutated!(ReadFloorForgotten) { Hlc::MIN } else { self.read_floor.next() };
        let ts = write.ts.max(self.log.end().ts.next()).max(floor);
        let when = self.visible_when(write.level);
        let chain_from = group.filter(|_| when == ApplyWhen::Safe);
        let sequenced = sequence(&write.ops, ts, &self.range, &self.recent, &write.evidence, chain_from);
        let Sequenced { changes, results } = match sequenced {
            Ok(sequenced) => sequenced,
            Err(Reject::Pending) => return Err(self.park(write)),
            Err(reject) => return self.reject(&write, reject),
        };
        let record =
            WriteRecord { token: write.token, level: write.level, changes, results: results.clone() };
        let entry = self.log.end().follow(epoch, ts, Payload::Write(record));
        let committed = Committed { pos: entry.pos, ts, level: write.level, results };
        let wait = Waiter { request: write.request, wait: Wait::Level(committed), deadline: write.deadline };
        self.append_write(context, entry, when, group, &write, effects);
        self.wait(wait);
        Ok(())
    }

    fn append_write(
        &mut self,
        context: Context<'_>,
        entry: Entry,
        when: ApplyWhen,
        group: Option<Seq>,
        write: &WriteRequest,
        effects: &mut Vec<Effect>,
    ) {
        let (seq, is_pending) = (entry.seq(), when == ApplyWhen::Safe);
        self.recent.note(seq, entry.ts, entry.changes(), is_pending);
        if let Some(leader) = &mut self.leader {
            leader.bytes += entry.changes().iter().map(Change::bytes).sum::<usize>() as u64;
            if is_pending {
                let rows = entry.changes().iter().map(RevertedRow::of).collect();
                let target = RevertTarget { pos: entry.pos, ts: entry.ts, token: write.token, rows };
                leader.pending.insert(target, group.unwrap_or(seq), fails_at(context.now, write.deadline));
            }
        }
        if is_pending && !mutated!(PendingShown) {
            self.append(entry, when, effects);
        } else {
            self.append_immediate(entry, effects);
        }
    }

    /// When the rows of a write at `level` may be seen: at once only where the leader's own
    /// copy is all that the level asks for.
    fn visible_when(&self, level: AckLevel) -> ApplyWhen {
        let is_alone = self.leader.as_ref().is_some_and(|leader| leader.peers.is_empty());
        match level {
            AckLevel::Leader | AckLevel::Copies(0 | 1) => ApplyWhen::Durable,
            AckLevel::Copies(_) | AckLevel::InSync if is_alone => ApplyWhen::Durable,
            AckLevel::Copies(_) | AckLevel::InSync => ApplyWhen::Safe,
        }
    }

    fn park(&self, write: WriteRequest) -> Stopped {
        let parked = self.leader.as_ref().map_or(0, |leader| leader.parked.len());
        if parked >= PARKED_WRITES_MAX { Refusal::Busy.into() } else { Stopped::Parks(Box::new(write)) }
    }

    /// Runs the writes that waited for a pending one, together: those of one row become one
    /// group that stands or falls as a whole.
    pub(super) fn run_parked(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let Some(leader) = &mut self.leader else { return };
        let parked = std::mem::take(&mut leader.parked);
        if parked.is_empty() {
            return;
        }
        let group = self.log.end().pos.seq.next();
        for write in parked {
            self.write_in_group(context, write, Some(group), effects);
        }
    }

    /// A refusal may rest on a write in flight, which may still be lost: it is told when
    /// everything sequenced so far is applied, so that nobody sees what never was.
    fn reject(&mut self, write: &WriteRequest, reject: Reject) -> Result<(), Stopped> {
        let waits = reject != Reject::ReadAgain;
        let answer = Answer::Refused(Refusal::Rejected(reject));
        let Some(seq) = self.immediate.back().copied().filter(|_| waits && !mutated!(RefusalBeforeDurable))
        else {
            return Err(Stopped::Told(answer));
        };
        let (request, deadline) = (write.request, write.deadline);
        self.wait_at(seq, Waiter { request, wait: Wait::Rows(answer), deadline });
        Ok(())
    }

    /// The epoch to write in, or why not: everything that can be known before writing.
    fn check_write(&self, context: Context<'_>, write: &WriteRequest) -> Result<Epoch, Stopped> {
        let leader = self.serving_leader().ok_or(Refusal::NotLeader)?;
        if leader.transfer.is_some() {
            return Err(Refusal::Transferring.into());
        }
        if !leader.holds_lease(context) || !leader.can_reach(context, write.level) {
            return Err(Refusal::NotEnoughReplicas.into());
        }
        if leader.pending.len() >= PENDING_WRITES_MAX && write.level != AckLevel::Leader {
            return Err(Refusal::Busy.into());
        }
        if !write.ops.iter().all(|op| touches_only(op, &self.range)) {
            return Err(Refusal::OutOfRange.into());
        }
        Ok(leader.epoch)
    }

    /// Whether the write is a retry of one that the log holds; then its client waits for that.
    fn is_retry(&mut self, token: Token, write: &WriteRequest) -> Result<bool, Stopped> {
        let (pos, committed, is_fence) = match self.look_up(token, write.wall_ms) {
            TokenLookup::New => return Ok(false),
            TokenLookup::TooOld => return Err(Refusal::TokenTooOld.into()),
            TokenLookup::Known(record) => (record.pos(), record.committed(), record.is_fence()),
        };
        // An entry of an older epoch counts only through one of this epoch (m13, m37), and a
        // fence or a revert may be lost like any entry until it is <= Q.
        let own_epoch = self.leader.as_ref().map(Leader::epoch) == Some(pos.epoch);
        let wait = match committed {
            None if is_fence => Wait::Decided(Answer::Refused(Refusal::TokenFenced)),
            None => Wait::Decided(Answer::Reverted),
            Some(committed) if own_epoch => Wait::Level(committed),
            Some(committed) => Wait::Decided(Answer::Committed(committed)),
        };
        self.wait_at(pos.seq, Waiter { request: write.request, wait, deadline: write.deadline });
        Ok(true)
    }

    fn wait(&mut self, waiter: Waiter) {
        self.wait_at(self.log.end().pos.seq, waiter);
    }

    pub(super) fn wait_at(&mut self, seq: Seq, waiter: Waiter) {
        let leader = self.leader.as_mut().expect("only a serving leader lets clients wait");
        leader.wait(seq, waiter);
    }

    pub(super) fn serving_leader(&self) -> Option<&Leader> {
        self.leader.as_ref().filter(|leader| leader.serving)
    }
}

/// When a wait for copies has failed: early enough to say what became of the write.
fn fails_at(now: Tick, deadline: Tick) -> Tick {
    let margin = (deadline.ms_since(now) / 4).min(REVERT_MARGIN_MS_MAX);
    Tick(deadline.0.saturating_sub(margin))
}

/// Rows must lie in the tablet; a delete range is cut to it, but must begin in it.
fn touches_only(op: &Op, range: &KeyRange) -> bool {
    match &op.action {
        Action::Set { key, .. }
        | Action::Delete { key, .. }
        | Action::Add { key, .. }
        | Action::Room { key, .. } => range.contains(key),
        Action::DeleteRange { from, to } => {
            KeyRange::new(from.clone(), to.clone()).ok().and_then(|asked| asked.intersect(range)).is_some()
        }
    }
}
