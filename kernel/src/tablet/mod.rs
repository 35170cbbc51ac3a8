//! One replica of one tablet: what it promises, what it appends, what it answers.
//!
//! ```text
//!                Fence(e): promise e, drain        Appoint(e): promise e, EpochStart
//!   ┌──────────┐ ──────────────────────▶ ┌───────┐ ─────────────────▶ ┌──────────┐
//!   │ Follower │                         │ fenced│                    │ Starting │
//!   └──────────┘ ◀────────────────────── └───────┘                    └────┬─────┘
//!        ▲          answered                                Q ≥ EpochStart │ and applied
//!        │                                                            ┌────▼─────┐
//!        └── any higher epoch, a failed append, StepDown ──────────── │ Serving  │
//!                                                                     └──────────┘
//! ```
//!
//! Rules that hold here (ids of the design):
//! - m5, m34: nothing of an epoch below the durable promise is accepted, and a promise is
//!   durable before anything of its epoch is appended or answered;
//! - m7, m36: only an appointment that names this process's incarnation makes a leader;
//! - m32: a fence is answered when everything appended before is durable or refused;
//! - m33, m38: own copies count when durable, and rows are applied only after that;
//! - a replica that gave up an epoch never leads it again.
//!
//! A replica does not know the time, other replicas' addresses, or how entries become durable.

mod fence;
mod leader;
pub mod progress;
pub mod token;

use crate::entry::{Entry, LogEnd, Payload};
use crate::hlc::Hlc;
use crate::ids::{Epoch, Incarnation, Pos, ReplicaId, RequestId, Seq, TabletId, Tick};
use crate::mutated;
use crate::op::{AckLevel, Committed, Op, Token};
use crate::range::KeyRange;
use crate::sequence::{Evidence, Recent, Reject};
use leader::Leader;
use std::collections::{BTreeSet, VecDeque};
use token::TokenTable;

/// What happened to a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Metadata asks for a promise to refuse every epoch below `epoch`.
    Fence {
        /// The epoch to come.
        epoch: Epoch,
    },
    /// Metadata named a leader.
    Appoint(Appointment),
    /// The promise of `epoch` is durable.
    PromisePersisted {
        /// The promised epoch.
        epoch: Epoch,
    },
    /// A client's batch, already checked against the limits.
    Write(WriteRequest),
    /// A reader wants to know that everything sequenced so far is applied. The shell has
    /// raised its clock to the reader's timestamp before.
    Barrier {
        /// Who asks.
        request: RequestId,
        /// When to give up.
        deadline: Tick,
    },
    /// A client asks how a write ended.
    GetOutcome {
        /// Who asks.
        request: RequestId,
        /// The write.
        token: Token,
        /// Wall time in milliseconds since 1970.
        wall_ms: u64,
        /// A fresh timestamp, for the fence if one is needed.
        ts: Hlc,
        /// When to give up.
        deadline: Tick,
    },
    /// Appended entries up to here are durable.
    Persisted {
        /// Index of the last of them.
        upto: Seq,
    },
    /// Rows of entries up to here are in the store.
    Applied {
        /// Index of the last of them.
        upto: Seq,
    },
    /// An append was refused or failed; nothing from here on was written.
    AppendFailed {
        /// Index of the first entry that was not written.
        from: Seq,
    },
    /// Tokens issued before this are no longer remembered.
    ForgetTokens {
        /// Milliseconds since 1970.
        issued_before_ms: u64,
    },
    /// Give up leading for good: the server stops or its disk is sick.
    StepDown,
    /// Time passed.
    Tick,
}

/// A leader as metadata named it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appointment {
    /// The term.
    pub epoch: Epoch,
    /// The replica that leads.
    pub replica: ReplicaId,
    /// The process that leads.
    pub incarnation: Incarnation,
    /// The in-sync set.
    pub in_sync: BTreeSet<ReplicaId>,
    /// Durability factor D.
    pub min_in_sync: u8,
    /// A fresh timestamp, above everything in the log and every floor.
    pub ts: Hlc,
}

/// A client's batch on its way to the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteRequest {
    /// Who asks.
    pub request: RequestId,
    /// At least one, within the limits.
    pub ops: Vec<Op>,
    /// How many copies to wait for.
    pub level: AckLevel,
    /// The write's name for retries.
    pub token: Option<Token>,
    /// What was read for it.
    pub evidence: Evidence,
    /// A fresh timestamp.
    pub ts: Hlc,
    /// Wall time in milliseconds since 1970.
    pub wall_ms: u64,
    /// When to answer `Unknown`.
    pub deadline: Tick,
}

