//! Reading rows: the row cache first, then the store, with range tombstones counted in.

use crate::clock::Clock;
use crate::limits;
use crate::store::cache::RowCache;
use crate::store::scan::{Order, PageLimits, Projection, ScanSpec, scan_page};
use crate::store::{Store, StoreError};
use crate::tablets::TabletHandle;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::limits::DELETE_RANGE_EXPANDED_ROWS_MAX;
use ebla_kernel::meta::TableKind;
use ebla_kernel::op::{Action, Op, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::sequence::{Evidence, RangeEvidence};
use std::sync::Arc;

/// The reading side of the stores.
#[derive(Clone)]
pub struct Reader {
    /// The rows.
    pub store: Arc<dyn Store>,
    /// Newest rows of hot keys.
    pub cache: Arc<RowCache>,
    /// Tells which rows have expired.
    pub clock: Arc<Clock>,
}

impl Reader {
    /// The newest version of `key`, whatever it says; none when a range tombstone hides it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn newest(&self, tablet: &TabletHandle, key: &[u8]) -> Result<Option<Version>, StoreError> {
        if tablet.kind == TableKind::Memory {
            // The store is as fast as the cache, and one lookup instead of two.
            return self.at(tablet, key, Hlc::MAX);
        }
        if let Some(version) = self.cache.get(tablet.generation, key) {
            return Ok(tablet.uncovered(key, Some(version), Hlc::MAX));
        }
        let stamp = self.cache.begin_fill(tablet.generation, key);
        let version = self.store.get(tablet.table, key, Hlc::MAX)?;
        if let Some(version) = &version {
            self.cache.fill(stamp, tablet.generation, key, version);
        }
        Ok(tablet.uncovered(key, version, Hlc::MAX))
    }

    /// The version of `key` at a timestamp, whatever it says.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn at(&self, tablet: &TabletHandle, key: &[u8], at: Hlc) -> Result<Option<Version>, StoreError> {
        let version = self.store.get(tablet.table, key, at)?;
        Ok(tablet.uncovered(key, version, at))
    }

    /// What the sequencer must know to run `ops`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn evidence(&self, tablet: &TabletHandle, ops: &[Op]) -> Result<Evidence, StoreError> {
        let mut evidence = Evidence { as_of: tablet.applied_seq(), ..Evidence::default() };
        for op in ops {
            match &op.action {
                Action::DeleteRange { from, to } => {
                    evidence.ranges.push(self.live_keys(tablet, from, to.as_ref())?);
                }
                Action::Set { key, .. }
                | Action::Delete { key, .. }
                | Action::Add { key, .. }
                | Action::Room { key, .. } => {
                    if op.needs_read() && !evidence.rows.contains_key(key) {
                        evidence.rows.insert(key.clone(), self.newest(tablet, key)?);
                    }
                }
            }
        }
        Ok(evidence)
    }

    /// The live keys of a range, up to one more than a delete range expands.
    fn live_keys(
        &self,
        tablet: &TabletHandle,
        from: &Bytes,
        to: Option<&Bytes>,
    ) -> Result<RangeEvidence, StoreError> {
        let asked = KeyRange::new(from.clone(), to.cloned()).ok();
        let Some(range) = asked.and_then(|asked| asked.intersect(&tablet.range)) else {
            return Ok(RangeEvidence::default());
        };
        let spec = ScanSpec {
            table: tablet.table,
            range,
            at: self.clock.now(),
            order: Order::Forward,
            projection: Projection::Keys,
        };
        let limits = PageLimits {
            rows_max: DELETE_RANGE_EXPANDED_ROWS_MAX + 1,
            bytes_max: usize::MAX,
            work_max: usize::MAX,
        };
        let page = scan_page(&*self.store, &tablet.tombstones.load(), &spec, &limits)?;
        Ok(RangeEvidence { keys: page.rows.into_iter().map(|row| row.key).collect() })
    }
}

/// Whether running `ops` needs what [`Reader::evidence`] reads.
#[must_use]
pub fn needs_evidence(ops: &[Op]) -> bool {
    ops.iter().any(|op| op.needs_read() || matches!(op.action, Action::DeleteRange { .. }))
}

/// Pages of a scan on the wire.
pub const SCAN_PAGE: PageLimits = PageLimits {
    rows_max: limits::SCAN_PAGE_ROWS,
    bytes_max: limits::SCAN_PAGE_BYTES,
    work_max: limits::SCAN_PAGE_WORK,
};
