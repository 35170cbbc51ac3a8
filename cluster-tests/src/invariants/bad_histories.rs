//! The judges judged: histories made by hand, one good and many bad, each of which the
//! invariant in question must reject.

use super::{Observation, Violation, Watch};
use crate::oracle::{Archived, ArchivedPart, Asked, Fate, History, Outcome, Session, Trust};
use crate::sim::disk::Rows;
use bytes::Bytes;
use ebla_kernel::entry::{Entry, LogEnd, Payload, RevertTarget, RevertedRow, WriteRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Incarnation, Pos, ReplicaId, Seq, TabletId};
use ebla_kernel::op::{
    AckLevel, Action, Body, Cause, Change, Committed, Condition, Op, OpResult, Token, Version,
};
use ebla_kernel::range::KeyRange;
use ebla_kernel::sequence::Reject;
use std::collections::BTreeMap;
use std::rc::Rc;

const TABLET: TabletId = TabletId(1);

/// A log and a history that are written together, by the leader of one epoch after another.
struct Story {
    watch: Watch,
    history: History,
    end: LogEnd,
    epoch: Epoch,
    trust: Trust,
    level: AckLevel,
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
        let end = LogEnd::default();
        let (watch, history) = (Watch::new(), History::default());
        let level = AckLevel::Leader;
        Self { watch, history, end, epoch: Epoch(1), trust: Trust::Copies, level }
    }

    /// An entry becomes durable.
    fn log(&mut self, ts: u64, payload: Payload) -> Entry {
        let entry = self.end.follow(self.epoch, Hlc(ts), payload);
        self.end = entry.end();
        self.durable(0, &entry);
        entry
    }

    /// An entry is durable on a server.
    fn durable(&mut self, server: usize, entry: &Entry) {
        let (by, entry) = (self.epoch, Rc::new(entry.clone()));
        self.watch.observe(&Observation::Durable { tablet: TABLET, server, by, entry: &entry });
    }

    /// The next epoch begins on a log that ends at `end`; what stood behind it is dropped.
    fn fail_over(&mut self, end: LogEnd, ts: u64) {
        self.epoch = self.epoch.next();
        let kept: Vec<Pos> = self.watch.oracle.story(TABLET).entries.keys().copied().collect();
        self.watch.observe(&Observation::Cut { tablet: TABLET, server: 0, keep: end, kept: &kept });
        self.end = end;
        let start = Payload::EpochStart { replica: ReplicaId(1), incarnation: Incarnation(1) };
        self.log(ts, start);
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
        let level = self.level;
        let record = WriteRecord { token: Some(token), level, changes, results: results.clone() };
        let entry = self.log(ts, Payload::Write(record));
        let committed = Committed { pos: entry.pos, ts: entry.ts, level, results };
        let asked = Asked::Write { ops, token, level };
        self.told((from, to), asked, Outcome::Committed(committed.clone()));
        committed
    }

    /// A write is taken back.
    fn revert(&mut self, ts: u64, committed: &Committed, name: &str) -> Entry {
        let rows = vec![RevertedRow::Row { key: key(name) }];
        let target = RevertTarget { pos: committed.pos, ts: committed.ts, token: None, rows };
        self.log(ts, Payload::Revert { targets: vec![target] })
    }

    fn told(&mut self, (from, to): (u64, u64), asked: Asked, outcome: Outcome) {
        let op = self.history.invoke(0, from, TABLET, asked);
        self.history.sent(op, 1);
        self.history.end(op, to, outcome, (TABLET, Some(self.epoch)));
    }

    fn read(&mut self, from_to: (u64, u64), name: &str, version: Option<Version>) {
        self.told(from_to, Asked::Get { key: key(name) }, Outcome::Row { version, at: None });
    }

    /// A read at a timestamp, on a copy that does not lead.
    fn read_elsewhere(&mut self, from_to: (u64, u64), asked: Asked, version: Option<Version>, at: u64) {
        self.told(from_to, asked, Outcome::Row { version, at: Some(Hlc(at)) });
        self.history.operations.last_mut().expect("it was just told").epoch = None;
    }

    /// What the invariants say, with rows as the log gives them.
    fn judge(self) -> Option<Violation> {
        let lineage = self.watch.oracle.story(TABLET).lineage(self.end.pos);
        let rows = crate::oracle::rows(&lineage, &KeyRange::all());
        self.judge_rows(&rows)
    }

    fn judge_rows(self, rows: &Rows) -> Option<Violation> {
        let fate = Fate {
            tablet: TABLET,
            range: KeyRange::all(),
            end: self.end.pos,
            copies: vec![0],
            trust: self.trust,
        };
        let Self { mut watch, history, .. } = self;
        let fates = BTreeMap::from([(TABLET, fate)]);
        watch.failure.take().or_else(|| watch.finish(&history, vec![rows], &fates))
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
    rejected(story, "I6, I7");
}

