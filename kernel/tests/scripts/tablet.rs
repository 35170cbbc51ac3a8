//! The command language of the tablet scripts.
//!
//! ```text
//! fence 2                       metadata asks for the promise of epoch 2
//! promised 2                    the promise of epoch 2 is durable
//! appoint 2 [incarnation=1] [in-sync=1,2] [d=1]
//! write q1 set k=v, add n=1, delete k, delete-range a..m, if-absent set k=v
//!          [token=7] [issued=MS] [level=leader|in-sync|copies=2] [within=MS] [evidence=NAME|none]
//! read NAME                     a request task reads all rows now and keeps them as NAME
//! persist [SEQ] | apply [SEQ]   the log is durable, the rows are stored, up to SEQ or all
//! fail SEQ                      the append from SEQ on is refused
//! barrier q2 | outcome q3 token=7 [issued=MS]
//! forget MS | step-down | tick MS | show
//! restart [incarnation=2]       a new process: what was not durable is gone
//! ```

use bytes::Bytes;
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Incarnation, ReplicaId, RequestId, Seq, TabletId, Tick};
use ebla_kernel::op::{AckLevel, Action, Body, Change, Condition, Op, OpResult, Token, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::sequence::{Evidence, RangeEvidence};
use ebla_kernel::tablet::token::TokenTable;
use ebla_kernel::tablet::{Answer, Appointment, Effect, Input, Recovered, Tablet, WriteRequest};
use std::collections::BTreeMap;

const WALL_MS: u64 = 1_000_000;
const REPLICA: ReplicaId = ReplicaId(1);

/// A tablet and what a shell would keep for it.
pub struct Session {
    tablet: Tablet,
    now: Tick,
    last_ts: Hlc,
    promised: Epoch,
    log: Vec<Entry>,
    durable: usize,
    rows: BTreeMap<Bytes, Version>,
    reads: BTreeMap<String, (Seq, BTreeMap<Bytes, Version>)>,
}

/// The words of a command, with `name=value` ones set apart.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(text: &'a str, names: &[&str]) -> Self {
        let mut words = Self { plain: Vec::new(), named: BTreeMap::new() };
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) if names.contains(&name) => {
                    words.named.insert(name, value);
                }
                _ => words.plain.push(word),
            }
        }
        words
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.named.get(name).map_or(default, |value| value.parse().expect("a number"))
    }
}

fn number(word: Option<&&str>) -> Option<u64> {
    word.map(|word| word.trim_start_matches(['q', 'e']).parse().expect("a number"))
}

impl Session {
    pub fn new() -> Self {
        let mut session = Self {
            tablet: open(Incarnation(1), Epoch(0), &[]),
            now: Tick(0),
            last_ts: Hlc::MIN,
            promised: Epoch(0),
            log: Vec::new(),
            durable: 0,
            rows: BTreeMap::new(),
            reads: BTreeMap::new(),
        };
        session.last_ts = Hlc::new(WALL_MS, 0);
        session
    }

    /// Runs one command and shows the effects, one a line.
    pub fn run(&mut self, command: &str) -> Vec<String> {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let input = match verb {
            "show" => return vec![self.show()],
            "read" => return self.read(rest),
            "restart" => return self.restart(rest),
            "write" => self.write(rest),
            "appoint" => self.appoint(rest),
            "outcome" => self.outcome(rest),
            "persist" | "apply" | "fail" => self.progress(verb, rest),
            _ => self.plain(verb, rest),
        };
        self.step(input)
    }

    fn step(&mut self, input: Input) -> Vec<String> {
        if let Input::PromisePersisted { epoch } = &input {
            self.promised = self.promised.max(*epoch);
        }
        let mut effects = Vec::new();
        self.tablet.step(self.now, input, &mut effects);
        for effect in &effects {
            if let Effect::Append(entry) = effect {
                self.log.push(entry.clone());
            }
        }
        effects.iter().map(show_effect).collect()
    }

    fn plain(&mut self, verb: &str, rest: &str) -> Input {
        let words = Words::of(rest, &[]);
        let value = number(words.plain.first());
        let epoch = Epoch(value.unwrap_or_default());
        match verb {
            "fence" => Input::Fence { epoch },
            "promised" => Input::PromisePersisted { epoch },
            "forget" => Input::ForgetTokens { issued_before_ms: value.expect("milliseconds") },
            "step-down" => Input::StepDown,
            "tick" => {
                self.now = Tick(value.expect("milliseconds"));
                Input::Tick
            }
            "barrier" => Input::Barrier {
                request: RequestId(value.expect("a request")),
                deadline: self.now.plus_ms(1_000),
            },
            _ => panic!("unknown command {verb}"),
        }
    }

