//! The registry's records of this server's replicas: one owner for all who change them.
//!
//! Promises, flushed positions and the coming and going of replicas are rare and never on a
//! request's way, so one lock over record and commit keeps them in order.

use crate::registry::{
    Built, EpochSpan, Registry, RegistryBatch, RegistryContent, RegistryError, ReplicaRecord, ReplicaState,
    RetiredRecord, StagedRecord, Truncation,
};
use ebla_failpoints::failpoint;
use ebla_kernel::entry::LogEnd;
use ebla_kernel::ids::{Epoch, ReplicaId, TabletId};
use ebla_kernel::meta::TableKind;
use ebla_kernel::range::KeyRange;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The records of all replicas.
pub struct Replicas {
    registry: Arc<Registry>,
    records: Mutex<BTreeMap<TabletId, ReplicaRecord>>,
    /// Sealed tablets and retired ones. Locked after `records`, where both are.
    succession: Mutex<Succession>,
    /// How many cuts were begun: a position that was noted before one says nothing after it.
    cuts: AtomicU64,
}

/// What has to do with tablets whose place others take.
#[derive(Default)]
struct Succession {
    staged: BTreeMap<TabletId, StagedRecord>,
    retired: BTreeMap<TabletId, RetiredRecord>,
}

/// Tablets whose place others take here.
pub struct Switch {
    /// The tablets and their seals.
    pub parents: Vec<(TabletId, LogEnd)>,
    /// The records of those that take their place.
    pub children: Vec<ReplicaRecord>,
}

/// A retired tablet whose log a replica goes on from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ancestor {
    /// Its record.
    pub retired: RetiredRecord,
    /// The keys that came from it to the replica, disjoint; none when only its tokens did. Not all
    /// that both hold: part of them may have come back another way, as a copy of newer rows.
    pub ranges: Vec<KeyRange>,
}

/// What a flush made durable of one tablet.
pub struct Flushed {
    /// The tablet.
    pub tablet: TabletId,
    /// Its copy.
    pub replica: ReplicaId,
    /// Everything up to here is on disk.
    pub end: LogEnd,
    /// The terms of its log up to there, rising.
    pub epochs: Vec<EpochSpan>,
    /// Live rows, about.
    pub rows: u64,
    /// Their bytes, about.
    pub bytes: u64,
}

impl Replicas {
    /// The records as they were found at start.
    #[must_use]
    pub fn new(registry: Arc<Registry>, content: RegistryContent) -> Self {
        let RegistryContent { replicas, staged, retired, .. } = content;
        let (records, succession) = (Mutex::new(replicas), Mutex::new(Succession { staged, retired }));
        Self { registry, records, succession, cuts: AtomicU64::new(0) }
    }

    /// What is staged for a sealed tablet.
    #[must_use]
    pub fn staged(&self, tablet: TabletId) -> Option<StagedRecord> {
        self.succession().staged.get(&tablet).cloned()
    }

    /// The retired tablets whose logs the log of `record` goes on from, each before those that
    /// took its place.
    #[must_use]
    pub fn ancestors(&self, record: &ReplicaRecord) -> Vec<Ancestor> {
        let succession = self.succession();
        let mut ancestors: BTreeMap<TabletId, Ancestor> = BTreeMap::new();
        let mut open: BTreeMap<TabletId, Vec<KeyRange>> = BTreeMap::new();
        for parent in &record.parents {
            open.insert(*parent, vec![record.range.clone()]);
        }
        // Ids rise from parents to children: whoever has the highest has got all that it can.
        while let Some((tablet, ranges)) = open.pop_last() {
            let Some(retired) = succession.retired.get(&tablet).cloned() else { continue };
            let own: Vec<KeyRange> =
                ranges.iter().filter_map(|range| range.intersect(&retired.range)).collect();
            // Its tokens came even where its keys did not.
            for parent in retired.parents.iter().filter(|parent| **parent < tablet) {
                open.entry(*parent).or_default().extend(own.iter().cloned());
            }
            ancestors.insert(tablet, Ancestor { retired, ranges: own });
        }
        ancestors.into_values().collect()
    }

    /// Retired tablets.
    #[must_use]
    pub fn retired(&self) -> Vec<RetiredRecord> {
        self.succession().retired.values().cloned().collect()
    }

    /// How many tablets are staged and retired, and how many copies are being built, cut or
    /// removed.
    #[must_use]
    pub fn unfinished(&self) -> (usize, usize, usize) {
        let is_under_way =
            |record: &&ReplicaRecord| record.state != ReplicaState::Active || record.truncating.is_some();
        let (records, succession) = (self.lock(), self.succession());
        let under_way = records.values().filter(is_under_way).count();
        (succession.staged.len(), succession.retired.len(), under_way)
    }

