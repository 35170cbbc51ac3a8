//! Conditions, adds and delete ranges against sequenced state: from a request to the exact
//! changes that its log entry records.
//!
//! What a row holds is looked up in this order: earlier operations of the same batch, writes
//! sequenced lately ([`Recent`]), and what the request's task read from the store before
//! ([`Evidence`]). The last is good only if everything that the reader may have missed is
//! still in `Recent`; otherwise the request must read again. So no latch is held and no
//! sequencer waits for a disk (`docs/decisions/0006-evidence-not-latches.md`).

use crate::entry::RevertedRow;
use crate::hlc::Hlc;
use crate::ids::{Seq, Tick};
use crate::limits::{DELETE_RANGE_EXPANDED_ROWS_MAX, RECENT_BYTES_MAX, RECENT_WRITES_MS};
use crate::mutated;
use crate::op::{Action, Body, Cause, Change, Condition, Op, OpResult, Version};
use crate::range::KeyRange;
use crate::room::ServerRuns;
use crate::room::row::{BitChange, RoomRow};
use bytes::Bytes;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a request's task read from the store before it asked to be sequenced.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Evidence {
    /// Every entry up to here was applied before the reading began.
    pub as_of: Seq,
    /// Newest version of each row that a condition or an add looks at, with range
    /// tombstones already counted in; none where there is no version.
    pub rows: BTreeMap<Bytes, Option<Version>>,
    /// For each delete range of the batch, in order, the live keys in it.
    pub ranges: Vec<RangeEvidence>,
}

/// The live keys of a range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeEvidence {
    /// At most one more than are expanded.
    pub keys: Vec<Bytes>,
}

/// Why a batch cannot be sequenced. Nothing was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reject {
    /// The evidence is too old or lacks a row: read again and come back.
    ReadAgain,
    /// A row's newest write is pending: wait until it is decided.
    Pending,
    /// A condition does not hold.
    ConditionFailed {
        /// Which operation of the batch, from 0.
        op: usize,
        /// Timestamp of the live version; none when there is none.
        actual: Option<Hlc>,
    },
    /// An add to a row that holds something else.
    NotACounter {
        /// Which operation of the batch, from 0.
        op: usize,
    },
    /// An add past the range of a signed 64-bit integer.
    CounterOverflow {
        /// Which operation of the batch, from 0.
        op: usize,
        /// The value before it.
        value: i64,
    },
}

/// The changes of a batch and what each operation gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequenced {
    /// In key order, delete ranges first.
    pub changes: Vec<Change>,
    /// One per operation.
    pub results: Vec<OpResult>,
}

#[derive(Clone, Debug)]
struct RecentWrite {
    seq: Seq,
    version: Version,
    is_pending: bool,
    /// What a pending write lies on, should it be reverted.
    beneath: Option<Box<RecentWrite>>,
}

#[derive(Clone, Debug)]
struct RecentRange {
    seq: Seq,
    ts: Hlc,
    range: KeyRange,
    is_pending: bool,
}

/// A version among recent writes, and the pending write that it rests on, if any.
struct Found {
    version: Version,
    pending: Option<Seq>,
}

/// What was sequenced lately: everything in flight, and for a while what was applied.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    rows: BTreeMap<Bytes, RecentWrite>,
    ranges: Vec<RecentRange>,
    /// Everything at or below may be missing here.
    forgotten: Seq,
    /// No write at or below is pending.
    settled: Seq,
    bytes: usize,
    /// When which position had been applied, for forgetting by age.
    marks: VecDeque<(Tick, Seq)>,
}

impl Recent {
    /// Nothing is known of writes up to `applied`; all of them are in the store.
    #[must_use]
    pub fn new(applied: Seq) -> Self {
        Self { forgotten: applied, settled: applied, ..Self::default() }
    }

    /// Notes the changes of the entry at `seq`; a pending one may yet be taken back.
    pub fn note(&mut self, seq: Seq, ts: Hlc, changes: &[Change], is_pending: bool) {
        for change in changes {
            self.bytes += change.bytes();
            match change {
                Change::Put { key, body, expires_ms } => {
                    let version = Version { ts, body: body.clone(), expires_ms: *expires_ms };
                    let beneath = if is_pending { self.rows.remove(key).map(Box::new) } else { None };
                    self.rows.insert(key.clone(), RecentWrite { seq, version, is_pending, beneath });
                }
                Change::RangeTombstone { from, to } => {
                    let range = KeyRange::new(from.clone(), to.clone())
                        .expect("a delete range was checked when it arrived");
                    self.ranges.push(RecentRange { seq, ts, range, is_pending });
                }
            }
        }
    }

