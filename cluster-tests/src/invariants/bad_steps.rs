//! The judges of single steps judged: observations made by hand, each series of which the
//! invariant in question must reject.

use super::{CoreView, Observation, Reshaped, Watch};
use ebla_kernel::entry::{Entry, LogEnd, Payload, RevertTarget, WriteRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{DiskGeneration, Epoch, Generation, Incarnation, Pos, ReplicaId, Seq, TabletId};
use ebla_kernel::op::{AckLevel, Committed, Token};
use ebla_kernel::tablet::FenceAnswer;
use std::rc::Rc;

const TABLET: TabletId = TabletId(1);

fn pos(epoch: u64, seq: u64) -> Pos {
    Pos::new(Epoch(epoch), Seq(seq))
}

fn token(seq: u64) -> Token {
    Token { issued_ms: 1, client: 1, seq }
}

fn start() -> Payload {
    Payload::EpochStart { replica: ReplicaId(1), incarnation: Incarnation(1) }
}

fn write(seq: u64) -> Payload {
    let level = AckLevel::Copies(2);
    Payload::Write(WriteRecord { token: Some(token(seq)), level, changes: Vec::new(), results: Vec::new() })
}

fn committed(pos: Pos, level: AckLevel) -> Committed {
    Committed { pos, ts: Hlc(pos.seq.0), level, results: Vec::new() }
}

/// A log of epoch 1: its start and three writes.
fn log() -> Vec<Entry> {
    let mut end = LogEnd::default();
    let payloads = [start(), write(2), write(3), write(4)];
    let entries = payloads.into_iter().zip(1..).map(|(payload, ts)| {
        let entry = end.follow(Epoch(1), Hlc(ts), payload);
        end = entry.end();
        entry
    });
    entries.collect()
}

struct Steps(Watch);

impl Steps {
    fn new() -> Self {
        Self(Watch::new())
    }

    fn durable(&mut self, server: usize, by: u64, entry: &Entry) {
        let entry = Rc::new(entry.clone());
        self.0.observe(&Observation::Durable { tablet: TABLET, server, by: Epoch(by), entry: &entry });
    }

    fn appended(&mut self, entry: &Entry) {
        self.0.observe(&Observation::Appended { tablet: TABLET, server: 0, entry });
    }

    fn stepped(&mut self, view: CoreView) {
        self.0.observe(&Observation::Stepped(view));
    }

    fn acked(&mut self, epoch: u64, committed: &Committed) {
        let epoch = Epoch(epoch);
        self.0.observe(&Observation::Acked { tablet: TABLET, server: 0, epoch, committed });
    }

    fn rejected(&self, by: &str) {
        let violation = self.0.failure.as_ref().unwrap_or_else(|| panic!("{by} did not see it"));
        assert!(violation.invariant.contains(by), "{by} expected, but it was {violation}");
    }

    fn passed(&self) {
        assert_eq!(self.0.failure, None);
    }
}

fn view() -> CoreView {
    CoreView {
        tablet: TABLET,
        server: 0,
        incarnation: Incarnation(1),
        promised: Epoch(2),
        durable: pos(2, 5),
        applied: Seq(5),
        q: None,
        serving: None,
        on_disk: pos(2, 5),
    }
}

fn steps_rejected(views: &[CoreView], by: &str) {
    let mut steps = Steps::new();
    views.iter().for_each(|view| steps.stepped(*view));
    steps.rejected(by);
}

#[test]
fn cores_that_go_back() {
    let back = [
        CoreView { promised: Epoch(1), ..view() },
        CoreView { durable: pos(2, 4), ..view() },
        CoreView { applied: Seq(4), ..view() },
    ];
    for later in back {
        steps_rejected(&[view(), later], "I3");
    }
    // Over a restart the durable end must not go back either.
    let restarted = CoreView { incarnation: Incarnation(2), on_disk: pos(2, 4), ..view() };
    let restarted = CoreView { durable: restarted.on_disk, applied: Seq(4), ..restarted };
    steps_rejected(&[view(), restarted], "I3");
}

#[test]
fn a_log_that_was_cut_may_be_shorter() {
    let mut steps = Steps::new();
    steps.stepped(view());
    steps.0.observe(&Observation::Cut { tablet: TABLET, server: 0, keep: LogEnd::default(), kept: &[] });
    steps.stepped(CoreView { durable: pos(2, 4), applied: Seq(4), on_disk: pos(2, 4), ..view() });
    steps.passed();
}

#[test]
fn cores_that_are_ahead_of_their_disk() {
    steps_rejected(&[CoreView { durable: pos(2, 6), ..view() }], "m33");
    steps_rejected(&[CoreView { applied: Seq(6), ..view() }], "m33");
}

#[test]
fn entries_from_a_leader_that_was_fenced() {
    let log = log();
    let answer = FenceAnswer { epoch: Epoch(2), end: LogEnd::default() };
    let mut steps = Steps::new();
    steps.0.observe(&Observation::FenceAnswered { tablet: TABLET, server: 0, answer });
    steps.durable(0, 2, &log[0]); // a later leader sends what an earlier one wrote
    steps.passed();
    steps.durable(0, 1, &log[1]);
    steps.rejected("m32");
}

#[test]
fn acknowledgements_to_a_leader_that_was_fenced() {
    let mut steps = Steps::new();
    let answer = FenceAnswer { epoch: Epoch(2), end: LogEnd::default() };
    steps.0.observe(&Observation::FenceAnswered { tablet: TABLET, server: 0, answer });
    let (tablet, server, epoch, pos) = (TABLET, 0, Epoch(1), pos(1, 1));
    steps.0.observe(&Observation::AckSent { tablet, server, epoch, pos });
    steps.rejected("m32");
}

#[test]
fn an_acknowledgement_is_a_promise() {
    let acked = Observation::AckSent { tablet: TABLET, server: 0, epoch: Epoch(2), pos: pos(1, 1) };
    let mut steps = Steps::new();
    steps.durable(0, 1, &log()[0]);
    steps.0.observe(&acked);
    steps.durable(0, 1, &log()[1]);
    steps.rejected("m34");
    let mut steps = Steps::new();
    steps.durable(0, 1, &log()[0]);
    steps.0.observe(&acked);
    steps.stepped(CoreView { promised: Epoch(1), incarnation: Incarnation(2), ..view() });
    steps.rejected("I3");
}

#[test]
fn an_acknowledgement_of_what_is_not_there() {
    let acked = Observation::AckSent { tablet: TABLET, server: 0, epoch: Epoch(1), pos: pos(1, 1) };
    let mut steps = Steps::new();
    steps.durable(1, 1, &log()[0]);
    steps.0.observe(&acked);
    steps.rejected("m35");
}

#[test]
fn children_that_begin_above_the_rows_of_their_parent() {
    let mut steps = Steps::new();
    log().iter().for_each(|entry| steps.durable(0, 1, entry));
    steps.stepped(CoreView {
        applied: Seq(1),
        on_disk: pos(1, 4),
        durable: pos(1, 4),
        q: None,
        serving: None,
        ..view()
    });
    let (parents, children) = ([(TABLET, log()[3].end())], [TabletId(2)]);
    let switched = Reshaped::Switched { parents: &parents, server: 0, children: &children };
    steps.0.observe(&Observation::Reshaped(switched));
    steps.rejected("I3");
}

#[test]
fn a_fence_answer_that_names_another_end() {
    let mut steps = Steps::new();
    steps.durable(0, 1, &log()[0]);
    let answer = FenceAnswer { epoch: Epoch(2), end: LogEnd::default() };
    steps.0.observe(&Observation::FenceAnswered { tablet: TABLET, server: 0, answer });
    steps.rejected("m32");
}

#[test]
fn two_copies_that_differ_at_one_position() {
    let mut steps = Steps::new();
    let other = LogEnd::default().follow(Epoch(1), Hlc(9), write(9));
    steps.durable(0, 1, &log()[0]);
    steps.durable(1, 1, &other);
    steps.rejected("I2");
}

#[test]
fn a_copy_whose_log_has_a_hole() {
    let mut steps = Steps::new();
    steps.durable(1, 1, &log()[1]);
    steps.rejected("I2");
}

#[test]
fn an_epoch_that_begins_unappointed() {
    let mut steps = Steps::new();
    steps.appended(&log()[0]);
    steps.rejected("I1");
}

#[test]
fn an_acknowledgement_of_what_the_leader_has_not() {
    let mut steps = Steps::new();
    steps.acked(1, &committed(pos(1, 2), AckLevel::Leader));
    steps.rejected("true when it is given");
}

#[test]
fn an_epoch_that_lacks_an_acknowledged_write() {
    let log = log();
    let mut steps = Steps::new();
    log.iter().for_each(|entry| steps.durable(0, 1, entry));
    steps.acked(1, &committed(pos(1, 3), AckLevel::Copies(2)));
    let next = log[1].end().follow(Epoch(2), Hlc(20), start());
    let violation = {
        steps.passed();
        let mut judge = super::epoch_has_acks::EpochHasAcks::default();
        let oracle = &steps.0.oracle;
        let acked = committed(pos(1, 3), AckLevel::Copies(2));
        let observe = |judge: &mut super::epoch_has_acks::EpochHasAcks, what: &Observation<'_>| {
            super::Invariant::observe(judge, oracle, what)
        };
        let (tablet, server, epoch) = (TABLET, 0, Epoch(1));
        let told = Observation::Acked { tablet, server, epoch, committed: &acked };
        observe(&mut judge, &told).expect("nobody began without it");
        observe(&mut judge, &Observation::Appended { tablet, server, entry: &next })
    };
    assert!(violation.is_err());
}

