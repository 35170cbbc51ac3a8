//! The way of a request: read what conditions need, wait for the sequencer, answer; on a copy
//! that does not lead, wait until what is asked for is there. And the row cache with its fill
//! protocol.

use super::env::Env;
use super::network::{Address, Message, Reply, Request, RequestBody, Response};
use super::server::{Copy, Internal, Server, Timed};
use crate::invariants::Observation;
use crate::oracle::Session;
use bytes::Bytes;
use ebla_kernel::ancestry::Seen;
use ebla_kernel::entry::{Entry, RevertedRow};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, RequestId, Seq, TabletId};
use ebla_kernel::limits::TOKEN_CLOCK_SLACK_MS;
use ebla_kernel::mutated;
use ebla_kernel::op::{AckLevel, Action, Change, Op, Token, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::sequence::{Evidence, RangeEvidence, Reject};
use ebla_kernel::tablet::{Answer, Input, Refusal, WriteRequest};
use std::collections::BTreeMap;

/// How often a request reads again before it gives up.
const READS_MAX: u32 = 5;

/// How long a reader waits for a copy that does not lead.
const PATIENCE_US: u64 = 1_000_000;

/// A reader that waits for a copy that does not lead.
#[derive(Clone, Debug)]
pub struct Patient {
    request: Request,
    /// The timestamp that must be closed.
    closed: Option<Hlc>,
    until_us: u64,
}

/// A request that waits at a core.
#[derive(Clone, Debug)]
pub struct Asked {
    request: Request,
    /// How often it has read already.
    reads: u32,
    /// The timestamp of a snapshot.
    at: Hlc,
}

/// A request task between two steps.
#[derive(Debug)]
pub enum Task {
    /// It has read and asks to be sequenced.
    Sequence {
        /// What was asked.
        request: Request,
        /// What was read.
        evidence: Evidence,
        /// How often it has read.
        reads: u32,
    },
    /// It has read a row that the cache did not have.
    Fill {
        /// What was asked.
        request: Request,
        /// The row.
        key: Bytes,
        /// What was read.
        version: Option<Version>,
        /// The row's change counter before the reading.
        changes: u64,
        /// The epoch in which it was read.
        epoch: Epoch,
    },
}

/// Newest versions of rows, filled by readers and emptied by the apply step.
#[derive(Debug, Default)]
pub struct Cache {
    rows: BTreeMap<Bytes, Option<Version>>,
    changes: BTreeMap<Bytes, u64>,
    /// How often all of it was forgotten.
    forgotten: u64,
}

impl Cache {
    /// Rows of `entry` are about to change.
    pub fn change_begins(&mut self, entry: &Entry) {
        for key in keys(entry) {
            *self.changes.entry(key.clone()).or_default() += 1;
        }
    }

    /// Rows of `entry` have changed.
    pub fn change_ends(&mut self, entry: &Entry) {
        for key in keys(entry) {
            self.rows.remove(key);
        }
    }

    /// Rows came or went otherwise than by entries.
    pub fn forget(&mut self) {
        self.rows.clear();
        self.forgotten += 1;
    }

    fn changes(&self, key: &Bytes) -> u64 {
        self.changes.get(key).copied().unwrap_or_default() + self.forgotten
    }

    /// Takes what a reader found, unless the row changed since before the reading.
    fn fill(&mut self, key: Bytes, version: Option<Version>, changes: u64) {
        if self.changes(&key) == changes || mutated!(CacheFillUnchecked) {
            self.rows.insert(key, version);
        }
    }
}

/// Rows that an entry changes, by putting versions or by taking them back.
fn keys(entry: &Entry) -> impl Iterator<Item = &Bytes> {
    let put = entry.changes().iter().filter_map(|change| match change {
        Change::Put { key, .. } => Some(key),
        Change::RangeTombstone { .. } => None,
    });
    let taken = entry.reverts().iter().flat_map(|target| &target.rows).filter_map(|row| match row {
        RevertedRow::Row { key } => Some(key),
        RevertedRow::Range { .. } => None,
    });
    put.chain(taken)
}

impl Server {
    pub(super) fn forget_cached(&mut self) {
        if let Some(run) = &mut self.run {
            run.cache.forget();
        }
    }

    pub(super) fn request(&mut self, env: &mut Env, request: Request) {
        let now = self.now(env);
        let lease = self.run.as_ref().and_then(|run| run.lease(now, request.tablet));
        match &request.body {
            RequestBody::Bounded { stale_ms, .. } if lease.is_none() => {
                let oldest = self.wall.ms(env.now_us).saturating_sub(*stale_ms);
                self.read_here(env, request, Some(Hlc::new(oldest, 0)));
            }
            RequestBody::InSession { .. } if lease.is_none() => self.read_here(env, request, None),
            _ if lease.is_none() => {
                let refused = Reply::Answer(Answer::Refused(Refusal::NotLeader));
                self.respond(env, &request, refused);
            }
            RequestBody::Write { token, .. } | RequestBody::Outcome { token }
                if self.is_ahead(env, token) =>
            {
                self.respond(env, &request, Reply::Busy);
            }
            RequestBody::Write { .. } => self.read_evidence(env, request, 1),
            RequestBody::Get { key } => {
                let key = key.clone();
                self.get(env, request, key);
            }
            RequestBody::Outcome { .. }
            | RequestBody::Snapshot { .. }
            | RequestBody::Bounded { .. }
            | RequestBody::InSession { .. } => self.timed(env, Timed::Request(request)),
        }
    }

    /// A read on a copy that does not lead, now or a little later.
    fn read_here(&mut self, env: &mut Env, request: Request, closed: Option<Hlc>) {
        if self.answer_here(env, &request, closed).is_some() {
            return;
        }
        if let Some(closed) = closed {
            self.timed(env, Timed::Close(request.tablet, closed));
        }
        let until_us = env.now_us + PATIENCE_US;
        if let Some(run) = &mut self.run {
            run.patient.push(Patient { request, closed, until_us });
        }
    }

    /// Looks again at readers that wait.
    pub(super) fn be_patient(&mut self, env: &mut Env) {
        let Some(run) = &mut self.run else { return };
        for patient in std::mem::take(&mut run.patient) {
            if self.answer_here(env, &patient.request, patient.closed).is_some() {
                continue;
            }
            if patient.until_us <= env.now_us {
                self.respond(env, &patient.request, Reply::Busy);
            } else if let Some(run) = &mut self.run {
                run.patient.push(patient);
            }
        }
    }

    /// Answers a read on a copy that does not lead, if it has what is asked for.
    fn answer_here(&mut self, env: &mut Env, request: &Request, closed: Option<Hlc>) -> Option<()> {
        let copy = self.run.as_ref()?.copies.get(&request.tablet)?;
        let (applied, at) = self.closed(copy)?;
        let key = match &request.body {
            RequestBody::Bounded { key, .. } if closed.is_some_and(|closed| closed <= at) => key,
            RequestBody::InSession { key, session } => match seen_here(env, copy, session, (applied, at)) {
                SeenHere::Yes => key,
                SeenHere::NotYet => return None,
                SeenHere::Lost => {
                    self.respond(env, request, Reply::WriteLost);
                    return Some(());
                }
            },
            _ => return None,
        };
        let version = self.disk.store.newest(key, at).cloned();
        let reply = Reply::Row { version, at: Some(at) };
        let response = Response { op: request.op, tablet: request.tablet, epoch: None, reply };
        env.send(self.address(), Address::Client(request.client), Message::Response(response));
        Some(())
    }

    /// What is closed on a copy: nothing at or below the timestamp of the last entry that is
    /// applied can follow, if that entry is safe.
    pub(super) fn closed(&self, copy: &Copy) -> Option<(Seq, Hlc)> {
        let applied = copy.core.applied_seq();
        let is_safe = applied <= copy.core.safe() || mutated!(FollowerReadsUnsafe);
        let end = self.disk.log.tablet(copy.core.id())?.end_at(applied)?;
        (is_safe && applied > Seq(0)).then_some((applied, end.ts))
    }

    /// Whether a token was issued further ahead of our clock than the floor of a purged log
    /// allows for.
    fn is_ahead(&self, env: &Env, token: &Token) -> bool {
        token.issued_ms > self.wall.ms(env.now_us) + TOKEN_CLOCK_SLACK_MS
    }

    /// What the batch needs to know of the store, then on to the sequencer.
    fn read_evidence(&mut self, env: &mut Env, request: Request, reads: u32) {
        let RequestBody::Write { ops, .. } = &request.body else { return };
        let evidence = self.evidence(env, request.tablet, ops);
        let profile = &env.profile;
        let slow = profile.slow_task_us;
        let span = if env.rng.chance(env.profile.slow_task_pm) { slow } else { (1, 200) };
        let delay = env.rng.between(span);
        self.after(env, delay, Internal::Task(Task::Sequence { request, evidence, reads }));
    }

    fn evidence(&self, env: &Env, tablet: TabletId, ops: &[Op]) -> Evidence {
        let Some(copy) = self.run.as_ref().and_then(|run| run.copies.get(&tablet)) else {
            return Evidence::default();
        };
        let mut evidence = Evidence { as_of: copy.core.applied_seq(), ..Evidence::default() };
        let now = Hlc::new(self.wall.ms(env.now_us), 0);
        for op in ops {
            match &op.action {
                Action::Set { key, .. }
                | Action::Delete { key, .. }
                | Action::Add { key, .. }
                | Action::Room { key, .. } => {
                    if op.needs_read() {
                        let newest = self.disk.store.newest(key, Hlc::MAX).cloned();
                        evidence.rows.insert(key.clone(), newest);
                    }
                }
                Action::DeleteRange { from, to } => {
                    let asked = KeyRange::new(from.clone(), to.clone()).expect("the workload asks well");
                    let keys = self.disk.store.live_keys(&asked, now);
                    evidence.ranges.push(RangeEvidence { keys });
                }
            }
        }
        evidence
    }

    pub(super) fn task(&mut self, env: &mut Env, task: Task) {
        match task {
            Task::Sequence { .. } => self.timed(env, Timed::Task(task)),
            Task::Fill { request, key, version, changes, epoch } => {
                let Some(run) = &mut self.run else { return };
                run.cache.fill(key, version.clone(), changes);
                self.respond_row(env, &request, version, None, Some(epoch));
            }
        }
    }

    pub(super) fn sequence(&mut self, env: &mut Env, task: Task, ts: Hlc) {
        let Task::Sequence { request, evidence, reads } = task else { return };
        let RequestBody::Write { ops, token, level } = &request.body else { return };
        let (ops, token, level, tablet) = (ops.clone(), *token, *level, request.tablet);
        let id = self.wait(Asked { request, reads, at: ts });
        let write = WriteRequest {
            request: id,
            ops,
            level,
            token: Some(token),
            evidence,
            ts,
            wall_ms: self.wall.ms(env.now_us),
            deadline: self.now(env).plus_ms(env.rng.between(env.profile.deadline_ms)),
        };
        self.step(env, tablet, Input::Write(write));
    }

    /// Questions and snapshots, once they have a timestamp.
    pub(super) fn ask(&mut self, env: &mut Env, request: Request, ts: Hlc) {
        let deadline = self.now(env).plus_ms(1_000);
        let tablet = request.tablet;
        let body = request.body.clone();
        let id = self.wait(Asked { request, reads: 0, at: ts });
        match body {
            RequestBody::Outcome { token } => {
                let wall_ms = self.wall.ms(env.now_us);
                let question = Input::GetOutcome { request: id, token, wall_ms, ts, deadline };
                self.step(env, tablet, question);
            }
            RequestBody::Snapshot { .. } | RequestBody::Bounded { .. } | RequestBody::InSession { .. } => {
                self.step(env, tablet, Input::Barrier { request: id, ts, deadline });
            }
            RequestBody::Write { .. } | RequestBody::Get { .. } => unreachable!("they need no question"),
        }
    }

    fn wait(&mut self, asked: Asked) -> RequestId {
        let Some(run) = &mut self.run else { return RequestId(0) };
        let id = run.next_request;
        run.next_request = id.next();
        run.requests.insert(id, asked);
        id
    }

    /// What a core answers, on its way to the client.
    pub(super) fn answer(&mut self, env: &mut Env, id: RequestId, answer: Answer) {
        let Some(run) = &mut self.run else { return };
        let Some(asked) = run.requests.remove(&id) else {
            env.watch.fail("one answer per request", &format!("{id} was answered twice"));
            return;
        };
        let again = answer == Answer::Refused(Refusal::Rejected(Reject::ReadAgain));
        if again && asked.reads < READS_MAX {
            self.read_evidence(env, asked.request, asked.reads + 1);
            return;
        }
        self.show(env, &asked.request, &answer);
        match (&asked.request.body, &answer) {
            (
                RequestBody::Snapshot { key }
                | RequestBody::Bounded { key, .. }
                | RequestBody::InSession { key, .. },
                Answer::Reached,
            ) => {
                let version = self.disk.store.newest(key, asked.at).cloned();
                self.respond_row(env, &asked.request, version, Some(asked.at), None);
            }
            _ if again => self.respond(env, &asked.request, Reply::Busy),
            _ => self.respond(env, &asked.request, Reply::Answer(answer)),
        }
    }

    /// What a core says of a write, for the invariants.
    fn show(&self, env: &mut Env, request: &Request, answer: &Answer) {
        let (server, tablet) = (self.index, request.tablet);
        let copy = self.run.as_ref().and_then(|run| run.copies.get(&tablet));
        let Some(epoch) = copy.and_then(|copy| copy.core.leading()) else { return };
        match (&request.body, answer) {
            (RequestBody::Write { .. } | RequestBody::Outcome { .. }, Answer::Committed(committed)) => {
                // What a parent of a merged tablet had acknowledged, or not, is judged at the end.
                if !env.watch.oracle.is_inherited(tablet, committed.pos) {
                    env.observe(&Observation::Acked { tablet, server, epoch, committed });
                }
                if committed.level == AckLevel::Leader && matches!(request.body, RequestBody::Write { .. }) {
                    env.observe(&Observation::LeaseHeld { tablet, server, epoch });
                }
            }
            (
                RequestBody::Write { token, .. } | RequestBody::Outcome { token },
                Answer::Reverted | Answer::Refused(Refusal::TokenFenced),
            ) => env.observe(&Observation::SaidReverted { tablet, server, epoch, token: *token }),
            _ => {}
        }
    }

    /// A point read: out of the cache, or out of the store and then into the cache.
    fn get(&mut self, env: &mut Env, request: Request, key: Bytes) {
        let now = self.now(env);
        let Some(run) = &self.run else { return };
        let Some(epoch) = run.lease(now, request.tablet) else { return };
        if let Some(version) = run.cache.rows.get(&key).cloned() {
            self.respond_row(env, &request, version, None, Some(epoch));
            return;
        }
        let changes = run.cache.changes(&key);
        let version = self.disk.store.newest(&key, Hlc::MAX).cloned();
        let delay = env.rng.between((1, 3_000));
        self.after(env, delay, Internal::Task(Task::Fill { request, key, version, changes, epoch }));
    }

    /// Answers with a row, if this process still may: the lease is looked at after the work.
    fn respond_row(
        &mut self,
        env: &mut Env,
        request: &Request,
        version: Option<Version>,
        at: Option<Hlc>,
        read_in: Option<Epoch>,
    ) {
        let now = self.now(env);
        let Some(run) = &self.run else { return };
        let lease = match mutated!(LeaseCheckedBefore) {
            true => read_in.or_else(|| run.copies.get(&request.tablet)?.core.leading()),
            false => run.lease(now, request.tablet),
        };
        let lease = lease.filter(|epoch| read_in.is_none_or(|read_in| read_in == *epoch));
        let (server, tablet) = (self.index, request.tablet);
        let reply = match lease {
            Some(epoch) => {
                env.observe(&Observation::LeaseHeld { tablet, server, epoch });
                Reply::Row { version, at }
            }
            None => Reply::Answer(Answer::Refused(Refusal::NoLease)),
        };
        let response = Response { op: request.op, tablet: request.tablet, epoch: lease, reply };
        env.send(self.address(), Address::Client(request.client), Message::Response(response));
    }

    fn respond(&mut self, env: &mut Env, request: &Request, reply: Reply) {
        let copy = self.run.as_ref().and_then(|run| run.copies.get(&request.tablet));
        let epoch = copy.and_then(|copy| copy.core.leading());
        let response = Response { op: request.op, tablet: request.tablet, epoch, reply };
        if request.client < env.profile.clients {
            env.send(self.address(), Address::Client(request.client), Message::Response(response));
        } else {
            self.own_answered(env, response);
        }
    }
}

/// Whether a copy has what a session wrote.
enum SeenHere {
    Yes,
    NotYet,
    Lost,
}

/// Whether a copy, closed up to an entry, has what a session wrote. A write of another history counts
/// by its time, as long as that is not after the histories were joined.
fn seen_here(env: &Env, copy: &Copy, session: &Session, (applied, at): (Seq, Hlc)) -> SeenHere {
    let oracle = &env.watch.oracle;
    let (tablet, Session { pos, ts, .. }) = (copy.core.id(), *session);
    let seen = match tablet == session.tablet {
        true => Seen::Here,
        false => oracle.history(tablet).judge(oracle.history(session.tablet).lineage, ts),
    };
    match seen {
        Seen::Here => {}
        Seen::InAncestor if ts <= at => return SeenHere::Yes,
        Seen::InAncestor => return SeenHere::NotYet,
        Seen::Elsewhere => return SeenHere::Lost,
    }
    if applied < pos.seq {
        return SeenHere::NotYet;
    }
    let begun = copy.core.epochs().iter().rev().find(|(_, first)| *first <= pos.seq);
    let is_ours = match begun {
        Some((epoch, _)) => *epoch == pos.epoch,
        // A parent's position, by which a merged tablet has told of its write.
        None => at >= ts,
    };
    if is_ours || mutated!(SessionEpochIgnored) { SeenHere::Yes } else { SeenHere::Lost }
}
