//! Tablets whose place others take: what is done here at each step, and what a start makes of it.
//!
//! ```text
//! seal at or below Q ─▶ range tombstones cut, children in the registry ─▶ ready
//! committed ─▶ the core gives up ─▶ one registry batch: retired, children ─▶ the children serve
//! restart ─▶ rows of retired logs that no flush made durable, tokens ─▶ the children's own logs
//! a flush after the switch, and the token window ─▶ the retired log goes
//! ```
//!
//! No row is copied or moved: the children read the rows where their parents have put them.

use crate::error::Error;
use crate::limits;
use crate::oplog::Oplog;
use crate::registry::{Built, ReplicaRecord, RetiredRecord, StagedRecord};
use crate::replicas::{Ancestor, Replicas};
use crate::store::{Applied, Store, StoreError, VersionName};
use crate::tablets::TabletHandle;
use bytes::Bytes;
use ebla_kernel::entry::{Entry, LogEnd, RevertedRow, SealRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Attempt, Seq, TableId, TabletId};
use ebla_kernel::op::Change;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::{RangeTombstone, RangeTombstones};
use ebla_kernel::tablet::token::TokenTable;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// What a core wants known to the registry.
pub struct Staging {
    /// The tablet.
    pub handle: Arc<TabletHandle>,
    /// Its seal; none when that was taken back.
    pub seal: Option<(SealRecord, LogEnd)>,
}

/// Does what cores want staged: first the rows, then the records, all of them in one batch.
/// Gives what to tell the cores.
///
/// # Errors
/// When store or registry fail: the server must end.
pub fn stage(
    replicas: &Replicas,
    store: &dyn Store,
    stagings: Vec<Staging>,
) -> Result<Vec<(TabletId, Option<Attempt>)>, Error> {
    let (mut changes, mut staged) = (Vec::new(), Vec::new());
    for Staging { handle, seal } in stagings {
        if let Some((seal, _)) = &seal {
            cut_tombstones(&handle, store, seal)?;
        }
        staged.push((handle.id, seal.as_ref().map(|(seal, _)| seal.attempt)));
        changes.push((handle.id, seal.map(|(seal, end)| StagedRecord { seal, end })));
    }
    replicas.stage(&changes)?;
    Ok(staged)
}

/// Cuts range tombstones that reach over several children. Done twice it changes nothing, and
/// after an abort two neighbours do what one did.
fn cut_tombstones(handle: &TabletHandle, store: &dyn Store, seal: &SealRecord) -> Result<(), StoreError> {
    let parts = store_parts(handle.table, &handle.tombstones.load(), store, seal)?;
    if !parts.is_empty() {
        handle.tombstones.rcu(|known| {
            let mut known = RangeTombstones::clone(known);
            known.extend(parts.iter().cloned());
            known
        });
    }
    Ok(())
}

/// Writes the parts of range tombstones that reach over several children.
fn store_parts(
    table: TableId,
    known: &RangeTombstones,
    store: &dyn Store,
    seal: &SealRecord,
) -> Result<Vec<RangeTombstone>, StoreError> {
    let parts: Vec<RangeTombstone> = known.iter().flat_map(|tombstone| parts(&tombstone, seal)).collect();
    let change = |part: &RangeTombstone| Change::RangeTombstone {
        from: part.range.start().clone(),
        to: part.range.end().cloned(),
    };
    let changes: Vec<Change> = parts.iter().map(change).collect();
    let applied = |(part, change): (&RangeTombstone, _)| Applied { table, ts: part.ts, change };
    let rows: Vec<Applied<'_>> = parts.iter().zip(&changes).map(applied).collect();
    if !rows.is_empty() {
        store.apply(&rows)?;
    }
    Ok(parts)
}

/// Cuts the range tombstones of a sealed tablet that were found at a start, again.
///
/// # Errors
/// When the store fails.
pub fn cut_again(
    record: &ReplicaRecord,
    staged: &StagedRecord,
    store: &dyn Store,
    known: &mut RangeTombstones,
) -> Result<(), StoreError> {
    let parts = store_parts(record.table, known, store, &staged.seal)?;
    known.extend(parts);
    Ok(())
}