#[test]
fn reverts_that_reach_too_far() {
    let target = |pos| RevertTarget { pos, ts: Hlc(1), token: Some(token(pos.seq.0)), rows: Vec::new() };
    let revert = |epoch, targets| log()[3].end().follow(Epoch(epoch), Hlc(50), Payload::Revert { targets });
    let judged = |acked: Option<Pos>, entry: &Entry| {
        let mut steps = Steps::new();
        log().iter().for_each(|entry| steps.durable(0, 1, entry));
        if let Some(pos) = acked {
            steps.acked(1, &committed(pos, AckLevel::Leader));
        }
        steps.appended(entry);
        steps
    };
    judged(None, &revert(1, vec![target(pos(1, 3))])).passed();
    judged(None, &revert(2, vec![target(pos(1, 3))])).rejected("m12");
    judged(Some(pos(1, 3)), &revert(1, vec![target(pos(1, 3))])).rejected("m31");
    // What a later leader has acknowledged a former one may take back in vain.
    let mut steps = Steps::new();
    log().iter().for_each(|entry| steps.durable(0, 1, entry));
    steps.acked(2, &committed(pos(1, 3), AckLevel::Leader));
    steps.appended(&revert(1, vec![target(pos(1, 3))]));
    steps.passed();
}

#[test]
fn a_q_between_a_write_and_its_revert() {
    let targets = vec![RevertTarget { pos: pos(1, 3), ts: Hlc(3), token: None, rows: Vec::new() }];
    let revert = log()[3].end().follow(Epoch(1), Hlc(50), Payload::Revert { targets });
    let published = |q: Pos| {
        let mut judge = super::reverts::Reverts::default();
        let oracle = crate::oracle::Oracle::default();
        let appended = Observation::Appended { tablet: TABLET, server: 0, entry: &revert };
        super::Invariant::observe(&mut judge, &oracle, &appended).expect("the revert is right");
        let view = CoreView { q: Some(q), ..view() };
        super::Invariant::observe(&mut judge, &oracle, &Observation::Stepped(view))
    };
    assert!(published(pos(1, 2)).is_ok());
    assert!(published(pos(1, 3)).is_err());
    assert!(published(pos(1, 4)).is_err());
    assert!(published(pos(1, 5)).is_ok());
}

