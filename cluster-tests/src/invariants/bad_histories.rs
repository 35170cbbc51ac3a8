//! The judges judged: histories made by hand, one good and many bad, each of which the
//! invariant in question must reject.

use super::{CoreView, Observation, Violation, Watch};
use crate::oracle::{Asked, History, Outcome};
use crate::sim::disk::Rows;
use crate::sim::env::Route;
use bytes::Bytes;
use ebla_kernel::entry::{Entry, LogEnd, Payload, WriteRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Incarnation, Pos, ReplicaId, Seq, TabletId};
use ebla_kernel::op::{AckLevel, Action, Body, Change, Committed, Condition, Op, OpResult, Token, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::sequence::Reject;
use ebla_kernel::tablet::FenceAnswer;

const TABLET: TabletId = TabletId(1);

/// A log and a history that are written together.
struct Story {
    watch: Watch,
    history: History,
    end: LogEnd,
}

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn token(seq: u64) -> Token {
    Token { issued_ms: 1, client: 1, seq }
}

fn set(name: &str, value: &str) -> Op {
    let action = Action::Set { key: key(name), value: key(value), ttl_ms: None };
    Op { condition: None, action }
}

fn add(name: &str, delta: i64) -> Op {
    Op { condition: None, action: Action::Add { key: key(name), delta } }
}

fn put(name: &str, body: Body) -> Change {
    Change::Put { key: key(name), body, expires_ms: None }
}

fn value(text: &str) -> Body {
    Body::Value(key(text))
}

fn version(ts: u64, body: Body) -> Option<Version> {
    Some(Version { ts: Hlc(ts), body, expires_ms: None })
}

impl Story {
    fn new() -> Self {
        Self { watch: Watch::new(), history: History::default(), end: LogEnd::default() }
    }

    /// An entry becomes durable.
    fn log(&mut self, ts: u64, payload: Payload) -> Entry {
        let entry = self.end.follow(Epoch(1), Hlc(ts), payload);
        self.end = entry.end();
        self.watch.observe(&Observation::Durable { tablet: TABLET, entry: &entry });
        entry
    }

    /// A write becomes durable that was asked for `ops` between two moments.
    fn write(&mut self, from_to: (u64, u64), ts: u64, ops: Vec<Op>, changes: Vec<Change>) -> Committed {
        let results = vec![OpResult::Done; ops.len()];
        self.write_with(from_to, ts, ops, changes, results)
    }

    fn write_with(
        &mut self,
        (from, to): (u64, u64),
        ts: u64,
        ops: Vec<Op>,
        changes: Vec<Change>,
        results: Vec<OpResult>,
    ) -> Committed {
        let token = token(self.history.operations.len() as u64);
        let level = AckLevel::Leader;
        let record = WriteRecord { token: Some(token), level, changes, results: results.clone() };
        let entry = self.log(ts, Payload::Write(record));
        let committed = Committed { pos: entry.pos, ts: entry.ts, level, results };
        self.told((from, to), Asked::Write { ops, token }, Outcome::Committed(committed.clone()));
        committed
    }

    fn told(&mut self, (from, to): (u64, u64), asked: Asked, outcome: Outcome) {
        let op = self.history.invoke(0, from, TABLET, asked);
        self.history.sent(op, 1);
        self.history.end(op, to, outcome);
    }

    fn read(&mut self, from_to: (u64, u64), name: &str, version: Option<Version>) {
        self.told(from_to, Asked::Get { key: key(name) }, Outcome::Row { version, at: None });
    }

    /// What the invariants say, with rows as the log gives them.
    fn judge(self) -> Option<Violation> {
        let rows = self.watch.oracle.rows();
        self.judge_rows(&rows)
    }

    fn judge_rows(self, rows: &Rows) -> Option<Violation> {
        let routes = [Route { tablet: TABLET, range: KeyRange::all(), server: 0 }];
        let Self { mut watch, history, .. } = self;
        watch.failure.take().or_else(|| watch.finish(&history, vec![rows], &routes))
    }
}

/// The story must be rejected, by the invariant whose name holds `by`.
fn rejected(story: Story, by: &str) {
    let violation = story.judge().unwrap_or_else(|| panic!("{by} did not see it"));
    assert!(violation.invariant.contains(by), "{by} expected, but it was {violation}");
}

fn put_a(story: &mut Story, from_to: (u64, u64), ts: u64, text: &str) -> Committed {
    story.write(from_to, ts, vec![set("a", text)], vec![put("a", value(text))])
}

#[test]
fn a_good_history_passes() {
    let mut story = Story::new();
    put_a(&mut story, (1, 5), 10, "x");
    story.read((6, 7), "a", version(10, value("x")));
    story.read((1, 2), "a", None);
    story.write_with(
        (8, 9),
        20,
        vec![add("n", 2)],
        vec![put("n", Body::Counter(2))],
        vec![OpResult::Counter(2)],
    );
    assert_eq!(story.judge(), None);
}

#[test]
fn a_read_that_misses_an_earlier_write() {
    let mut story = Story::new();
    put_a(&mut story, (1, 5), 10, "x");
    story.read((6, 7), "a", None);
    rejected(story, "linearizable");
}

#[test]
fn a_read_that_goes_back_behind_another_read() {
    let mut story = Story::new();
    put_a(&mut story, (1, 9), 10, "x");
    story.read((2, 3), "a", version(10, value("x")));
    story.read((4, 5), "a", None);
    rejected(story, "linearizable");
}

#[test]
fn a_write_below_one_that_was_known_before() {
    let mut story = Story::new();
    put_a(&mut story, (20, 21), 10, "x");
    put_a(&mut story, (1, 2), 20, "y");
    rejected(story, "linearizable");
}

#[test]
fn a_version_that_never_was() {
    let mut story = Story::new();
    put_a(&mut story, (1, 5), 10, "x");
    story.read((6, 7), "a", version(11, value("ghost")));
    rejected(story, "linearizable");
}

#[test]
fn a_value_that_differs_from_what_was_written() {
    let mut story = Story::new();
    put_a(&mut story, (1, 5), 10, "x");
    story.read((6, 7), "a", version(10, value("z")));
    rejected(story, "linearizable");
}

#[test]
fn a_refusal_because_of_a_row_that_never_was() {
    let mut story = Story::new();
    let ops = vec![Op { condition: Some(Condition::Absent), ..set("a", "x") }];
    let reject = Reject::ConditionFailed { op: 0, actual: Some(Hlc(10)) };
    story.told((1, 2), Asked::Write { ops, token: token(7) }, Outcome::Rejected(reject));
    rejected(story, "linearizable");
}

#[test]
fn a_snapshot_that_misses_a_row() {
    let mut story = Story::new();
    put_a(&mut story, (5, 9), 10, "x");
    let outcome = Outcome::Row { version: None, at: Some(Hlc(15)) };
    story.told((1, 2), Asked::Snapshot { key: key("a") }, outcome);
    rejected(story, "timestamp are repeatable");
}

#[test]
fn an_acknowledged_write_that_is_lost() {
    let mut story = Story::new();
    let results = vec![OpResult::Done];
    let pos = Pos::new(Epoch(1), Seq(1));
    let committed = Committed { pos, ts: Hlc(10), level: AckLevel::Leader, results };
    let asked = Asked::Write { ops: vec![set("a", "x")], token: token(7) };
    story.told((1, 2), asked, Outcome::Committed(committed));
    rejected(story, "acknowledged");
}

#[test]
fn an_acknowledged_write_that_stands_elsewhere() {
    let mut story = Story::new();
    put_a(&mut story, (1, 5), 10, "x");
    let Some((_, Outcome::Committed(committed))) = &mut story.history.operations[0].ended else { panic!() };
    committed.ts = Hlc(11);
    rejected(story, "acknowledged");
}

#[test]
fn a_reverted_write_that_stands() {
    let mut story = Story::new();
    put_a(&mut story, (1, 5), 10, "x");
    story.history.end(0, 5, Outcome::Reverted);
    rejected(story, "I6, I13");
}

#[test]
fn a_refused_write_that_stands() {
    let mut story = Story::new();
    put_a(&mut story, (1, 5), 10, "x");
    story.history.end(0, 5, Outcome::Rejected(Reject::NotACounter { op: 0 }));
    rejected(story, "I6, I13");
}

#[test]
fn a_token_that_runs_twice() {
    let mut story = Story::new();
    put_a(&mut story, (1, 5), 10, "x");
    let level = AckLevel::Leader;
    let (changes, results) = (vec![put("a", value("x"))], vec![OpResult::Done]);
    story.log(11, Payload::Write(WriteRecord { token: Some(token(0)), level, changes, results }));
    rejected(story, "I6, I13");
}

#[test]
fn a_token_that_runs_after_its_fence() {
    let mut story = Story::new();
    story.log(5, Payload::TokenFence { token: token(0) });
    put_a(&mut story, (1, 5), 10, "x");
    rejected(story, "I6, I13");
}

#[test]
fn a_counter_that_does_not_add_up() {
    let mut story = Story::new();
    let counted = |n| (vec![put("n", Body::Counter(n))], vec![OpResult::Counter(n)]);
    let (changes, results) = counted(2);
    story.write_with((1, 2), 10, vec![add("n", 2)], changes, results);
    let (changes, results) = counted(3);
    story.write_with((3, 4), 20, vec![add("n", 3)], changes, results);
    rejected(story, "what their operations give");
}

#[test]
fn a_condition_that_did_not_hold() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    let op = Op { condition: Some(Condition::Absent), ..set("a", "y") };
    story.write((3, 4), 20, vec![op], vec![put("a", value("y"))]);
    rejected(story, "what their operations give");
}