    /// Retired tablets that no replica here goes on from any more.
    #[must_use]
    pub fn retired_without_heirs(&self) -> Vec<TabletId> {
        let records = self.lock();
        let active = records.values().filter(|record| record.state == ReplicaState::Active);
        let needed: BTreeSet<TabletId> = active
            .flat_map(|record| self.ancestors(record))
            .map(|ancestor| ancestor.retired.tablet)
            .collect();
        let retired = self.retired().into_iter().map(|retired| retired.tablet);
        retired.filter(|tablet| !needed.contains(tablet)).collect()
    }

    /// Stores what is staged for sealed tablets, or that nothing is any more.
    ///
    /// # Errors
    /// When it is not durable; then no copy is ready.
    pub fn stage(&self, changes: &[(TabletId, Option<StagedRecord>)]) -> Result<(), RegistryError> {
        let records = self.lock();
        let is_on_disk =
            |tablet: TabletId| records.get(&tablet).is_some_and(|record| record.kind == TableKind::Durable);
        let stored: Vec<_> = changes.iter().filter(|(tablet, _)| is_on_disk(*tablet)).collect();
        drop(records);
        let mut succession = self.succession();
        let mut batch = RegistryBatch::new();
        for (tablet, staged) in stored {
            match staged {
                Some(staged) => batch.put_staged(*tablet, staged),
                None => batch.remove_staged(*tablet),
            };
        }
        failpoint!("split.stage");
        self.registry.commit(batch)?;
        failpoint!("split.staged");
        for (tablet, staged) in changes {
            match staged {
                Some(staged) => drop(succession.staged.insert(*tablet, staged.clone())),
                None => drop(succession.staged.remove(tablet)),
            }
        }
        Ok(())
    }

    /// Lets others take the place of tablets: all in one batch (m30).
    ///
    /// # Errors
    /// When it is not durable; then everything is as it was.
    pub fn switch(&self, switch: Switch) -> Result<(), RegistryError> {
        let (mut records, mut succession) = (self.lock(), self.succession());
        let retired = |(tablet, seal): &(TabletId, LogEnd)| {
            let ReplicaRecord { kind, range, flushed, parents, built, .. } = records.get(tablet)?.clone();
            Some(RetiredRecord { tablet: *tablet, kind, range, seal: *seal, flushed, parents, built })
        };
        let retired: Vec<RetiredRecord> = switch.parents.iter().filter_map(retired).collect();
        if retired.len() < switch.parents.len() {
            return Ok(()); // a parent is no longer here: the children are not made of it
        }
        let mut batch = RegistryBatch::new();
        for parent in &retired {
            if parent.kind == TableKind::Durable {
                batch.remove_replica(parent.tablet).remove_staged(parent.tablet).put_retired(parent);
            }
        }
        for child in &switch.children {
            batch.put_replica(child);
        }
        failpoint!("split.switch");
        self.registry.commit(batch)?;
        failpoint!("split.switched");
        for parent in retired {
            records.remove(&parent.tablet);
            succession.staged.remove(&parent.tablet);
            succession.retired.insert(parent.tablet, parent);
        }
        records.extend(switch.children.into_iter().map(|child| (child.tablet, child)));
        Ok(())
    }

    /// Forgets retired tablets whose logs are gone.
    ///
    /// # Errors
    /// When that is not durable; they are forgotten later.
    pub fn forget_retired(&self, tablets: &[TabletId]) -> Result<(), RegistryError> {
        let mut succession = self.succession();
        let mut batch = RegistryBatch::new();
        let is_stored = |tablet: &&TabletId| {
            succession.retired.get(tablet).is_some_and(|retired| retired.kind == TableKind::Durable)
        };
        for tablet in tablets.iter().filter(is_stored) {
            batch.remove_retired(*tablet);
        }
        failpoint!("retired.forget");
        self.registry.commit(batch)?;
        failpoint!("retired.forgotten");
        succession.retired.retain(|tablet, _| !tablets.contains(tablet));
        Ok(())
    }

