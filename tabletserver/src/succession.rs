//! Tablets whose place others take: what is done here at each step, and what a start makes of it.
//!
//! ```text
//! seal at or below Q ─▶ range tombstones cut, children in the registry ─▶ ready
//! committed ─▶ the core gives up ─▶ one registry batch: retired, children ─▶ the children serve
//! restart ─▶ rows of retired logs that no flush made durable, tokens ─▶ the children's own logs
//! a flush after the switch, and the token window ─▶ the retired log goes
//! ```
//!
//! No row is copied or moved: the children read the rows where their parent has put them.

use crate::error::Error;
use crate::limits;
use crate::oplog::Oplog;
use crate::registry::{ReplicaRecord, RetiredRecord, StagedRecord};
use crate::replicas::Replicas;
use crate::store::{Applied, Store, StoreError, VersionName};
use crate::tablets::TabletHandle;
use bytes::Bytes;
use ebla_kernel::entry::{Entry, LogEnd, RevertedRow, SealRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Attempt, Seq, TableId, TabletId};
use ebla_kernel::limits::TOKEN_CLOCK_SLACK_MS;
use ebla_kernel::op::Change;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::{RangeTombstone, RangeTombstones};
use ebla_kernel::tablet::token::TokenTable;
use std::collections::BTreeSet;
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
    let known = handle.tombstones.load();
    let parts: Vec<RangeTombstone> = known.iter().flat_map(|tombstone| parts(&tombstone, seal)).collect();
    if parts.is_empty() {
        return Ok(());
    }
    let change = |part: &RangeTombstone| Change::RangeTombstone {
        from: part.range.start().clone(),
        to: part.range.end().cloned(),
    };
    let changes: Vec<Change> = parts.iter().map(change).collect();
    let applied = |(part, change): (&RangeTombstone, _)| Applied { table: handle.table, ts: part.ts, change };
    let rows: Vec<Applied<'_>> = parts.iter().zip(&changes).map(applied).collect();
    store.apply(&rows)?;
    handle.tombstones.rcu(|known| {
        let mut known = RangeTombstones::clone(known);
        for part in &parts {
            known.insert(part.range.start().clone(), part.range.end().cloned(), part.ts);
        }
        known
    });
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

/// The range tombstones of a child, out of those of its parent.
#[must_use]
pub fn tombstones_of(parent: &RangeTombstones, range: &KeyRange) -> RangeTombstones {
    let mut own = RangeTombstones::new();
    for tombstone in parent.overlapping(range) {
        if let Some(part) = tombstone.range.intersect(range) {
            own.insert(part.start().clone(), part.end().cloned(), tombstone.ts);
        }
    }
    own
}

/// What a replica has from the tablets that it was made of.
#[derive(Default)]
pub struct Inherited {
    /// Their tokens.
    pub tokens: TokenTable,
    /// The last seal; none when their logs are gone.
    pub end: Option<LogEnd>,
}

impl Inherited {
    /// Reads the log of a retired tablet: tokens out of all of it, and the rows of `record` that
    /// no flush has made durable into the store.
    ///
    /// # Errors
    /// When a store fails, or the log is damaged.
    pub fn replay(
        &mut self,
        record: &ReplicaRecord,
        retired: &RetiredRecord,
        oplog: &Oplog,
        store: &dyn Store,
    ) -> Result<(), Error> {
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
                self.tokens = TokenTable::complete_from(entry.ts.ms() + TOKEN_CLOCK_SLACK_MS + 1);
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
            each(oplog, retired, from, |entry| put(record, entry, &reverted, store).map_err(Error::from))?;
        }
        Ok(())
    }
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

/// Puts what of an entry lies in the range of `record`, and takes back what it takes back.
fn put(
    record: &ReplicaRecord,
    entry: &Entry,
    reverted: &BTreeSet<Seq>,
    store: &dyn Store,
) -> Result<(), StoreError> {
    let table = record.table;
    let names = entry
        .reverts()
        .iter()
        .flat_map(|target| target.rows.iter().filter_map(|row| name(table, target.ts, row, &record.range)));
    let names: Vec<VersionName> = names.collect();
    if !names.is_empty() {
        store.remove(&names)?;
    }
    if reverted.contains(&entry.seq()) {
        return Ok(());
    }
    let own: Vec<Change> = entry.changes().iter().filter_map(|change| clip(change, &record.range)).collect();
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
