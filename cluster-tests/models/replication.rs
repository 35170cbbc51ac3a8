//! Three copies of one log, D = 2: append, sync, acknowledgement, published Q, revert, fence,
//! appointment, crash, and rows that are applied from one published watermark to the next.
//!
//! Where the program departs from the models that its rules come from:
//! - the leader's own disk is one of three, with a step of its own;
//! - rows of a follower stop at a watermark that was published as such, never at the part of
//!   it that its disk happens to have;
//! - whatever a follower has applied is *closed*: no field says so, the position does;
//! - an epoch may be raised at any time, because reports of silence may be wrong.
//!
//! The in-sync set is all three and stays so; leases, wipes and metadata outages are not here.

use crate::explore::Model;

const COPIES: usize = 3;
const D: usize = 2;
const LOG_MAX: usize = 6;

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub epochs: u8,
    pub ops: u8,
    pub reverts: u8,
    pub crashes: u8,
}

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Without {
    Nothing,
    /// A follower's rows stop where its disk does.
    WholeWatermarks,
    /// A follower's rows stop at the end of its log.
    RowsWaitForQ,
    /// A leader counts what it has not synced (m33).
    OwnDisk,
    /// Q stops between a write and its revert (m31).
    QAroundReverts,
    /// Below Q nothing is taken back (m31).
    RevertsAboveQ,
    /// "Reverted" is said at Q (m11).
    RevertDecidedByQ,
    /// Q counts the own epoch only (m13).
    QOfOwnEpoch,
    /// A fence waits for what is queued, and ends it (m32).
    DrainedFence,
    /// An election asks |ISR| - D + 1 copies (m1).
    Quota,
    /// The last epoch decides, not the length (m6).
    LastEpochWins,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Entry {
    Nothing,
    Start(u8),
    /// Even ids wait for copies, odd ones for the leader only.
    Op(u8, u8),
    Revert(u8, u8),
}

impl Entry {
    fn epoch(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Start(epoch) | Self::Op(epoch, _) | Self::Revert(epoch, _) => epoch,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Log {
    entries: [Entry; LOG_MAX],
    len: usize,
}

impl Log {
    fn entries(&self) -> &[Entry] {
        &self.entries[..self.len]
    }

    fn push(&mut self, entry: Entry) {
        self.entries[self.len] = entry;
        self.len += 1;
    }

    fn cut(&mut self, len: usize) {
        self.entries[len..].fill(Entry::Nothing);
        self.len = self.len.min(len);
    }

    fn is_full(&self) -> bool {
        self.len == LOG_MAX
    }

    fn common(&self, other: &Self) -> usize {
        self.entries().iter().zip(other.entries()).take_while(|(own, other)| own == other).count()
    }

    fn op(&self, id: u8) -> Option<usize> {
        self.entries().iter().position(|entry| matches!(entry, Entry::Op(_, op) if *op == id))
    }

    fn revert(&self, id: u8) -> Option<usize> {
        self.entries().iter().position(|entry| matches!(entry, Entry::Revert(_, op) if *op == id))
    }

    /// Writes that stand in the first `len` entries.
    fn rows(&self, len: usize) -> u8 {
        self.entries[..len].iter().fold(0, |rows, entry| match entry {
            Entry::Op(_, id) => rows | 1 << id,
            Entry::Revert(_, id) => rows & !(1 << id),
            Entry::Nothing | Entry::Start(_) => rows,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Copy3 {
    log: Log,
    durable: usize,
    promised: u8,
    /// The epoch whose entries it takes and acknowledges.
    follows: u8,
    /// The epoch that it leads, or 0.
    leads: u8,
    /// What it knows others to have.
    progress: [usize; COPIES],
    published: usize,
    /// Published watermarks that it knows, a bit each.
    points: u8,
    applied: usize,
    /// An acknowledgement on its way: epoch and length.
    ack: (u8, usize),
}

/// Everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    copies: [Copy3; COPIES],
    epoch: u8,
    recovering: bool,
    answers: [Option<(u8, usize)>; COPIES],
    ops: u8,
    reverts: u8,
    crashes: u8,
    /// Writes acknowledged at D copies, said to be reverted, and seen on a follower.
    acked: u8,
    denied: u8,
    seen: u8,
    /// The longest log that a follower has answered reads from.
    closed: Log,
    /// Two followers have answered from logs that disagree.
    split: bool,
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Replication {
    pub bounds: Bounds,
    pub without: Without,
}

impl Model for Replication {
    type State = State;

    /// The first epoch has begun: its start is durable everywhere and published.
    fn start(&self) -> State {
        let mut log = Log { entries: [Entry::Nothing; LOG_MAX], len: 0 };
        let closed = log;
        log.push(Entry::Start(1));
        let follower = Copy3 {
            log,
            durable: 1,
            promised: 1,
            follows: 1,
            leads: 0,
            progress: [0; COPIES],
            published: 0,
            points: 0,
            applied: 0,
            ack: (0, 0),
        };
        let leader =
            Copy3 { leads: 1, follows: 0, progress: [1; COPIES], published: 1, points: 2, ..follower };
        State {
            copies: [leader, follower, follower],
            epoch: 1,
            recovering: false,
            answers: [None; COPIES],
            ops: 0,
            reverts: 0,
            crashes: 0,
            acked: 0,
            denied: 0,
            seen: 0,
            closed,
            split: false,
        }
    }

    fn steps(&self, state: &State, steps: &mut Vec<(String, State)>) {
        self.recover(state, steps);
        self.appoint(state, steps);
        for copy in 0..COPIES {
            self.append(state, copy, steps);
            self.revert(state, copy, steps);
            self.publish(state, copy, steps);
            self.sync(state, copy, steps);
            self.apply(state, copy, steps);
            self.answer_fence(state, copy, steps);
            self.crash(state, copy, steps);
            self.deliver_ack(state, copy, steps);
            for leader in (0..COPIES).filter(|leader| *leader != copy) {
                self.fetch(state, copy, leader, steps);
                self.acknowledge(state, copy, leader, steps);
            }
        }
    }

    fn judge(&self, state: &State) -> Result<(), String> {
        if state.split {
            return Err("two followers answer from logs that disagree".into());
        }
        let ops = |mask: u8| (0..state.ops).filter(move |id| mask & 1 << id != 0);
        if let Some(id) = ops(state.denied).find(|id| (state.acked | state.seen) & 1 << id != 0) {
            return Err(format!("op {id} was acknowledged or seen, and said to be reverted"));
        }
        for leader in state.copies.iter().filter(|copy| copy.leads == state.epoch) {
            if let Some(id) = ops(state.acked | state.seen).find(|id| leader.log.revert(*id).is_some()) {
                return Err(format!("op {id} was acknowledged or seen, and is taken back"));
            }
            if let Some(id) = ops(state.acked | state.seen).find(|id| leader.log.op(*id).is_none()) {
                return Err(format!("epoch {} leads without op {id}", leader.leads));
            }
            if let Some(id) = ops(state.denied).find(|id| leader.log.rows(leader.log.len) & 1 << id != 0) {
                return Err(format!("epoch {} has op {id}, which is said to be reverted", leader.leads));
            }
            if leader.log.common(&state.closed) < state.closed.len {
                return Err(format!("epoch {} leads with another past than a follower read", leader.leads));
            }
        }
        let pairs = [(0, 1), (0, 2), (1, 2)];
        pairs.into_iter().try_for_each(|(a, b)| matching(&state.copies[a].log, &state.copies[b].log))
    }
}

/// The same position means the same log up to there.
fn matching(a: &Log, b: &Log) -> Result<(), String> {
    let common = a.common(b);
    let same = |at: usize| at < a.len && at < b.len && a.entries[at].epoch() == b.entries[at].epoch();
    match (common..LOG_MAX).find(|at| same(*at)) {
        Some(at) => Err(format!("two logs differ below position {at}, which they share")),
        None => Ok(()),
    }
}

impl Replication {
    fn append(&self, state: &State, at: usize, steps: &mut Vec<(String, State)>) {
        let leader = &state.copies[at];
        if leader.leads == 0 || leader.log.is_full() || state.ops == self.bounds.ops {
            return;
        }
        let mut next = *state;
        next.copies[at].log.push(Entry::Op(leader.leads, state.ops));
        next.ops += 1;
        steps.push((format!("{at} appends op {}", state.ops), next));
    }

    /// Of the own epoch, above the published Q, one at a time.
    fn revert(&self, state: &State, at: usize, steps: &mut Vec<(String, State)>) {
        let leader = &state.copies[at];
        if leader.leads == 0 || leader.log.is_full() || state.reverts == self.bounds.reverts {
            return;
        }
        let is_open = leader.log.entries()[leader.published..].iter().any(|e| matches!(e, Entry::Revert(..)));
        if is_open {
            return;
        }
        for id in (0..state.ops).filter(|id| id % 2 == 0) {
            let Some(index) = leader.log.op(id) else { continue };
            let is_mine = leader.log.entries[index].epoch() == leader.leads;
            let is_above = index >= leader.published || self.without == Without::RevertsAboveQ;
            if !is_mine || !is_above || leader.log.revert(id).is_some() {
                continue;
            }
            let mut next = *state;
            next.copies[at].log.push(Entry::Revert(leader.leads, id));
            next.reverts += 1;
            if self.without == Without::RevertDecidedByQ {
                next.denied |= 1 << id;
            }
            steps.push((format!("{at} takes op {id} back"), next));
        }
    }

    /// The highest Q that may be published; what it reaches is told to clients.
    fn publish(&self, state: &State, at: usize, steps: &mut Vec<(String, State)>) {
        let leader = &state.copies[at];
        if leader.leads == 0 {
            return;
        }
        let own = if self.without == Without::OwnDisk { leader.log.len } else { leader.durable };
        let has = |copy: usize| if copy == at { own } else { leader.progress[copy] };
        let counts = |len: usize| (0..COPIES).filter(|copy| has(*copy) >= len).count() >= D;
        let is_own = |len: usize| {
            leader.log.entries[len - 1].epoch() == leader.leads || self.without == Without::QOfOwnEpoch
        };
        let splits = |len: usize| {
            (0..state.ops).any(|id| {
                let (op, revert) = (leader.log.op(id), leader.log.revert(id));
                op.is_some_and(|op| op < len) && revert.is_some_and(|revert| revert >= len)
            })
        };
        let may = |len: &usize| {
            let whole = !splits(*len) || self.without == Without::QAroundReverts;
            counts(*len) && is_own(*len) && whole
        };
        let Some(q) = (leader.published + 1..=leader.log.len).rev().find(may) else { return };
        let mut next = *state;
        next.copies[at].published = q;
        next.copies[at].points |= 1 << q;
        for entry in &leader.log.entries[..q] {
            match entry {
                Entry::Op(_, id) if id % 2 == 0 && leader.log.rows(q) & 1 << id != 0 => next.acked |= 1 << id,
                Entry::Revert(_, id) => next.denied |= 1 << id,
                Entry::Op(..) | Entry::Nothing | Entry::Start(_) => {}
            }
        }
        steps.push((format!("{at} publishes {q}"), next));
    }

    /// One more entry is durable.
    fn sync(&self, state: &State, at: usize, steps: &mut Vec<(String, State)>) {
        if state.copies[at].durable < state.copies[at].log.len {
            let mut next = *state;
            next.copies[at].durable += 1;
            steps.push((format!("{at} syncs"), next));
        }
    }

    /// A follower's rows move to the next watermark, and somebody reads them.
    fn apply(&self, state: &State, at: usize, steps: &mut Vec<(String, State)>) {
        let copy = &state.copies[at];
        let is_known = |len: &usize| copy.points & 1 << len != 0;
        let whole = (0..=copy.durable).rev().find(is_known).unwrap_or(0);
        let last = (0..=copy.log.len).rev().find(is_known).unwrap_or(0);
        let upto = match self.without {
            Without::WholeWatermarks => last.min(copy.durable),
            Without::RowsWaitForQ => copy.durable,
            _ => whole,
        };
        if copy.leads > 0 || upto <= copy.applied {
            return;
        }
        let mut next = *state;
        next.copies[at].applied = upto;
        next.seen |= copy.log.rows(upto);
        let mut read = copy.log;
        read.cut(upto);
        let common = read.common(&state.closed);
        next.split |= common < read.len.min(state.closed.len);
        if read.len > state.closed.len {
            next.closed = read;
        }
        steps.push((format!("{at} applies {upto}"), next));
    }

    /// A follower takes one entry, or cuts what differs, and hears of Q.
    fn fetch(&self, state: &State, at: usize, from: usize, steps: &mut Vec<(String, State)>) {
        let (copy, leader) = (&state.copies[at], &state.copies[from]);
        if leader.leads == 0 || copy.promised > leader.leads || copy.leads == leader.leads {
            return;
        }
        let common = copy.log.common(&leader.log);
        let mut next = *state;
        let taker = &mut next.copies[at];
        (taker.leads, taker.promised, taker.follows) = (0, leader.leads, leader.leads);
        if common < copy.log.len {
            if copy.durable < copy.log.len {
                return; // nothing is cut while it is on its way to the disk
            }
            taker.log.cut(common);
            taker.durable = common;
            taker.applied = taker.applied.min(common);
            taker.points &= (1 << (common + 1)) - 1;
        } else if common < leader.log.len {
            taker.log.push(leader.log.entries[common]);
        }
        if leader.published > 0 && leader.published <= taker.log.common(&leader.log) {
            taker.points |= 1 << leader.published;
        }
        if next != *state {
            steps.push((format!("{at} fetches from {from}"), next));
        }
    }

    /// What is durable and the leader's too is on its way to the leader.
    fn acknowledge(&self, state: &State, at: usize, to: usize, steps: &mut Vec<(String, State)>) {
        let (copy, leader) = (&state.copies[at], &state.copies[to]);
        if leader.leads == 0 || copy.follows != leader.leads {
            return;
        }
        let ack = (leader.leads, copy.durable.min(copy.log.common(&leader.log)));
        if copy.ack.0 == 0 && ack.1 > leader.progress[at] {
            let mut next = *state;
            next.copies[at].ack = ack;
            steps.push((format!("{at} acknowledges {} to {to}", ack.1), next));
        }
    }

    fn deliver_ack(&self, state: &State, at: usize, steps: &mut Vec<(String, State)>) {
        let (epoch, len) = state.copies[at].ack;
        if epoch == 0 {
            return;
        }
        let mut next = *state;
        next.copies[at].ack = (0, 0);
        for leader in next.copies.iter_mut().filter(|leader| leader.leads == epoch) {
            leader.progress[at] = leader.progress[at].max(len);
        }
        steps.push((format!("the acknowledgement of {at} arrives"), next));
    }

    /// Whoever reports silence may be wrong: at any time.
    fn recover(&self, state: &State, steps: &mut Vec<(String, State)>) {
        if state.epoch < self.bounds.epochs {
            let mut next = *state;
            (next.epoch, next.recovering, next.answers) = (state.epoch + 1, true, [None; COPIES]);
            steps.push((format!("epoch {}", next.epoch), next));
        }
    }

    fn answer_fence(&self, state: &State, at: usize, steps: &mut Vec<(String, State)>) {
        let copy = &state.copies[at];
        if !state.recovering || state.answers[at].is_some() || copy.promised > state.epoch {
            return;
        }
        let is_loose = self.without == Without::DrainedFence;
        if copy.durable < copy.log.len && !is_loose {
            return;
        }
        let mut next = *state;
        let last = copy.log.entries[..copy.durable].last().map_or(0, |entry| entry.epoch());
        next.answers[at] = Some((last, copy.durable));
        let fenced = &mut next.copies[at];
        (fenced.promised, fenced.leads) = (state.epoch, 0);
        if !is_loose {
            fenced.follows = 0;
        }
        steps.push((format!("{at} answers the fence of epoch {}", state.epoch), next));
    }

    /// The best answer leads, with everything that it has.
    fn appoint(&self, state: &State, steps: &mut Vec<(String, State)>) {
        let needed = if self.without == Without::Quota { 1 } else { COPIES - D + 1 };
        let answered = || (0..COPIES).filter(|copy| state.answers[*copy].is_some());
        if !state.recovering || answered().count() < needed {
            return;
        }
        let rank = |copy: &usize| {
            let (epoch, len) = state.answers[*copy].unwrap_or_default();
            let epoch = if self.without == Without::LastEpochWins { 0 } else { epoch };
            (epoch, len, COPIES - copy)
        };
        let Some(best) = answered().max_by_key(rank) else { return };
        let copy = &state.copies[best];
        if copy.promised != state.epoch || copy.durable < copy.log.len || copy.log.is_full() {
            return;
        }
        let mut next = *state;
        next.recovering = false;
        let leader = &mut next.copies[best];
        (leader.leads, leader.follows, leader.published) = (state.epoch, 0, 0);
        leader.progress = [0; COPIES];
        leader.log.push(Entry::Start(state.epoch));
        leader.applied = 0;
        steps.push((format!("{best} begins epoch {}", state.epoch), next));
    }

    /// What is not durable is lost, and everything that only the process knew.
    fn crash(&self, state: &State, at: usize, steps: &mut Vec<(String, State)>) {
        if state.crashes == self.bounds.crashes {
            return;
        }
        let mut next = *state;
        next.crashes += 1;
        let copy = &mut next.copies[at];
        copy.log.cut(copy.durable);
        (copy.leads, copy.follows, copy.published, copy.applied, copy.points) = (0, 0, 0, 0, 0);
        copy.progress = [0; COPIES];
        steps.push((format!("{at} crashes"), next));
    }
}
