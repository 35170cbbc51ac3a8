//! Clients: what they ask, how they retry, and what they write down.
//!
//! A client has one operation at a time. A write keeps its token over all retries; when its
//! fate is unknown the client sends it again, asks for its outcome, or gives up. Values are
//! unique, so that a row names the write that put it.

use super::clock::EPOCH_MS;
use super::env::{Env, Event};
use super::network::{Address, Message, Reply, Request, RequestBody, Response};
use crate::oracle::{Asked, Outcome, Session};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Pos, TabletId};
use ebla_kernel::op::{AckLevel, Action, Body, Cause, Condition, Op, Token, Version};
use ebla_kernel::tablet::{Answer, Refusal};
use std::collections::BTreeMap;

/// Attempts of one operation before its client gives up.
const ATTEMPTS_MAX: u32 = 8;

/// Stands for what a session wrote until its tablet is known.
const NO_SESSION: Session = Session { tablet: TabletId(0), pos: Pos::ZERO, ts: Hlc::MIN };

/// A client's own timer.
#[derive(Debug)]
pub enum Timer {
    /// The next operation.
    Think,
    /// The next attempt of an operation.
    Retry(usize),
    /// No answer to an attempt came.
    Impatient {
        /// The operation.
        op: usize,
        /// The attempt.
        attempt: u32,
    },
}

/// A client.
#[derive(Debug)]
pub struct Client {
    index: usize,
    sequence: u64,
    current: Option<Current>,
    /// Whether it begins new operations.
    pub is_active: bool,
    /// The last version that it saw, for conditions.
    seen: Option<Version>,
    /// Its last committed write in each tablet.
    sessions: BTreeMap<TabletId, Session>,
    /// Operations that must succeed before it is done: what the healed cluster must do.
    pub probes: Vec<Asked>,
}

#[derive(Debug)]
struct Current {
    op: usize,
    attempt: u32,
    tablet: TabletId,
    /// The row that says which tablet is meant.
    key: Bytes,
    body: RequestBody,
    /// Nobody gives up on a probe.
    is_probe: bool,
}

/// The key of the `n`th row.
#[must_use]
pub fn row_key(n: u64) -> Bytes {
    format!("k{n:03}").into()
}

/// The key of the counter beside the `n`th row.
#[must_use]
pub fn counter_key(n: u64) -> Bytes {
    format!("k{n:03}n").into()
}

impl Client {
    /// A client that has not asked anything.
    #[must_use]
    pub fn new(index: usize) -> Self {
        let sessions = BTreeMap::new();
        Self { index, sequence: 0, current: None, is_active: true, seen: None, sessions, probes: Vec::new() }
    }