/// What a range tombstone becomes; nothing when it lies in one child.
fn parts(tombstone: &RangeTombstone, seal: &SealRecord) -> Vec<RangeTombstone> {
    let ts = tombstone.ts;
    let own = seal.children.iter().filter_map(|child| child.range.intersect(&tombstone.range));
    let parts: Vec<RangeTombstone> = own.map(|range| RangeTombstone { range, ts }).collect();
    if parts.len() > 1 { parts } else { Vec::new() }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempt = self.seal.as_ref().map(|(seal, _)| seal.attempt);
        write!(f, "{} {attempt:?}", self.handle.id)
    }
}

/// The range tombstones of a child, out of those of its parents.
#[must_use]
pub fn tombstones_of(parents: &[Arc<TabletHandle>], range: &KeyRange) -> RangeTombstones {
    let mut own = RangeTombstones::new();
    for parent in parents {
        add_tombstones(&mut own, &parent.tombstones.load(), range);
    }
    own
}

fn add_tombstones(own: &mut RangeTombstones, parent: &RangeTombstones, range: &KeyRange) {
    let part = |tombstone: RangeTombstone| {
        tombstone.range.intersect(range).map(|range| RangeTombstone { range, ts: tombstone.ts })
    };
    own.extend(parent.overlapping(range).filter_map(part));
}

/// What a replica has from the tablets that it was made of.
#[derive(Clone, Default)]
pub struct Inherited {
    /// Their tokens.
    pub tokens: TokenTable,
    /// Where their logs end; none when one of them is gone.
    pub end: Option<LogEnd>,
}

impl Inherited {
    /// Reads the logs of the retired tablets that `record` goes on from: tokens out of all of
    /// them, and the rows that no flush has made durable into the store.
    ///
    /// # Errors
    /// When a store fails, or a log is damaged.
    pub fn of(
        record: &ReplicaRecord,
        ancestors: &[Ancestor],
        oplog: &Oplog,
        store: &dyn Store,
    ) -> Result<Self, Error> {
        let mut known: BTreeMap<TabletId, Self> = BTreeMap::new();
        for ancestor in ancestors {
            let mut inherited = Self::joined(&ancestor.retired.parents, &known);
            inherited.replay(record.table, ancestor, oplog, store)?;
            known.insert(ancestor.retired.tablet, inherited);
        }
        Ok(Self::joined(&record.parents, &known))
    }

    /// What came from all of `parents`; nothing when one of them is gone.
    fn joined(parents: &[TabletId], known: &BTreeMap<TabletId, Self>) -> Self {
        let parts: Option<Vec<&Self>> = parents.iter().map(|parent| known.get(parent)).collect();
        let Some(parts) = parts.filter(|parts| !parts.is_empty()) else { return Self::default() };
        let ends: Option<Vec<LogEnd>> = parts.iter().map(|part| part.end).collect();
        let Some(ends) = ends else { return Self::default() };
        let tokens = parts.iter().map(|part| part.tokens.clone()).reduce(TokenTable::join);
        Self { tokens: tokens.unwrap_or_default(), end: Some(LogEnd::joined(&ends)) }
    }

    /// Reads the log of a retired tablet on top of what it has inherited itself.
    fn replay(
        &mut self,
        table: TableId,
        ancestor: &Ancestor,
        oplog: &Oplog,
        store: &dyn Store,
    ) -> Result<(), Error> {
        let retired = &ancestor.retired;
        let Some((first, _)) = oplog.bounds(retired.tablet) else {
            if retired.flushed.pos.seq < retired.seal.pos.seq {
                return Err(damaged(retired, "the log is gone, and rows of it are not flushed"));
            }
            *self = Self::default();
            return Ok(());
        };
        let goes_on = self.end.map_or(first == Seq(1), |end| end.pos.seq.next() == first);
        let mut reverted = BTreeSet::new();
        let mut is_first = true;
        each(oplog, retired, first, |entry| {
            if std::mem::take(&mut is_first) && !goes_on {
                // What came before is purged; its own time bounds the tokens of that.
                self.tokens = Built::tokens_at(retired.built, entry);
            }
            self.tokens.note_entry(entry);
            reverted.extend(entry.reverts().iter().map(|target| target.pos.seq));
            self.end = Some(entry.end());
            Ok(())
        })?;
        if self.end != Some(retired.seal) {
            return Err(damaged(retired, "the log does not end with the seal"));
        }
        let from = retired.flushed.pos.seq.next().max(first);
        if retired.flushed.pos.seq < retired.seal.pos.seq {
            for range in &ancestor.ranges {
                let put = |entry: &Entry| put(table, range, entry, &reverted, store).map_err(Error::from);
                each(oplog, retired, from, put)?;
            }
        }
        Ok(())
    }
}