/// What a shell has to do, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Make the promise durable, then say `PromisePersisted`.
    PersistPromise {
        /// The epoch below which everything is refused.
        epoch: Epoch,
    },
    /// Answer metadata's fence.
    AnswerFence(FenceAnswer),
    /// Append to the log, then say `Persisted`; apply after that, then say `Applied`.
    Append(Entry),
    /// Reads and writes may come: the epoch has begun.
    Serve {
        /// The epoch.
        epoch: Epoch,
    },
    /// Reads and writes must not be answered any more.
    StopServing {
        /// The epoch that was given up.
        epoch: Epoch,
    },
    /// Answer a client.
    Reply {
        /// Who asked.
        request: RequestId,
        /// What to say.
        answer: Answer,
    },
}

/// What a replica's log ends in, as metadata's election wants to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FenceAnswer {
    /// The epoch that was promised.
    pub epoch: Epoch,
    /// Durable end of the log; nothing of a lower epoch will follow.
    pub end: LogEnd,
}

/// What a client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The write stands at its level.
    Committed(Committed),
    /// The write is gone and was never shown, and will never run.
    Reverted,
    /// Nobody can say yet.
    Unknown,
    /// Everything sequenced before the question is applied.
    Reached,
    /// Nothing was written, and why.
    Refused(Refusal),
}

/// Why nothing was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// This replica does not lead, or does not serve yet.
    NotLeader,
    /// A key lies outside of the tablet.
    OutOfRange,
    /// The in-sync set is too small for the level.
    NotEnoughReplicas,
    /// The token is older than what is remembered.
    TokenTooOld,
    /// A question for the token's outcome was answered with "it never ran".
    TokenFenced,
    /// The batch itself.
    Rejected(Reject),
}

/// One replica of one tablet.
#[derive(Debug)]
pub struct Tablet {
    id: TabletId,
    replica: ReplicaId,
    incarnation: Incarnation,
    range: KeyRange,
    /// Durable: everything of a lower epoch is refused.
    promised: Epoch,
    /// A promise on its way to the registry.
    promising: Option<Epoch>,
    /// Which epoch began where, oldest first.
    epochs: Vec<(Epoch, Seq)>,
    /// Where the next entry goes.
    end: LogEnd,
    /// Last durable entry.
    durable: LogEnd,
    /// Ends of the entries that are appended and not durable yet.
    queued: VecDeque<LogEnd>,
    /// Last entry whose rows are in the store.
    applied: Seq,
    tokens: TokenTable,
    recent: Recent,
    /// A fence that waits for the promise and for queued appends.
    fence: Option<Epoch>,
    /// An appointment that waits for the promise and for queued appends.
    appointment: Option<Appointment>,
    leader: Option<Leader>,
    /// Highest epoch that this process has led; never again.
    led: Epoch,
}

/// What the registry and the log say of a replica at start.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The tablet.
    pub id: TabletId,
    /// Its copy here.
    pub replica: ReplicaId,
    /// This run of the process.
    pub incarnation: Incarnation,
    /// Its keys.
    pub range: KeyRange,
    /// The durable promise.
    pub promised: Epoch,
    /// Which epoch began where, oldest first.
    pub epochs: Vec<(Epoch, Seq)>,
    /// Durable end of the log; everything up to it is applied.
    pub end: LogEnd,
    /// The tokens of the log.
    pub tokens: TokenTable,
}

impl Tablet {
    /// A replica as it was found on disk.
    #[must_use]
    pub fn new(recovered: Recovered) -> Self {
        let Recovered { id, replica, incarnation, range, promised, epochs, end, tokens } = recovered;
        Self {
            id,
            replica,
            incarnation,
            range,
            // m34: the log may know of a higher epoch than the registry.
            promised: promised.max(end.pos.epoch),
            promising: None,
            epochs,
            end,
            durable: end,
            queued: VecDeque::new(),
            applied: end.pos.seq,
            tokens: if mutated!(TokensNotRebuilt) { TokenTable::default() } else { tokens },
            recent: Recent::new(end.pos.seq),
            fence: None,
            appointment: None,
            leader: None,
            led: Epoch(0),
        }
    }