    /// Notes that the rows of retired tablets are durable. Called before `flushed` when one
    /// flush has served both: a child never counts as flushed beyond its base before its parent
    /// is.
    ///
    /// # Errors
    /// When it is not stored; nothing may be let go on the strength of it.
    pub fn retired_flushed(&self, tablets: &[TabletId]) -> Result<(), RegistryError> {
        let mut succession = self.succession();
        let mut changed = Vec::new();
        for retired in tablets.iter().filter_map(|tablet| succession.retired.get(tablet)) {
            changed.push(RetiredRecord { flushed: retired.seal, ..retired.clone() });
        }
        if changed.is_empty() {
            return Ok(());
        }
        failpoint!("retired.flushed");
        let mut batch = RegistryBatch::new();
        for retired in &changed {
            batch.put_retired(retired);
        }
        self.registry.commit(batch)?;
        succession.retired.extend(changed.into_iter().map(|retired| (retired.tablet, retired)));
        Ok(())
    }

    /// All records, tombstoned ones too.
    #[must_use]
    pub fn all(&self) -> Vec<ReplicaRecord> {
        self.lock().values().cloned().collect()
    }

    /// Adds records, or replaces them.
    ///
    /// # Errors
    /// When they are not durable.
    pub fn put(&self, new: Vec<ReplicaRecord>) -> Result<(), RegistryError> {
        self.change(|records, touched| {
            for record in new {
                touched.push(record.tablet);
                records.insert(record.tablet, record);
            }
        })
    }

    /// The tablets whose records `wanted` picks.
    #[must_use]
    pub fn pick(&self, wanted: impl Fn(&ReplicaRecord) -> bool) -> Vec<TabletId> {
        self.lock().values().filter(|record| wanted(record)).map(|record| record.tablet).collect()
    }

    /// The record of a tablet's copy here.
    #[must_use]
    pub fn get(&self, tablet: TabletId) -> Option<ReplicaRecord> {
        self.lock().get(&tablet).cloned()
    }

    /// Notes that a copy is built: its rows and its log are those of the source up to `end`.
    /// None when the record is no longer that of this try.
    ///
    /// # Errors
    /// When that is not durable; then it is built again.
    pub fn end_bootstrap(
        &self,
        tried: &ReplicaRecord,
        built: &Flushed,
        tokens_from_ms: u64,
    ) -> Result<Option<ReplicaRecord>, RegistryError> {
        failpoint!("bootstrap.whole");
        let mut ended = None;
        self.change(|records, touched| {
            let record = records.get_mut(&tried.tablet);
            let is_meant =
                |record: &&mut ReplicaRecord| (record.replica, record.state) == (tried.replica, tried.state);
            if let Some(record) = record.filter(is_meant) {
                record.state = ReplicaState::Active;
                record.flushed = built.end;
                record.built = Some(Built { at: built.end.pos, tokens_from_ms });
                record.epochs = latest(&built.epochs);
                (record.rows_estimate, record.bytes_estimate) = (built.rows, built.bytes);
                touched.push(tried.tablet);
                ended = Some(record.clone());
            }
        })?;
        failpoint!("bootstrap.done");
        Ok(ended)
    }

    /// Notes what a copy holds that was filled from a backup.
    ///
    /// # Errors
    /// When that is not durable.
    pub fn sized(
        &self,
        (tablet, replica): (TabletId, ReplicaId),
        rows: u64,
        bytes: u64,
    ) -> Result<(), RegistryError> {
        self.change(|records, touched| {
            if let Some(record) = records.get_mut(&tablet).filter(|record| record.replica == replica) {
                (record.rows_estimate, record.bytes_estimate) = (rows, bytes);
                touched.push(tablet);
            }
        })
    }

    /// Stores promises: nothing below them is accepted any more.
    ///
    /// # Errors
    /// When they are not durable; they must not be acted on.
    pub fn promise(&self, promises: &[(TabletId, Epoch)]) -> Result<(), RegistryError> {
        failpoint!("promise.record");
        self.change(|records, touched| {
            for (tablet, epoch) in promises {
                if let Some(record) = records.get_mut(tablet) {
                    record.promised_epoch = record.promised_epoch.max(*epoch);
                    touched.push(*tablet);
                }
            }
        })?;
        failpoint!("promise.recorded");
        Ok(())
    }

    /// How many cuts were begun so far; asked before positions are noted for `flushed`.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    /// Stores what a flush that has returned made durable. Whether it was: when a log was cut
    /// since `cuts` was asked for, it must be noted anew.
    ///
    /// # Errors
    /// When it is not stored; nothing may be purged on the strength of it.
    pub fn flushed(&self, cuts: u64, flushed: &[Flushed]) -> Result<bool, RegistryError> {
        if self.cuts() != cuts {
            return Ok(false);
        }
        failpoint!("flush.record");
        let stored = self.change(|records, touched| {
            for Flushed { tablet, replica, end, epochs, rows, bytes } in flushed {
                // A cut that is under way has lowered the position; another copy of the tablet
                // may have taken the place of the one that was flushed.
                let is_meant = |record: &&mut ReplicaRecord| {
                    record.truncating.is_none()
                        && record.replica == *replica
                        && record.state == ReplicaState::Active
                };
                let record = records.get_mut(tablet).filter(is_meant);
                if let Some(record) = record.filter(|_| self.cuts() == cuts) {
                    record.epochs = latest(epochs);
                    record.flushed = *end;
                    record.rows_estimate = *rows;
                    record.bytes_estimate = *bytes;
                    touched.push(*tablet);
                }
            }
        });
        stored.map(|()| self.cuts() == cuts)
    }