#[test]
fn a_value_that_differs_from_what_was_written() {
    let mut story = Story::new();
    put_a(&mut story, (1, 5), 10, "x");
    story.read((6, 7), "a", version(10, value("z")));
    rejected(story, "I6, I7");
}

#[test]
fn a_refusal_because_of_a_row_that_never_was() {
    let mut story = Story::new();
    let ops = vec![Op { condition: Some(Condition::Absent), ..set("a", "x") }];
    put_a(&mut story, (1, 2), 20, "y");
    let reject = Reject::ConditionFailed { op: 0, actual: Some(Hlc(10)) };
    let asked = Asked::Write { ops, token: token(7), level: AckLevel::Leader };
    story.told((3, 4), asked, Outcome::Rejected(reject));
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
    let asked = Asked::Write { ops: vec![set("a", "x")], token: token(7), level: AckLevel::Leader };
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
    story.history.end(0, 5, Outcome::Reverted, (TABLET, Some(Epoch(1))));
    rejected(story, "I6, I13");
}

#[test]
fn a_refused_write_that_stands() {
    let mut story = Story::new();
    put_a(&mut story, (1, 5), 10, "x");
    story.history.end(0, 5, Outcome::Rejected(Reject::NotACounter { op: 0 }), (TABLET, Some(Epoch(1))));
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

/// Clauses that only copies have: what may be lost, what was taken back, who reads where.
fn put_safely(story: &mut Story, from_to: (u64, u64), ts: u64, text: &str) -> Committed {
    story.level = AckLevel::Copies(2);
    put_a(story, from_to, ts, text)
}

#[test]
fn a_write_of_level_leader_may_be_dropped_by_a_failover() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    let end = story.end;
    put_a(&mut story, (3, 4), 20, "y");
    story.read((5, 6), "a", version(20, value("y")));
    story.fail_over(end, 30);
    story.read((7, 8), "a", version(10, value("x")));
    assert_eq!(story.judge(), None);
}

#[test]
fn a_write_of_two_copies_may_not() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    let end = story.end;
    put_safely(&mut story, (3, 4), 20, "y");
    story.fail_over(end, 30);
    rejected(story, "I4");
}

#[test]
fn after_a_degraded_election_only_what_all_had_is_owed() {
    for (level, owed) in [(AckLevel::Copies(2), false), (AckLevel::InSync, true)] {
        let mut story = Story::new();
        story.trust = Trust::InSync;
        let end = story.end;
        story.level = level;
        put_a(&mut story, (3, 4), 20, "y");
        story.fail_over(end, 30);
        assert_eq!(story.judge().is_some(), owed, "{level}");
    }
}

#[test]
fn an_acknowledged_write_that_is_taken_back() {
    let mut story = Story::new();
    let committed = put_safely(&mut story, (1, 2), 10, "x");
    story.revert(20, &committed, "a");
    rejected(story, "I4");
}