    /// Lets one thing happen.
    pub fn step(&mut self, now: Tick, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Fence { epoch } => self.fence(epoch, effects),
            Input::Appoint(appointment) => self.appoint(appointment, effects),
            Input::PromisePersisted { epoch } => self.promise_persisted(epoch, effects),
            Input::Write(request) => self.write(request, effects),
            Input::Barrier { request, deadline } => self.barrier(request, deadline, effects),
            Input::GetOutcome { request, token, wall_ms, ts, deadline } => {
                self.get_outcome(leader::Question { request, token, wall_ms, ts, deadline }, effects);
            }
            Input::Persisted { upto } => self.persisted(upto, effects),
            Input::Applied { upto } => self.applied(now, upto, effects),
            Input::AppendFailed { from } => self.append_failed(from, effects),
            Input::ForgetTokens { issued_before_ms } => self.tokens.forget_before(issued_before_ms),
            Input::StepDown => self.step_down(effects),
            Input::Tick => self.tick(now, effects),
        }
    }

    /// When `Input::Tick` has something to do; none while the tablet is idle.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let waiting = self.leader.as_ref().and_then(Leader::next_deadline);
        [waiting, self.recent.next_deadline()].into_iter().flatten().min()
    }

    /// The tablet.
    #[must_use]
    pub fn id(&self) -> TabletId {
        self.id
    }

    /// Its copy here.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Its keys.
    #[must_use]
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    /// The epoch below which everything is refused.
    #[must_use]
    pub fn promised(&self) -> Epoch {
        self.promised
    }

    /// Which epoch began where, oldest first.
    #[must_use]
    pub fn epochs(&self) -> &[(Epoch, Seq)] {
        &self.epochs
    }

    /// Durable end of the log.
    #[must_use]
    pub fn durable_end(&self) -> LogEnd {
        self.durable
    }

    /// Last entry whose rows are in the store.
    #[must_use]
    pub fn applied_seq(&self) -> Seq {
        self.applied
    }

    /// The epoch that this replica leads and serves.
    #[must_use]
    pub fn serving(&self) -> Option<Epoch> {
        self.leader.as_ref().filter(|leader| leader.is_serving()).map(Leader::epoch)
    }

    /// The highest position that is safe on enough copies in this epoch.
    #[must_use]
    pub fn q(&self) -> Option<Pos> {
        self.leader.as_ref().and_then(Leader::q)
    }

    /// How many write tokens are remembered.
    #[must_use]
    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }

    fn append(&mut self, entry: Entry, effects: &mut Vec<Effect>) {
        assert!(self.end.is_followed_by(&entry), "an entry follows the end of its log");
        let allowed = entry.pos.epoch >= self.promised || mutated!(LowerEpochAccepted);
        assert!(allowed, "m5: nothing below the promise is appended");
        self.end = entry.end();
        self.queued.push_back(entry.end());
        if let Payload::EpochStart { .. } = entry.payload {
            self.epochs.push((entry.pos.epoch, entry.seq()));
        }
        self.tokens.note_entry(&entry);
        if mutated!(OwnCopyCountedEarly) {
            self.count_own_copy(entry.pos);
        }
        effects.push(Effect::Append(entry));
    }

    /// The leader's own copy counts like any other, once it is durable (m33).
    fn count_own_copy(&mut self, pos: Pos) {
        if let Some(leader) = &mut self.leader {
            leader.durable(self.replica, pos);
        }
    }

    fn persisted(&mut self, upto: Seq, effects: &mut Vec<Effect>) {
        while let Some(end) = self.queued.front().copied().filter(|end| end.pos.seq <= upto) {
            self.queued.pop_front();
            self.durable = end;
        }
        self.count_own_copy(self.durable.pos);
        self.proceed(effects);
        self.answer_waiting(effects);
    }

    fn applied(&mut self, now: Tick, upto: Seq, effects: &mut Vec<Effect>) {
        let allowed = upto <= self.durable.pos.seq || mutated!(ApplyBeforeDurable);
        assert!(allowed, "m38: rows come from the durable log only");
        self.applied = self.applied.max(upto);
        self.recent.applied(now, self.applied);
        self.proceed(effects);
        self.answer_waiting(effects);
    }

    fn tick(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        self.recent.tick(now);
        self.expire(now, effects);
    }

    /// Goes on with whatever waited for a promise or for the log to drain.
    fn proceed(&mut self, effects: &mut Vec<Effect>) {
        self.proceed_fence(effects);
        self.proceed_appointment(effects);
    }

    /// Everything that was appended is durable, and every durable row is in the store.
    fn is_drained(&self) -> bool {
        self.queued.is_empty() && self.applied == self.durable.pos.seq
    }
}
