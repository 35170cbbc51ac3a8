//! The way of a request: read what conditions need, wait for the sequencer, answer. And the
//! row cache with its fill protocol.

use super::clock::tick;
use super::env::Env;
use super::network::{Address, Message, Reply, Request, RequestBody, Response};
use super::server::{Internal, Server, Timed};
use bytes::Bytes;
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{RequestId, TabletId};
use ebla_kernel::limits::TOKEN_CLOCK_SLACK_MS;
use ebla_kernel::mutated;
use ebla_kernel::op::{Action, Change, Op, Token, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::sequence::{Evidence, RangeEvidence, Reject};
use ebla_kernel::tablet::{Answer, Input, Refusal, WriteRequest};
use std::collections::BTreeMap;

/// How often a request reads again before it gives up.
const READS_MAX: u32 = 5;

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
    },
}

/// Newest versions of rows, filled by readers and emptied by the apply step.
#[derive(Debug, Default)]
pub struct Cache {
    rows: BTreeMap<Bytes, Option<Version>>,
    changes: BTreeMap<Bytes, u64>,
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

    fn changes(&self, key: &Bytes) -> u64 {
        self.changes.get(key).copied().unwrap_or_default()
    }

    /// Takes what a reader found, unless the row changed since before the reading.
    fn fill(&mut self, key: Bytes, version: Option<Version>, changes: u64) {
        if self.changes(&key) == changes || mutated!(CacheFillUnchecked) {
            self.rows.insert(key, version);
        }
    }
}

fn keys(entry: &Entry) -> impl Iterator<Item = &Bytes> {
    let changes = match &entry.payload {
        Payload::Write(write) => &write.changes[..],
        Payload::EpochStart { .. } | Payload::TokenFence { .. } => &[],
    };
    changes.iter().filter_map(|change| match change {
        Change::Put { key, .. } => Some(key),
        Change::RangeTombstone { .. } => None,
    })
}

impl Server {
    pub(super) fn request(&mut self, env: &mut Env, request: Request) {
        let serving = self.run.as_ref().is_some_and(|run| run.is_serving(request.tablet));
        if !serving {
            let refused = Reply::Answer(Answer::Refused(Refusal::NotLeader));
            self.respond(env, &request, refused);
            return;
        }
        match &request.body {
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
            RequestBody::Outcome { .. } | RequestBody::Snapshot { .. } => {
                self.timed(env, Timed::Request(request));
            }
        }
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
        let Some(tablet) = self.run.as_ref().and_then(|run| run.tablets.get(&tablet)) else {
            return Evidence::default();
        };
        let mut evidence = Evidence { as_of: tablet.applied_seq(), ..Evidence::default() };
        let now = Hlc::new(self.wall.ms(env.now_us), 0);
        for op in ops {
            match &op.action {
                Action::Set { key, .. } | Action::Delete { key } | Action::Add { key, .. } => {
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
            Task::Fill { request, key, version, changes } => {
                let Some(run) = &mut self.run else { return };
                run.cache.fill(key, version.clone(), changes);
                self.respond_row(env, &request, version, None);
            }
        }
    }

    pub(super) fn sequence(&mut self, env: &mut Env, task: Task, ts: Hlc) {
        let Task::Sequence { request, evidence, reads } = task else { return };
        let RequestBody::Write { ops, token } = &request.body else { return };
        let (ops, token, tablet) = (ops.clone(), *token, request.tablet);
        let id = self.wait(Asked { request, reads, at: ts });
        let write = WriteRequest {
            request: id,
            ops,
            level: ebla_kernel::op::AckLevel::Leader,
            token: Some(token),
            evidence,
            ts,
            wall_ms: self.wall.ms(env.now_us),
            deadline: tick(env.now_us + env.rng.between((20_000, 1_500_000))),
        };
        self.step(env, tablet, Input::Write(write));
    }

    /// Questions and snapshots, once they have a timestamp.
    pub(super) fn ask(&mut self, env: &mut Env, request: Request, ts: Hlc) {
        let deadline = tick(env.now_us + 1_000_000);
        let tablet = request.tablet;
        let body = request.body.clone();
        let id = self.wait(Asked { request, reads: 0, at: ts });
        match body {
            RequestBody::Outcome { token } => {
                let wall_ms = self.wall.ms(env.now_us);
                let question = Input::GetOutcome { request: id, token, wall_ms, ts, deadline };
                self.step(env, tablet, question);
            }
            RequestBody::Snapshot { .. } => {
                self.step(env, tablet, Input::Barrier { request: id, deadline });
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
        match (&asked.request.body, &answer) {
            (RequestBody::Snapshot { key }, Answer::Reached) => {
                let version = self.disk.store.newest(key, asked.at).cloned();
                self.respond_row(env, &asked.request, version, Some(asked.at));
            }
            _ if again => self.respond(env, &asked.request, Reply::Busy),
            _ => self.respond(env, &asked.request, Reply::Answer(answer)),
        }
    }

    /// A point read: out of the cache, or out of the store and then into the cache.
    fn get(&mut self, env: &mut Env, request: Request, key: Bytes) {
        let Some(run) = &self.run else { return };
        if let Some(version) = run.cache.rows.get(&key).cloned() {
            self.respond_row(env, &request, version, None);
            return;
        }
        let changes = run.cache.changes(&key);
        let version = self.disk.store.newest(&key, Hlc::MAX).cloned();
        let delay = env.rng.between((1, 3_000));
        self.after(env, delay, Internal::Task(Task::Fill { request, key, version, changes }));
    }

    /// Answers with a row, if this process still serves: checked after the work.
    fn respond_row(&mut self, env: &mut Env, request: &Request, version: Option<Version>, at: Option<Hlc>) {
        let serving = self.run.as_ref().is_some_and(|run| run.serving(request.tablet).is_some());
        let reply = match serving {
            true => Reply::Row { version, at },
            false => Reply::Answer(Answer::Refused(Refusal::NotLeader)),
        };
        self.respond(env, request, reply);
    }

    fn respond(&mut self, env: &mut Env, request: &Request, reply: Reply) {
        let response = Response { op: request.op, reply };
        env.send(self.address(), Address::Client(request.client), Message::Response(response));
    }
}