    /// Tells that no write up to `upto` is pending any more.
    pub fn settled(&mut self, upto: Seq) {
        self.settled = upto.max(self.settled);
    }

    /// Takes back what the pending write at `seq` put into `rows`.
    pub fn revert(&mut self, seq: Seq, rows: &[RevertedRow]) {
        for row in rows {
            match row {
                RevertedRow::Row { key } => self.revert_row(seq, key),
                RevertedRow::Range { .. } => self.ranges.retain(|range| range.seq != seq),
            }
        }
    }

    fn revert_row(&mut self, seq: Seq, key: &Bytes) {
        let Some(mut top) = self.rows.remove(key) else { return };
        if top.seq == seq {
            if let Some(beneath) = top.beneath {
                self.rows.insert(key.clone(), *beneath);
            }
            return;
        }
        let mut below = &mut top.beneath;
        while let Some(write) = below {
            if write.seq == seq {
                *below = write.beneath.take();
                break;
            }
            below = &mut below.as_mut().expect("it was there a line before").beneath;
        }
        self.rows.insert(key.clone(), top);
    }

    /// Tells that everything up to `applied` is in the store, and forgets what is old.
    pub fn applied(&mut self, now: Tick, applied: Seq) {
        // A mark stands for a quarter of the time, so that there are few of them.
        match self.marks.back_mut() {
            Some((at, seq)) if now.ms_since(*at) < RECENT_WRITES_MS / 4 => *seq = applied,
            Some(_) | None => self.marks.push_back((now, applied)),
        }
        if self.bytes > RECENT_BYTES_MAX {
            self.forget(applied);
        }
        self.tick(now);
    }

    /// Forgets what was applied long enough ago.
    pub fn tick(&mut self, now: Tick) {
        let mut upto = None;
        while let Some((at, seq)) = self.marks.front().copied() {
            if now.ms_since(at) < RECENT_WRITES_MS {
                break;
            }
            upto = Some(seq);
            self.marks.pop_front();
        }
        if let Some(seq) = upto {
            self.forget(seq);
        }
    }

    /// When `tick` has something to forget.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        self.marks.front().map(|(at, _)| at.plus_ms(RECENT_WRITES_MS))
    }

    fn forget(&mut self, upto: Seq) {
        if upto <= self.forgotten {
            return;
        }
        self.forgotten = upto;
        self.rows.retain(|_, write| write.seq > upto);
        self.ranges.retain(|range| range.seq > upto);
        self.bytes = self.rows.iter().map(|(key, write)| key.len() + write.version.body.bytes()).sum();
    }

    /// Newest version of `key` among recent writes; a covering range tombstone reads as one.
    fn newest(&self, key: &[u8]) -> Option<Found> {
        let pending = |seq: Seq, is_pending: bool| (is_pending && seq > self.settled).then_some(seq);
        let point = self.rows.get(key).map(|write| Found {
            version: write.version.clone(),
            pending: pending(write.seq, write.is_pending),
        });
        let covering = self.ranges.iter().filter(|range| range.range.contains(key));
        let covering = covering.max_by_key(|range| range.ts).map(|range| Found {
            version: tombstone(range.ts),
            pending: pending(range.seq, range.is_pending),
        });
        match (point, covering) {
            (Some(point), Some(range)) if range.version.ts > point.version.ts => Some(range),
            (Some(point), _) => Some(point),
            (None, range) => range,
        }
    }
}

fn tombstone(ts: Hlc) -> Version {
    Version { ts, body: Body::Tombstone(Cause::Deleted), expires_ms: None }
}

