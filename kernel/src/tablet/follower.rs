//! The follower's part: a leader's entries into the log, what differs out of it, rows up to Q.
//!
//! A leader is met with `Hello`: where the log durably ends and how it grew. It answers with
//! entries from the last position that both have. Whatever else the log holds there is cut;
//! nothing at or below a known Q ever is. A copy that would have to has *diverged*: too few copies
//! were asked who leads. It is over, and another is built in its place. An acknowledgement names
//! the last durable entry that is the leader's too, never a length (m35).

use super::{Context, Effect, PeerInput, PeerMessage, PeerRun, Tablet};
use crate::entry::{Entry, LogEnd};
use crate::ids::{Epoch, Pos, ReplicaId, Seq, ServerRun, Tick};
use crate::limits::HELLO_EPOCHS_MAX;
use crate::mutated;
use crate::sequence::Recent;

/// A leader and how far this log is known to be its log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Following {
    pub epoch: Epoch,
    pub leader: ReplicaId,
    pub run: PeerRun,
    /// Everything up to here is in the leader's log too.
    matched: Seq,
    /// The Q that it told.
    q: Seq,
    hello_due: bool,
    ack_due: bool,
}

/// The process that appends came from last (m18).
#[derive(Clone, Copy, Debug)]
pub(super) struct Attachment {
    pub epoch: Epoch,
    pub run: ServerRun,
    /// When the promises to it end that were given before a higher epoch was known.
    pub ends: Option<Tick>,
}

impl Tablet {
    /// A message of another copy.
    pub(super) fn peer(&mut self, context: Context<'_>, peer: PeerInput, effects: &mut Vec<Effect>) {
        if self.diverged {
            return;
        }
        let PeerInput { from, run, epoch, message } = peer;
        match message {
            PeerMessage::Probe => {
                if self.meet(from, run, epoch, effects) {
                    self.greet_again();
                    self.greet(effects);
                }
            }
            PeerMessage::Append { prev, entries, q } => {
                if self.meet(from, run, epoch, effects) {
                    self.take(context, prev, entries, q, effects);
                }
            }
            PeerMessage::Hello { end, epochs } => {
                self.hello(context, from, run, epoch, (end, epochs), effects);
            }
            PeerMessage::Ack { pos, q, ready } => {
                self.acknowledged(context, (from, run), epoch, (pos, q, ready), effects);
            }
            PeerMessage::Refuse => self.superseded(epoch, effects),
            // The shell turns this into an input with a fresh timestamp.
            PeerMessage::CloseWanted { .. } => {}
        }
    }

    /// Accepts a leader, or says that its epoch is over. Whether it may go on at once.
    fn meet(&mut self, from: ReplicaId, run: PeerRun, epoch: Epoch, effects: &mut Vec<Effect>) -> bool {
        let floor = self.promised.max(self.promising.unwrap_or_default());
        if epoch < floor && !mutated!(LowerEpochAccepted) {
            effects.push(Effect::Send { to: from, epoch: floor, message: PeerMessage::Refuse });
            return false;
        }
        if from == self.replica || epoch <= self.led {
            return false;
        }
        self.step_down(effects);
        self.fence = self.fence.filter(|fence| fence.epoch() > epoch);
        if mutated!(PromiseInMemoryOnly) {
            self.promised = self.promised.max(epoch);
        }
        self.promise(epoch, effects);
        let is_known = |known: &Following| (known.epoch, known.leader, known.run) == (epoch, from, run);
        if !self.following.as_ref().is_some_and(is_known) {
            let (hello_due, ack_due) = (true, false);
            let (matched, q) = (Seq(0), Seq(0));
            self.following = Some(Following { epoch, leader: from, run, matched, q, hello_due, ack_due });
            self.cut_by_watermark(effects);
            self.greet(effects);
            return false;
        }
        self.promised >= epoch
    }

    /// With the seeded bug of KIP-101 whatever is not known to be safe is cut at once.
    fn cut_by_watermark(&mut self, effects: &mut Vec<Effect>) {
        if mutated!(CutByWatermark) && self.log.end().pos.seq > self.safe {
            self.cut_after(self.safe, effects);
        }
    }

    /// The leader is to be told again where the log ends.
    pub(super) fn greet_again(&mut self) {
        if let Some(following) = &mut self.following {
            following.hello_due = true;
        }
    }

    /// Says where the log ends, once that is certain and the promise is durable (m34).
    pub(super) fn greet(&mut self, effects: &mut Vec<Effect>) {
        let is_certain = self.log.is_durable() && self.cutting.is_none();
        let promised = self.promised;
        let Some(following) = &mut self.following else { return };
        if !following.hello_due || !is_certain || promised < following.epoch {
            return;
        }
        following.hello_due = false;
        let (to, epoch) = (following.leader, following.epoch);
        let epochs = self.log.epochs();
        let epochs = epochs[epochs.len().saturating_sub(HELLO_EPOCHS_MAX)..].to_vec();
        let message = PeerMessage::Hello { end: self.log.durable().pos, epochs };
        effects.push(Effect::Send { to, epoch, message });
    }