/// A write whose client was told nothing, and that is taken back.
fn taken_back(story: &mut Story) -> Committed {
    let committed = put_safely(story, (1, 2), 10, "x");
    story.history.operations[0].ended = None;
    story.revert(20, &committed, "a");
    committed
}

#[test]
fn a_read_of_what_was_taken_back() {
    let mut story = Story::new();
    taken_back(&mut story);
    story.read((3, 4), "a", version(10, value("x")));
    rejected(story, "I6, I7");
}

#[test]
fn a_follower_that_shows_what_was_taken_back() {
    let mut story = Story::new();
    taken_back(&mut story);
    let asked = Asked::Bounded { key: key("a"), stale_ms: 1 };
    story.read_elsewhere((3, 4), asked, version(10, value("x")), 15);
    rejected(story, "I6, I7");
}

#[test]
fn a_row_that_stays_although_it_was_taken_back() {
    let mut story = Story::new();
    taken_back(&mut story);
    let mut rows = Rows::new();
    rows.entry(key("a")).or_default().insert(Hlc(10), version(10, value("x")).expect("a version"));
    let violation = story.judge_rows(&rows).expect("the row should be gone");
    assert!(violation.invariant.contains("I12"), "{violation}");
}

#[test]
fn a_token_that_runs_after_its_write_was_taken_back() {
    let mut story = Story::new();
    taken_back(&mut story);
    let level = AckLevel::Leader;
    let (changes, results) = (vec![put("a", value("x"))], vec![OpResult::Done]);
    story.log(30, Payload::Write(WriteRecord { token: Some(token(0)), level, changes, results }));
    rejected(story, "I6, I13");
}

#[test]
fn a_token_may_run_again_when_a_failover_dropped_it() {
    let mut story = Story::new();
    let end = story.end;
    put_a(&mut story, (1, 2), 10, "x");
    story.history.operations[0].ended = None;
    story.fail_over(end, 20);
    let level = AckLevel::Leader;
    let (changes, results) = (vec![put("a", value("x"))], vec![OpResult::Done]);
    story.log(30, Payload::Write(WriteRecord { token: Some(token(0)), level, changes, results }));
    assert_eq!(story.judge(), None);
}

#[test]
fn a_replaced_leader_that_still_answers() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    let end = story.end;
    story.fail_over(end, 20);
    put_a(&mut story, (3, 4), 30, "y");
    story.read((5, 6), "a", version(10, value("x")));
    story.history.operations.last_mut().expect("a read").epoch = Some(Epoch(1));
    rejected(story, "linearizable");
}

#[test]
fn a_follower_that_misses_a_row_at_its_timestamp() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    let asked = Asked::Bounded { key: key("a"), stale_ms: 1 };
    story.read_elsewhere((3, 4), asked, None, 15);
    rejected(story, "timestamp are repeatable");
}

#[test]
fn a_follower_may_be_behind_within_its_timestamp() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    let asked = Asked::Bounded { key: key("a"), stale_ms: 1 };
    story.read_elsewhere((3, 4), asked, None, 5);
    assert_eq!(story.judge(), None);
}

#[test]
fn a_session_that_misses_its_own_write() {
    let mut story = Story::new();
    let committed = put_a(&mut story, (1, 2), 10, "x");
    let session = Session { tablet: TABLET, pos: committed.pos, ts: committed.ts };
    story.read_elsewhere((3, 4), Asked::InSession { key: key("a"), session }, None, 5);
    rejected(story, "session");
}

#[test]
fn a_session_that_is_told_of_a_loss_that_was_none() {
    let mut story = Story::new();
    let committed = put_a(&mut story, (1, 2), 10, "x");
    let session = Session { tablet: TABLET, pos: committed.pos, ts: committed.ts };
    story.told((3, 4), Asked::InSession { key: key("a"), session }, Outcome::WriteLost);
    rejected(story, "session");
}

