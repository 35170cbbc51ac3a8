//! The apply thread: rows of durable entries into the store in one batch, then visible.
//!
//! Two things come in: durable groups, of which some rows are applied at once and others are
//! held, and orders of the cores to apply what was held. Whatever waits is done together. A
//! revert that is applied removes exactly the versions that it names; what it takes back
//! within the same window is never put at all.

use super::cut::{Job, Work, version_name};
use super::held::{Held, Window};
use super::messages::Control;
use super::{Group, TabletEntries};
use crate::error::Error;
use crate::limits;
use crate::oplog::{Logged, Oplog};
use crate::store::cache::RowCache;
use crate::store::{Applied, Store, StoreError};
use crate::tablets::TabletHandle;
use crossbeam::channel::{Receiver, Select, Sender};
use ebla_kernel::entry::{Entry, LogEnd, RevertedRow};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Seq, TabletId};
use ebla_kernel::meta::TableKind;
use ebla_kernel::op::{Body, Change, Version};
use ebla_kernel::range_tombstones::RangeTombstones;
use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// What cores want done to rows.
pub enum Order {
    /// Apply everything up to here.
    Settle(Arc<TabletHandle>, Seq),
    /// Cut the log, once its durable end has come by here.
    Cut(Job),
    /// The log was cut: it ends at the first, and is applied up to the second.
    WasCut(Arc<TabletHandle>, LogEnd, LogEnd),
    /// The replica is gone.
    Forget(TabletId),
}

/// What the apply thread works with.
pub struct Apply {
    /// Where durable groups come from.
    pub durable: Receiver<Group>,
    /// Where orders come from.
    pub orders: Receiver<Order>,
    /// Where completions go.
    pub control: Sender<Control>,
    /// Where cuts go on.
    pub cuts: Sender<Work>,
    /// The rows.
    pub store: Arc<dyn Store>,
    /// Newest rows for hot reads.
    pub cache: Arc<RowCache>,
    /// The log, for what is not in memory.
    pub oplog: Arc<Oplog>,
    /// What is held of each tablet, and of which life of it.
    pub tablets: HashMap<TabletId, (u64, Held)>,
    /// Cuts whose log is not all here yet.
    pub waiting: Vec<Job>,
    /// Bytes that came in since what is held was last summed up.
    pub unsummed: usize,
}

/// A tablet, up to where it is to be applied, and the held entries on the way.
type InMemory = (Arc<TabletHandle>, Seq, Vec<Arc<Logged>>);

/// What is done together.
#[derive(Default)]
struct Round {
    groups: Vec<Group>,
    orders: Vec<Order>,
}

impl Apply {
    /// Runs until the log thread is gone.
    ///
    /// # Errors
    /// When the store or the log fails: nothing more can be said about it, the server must end.
    pub fn run(mut self) -> Result<(), Error> {
        while let Some(round) = self.wait() {
            let Round { groups, orders } = round;
            if !groups.is_empty() {
                self.unsummed += groups.iter().map(|group| group.bytes).sum::<usize>();
                self.take(&groups)?;
                let ends = groups.iter().flat_map(Group::ends).collect();
                if self.control.send(Control::Applied { groups: groups.len(), ends }).is_err() {
                    break;
                }
            }
            let settled = self.obey(orders)?;
            if !settled.is_empty() && self.control.send(Control::Settled(settled)).is_err() {
                break;
            }
            self.spill();
            self.pass_cuts_on();
        }
        Ok(())
    }

    /// Waits for whatever comes first, and takes what else is there.
    fn wait(&self) -> Option<Round> {
        let mut select = Select::new();
        let durable = select.recv(&self.durable);
        select.recv(&self.orders);
        let ready = select.select();
        let mut round = Round::default();
        if ready.index() == durable {
            round.groups.push(ready.recv(&self.durable).ok()?);
        } else {
            // The sequencer ends before the log does: its orders end first.
            match ready.recv(&self.orders) {
                Ok(order) => round.orders.push(order),
                Err(_) => round.groups.push(self.durable.recv().ok()?),
            }
        }
        for _ in 0..limits::APPLY_JOINED_MAX {
            let (group, order) = (self.durable.try_recv().ok(), self.orders.try_recv().ok());
            if group.is_none() && order.is_none() {
                break;
            }
            round.groups.extend(group);
            round.orders.extend(order);
        }
        Some(round)
    }

    fn held(&mut self, handle: &TabletHandle) -> &mut Held {
        let anew = || (handle.generation, Held::new(handle.applied_end(), handle.recovered));
        let known = self.tablets.entry(handle.id).or_insert_with(anew);
        if known.0 != handle.generation {
            *known = anew();
        }
        &mut known.1
    }

    /// Applies what of the groups is to be applied at once, holds the rest.
    fn take(&mut self, groups: &[Group]) -> Result<(), StoreError> {
        let parts: Vec<&TabletEntries> = groups.iter().flat_map(|group| &group.parts).collect();
        let mut now = Vec::with_capacity(parts.len());
        for part in &parts {
            now.push((&part.handle, self.held(&part.handle).take(&part.items)));
        }
        self.put(&now)?;
        for part in &parts {
            let held = self.held(&part.handle);
            held.done();
            publish(&part.handle, held.applied());
        }
        Ok(())
    }

