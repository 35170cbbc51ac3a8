//! The cut thread: takes the tail off logs that differ from their leader's.
//!
//! The order is what makes it safe to crash anywhere (`PROTOCOL.md` of the design, durability
//! with the store's own log off):
//!
//! ```text
//! intent into the registry ─▶ loss ledger ─▶ undo in the store ─▶ flush ─▶ cut the log ─▶ intent cleared
//! ```
//!
//! A start finds the intent and runs everything after it again; each step may be done twice.
//! The undo removes exactly the versions that the tail put. Many tablets are cut together:
//! one flush serves them all.

use super::apply::{Order, remove_versions};
use super::messages::Control;
use crate::clock::Clock;
use crate::error::Error;
use crate::ledger::{Ledger, LossSummary};
use crate::limits;
use crate::oplog::{Oplog, OplogError};
use crate::registry::Truncation;
use crate::replicas::Replicas;
use crate::store::cache::RowCache;
use crate::store::gc::{ReadPin, ReadPins};
use crate::store::{Store, VersionName};
use crate::tablets::TabletHandle;
use crossbeam::channel::{Receiver, Sender};
use ebla_failpoints::failpoint;
use ebla_kernel::entry::{Entry, LogEnd, Payload, RevertedRow};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Pos, ReplicaId, Seq, TableId, TabletId};
use ebla_kernel::range::KeyRange;
use ebla_kernel::tablet::truncate::Cut;
use std::sync::Arc;
use tracing::{error, info, warn};

/// A log that is to be cut.
pub struct Job {
    /// The tablet.
    pub handle: Arc<TabletHandle>,
    /// The last entry that stays.
    pub keep: LogEnd,
    /// Durable end of the log, the last entry that goes.
    pub last: Pos,
}

/// What the thread is asked for.
pub enum Work {
    /// Position, hash and timestamp of an entry.
    Locate(Arc<TabletHandle>, Seq),
    /// A cut.
    Cut(Job),
    /// The end of a log that stays as it is, because its copy has diverged, into the loss ledger.
    Enter {
        /// The tablet.
        handle: Arc<TabletHandle>,
        /// The last entry that its leader has, too.
        keep: Seq,
        /// Durable end of the log.
        last: Pos,
    },
}

/// What the cut thread works with.
pub struct Cutter {
    /// What is to be done.
    pub work: Receiver<Work>,
    /// Where completions go.
    pub control: Sender<Control>,
    /// Where the apply thread hears of them.
    pub orders: Sender<Order>,
    /// Keeps the floors of garbage collection down.
    pub pins: Arc<ReadPins>,
    /// Newest rows.
    pub cache: Arc<RowCache>,
    /// The stores.
    pub stores: CutStores,
}

/// The stores that a cut goes through.
pub struct CutStores {
    /// The log.
    pub oplog: Arc<Oplog>,
    /// The rows.
    pub store: Arc<dyn Store>,
    /// The records of replicas.
    pub replicas: Arc<Replicas>,
    /// The loss ledger.
    pub ledger: Arc<Ledger>,
}

/// A tail that goes.
struct Doomed {
    tablet: TabletId,
    table: TableId,
    replica: ReplicaId,
    keep: LogEnd,
    last: Pos,
}

/// What is known of a tail before it goes.
struct Looked {
    first: Pos,
    writes: u64,
    rows: u64,
    /// Nothing above this counts as applied afterwards.
    applied_max: Seq,
    /// The rows that are undone lie in here.
    touched: Option<KeyRange>,
}

impl Cutter {
    /// Runs until the server ends.
    ///
    /// # Errors
    /// When a store fails: the server must end.
    pub fn run(self) -> Result<(), Error> {
        while let Ok(first) = self.work.recv() {
            let (mut jobs, mut located) = (Vec::new(), Vec::new());
            for work in std::iter::once(first).chain(self.work.try_iter()) {
                match work {
                    Work::Cut(job) => jobs.push(job),
                    Work::Locate(handle, seq) => located.extend(self.locate(&handle, seq)?),
                    Work::Enter { handle, keep, last } => self.enter(&handle, keep, last),
                }
            }
            if !located.is_empty() && self.control.send(Control::Located(located)).is_err() {
                break;
            }
            if !jobs.is_empty() && !self.cut(&jobs)? {
                break;
            }
        }
        Ok(())
    }