    /// Notes cuts before anything of them is done: the last entry that stays, how far its rows
    /// are still good, the last entry that goes.
    ///
    /// # Errors
    /// When that is not durable; then nothing may be cut.
    pub fn begin_cuts(&self, cuts: &[(TabletId, Truncation, LogEnd)]) -> Result<(), RegistryError> {
        failpoint!("cut.note");
        self.cuts.fetch_add(1, Ordering::AcqRel);
        self.change(|records, touched| {
            for (tablet, truncation, applied) in cuts {
                if let Some(record) = records.get_mut(tablet) {
                    record.truncating = Some(*truncation);
                    if applied.pos.seq < record.flushed.pos.seq {
                        record.flushed = *applied;
                    }
                    record.epochs.retain(|span| span.first <= truncation.keep.pos.seq);
                    touched.push(*tablet);
                }
            }
        })
    }

    /// Notes that cuts are over.
    ///
    /// # Errors
    /// When that is not durable; they run again at the next start.
    pub fn end_cuts(&self, tablets: &[TabletId]) -> Result<(), RegistryError> {
        failpoint!("cut.clear");
        self.change(|records, touched| {
            for tablet in tablets {
                if let Some(record) = records.get_mut(tablet) {
                    record.truncating = None;
                    touched.push(*tablet);
                }
            }
        })?;
        failpoint!("cut.done");
        Ok(())
    }

    /// How far the rows of a tablet are durable, as last recorded.
    #[must_use]
    pub fn flushed_end(&self, tablet: TabletId) -> LogEnd {
        self.lock().get(&tablet).map(|record| record.flushed).unwrap_or_default()
    }

    /// Stores the longest lease that was ever promised here (m21).
    ///
    /// # Errors
    /// When it is not durable; then nothing may be promised.
    pub fn promise_lease(&self, lease_ms: u64) -> Result<(), RegistryError> {
        let mut batch = RegistryBatch::new();
        batch.set_lease_ms_max(lease_ms);
        self.registry.commit(batch)
    }

    /// The end of the parent's log that a tablet's own goes on from.
    #[must_use]
    pub fn base(&self, tablet: TabletId) -> LogEnd {
        self.lock().get(&tablet).map(|record| record.base).unwrap_or_default()
    }

    /// Marks replicas as gone: their rows are to be cleared, and they never come back.
    ///
    /// # Errors
    /// When the marks are not durable.
    pub fn tombstone(&self, tablets: &[TabletId]) -> Result<(), RegistryError> {
        failpoint!("remove.tombstone");
        self.change(|records, touched| {
            for tablet in tablets {
                if let Some(record) = records.get_mut(tablet) {
                    record.state = ReplicaState::Tombstoned;
                    touched.push(*tablet);
                }
            }
        })
    }

    /// Forgets replicas whose rows are cleared.
    ///
    /// # Errors
    /// When that is not durable; they are cleared again at the next start.
    pub fn forget(&self, tablets: &[TabletId]) -> Result<(), RegistryError> {
        let (mut records, mut succession) = (self.lock(), self.succession());
        let mut batch = RegistryBatch::new();
        let is_stored =
            |tablet: &&TabletId| records.get(tablet).is_none_or(|record| record.kind == TableKind::Durable);
        for tablet in tablets.iter().filter(is_stored) {
            batch.remove_replica(*tablet).remove_staged(*tablet);
        }
        failpoint!("remove.forget");
        self.registry.commit(batch)?;
        failpoint!("remove.forgotten");
        succession.staged.retain(|tablet, _| !tablets.contains(tablet));
        records.retain(|tablet, _| !tablets.contains(tablet));
        Ok(())
    }