    /// Does what cores ordered; gives what is settled.
    fn obey(&mut self, orders: Vec<Order>) -> Result<Vec<(TabletId, Seq)>, Error> {
        let mut windows = Vec::new();
        let mut settled = Vec::new();
        for order in orders {
            match order {
                Order::Settle(handle, upto) => {
                    settled.push((handle.id, upto));
                    match self.held(&handle).window(upto) {
                        Window::Here(entries) => windows.push((handle, upto, entries)),
                        Window::InLog(from) => self.settle_from_log(&handle, from, upto)?,
                    }
                }
                Order::Cut(job) => self.waiting.push(job),
                Order::WasCut(handle, end, applied) => {
                    self.tablets.insert(handle.id, (handle.generation, Held::new(applied, end)));
                    handle.set_applied(applied);
                }
                Order::Forget(tablet) => drop(self.tablets.remove(&tablet)),
            }
        }
        self.settle(&windows)?;
        Ok(settled)
    }

    /// Applies windows that are in memory, all in one batch.
    fn settle(&mut self, windows: &[InMemory]) -> Result<(), Error> {
        let reverted: Vec<BTreeSet<Seq>> =
            windows.iter().map(|(_, _, entries)| reverted_by(entries.iter().map(|l| &l.entry))).collect();
        let mut puts = Vec::with_capacity(windows.len());
        for ((handle, _, entries), reverted) in windows.iter().zip(&reverted) {
            let stays = |logged: &&Arc<Logged>| !reverted.contains(&logged.entry.seq());
            puts.push((handle, entries.iter().filter(stays).collect()));
        }
        self.put(&puts)?;
        for (handle, upto, entries) in windows {
            self.take_back(handle, entries.iter().map(|logged| &logged.entry))?;
            let held = self.held(handle);
            let end = entries.last().map_or(held.applied(), |last| last.entry.end());
            // Entries between the last held one and `upto` were applied at once.
            held.settled(end);
            debug_assert!(held.applied().pos.seq >= *upto, "a window in memory reaches to its end");
            publish(handle, held.applied());
        }
        Ok(())
    }

    /// Applies a window that is read from the log, in bounded batches. What a later entry of
    /// the window takes back is found first, so that nobody ever sees it.
    fn settle_from_log(&mut self, handle: &Arc<TabletHandle>, from: Seq, upto: Seq) -> Result<(), Error> {
        let mut reverted = BTreeSet::new();
        let mut batch = self.read(handle, from, upto)?;
        let is_one_batch = batch.last().is_none_or(|last| last.entry.seq() >= upto);
        reverted.extend(reverted_by(batch.iter().map(|logged| &logged.entry)));
        if !is_one_batch {
            let mut next = batch.last().map(|last| last.entry.seq().next());
            while let Some(at) = next.filter(|at| *at <= upto) {
                let entries = self.read(handle, at, upto)?;
                reverted.extend(reverted_by(entries.iter().map(|logged| &logged.entry)));
                next = entries.last().map(|last| last.entry.seq().next());
            }
        }
        while let Some(end) = batch.last().map(|last| last.entry.end()) {
            let stays = |logged: &&Logged| !reverted.contains(&logged.entry.seq());
            self.put(&[(handle, batch.iter().filter(stays).collect())])?;
            self.take_back(handle, batch.iter().map(|logged| &logged.entry))?;
            self.held(handle).settled(end);
            batch =
                if end.pos.seq < upto { self.read(handle, end.pos.seq.next(), upto)? } else { Vec::new() };
        }
        let applied = self.held(handle).applied();
        if applied.pos.seq < upto {
            let what = format!("log of tablet {}: entries after {} are gone", handle.id.0, applied.pos.seq);
            return Err(Error::Damaged { what });
        }
        publish(handle, applied);
        Ok(())
    }

    fn read(&self, handle: &TabletHandle, from: Seq, upto: Seq) -> Result<Vec<Logged>, Error> {
        let mut entries = self.oplog.read(handle.id, from, limits::REPLAY_BATCH_BYTES)?;
        entries.retain(|entry| entry.seq() <= upto);
        Ok(entries.into_iter().map(Logged::from).collect())
    }