    fn progress(&mut self, verb: &str, rest: &str) -> Input {
        let all = if verb == "apply" { self.durable } else { self.log.len() };
        let seq = rest.parse().unwrap_or(all as u64);
        let at = usize::try_from(seq).expect("small");
        match verb {
            "persist" => {
                self.durable = self.durable.max(at);
                Input::Persisted { upto: Seq(seq) }
            }
            "apply" => {
                let entries: Vec<Entry> = self.log[..at.min(self.log.len())].to_vec();
                entries.iter().for_each(|entry| self.fold(entry));
                Input::Applied { upto: Seq(seq) }
            }
            _ => {
                self.log.truncate(at - 1);
                Input::AppendFailed { from: Seq(seq) }
            }
        }
    }

    fn fold(&mut self, entry: &Entry) {
        let Payload::Write(write) = &entry.payload else { return };
        for change in &write.changes {
            match change {
                Change::Put { key, body, expires_ms } => {
                    let version = Version { ts: entry.ts, body: body.clone(), expires_ms: *expires_ms };
                    self.rows.insert(key.clone(), version);
                }
                Change::RangeTombstone { .. } => panic!("scripts write small ranges only"),
            }
        }
    }

    fn appoint(&mut self, rest: &str) -> Input {
        let words = Words::of(rest, &["incarnation", "in-sync", "d"]);
        let in_sync = words.named.get("in-sync").copied().unwrap_or("1");
        Input::Appoint(Appointment {
            epoch: Epoch(number(words.plain.first()).expect("an epoch")),
            replica: REPLICA,
            incarnation: Incarnation(words.number("incarnation", 1)),
            in_sync: in_sync.split(',').map(|id| ReplicaId(id.parse().expect("a replica"))).collect(),
            min_in_sync: u8::try_from(words.number("d", 1)).expect("small"),
            ts: self.fresh_ts(),
        })
    }

    fn write(&mut self, rest: &str) -> Input {
        let names = ["token", "issued", "level", "within", "evidence"];
        let words = Words::of(rest, &names);
        let request = RequestId(number(words.plain.first()).expect("a request"));
        let ops: Vec<Op> = words.plain[1..].join(" ").split(',').map(|op| parse_op(op.trim())).collect();
        let evidence = self.evidence(&ops, words.named.get("evidence").copied());
        Input::Write(WriteRequest {
            request,
            ops,
            level: match words.named.get("level").copied() {
                None | Some("leader") => AckLevel::Leader,
                Some("in-sync") => AckLevel::InSync,
                Some(copies) => AckLevel::Copies(copies.trim_start_matches("copies=").parse().expect("n")),
            },
            token: words.named.contains_key("token").then(|| self.token(&words)),
            evidence,
            ts: self.fresh_ts(),
            wall_ms: self.wall_ms(),
            deadline: self.now.plus_ms(words.number("within", 1_000)),
        })
    }

    fn outcome(&mut self, rest: &str) -> Input {
        let words = Words::of(rest, &["token", "issued"]);
        Input::GetOutcome {
            request: RequestId(number(words.plain.first()).expect("a request")),
            token: self.token(&words),
            wall_ms: self.wall_ms(),
            ts: self.fresh_ts(),
            deadline: self.now.plus_ms(1_000),
        }
    }

    fn token(&self, words: &Words<'_>) -> Token {
        Token { issued_ms: words.number("issued", WALL_MS), client: 1, seq: words.number("token", 0) }
    }

    fn read(&mut self, name: &str) -> Vec<String> {
        self.reads.insert(name.into(), (self.tablet.applied_seq(), self.rows.clone()));
        vec![format!("read as of {}", self.tablet.applied_seq())]
    }

    fn evidence(&self, ops: &[Op], name: Option<&str>) -> Evidence {
        let (as_of, rows) = match name {
            Some("none") => return Evidence::default(),
            Some(name) => self.reads[name].clone(),
            None => (self.tablet.applied_seq(), self.rows.clone()),
        };
        let mut evidence = Evidence { as_of, ..Evidence::default() };
        for op in ops {
            if let Action::DeleteRange { from, to } = &op.action {
                let range = KeyRange::new(from.clone(), to.clone()).expect("a range");
                let keys = rows.keys().filter(|key| range.contains(key)).cloned().collect();
                evidence.ranges.push(RangeEvidence { keys });
            } else if let Some(key) = op.action.key() {
                evidence.rows.insert(key.clone(), rows.get(key).cloned());
            }
        }
        evidence
    }

    fn restart(&mut self, rest: &str) -> Vec<String> {
        let words = Words::of(rest, &["incarnation"]);
        let incarnation = Incarnation(words.number("incarnation", 2));
        self.log.truncate(self.durable);
        self.tablet = open(incarnation, self.promised, &self.log);
        let entries = self.log.clone();
        entries.iter().for_each(|entry| self.fold(entry));
        vec![self.show()]
    }