#[test]
fn a_delete_range_that_leaves_a_row() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    let action = Action::DeleteRange { from: key("a"), to: Some(key("b")) };
    story.write((3, 4), 20, vec![Op { condition: None, action }], Vec::new());
    rejected(story, "what their operations give");
}

#[test]
fn a_write_that_puts_more_than_was_asked() {
    let mut story = Story::new();
    let changes = vec![put("a", value("x")), put("b", value("x"))];
    story.write((1, 2), 10, vec![set("a", "x")], changes);
    rejected(story, "what their operations give");
}

#[test]
fn a_row_that_the_store_lost() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    let violation = story.judge_rows(&Rows::new()).expect("the row is gone");
    assert!(violation.invariant.contains("I12"), "{violation}");
}

#[test]
fn a_row_that_no_entry_put() {
    let mut rows = Rows::new();
    rows.entry(key("a")).or_default().insert(Hlc(1), version(1, value("x")).expect("a version"));
    let violation = Story::new().judge_rows(&rows).expect("the row came from nowhere");
    assert!(violation.invariant.contains("I12"), "{violation}");
}

#[test]
fn a_position_that_is_written_again() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    story.end = LogEnd::default();
    put_a(&mut story, (3, 4), 20, "y");
    rejected(story, "I2");
}