    fn locate(&self, handle: &TabletHandle, seq: Seq) -> Result<Option<(TabletId, LogEnd)>, Error> {
        if seq == handle.base.pos.seq {
            return Ok(Some((handle.id, handle.base)));
        }
        match self.stores.oplog.read(handle.id, seq, 1) {
            Ok(entries) => Ok(entries.first().map(|entry| (handle.id, entry.end()))),
            Err(OplogError::Purged { .. }) => {
                error!(tablet = %handle.id, %seq, "a log cannot be cut where its entries are purged");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Enters what a diverged copy alone has; while that cannot be done the copy stays.
    fn enter(&self, handle: &TabletHandle, keep: Seq, last: Pos) {
        let tail = |(_, keep)| Doomed {
            tablet: handle.id,
            table: handle.table,
            replica: handle.replica,
            keep,
            last,
        };
        let found = self.locate(handle, keep).map(|located| located.map(tail));
        let entered = found.and_then(|tail| {
            let Some(tail) = tail else { return Ok(false) };
            let seen = self.stores.look(&tail)?;
            metrics::counter!("ebla_lost_entries_total").increment(last.seq.0 - keep.0);
            metrics::counter!("ebla_lost_writes_total").increment(seen.writes);
            self.stores.enter(&tail, &seen).map(|()| true)
        });
        match entered {
            Ok(true) => handle.set_entered(),
            Ok(false) => {}
            Err(error) => {
                error!(tablet = %handle.id, %error, "what a diverged copy alone has could not be noted")
            }
        }
    }

    /// Cuts logs; whether somebody still listens.
    fn cut(&self, jobs: &[Job]) -> Result<bool, Error> {
        let doomed: Vec<Doomed> = jobs.iter().map(Doomed::of).collect();
        // What is undone must not be taken for a newer version that still stands, see `store::gc`.
        let pins: Vec<_> = jobs.iter().map(|job| self.pins.pin(job.keep.ts)).collect();
        let mut looked = Vec::new();
        let mut intents = Vec::new();
        for (job, tail) in jobs.iter().zip(&doomed) {
            let seen = self.stores.look(tail)?;
            let flushed =
                self.stores.lower(tail.tablet, self.stores.replicas.flushed_end(tail.tablet), &seen)?;
            let applied = self.stores.lower(tail.tablet, job.handle.applied_end(), &seen)?;
            intents.push((tail.tablet, Truncation { keep: tail.keep, last: tail.last }, flushed));
            looked.push((seen, applied));
        }
        self.stores.replicas.begin_cuts(&intents)?;
        for ((job, tail), (seen, _)) in jobs.iter().zip(&doomed).zip(&looked) {
            info!(
                tablet = %tail.tablet, keep = %tail.keep.pos, last = %tail.last, writes = seen.writes,
                "cutting the end of a log that its leader does not have"
            );
            metrics::counter!("ebla_lost_entries_total").increment(tail.last.seq.0 - tail.keep.pos.seq.0);
            metrics::counter!("ebla_lost_writes_total").increment(seen.writes);
            self.stores.enter(tail, seen)?;
            self.stores.undo(tail, |rows| {
                remove_versions(&*self.stores.store, &self.cache, &job.handle, rows).map_err(Error::from)
            })?;
        }
        self.stores.finish(&doomed)?;
        let mut done = Vec::new();
        for ((job, tail), (_, applied)) in jobs.iter().zip(&doomed).zip(&looked) {
            job.handle.tail.cut_from(tail.keep.pos.seq.next());
            let told = self.orders.send(Order::WasCut(Arc::clone(&job.handle), tail.keep, *applied));
            if told.is_err() {
                return Ok(false);
            }
            done.push((tail.tablet, tail.keep, applied.pos.seq));
        }
        let listens = self.control.send(Control::Truncated(done)).is_ok();
        let touched =
            doomed.iter().zip(looked).filter_map(|(tail, (seen, _))| Some((tail.table, seen.touched?)));
        self.compact(touched.collect(), pins);
        Ok(listens)
    }

    /// Clears the files of what was undone, beside everything else, and then lets floors pass.
    fn compact(&self, ranges: Vec<(TableId, KeyRange)>, pins: Vec<ReadPin>) {
        let store = Arc::clone(&self.stores.store);
        let work = move || {
            for (table, range) in ranges {
                store.compact(table, &range);
            }
            drop(pins);
        };
        let builder = std::thread::Builder::new().name("ebla-compact".to_owned());
        drop(builder.spawn(work).expect("the system gives a thread"));
    }
}

/// Ends cuts that a crash cut short, before anything is read or served.
///
/// # Errors
/// When a store fails.
pub fn finish(stores: &CutStores) -> Result<(), Error> {
    let mut doomed = Vec::new();
    let mut touched = Vec::new();
    for record in stores.replicas.all() {
        let Some(Truncation { keep, last }) = record.truncating else { continue };
        let tail = Doomed { tablet: record.tablet, table: record.table, replica: record.replica, keep, last };
        if stores.oplog.bounds(tail.tablet).is_some_and(|(_, end)| end > keep.pos.seq) {
            warn!(tablet = %tail.tablet, keep = %keep.pos, "ending a cut that a crash cut short");
            let seen = stores.look(&tail)?;
            stores.enter(&tail, &seen)?;
            stores.undo(&tail, |rows| {
                let name = |(ts, row): &(Hlc, RevertedRow)| version_name(tail.table, *ts, row);
                stores.store.remove(&rows.iter().map(name).collect::<Vec<_>>()).map_err(Error::from)
            })?;
            touched.extend(seen.touched.map(|range| (tail.table, range)));
        }
        doomed.push(tail);
    }
    if doomed.is_empty() {
        return Ok(());
    }
    stores.finish(&doomed)?;
    // No floor is published yet.
    for (table, range) in touched {
        stores.store.compact(table, &range);
    }
    Ok(())
}

impl Doomed {
    fn of(job: &Job) -> Self {
        let Job { handle, keep, last } = job;
        Self { tablet: handle.id, table: handle.table, replica: handle.replica, keep: *keep, last: *last }
    }
}

impl CutStores {
    /// Walks the entries that go, oldest first, in bounded batches.
    fn tail(&self, doomed: &Doomed) -> impl FnMut() -> Result<Vec<Entry>, Error> {
        let mut next = doomed.keep.pos.seq.next();
        let (tablet, last) = (doomed.tablet, doomed.last.seq);
        move || {
            if next > last {
                return Ok(Vec::new());
            }
            let entries = self.oplog.read(tablet, next, limits::REPLAY_BATCH_BYTES)?;
            next = entries.last().map_or(last.next(), |entry| entry.seq().next());
            Ok(entries)
        }
    }

    fn look(&self, doomed: &Doomed) -> Result<Looked, Error> {
        let keep = doomed.keep.pos.seq;
        let mut looked = Looked { first: doomed.last, writes: 0, rows: 0, applied_max: keep, touched: None };
        let mut tail = self.tail(doomed);
        let mut is_first = true;
        loop {
            let entries = tail()?;
            let Some(first) = entries.first() else { return Ok(looked) };
            if std::mem::take(&mut is_first) {
                looked.first = first.pos;
            }
            looked.applied_max = looked.applied_max.min(Cut::of(&entries).applied_max);
            for entry in &entries {
                looked.writes += u64::from(matches!(entry.payload, Payload::Write(_)));
                looked.rows += entry.changes().len() as u64;
                for change in entry.changes() {
                    looked.touch(&RevertedRow::of(change));
                }
            }
        }
    }

    /// `end`, or the entry below it down to which rows are still good.
    fn lower(&self, tablet: TabletId, end: LogEnd, looked: &Looked) -> Result<LogEnd, Error> {
        if end.pos.seq <= looked.applied_max {
            return Ok(end);
        }
        let base = self.replicas.base(tablet);
        if looked.applied_max == base.pos.seq {
            return Ok(base);
        }
        let entry = self.oplog.read(tablet, looked.applied_max, 1)?.into_iter().next();
        let what = || format!("log of tablet {}: entry {} is gone", tablet.0, looked.applied_max);
        entry.map(|entry| entry.end()).ok_or_else(|| Error::Damaged { what: what() })
    }

    fn enter(&self, doomed: &Doomed, looked: &Looked) -> Result<(), Error> {
        if looked.writes == 0 {
            return Ok(());
        }
        failpoint!("cut.ledger");
        let summary = LossSummary {
            tablet: doomed.tablet,
            table: doomed.table,
            replica: doomed.replica,
            first: looked.first,
            last: doomed.last,
            writes: looked.writes,
            rows: looked.rows,
            time_ms: Clock::wall_ms(),
        };
        self.ledger.record(summary, self.tail(doomed)).map(drop)
    }

    fn undo(
        &self,
        doomed: &Doomed,
        mut remove: impl FnMut(&[(Hlc, RevertedRow)]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut tail = self.tail(doomed);
        failpoint!("cut.undo");
        loop {
            let entries = tail()?;
            if entries.is_empty() {
                return Ok(());
            }
            Cut::of(&entries).undo.chunks(limits::UNDO_BATCH_VERSIONS).try_for_each(&mut remove)?;
        }
    }

    /// Makes the undo durable, then cuts, then clears the intents.
    fn finish(&self, doomed: &[Doomed]) -> Result<(), Error> {
        failpoint!("cut.flush");
        self.store.flush()?;
        failpoint!("cut.log");
        for tail in doomed {
            self.oplog.cut_after(tail.tablet, tail.keep.pos.seq)?;
        }
        let tablets: Vec<TabletId> = doomed.iter().map(|tail| tail.tablet).collect();
        Ok(self.replicas.end_cuts(&tablets)?)
    }
}

impl Looked {
    /// Widens the range of touched rows by one.
    fn touch(&mut self, row: &RevertedRow) {
        let RevertedRow::Row { key } = row else { return };
        let above = [&key[..], &[0]].concat().into();
        let range = match &self.touched {
            None => KeyRange::new(key.clone(), Some(above)),
            Some(touched) => {
                let start = touched.start().min(key).clone();
                KeyRange::new(start, touched.end().map(|end| end.clone().max(above)))
            }
        };
        self.touched = range.ok();
    }
}

/// The name of a version that is removed.
pub(super) fn version_name(table: TableId, ts: Hlc, row: &RevertedRow) -> VersionName {
    match row {
        RevertedRow::Row { key } => VersionName::Row { table, key: key.clone(), ts },
        RevertedRow::Range { from } => VersionName::RangeTombstone { table, from: from.clone(), ts },
    }
}