    /// Whether it waits for nothing and has nothing left to ask.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.current.is_none() && self.probes.is_empty()
    }

    /// A timer of this client rings.
    pub fn ring(&mut self, env: &mut Env, timer: Timer) {
        match timer {
            Timer::Think => self.think(env),
            Timer::Retry(op) => {
                if self.current.as_ref().is_some_and(|current| current.op == op) {
                    self.send(env);
                }
            }
            Timer::Impatient { op, attempt } => {
                let waits = |current: &Current| current.op == op && current.attempt == attempt;
                if self.current.as_ref().is_some_and(waits) {
                    self.retry(env);
                }
            }
        }
    }

    /// Begins the next operation.
    fn think(&mut self, env: &mut Env) {
        if self.current.is_some() {
            return;
        }
        let delay = env.rng.between(env.profile.think_us) + 1;
        let probe = self.probes.pop();
        let is_probe = probe.is_some();
        if env.directory.routes.is_empty() || !(self.is_active || is_probe) {
            env.after(delay.max(10_000), Event::Client(self.index, Timer::Think));
            return;
        }
        let asked = probe.unwrap_or_else(|| self.invent(env));
        let mut routes = env.directory.routes.iter();
        let at = routes.find(|route| route.range.contains(asked.key()));
        let tablet = at.expect("the tablets cover every key").tablet;
        let key = asked.key().clone();
        self.sequence += 1;
        let (asked, body) = match asked {
            Asked::Write { ops, level, .. } => {
                let token = self.token(env);
                let body = RequestBody::Write { ops: ops.clone(), token, level };
                (Asked::Write { ops, token, level }, body)
            }
            Asked::Get { key } => (Asked::Get { key: key.clone() }, RequestBody::Get { key }),
            Asked::Snapshot { key } => (Asked::Snapshot { key: key.clone() }, RequestBody::Snapshot { key }),
            Asked::Bounded { key, stale_ms } => {
                (Asked::Bounded { key: key.clone(), stale_ms }, RequestBody::Bounded { key, stale_ms })
            }
            Asked::InSession { key, .. } => match self.session(env, tablet) {
                Some(session) => {
                    let body = RequestBody::InSession { key: key.clone(), session };
                    (Asked::InSession { key, session }, body)
                }
                None => (Asked::Get { key: key.clone() }, RequestBody::Get { key }),
            },
        };
        let op = env.history.invoke(self.index, env.now_us, tablet, asked);
        self.current = Some(Current { op, attempt: 0, tablet, key, body, is_probe });
        self.send(env);
    }

    /// What was committed last in a tablet, or in one that it was made of.
    fn session(&self, env: &Env, tablet: TabletId) -> Option<Session> {
        let family = env.watch.oracle.family(tablet);
        let known = family.iter().filter_map(|older| self.sessions.get(older));
        known.copied().max_by_key(|session| session.ts)
    }

    /// A fresh token, by the client's own clock.
    fn token(&self, env: &Env) -> Token {
        let step = 2 * env.profile.client_skew_ms_max / env.profile.clients as u64;
        let ahead_ms = (self.index as u64 + 1) * step;
        let issued_ms = EPOCH_MS + env.now_us / 1_000 + ahead_ms - env.profile.client_skew_ms_max;
        Token { issued_ms, client: self.index as u128, seq: self.sequence }
    }

    fn send(&mut self, env: &mut Env) {
        let patience = env.rng.between(env.profile.patience_us);
        let lost = env.rng.chance(50);
        let Some(current) = &mut self.current else { return };
        let mut routes = env.directory.routes.iter();
        if let Some(route) = routes.find(|route| route.range.contains(&current.key)).filter(|_| !lost) {
            current.tablet = route.tablet;
        }
        current.attempt += 1;
        let (client, op, attempt) = (self.index, current.op, current.attempt);
        let request = Request { client, op, tablet: current.tablet, body: current.body.clone() };
        let any_copy =
            lost || matches!(current.body, RequestBody::Bounded { .. } | RequestBody::InSession { .. });
        let route = env.directory.route(current.tablet);
        let copies: Vec<usize> = route.into_iter().flat_map(|route| route.copies.values().copied()).collect();
        let leader = route.and_then(|route| route.leader).filter(|_| !any_copy);
        if let Some(to) = leader.or_else(|| copies.get(env.rng.index(copies.len().max(1))).copied()) {
            env.send(Address::Client(client), Address::Server(to), Message::Request(request));
        }
        env.after(patience, Event::Client(client, Timer::Impatient { op, attempt }));
    }

    /// Again: the same write, a question for its outcome, or no more.
    fn retry(&mut self, env: &mut Env) {
        let ask = env.rng.chance(300);
        let give_up = env.rng.chance(50);
        let back_off = env.rng.between((1_000, 100_000));
        let Some(current) = &mut self.current else { return };
        if !current.is_probe && (current.attempt >= ATTEMPTS_MAX || give_up) {
            let tablet = current.tablet;
            self.end(env, Outcome::Unknown, (tablet, None));
            return;
        }
        if let RequestBody::Write { token, .. } = &current.body
            && ask
            && !current.is_probe
        {
            current.body = RequestBody::Outcome { token: *token };
        }
        let (op, client) = (current.op, self.index);
        env.after(back_off, Event::Client(client, Timer::Retry(op)));
    }

    /// An answer arrives.
    pub fn receive(&mut self, env: &mut Env, response: Response) {
        let Some(current) = &self.current else { return };
        if current.op != response.op {
            return;
        }
        let (was, epoch) = (current.tablet, (response.tablet, response.epoch));
        match response.reply {
            Reply::Row { version, at } => {
                self.seen = version.clone().or(self.seen.take());
                self.end(env, Outcome::Row { version, at }, epoch);
            }
            Reply::WriteLost => {
                let family = env.watch.oracle.family(response.tablet);
                self.sessions.retain(|tablet, _| !family.contains(tablet));
                self.end(env, Outcome::WriteLost, epoch);
            }
            Reply::Answer(Answer::Committed(committed)) => {
                let (tablet, pos, ts) = (response.tablet, committed.pos, committed.ts);
                self.sessions.insert(tablet, Session { tablet, pos, ts });
                self.end(env, Outcome::Committed(committed), epoch);
            }
            Reply::Answer(Answer::Reverted | Answer::Refused(Refusal::TokenFenced)) => {
                self.probe_again();
                self.end(env, Outcome::Reverted, epoch);
            }
            Reply::Answer(Answer::Refused(Refusal::TokenTooOld)) => self.too_old(env, was),
            Reply::Answer(Answer::Refused(Refusal::Rejected(reject))) => {
                self.end(env, Outcome::Rejected(reject), epoch);
            }
            // Others have taken the place of the tablet that the batch was made for.
            Reply::Answer(Answer::Refused(Refusal::OutOfRange)) => {
                self.end(env, Outcome::Unknown, (was, None))
            }
            Reply::Busy
            | Reply::Answer(
                Answer::Unknown
                | Answer::Reached
                | Answer::Refused(
                    Refusal::NotLeader
                    | Refusal::NoLease
                    | Refusal::Transferring
                    | Refusal::Sealed
                    | Refusal::Retired
                    | Refusal::NotEnoughReplicas
                    | Refusal::Busy
                    | Refusal::WaitTimedOut,
                ),
            ) => self.retry(env),
        }
    }

    /// A client whose clock is behind another's, after a log was purged. A probe goes on
    /// with a fresh token.
    fn too_old(&mut self, env: &mut Env, tablet: TabletId) {
        self.probe_again();
        self.end(env, Outcome::TokenTooOld, (tablet, None));
    }

    /// A probe that came to nothing goes on with a fresh token.
    fn probe_again(&mut self) {
        if let Some(Current { is_probe: true, body: RequestBody::Write { ops, token, level }, .. }) =
            &self.current
        {
            self.probes.push(Asked::Write { ops: ops.clone(), token: *token, level: *level });
        }
    }

    fn end(&mut self, env: &mut Env, outcome: Outcome, by: (TabletId, Option<Epoch>)) {
        let Some(current) = self.current.take() else { return };
        let client = self.index;
        env.say(|| format!("client {client} op {} ends in {by:?}: {outcome:?}", current.op));
        env.history.end(current.op, env.now_us, outcome, by);
        let delay = env.rng.between(env.profile.think_us) + 1;
        env.after(delay, Event::Client(client, Timer::Think));
    }

    /// A new operation.
    fn invent(&mut self, env: &mut Env) -> Asked {
        let n = env.rng.below(env.profile.keys);
        let key = if env.rng.chance(300) { counter_key(n) } else { row_key(n) };
        match env.rng.below(10) {
            0..=3 if env.rng.chance(env.profile.follower_read_pm) => match env.rng.chance(500) {
                true => Asked::Bounded { key, stale_ms: 1 << env.rng.below(13) },
                false => Asked::InSession { key, session: NO_SESSION },
            },
            0..=2 => Asked::Get { key },
            3 => Asked::Snapshot { key },
            _ => {
                let ops = self.invent_batch(env, n);
                let level = invent_level(env);
                Asked::Write { ops, token: Token { issued_ms: 0, client: 0, seq: 0 }, level }
            }
        }
    }

    /// One to three operations on rows of one tablet.
    fn invent_batch(&mut self, env: &mut Env, n: u64) -> Vec<Op> {
        let home = env.directory.routes.iter().find(|route| route.range.contains(&row_key(n))).cloned();
        let home = home.expect("the tablets cover every key");
        let mut ops = vec![self.invent_op(env, n)];
        while ops.len() < 3 && env.rng.chance(200) {
            let n = env.rng.below(env.profile.keys);
            if home.range.contains(&row_key(n)) && home.range.contains(&counter_key(n)) {
                ops.push(self.invent_op(env, n));
            }
        }
        ops
    }

    fn invent_op(&mut self, env: &mut Env, n: u64) -> Op {
        let plain = |action| Op { condition: None, action };
        let key = row_key(n);
        let value = Bytes::from(format!("{}.{}.{}", self.index, self.sequence, env.rng.below(1_000)));
        let set = Action::Set { key: key.clone(), value, ttl_ms: None };
        match env.rng.below(20) {
            0..=5 => plain(set),
            6..=11 => plain(Action::Add { key: counter_key(n), delta: 1 + env.rng.below(5) as i64 }),
            12..=13 => plain(Action::Delete { key, cause: Cause::Deleted }),
            14 => plain(Action::DeleteRange { from: key, to: Some(row_key(n + 1 + env.rng.below(3))) }),
            15 => plain(Action::Add { key, delta: 1 }),
            16..=17 => Op { condition: Some(Condition::Absent), action: set },
            _ => Op { condition: Some(self.invent_condition()), action: set },
        }
    }

    fn invent_condition(&self) -> Condition {
        match &self.seen {
            Some(Version { body: Body::Value(value), .. }) => Condition::ValueIs(value.clone()),
            Some(version) => Condition::TsIs(version.ts),
            None => Condition::TsIs(Hlc::MIN),
        }
    }
}

/// How many copies a write waits for.
fn invent_level(env: &mut Env) -> AckLevel {
    if !env.rng.chance(env.profile.wait_pm) {
        return AckLevel::Leader;
    }
    let (d, r) = (u64::from(env.profile.spec.min_in_sync), u64::from(env.profile.spec.replicas));
    match env.rng.chance(300) {
        true => AckLevel::InSync,
        false => AckLevel::Copies(u8::try_from(env.rng.between((d, r))).expect("few copies")),
    }
}