/// Puts the rows of a sealed tablet into the store that no flush had made durable. What is staged
/// was at or below Q and applied; if the commit is what its core hears first, nobody else puts
/// them there before others take its place.
///
/// # Errors
/// When a store fails, or the log is damaged.
pub fn apply_sealed(
    record: &ReplicaRecord,
    staged: &StagedRecord,
    oplog: &Oplog,
    store: &dyn Store,
) -> Result<(), Error> {
    if record.flushed.pos.seq >= staged.end.pos.seq {
        return Ok(());
    }
    let ReplicaRecord { tablet, kind, range, flushed, parents, built, .. } = record.clone();
    let ranges = vec![range.clone()];
    let retired = RetiredRecord { tablet, kind, range, seal: staged.end, flushed, parents, built };
    Inherited::default().replay(record.table, &Ancestor { retired, ranges }, oplog, store)
}

/// Walks the entries of a retired log from `from` to the seal.
fn each(
    oplog: &Oplog,
    retired: &RetiredRecord,
    from: Seq,
    mut visit: impl FnMut(&Entry) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut next, last) = (from, retired.seal.pos.seq);
    while next <= last {
        let entries = oplog.read(retired.tablet, next, limits::REPLAY_BATCH_BYTES)?;
        let Some(end) = entries.last().map(Entry::seq) else {
            return Err(damaged(retired, &format!("entries from {next} on are gone")));
        };
        entries.iter().filter(|entry| entry.seq() <= last).try_for_each(&mut visit)?;
        next = end.next();
    }
    Ok(())
}

/// Puts what of an entry lies in `range`, and takes back what it takes back.
fn put(
    table: TableId,
    range: &KeyRange,
    entry: &Entry,
    reverted: &BTreeSet<Seq>,
    store: &dyn Store,
) -> Result<(), StoreError> {
    let names = entry
        .reverts()
        .iter()
        .flat_map(|target| target.rows.iter().filter_map(|row| name(table, target.ts, row, range)));
    let names: Vec<VersionName> = names.collect();
    if !names.is_empty() {
        store.remove(&names)?;
    }
    if reverted.contains(&entry.seq()) {
        return Ok(());
    }
    let own: Vec<Change> = entry.changes().iter().filter_map(|change| clip(change, range)).collect();
    if own.is_empty() {
        return Ok(());
    }
    let applied = |change| Applied { table, ts: entry.ts, change };
    store.apply(&own.iter().map(applied).collect::<Vec<_>>())
}

fn name(table: TableId, ts: Hlc, row: &RevertedRow, range: &KeyRange) -> Option<VersionName> {
    let is_own = |key: &Bytes| range.contains(key);
    match row {
        RevertedRow::Row { key } => is_own(key).then(|| VersionName::Row { table, key: key.clone(), ts }),
        RevertedRow::Range { from } => {
            is_own(from).then(|| VersionName::RangeTombstone { table, from: from.clone(), ts })
        }
    }
}

fn clip(change: &Change, range: &KeyRange) -> Option<Change> {
    match change {
        Change::Put { key, .. } => range.contains(key).then(|| change.clone()),
        Change::RangeTombstone { from, to } => {
            let own = KeyRange::new(from.clone(), to.clone()).ok()?.intersect(range)?;
            Some(Change::RangeTombstone { from: own.start().clone(), to: own.end().cloned() })
        }
    }
}