/// Turns `ops`, to be written at `ts` into a tablet of `tablet`, into exact changes.
///
/// Pending writes from `chain_from` on share the fate of this one, so it may rest on them.
///
/// # Errors
/// `Reject` when a condition fails, an add is impossible, the evidence does not suffice, or
/// what was looked at is pending.
pub fn sequence(
    ops: &[Op],
    ts: Hlc,
    tablet: &KeyRange,
    recent: &Recent,
    evidence: &Evidence,
    chain_from: Option<Seq>,
) -> Result<Sequenced, Reject> {
    let (rows, deleted, rests_on_pending) = (BTreeMap::new(), Vec::new(), Cell::new(false));
    let mut batch =
        Batch { ts, tablet, recent, evidence, chain_from, rests_on_pending, rows, deleted, ranges_seen: 0 };
    let mut results = Vec::with_capacity(ops.len());
    for (index, op) in ops.iter().enumerate() {
        match batch.run(index, op) {
            Ok(result) => results.push(result),
            // What a refusal rests on must not be taken back after it was told.
            Err(_) if batch.rests_on_pending.get() && !mutated!(ConditionsRestOnPending) => {
                return Err(Reject::Pending);
            }
            Err(reject) => return Err(reject),
        }
    }
    Ok(Sequenced { changes: batch.into_changes(), results })
}

/// A batch half way: what its operations so far leave behind.
struct Batch<'a> {
    ts: Hlc,
    tablet: &'a KeyRange,
    recent: &'a Recent,
    evidence: &'a Evidence,
    chain_from: Option<Seq>,
    rests_on_pending: Cell<bool>,
    rows: BTreeMap<Bytes, (Body, Option<u64>)>,
    /// Ranges deleted as a whole. A row put later in the batch stands although it has the
    /// same timestamp: only a newer range tombstone covers a row.
    deleted: Vec<KeyRange>,
    ranges_seen: usize,
}

