//! The registry's records of this server's replicas: one owner for all who change them.
//!
//! Promises, flushed positions and the coming and going of replicas are rare and never on a
//! request's way, so one lock over record and commit keeps them in order.

use crate::registry::{
    EpochSpan, Registry, RegistryBatch, RegistryError, ReplicaRecord, ReplicaState, Truncation,
};
use ebla_kernel::entry::LogEnd;
use ebla_kernel::ids::{Epoch, ReplicaId, TabletId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The records of all replicas.
pub struct Replicas {
    registry: Arc<Registry>,
    records: Mutex<BTreeMap<TabletId, ReplicaRecord>>,
    /// How many cuts were begun: a position that was noted before one says nothing after it.
    cuts: AtomicU64,
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
    pub fn new(registry: Arc<Registry>, records: BTreeMap<TabletId, ReplicaRecord>) -> Self {
        Self { registry, records: Mutex::new(records), cuts: AtomicU64::new(0) }
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
    ) -> Result<Option<ReplicaRecord>, RegistryError> {
        let mut ended = None;
        self.change(|records, touched| {
            let record = records.get_mut(&tried.tablet);
            let is_meant =
                |record: &&mut ReplicaRecord| (record.replica, record.state) == (tried.replica, tried.state);
            if let Some(record) = record.filter(is_meant) {
                record.state = ReplicaState::Active;
                record.flushed = built.end;
                record.epochs = latest(&built.epochs);
                (record.rows_estimate, record.bytes_estimate) = (built.rows, built.bytes);
                touched.push(tried.tablet);
                ended = Some(record.clone());
            }
        })?;
        Ok(ended)
    }

    /// Stores promises: nothing below them is accepted any more.
    ///
    /// # Errors
    /// When they are not durable; they must not be acted on.
    pub fn promise(&self, promises: &[(TabletId, Epoch)]) -> Result<(), RegistryError> {
        self.change(|records, touched| {
            for (tablet, epoch) in promises {
                if let Some(record) = records.get_mut(tablet) {
                    record.promised_epoch = record.promised_epoch.max(*epoch);
                    touched.push(*tablet);
                }
            }
        })
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
        self.change(|records, touched| {
            for tablet in tablets {
                if let Some(record) = records.get_mut(tablet) {
                    record.truncating = None;
                    touched.push(*tablet);
                }
            }
        })
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

    /// Marks replicas as gone: their rows are to be cleared, and they never come back.
    ///
    /// # Errors
    /// When the marks are not durable.
    pub fn tombstone(&self, tablets: &[TabletId]) -> Result<(), RegistryError> {
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
        let mut records = self.lock();
        let mut batch = RegistryBatch::new();
        for tablet in tablets {
            batch.remove_replica(*tablet);
        }
        self.registry.commit(batch)?;
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TabletId, ReplicaRecord>> {
        self.records.lock().expect("no holder of this lock panics")
    }
}

/// The terms that a record keeps: the latest, in whose logs copies may still differ.
fn latest(epochs: &[EpochSpan]) -> Vec<EpochSpan> {
    epochs[epochs.len().saturating_sub(crate::limits::EPOCHS_KEPT)..].to_vec()
}