    /// Takes entries of the leader that is followed.
    fn take(
        &mut self,
        context: Context<'_>,
        prev: Pos,
        entries: Vec<Entry>,
        q: Pos,
        effects: &mut Vec<Effect>,
    ) {
        let Some(following) = &mut self.following else { return };
        if following.hello_due || self.cutting.is_some() {
            return;
        }
        self.attached = Some(Attachment { epoch: following.epoch, run: following.run.server, ends: None });
        following.ack_due = true;
        if q.epoch == following.epoch {
            following.q = following.q.max(q.seq);
        }
        if self.log.pos_at(prev.seq) == Some(prev) {
            self.note_matched(prev.seq);
            self.take_entries(entries, effects);
        } else {
            self.greet_again(); // the leader thinks of another log
            self.greet(effects);
        }
        self.note_safe();
        self.proceed(context, effects);
    }

    /// Skips what is here, cuts what differs, appends what follows.
    fn take_entries(&mut self, mut entries: Vec<Entry>, effects: &mut Vec<Effect>) {
        let here = entries.iter().take_while(|entry| self.log.pos_at(entry.seq()) == Some(entry.pos)).count();
        if let Some(last) = here.checked_sub(1) {
            self.note_matched(entries[last].seq());
        }
        entries.drain(..here);
        let Some(first) = entries.first() else { return };
        if first.seq() <= self.log.end().pos.seq {
            let keep = Seq(first.seq().0.saturating_sub(1));
            self.cut_after(keep, effects);
            return;
        }
        let Some(following) = &self.following else { return };
        let mut end = self.log.end();
        let is_whole = entries.iter().all(|entry| {
            let follows = end.is_followed_by(entry) && entry.pos.epoch <= following.epoch;
            end = entry.end();
            follows
        });
        if !is_whole {
            self.greet_again();
            return;
        }
        for entry in &entries {
            self.log.append(entry);
            self.tokens.note_entry(entry);
            self.seals.note(entry);
        }
        self.note_matched(end.pos.seq);
        effects.push(Effect::AppendCopies { entries });
    }

    fn note_matched(&mut self, upto: Seq) {
        if let Some(following) = &mut self.following {
            following.matched = following.matched.max(upto);
        }
    }

    /// What the leader called safe is, once this log is its log up to there: below it a write
    /// may be taken back.
    fn note_safe(&mut self) {
        let Some(following) = &self.following else { return };
        if following.q <= following.matched && following.q > Seq(0) {
            self.safe = self.safe.max(following.q);
            self.safe_points.note(following.q);
        } else if mutated!(SafeSplitByDisk) {
            self.safe = self.safe.max(following.q.min(following.matched));
        }
    }

    /// Something became durable that the leader should hear of.
    pub(super) fn note_acknowledgement(&mut self) {
        if let Some(following) = &mut self.following {
            following.ack_due = true;
        }
    }

    /// Tells the leader what is durable, if that is news.
    pub(super) fn acknowledge(&mut self, effects: &mut Vec<Effect>) {
        let (promised, durable) = (self.promised, self.log.durable().pos.seq);
        let ready = self.ready();
        let Some(following) = &mut self.following else { return };
        if !following.ack_due || following.hello_due || promised < following.epoch {
            return;
        }
        following.ack_due = false;
        let limit = if mutated!(AckByLength) { Seq(u64::MAX) } else { following.matched };
        let (to, epoch, q) = (following.leader, following.epoch, following.q);
        let is_attached = self.attached.is_some_and(|attached| attached.epoch == epoch);
        if let Some(pos) = self.log.pos_at(durable.min(limit)).filter(|_| is_attached) {
            effects.push(Effect::Send { to, epoch, message: PeerMessage::Ack { pos, q, ready } });
        }
    }

    /// Begins to cut the log after `keep`, once nothing of it is on its way anywhere.
    fn cut_after(&mut self, keep: Seq, effects: &mut Vec<Effect>) {
        if keep < self.safe.max(self.base.pos.seq) && !mutated!(SafeEntriesCut) {
            let at = self.log.pos_at(keep.next()).unwrap_or(self.log.end().pos);
            (self.following, self.diverged) = (None, true);
            effects.push(Effect::Diverged { keep, at });
            return;
        }
        if !self.log.is_durable() || self.settling.is_some() || !self.immediate.is_empty() {
            self.greet_again(); // and be told again
            return;
        }
        self.cutting = Some(keep);
        if keep == self.base.pos.seq && keep > Seq(0) {
            // The last entry that stays is in the parent's log.
            effects.push(Effect::Truncate { keep: self.base });
            return;
        }
        effects.push(Effect::Locate { seq: keep });
    }

    pub(super) fn located(&mut self, end: LogEnd, effects: &mut Vec<Effect>) {
        if self.cutting == Some(end.pos.seq) {
            effects.push(Effect::Truncate { keep: end });
        }
    }

    pub(super) fn truncated(
        &mut self,
        context: Context<'_>,
        end: LogEnd,
        applied: Seq,
        effects: &mut Vec<Effect>,
    ) {
        if self.cutting.take() != Some(end.pos.seq) {
            return;
        }
        self.log.cut(end);
        self.tokens.cut(end.pos.seq.next());
        self.seals.cut(end.pos.seq.next());
        self.applied = self.applied.min(applied).min(end.pos.seq);
        self.safe = self.safe.min(end.pos.seq);
        self.safe_points.cut(end.pos.seq);
        self.recent = Recent::new(self.applied);
        if let Some(following) = &mut self.following {
            following.matched = following.matched.min(end.pos.seq);
        }
        self.greet_again();
        self.proceed(context, effects);
    }
}