#[test]
fn a_lost_row_that_the_search_finds_too() {
    let mut story = Story::new();
    put_a(&mut story, (1, 2), 10, "x");
    story.read((3, 4), "a", version(10, value("x")));
    story.read((5, 6), "a", None);
    let lineage = story.watch.oracle.story(TABLET).lineage(story.end.pos);
    let rows = crate::oracle::rows(&lineage, &KeyRange::all());
    let fate = Fate {
        tablet: TABLET,
        range: KeyRange::all(),
        end: story.end.pos,
        copies: vec![0],
        trust: Trust::Copies,
    };
    let fates = BTreeMap::from([(TABLET, fate)]);
    let pasts = super::told(&story.watch.oracle, &fates);
    let end = super::End {
        oracle: &story.watch.oracle,
        history: &story.history,
        stores: vec![&rows],
        truths: pasts.iter().map(|(fate, past)| crate::oracle::Truth::new(fate, past)).collect(),
    };
    assert!(super::Invariant::finish(&super::search::Search, &end).is_err());
}

/// A row that is written twice and then deleted, with a backup at 25 that adds to one at 15. A
/// collection up to 5 was done when the first was read.
fn backed_up() -> (Story, [Archived; 2]) {
    let mut story = Story::new();
    let deleted = Body::Tombstone(Cause::Deleted);
    let (x, y) = (version(10, value("x")).unwrap(), version(20, deleted.clone()).unwrap());
    put_a(&mut story, (1, 2), 4, "collected");
    put_a(&mut story, (3, 4), 5, "seen at the floor");
    put_a(&mut story, (5, 6), 10, "x");
    let delete = Op { condition: None, action: Action::Delete { key: key("a"), cause: Cause::Deleted } };
    let _ = story.write((7, 8), 20, vec![delete], vec![put("a", deleted)]);
    put_a(&mut story, (30, 31), 40, "later");
    let at_floor = version(5, value("seen at the floor")).unwrap();
    let backup = |ts, parent: Option<usize>, since, versions: &[Version]| {
        let versions = versions.iter().map(|version| (version.ts, version.clone())).collect();
        let (range, floor, rows) = (KeyRange::all(), Hlc(5), BTreeMap::from([(key("a"), versions)]));
        let parts = vec![ArchivedPart { range, since: Hlc(since), floor, rows }];
        Archived { ts: Hlc(ts), parent, asked_us: 15, clocks_agree: true, parts, restored: None }
    };
    let full = Archived { asked_us: 6, ..backup(15, None, 0, &[at_floor, x]) };
    (story, [full, backup(25, Some(0), 15, &[y])])
}

#[test]
fn a_good_backup_passes() {
    let (mut story, backups) = backed_up();
    story.history.backups = backups.into();
    assert_eq!(story.judge(), None);
}

#[test]
fn a_backup_that_lacks_or_adds_something() {
    for lost in [Hlc(5), Hlc(10), Hlc(20)] {
        let (mut story, mut backups) = backed_up();
        backups
            .iter_mut()
            .flat_map(|backup| &mut backup.parts)
            .flat_map(|part| part.rows.values_mut())
            .for_each(|versions| {
                versions.remove(&lost);
            });
        story.history.backups = backups.into();
        rejected(story, "I14");
    }
    for more in [4, 12, 40] {
        let (mut story, mut backups) = backed_up();
        let ghost = version(more, value("ghost")).unwrap();
        backups[0].parts[0].rows.entry(key("a")).or_default().insert(Hlc(more), ghost);
        story.history.backups = backups.into();
        rejected(story, "I14");
    }
}

#[test]
fn a_backup_without_what_was_acknowledged_before_it_was_asked_for() {
    let (mut story, mut backups) = backed_up();
    backups[0].asked_us = 8;
    story.history.backups = backups.clone().into();
    rejected(story, "I14");
    let (mut story, _) = backed_up();
    backups[0].clocks_agree = false;
    story.history.backups = backups.into();
    assert_eq!(story.judge(), None, "clocks that are wrong by more promise nothing");
}