fn damaged(retired: &RetiredRecord, what: &str) -> Error {
    Error::Damaged { what: format!("log of the retired tablet {}: {what}", retired.tablet.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oplog::{Append, Fsync, Logged, OplogConfig, Tail};
    use crate::store::memory::MemoryStore;
    use ebla_kernel::entry::{Payload, RevertTarget, SealedChild, WriteRecord};
    use ebla_kernel::ids::{Epoch, ReplicaId};
    use ebla_kernel::meta::TableKind;
    use ebla_kernel::op::{AckLevel, Body, OpResult, Token};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const PARENT: TabletId = TabletId(1);
    const TABLE: TableId = TableId(2);

    /// The log of a tablet that ends sealed, and the store as no flush has seen it.
    struct Log {
        _dir: tempfile::TempDir,
        oplog: Oplog,
        entries: Vec<Entry>,
    }

    fn range(from: &'static str, to: Option<&'static str>) -> KeyRange {
        let bytes = |key: &'static str| Bytes::from_static(key.as_bytes());
        KeyRange::new(bytes(from), to.map(bytes)).unwrap()
    }

    fn put(key: &'static str) -> Change {
        let body = Body::Value(Bytes::from_static(b"v"));
        Change::Put { key: Bytes::from_static(key.as_bytes()), body, expires_ms: None }
    }

    fn write(seq: u64, changes: Vec<Change>) -> Payload {
        let token = Some(Token { issued_ms: 1, client: 7, seq });
        Payload::Write(WriteRecord { token, level: AckLevel::Leader, changes, results: vec![OpResult::Done] })
    }

    fn seal() -> SealRecord {
        let child = |(id, range): (u64, KeyRange)| SealedChild {
            tablet: TabletId(id),
            range,
            replicas: BTreeMap::from([(ReplicaId(1), ReplicaId(id))]),
        };
        let children = [(2, range("", Some("m"))), (3, range("m", None))].map(child).into();
        SealRecord { attempt: Attempt(1), children }
    }

    /// Rows on both sides, a range tombstone over the border, a write that is taken back, the
    /// seal, and the beginning of an epoch behind it.
    fn log() -> Log {
        let dir = tempfile::tempdir().unwrap();
        let oplog = Oplog::open(dir.path(), &OplogConfig::default()).unwrap();
        let mut entries: Vec<Entry> = Vec::new();
        let mut push = |payload| {
            let end = entries.last().map(Entry::end).unwrap_or_default();
            entries.push(end.follow(Epoch(1), end.ts.next(), payload));
            entries.last().map(|entry| (entry.pos, entry.ts)).unwrap()
        };
        push(write(1, vec![put("a"), put("x")]));
        let over =
            Change::RangeTombstone { from: Bytes::from_static(b"k"), to: Some(Bytes::from_static(b"q")) };
        push(write(2, vec![over]));
        let (pos, ts) = push(write(3, vec![put("b"), put("y")]));
        push(write(4, vec![put("c"), put("z")]));
        let row = |key: &'static str| RevertedRow::Row { key: Bytes::from_static(key.as_bytes()) };
        let target = RevertTarget { pos, ts, token: None, rows: vec![row("b"), row("y")] };
        push(Payload::Revert { targets: vec![target] });
        push(Payload::Seal(seal()));
        push(Payload::EpochStart { replica: ReplicaId(1), incarnation: ebla_kernel::ids::Incarnation(1) });
        let logged: Vec<Arc<Logged>> = entries.iter().cloned().map(Logged::from).map(Arc::new).collect();
        let append = Append { tablet: PARENT, tail: Tail::Continue, entries: logged.iter().collect() };
        oplog.append_group(&[append], Fsync::Now).unwrap();
        Log { _dir: dir, oplog, entries }
    }

    fn child(range: KeyRange, base: LogEnd) -> ReplicaRecord {
        ReplicaRecord {
            range,
            promised_epoch: Epoch(2),
            flushed: base,
            base,
            parents: vec![PARENT],
            ..ReplicaRecord::blank(TabletId(3), TABLE, ReplicaId(3))
        }
    }

    fn ancestor(seal: LogEnd, flushed: LogEnd, range: KeyRange) -> Ancestor {
        let (kind, parents) = (TableKind::Durable, Vec::new());
        let (range_of_all, built) = (KeyRange::all(), None);
        let retired =
            RetiredRecord { tablet: PARENT, kind, range: range_of_all, seal, flushed, parents, built };
        Ancestor { retired, ranges: vec![range] }
    }

    fn keys(store: &MemoryStore) -> String {
        let has = |key: &&str| store.get(TABLE, key.as_bytes(), Hlc::MAX).unwrap().is_some();
        ["a", "b", "c", "x", "y", "z"].into_iter().filter(has).collect()
    }

    #[test]
    fn a_restart_between_seal_and_switch_cuts_range_tombstones_again() {
        let log = log();
        let store = MemoryStore::default();
        let flushed = log.entries[0].end();
        let record = ReplicaRecord { tablet: PARENT, flushed, ..child(range("", None), LogEnd::default()) };
        let staged = StagedRecord { seal: seal(), end: log.entries[5].end() };
        apply_sealed(&record, &staged, &log.oplog, &store).unwrap();
        let mut known = RangeTombstones::new();
        for tombstone in store.load_range_tombstones(TABLE, &record.range).unwrap() {
            known.insert(tombstone.range.start().clone(), tombstone.range.end().cloned(), tombstone.ts);
        }
        cut_again(&record, &staged, &store, &mut known).unwrap();
        let own = store.load_range_tombstones(TABLE, &range("m", None)).unwrap();
        assert!(own.iter().any(|tombstone| tombstone.range == range("m", Some("q"))), "{own:?}");
    }

    fn replay(log: &Log, flushed: usize, range: KeyRange) -> (MemoryStore, Inherited) {
        let store = MemoryStore::default();
        let end = |at: usize| at.checked_sub(1).map(|at| log.entries[at].end()).unwrap_or_default();
        let record = child(range, end(6));
        let ancestor = ancestor(end(6), end(flushed), record.range.clone());
        let inherited = Inherited::of(&record, &[ancestor], &log.oplog, &store).unwrap();
        (store, inherited)
    }

    #[test]
    fn a_child_gets_its_own_rows_and_all_tokens() {
        let log = log();
        let (store, inherited) = replay(&log, 0, range("m", None));
        assert_eq!(keys(&store), "xz");
        let tombstones = store.load_range_tombstones(TABLE, &KeyRange::all()).unwrap();
        assert_eq!(tombstones.len(), 1);
        assert_eq!(tombstones[0].range, range("m", Some("q")));
        assert_eq!((inherited.tokens.len(), inherited.end), (4, Some(log.entries[5].end())));
        assert_eq!(inherited.tokens.floor_ms(), 0);
    }

    #[test]
    fn what_a_flush_made_durable_is_not_put_again() {
        let log = log();
        assert_eq!(keys(&replay(&log, 3, range("", Some("m"))).0), "c");
        let (store, inherited) = replay(&log, 6, range("", Some("m")));
        assert_eq!((keys(&store).as_str(), inherited.tokens.len()), ("", 4));
    }

    #[test]
    fn a_log_that_is_gone_takes_its_tokens_along_and_nothing_else() {
        let log = log();
        log.oplog.remove(&[PARENT]).unwrap();
        let (_, inherited) = replay(&log, 6, range("m", None));
        assert!(inherited.end.is_none());
        let seal = log.entries[5].end();
        let ancestor = ancestor(seal, LogEnd::default(), range("m", None));
        let store = MemoryStore::default();
        assert!(Inherited::of(&child(range("m", None), seal), &[ancestor], &log.oplog, &store).is_err());
    }

    #[test]
    fn a_sealed_tablet_has_its_rows_again_before_others_take_its_place() {
        let log = log();
        let staged = StagedRecord { seal: seal(), end: log.entries[5].end() };
        let mut record = child(range("", None), LogEnd::default());
        record.tablet = PARENT;
        let store = MemoryStore::default();
        apply_sealed(&record, &staged, &log.oplog, &store).unwrap();
        assert_eq!(keys(&store), "acxz");
        assert_eq!(store.load_range_tombstones(TABLE, &KeyRange::all()).unwrap().len(), 1);
        record.flushed = staged.end;
        let store = MemoryStore::default();
        apply_sealed(&record, &staged, &log.oplog, &store).unwrap();
        assert_eq!(keys(&store), "");
    }

    #[test]
    fn range_tombstones_over_the_border_are_cut_once_and_for_all() {
        let over = RangeTombstone { range: range("k", Some("q")), ts: Hlc(5) };
        let cut: Vec<KeyRange> = parts(&over, &seal()).into_iter().map(|part| part.range).collect();
        assert_eq!(cut, [range("k", Some("m")), range("m", Some("q"))]);
        for part in cut {
            assert!(parts(&RangeTombstone { range: part, ts: Hlc(5) }, &seal()).is_empty());
        }
        let mut parent = RangeTombstones::new();
        parent.insert(Bytes::from_static(b"k"), Some(Bytes::from_static(b"q")), Hlc(5));
        let mut own = RangeTombstones::new();
        add_tombstones(&mut own, &parent, &range("m", None));
        assert_eq!(own.newest_covering(b"n", Hlc::MAX), Some(Hlc(5)));
        assert_eq!(own.newest_covering(b"l", Hlc::MAX), None);
    }
}