    /// Puts the rows of entries of any number of tablets, all in one batch.
    fn put<L: Borrow<Logged>>(&self, puts: &[(&Arc<TabletHandle>, Vec<&L>)]) -> Result<(), StoreError> {
        let changes: Vec<Applied<'_>> = puts
            .iter()
            .flat_map(|(handle, entries)| {
                let table = handle.table;
                entries.iter().map(|logged| &(*logged).borrow().entry).flat_map(move |entry| {
                    entry.changes().iter().map(move |change| Applied { table, ts: entry.ts, change })
                })
            })
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        for (handle, entries) in puts.iter().filter(|(handle, _)| handle.kind == TableKind::Durable) {
            let keys = entries.iter().flat_map(|logged| keys_of(&(*logged).borrow().entry));
            self.cache.before_apply(handle.generation, keys);
        }
        self.store.apply(&changes)?;
        for (handle, entries) in puts {
            let entries = || entries.iter().map(|logged| &(*logged).borrow().entry);
            add_range_tombstones(handle, entries());
            each_put(entries(), |key, version| {
                let is_row = !matches!(version.body, Body::Tombstone(_));
                handle.size.put(is_row, key.len() + version.body.bytes());
                if version.expires_ms.is_some() {
                    handle.size.may_expire.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                if handle.kind == TableKind::Durable {
                    self.cache.after_apply(handle.generation, key, version);
                }
            });
        }
        Ok(())
    }

    /// Removes what reverts among `entries` name.
    fn take_back<'a>(
        &self,
        handle: &TabletHandle,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> Result<(), StoreError> {
        let targets = entries.flat_map(Entry::reverts);
        let rows: Vec<(Hlc, RevertedRow)> =
            targets.flat_map(|target| target.rows.iter().map(|row| (target.ts, row.clone()))).collect();
        if rows.is_empty() {
            return Ok(());
        }
        metrics::counter!("ebla_reverted_rows_total").increment(rows.len() as u64);
        remove_versions(&*self.store, &self.cache, handle, &rows)
    }

    /// Lets held entries go from memory when there are too many; the log has them.
    fn spill(&mut self) {
        if self.unsummed < limits::HELD_BYTES_MAX / 2 {
            return;
        }
        self.unsummed = 0;
        let bytes: usize = self.tablets.values().map(|(_, held)| held.bytes()).sum();
        if bytes > limits::HELD_BYTES_MAX / 2 {
            self.tablets.values_mut().for_each(|(_, held)| held.spill());
        }
    }

    /// Hands on the cuts of logs that have come by here as a whole.
    fn pass_cuts_on(&mut self) {
        for job in std::mem::take(&mut self.waiting) {
            if self.held(&job.handle).seen() >= job.last.seq {
                let _ = self.cuts.send(Work::Cut(job));
            } else {
                self.waiting.push(job);
            }
        }
    }
}

/// Removes exact versions, from the store and from what readers know beside it.
///
/// # Errors
/// As the store says.
pub(super) fn remove_versions(
    store: &dyn Store,
    cache: &RowCache,
    handle: &TabletHandle,
    rows: &[(Hlc, RevertedRow)],
) -> Result<(), StoreError> {
    let name = |(ts, row): &(Hlc, RevertedRow)| version_name(handle.table, *ts, row);
    let keys = || {
        rows.iter().filter_map(|(_, row)| match row {
            RevertedRow::Row { key } => Some(&key[..]),
            RevertedRow::Range { .. } => None,
        })
    };
    cache.before_apply(handle.generation, keys());
    store.remove(&rows.iter().map(name).collect::<Vec<_>>())?;
    keys().for_each(|key| cache.after_remove(handle.generation, key));
    if rows.iter().any(|(_, row)| matches!(row, RevertedRow::Range { .. })) {
        handle.tombstones.rcu(|known| {
            let mut left = RangeTombstones::clone(known);
            for (ts, row) in rows {
                if let RevertedRow::Range { from } = row {
                    left.remove(from, *ts);
                }
            }
            left
        });
    }
    handle.size.doubt_all();
    Ok(())
}

/// Tells readers how far a tablet is applied; nothing is published twice.
fn publish(handle: &TabletHandle, applied: LogEnd) {
    if handle.applied_seq() < applied.pos.seq {
        handle.set_applied(applied);
    }
}

/// What reverts among `entries` take back.
fn reverted_by<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeSet<Seq> {
    entries.flat_map(Entry::reverts).map(|target| target.pos.seq).collect()
}

fn keys_of(entry: &Entry) -> impl Iterator<Item = &[u8]> {
    entry.changes().iter().filter_map(|change| match change {
        Change::Put { key, .. } => Some(&key[..]),
        Change::RangeTombstone { .. } => None,
    })
}

fn each_put<'a>(entries: impl Iterator<Item = &'a Entry>, mut visit: impl FnMut(&[u8], &Version)) {
    for entry in entries {
        for change in entry.changes() {
            if let Change::Put { key, body, expires_ms } = change {
                visit(key, &Version { ts: entry.ts, body: body.clone(), expires_ms: *expires_ms });
            }
        }
    }
}

/// Publishes the range tombstones of `entries`, all at once.
fn add_range_tombstones<'a>(handle: &TabletHandle, entries: impl Iterator<Item = &'a Entry> + Clone) {
    let is_range = |change: &&Change| matches!(change, Change::RangeTombstone { .. });
    if !entries.clone().flat_map(Entry::changes).any(|change| is_range(&change)) {
        return;
    }
    handle.size.doubt_all();
    handle.tombstones.rcu(|known| {
        let mut known = RangeTombstones::clone(known);
        for entry in entries.clone() {
            for change in entry.changes().iter().filter(is_range) {
                if let Change::RangeTombstone { from, to } = change {
                    known.insert(from.clone(), to.clone(), entry.ts);
                }
            }
        }
        known
    });
}