    /// Changes a copy, makes it durable, and only then takes it for true.
    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<TabletId, ReplicaRecord>, &mut Vec<TabletId>),
    ) -> Result<(), RegistryError> {
        let mut records = self.lock();
        let mut changed = records.clone();
        let mut touched = Vec::new();
        change(&mut changed, &mut touched);
        let mut batch = RegistryBatch::new();
        for record in touched.iter().filter_map(|tablet| changed.get(tablet)) {
            batch.put_replica(record);
        }
        if !batch.is_empty() {
            self.registry.commit(batch)?;
        }
        *records = changed;
        Ok(())
    }

    fn succession(&self) -> MutexGuard<'_, Succession> {
        self.succession.lock().expect("no holder of this lock panics")
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TabletId, ReplicaRecord>> {
        self.records.lock().expect("no holder of this lock panics")
    }
}

/// The terms that a record keeps: the latest, in whose logs copies may still differ.
fn latest(epochs: &[EpochSpan]) -> Vec<EpochSpan> {
    epochs[epochs.len().saturating_sub(crate::limits::EPOCHS_KEPT)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use ebla_kernel::ids::TableId;

    fn range(from: &'static str, to: &'static str) -> KeyRange {
        let bytes = |key: &'static str| Bytes::from_static(key.as_bytes());
        KeyRange::new(bytes(from), Some(to).filter(|to| !to.is_empty()).map(bytes)).unwrap()
    }

    fn retired(tablet: u64, range: KeyRange, parents: &[u64]) -> RetiredRecord {
        let (seal, flushed) = (LogEnd::default(), LogEnd::default());
        let parents = parents.iter().copied().map(TabletId).collect();
        let kind = TableKind::Durable;
        RetiredRecord { tablet: TabletId(tablet), kind, range, seal, flushed, parents, built: None }
    }

    fn record(tablet: u64, range: KeyRange, parents: &[u64]) -> ReplicaRecord {
        ReplicaRecord {
            range,
            parents: parents.iter().copied().map(TabletId).collect(),
            ..ReplicaRecord::blank(TabletId(tablet), TableId(1), ReplicaId(tablet))
        }
    }

    /// Tablet 1 was split into 2 and 3, these were merged into 4, that was split into 5 and 6.
    #[test]
    fn an_ancestor_is_read_once_for_the_keys_that_came_from_it_here() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, mut content) = Registry::open(dir.path()).unwrap();
        // The copy of 3 had gone and came back as a copy: here it is made of nothing.
        let known = [
            retired(1, range("", ""), &[]),
            retired(2, range("", "m"), &[1]),
            retired(3, range("m", ""), &[]),
            retired(4, range("", ""), &[2, 3]),
        ];
        content.retired = known.into_iter().map(|retired| (retired.tablet, retired)).collect();
        content.replicas.insert(TabletId(5), record(5, range("", "t"), &[4]));
        let replicas = Replicas::new(Arc::new(registry), content);
        let ancestors = |record: &ReplicaRecord| -> Vec<(u64, Vec<KeyRange>)> {
            replicas.ancestors(record).into_iter().map(|it| (it.retired.tablet.0, it.ranges)).collect()
        };
        let low = ancestors(&replicas.get(TabletId(5)).unwrap());
        let wanted = [
            (1, vec![range("", "m")]),
            (2, vec![range("", "m")]),
            (3, vec![range("m", "t")]),
            (4, vec![range("", "t")]),
        ];
        assert_eq!(low, wanted);
        let high = ancestors(&record(6, range("t", ""), &[4]));
        // Tokens are those of all of them.
        let (none, own) = (Vec::new(), vec![range("t", "")]);
        assert_eq!(high, [(1, none.clone()), (2, none), (3, own.clone()), (4, own)]);
        assert!(replicas.retired_without_heirs().is_empty());
    }

    #[test]
    fn all_parents_are_retired_with_the_same_batch_or_none_is() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, mut content) = Registry::open(dir.path()).unwrap();
        for parent in [record(1, range("", "m"), &[]), record(2, range("m", ""), &[])] {
            content.replicas.insert(parent.tablet, parent);
        }
        let replicas = Replicas::new(Arc::new(registry), content);
        let switch = |parents: &[u64]| Switch {
            parents: parents.iter().map(|parent| (TabletId(*parent), LogEnd::default())).collect(),
            children: vec![record(3, range("", ""), parents)],
        };
        replicas.switch(switch(&[1, 9])).unwrap();
        assert!(replicas.get(TabletId(1)).is_some() && replicas.get(TabletId(3)).is_none());
        replicas.switch(switch(&[1, 2])).unwrap();
        assert!(replicas.get(TabletId(1)).is_none() && replicas.get(TabletId(2)).is_none());
        let child = replicas.get(TabletId(3)).unwrap();
        let ancestors: Vec<u64> =
            replicas.ancestors(&child).iter().map(|ancestor| ancestor.retired.tablet.0).collect();
        assert_eq!(ancestors, [1, 2]);
    }
}