#[test]
fn an_epoch_that_begins_unappointed_or_twice() {
    let mut story = Story::new();
    let payload = Payload::EpochStart { replica: ReplicaId(1), incarnation: Incarnation(1) };
    let entry = story.end.follow(Epoch(1), Hlc(1), payload);
    story.watch.observe(&Observation::Appended { tablet: TABLET, entry: &entry });
    rejected(story, "I1");
}

fn view() -> CoreView {
    CoreView {
        tablet: TABLET,
        incarnation: Incarnation(1),
        promised: Epoch(2),
        durable: Pos::new(Epoch(2), Seq(5)),
        applied: Seq(5),
        q: Some(Pos::new(Epoch(2), Seq(5))),
        serving: Some(Epoch(2)),
        on_disk: Pos::new(Epoch(2), Seq(5)),
    }
}

/// Steps that a core showed must be rejected.
fn steps_rejected(views: &[CoreView], by: &str) {
    let mut story = Story::new();
    for view in views {
        story.watch.observe(&Observation::Stepped(*view));
    }
    rejected(story, by);
}

#[test]
fn cores_that_go_back() {
    let back = [
        CoreView { promised: Epoch(1), ..view() },
        CoreView { durable: Pos::new(Epoch(2), Seq(4)), ..view() },
        CoreView { applied: Seq(4), ..view() },
        CoreView { q: Some(Pos::new(Epoch(2), Seq(4))), ..view() },
    ];
    for later in back {
        steps_rejected(&[view(), later], "I3");
    }
    // Over a restart the durable end must not go back either.
    let restarted = CoreView { incarnation: Incarnation(2), on_disk: Pos::new(Epoch(2), Seq(4)), ..view() };
    steps_rejected(&[view(), CoreView { durable: restarted.on_disk, ..restarted }], "I3");
}

#[test]
fn cores_that_count_what_is_not_durable_or_not_theirs() {
    steps_rejected(&[CoreView { q: Some(Pos::new(Epoch(2), Seq(6))), ..view() }], "m33");
    steps_rejected(&[CoreView { applied: Seq(6), ..view() }], "m38");
    steps_rejected(&[CoreView { q: Some(Pos::new(Epoch(1), Seq(5))), ..view() }], "m13");
    steps_rejected(&[CoreView { q: None, ..view() }], "m13");
}

#[test]
fn an_entry_after_the_fence_of_a_higher_epoch() {
    let mut story = Story::new();
    let answer = FenceAnswer { epoch: Epoch(2), end: LogEnd::default() };
    story.watch.observe(&Observation::FenceAnswered { tablet: TABLET, answer });
    put_a(&mut story, (1, 2), 10, "x");
    rejected(story, "m32");
}

#[test]
fn timestamps_that_fall() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    // The log itself refuses to build such an entry.
    let mut entry = story.end.follow(Epoch(1), Hlc(11), Payload::TokenFence { token: token(9) });
    entry.ts = Hlc(9);
    let mut rises = super::ts_rises::TsRises::default();
    let first = Entry { ts: Hlc(10), ..entry.clone() };
    let observe = |rises: &mut super::ts_rises::TsRises, entry: &Entry| {
        super::Invariant::observe(rises, &Observation::Durable { tablet: TABLET, entry })
    };
    assert!(observe(&mut rises, &first).is_ok());
    assert!(observe(&mut rises, &entry).is_err());
}