impl Batch<'_> {
    fn run(&mut self, index: usize, op: &Op) -> Result<OpResult, Reject> {
        if let (Some(condition), Some(key)) = (&op.condition, op.action.key()) {
            self.check(index, condition, key)?;
        }
        match &op.action {
            Action::Set { key, value, ttl_ms } => {
                let expires_ms = ttl_ms.map(|ttl_ms| self.ts.ms().saturating_add(ttl_ms));
                self.rows.insert(key.clone(), (Body::Value(value.clone()), expires_ms));
                Ok(OpResult::Done)
            }
            Action::Delete { key, cause } => {
                self.rows.insert(key.clone(), (Body::Tombstone(*cause), None));
                Ok(OpResult::Done)
            }
            Action::Add { key, delta } => self.add(index, key, *delta),
            Action::DeleteRange { from, to } => self.delete_range(from, to.as_ref()),
            Action::Room { key, change, runs } => self.change_room(key, *change, runs),
        }
    }

    fn check(&self, index: usize, condition: &Condition, key: &Bytes) -> Result<(), Reject> {
        let newest = self.newest(key)?;
        let is_newest = |ts: Hlc| newest.as_ref().is_some_and(|version| version.ts == ts);
        let live = newest.as_ref().filter(|version| version.is_live(self.ts));
        let holds = match (condition, live) {
            (Condition::NewestIs(ts), _) => is_newest(*ts),
            (Condition::Absent, live) => live.is_none(),
            (Condition::TsIs(ts), Some(live)) => live.ts == *ts,
            (Condition::ValueIs(value), Some(live)) => body_is(&live.body, value),
            (Condition::TsIs(_) | Condition::ValueIs(_), None) => false,
        };
        if holds {
            return Ok(());
        }
        Err(Reject::ConditionFailed { op: index, actual: live.map(|live| live.ts) })
    }

    fn add(&mut self, index: usize, key: &Bytes, delta: i64) -> Result<OpResult, Reject> {
        let (value, expires_ms) = match self.live(key)? {
            None => (0, None),
            Some(Version { body: Body::Counter(value), expires_ms, .. }) => (value, expires_ms),
            Some(_) => return Err(Reject::NotACounter { op: index }),
        };
        let sum = value.checked_add(delta).ok_or(Reject::CounterOverflow { op: index, value })?;
        self.rows.insert(key.clone(), (Body::Counter(sum), expires_ms));
        Ok(OpResult::Counter(sum))
    }

    fn change_room(&mut self, key: &Bytes, change: BitChange, runs: &ServerRuns) -> Result<OpResult, Reject> {
        let live = self.live(key)?;
        let mut room = RoomRow::of(live.as_ref().map(|version| &version.body));
        let is_broken = live.is_some() && room.is_empty();
        if room.change(change, runs) || is_broken {
            self.rows.insert(key.clone(), (room.into_body(), None));
        }
        Ok(OpResult::Done)
    }

    fn delete_range(&mut self, from: &Bytes, to: Option<&Bytes>) -> Result<OpResult, Reject> {
        let evidence = self.evidence.ranges.get(self.ranges_seen).ok_or(Reject::ReadAgain)?;
        self.ranges_seen += 1;
        let asked = KeyRange::new(from.clone(), to.cloned()).expect("checked when it arrived");
        let Some(range) = asked.intersect(self.tablet) else { return Ok(OpResult::Done) };
        let keys = self.live_keys(&range, evidence)?;
        self.rows.retain(|key, _| !range.contains(key));
        if keys.len() > DELETE_RANGE_EXPANDED_ROWS_MAX {
            self.note_deleted(range);
        } else {
            self.rows.extend(keys.into_iter().map(|key| (key, (Body::Tombstone(Cause::Deleted), None))));
        }
        Ok(OpResult::Done)
    }

    /// Two range tombstones of one entry with the same start would have one name: the wider stays.
    fn note_deleted(&mut self, range: KeyRange) {
        match self.deleted.iter_mut().find(|known| known.start() == range.start()) {
            Some(known) if known.covers(&range) => {}
            Some(known) => *known = range,
            None => self.deleted.push(range),
        }
    }

    /// Keys of `range` that may be live: read, written lately, or put by this batch.
    fn live_keys(&self, range: &KeyRange, read: &RangeEvidence) -> Result<BTreeSet<Bytes>, Reject> {
        if self.evidence.as_of < self.recent.forgotten && !mutated!(StaleRangeAccepted) {
            return Err(Reject::ReadAgain);
        }
        let start = range.start().clone();
        let recent = self.recent.rows.range(start.clone()..).map(|(key, _)| key);
        let own = self.rows.range(start..).map(|(key, _)| key);
        let written =
            recent.take_while(|key| range.contains(key)).chain(own.take_while(|key| range.contains(key)));
        Ok(read.keys.iter().filter(|key| range.contains(key)).chain(written).cloned().collect())
    }

    /// The live version of `key` as this operation finds it.
    fn live(&self, key: &Bytes) -> Result<Option<Version>, Reject> {
        Ok(self.newest(key)?.filter(|version| version.is_live(self.ts)))
    }

    /// The newest version of `key` as this operation finds it, whatever it says.
    fn newest(&self, key: &Bytes) -> Result<Option<Version>, Reject> {
        match self.rows.get(key) {
            Some((body, expires_ms)) => {
                Ok(Some(Version { ts: self.ts, body: body.clone(), expires_ms: *expires_ms }))
            }
            None if self.deleted.iter().any(|range| range.contains(key)) => Ok(None),
            None => self.sequenced(key),
        }
    }

    fn sequenced(&self, key: &Bytes) -> Result<Option<Version>, Reject> {
        if let Some(Found { version, pending }) = self.recent.newest(key) {
            if let Some(seq) = pending {
                let shares_fate = self.chain_from.is_some_and(|from| seq >= from);
                if !shares_fate && !mutated!(ConditionsRestOnPending) {
                    return Err(Reject::Pending);
                }
                self.rests_on_pending.set(true);
            }
            return Ok(Some(version));
        }
        if self.evidence.as_of < self.recent.forgotten && !mutated!(StaleEvidenceAccepted) {
            return Err(Reject::ReadAgain);
        }
        self.evidence.rows.get(key).cloned().ok_or(Reject::ReadAgain)
    }

    fn into_changes(self) -> Vec<Change> {
        let ranges = self
            .deleted
            .into_iter()
            .map(|range| Change::RangeTombstone { from: range.start().clone(), to: range.end().cloned() });
        let puts =
            self.rows.into_iter().map(|(key, (body, expires_ms))| Change::Put { key, body, expires_ms });
        ranges.chain(puts).collect()
    }
}