#[test]
fn reverted_is_not_said_before_it_is_safe() {
    let mut steps = Steps::new();
    let (tablet, server, epoch) = (TABLET, 0, Epoch(1));
    steps.0.observe(&Observation::SaidReverted { tablet, server, epoch, token: token(3) });
    steps.rejected("m11");
}

#[test]
fn a_follower_that_applies_above_q() {
    let mut steps = Steps::new();
    let log = log();
    steps.durable(1, 1, &log[0]);
    steps.0.observe(&Observation::Applied { tablet: TABLET, server: 1, entry: &log[0] });
    steps.rejected("I5");
}

#[test]
fn rows_of_an_entry_that_is_not_in_the_log() {
    let mut steps = Steps::new();
    steps.0.observe(&Observation::Applied { tablet: TABLET, server: 1, entry: &log()[0] });
    steps.rejected("m38");
}

#[test]
fn a_dropped_write_that_nobody_noted() {
    let log = log();
    let mut steps = Steps::new();
    log.iter().for_each(|entry| steps.durable(0, 1, entry));
    let kept = [pos(1, 3)];
    steps.0.observe(&Observation::Cut { tablet: TABLET, server: 0, keep: log[1].end(), kept: &kept });
    steps.rejected("loss ledger");
}

#[test]
fn a_copy_that_nobody_knows() {
    let mut steps = Steps::new();
    steps.0.observe(&Observation::Opened {
        tablet: TABLET,
        server: 0,
        replica: ReplicaId(1),
        generation: Generation::Disk(DiskGeneration(1)),
        promised: Epoch(1),
    });
    steps.rejected("I15");
}

#[test]
fn timestamps_that_fall() {
    let log = log();
    let mut later = log[1].clone();
    later.ts = Hlc(1);
    let mut steps = Steps::new();
    steps.durable(0, 1, &log[0]);
    let judge = super::ts_rises::TsRises;
    let mut judge = judge;
    let entry = Rc::new(later);
    let durable = Observation::Durable { tablet: TABLET, server: 0, by: Epoch(1), entry: &entry };
    assert!(super::Invariant::observe(&mut judge, &steps.0.oracle, &durable).is_err());
}