    fn show(&self) -> String {
        let tablet = &self.tablet;
        let serving = tablet.serving().map_or("nothing".into(), |epoch| epoch.to_string());
        let q = tablet.q().map_or("none".into(), |pos| pos.to_string());
        format!(
            "promised {}, durable {}, applied {}, serves {serving}, Q {q}, epochs {:?}, tokens {}",
            tablet.promised(),
            tablet.durable_end().pos,
            tablet.applied_seq(),
            tablet.epochs(),
            tablet.token_count(),
        )
    }

    fn wall_ms(&self) -> u64 {
        WALL_MS + self.now.0
    }

    fn fresh_ts(&mut self) -> Hlc {
        self.last_ts = self.last_ts.next().max(Hlc::new(self.wall_ms(), 0));
        self.last_ts
    }
}

fn open(incarnation: Incarnation, promised: Epoch, log: &[Entry]) -> Tablet {
    let epoch_start = |entry: &Entry| match entry.payload {
        Payload::EpochStart { .. } => Some((entry.pos.epoch, entry.seq())),
        Payload::Write(_) | Payload::TokenFence { .. } => None,
    };
    let mut tokens = TokenTable::default();
    log.iter().for_each(|entry| tokens.note_entry(entry));
    Tablet::new(Recovered {
        id: TabletId(7),
        replica: REPLICA,
        incarnation,
        range: KeyRange::new(Bytes::from_static(b"a"), Some(Bytes::from_static(b"z"))).expect("a range"),
        promised,
        epochs: log.iter().filter_map(epoch_start).collect(),
        end: log.last().map(Entry::end).unwrap_or_default(),
        tokens,
    })
}

fn parse_op(text: &str) -> Op {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let (condition, text) = match text.strip_prefix("if-absent ") {
        Some(rest) => (Some(Condition::Absent), rest),
        None => (None, text),
    };
    let (verb, rest) = text.split_once(' ').expect("an operation");
    let action = match verb {
        "delete" => Action::Delete { key: bytes(rest) },
        "delete-range" => {
            let (from, to) = rest.split_once("..").expect("a range");
            Action::DeleteRange { from: bytes(from), to: (!to.is_empty()).then(|| bytes(to)) }
        }
        "set" | "add" => {
            let (key, value) = rest.split_once('=').expect("a row");
            match verb {
                "set" => Action::Set { key: bytes(key), value: bytes(value), ttl_ms: None },
                _ => Action::Add { key: bytes(key), delta: value.parse().expect("a delta") },
            }
        }
        _ => panic!("unknown operation {verb}"),
    };
    Op { condition, action }
}

fn show_effect(effect: &Effect) -> String {
    match effect {
        Effect::PersistPromise { epoch } => format!("persist promise {epoch}"),
        Effect::AnswerFence(answer) => {
            format!("answer fence {}: log ends at {}", answer.epoch, answer.end.pos)
        }
        Effect::Append(entry) => {
            format!(
                "append {} after {} at {}: {}",
                entry.pos,
                entry.prev,
                entry.ts,
                show_payload(&entry.payload)
            )
        }
        Effect::Serve { epoch } => format!("serve {epoch}"),
        Effect::StopServing { epoch } => format!("stop serving {epoch}"),
        Effect::Reply { request, answer } => format!("{request}: {}", show_answer(answer)),
    }
}

fn show_answer(answer: &Answer) -> String {
    match answer {
        Answer::Committed(committed) => format!(
            "committed {} at {} level {}{}",
            committed.pos,
            committed.ts,
            committed.level,
            show_results(&committed.results)
        ),
        Answer::Reverted => "reverted".into(),
        Answer::Unknown => "unknown".into(),
        Answer::Reached => "reached".into(),
        Answer::Refused(refusal) => format!("refused: {refusal:?}"),
    }
}

fn show_results(results: &[OpResult]) -> String {
    let counters = results.iter().filter_map(|result| match result {
        OpResult::Done => None,
        OpResult::Counter(value) => Some(format!(" ={value}")),
    });
    counters.collect()
}

fn show_payload(payload: &Payload) -> String {
    match payload {
        Payload::EpochStart { replica, incarnation } => format!("epoch start by {replica} {incarnation}"),
        Payload::TokenFence { token } => format!("token fence {}", token.seq),
        Payload::Write(write) => {
            let token = write.token.map_or(String::new(), |token| format!(" token {}", token.seq));
            let changes: Vec<String> = write.changes.iter().map(show_change).collect();
            format!("{}{token}", changes.join(", "))
        }
    }
}

fn show_change(change: &Change) -> String {
    match change {
        Change::Put { key, body, .. } => match body {
            Body::Tombstone => format!("-{}", key.escape_ascii()),
            Body::Value(value) => format!("{}={}", key.escape_ascii(), value.escape_ascii()),
            Body::Counter(value) => format!("{}={value}", key.escape_ascii()),
        },
        Change::RangeTombstone { from, .. } => format!("-{}..", from.escape_ascii()),
    }
}