fn body_is(body: &Body, value: &Bytes) -> bool {
    match body {
        Body::Tombstone(_) => false,
        Body::Value(present) => present == value,
        Body::Counter(count) => count.to_be_bytes()[..] == value[..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, Ordinal};
    use crate::room::{Stamp, SubSeq};
    use std::sync::Arc;

    const TS: Hlc = Hlc(1_000 << 16);

    fn key(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn set(name: &str, value: &str) -> Op {
        Op { condition: None, action: Action::Set { key: key(name), value: key(value), ttl_ms: None } }
    }

    fn add(name: &str, delta: i64) -> Op {
        Op { condition: None, action: Action::Add { key: key(name), delta } }
    }

    fn delete_range(from: &str, to: &str) -> Op {
        Op { condition: None, action: Action::DeleteRange { from: key(from), to: Some(key(to)) } }
    }

    fn if_absent(op: Op) -> Op {
        Op { condition: Some(Condition::Absent), ..op }
    }

    fn counter(ts: Hlc, value: i64) -> Version {
        Version { ts, body: Body::Counter(value), expires_ms: None }
    }

    fn read(name: &str, version: Option<Version>) -> Evidence {
        Evidence { rows: BTreeMap::from([(key(name), version)]), ..Evidence::default() }
    }

    fn run(ops: &[Op], recent: &Recent, evidence: &Evidence) -> Result<Sequenced, Reject> {
        sequence(ops, TS, &KeyRange::all(), recent, evidence, None)
    }

    fn puts(sequenced: &Sequenced) -> Vec<String> {
        let show = |change: &Change| match change {
            Change::Put { key, body: Body::Tombstone(_), .. } => format!("-{}", key.escape_ascii()),
            Change::Put { key, body: Body::Counter(n), .. } => format!("{}={n}", key.escape_ascii()),
            Change::Put { key, body: Body::Value(v), .. } => {
                format!("{}={}", key.escape_ascii(), v.escape_ascii())
            }
            Change::RangeTombstone { from, .. } => format!("--{}", from.escape_ascii()),
        };
        sequenced.changes.iter().map(show).collect()
    }

    #[test]
    fn a_plain_set_needs_no_reading() {
        let done = run(&[set("k", "v")], &Recent::default(), &Evidence::default()).unwrap();
        assert_eq!(puts(&done), ["k=v"]);
    }

    #[test]
    fn adds_chain_on_writes_in_flight_and_within_the_batch() {
        let mut recent = Recent::default();
        let first = run(&[add("n", 5)], &recent, &read("n", None)).unwrap();
        recent.note(Seq(1), Hlc(1), &first.changes, false);
        let second = run(&[add("n", 2), add("n", 1)], &recent, &Evidence::default()).unwrap();
        assert_eq!(puts(&second), ["n=8"]);
        assert_eq!(second.results, [OpResult::Counter(7), OpResult::Counter(8)]);
    }

    #[test]
    fn a_condition_waits_for_a_pending_write_and_chains_on_its_own_group() {
        let mut recent = Recent::default();
        let put = |n| [Change::Put { key: key("n"), body: Body::Counter(n), expires_ms: None }];
        recent.note(Seq(1), Hlc(1), &put(1), false);
        recent.note(Seq(2), Hlc(2), &put(5), true);
        assert_eq!(run(&[add("n", 1)], &recent, &Evidence::default()), Err(Reject::Pending));
        let evidence = Evidence::default();
        let chained = sequence(&[add("n", 1)], TS, &KeyRange::all(), &recent, &evidence, Some(Seq(2)));
        assert_eq!(puts(&chained.unwrap()), ["n=6"]);
        let failing =
            sequence(&[if_absent(set("n", "x"))], TS, &KeyRange::all(), &recent, &evidence, Some(Seq(2)));
        assert_eq!(failing, Err(Reject::Pending));
        recent.revert(Seq(2), &[RevertedRow::Row { key: key("n") }]);
        assert_eq!(puts(&run(&[add("n", 1)], &recent, &evidence).unwrap()), ["n=2"]);
    }

    #[test]
    fn a_settled_write_is_like_any_other() {
        let mut recent = Recent::default();
        recent.note(
            Seq(2),
            Hlc(2),
            &[Change::Put { key: key("n"), body: Body::Counter(5), expires_ms: None }],
            true,
        );
        recent.settled(Seq(2));
        assert_eq!(puts(&run(&[add("n", 1)], &recent, &Evidence::default()).unwrap()), ["n=6"]);
    }

    #[test]
    fn stale_evidence_must_be_read_again() {
        let mut recent = Recent::default();
        recent.note(
            Seq(1),
            Hlc(1),
            &[Change::Put { key: key("n"), body: Body::Counter(9), expires_ms: None }],
            false,
        );
        recent.applied(Tick(0), Seq(1));
        recent.tick(Tick(RECENT_WRITES_MS));
        assert_eq!(run(&[add("n", 1)], &recent, &read("n", None)), Err(Reject::ReadAgain));
        let fresh = Evidence { as_of: Seq(1), ..read("n", Some(counter(Hlc(1), 9))) };
        assert_eq!(puts(&run(&[add("n", 1)], &recent, &fresh).unwrap()), ["n=10"]);
    }

    #[test]
    fn insert_if_absent_sees_deletes_and_expiry() {
        let expired = Version { ts: Hlc(1), body: Body::Value(key("old")), expires_ms: Some(999) };
        let op = if_absent(set("k", "v"));
        assert!(run(std::slice::from_ref(&op), &Recent::default(), &read("k", Some(expired))).is_ok());
        let live = counter(Hlc(7), 1);
        assert_eq!(
            run(&[op], &Recent::default(), &read("k", Some(live))),
            Err(Reject::ConditionFailed { op: 0, actual: Some(Hlc(7)) })
        );
    }

    #[test]
    fn bits_of_a_room_chain_on_writes_in_flight() {
        let bit = |ordinal: u32, set| {
            let stamp = Stamp { incarnation: Incarnation(1), sub_seq: SubSeq(4) };
            let change = if set { BitChange::Set } else { BitChange::Clear }(Ordinal(ordinal), stamp);
            Op { condition: None, action: Action::Room { key: key("r"), change, runs: Arc::default() } }
        };
        let mut recent = Recent::default();
        let first = run(&[bit(2, true)], &recent, &read("r", None)).unwrap();
        recent.note(Seq(1), Hlc(1), &first.changes, false);
        let second = run(&[bit(5, true)], &recent, &Evidence::default()).unwrap();
        let [Change::Put { body: Body::Value(value), .. }] = &second.changes[..] else {
            panic!("{second:?}")
        };
        let bits: Vec<u32> = RoomRow::decode(value).unwrap().bits().map(|(ordinal, _)| ordinal.0).collect();
        assert_eq!(bits, [2, 5]);
        assert!(run(&[bit(2, true)], &recent, &Evidence::default()).unwrap().changes.is_empty(), "it is set");
        let emptied = run(&[bit(2, false)], &recent, &Evidence::default()).unwrap();
        assert_eq!(puts(&emptied), ["-r"], "a room without bits has no row");
    }

    #[test]
    fn adding_to_text_or_past_the_range_is_refused() {
        let text = Version { ts: Hlc(1), body: Body::Value(key("x")), expires_ms: None };
        let evidence = read("n", Some(text));
        assert_eq!(run(&[add("n", 1)], &Recent::default(), &evidence), Err(Reject::NotACounter { op: 0 }));
        let evidence = read("n", Some(counter(Hlc(1), i64::MAX)));
        assert_eq!(
            run(&[add("n", 1)], &Recent::default(), &evidence),
            Err(Reject::CounterOverflow { op: 0, value: i64::MAX })
        );
    }

    #[test]
    fn small_delete_range_is_expanded_with_recent_writes() {
        let mut recent = Recent::default();
        let put = |name: &str| Change::Put { key: key(name), body: Body::Counter(1), expires_ms: None };
        recent.note(Seq(1), Hlc(1), &[put("b"), put("x")], false);
        let ranges = vec![RangeEvidence { keys: vec![key("a")] }];
        let evidence = Evidence { ranges, ..Evidence::default() };
        let done = run(&[set("c", "1"), delete_range("a", "d"), set("a", "2")], &recent, &evidence).unwrap();
        assert_eq!(puts(&done), ["a=2", "-b", "-c"]);
    }

    #[test]
    fn large_delete_range_is_one_tombstone_and_later_puts_stand() {
        let keys = (0..=DELETE_RANGE_EXPANDED_ROWS_MAX).map(|n| key(&format!("a{n:05}"))).collect();
        let evidence = Evidence { ranges: vec![RangeEvidence { keys }], ..Evidence::default() };
        let ops = [delete_range("a", "b"), if_absent(set("a00001", "new"))];
        let done = run(&ops, &Recent::default(), &evidence).unwrap();
        assert_eq!(puts(&done), ["--a", "a00001=new"]);
    }
}
